"""How spike counts become tokens: unit embeddings, the causal stems, and absolute positions for ablation.

And the weights through which hidden states become the rates of units.

Rotary positions are in `attention_rpnt.py`.

Legend: `B` batch, `S` sites, `T` bins, `N` units, `D` hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_rpnt import RPNTConfig

RECURRENT_GAIN = 10.0  # tokens begin small, and the gates of an LSTM want inputs of order one


class RPNTEmbeddings(nn.Module):
    """Counts of one bin and site become one token; causal stems over time follow (DESIGN 2.1)."""

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        self.unit_embedding = nn.Embedding(config.num_units, config.hidden_size)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.stem_kernel = config.stem_kernel
        if config.stem_kernel > 1:  # the paper has no stem
            self.stem_weight = nn.Parameter(torch.empty(config.hidden_size, 1, config.stem_kernel))
            self.stem_bias = nn.Parameter(torch.empty(config.hidden_size))
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.recurrent = config.recurrent_stem
        if config.recurrent_stem:
            self.recurrence = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)
        self.position_encoding = config.position_encoding
        if config.position_encoding == "learned":
            self.position_embedding = nn.Embedding(config.max_bins, config.hidden_size)

    def tokens(self, spike_counts: Tensor, unit_ids: Tensor, visible_units: Tensor) -> Tensor:
        """Sums unit embeddings, weighted by the root of counts; (B, S, T, N) -> (B, S, T, D)."""
        # Square root: evens out the variance of Poisson counts. The paper embeds raw counts.
        visible = visible_units.to(self.unit_embedding.weight.dtype)
        share = visible / visible.sum(dim=-1, keepdim=True).clamp_min(1).sqrt()
        units_BSND = self.unit_embedding(unit_ids) * share[..., None]
        return spike_counts.to(units_BSND.dtype).sqrt() @ units_BSND

    def forward(
        self,
        spike_counts: Tensor,
        unit_ids: Tensor,
        visible_units: Tensor,
        masked_bins: Tensor | None,
        bin_mask: Tensor | None,
    ) -> Tensor:
        """(B, S, T, N) -> (B, S, T, D)."""
        x_BSTD = self.tokens(spike_counts, unit_ids, visible_units)
        if masked_bins is not None:
            x_BSTD = torch.where(masked_bins[..., None], self.mask_embedding.to(x_BSTD.dtype), x_BSTD)
        if bin_mask is not None:
            x_BSTD = x_BSTD * bin_mask[..., None]
        x_BSTD = self.filter(F.pad(x_BSTD, (0, 0, self.stem_kernel - 1, 0)))
        if self.recurrent:
            x_BSTD = self.recur(x_BSTD, bin_mask)
        if self.position_encoding in ("learned", "sinusoidal"):
            bins = torch.arange(x_BSTD.shape[2], device=x_BSTD.device).expand(x_BSTD.shape[:3])
            if bin_mask is not None:
                bins = (bins - bin_mask.int().argmax(dim=-1, keepdim=True)).clamp_min(0)
            x_BSTD = x_BSTD + self.positions(bins).to(x_BSTD.dtype)
        return x_BSTD

    def filter(self, x_BSTD: Tensor) -> Tensor:
        """Runs the stem over tokens that `stem_kernel - 1` earlier ones lead; those are dropped."""
        current = x_BSTD[:, :, self.stem_kernel - 1 :]
        if self.stem_kernel == 1:
            return current
        channels_first = x_BSTD.flatten(0, 1).transpose(1, 2)
        stem = F.conv1d(channels_first, self.stem_weight, self.stem_bias, groups=channels_first.shape[1])
        return self.norm(current + stem.transpose(1, 2).reshape(current.shape))

    def recur(self, x_BSTD: Tensor, bin_mask: Tensor | None) -> Tensor:
        """Runs the recurrent stem over the bins of each site; it passes over bins that were not recorded."""
        if bin_mask is None:
            return self.recurrence(RECURRENT_GAIN * x_BSTD.flatten(0, 1))[0].view_as(x_BSTD)
        # Recorded bins first, in their order: what is between or before them changes nothing.
        order_BST = (~bin_mask).int().argsort(dim=-1, stable=True)
        order = order_BST[..., None].expand_as(x_BSTD)
        moved = RECURRENT_GAIN * x_BSTD.gather(2, order).flatten(0, 1)
        states = self.recurrence(moved)[0].view_as(x_BSTD)
        return torch.zeros_like(states).scatter(2, order, states) * bin_mask[..., None]

    def positions(self, bins: Tensor) -> Tensor:
        """Absolute positions of bins counted from the first recorded one, (B, S, T) -> (B, S, T, D).

        The official baseline multiplies them by zero.
        """
        if self.position_encoding == "learned":
            return self.position_embedding(bins)
        size = self.mask_embedding.shape[0]
        half = (size + 1) // 2
        frequencies = torch.exp(torch.arange(half, device=bins.device) * (-math.log(10_000.0) / half))
        angles = bins[..., None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :size]


class RPNTUnitReadout(nn.Embedding):
    """Weights of each unit's log rate, and in the last column its bias."""

    def __init__(self, num_units: int, hidden_size: int, **kwargs: Any) -> None:
        super().__init__(num_units, hidden_size + 1, **kwargs)


__all__ = ["RPNTEmbeddings", "RPNTUnitReadout"]
