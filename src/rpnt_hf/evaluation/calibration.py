"""Calibration of decoded uncertainty: likelihood, coverage of intervals, and one scale chosen on validation.

A decoder with `predict_variance` gives a mean and a log variance for each target and bin. Not for training.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from rpnt_hf.errors import InputError

__all__ = ["calibration_scale", "coverage", "gaussian_nll"]


def gaussian_nll(targets: ArrayLike, predictions: ArrayLike, log_variances: ArrayLike) -> float:
    """Mean negative log-likelihood of the targets under independent Gaussians.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances, of that unit squared.

    Returns:
        `float`: Nats per bin and target.

    Raises:
        InputError: Shapes differ, nothing is there, or a value is not finite.
    """
    targets, predictions, log_variances = _checked(targets, predictions, log_variances)
    return float(-stats.norm.logpdf(targets, predictions, np.exp(log_variances / 2)).mean())


def coverage(
    targets: ArrayLike, predictions: ArrayLike, log_variances: ArrayLike, levels: Sequence[float]
) -> dict[float, float]:
    """Share of true values inside the central intervals of the decoded Gaussians.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances.
        levels (`Sequence[float]`): Nominal coverages, in (0, 1).

    Returns:
        `dict[float, float]`: Nominal to observed coverage, over all bins and targets.

    Raises:
        InputError: Shapes differ, nothing is there, a value is not finite, or a level is out of range.

    Example:
        ```python
        >>> coverage([[0.0], [3.0]], [[0.0], [0.0]], [[0.0], [0.0]], [0.95])
        {0.95: 0.5}

        ```
    """
    targets, predictions, log_variances = _checked(targets, predictions, log_variances)
    if not all(0 < level < 1 for level in levels):
        raise InputError(f"`levels` must lie in (0, 1), got {list(levels)}. Give shares, not percent.")
    deviations = np.abs(targets - predictions) / np.exp(log_variances / 2)
    return {level: float((deviations <= stats.norm.ppf(0.5 + level / 2)).mean()) for level in levels}


def calibration_scale(targets: ArrayLike, predictions: ArrayLike, log_variances: ArrayLike) -> list[float]:
    """Finds what to add to the log variances of each target so that their likelihood is highest.

    Chosen on validation trials and kept with the decoder: a network is surer on what it was trained on than
    on new trials.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values of validation bins.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances.

    Returns:
        `list[float]`: One per target: log of the mean of squared deviations in decoded standard deviations.

    Raises:
        InputError: Shapes differ, nothing is there, or a value is not finite.
    """
    targets, predictions, log_variances = _checked(targets, predictions, log_variances)
    squares = (targets - predictions) ** 2 / np.exp(log_variances)
    return np.log(squares.mean(axis=0).clip(1e-12)).tolist()


def _checked(*arrays: ArrayLike) -> tuple[np.ndarray, ...]:
    found = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    shapes = {array.shape for array in found}
    if len(shapes) > 1 or found[0].ndim != 2 or not found[0].size:
        raise InputError(
            "Targets, predictions and log variances must have one shape (bins, targets) with at least one "
            f"bin, got {', '.join(str(array.shape) for array in found)}. Pass the scored bins."
        )
    if not all(np.isfinite(array).all() for array in found):
        raise InputError("Targets, predictions and log variances must be finite. Pass the scored bins.")
    return found
