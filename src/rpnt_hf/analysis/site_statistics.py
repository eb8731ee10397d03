"""Maps of sites by sites that need no model: correlation, partial correlation, regression on the past.

What a connectivity map of a model is compared with. They take the windows that the model takes.

Legend: `W` windows, `S` sites, `T` bins, `N` units, `M` modes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from rpnt_hf.analysis.site_windows import SiteWindows

__all__ = ["lagged_regression", "partial_correlation", "rate_correlation"]

SMOOTHING = 1.0  # bins, s.d. of the kernel that turns counts into rates
NUM_MODES = 4  # principal components of each site
NUM_LAGS = 5  # bins of the past
RIDGE = 1e-2  # of the mean variance

Matrix = NDArray[np.float64]


def rate_correlation(windows: SiteWindows, bins: slice) -> Matrix:
    """Correlates the rates of all pairs of units of two sites.

    Args:
        windows (`SiteWindows`): The counts.
        bins (`slice`): Bins of the windows that are taken.

    Returns:
        `np.ndarray` of shape `(sites, sites)`: Root mean square over pairs of units of the correlation of
        their smoothed counts; symmetric.
    """
    rates = _standardised(
        _smoothed(windows.spike_counts.astype(np.float64), windows.bin_mask)[:, :, bins], 1e-9
    )
    rates *= windows.bin_mask[:, :, bins, None]
    S, N = windows.unit_mask.shape
    flat = np.moveaxis(rates, 1, 2).reshape(-1, S * N)
    present = np.moveaxis(windows.bin_mask[:, :, bins], 1, 2).reshape(-1, S).astype(np.float64)
    together = np.repeat(np.repeat(present.T @ present, N, axis=0), N, axis=1)
    squares = ((flat.T @ flat) / np.maximum(together, 1)) ** 2
    pairs = windows.unit_mask.ravel()[:, None] & windows.unit_mask.ravel()
    means = (squares * pairs).reshape(S, N, S, N).sum(axis=(1, 3)) / pairs.reshape(S, N, S, N).sum(
        axis=(1, 3)
    )
    return np.sqrt(means)


def partial_correlation(windows: SiteWindows, bins: slice) -> Matrix:
    """Correlates the main modes of two sites, what all other sites tell of them taken out.

    Args:
        windows (`SiteWindows`): The counts.
        bins (`slice`): Bins of the windows that are taken.

    Returns:
        `np.ndarray` of shape `(sites, sites)`: Root mean square over pairs of modes of their partial
        correlation, from the inverse of the covariance of the modes of all sites; symmetric.
    """
    modes = _modes(windows)[:, :, bins]
    S, M = modes.shape[1], modes.shape[3]
    flat = np.moveaxis(modes, 1, 2).reshape(-1, S * M)
    covariance = flat.T @ flat / len(flat)
    precision = np.linalg.inv(covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(S * M))
    scale = np.sqrt(np.diag(precision))
    partial = -precision / np.outer(scale, scale)
    return np.sqrt((partial**2).reshape(S, M, S, M).mean(axis=(1, 3)))


def lagged_regression(windows: SiteWindows, bins: slice) -> Matrix:
    """Regresses the main modes of a site on the past of all sites, with and without one of them.

    Linear Granger causality between populations, in the sample.

    Args:
        windows (`SiteWindows`): The counts.
        bins (`slice`): Bins of the windows that are predicted.

    Returns:
        `np.ndarray` of shape `(sites, sites)`: Logarithm of the residual variance of the target (row) without
        the source (column) over that with it.
    """
    modes = _modes(windows, smoothing=0.0)
    _, S, T, M = modes.shape
    now = np.arange(T)[bins]
    now = now[now >= NUM_LAGS]
    if not len(now):
        return np.full((S, S), np.nan)
    past = np.stack([modes[:, :, now - lag] for lag in range(1, NUM_LAGS + 1)], axis=-1)  # (W, S, t, M, L)
    targets = np.moveaxis(modes[:, :, now], 1, 2).reshape(-1, S * M)
    predictors = np.moveaxis(past, 1, 2).reshape(len(targets), S, M * NUM_LAGS)

    def residuals(sites: NDArray[np.int64]) -> Matrix:
        """Residual variance of the modes of every site, (S,), from the past of some sites."""
        x = predictors[:, sites].reshape(len(targets), -1)
        gram = x.T @ x
        weights = np.linalg.solve(
            gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ targets
        )
        return ((targets - x @ weights) ** 2).sum(axis=0).reshape(S, M).sum(axis=1)

    every = np.arange(S)
    whole = residuals(every)
    without = np.stack([residuals(np.delete(every, source)) for source in every], axis=1)
    return np.log(without / whole[:, None])


def _smoothed(counts: Matrix, bin_mask: NDArray[np.bool_], smoothing: float = SMOOTHING) -> Matrix:
    """Smooths (W, S, T, N) over bins that were recorded."""
    present = bin_mask[..., None].astype(np.float64)
    if not smoothing:
        return counts * present
    weights = gaussian_filter1d(present, smoothing, axis=2, mode="constant")
    return gaussian_filter1d(counts * present, smoothing, axis=2, mode="constant") / np.maximum(weights, 1e-9)


def _standardised(values: Matrix, smallest: float) -> Matrix:
    """Takes the mean over windows and bins off and divides by the s.d.; constant columns become 0."""
    centred = values - values.mean(axis=(0, 2), keepdims=True)
    return centred / np.maximum(centred.std(axis=(0, 2), keepdims=True), smallest)


def _modes(windows: SiteWindows, smoothing: float = SMOOTHING) -> Matrix:
    """Main principal components of each site's square-rooted counts, of unit variance, (W, S, T, M)."""
    roots = _smoothed(np.sqrt(windows.spike_counts.astype(np.float64)), windows.bin_mask, smoothing)
    centred = (roots - roots.mean(axis=(0, 2), keepdims=True)) * windows.bin_mask[..., None]
    covariance = np.einsum("wstn,wstm->snm", centred, centred)
    axes = np.linalg.eigh(covariance)[1][:, :, ::-1][:, :, :NUM_MODES]
    return _standardised(np.einsum("wstn,snm->wstm", centred, axes), 1e-9)
