"""Decodes bin by bin inside a closed loop: counts of one bin in, behaviour out, state in between.

Equal to the forward pass over the whole stream. Not for files: that is `decoding.py`.

Legend: `B` parallel streams, `S` sites, `N` units, `H` heads, `d` head size, `A` anchors, `W` bins in the
window.
"""

import logging
import math
from typing import Any

import torch
from torch import Tensor

from .attention_rpnt import RPNTTemporalAttention, fuse_queries, rotate
from .errors import CheckpointError, ConfigurationError, InputError
from .modeling_rpnt import RPNTForMotorDecoding
from .processing_rpnt import RPNTProcessor

logger = logging.getLogger(__name__)


class StreamingDecoder:
    """Runs a decoder one bin at a time, in constant time and memory (DESIGN 2.6).

    Rings hold what the attention window still needs: fused keys, values and context terms of its bins, in any
    order, since positions are in the keys. The context is summed afresh at every bin, because running
    differences drift.

    Args:
        model ([`RPNTForMotorDecoding`]):
            The decoder; it is put into evaluation mode.
        processor ([`RPNTProcessor`], *optional*):
            Its processor, for the units and metadata of a session. Without one, `sites` and the default units
            of the model are taken, and metadata are unknown.
        session_id (`str`, *optional*):
            Session of the processor whose units come in; required with a vocabulary.
        batch_size (`int`, *optional*, defaults to 1):
            Parallel streams of that session, 1 or more.
        sites (`int`, *optional*, defaults to 1):
            Sites, where there is no processor.
        max_bins (`int`, *optional*):
            Longest stream, for a model without `attention_window`, whose memory it sets.

    Raises:
        ConfigurationError: The model has learned positions, or neither a window nor `max_bins`.
        InputError: The session is unknown.

    Example:
        ```python
        >>> import numpy as np
        >>> from rpnt_hf import RPNTConfig
        >>> decoder = StreamingDecoder(RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=3)))
        >>> decoder.step(np.array([0, 2, 1])).shape
        torch.Size([2])
        ```
    """

    def __init__(
        self,
        model: RPNTForMotorDecoding,
        processor: RPNTProcessor | None = None,
        session_id: str | None = None,
        batch_size: int = 1,
        sites: int = 1,
        max_bins: int | None = None,
    ) -> None:
        config = model.config
        if config.position_encoding == "learned":
            raise ConfigurationError(
                "A stream has no last bin, so `position_encoding` must not be 'learned', got 'learned'. "
                "Train with 'mrope' to stream."
            )
        if config.attention_window is None and max_bins is None:
            raise ConfigurationError(
                "A stream needs `attention_window` in the configuration of the model, or `max_bins`, got "
                "neither: its memory would grow without end. Train with a window, or state the longest "
                "stream."
            )
        if batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be at least 1 stream, got {batch_size}.")
        self.model = model.eval()
        self.batch_size = batch_size
        self.max_bins = max_bins if config.attention_window is None else None
        self.window = int(config.attention_window or max_bins or 0)
        trained = processor.window_bins if processor is not None else None
        if trained is not None and config.attention_window is not None and config.attention_window > trained:
            logger.warning(
                "`attention_window` is %d bins but training windows had %d: keys further back were never "
                "trained.",
                config.attention_window, trained,
            )  # fmt: skip
        self._take_session(processor, session_id, sites)
        self.reset()

    def _take_session(self, processor: RPNTProcessor | None, session_id: str | None, sites: int) -> None:
        """Lays out the units of the session once; each step only gathers."""
        device = self.model.device
        if processor is None:
            units = self.model.config.num_units
            units = units // sites if self.model.config.unit_embedding == "vocabulary" else units
            counts = torch.zeros(1, sites, 1, units, device=device)
            self.unit_ids = self.model.model.default_unit_ids(counts)
            self.unit_mask = torch.ones_like(self.unit_ids, dtype=torch.bool)
            self.unit_index = torch.arange(sites * units, device=device).view(sites, units)
            self.metadata = None
            self.num_flat_units = sites * units
        else:
            index, unit_ids, unit_mask, metadata = processor.session_inputs(session_id)
            self.unit_index = torch.from_numpy(index).to(device)
            self.unit_ids = torch.from_numpy(unit_ids)[None].to(device)
            self.unit_mask = torch.from_numpy(unit_mask)[None].to(device)
            self.metadata = torch.from_numpy(metadata)[None].to(device)
            self.num_flat_units = len(processor.sessions[session_id or ""])
        self.num_sites = self.unit_index.shape[0]

    def reset(self) -> None:
        """Forgets the stream: the next bin is the first."""
        config = self.model.config
        weight = self.model.decoder.weight
        query_taps, key_taps = config.context_attention.taps
        lead = (self.batch_size, self.num_sites)
        heads = (*lead, config.num_attention_heads)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

        self._bin = 0
        self._recorded = torch.zeros(*lead, self.window, dtype=torch.bool, device=weight.device)
        self._age = torch.zeros(*lead, 1, dtype=torch.long, device=weight.device)
        self._tokens = zeros(*lead, config.stem_kernel - 1, config.hidden_size)
        self._layers = []
        for layer in self.model.model.temporal_layers:
            state = {
                "queries": zeros(*heads, query_taps - 1, config.head_size),
                "recent_keys": zeros(*heads, key_taps - 1, config.head_size),
                "keys": zeros(*heads, config.num_anchors + self.window, key_taps * config.head_size),
                "values": zeros(*heads, config.num_anchors + self.window, config.head_size),
            }
            if config.num_anchors:
                channels = self.model.model.rotary.anchor_channels(layer.attention.zero_axes, weight.device)
                anchor_keys, anchor_values = layer.attention.anchors(channels, weight)
                state["keys"][:, :, :, : config.num_anchors] = anchor_keys.detach().repeat(1, 1, key_taps)
                state["values"][:, :, :, : config.num_anchors] = anchor_values.detach()
            if config.context_attention.enabled:
                size = config.context_attention.context_size + 1
                state["context"] = zeros(*lead, self.window, size).float()  # sums stay fp32
            self._layers.append(state)

    def state_dict(self) -> dict[str, Any]:
        """Copies the state, for another process or for going back.

        Returns:
            `dict[str, Any]`: Tensors and numbers; `torch.save` and `load_state_dict` take it.
        """
        return {
            "bin": self._bin,
            "recorded": self._recorded.clone(),
            "age": self._age.clone(),
            "tokens": self._tokens.clone(),
            "layers": [{name: tensor.clone() for name, tensor in state.items()} for state in self._layers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state.

        Args:
            state (`dict[str, Any]`): From `state_dict` of a decoder with the same model, session and batch
                size.

        Raises:
            CheckpointError: The state belongs to another model, session or batch size.
        """
        own = self.state_dict()
        shapes = [
            {name: tuple(tensor.shape) for name, tensor in layer.items()}
            | {"recorded": tuple(which["recorded"].shape)}
            for which in (own, state)
            for layer in which["layers"]
        ]
        half = len(own["layers"])
        if len(shapes) != 2 * half or shapes[:half] != shapes[half:]:
            raise CheckpointError(
                "The state must come from a decoder with the same model, session and batch size, whose "
                f"first layer holds {shapes[0]}, got {shapes[-1]}. Make the decoder in the same way."
            )
        self._bin = int(state["bin"])
        self._recorded = state["recorded"].to(self._recorded).clone()
        self._age = state["age"].to(self._age).clone()
        self._tokens = state["tokens"].to(self._tokens).clone()
        self._layers = [
            {name: state_layer[name].to(tensor).clone() for name, tensor in layer.items()}
            for layer, state_layer in zip(self._layers, state["layers"], strict=True)
        ]

    def _checked(self, counts: Any) -> Tensor:
        """Counts as (B, S, 1, N), or an error that leaves the state as it was."""
        counts = torch.as_tensor(counts, device=self.model.device)
        flat = (self.num_flat_units,)
        laid_out = tuple(self.unit_index.shape)
        allowed = [laid_out] if self.batch_size == 1 else []
        allowed += [flat] if self.batch_size == 1 else [(self.batch_size, *flat)]
        allowed += [(self.batch_size, *laid_out)]
        if tuple(counts.shape) not in allowed:
            raise InputError(
                f"`counts` of one bin must have shape {' or '.join(map(str, allowed))}, got "
                f"{tuple(counts.shape)} at bin {self._bin}. The stream goes on where it was."
            )
        if counts.is_floating_point() and not bool(torch.isfinite(counts).all()):
            raise InputError(
                f"`counts` must be finite, got NaN or infinity at bin {self._bin}. The stream goes on where "
                "it was; for a site that failed pass `site_mask`."
            )
        if bool((counts < 0).any()):
            raise InputError(
                f"`counts` must be 0 or more, got {counts.min().item()} at bin {self._bin}. The stream goes "
                "on where it was."
            )
        if counts.shape[-1] == self.num_flat_units and tuple(counts.shape[-2:]) != laid_out:
            counts = counts[..., self.unit_index]
        return counts.reshape(self.batch_size, self.num_sites, 1, -1)

    @torch.inference_mode()
    def step(self, counts: Any, site_mask: Any = None) -> Tensor:
        """Takes the counts of the next bin and decodes it.

        Args:
            counts (array of shape `(N,)`, `(S, N)`, `(B, N)` or `(B, S, N)`):
                Spikes of each unit in this bin, 0 or more; flat units in the order of the session.
            site_mask (array of shape `(S,)` or `(B, S)`, *optional*):
                True where a site was recorded in this bin; all by default.

        Returns:
            `torch.FloatTensor` of shape `(K,)`, or `(B, K)` with several streams: behaviour in
            `config.target_units`, `label_lag` bins ahead.

        Raises:
            InputError: Counts of the wrong shape, negative or not finite, or a stream longer than `max_bins`.
            The
                state is as before.
        """
        counts_BS1N = self._checked(counts)
        if self.max_bins is not None and self._bin >= self.max_bins:
            raise InputError(
                f"The stream must end after `max_bins`={self.max_bins} bins, got one more. Call `reset`, or "
                "train with `attention_window`."
            )
        model, device = self.model.model, self.model.device
        lead = (self.batch_size, self.num_sites)
        recorded = torch.ones(*lead, dtype=torch.bool, device=device)
        if site_mask is not None:
            recorded = recorded & torch.as_tensor(site_mask, device=device).reshape(-1, self.num_sites)
        recorded_BS1 = recorded[..., None]

        token = model.embeddings.tokens(counts_BS1N, self.unit_ids, self.unit_mask) * recorded_BS1[..., None]
        tokens = torch.cat([self._tokens, token], dim=2)
        hidden = model.embeddings.filter(tokens)
        if self.model.config.position_encoding == "sinusoidal":
            hidden = hidden + model.embeddings.positions(self._age).to(hidden.dtype)
        self._tokens = tokens[:, :, 1:]
        self._age = self._age + (recorded_BS1 | (self._age > 0))

        slot = self._bin % self.window
        self._recorded[..., slot] = recorded
        temporal, spatial = model.rotary(self.metadata, 1, device, first_bin=self._bin)
        for layer, state in zip(model.temporal_layers, self._layers, strict=True):
            normed = layer.attention_norm(hidden)
            hidden = hidden + self._attend(layer.attention, normed, temporal, recorded_BS1, state, slot)
            hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
        if len(model.spatial_layers):
            channels = model.rotary.anchor_channels(model.spatial_layers[0].attention.zero_axes, device)
            for layer in model.spatial_layers:
                hidden = layer(hidden, spatial, channels, recorded_BS1)
        hidden = model.norm(hidden) * recorded_BS1[..., None]
        self._bin += 1
        predictions, _, _ = self.model.decode(hidden, recorded_BS1)
        return predictions[:, 0] if self.batch_size > 1 else predictions[0, 0]

    def _attend(
        self,
        attention: RPNTTemporalAttention,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        recorded: Tensor,
        state: dict[str, Tensor],
        slot: int,
    ) -> Tensor:
        """One bin of temporal attention; updates the state of its layer. (B, S, 1, D) -> (B, S, 1, D)."""
        query, key, value = attention.project(hidden, recorded).transpose(-3, -2)
        query = rotate(query, *rotation) / math.sqrt(attention.head_size)
        key = rotate(key, *rotation)
        queries = torch.cat([state["queries"], query], dim=-2)
        recent_keys = torch.cat([state["recent_keys"], key], dim=-2)
        state["queries"], state["recent_keys"] = queries[..., 1:, :], recent_keys[..., 1:, :]
        # Tap j of a fused key is the key j bins back, so the newest comes first.
        fused_key = recent_keys.flip(-2).flatten(-2)
        if attention.config.context_attention.enabled:
            state["context"][:, :, slot] = attention.context_kernel.context_terms(hidden, recorded)[:, :, 0]
            sums = state["context"].sum(dim=2, keepdim=True)
            kernel = attention.context_kernel.kernels(sums, hidden.dtype)
            kernel = kernel.expand(*kernel.shape[:3], queries.shape[-2], -1, -1)
            fused_query = fuse_queries(queries, kernel)[..., -1:, :]
        else:
            fused_query = query
        place = attention.num_anchors + slot
        state["keys"][..., place, :] = fused_key
        state["values"][..., place, :] = value[..., 0, :]
        scores = (fused_query.to(value.dtype) @ state["keys"].transpose(-1, -2)).float()
        scores[..., attention.num_anchors :].masked_fill_(
            ~self._recorded[:, :, None, None], torch.finfo(scores.dtype).min / 2
        )
        output = scores.softmax(dim=-1).to(value.dtype) @ state["values"]
        return attention.o_proj(output.transpose(-3, -2).flatten(-2))


__all__ = ["StreamingDecoder"]
