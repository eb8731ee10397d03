"""One bin of a decoder as a function: counts and state in, behaviour and new state rows out.

The arithmetic is that of the forward pass, arranged for one bin: LayerNorm gains, the scale of the queries
and the label scale are folded into the next product, weights are stored transposed, and the kernel values of
each bin are generated before they are pooled. The rings stay outside: the step reads the past and returns
only what is new. `streaming.py` keeps the rings; `streaming_onnx.py` has this step as a graph for ONNX
Runtime.

Legend: `B` streams, `S` sites, `R` = B*S rows, `N` units, `D` hidden size, `L` layers, `H` heads, `d` head
size, `P` = d/2 rotation pairs, `A` anchors, `Kq`, `Kk` kernel taps, `E` = Kk * d, `W` bins in the window,
`C` = H*Kk*Kq + 1 terms of the context, `K` targets.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_rpnt import RPNTConfig
from .embeddings_rpnt import RECURRENT_GAIN
from .errors import ConfigurationError
from .modeling_rpnt import RPNTForMotorDecoding

__all__ = ["LayerWeights", "StepRows", "StepState", "StreamingStep", "push_rows"]


class StepState(NamedTuple):
    """What a stream remembers; rings hold their W - 1 past bins in any order, after the anchors.

    Args:
        key_bias (`torch.FloatTensor` of shape `(R, A + W - 1)`):
            0 where a key may be attended, a very negative number where a slot holds no recorded bin.
        tokens (`torch.FloatTensor` of shape `(R, stem_kernel - 1, D)`): Last tokens, oldest first.
        recurrence (`torch.FloatTensor` of shape `(R, 2, D)`):
            Output and cell of the recurrent stem; of size 0 where there is none.
        queries (`torch.FloatTensor` of shape `(L, R, H, Kq - 1, d)`): Last queries, oldest first.
        recent_keys (`torch.FloatTensor` of shape `(L, R, H, (Kk - 1) * d)`): Last keys, newest first.
        keys (`torch.FloatTensor` of shape `(L, R, H, A + W - 1, E)`): Ring of fused keys.
        values (`torch.FloatTensor` of shape `(L, R, H, A + W - 1, d)`): Ring of values.
        context (`torch.FloatTensor` of shape `(L, R, W - 1, C)`):
            Ring of context terms: generated kernel values times their weight, and the weight; 0 where nothing
            was recorded.
    """

    key_bias: Tensor
    tokens: Tensor
    recurrence: Tensor
    queries: Tensor
    recent_keys: Tensor
    keys: Tensor
    values: Tensor
    context: Tensor


class StepRows(NamedTuple):
    """What one bin adds to the state.

    Args:
        tokens (`torch.FloatTensor` of shape `(R, D)`): Token of the bin.
        recurrence (`torch.FloatTensor` of shape `(R, 2, D)`): New output and cell of the recurrent stem.
        queries (`torch.FloatTensor` of shape `(L, R, H, d)`): Its queries.
        keys (`torch.FloatTensor` of shape `(L, R, H, E)`): Its fused keys, the key itself first.
        values (`torch.FloatTensor` of shape `(L, R, H, d)`): Its values.
        context (`torch.FloatTensor` of shape `(L, R, C)`): Its context terms.
    """

    tokens: Tensor
    recurrence: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    context: Tensor


class LayerWeights(NamedTuple):
    """Weights of a layer, `(inputs, outputs)`, with what was folded into them; None where a part is off."""

    project_weight: Tensor
    project_bias: Tensor
    context_norm_weight: Tensor | None
    context_norm_bias: Tensor | None
    kernel_weight: Tensor | None
    kernel_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    anchor_keys: Tensor | None
    anchor_values: Tensor | None


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight `(outputs, inputs)` and bias, 0 where there is none, in float64."""
    if type(linear) is not nn.Linear:
        raise ConfigurationError(
            "To stream, every linear map of the model must be a plain `torch.nn.Linear`, whose weights are "
            f"copied, got {type(linear).__name__}. Merge adapters first (`merge_and_unload()`), and load "
            "without quantisation."
        )
    weight = linear.weight.detach().double()
    bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach().double()
    return weight, bias


def _fold(weight: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Linear map after a norm as one of the plain normalised input: weight `(inputs, outputs)` and bias."""
    return (weight * norm.weight.double()).t(), weight @ norm.bias.double() + bias


def _attention_map(attention: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of queries, keys and values, the scale of the queries folded in."""
    weight, bias = _weights(attention.qkv_proj)
    scale = torch.ones_like(bias)
    scale[: weight.shape[1]] /= math.sqrt(attention.head_size)
    return weight * scale[:, None], bias * scale


def _kernel_map(context_kernel: Any, num_heads: int) -> tuple[Tensor, Tensor]:
    """One product from a bin's context to its kernel values `(H, Kk, Kq)`, a one, and an eighth of its score.

    Pooled values need the bias once, and pooling weights sum to one, so it can be added before. Query taps
    run from the oldest, as the queries in the state do.
    """
    query_taps, key_taps = context_kernel.kernel_size
    shape = (num_heads, query_taps, key_taps)
    weight, bias = _weights(context_kernel.kernel_proj)
    bias = bias + context_kernel.kernel_bias.double()
    weight, bias = (part.unflatten(0, shape).flip(1).transpose(1, 2).flatten(0, 2) for part in (weight, bias))
    score_weight, score_bias = (part / 8 for part in _weights(context_kernel.score))
    return (
        torch.cat([weight, torch.zeros_like(score_weight), score_weight]).t(),
        torch.cat([bias, torch.ones_like(score_bias), score_bias]),
    )


class StreamingStep(nn.Module):
    """Prepares the weights of a decoder for one bin at a time, and runs that bin.

    The weights are copied when it is made: later changes of the model do not reach it. It is an `nn.Module`
    for `torch.export` and `torch.compile`, and has no parameters: what it holds is frozen.

    Args:
        model ([`RPNTForMotorDecoding`]): The decoder.
        unit_ids (`torch.LongTensor` of shape `(S, N)`): Rows of the unit embedding.
        unit_mask (`torch.BoolTensor` of shape `(S, N)`): True where a unit is real.
        metadata (`torch.FloatTensor` of shape `(S, axes)`, *optional*): NaN unknown; None for all unknown.
        window (`int`): Bins that a query sees, its own included.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: RPNTForMotorDecoding,
        unit_ids: Tensor,
        unit_mask: Tensor,
        metadata: Tensor | None,
        window: int,
    ) -> None:
        super().__init__()
        encoder: Any = model.model
        self.config: RPNTConfig = model.config
        self.window = window
        self.slots = max(window - 1, 1)  # a window of one leaves its one slot unrecorded
        self.num_sites = unit_ids.shape[0]
        self.dtype = model.decoder.weight.dtype
        self.wide = torch.promote_types(self.dtype, torch.float32)
        self.device = model.decoder.weight.device
        self.activation: Callable[[Tensor], Tensor] = encoder.temporal_layers[0].mlp[1]

        embeddings = encoder.embeddings
        visible = unit_mask.double()
        share = visible / visible.sum(dim=-1, keepdim=True).clamp_min(1).sqrt()
        self.units = self._cast(embeddings.unit_embedding.weight[unit_ids].double() * share[..., None])
        self.stem: tuple[Tensor, ...] | None = None
        if self.config.stem_kernel > 1:
            taps = embeddings.stem_weight[:, 0].t().double()
            now = 1 + taps[-1]  # the token itself is added to what the taps give
            parts = (taps[:-1], now, embeddings.stem_bias, embeddings.norm.weight, embeddings.norm.bias)
            self.stem = tuple(self._cast(part) for part in parts)
        self.recurrence: tuple[Tensor, Tensor] | None = None
        if self.config.recurrent_stem:
            cell = embeddings.recurrence
            weight = torch.cat(
                [RECURRENT_GAIN * cell.weight_ih_l0.double(), cell.weight_hh_l0.double()], dim=1
            )
            self.recurrence = self._cast(weight.t()), self._cast(cell.bias_ih_l0.double() + cell.bias_hh_l0)

        tables = encoder.rotary(None if metadata is None else metadata[None], 1, self.device)
        pairs = self.config.head_size // 2
        # (S, P) each, those of time as at bin 0.
        (self.cos, self.sin), self.spatial_tables = (
            tuple(table.reshape(-1, pairs).expand(self.num_sites, -1) for table in stage) for stage in tables
        )
        self.spatial_rotation = self._turn(*self.spatial_tables)
        # Which pairs turn with time, and by how many radians per bin.
        self.time_pairs, self.frequencies = slice(0, 0), np.zeros(0)
        first = 0
        for axis in self.config.mrope_axes:
            if axis.name == "time" and self.config.position_encoding in ("mrope", "rope"):
                self.time_pairs = slice(first, first + axis.num_pairs)
                self.frequencies = axis.scale * axis.theta ** -(np.arange(axis.num_pairs) / axis.num_pairs)
            first += axis.num_pairs
        self.temporal = [self._layer(layer, encoder.rotary) for layer in encoder.temporal_layers]
        self.spatial = [self._layer(layer, encoder.rotary) for layer in encoder.spatial_layers]

        score_weight, score_bias = _fold(*_weights(model.site_pooling.score), encoder.norm)
        self.score_weight, self.score_bias = self._cast(score_weight), self._cast(score_bias)
        targets = self.config.num_targets
        mean, scale = (
            torch.tensor(values or [default] * targets, dtype=torch.float64, device=self.device)
            for values, default in ((self.config.label_mean, 0.0), (self.config.label_std, 1.0))
        )
        weight, absent = (part[:targets] for part in _weights(model.decoder))
        readout_weight, bias = _fold(weight, absent, encoder.norm)
        self.stem_readout: tuple[Tensor, Tensor, Tensor] | None = None
        if self.config.recurrent_stem:  # predictions are the mean of two readouts
            stem_weight, stem_bias = _weights(model.stem_decoder)
            absent, bias = (absent + stem_bias) / 2, (bias + stem_bias) / 2
            readout_weight, scaled = readout_weight / 2, stem_weight.t() * scale / 2
            score_weight, score_bias = _weights(model.stem_pooling.score)
            scaled = scaled.to(self.wide).contiguous()
            self.stem_readout = (self._cast(score_weight.t()), self._cast(score_bias), scaled)
        self.readout_weight = (readout_weight * scale).to(self.wide).contiguous()
        self.readout_bias = (bias * scale + mean).to(self.wide)
        self.absent = (absent * scale + mean).to(self.wide)  # what a bin without any site decodes to

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype, copy=True, memory_format=torch.contiguous_format)

    def _layer(self, layer: Any, rotary: Any) -> LayerWeights:
        attention = layer.attention
        weight, bias = _attention_map(attention)
        kernel, key_taps = getattr(attention, "context_kernel", None), 1
        context_norm: tuple[Tensor | None, ...] = (None, None)
        kernel_map = anchors = context_norm
        if kernel is not None:
            key_taps = kernel.kernel_size[1]
            context_weight, context_bias = _weights(kernel.context_proj)
            weight, bias = torch.cat([weight, context_weight]), torch.cat([bias, context_bias])
            context_norm = (kernel.norm.weight, kernel.norm.bias)
            kernel_map = _kernel_map(kernel, attention.num_heads)
        if attention.num_anchors:
            channels = rotary.anchor_channels(attention.zero_axes, self.device)
            anchors = ((attention.anchor_keys * channels).repeat(1, 1, key_taps), attention.anchor_values)
        attention_scale, mlp_scale = 1.0, 1.0
        if self.config.layer_scale is not None:
            attention_scale, mlp_scale = layer.attention_scale.double(), layer.mlp_scale.double()
        output_weight, output_bias = _weights(attention.o_proj)
        down_weight, down_bias = _weights(layer.mlp[3])
        parts = (
            *_fold(weight, bias, layer.attention_norm),
            *context_norm,
            *kernel_map,
            output_weight.t() * attention_scale,
            output_bias * attention_scale,
            *_fold(*_weights(layer.mlp[0]), layer.mlp_norm),
            down_weight.t() * mlp_scale,
            down_bias * mlp_scale,
            *anchors,
        )
        return LayerWeights(*(None if part is None else self._cast(part) for part in parts))  # type: ignore[arg-type]

    @property
    def num_context_terms(self) -> int:
        """Context terms of a bin, `C`; 0 where the kernels are off."""
        kernel_bias = self.temporal[0].kernel_bias
        return 0 if kernel_bias is None else kernel_bias.shape[0] - 1

    def empty_state(self, batch_size: int) -> StepState:
        """Makes the state of streams that have not begun.

        Args:
            batch_size (`int`): Streams, 1 or more.

        Returns:
            [`StepState`]: Anchors in their slots, no bin recorded.
        """
        config = self.config
        query_taps, key_taps = config.context_attention.taps
        rows, places, size = batch_size * self.num_sites, config.num_anchors + self.slots, config.head_size
        heads = (len(self.temporal), rows, config.num_attention_heads)

        def zeros(*shape: int, dtype: torch.dtype = self.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        state = StepState(
            key_bias=zeros(rows, places, dtype=self.wide),
            tokens=zeros(rows, config.stem_kernel - 1, config.hidden_size),
            recurrence=zeros(rows, 2 if self.recurrence is not None else 0, config.hidden_size),
            queries=zeros(*heads, query_taps - 1, size),
            recent_keys=zeros(*heads, (key_taps - 1) * size),
            keys=zeros(*heads, places, key_taps * size),
            values=zeros(*heads, places, size),
            context=zeros(heads[0], rows, self.slots, self.num_context_terms, dtype=self.wide),
        )
        state.key_bias[:, config.num_anchors :] = self.blocked
        for index, layer in enumerate(self.temporal):
            if layer.anchor_keys is not None and layer.anchor_values is not None:
                state.keys[index, :, :, : config.num_anchors] = layer.anchor_keys
                state.values[index, :, :, : config.num_anchors] = layer.anchor_values
        return state

    @property
    def blocked(self) -> float:
        """Added to the score of a key that must not be attended; finite, so that no row becomes NaN."""
        return torch.finfo(self.wide).min / 2

    @staticmethod
    def _turn(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Tables that `_rotate` takes, (S, 1, 2, P), from those of pairs, (S, P)."""
        signed = torch.stack([-sin, sin], dim=1)
        return cos[:, None, None], signed[:, None]

    def _rotate(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotates queries and keys side by side, (R, 2 * D) -> (R, 2, H, d)."""
        config = self.config
        states = states.unflatten(-1, (-1, 2, config.head_size // 2)).unflatten(0, (-1, self.num_sites))
        states = states.to(self.wide)
        cos, sin = rotation
        turned = torch.addcmul(states * cos, states.flip(-2), sin).to(self.dtype)
        return turned.view(-1, 2, config.num_attention_heads, config.head_size)

    def _norm(self, states: Tensor) -> Tensor:
        return F.layer_norm(states, states.shape[-1:], eps=self.config.layer_norm_eps)

    def _feed_forward(self, hidden: Tensor, layer: LayerWeights) -> Tensor:
        expanded = self.activation(torch.addmm(layer.up_bias, self._norm(hidden), layer.up_weight))
        return hidden + torch.addmm(layer.down_bias, expanded, layer.down_weight)

    def _temporal_layer(
        self,
        hidden: Tensor,
        layer: LayerWeights,
        rotation: tuple[Tensor, Tensor],
        key_bias: Tensor,
        state: Sequence[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer at one bin, (R, D) -> (R, D), and what it adds to its state."""
        config = self.config
        width, heads, size = config.hidden_size, config.num_attention_heads, config.head_size
        query_taps, key_taps = config.context_attention.taps
        queries, recent_keys, keys, values, context = state
        rows = hidden.shape[0]
        projected = torch.addmm(layer.project_bias, self._norm(hidden), layer.project_weight)
        query, key = self._rotate(projected[:, : 2 * width], rotation).unbind(1)
        value = projected[:, 2 * width : 3 * width].reshape(rows, heads, size)
        fused_key, terms = key, context[:, 0]
        fused_query = query.reshape(rows * heads, 1, size)
        if layer.kernel_weight is not None and layer.kernel_bias is not None:
            fused_key = torch.cat([key, recent_keys], dim=-1)
            mapped = projected[:, 3 * width :]
            mapped = F.layer_norm(
                mapped,
                mapped.shape[-1:],
                layer.context_norm_weight,
                layer.context_norm_bias,
                config.layer_norm_eps,
            )
            generated = torch.addmm(layer.kernel_bias, F.gelu(mapped), layer.kernel_weight).to(self.wide)
            terms = generated[:, :-1] * torch.exp(8 * torch.tanh(generated[:, -1:]))
            sums = context.sum(dim=1) + terms  # afresh at every bin: running differences drift
            logits = sums[:, :-1] / sums[:, -1:]
            kernel = logits.view(rows * heads, -1).softmax(dim=-1).view(-1, key_taps, query_taps)
            seen = torch.cat([queries, query[:, :, None]], dim=2).flatten(0, 1)
            fused_query = torch.bmm(kernel.to(self.dtype), seen).view(rows * heads, 1, -1)
        # The current bin is scored apart, so that the ring need not be copied.
        past = torch.bmm(fused_query, keys.flatten(0, 1).transpose(1, 2)).to(self.wide) + key_bias
        now = torch.bmm(fused_query, fused_key.reshape(rows * heads, -1, 1)).to(self.wide)
        weights = torch.cat([past, now], dim=-1).softmax(dim=-1).to(self.dtype)
        own = weights[..., -1:] * value.reshape(rows * heads, 1, size)
        output = torch.baddbmm(own, weights[..., :-1], values.flatten(0, 1)).view(rows, width)
        hidden = hidden + torch.addmm(layer.output_bias, output, layer.output_weight)
        return self._feed_forward(hidden, layer), (query, fused_key, value, terms)

    def _spatial_layer(self, hidden: Tensor, layer: LayerWeights, site_bias: Tensor) -> Tensor:
        """One layer over the sites of one bin, (R, D) -> (R, D)."""
        width = self.config.hidden_size
        projected = torch.addmm(layer.project_bias, self._norm(hidden), layer.project_weight)
        rotated = self._rotate(projected[:, : 2 * width], self.spatial_rotation)
        rotated = rotated.unflatten(0, (-1, self.num_sites))  # (B, S, 2, H, d)
        query, key = rotated[:, :, 0].transpose(1, 2), rotated[:, :, 1].transpose(1, 2)
        value = projected[:, 2 * width :].reshape(key.shape[0], self.num_sites, *key.shape[1::2])
        value = value.transpose(1, 2)
        scores = (query @ key.transpose(-1, -2)).to(self.wide) + site_bias[:, None, None]
        if layer.anchor_keys is None or layer.anchor_values is None:
            output = scores.softmax(dim=-1).to(self.dtype) @ value
        else:
            anchors = (query @ layer.anchor_keys.transpose(-1, -2)).to(self.wide)
            weights = torch.cat([anchors, scores], dim=-1).softmax(dim=-1).to(self.dtype)
            split = layer.anchor_keys.shape[1]
            output = weights[..., :split] @ layer.anchor_values + weights[..., split:] @ value
        output = output.transpose(1, 2).reshape(-1, width)
        hidden = hidden + torch.addmm(layer.output_bias, output, layer.output_weight)
        return self._feed_forward(hidden, layer)

    def _pool(self, states: Tensor, weight: Tensor, bias: Tensor, site_bias: Tensor) -> Tensor:
        """Weighted mean over sites, (R, D) -> (B, D)."""
        if self.num_sites == 1:
            return states
        sites = states.unflatten(0, (-1, self.num_sites))
        scores = (sites @ weight + bias)[..., 0].to(self.wide) + site_bias
        return torch.bmm(scores.softmax(dim=-1).to(self.dtype)[:, None], sites)[:, 0]

    def read_out(self, hidden: Tensor, stem: Tensor, site_bias: Tensor) -> Tensor:
        """Spatial layers, pooling of sites and the decoding head: what is done at each bin by itself.

        Args:
            hidden (`torch.FloatTensor` of shape `(R, D)`): Output of the temporal layers.
            stem (`torch.FloatTensor` of shape `(R, D)`): Their input, which a recurrent stem also reads out.
            site_bias (`torch.FloatTensor` of shape `(B, S)`): As in `forward`.

        Returns:
            `torch.FloatTensor` of shape `(B, K)`: Predictions in physical units.
        """
        for layer in self.spatial:
            hidden = self._spatial_layer(hidden, layer, site_bias)
        pooled = self._pool(self._norm(hidden), self.score_weight, self.score_bias, site_bias)
        predictions = torch.addmm(self.readout_bias, pooled.to(self.wide), self.readout_weight)
        if self.stem_readout is not None:
            score_weight, score_bias, weight = self.stem_readout
            pooled = self._pool(stem, score_weight, score_bias, site_bias)
            predictions = torch.addmm(predictions, pooled.to(self.wide), weight)
        return predictions

    def forward(
        self,
        spike_counts: Tensor,
        cos: Tensor,
        sin: Tensor,
        site_bias: Tensor,
        positions: Tensor,
        state: StepState,
    ) -> tuple[Tensor, StepRows]:
        """Decodes one bin; changes nothing that it is given.

        Args:
            spike_counts (`torch.FloatTensor` of shape `(B, S, N)`): Counts, 0 or more.
            cos (`torch.FloatTensor` of shape `(S, P)`): Cosines of the rotation at this bin.
            sin (`torch.FloatTensor` of shape `(S, P)`): Sines.
            site_bias (`torch.FloatTensor` of shape `(B, S)`):
                0 where a site was recorded, `blocked` where it was not; unused with one site.
            positions (`torch.FloatTensor` of shape `(R, D)` or `()`):
                Sinusoidal positions of this bin, or 0.
            state ([`StepState`]): The past.

        Returns:
            `tuple`: Predictions `(B, K)` in physical units, and [`StepRows`] to be written into the state.
            Both hold garbage, though finite, where a site was not recorded.
        """
        roots = spike_counts.sqrt().to(self.dtype)
        if self.num_sites == 1:
            token = roots[:, 0] @ self.units[0]
        else:
            token = torch.bmm(roots.transpose(0, 1), self.units).transpose(0, 1).flatten(0, 1)
        hidden = token
        if self.stem is not None:
            taps, now, bias, gain, shift = self.stem
            hidden = torch.addcmul((state.tokens * taps).sum(dim=1) + bias, token, now)
            hidden = F.layer_norm(hidden, hidden.shape[-1:], gain, shift, self.config.layer_norm_eps)
        recurrence = state.recurrence
        if self.recurrence is not None:
            weight, bias = self.recurrence
            gates = torch.addmm(bias, torch.cat([hidden, state.recurrence[:, 0]], dim=-1), weight)
            enter, keep, candidate, leave = gates.chunk(4, dim=-1)
            cell = keep.sigmoid() * state.recurrence[:, 1] + enter.sigmoid() * candidate.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            recurrence = torch.stack([hidden, cell], dim=1)
        if positions.ndim:
            hidden = hidden + positions.to(self.dtype)
        stem = hidden

        rotation = self._turn(cos, sin)
        key_bias = state.key_bias[:, None].expand(-1, self.config.num_attention_heads, -1).flatten(0, 1)
        rows: list[tuple[Tensor, ...]] = []
        layers = zip(self.temporal, *(part.unbind(0) for part in state[3:]), strict=True)
        for layer, *past in layers:
            hidden, new = self._temporal_layer(hidden, layer, rotation, key_bias[:, None], past)
            rows.append(new)
        stacked = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return self.read_out(hidden, stem, site_bias), StepRows(token, recurrence, *stacked)


def push_rows(state: StepState, rows: StepRows, slot: int, recorded: Tensor | None, blocked: float) -> None:
    """Writes one bin into the state, in place.

    Args:
        state ([`StepState`]): The state to change.
        rows ([`StepRows`]): What the step returned.
        slot (`int`):
            Where the rings take it, in [0, W - 1); -1 where the window is one bin and they take none.
        recorded (`torch.BoolTensor` of shape `(R,)`, *optional*):
            True where the site was recorded; elsewhere zeros are written. None for all.
        blocked (`float`): `StreamingStep.blocked`.
    """
    if recorded is not None:
        seen_R1, seen_R11 = recorded[:, None], recorded[:, None, None]
        size = rows.values.shape[-1]
        own_key, earlier_keys = rows.keys[..., :size], rows.keys[..., size:]
        rows = StepRows(
            tokens=rows.tokens * seen_R1,
            recurrence=torch.where(seen_R11, rows.recurrence, state.recurrence),
            queries=rows.queries * seen_R11,
            keys=torch.cat([own_key * seen_R11, earlier_keys], dim=-1),
            values=rows.values * seen_R11,
            context=rows.context * seen_R1,
        )
    if state.tokens.shape[1]:
        state.tokens.copy_(torch.cat([state.tokens[:, 1:], rows.tokens[:, None]], dim=1))
    state.recurrence.copy_(rows.recurrence)
    if state.queries.shape[3]:
        state.queries.copy_(torch.cat([state.queries[:, :, :, 1:], rows.queries[:, :, :, None]], dim=3))
    if state.recent_keys.shape[3]:
        state.recent_keys.copy_(rows.keys[..., : state.recent_keys.shape[3]])
    if slot >= 0:
        place = state.keys.shape[3] - state.context.shape[2] + slot
        state.keys[:, :, :, place] = rows.keys
        state.values[:, :, :, place] = rows.values
        state.context[:, :, slot] = rows.context
        state.key_bias[:, place] = 0
        if recorded is not None:
            state.key_bias[:, place].masked_fill_(~recorded, blocked)
