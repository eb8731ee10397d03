"""Positions and attention of RPNT: rotary metadata axes, causal context kernels, and the layers they feed.

How scores are computed is in `fused_attention_rpnt.py`, how layers are stacked in `modeling_rpnt.py`.

Legend: `B` batch, `S` sites, `T` bins, `H` heads, `d` head size, `P` = d/2 rotation pairs, `A` anchors,
`Kq`, `Kk` kernel taps over queries and keys.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_rpnt import SITE_AXES, RPNTConfig
from .fused_attention_rpnt import at_least_fp32, context_attention, fuse_queries


class RPNTRotaryEmbedding(nn.Module):
    """Turns bins and metadata into the cosines and sines that rotate queries and keys (DESIGN 2.2).

    The paper gives every token of a window the same coordinates, so its rotations cancel. Here the rotation
    pairs of a head are divided over the axes, time differs between bins, sites differ in the spatial stage,
    and what is constant in a window acts through anchors, which stay at the origin. It has no buffers:
    frequencies are made from the configuration at each call, so nothing can be lost when weights are loaded.
    """

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        self.axes = config.mrope_axes
        self.num_pairs = config.head_size // 2
        self.rotates_time = config.position_encoding in ("mrope", "rope")
        self.rotates_metadata = config.position_encoding == "mrope"
        names = config.metadata_axes
        self.site_columns = [names.index(name) for name in SITE_AXES if name in names]

    def _angles(self, coordinates: Tensor, axis: Any) -> Tensor:
        """(...) -> (..., num_pairs), float64 modulo a circle: fp32 is off by 5e-3 after 2.5 h of bins."""
        exponents = torch.arange(axis.num_pairs, dtype=torch.float64, device=coordinates.device) / max(
            axis.num_pairs, 1
        )
        return torch.remainder(coordinates[..., None] * axis.scale * axis.theta**-exponents, 2 * math.pi)

    def _metadata_pairs(self, metadata_BSA: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cosines and sines (B, S, pairs) of each metadata axis; both are 0 where the coordinate is NaN."""
        known = torch.isfinite(metadata_BSA)
        if self.site_columns:  # a position is known as a whole or not at all
            known = known.clone()
            known[..., self.site_columns] = known[..., self.site_columns].all(-1, keepdim=True)
        coordinates = torch.where(known, metadata_BSA, 0.0)
        tables = []
        for column, axis in enumerate(axis for axis in self.axes if axis.name != "time"):
            angles = self._angles(coordinates[..., column], axis)
            present = known[..., column, None]
            tables.append((angles.cos() * present, angles.sin() * present))
        return tables

    @torch.no_grad()
    def forward(
        self, metadata: Tensor | None, num_bins: int, device: torch.device, first_bin: int = 0
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Makes the rotation tables of both stages.

        Args:
            metadata (`torch.FloatTensor` of shape `(batch, sites, axes)`, *optional*):
                Coordinates in the units of the axes, NaN where unknown; None means all unknown.
            num_bins (`int`): Bins in the window.
            device (`torch.device`): Where the tables are made.
            first_bin (`int`, *optional*, defaults to 0): Time coordinate of the first bin.

        Returns:
            Two `(cos, sin)` pairs, fp32: temporal `(batch, sites, 1, bins, P)` and spatial `(batch, 1, sites,
            P)`, with dimensions of size 1 where nothing differs.
        """
        bins = torch.arange(first_bin, first_bin + num_bins, dtype=torch.float64, device=device)
        num_axes = len(self.axes) - 1
        if metadata is None:
            metadata = torch.full((1, 1, num_axes), math.nan, dtype=torch.float64, device=device)
        metadata_tables = iter(self._metadata_pairs(metadata.to(torch.float64)))
        B, S = metadata.shape[:2]
        ones = torch.ones(1, 1, 1, 1, dtype=torch.float64, device=device)

        temporal, spatial, used = [], [], 0
        for axis in self.axes:
            still = (
                ones.expand(1, 1, 1, axis.num_pairs),
                torch.zeros_like(ones).expand(1, 1, 1, axis.num_pairs),
            )
            if axis.name == "time":
                angles = self._angles(bins, axis)[None, None]
                turned = (angles.cos(), angles.sin()) if self.rotates_time else still
                temporal.append(turned)
                spatial.append(still)
            else:
                cos, sin = next(metadata_tables)
                turned = (cos[:, :, None], sin[:, :, None]) if self.rotates_metadata else still
                temporal.append(turned)
                spatial.append(turned)
            used += axis.num_pairs
        rest = self.num_pairs - used
        still = (ones.expand(1, 1, 1, rest), torch.zeros_like(ones).expand(1, 1, 1, rest))

        def table(pieces: list[tuple[Tensor, Tensor]], bins: int) -> list[Tensor]:
            return [
                torch.cat([piece[which].expand(B, S, bins, -1) for piece in [*pieces, still]], dim=-1).float()
                for which in (0, 1)
            ]

        cos_BSTP, sin_BSTP = table(temporal, num_bins)
        cos_BS1P, sin_BS1P = table(spatial, 1)
        return (
            (cos_BSTP[:, :, None], sin_BSTP[:, :, None]),
            (cos_BS1P.transpose(1, 2)[:, :, None], sin_BS1P.transpose(1, 2)[:, :, None]),
        )

    def anchor_channels(self, zero_axes: tuple[str, ...], device: torch.device) -> Tensor:
        """Which channels of a head an anchor key may use: False in the pairs of `zero_axes` (DESIGN 2.2).

        Args:
            zero_axes (`tuple[str, ...]`): Axes whose pairs are zero in the anchors of a stage.
            device (`torch.device`): Where the mask is made.

        Returns:
            `torch.BoolTensor` of shape `(d,)`.
        """
        allowed = []
        for axis in self.axes:
            rotates = self.rotates_time if axis.name == "time" else self.rotates_metadata
            allowed += [not (rotates and axis.name in zero_axes)] * axis.num_pairs
        allowed += [True] * (self.num_pairs - len(allowed))
        return torch.tensor(allowed + allowed, device=device)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs `(i, i + d/2)`; fp32 inside whatever the type of `states`.

    Args:
        states (`torch.FloatTensor` of shape `(..., d)`): Queries or keys.
        cos (`torch.FloatTensor` of shape `(..., d/2)`): Cosines, broadcastable.
        sin (`torch.FloatTensor` of the same shape): Sines.

    Returns:
        `torch.FloatTensor` of shape `(..., d)`, in the type of `states`.
    """
    first, second = at_least_fp32(states).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


def windowed_sum(terms: Tensor, window: int | None) -> Tensor:
    """Sums each bin with the bins before it inside a window; never subtracts, so it does not drift.

    Args:
        terms (`torch.FloatTensor` of shape `(..., T, C)`): What is summed.
        window (`int`, *optional*): Bins in the sum, the current one included; None for all earlier ones.

    Returns:
        `torch.FloatTensor` of shape `(..., T, C)`.
    """
    num_bins = terms.shape[-2]
    if window is None or window >= num_bins:
        return terms.cumsum(dim=-2)
    padding = -num_bins % window
    blocks = F.pad(terms, (0, 0, 0, padding)).unflatten(-2, (-1, window))
    prefix = blocks.cumsum(dim=-2)
    suffix = blocks.flip(-2).cumsum(dim=-2).flip(-2)
    # Bin j of a block needs bins j+1.. of the block before it.
    earlier = F.pad(suffix[..., :-1, 1:, :], (0, 0, 0, 1, 1, 0))
    return (prefix + earlier).flatten(-3, -2)[..., :num_bins, :]


class RPNTContextKernel(nn.Module):
    """Makes one attention kernel per head and bin from the context up to that bin (DESIGN 2.3).

    The paper pools its context over the whole window, future included; this one is a running softmax-weighted
    mean.
    """

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        query_taps, key_taps = config.context_attention.taps
        size = config.context_attention.context_size
        self.kernel_size = (query_taps, key_taps)
        self.window = config.attention_window
        self.context_proj = nn.Linear(config.hidden_size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.score = nn.Linear(size, 1)
        self.kernel_proj = nn.Linear(size, config.num_attention_heads * query_taps * key_taps, bias=False)
        self.kernel_bias = nn.Parameter(torch.empty(config.num_attention_heads * query_taps * key_taps))

    def context_terms(self, hidden_states: Tensor, bin_mask: Tensor | None) -> Tensor:
        """What each bin adds to the running context: `exp(a) h` and `exp(a)` beside it.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(B, S, T, D)`): Normalised input of the layer.
            bin_mask (`torch.BoolTensor` of shape `(B, S, T)`, *optional*): True where a bin was recorded.

        Returns:
            `torch.FloatTensor` of shape `(B, S, T, context_size + 1)`; 0 where nothing was recorded.
        """
        context = F.gelu(self.norm(self.context_proj(hidden_states)))
        weight = torch.exp(8 * torch.tanh(at_least_fp32(self.score(context)) / 8))
        if bin_mask is not None:
            weight = weight * bin_mask[..., None]
        return torch.cat([weight * context, weight], dim=-1)

    def kernels(self, sums: Tensor, dtype: torch.dtype) -> Tensor:
        """Turns summed terms into kernels.

        Args:
            sums (`torch.FloatTensor` of shape `(B, S, T, context_size + 1)`): Terms summed over the window.
            dtype (`torch.dtype`): Type in which the linear map runs.

        Returns:
            `torch.FloatTensor` of shape `(B, S, H, T, Kq, Kk)`, non-negative, summing to 1 over the last two.
        """
        context = sums[..., :-1] / sums[..., -1:].clamp_min(1e-30)
        # Bins last in memory: a softmax over nine neighbours in memory costs five times as much.
        logits = self.kernel_proj(context.to(dtype)).transpose(-1, -2).contiguous()
        logits = at_least_fp32(logits) + self.kernel_bias[:, None]
        weights = logits.unflatten(-2, (-1, math.prod(self.kernel_size))).softmax(dim=-2)
        return weights.unflatten(-2, self.kernel_size).movedim(-1, 3)

    def forward(self, hidden_states: Tensor, bin_mask: Tensor | None) -> Tensor:
        """Makes the kernels of all bins: (B, S, T, D) -> (B, S, H, T, Kq, Kk)."""
        sums = windowed_sum(self.context_terms(hidden_states, bin_mask), self.window)
        return self.kernels(sums, hidden_states.dtype)


class RPNTAttention(nn.Module):
    """Projections and anchors that both stages share."""

    zero_axes: tuple[str, ...] = ()

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.head_size, self.num_anchors = (
            config.num_attention_heads, config.head_size, config.num_anchors,
        )  # fmt: skip
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.num_anchors:
            self.anchor_keys = nn.Parameter(torch.empty(self.num_heads, config.num_anchors, self.head_size))
            self.anchor_values = nn.Parameter(torch.empty(self.num_heads, config.num_anchors, self.head_size))

    def project(self, hidden_states: Tensor, bin_mask: Tensor | None) -> Tensor:
        """(B, S, T, D) -> queries, keys and values stacked, (3, B, S, T, H, d); 0 before the recording."""
        qkv = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, self.head_size))
        if bin_mask is not None:
            qkv = qkv * bin_mask[..., None, None, None]
        return qkv.movedim(3, 0)

    def anchors(self, channels: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, zero in the channels that this stage must not see, and values; (H, A, d) typed as `like`."""
        return (self.anchor_keys * channels).to(like.dtype), self.anchor_values.to(like.dtype)


class RPNTTemporalAttention(RPNTAttention):
    """Causal attention over the bins of one site, its scores smoothed by context kernels (DESIGN 2.3)."""

    zero_axes = ("time",)

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__(config)
        if config.context_attention.enabled:
            self.context_kernel = RPNTContextKernel(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotation: tuple[Tensor, Tensor],
        channels: Tensor,
        bin_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, T, D) -> (B, S, T, D) and, with eager attention, weights (B, S, H, T, A + T)."""
        B, S = hidden_states.shape[:2]
        cos, sin = rotation
        if bin_mask is not None:  # queries and keys are 0 before the recording
            recorded = bin_mask[:, :, None, :, None]
            cos, sin = cos * recorded, sin * recorded
        qkv = self.project(hidden_states, None).transpose(-3, -2)  # (3, B, S, H, T, d)
        rotated, (value,) = qkv.split((2, 1))
        query, key = rotate(rotated, cos, sin).flatten(1, 2)
        value = value.flatten(0, 1)
        if self.num_anchors:
            anchor_key, anchor_value = self.anchors(channels, value)
            key = torch.cat([anchor_key.expand(B * S, -1, -1, -1), key], dim=-2)
            value = torch.cat([anchor_value.expand(B * S, -1, -1, -1), value], dim=-2)
        kernel = None
        if self.config.context_attention.enabled:
            kernel = self.context_kernel(hidden_states, bin_mask).flatten(0, 1)
        output, weights = context_attention(
            query,
            key,
            value,
            kernel,
            None if bin_mask is None else bin_mask.flatten(0, 1),
            self.num_anchors,
            self.config.attention_window,
            return_weights=self.config._attn_implementation == "eager",
        )
        output = output.transpose(1, 2).reshape(hidden_states.shape)
        return self.o_proj(output), None if weights is None else weights.unflatten(0, (B, S))


def eager_attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Plain attention with weights, the counterpart of transformers' "sdpa" for the spatial stage."""
    scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class RPNTSpatialAttention(RPNTAttention):
    """Attention over the sites of one bin, by their displacements; no kernel, since sites have no order."""

    zero_axes = ("time", *SITE_AXES)

    def forward(
        self,
        hidden_states: Tensor,
        rotation: tuple[Tensor, Tensor],
        channels: Tensor,
        bin_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, S, T, D) -> (B, S, T, D) and, with eager attention, weights (B * T, H, S, A + S)."""
        B, S, T, _ = hidden_states.shape
        # Absent sites need not be 0 here: no query sees their keys, and what they see is dropped.
        rotated, (value,) = self.project(hidden_states, None).permute(0, 1, 3, 4, 2, 5).split((2, 1))
        query, key = rotate(rotated, *rotation).flatten(1, 2)  # (B * T, H, S, d)
        value = value.flatten(0, 1)
        mask = None
        if bin_mask is not None:
            mask = F.pad(bin_mask.transpose(1, 2).flatten(0, 1), (self.num_anchors, 0), value=True)[
                :, None, None
            ]
            mask = mask | ~mask.any(
                dim=-1, keepdim=True
            )  # a bin without any site: its output is dropped later
            mask = mask.expand(-1, 1, S, -1)
        if self.num_anchors:
            anchor_key, anchor_value = self.anchors(channels, value)
            key = torch.cat([anchor_key.expand(B * T, -1, -1, -1), key], dim=-2)
            value = torch.cat([anchor_value.expand(B * T, -1, -1, -1), value], dim=-2)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(self, query, key, value, mask, is_causal=False)
        return self.o_proj(output.reshape(B, T, S, -1).transpose(1, 2)), weights


__all__ = [
    "RPNTAttention",
    "RPNTContextKernel",
    "RPNTRotaryEmbedding",
    "RPNTSpatialAttention",
    "RPNTTemporalAttention",
    "fuse_queries",
    "rotate",
    "windowed_sum",
]
