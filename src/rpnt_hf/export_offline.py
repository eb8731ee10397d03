"""The forward pass of a decoder for one session in a form that exporters can trace at any length.

It has the prepared weights of `streaming_step.py` and dense attention, without branches on the number of
bins: T bins take memory of order T^2, so it is for windows, and the step is for streams. Not for training or
for use in torch: that is `RPNTForMotorDecoding`.

Legend: as in `streaming_step.py`, and `T` bins.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .modeling_rpnt import RPNTForMotorDecoding
from .streaming_step import LayerWeights, StreamingStep

__all__ = ["OfflineDecoder"]


class OfflineDecoder(nn.Module):
    """Decodes windows of one session; tests hold it equal to the model.

    Args:
        step ([`StreamingStep`]): Prepared weights.
        model ([`RPNTForMotorDecoding`]): The model that they come from, for its recurrent stem.
    """

    def __init__(self, step: StreamingStep, model: RPNTForMotorDecoding) -> None:
        super().__init__()
        self.step = step
        self.recurrent_stem = (model.model.embeddings,)  # in a tuple, so that exporters do not look into it
        self.frequencies = torch.from_numpy(step.frequencies).to(step.device)

    def forward(self, spike_counts: Tensor, bin_mask: Tensor) -> Tensor:
        """Decodes behaviour at every bin.

        Args:
            spike_counts (`torch.FloatTensor` of shape `(B, S, T, N)`): Counts, 0 or more.
            bin_mask (`torch.BoolTensor` of shape `(B, S, T)`): True where a bin was recorded.

        Returns:
            `torch.FloatTensor` of shape `(B, T, K)`: Predictions in physical units.
        """
        step = self.step
        num_bins = spike_counts.shape[2]
        recorded = bin_mask.to(step.dtype)[..., None]
        token = spike_counts.to(step.wide).sqrt().to(step.dtype) @ step.units * recorded
        hidden = token
        if step.stem is not None:
            taps, now, bias, gain, shift = step.stem
            padded = F.pad(token, (0, 0, len(taps), 0))
            hidden = token * now + bias
            for tap, weight in enumerate(taps):
                hidden = hidden + padded[:, :, tap : tap + num_bins] * weight
            hidden = F.layer_norm(hidden, hidden.shape[-1:], gain, shift, step.config.layer_norm_eps)
        if step.recurrence is not None:
            hidden = self._recur(hidden, bin_mask)
        bins = torch.arange(num_bins, device=step.device)
        if step.config.position_encoding == "sinusoidal":
            hidden = hidden + self._positions(bins, bin_mask).to(step.dtype)

        stem = hidden
        rotation = self._rotation(bins)
        distance = bins[:, None] - bins
        seen = (distance >= 0) & (distance < step.window)
        hidden = hidden.flatten(0, 1)
        recorded, seen = recorded.flatten(0, 1), seen & bin_mask.flatten(0, 1)[:, None]
        for layer in step.temporal:
            hidden = self._layer(hidden, layer, rotation, recorded, seen)

        # What is done at each bin by itself takes bins as streams.
        hidden = hidden.unflatten(0, (-1, step.num_sites))
        hidden, stem = hidden.transpose(1, 2), stem.transpose(1, 2)  # (B, T, S, D)
        site_mask = bin_mask.transpose(1, 2)
        site_bias = torch.where(site_mask, 0.0, step.blocked).to(step.wide)
        predictions = step.read_out(hidden.flatten(0, 2), stem.flatten(0, 2), site_bias.flatten(0, 1))
        predictions = predictions.unflatten(0, (-1, num_bins))
        return torch.where(site_mask.any(dim=2, keepdim=True), predictions, step.absent)

    def _recur(self, hidden: Tensor, bin_mask: Tensor) -> Tensor:
        """The recurrent stem, which passes over bins that were not recorded, (B, S, T, D) -> (B, S, T, D)."""
        assert self.step.recurrence is not None
        if not torch.compiler.is_exporting():
            return self.recurrent_stem[0].recur(hidden, bin_mask)
        from torch._higher_order_ops.scan import scan

        # `nn.LSTM` would be written out bin by bin for the length of the example; a scan stays a loop.
        weight, bias = (part.clone() for part in self.step.recurrence)  # of the traced kind

        def advance(past: tuple[Tensor, Tensor], bin_now: tuple[Tensor, Tensor]) -> Any:
            (output, cell), (entering, recorded) = past, bin_now
            gates = torch.cat([entering, output], dim=-1) @ weight + bias
            enter, keep, candidate, leave = gates.chunk(4, dim=-1)
            new_cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            new_output = leave.sigmoid() * new_cell.tanh()
            moved = (torch.where(recorded, new_output, output), torch.where(recorded, new_cell, cell))
            return moved, new_output * recorded

        entering = hidden.flatten(0, 1).transpose(0, 1)
        recorded = bin_mask.flatten(0, 1).transpose(0, 1)[..., None]
        nothing = torch.zeros_like(entering[0])
        _, outputs = scan(advance, (nothing, nothing.clone()), (entering, recorded), dim=0)
        return outputs.transpose(0, 1).view_as(hidden)

    def _positions(self, bins: Tensor, bin_mask: Tensor) -> Tensor:
        """Sinusoidal positions, counted from the first recorded bin, (B, S, T, D)."""
        first = torch.argmax(bin_mask.int(), dim=-1, keepdim=True)
        age = (bins - first).clamp_min(0)
        half = (self.step.config.hidden_size + 1) // 2
        frequencies = torch.exp(torch.arange(half, device=bins.device) * (-math.log(10_000.0) / half))
        angles = age[..., None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : self.step.config.hidden_size]

    def _rotation(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Tables as of `StreamingStep._turn`, for all bins: (S, T, 1, 1, P) and (S, T, 1, 2, P)."""
        pairs = self.step.time_pairs
        angles = torch.remainder(bins.double()[:, None] * self.frequencies, 2 * math.pi)
        shape = (self.step.num_sites, bins.shape[0], -1)
        tables = []
        for table, turned in ((self.step.cos, angles.cos()), (self.step.sin, angles.sin())):
            constant = table[:, None].expand(*shape)
            parts = [constant[..., : pairs.start], turned.float().expand(*shape), constant[..., pairs.stop :]]
            tables.append(torch.cat(parts, dim=-1))
        cos, sin = tables
        return cos[:, :, None, None], torch.stack([-sin, sin], dim=2)[:, :, None]

    def _rotate(self, states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Rotates queries and keys side by side, (R, T, 2 * D) -> (R, 2H, T, d)."""
        step = self.step
        states = states.unflatten(-1, (-1, 2, step.config.head_size // 2))
        states = states.unflatten(0, (-1, step.num_sites)).to(step.wide)
        cos, sin = rotation
        turned = states * cos + states.flip(-2) * sin
        return turned.to(step.dtype).flatten(-2).flatten(0, 1).transpose(1, 2)

    def _layer(
        self,
        hidden: Tensor,
        layer: LayerWeights,
        rotation: tuple[Tensor, Tensor],
        recorded: Tensor,
        seen: Tensor,
    ) -> Tensor:
        """One temporal layer, (R, T, D) -> (R, T, D)."""
        step, config = self.step, self.step.config
        width, heads, size = config.hidden_size, config.num_attention_heads, config.head_size
        num_bins = hidden.shape[1]
        query_taps, key_taps = config.context_attention.taps
        normed = F.layer_norm(hidden, (width,), eps=config.layer_norm_eps)
        projected = normed @ layer.project_weight + layer.project_bias
        query, key = (self._rotate(projected[..., : 2 * width], rotation) * recorded[:, None]).chunk(2, dim=1)
        value = (
            (projected[..., 2 * width : 3 * width] * recorded).unflatten(-1, (heads, size)).transpose(1, 2)
        )
        if layer.kernel_weight is not None and layer.kernel_bias is not None:
            mapped = projected[..., 3 * width :]
            mapped = F.layer_norm(
                mapped,
                mapped.shape[-1:],
                layer.context_norm_weight,
                layer.context_norm_bias,
                config.layer_norm_eps,
            )
            generated = (F.gelu(mapped) @ layer.kernel_weight + layer.kernel_bias).to(step.wide)
            terms = generated[..., :-1] * torch.exp(8 * torch.tanh(generated[..., -1:]))
            sums = seen.to(step.wide) @ terms
            logits = sums[..., :-1] / sums[..., -1:].clamp_min(1e-30)
            kernel = logits.unflatten(-1, (heads, -1)).softmax(dim=-1).to(step.dtype)
            kernel = kernel.unflatten(-1, (key_taps, query_taps)).transpose(1, 2)  # (R, H, T, Kk, Kq)
            earlier = F.pad(query, (0, 0, query_taps - 1, 0))
            moved = (earlier[:, :, tap : tap + num_bins, None] for tap in range(query_taps))
            products = [kernel[..., tap, None] * queries for tap, queries in enumerate(moved)]
            query = torch.stack(products).sum(dim=0).flatten(-2)
            earlier = F.pad(key, (0, 0, key_taps - 1, 0))
            taps = [earlier[:, :, key_taps - 1 - tap :][:, :, :num_bins] for tap in range(key_taps)]
            key = torch.cat(taps, dim=-1)
        scores = (query @ key.transpose(-1, -2)).to(step.wide)
        scores = scores.masked_fill(~seen[:, None], step.blocked)
        if layer.anchor_keys is not None and layer.anchor_values is not None:
            anchors = (query @ layer.anchor_keys.transpose(-1, -2)).to(step.wide)
            weights = torch.cat([anchors, scores], dim=-1).softmax(dim=-1).to(step.dtype)
            split = layer.anchor_keys.shape[1]
            output = weights[..., :split] @ layer.anchor_values + weights[..., split:] @ value
        else:
            output = scores.softmax(dim=-1).to(step.dtype) @ value
        output = output.transpose(1, 2).flatten(-2)
        hidden = hidden + (output @ layer.output_weight + layer.output_bias)
        normed = F.layer_norm(hidden, (width,), eps=config.layer_norm_eps)
        expanded = step.activation(normed @ layer.up_weight + layer.up_bias)
        return hidden + (expanded @ layer.down_weight + layer.down_bias)
