"""Views of one row of a built dataset: counts, behaviour, observed bins and the bins that are scored.

For everything that reads rows (windows, comparators, evaluation). Not for writing rows: that is `builder.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.errors import DatasetError

__all__ = [
    "reach_bins",
    "row_behavior",
    "row_counts",
    "row_observed",
    "row_site_observed",
    "row_to_arrays",
    "scored_bins",
]


def row_to_arrays(row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Turns a row into arrays, without copying counts and behaviour.

    The card of every dataset shows the same in plain numpy, for those who have not installed this package.

    Args:
        row (`Mapping`): Row of a built dataset, of `datasets.load_dataset`, streamed or not.

    Returns:
        `dict[str, np.ndarray]`: `counts` of shape `(num_bins, num_units)`, uint8, spikes per bin; `observed`
        of shape `(num_bins,)`, bool; `behavior` of shape `(num_bins, num_targets)`, float32, in
        `behavior_units`, NaN where absent.

    Raises:
        DatasetError: If a column does not hold as many values.

    Example:
        ```python
        >>> row = {"num_bins": 2, "unit_ids": ["a", "b", "c"], "behavior_names": ["speed"]}
        >>> row |= {"counts": bytes([0, 1, 2, 3, 4, 5]), "observed": bytes([1, 0])}
        >>> row |= {"behavior": np.array([0.5, np.nan], np.float32).tobytes()}
        >>> row_to_arrays(row)["counts"]
        array([[0, 1, 2],
               [3, 4, 5]], dtype=uint8)
        ```
    """
    return {"counts": row_counts(row), "observed": row_observed(row), "behavior": row_behavior(row)}


def row_counts(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Views the spike counts of a row without copying them.

    Args:
        row (`Mapping`): Row of a built dataset; `counts` holds bins x units bytes in C order.

    Returns:
        `np.ndarray` of shape `(num_bins, num_units)`, uint8, read-only: spikes per bin.

    Raises:
        DatasetError: If the bytes do not fill bins x units.
    """
    return _buffer(row, "counts", np.uint8, len(row["unit_ids"]))


def row_observed(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Views which bins of a row were observed.

    Args:
        row (`Mapping`): Row of a built dataset.

    Returns:
        `np.ndarray` of shape `(num_bins,)`, bool: True where the recording of any site was running.

    Raises:
        DatasetError: If there is not one byte per bin, or per bin and site.
    """
    return np.asarray(_observed(row).any(axis=1))


def row_site_observed(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Views which bins of a row were observed at each site.

    Args:
        row (`Mapping`): Row of a built dataset. `observed` holds a byte per bin or, where sites were not
            recorded all at once, bins x sites bytes in C order.

    Returns:
        `np.ndarray` of shape `(num_bins, num_sites)`, bool: True where the site was recorded in the bin.

    Raises:
        DatasetError: If there is not one byte per bin, or per bin and site.
    """
    return np.repeat(seen, len(row["site_ids"]), axis=1) if (seen := _observed(row)).shape[1] == 1 else seen


def _observed(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Observed bins as `(num_bins, 1)`, or `(num_bins, num_sites)` where sites differ."""
    per_site = row["num_bins"] and len(row["observed"] or b"") > row["num_bins"]
    return _buffer(row, "observed", np.uint8, len(row["site_ids"]) if per_site else 1).astype(bool)


def row_behavior(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """Views the behaviour of a row without copying it.

    Args:
        row (`Mapping`): Row of a built dataset.

    Returns:
        `np.ndarray` of shape `(num_bins, num_targets)`, float32, read-only, in the units that
        `behavior_units` names; NaN where absent. Shape `(num_bins, 0)` where the session has no behaviour.

    Raises:
        DatasetError: If the values do not fill bins x targets.
    """
    return _buffer(row, "behavior", np.float32, len(row["behavior_names"] or ()))


def scored_bins(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Says which bins of a row are decoding targets (DESIGN section 5).

    With trials, the bins from `scored_start_bin` to `scored_stop_bin` (exclusive) of each; without trials,
    every bin after the context. A bin of the context, an unobserved bin and a bin whose behaviour is not
    finite never count.

    Args:
        row (`Mapping`): Row of a built dataset.

    Returns:
        `np.ndarray` of shape `(num_bins,)`, bool: True where a prediction is scored.
    """
    trials = row["trials"] or []
    intervals = [(trial["scored_start_bin"], trial["scored_stop_bin"]) for trial in trials]
    return _targets(row, intervals if trials else [(0, row["num_bins"])])


def reach_bins(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Says which bins of a row belong to a reach: from the go cue to the end of the scored interval.

    Args:
        row (`Mapping`): Row of a built dataset.

    Returns:
        `np.ndarray` of shape `(num_bins,)`, bool: True inside a reach, under the same exclusions as
        `scored_bins`. All False where no trial has a go cue.
    """
    trials = [trial for trial in row["trials"] or [] if trial["go_cue_bin"] >= 0]
    return _targets(row, [(trial["go_cue_bin"], trial["scored_stop_bin"]) for trial in trials])


def _targets(row: Mapping[str, Any], intervals: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Marks the intervals, less context, unobserved bins and bins without behaviour."""
    inside = np.zeros(row["num_bins"], dtype=bool)
    for start, stop in intervals:
        inside[max(start, 0) : max(stop, 0)] = True
    inside[: row["num_context_bins"]] = False
    behavior = row_behavior(row)
    if behavior.shape[1] == 0:
        return np.zeros_like(inside)
    return inside & row_observed(row) & np.isfinite(behavior).all(axis=1)


def _buffer(row: Mapping[str, Any], column: str, dtype: type[np.generic], width: int) -> NDArray[Any]:
    """Views a binary column as `(num_bins, width)`."""
    values = np.frombuffer(row[column] or b"", dtype=dtype)
    if values.size != row["num_bins"] * width:
        raise DatasetError(
            f"`{column}` must hold {row['num_bins']} x {width} values, got {values.size} in the row of "
            f"session '{row['session_id']}' that starts at {row['start_time']} s. Build the dataset again."
        )
    return values.reshape(row["num_bins"], width)
