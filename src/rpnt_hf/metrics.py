"""Scores of predictions: R2 of decoded movement, bits per spike of predicted rates.

Plain numpy in, floats out. Not for training: the losses are in `objectives.py`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from rpnt_hf.errors import InputError

__all__ = ["R2_CONVENTIONS", "bits_per_spike", "r2_conventions", "r2_scores"]

# Published figures use all four (DESIGN section 5); the first is the one that counts here.
R2_CONVENTIONS = ("r2", "r2_variance_weighted", "r2_reach", "r2_variance_weighted_reach")


def r2_scores(
    targets: ArrayLike, predictions: ArrayLike, mask: ArrayLike | None = None
) -> dict[str, float | None]:
    """Coefficient of determination of decoded values, over all scored bins at once.

    Args:
        targets (`ArrayLike` of shape `(..., K)`): True values.
        predictions (`ArrayLike` of the same shape): Decoded values, in the same unit.
        mask (`ArrayLike` of shape `(...,)`, *optional*): True where a bin is scored; all bins where absent.

    Returns:
        `dict`: `r2` (uniform average over the K targets) and `r2_variance_weighted`, at most 1. Where a
        target is constant on the scored bins its R2 is not defined: then `r2` is None, and
        `r2_variance_weighted` rests on the other targets, or is None where there are none.

    Raises:
        InputError: If shapes differ, if nothing is scored, or if a scored value is not finite.

    Example:
        ```python
        >>> r2_scores([[0.0], [1.0], [2.0]], [[0.0], [1.0], [1.0]])
        {'r2': 0.5, 'r2_variance_weighted': 0.5}

        ```
    """
    targets, predictions = np.asarray(targets, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if targets.shape != predictions.shape or targets.ndim < 2:
        raise InputError(
            f"`targets` and `predictions` must have one shape (..., K), got {targets.shape} and "
            f"{predictions.shape}. Add an axis for a single target."
        )
    scored = _mask(mask, targets.shape[:-1])
    targets, predictions = targets[scored], predictions[scored]
    _check_scored(len(targets), "bin")
    for name, values in (("targets", targets), ("predictions", predictions)):
        _check_finite(name, values)
    residual = ((targets - predictions) ** 2).sum(axis=0)
    total = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    varies = np.ptp(targets, axis=0) > 0
    return {
        "r2": float(np.mean(1 - residual / total)) if varies.all() else None,
        "r2_variance_weighted": float(1 - residual[varies].sum() / total[varies].sum())
        if varies.any()
        else None,
    }


def r2_conventions(targets: ArrayLike, predictions: ArrayLike, reach: ArrayLike) -> dict[str, float | None]:
    """R2 in the four conventions that published figures use.

    Args:
        targets (`ArrayLike` of shape `(bins, K)`): True values of all scored bins.
        predictions (`ArrayLike` of the same shape): Decoded values, in the same unit.
        reach (`ArrayLike` of shape `(bins,)`): True in the reach period, from the go cue on.

    Returns:
        `dict`: `r2` and `r2_variance_weighted` as in `r2_scores`, and both over the reach period alone,
        `r2_reach` and `r2_variance_weighted_reach`, None where no bin is in one.

    Raises:
        InputError: As for `r2_scores`.

    Example:
        ```python
        >>> r2_conventions([[0.0], [1.0], [2.0]], [[0.0], [1.0], [1.0]], [False, False, False])["r2_reach"]

        ```
    """
    scores = r2_scores(targets, predictions)
    in_reach: dict[str, float | None] = dict.fromkeys(scores)
    if np.any(reach):
        in_reach = r2_scores(targets, predictions, reach)
    return {**scores, **{f"{name}_reach": score for name, score in in_reach.items()}}


def bits_per_spike(
    log_rates: ArrayLike, counts: ArrayLike, null_rates: ArrayLike, mask: ArrayLike | None = None
) -> float:
    """Information that predicted rates hold beyond constant ones, in bits per spike (DESIGN 2.5).

    The difference of the Poisson log-likelihoods of model and null, over spikes times ln 2. The term
    `log(y!)` cancels.

    Args:
        log_rates (`ArrayLike` of shape `(..., N)`): Log of the expected count per bin (not Hz).
        counts (`ArrayLike` of the same shape): Observed counts per bin, not negative.
        null_rates (`ArrayLike` that broadcasts to the same shape): Expected count per bin of the null model:
            the mean count of the unit over the training rows of its session.
        mask (`ArrayLike` of the same shape, *optional*): True where an entry is scored; all entries where
            absent.

    Returns:
        `float`: Bits per spike; 0 means no better than the null. Spikes of units whose null rate is 0 would
        count infinitely, so these units are left out, for model and null alike.

    Raises:
        InputError: If shapes differ, a value is out of range, or no spike is scored.

    Example:
        ```python
        >>> round(bits_per_spike(np.log([[2.0], [1e-9]]), [[2], [0]], [1.0]), 3)
        1.0

        ```
    """
    log_rates, counts = np.asarray(log_rates, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if log_rates.shape != counts.shape:
        raise InputError(
            f"`log_rates` and `counts` must have one shape (..., N), got {log_rates.shape} and "
            f"{counts.shape}. Pass the counts of the same bins and units."
        )
    try:
        null_rates = np.broadcast_to(np.asarray(null_rates, dtype=np.float64), counts.shape)
    except ValueError as error:
        raise InputError(
            f"`null_rates` must broadcast to {counts.shape}, got {np.shape(null_rates)}. Pass one rate per "
            "unit."
        ) from error
    scored = _mask(mask, counts.shape)
    for name, values in (("log_rates", log_rates), ("counts", counts), ("null_rates", null_rates)):
        _check_finite(name, values[scored])
    for name, values in (("counts", counts), ("null_rates", null_rates)):
        if (values[scored] < 0).any():
            raise InputError(
                f"`{name}` must not be negative, got {values[scored].min():g}. Check what was passed."
            )
    scored = scored & (null_rates > 0)
    log_rates, counts, null_rates = log_rates[scored], counts[scored], null_rates[scored]
    _check_scored(int(counts.sum()), "spike")
    model = counts * log_rates - np.exp(log_rates)
    null = xlogy(counts, null_rates) - null_rates
    return float((model - null).sum() / (counts.sum() * np.log(2)))


def _mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Gives the mask as booleans of the wanted shape."""
    scored = np.ones(shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if scored.shape != shape:
        raise InputError(
            f"`mask` must have shape {shape}, got {scored.shape}. Pass one value per scored entry."
        )
    return scored


def _check_scored(number: int, name: str) -> None:
    if number == 0:
        raise InputError(f"A score must rest on at least one {name}, got none. Check `mask` and the split.")


def _check_finite(name: str, values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).all():
        number = int((~np.isfinite(values)).sum())
        raise InputError(
            f"`{name}` must be finite where scored, got {number} values that are not. Mask them out."
        )
