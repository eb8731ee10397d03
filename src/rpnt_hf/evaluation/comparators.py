"""Decoders to compare with: ridge regression on lagged counts, and a Kalman filter. Both are causal.

Fitted on rows of one session of a built dataset. Not for pretrained models: those are scored by their own
code.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from rpnt_hf.data.rows import row_behavior, row_counts, row_observed, scored_bins
from rpnt_hf.errors import InputError

__all__ = ["KalmanDecoder", "RidgeDecoder", "lagged_counts"]

Row = Mapping[str, Any]
Array = NDArray[np.floating[Any]]
DEFAULT_ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(0, 5.5, 0.5))


def lagged_counts(counts: NDArray[np.generic], num_lags: int) -> NDArray[np.float32]:
    """Puts each bin beside the bins before it.

    Args:
        counts (`np.ndarray` of shape `(num_bins, num_units)`): Counts of one row.
        num_lags (`int`): Bins that are seen, the current one included; at least 1.

    Returns:
        `np.ndarray` of shape `(num_bins, num_lags * num_units)`, float32: the current bin first; zeros before
        the row begins.

    Example:
        ```python
        >>> lagged_counts(np.array([[1], [2], [3]]), 2).tolist()
        [[1.0, 0.0], [2.0, 1.0], [3.0, 2.0]]

        ```
    """
    num_bins, num_units = counts.shape
    padded = np.zeros((num_bins + num_lags - 1, num_units), dtype=np.float32)
    padded[num_lags - 1 :] = counts
    windows = np.lib.stride_tricks.sliding_window_view(padded, num_lags, axis=0)[..., ::-1]
    return windows.transpose(0, 2, 1).reshape(num_bins, num_lags * num_units)


class RidgeDecoder:
    """Linear regression of behaviour on the counts of the current bin and the bins before it.

    Lags never reach across rows; the context bins of a row are seen. The penalty is the one that is best on
    the validation rows.

    Args:
        num_lags (`int`, *optional*, defaults to 10): Bins that are seen, the current one included; at least
            1.
        alphas (`Sequence[float]`, *optional*): Penalties to choose from, not negative.

    Attributes:
        alpha (`float`): The chosen penalty.
    """

    def __init__(self, num_lags: int = 10, alphas: Sequence[float] = DEFAULT_ALPHAS) -> None:
        if num_lags < 1 or not alphas or min(alphas) < 0:
            raise InputError(
                "RidgeDecoder must have `num_lags` of at least 1 and `alphas` that are not negative, got "
                f"{num_lags} and {list(alphas)}. Choose other values."
            )
        self.num_lags = num_lags
        self.alphas = tuple(alphas)
        self._model: Ridge | None = None

    def fit(self, train_rows: Iterable[Row], validation_rows: Iterable[Row]) -> "RidgeDecoder":
        """Fits one regression per penalty and keeps the one that is best on validation.

        Args:
            train_rows (`Iterable[Row]`): Rows of one session; their scored bins are learned from.
            validation_rows (`Iterable[Row]`): Rows of the same session, to choose the penalty by.

        Returns:
            `RidgeDecoder`: Itself.

        Raises:
            InputError: If rows differ in their units or targets, or no bin is scored.
        """
        train, validation = _checked(train_rows, "train_rows"), _checked(validation_rows, "validation_rows")
        self._unit_ids = _same_units(train, validation)
        inputs, targets = self._scored(train)
        held_inputs, held_targets = self._scored(validation)
        scale = _scale(targets)
        best_error = np.inf
        for alpha in self.alphas:
            model = Ridge(alpha).fit(inputs, targets)
            predictions = model.predict(held_inputs).reshape(held_targets.shape)
            error = _error(held_targets, predictions, scale)
            if error < best_error:
                best_error, self._model, self.alpha = error, model, alpha
        return self

    def predict(self, row: Row) -> NDArray[np.float32]:
        """Decodes every bin of a row.

        Args:
            row (`Row`): Row with the units that were fitted.

        Returns:
            `np.ndarray` of shape `(num_bins, num_targets)`, float32, in the units of the behaviour.

        Raises:
            InputError: If nothing was fitted or the units differ.
        """
        if self._model is None:
            raise InputError("RidgeDecoder must be fitted before it predicts. Call `fit` first.")
        _check_units(row, self._unit_ids)
        inputs = lagged_counts(row_counts(row), self.num_lags)
        return self._model.predict(inputs).reshape(len(inputs), -1).astype(np.float32)

    def _scored(self, rows: list[Row]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Gathers lagged counts and behaviour of the scored bins."""
        masks = [scored_bins(row) for row in rows]
        inputs = [
            lagged_counts(row_counts(row), self.num_lags)[mask] for row, mask in zip(rows, masks, strict=True)
        ]
        targets = [row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)]
        return np.concatenate(inputs), np.concatenate(targets)


class KalmanDecoder:
    """Kalman filter whose state is the behaviour and whose observations are the counts (Wu et al. 2006).

    Dynamics and observations are linear with Gaussian noise, fitted by least squares on scored bins. Counts
    are taken `lag` bins before the behaviour; the lag is the one that is best on the validation rows.

    Args:
        lags (`Sequence[int]`, *optional*, defaults to `(0, 1, 2, 3)`): Lags to choose from, in bins, not
            negative.

    Attributes:
        lag (`int`): The chosen lag.
    """

    def __init__(self, lags: Sequence[int] = (0, 1, 2, 3)) -> None:
        if not lags or min(lags) < 0:
            raise InputError(
                f"KalmanDecoder must have `lags` that are not negative, got {list(lags)}. Choose others."
            )
        self.lags = tuple(lags)
        self._parameters: dict[str, Array] | None = None

    def fit(self, train_rows: Iterable[Row], validation_rows: Iterable[Row]) -> "KalmanDecoder":
        """Fits one filter per lag and keeps the one that is best on validation.

        Args:
            train_rows (`Iterable[Row]`): Rows of one session; their scored bins are learned from.
            validation_rows (`Iterable[Row]`): Rows of the same session, to choose the lag by.

        Returns:
            `KalmanDecoder`: Itself.

        Raises:
            InputError: If rows differ in their units or targets, or no bin is scored.
        """
        train, validation = _checked(train_rows, "train_rows"), _checked(validation_rows, "validation_rows")
        self._unit_ids = _same_units(train, validation)
        held_masks = [scored_bins(row) for row in validation]
        held = np.concatenate(
            [row_behavior(row)[mask] for row, mask in zip(validation, held_masks, strict=True)]
        )
        scale = _scale(np.concatenate([row_behavior(row)[scored_bins(row)] for row in train]))
        best_error = np.inf
        for lag in self.lags:
            parameters = _fit_filter(train, lag)
            predictions = np.concatenate(
                [
                    _filter(row, parameters, lag)[mask]
                    for row, mask in zip(validation, held_masks, strict=True)
                ]
            )
            error = _error(held, predictions, scale)
            if error < best_error:
                best_error, self._parameters, self.lag = error, parameters, lag
        return self

    def predict(self, row: Row) -> NDArray[np.float32]:
        """Decodes every bin of a row, from the mean state at its first bin.

        Args:
            row (`Row`): Row with the units that were fitted.

        Returns:
            `np.ndarray` of shape `(num_bins, num_targets)`, float32, in the units of the behaviour.

        Raises:
            InputError: If nothing was fitted or the units differ.
        """
        if self._parameters is None:
            raise InputError("KalmanDecoder must be fitted before it predicts. Call `fit` first.")
        _check_units(row, self._unit_ids)
        return _filter(row, self._parameters, self.lag)


def _fit_filter(rows: list[Row], lag: int) -> dict[str, Array]:
    """Fits dynamics on neighbouring scored bins, and observations on scored bins."""
    before, after, states, observations = [], [], [], []
    for row in rows:
        mask = scored_bins(row)
        behavior = row_behavior(row).astype(np.float64)
        pairs = np.flatnonzero(mask[:-1] & mask[1:])
        before.append(behavior[pairs])
        after.append(behavior[pairs + 1])
        states.append(behavior[mask])
        observations.append(_delayed(row, lag)[mask])
    state, observation = np.concatenate(states), np.concatenate(observations)
    mean, offset = state.mean(axis=0), observation.mean(axis=0)
    state, observation = state - mean, observation - offset
    transition, process_noise = _regression(np.concatenate(before) - mean, np.concatenate(after) - mean)
    emission, noise = _regression(state, observation)
    noise += (1e-3 + 0.01 * np.trace(noise) / len(noise)) * np.eye(len(noise))  # silent units have no noise
    gain = np.linalg.solve(noise, emission).T
    return {
        "mean": mean,
        "offset": offset,
        "initial": np.cov(state.T).reshape(len(mean), len(mean)) + 1e-9 * np.eye(len(mean)),
        "transition": transition,
        "process_noise": process_noise + 1e-9 * np.eye(len(mean)),
        "emission": emission,
        "gain": gain,
        "information": gain @ emission,
    }


def _regression(inputs: Array, outputs: Array) -> tuple[Array, Array]:
    """Least squares without intercept: matrix (outputs, inputs), and covariance of the residual."""
    matrix = np.linalg.lstsq(inputs, outputs, rcond=None)[0].T
    residual = outputs - inputs @ matrix.T
    return matrix, residual.T @ residual / max(len(residual), 1)


def _filter(row: Row, parameters: dict[str, Array], lag: int) -> NDArray[np.float32]:
    """Runs the filter over a row, in information form; unobserved bins are predicted only."""
    observations = _delayed(row, lag) - parameters["offset"]
    observed = np.concatenate([np.zeros(lag, dtype=bool), row_observed(row)])[: len(observations)]
    state, covariance = np.zeros_like(parameters["mean"]), parameters["initial"]
    states = np.empty((len(observations), len(state)))
    for index, observation in enumerate(observations):
        if index:
            state = parameters["transition"] @ state
            covariance = parameters["transition"] @ covariance @ parameters["transition"].T
            covariance = covariance + parameters["process_noise"]
        if observed[index]:
            covariance = np.linalg.inv(np.linalg.inv(covariance) + parameters["information"])
            surprise = parameters["gain"] @ observation - parameters["information"] @ state
            state = state + covariance @ surprise
        states[index] = state
    return (states + parameters["mean"]).astype(np.float32)


def _delayed(row: Row, lag: int) -> Array:
    """Gives the counts of `lag` bins earlier, zeros before the row begins."""
    counts = row_counts(row).astype(np.float64)
    return np.concatenate([np.zeros((lag, counts.shape[1])), counts])[: len(counts)]


def _checked(rows: Iterable[Row], name: str) -> list[Row]:
    """Lists the rows and checks that something in them is scored."""
    listed = list(rows)
    if not any(scored_bins(row).any() for row in listed):
        raise InputError(
            f"`{name}` must have scored bins with behaviour, got none in {len(listed)} rows. Pass rows of a "
            "session with behaviour, from a built dataset."
        )
    return listed


def _same_units(*splits: list[Row]) -> list[str]:
    """Checks that all rows have the same units, and gives them."""
    rows = [row for split in splits for row in split]
    for row in rows:
        _check_units(row, rows[0]["unit_ids"])
        if row["behavior_names"] != rows[0]["behavior_names"]:
            raise InputError(
                f"All rows must have the same `behavior_names`, got {rows[0]['behavior_names']} and "
                f"{row['behavior_names']} in session '{row['session_id']}'. Pass rows of one session."
            )
    return list(rows[0]["unit_ids"])


def _check_units(row: Row, unit_ids: list[str]) -> None:
    if list(row["unit_ids"]) != list(unit_ids):
        raise InputError(
            f"A row must have the {len(unit_ids)} units that were fitted, got {len(row['unit_ids'])} units "
            f"in session '{row['session_id']}' that are not the same. Fit one decoder per session."
        )


def _scale(targets: Array) -> Array:
    """Gives the standard deviation of each target, 1 where it is constant."""
    scale = targets.std(axis=0)
    return np.where(scale > 0, scale, 1.0)


def _error(targets: Array, predictions: Array, scale: Array) -> float:
    """Mean squared error in units of the targets' standard deviation."""
    return float(np.mean(((targets - predictions) / scale) ** 2))
