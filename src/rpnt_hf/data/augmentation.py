"""Changes of training windows that keep what a decoder is to learn: the same movement, faster or slower.

Dropping units and spikes needs the layout of units and is in `windows.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.random_rpnt import uniforms

__all__ = ["warp_time"]


def warp_time(
    arrays: Mapping[str, NDArray[Any]],
    seeds: NDArray[np.int64],
    time_warp: float,
    behavior_units: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Plays each window faster or slower, by a factor of its own.

    A new bin covers `factor` old ones, from the first on: counts become their mean per old bin, behaviour
    its mean, and behaviour per second (a unit that ends in "/s") grows by the factor, as the same path is
    travelled in less time. A window that is played slower loses its end. Causal as before: a bin holds
    nothing that comes after it.

    Args:
        arrays (`Mapping[str, np.ndarray]`):
            `spike_counts` `(B, S, T, N)`, `bin_mask` `(B, S, T)`, `labels` `(B, T, K)`, `label_mask`
            `(B, T)`; others are handed on.
        seeds (`np.ndarray` of shape `(B,)`, int64): Seeds of the windows.
        time_warp (`float`): Factors lie between 1 / (1 + time_warp) and 1 + time_warp, even on a logarithmic
            scale; above 0.
        behavior_units (`Sequence[str]`): Unit of each label.

    Returns:
        `dict[str, np.ndarray]`: The same arrays, warped; `spike_counts` are float32. A bin is recorded, or
        learned from, where all that it covers is.
    """
    draws = uniforms(seeds, "time warp", np.zeros(1, int))
    factors = np.exp((2 * draws - 1) * math.log1p(time_warp))
    num_bins = arrays["bin_mask"].shape[2]
    edges = np.arange(num_bins + 1) * factors[:, None]  # (B, T + 1), in old bins
    is_rate = np.array([unit.endswith("/s") for unit in behavior_units])

    counts = _between(arrays["spike_counts"], edges[:, None], factors[:, None]).astype(np.float32)
    labels = _between(arrays["labels"], edges, factors)
    labels = labels * np.where(is_rate, factors[:, None, None], 1.0)
    bin_mask = _whole(arrays["bin_mask"], edges[:, None], factors[:, None])
    label_mask = _whole(arrays["label_mask"], edges, factors)
    labels[~label_mask] = 0
    return {
        **arrays,
        "spike_counts": counts * bin_mask[..., None],
        "labels": labels.astype(np.float32),
        "bin_mask": bin_mask,
        "label_mask": label_mask,
    }


def _between(values: NDArray[Any], edges: NDArray[np.float64], factors: NDArray[np.float64]) -> NDArray[Any]:
    """Mean of (..., T, C) between neighbouring edges (..., T + 1); 0 beyond the last bin."""
    sums = np.zeros((*values.shape[:-2], values.shape[-2] + 1, values.shape[-1]))
    np.cumsum(values, axis=-2, out=sums[..., 1:, :])
    inside = np.minimum(edges, values.shape[-2])
    below = np.minimum(inside.astype(np.int64), values.shape[-2] - 1)
    part = (inside - below)[..., None]
    lower, upper = (
        np.take_along_axis(sums, np.broadcast_to((below + step)[..., None], (*sums.shape[:-1], 1)), axis=-2)
        for step in (0, 1)
    )
    return np.diff(lower * (1 - part) + upper * part, axis=-2) / factors[..., None, None]


def _whole(
    mask: NDArray[np.bool_], edges: NDArray[np.float64], factors: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """True where everything between neighbouring edges is."""
    covered = _between(mask[..., None].astype(np.float64), edges, factors)[..., 0]
    return covered > 1 - 1e-6
