"""Calibration of decoded uncertainty: likelihood, coverage of intervals, and what validation says of both.

A decoder with `predict_variance` gives a mean and a log variance for each target and bin. Its errors have
heavier tails than a normal distribution, so that a Student t distribution of that variance stands around the
mean. Not for training.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rpnt_hf.errors import InputError

__all__ = ["coverage", "fit_calibration", "negative_log_likelihood"]

NORMAL_DOF = 200.0  # a t distribution that cannot be told from a normal one
FEWEST_DOF = 2.5  # with 2 the variance is infinite


def negative_log_likelihood(
    targets: ArrayLike,
    predictions: ArrayLike,
    log_variances: ArrayLike,
    variance_dof: Sequence[float] | None = None,
) -> float:
    """Mean negative log-likelihood of the targets, taken as independent.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances, of that unit squared.
        variance_dof (`Sequence[float]`, *optional*): `RPNTConfig.variance_dof`; None means normal.

    Returns:
        `float`: Nats per bin and target.

    Raises:
        InputError: Shapes differ, nothing is there, or a value is not finite.
    """
    targets, predictions, log_variances = _checked(targets, predictions, log_variances)
    dof, scales = _shapes(log_variances, variance_dof)
    return float(-stats.t.logpdf(targets, dof, predictions, scales).mean())


def coverage(
    targets: ArrayLike,
    predictions: ArrayLike,
    log_variances: ArrayLike,
    levels: Sequence[float],
    variance_dof: Sequence[float] | None = None,
) -> dict[float, float]:
    """Share of true values inside the central intervals of the decoded distributions.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances.
        levels (`Sequence[float]`): Nominal coverages, in (0, 1).
        variance_dof (`Sequence[float]`, *optional*): `RPNTConfig.variance_dof`; None means normal.

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
    dof, scales = _shapes(log_variances, variance_dof)
    deviations = np.abs(targets - predictions) / scales
    return {level: float((deviations <= stats.t.ppf(0.5 + level / 2, dof)).mean()) for level in levels}


def fit_calibration(
    targets: ArrayLike, predictions: ArrayLike, log_variances: ArrayLike
) -> tuple[list[float], list[float]]:
    """Finds the t distribution of each target that makes the targets most likely, by one scale and one shape.

    Chosen on validation trials and kept with the decoder: a network is surer on what it was trained on than
    on new trials.

    Args:
        targets (`ArrayLike` of shape `(bins, targets)`): True values of validation bins.
        predictions (`ArrayLike` of the same shape): Means, in the same unit.
        log_variances (`ArrayLike` of the same shape): Logs of the variances.

    Returns:
        `tuple[list[float], list[float]]`: What to add to the log variances of each target, and the degrees of
        freedom of each, between 2.5 and 200.

    Raises:
        InputError: Shapes differ, nothing is there, or a value is not finite.
    """
    targets, predictions, log_variances = _checked(targets, predictions, log_variances)
    deviations = (targets - predictions) / np.exp(log_variances / 2)
    added, dofs = [], []
    for column in deviations.T:
        spread = max(float(column.std()), 1e-6)
        dof = float(np.clip(stats.t.fit(column / spread, floc=0.0)[0], FEWEST_DOF, NORMAL_DOF))
        scale = spread * stats.t.fit(column / spread, fdf=dof, floc=0.0)[2]
        added.append(float(2 * np.log(max(scale, 1e-6)) + np.log(dof / (dof - 2))))
        dofs.append(dof)
    return added, dofs


def _shapes(
    log_variances: NDArray[np.float64], variance_dof: Sequence[float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees of freedom of each target, and the scales that give t distributions these variances."""
    num_targets = log_variances.shape[1]
    dof = np.full(num_targets, np.inf) if variance_dof is None else np.asarray(variance_dof, dtype=np.float64)
    if dof.shape != (num_targets,) or not (dof > 2).all():
        raise InputError(
            f"`variance_dof` must be {num_targets} numbers above 2, one per target, got {variance_dof}."
        )
    shrink = np.array([1.0 if np.isinf(value) else (value - 2) / value for value in dof])
    return dof, np.exp(log_variances / 2) * np.sqrt(shrink)


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
