"""Counts per bin from spike times, and one behaviour value per bin.

For turning a `Recording` into arrays on a regular grid. Not for windows or splits: those come later, from
binned rows.
"""

import logging
import os
from dataclasses import dataclass

import numpy as np

from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.errors import BinningError

logger = logging.getLogger(__name__)

# Times this close to an edge, in bins, are taken to lie on it: files hold times that were computed in
# floating point.
EDGE_TOLERANCE = 1e-6

# Counts of this many bins and units are held as 64-bit numbers at a time.
ENTRIES_AT_ONCE = 2**17

# Behaviour is interpolated only between neighbouring samples, that is up to this many median sample intervals
# apart.
MAX_GAP_IN_SAMPLES = 1.5


@dataclass(frozen=True)
class BinnedInterval:
    """Counts of one observed interval.

    Args:
        start_time (`float`): Start of the first bin in s.
        counts (`np.ndarray` of shape `(num_bins, num_units)`): Spikes per bin and unit, uint8.
        observed (`np.ndarray` of shape `(num_bins,)`): True where the bin was observed.
        index (`int`): Index of the interval in `obs_intervals` of the recording.
    """

    start_time: float
    counts: np.ndarray
    observed: np.ndarray
    index: int


def count_bins(start: float, stop: float, bin_size: float) -> int:
    """Gives the number of whole bins in an interval: `floor((stop - start) / bin_size + 1e-6)`.

    Args:
        start (`float`): Start of the interval in s.
        stop (`float`): Its end in s.
        bin_size (`float`): Width of a bin in s, above 0.

    Returns:
        `int`: number of bins.

    Example:
        ```python
        >>> count_bins(0.0, 0.3, 0.1), count_bins(0.0, 0.29, 0.1)
        (3, 2)

        ```
    """
    return int(np.floor((stop - start) / bin_size + EDGE_TOLERANCE))


def bin_spikes(recording: Recording, bin_size: float) -> list[BinnedInterval]:
    """Counts the spikes of every unit in bins of every observed interval.

    Bins are half-open and start at the start of their interval; what remains behind the last whole bin is
    left out. A spike within 1e-6 bins of an edge counts as on it and goes to the later bin, so every spike
    inside the bins lands in exactly one.

    Args:
        recording (`Recording`): Spike times in s.
        bin_size (`float`): Width of a bin in s, above 0.

    Returns:
        `list[BinnedInterval]`: one per observed interval that holds at least one bin, in order of time; every
        bin is observed.

    Raises:
        BinningError: If `bin_size` is not above 0 or longer than every interval, a bin holds more than 255
            spikes of a unit, or the counts do not fit into memory.

    Example:
        ```python
        >>> recording = Recording.from_arrays("day1", [np.array([0.0, 0.1, 0.2])], obs_intervals=[[0.0, 0.3]])
        >>> bin_spikes(recording, 0.1)[0].counts.ravel().tolist()
        [1, 1, 1]

        ```
    """
    where = f"in session '{recording.session_id}'"
    check_bin_size(bin_size)
    starts, stops = recording.obs_intervals.T
    num_bins = np.floor((stops - starts) / bin_size + EDGE_TOLERANCE).astype(np.int64)
    if not num_bins.any():
        raise BinningError(
            f"`bin_size` must fit into an observed interval, got {bin_size} s where the longest lasts "
            f"{(stops - starts).max():.6g} s {where}. Use smaller bins."
        )
    num_bytes = float(num_bins.sum(dtype=np.float64)) * recording.num_units
    if num_bytes > _memory():
        raise BinningError(
            f"Counts must fit into memory, got {num_bytes / 1e9:.4g} GB for {recording.num_units} units in "
            f"bins of {bin_size} s from {starts[0]:.6g} to {stops[-1]:.6g} s {where}, where there are "
            f"{_memory() / 1e9:.4g} GB. Use larger bins; if the recording was not that long, correct its "
            "times or `obs_intervals`."
        )
    if (num_bins == 0).any():
        logger.warning(
            "%d of %d observed intervals are shorter than one bin of %g s %s: left out.",
            np.count_nonzero(num_bins == 0),
            len(num_bins),
            bin_size,
            where,
        )
    indices = np.flatnonzero(num_bins)
    starts, stops, num_bins = starts[indices], stops[indices], num_bins[indices]
    # An interval whose bins fill it ends exactly where the file says, so that neighbours share no spike.
    ends = starts + num_bins * bin_size
    ends = np.where(np.abs(ends - stops) <= 2 * EDGE_TOLERANCE * bin_size, stops, ends)
    offsets = np.concatenate([[0], np.cumsum(num_bins)])
    counts = np.empty((offsets[-1], recording.num_units), dtype=np.uint8)
    units_at_once = int(max(ENTRIES_AT_ONCE // offsets[-1], 1))
    for first in range(0, recording.num_units, units_at_once):
        some = slice(first, first + units_at_once)
        some_counts = _count(recording.spike_times[some], starts, ends, num_bins, offsets, bin_size)
        if some_counts.max() > np.iinfo(np.uint8).max:
            unit, fullest = np.unravel_index(some_counts.argmax(), some_counts.shape)
            interval = int(np.searchsorted(offsets, fullest, side="right")) - 1
            raise BinningError(
                f"A bin must hold at most 255 spikes of a unit, got {some_counts.max()} of unit "
                f"'{recording.unit_ids[first + unit]}' in the bin of {bin_size} s at "
                f"{starts[interval] + (fullest - offsets[interval]) * bin_size:.6g} s {where}. Use smaller "
                "bins."
            )
        counts[:, some] = some_counts.T
    return [
        BinnedInterval(float(start), counts[first:last], np.ones(last - first, dtype=bool), int(index))
        for index, start, first, last in zip(indices, starts, offsets[:-1], offsets[1:], strict=True)
    ]


def _memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def check_bin_size(bin_size: float) -> None:
    """Refuses a bin size that is not a positive, finite number of seconds.

    Args:
        bin_size (`float`): Width of a bin in s.

    Raises:
        BinningError: If it is not above 0 and finite.
    """
    if not (np.isfinite(bin_size) and bin_size > 0):
        raise BinningError(
            f"`bin_size` must be above 0 s and finite, got {bin_size}. Give the width of a bin in seconds."
        )


def _count(
    spike_times: list[np.ndarray],
    starts: np.ndarray,
    ends: np.ndarray,
    num_bins: np.ndarray,
    offsets: np.ndarray,
    bin_size: float,
) -> np.ndarray:
    """Counts spikes of some units on the grid of all intervals one after another: (units, bins), int64."""
    times = np.concatenate(spike_times)
    unit = np.repeat(np.arange(len(spike_times)), [len(one) for one in spike_times])
    interval = np.searchsorted(starts, times, side="right") - 1
    inside = (interval >= 0) & (times < ends[interval])
    if not inside.all():
        times, unit, interval = times[inside], unit[inside], interval[inside]
    position = np.floor((times - starts[interval]) / bin_size + EDGE_TOLERANCE).astype(np.int64)
    bin_ = unit * offsets[-1] + offsets[interval] + np.minimum(position, num_bins[interval] - 1)
    return np.bincount(bin_, minlength=len(spike_times) * offsets[-1]).reshape(len(spike_times), offsets[-1])


def bin_behavior(series: BehaviorSeries, start_time: float, num_bins: int, bin_size: float) -> np.ndarray:
    """Gives one behaviour value per bin: the mean of the samples inside it.

    A bin without samples takes the linear interpolation at its centre between its two neighbouring samples,
    where these are at most 1.5 median sample intervals apart; so nothing is made up across gaps or outside
    the series. A bin is NaN where a sample that it rests on is NaN.

    Args:
        series (`BehaviorSeries`): Samples, times in s.
        start_time (`float`): Start of the first bin in s.
        num_bins (`int`): Number of bins.
        bin_size (`float`): Width of a bin in s, above 0.

    Returns:
        `np.ndarray` of shape `(num_bins, K)`: float32 in the unit of the series, NaN where absent.

    Example:
        ```python
        >>> times, values = np.array([0.0, 0.1, 0.2, 0.3]), np.array([1.0, 3.0, 5.0, 7.0])
        >>> series = BehaviorSeries("speed", times, values, [""], "cm/s")
        >>> bin_behavior(series, 0.0, 3, 0.2).ravel().tolist()
        [2.0, 6.0, nan]

        ```
    """
    check_bin_size(bin_size)
    # One bin and one sample to either side, for interpolation; the rest of a long series is not touched.
    first, last = np.searchsorted(series.timestamps, start_time + np.array([-1, num_bins + 1]) * bin_size)
    nearby = slice(max(first - 1, 0), last + 1)
    times, values = series.timestamps[nearby], series.values[nearby].astype(np.float64)
    position = np.floor((times - start_time) / bin_size + EDGE_TOLERANCE)
    inside = (position >= 0) & (position < num_bins)
    position = position[inside].astype(np.int64)
    num_samples = np.bincount(position, minlength=num_bins)
    sums = np.stack(
        [np.bincount(position, weights=column, minlength=num_bins) for column in values[inside].T], axis=1
    )
    binned = np.full((num_bins, values.shape[1]), np.nan)
    np.divide(sums, num_samples[:, None], out=binned, where=num_samples[:, None] > 0)

    empty = np.flatnonzero(num_samples == 0)
    centres = start_time + (empty + 0.5) * bin_size
    after = np.searchsorted(times, centres)
    between = (after > 0) & (after < len(times))
    empty, centres, after = empty[between], centres[between], after[between]
    gap = times[after] - times[after - 1]
    near = gap <= MAX_GAP_IN_SAMPLES * series.sample_interval
    weight = ((centres - times[after - 1]) / gap)[near, None]
    binned[empty[near]] = (1 - weight) * values[after[near] - 1] + weight * values[after[near]]
    return binned.astype(np.float32)


def derive_velocity(series: BehaviorSeries) -> BehaviorSeries:
    """Derives velocity from position by backward differences, so that no value uses a later sample.

    `v[i] = (x[i] - x[i - 1]) / (t[i] - t[i - 1])` at time `t[i]`. The first sample, and one behind a gap of
    more than 1.5 median sample intervals, is NaN.

    Args:
        series (`BehaviorSeries`): Positions.

    Returns:
        `BehaviorSeries`: velocities at the same times, in the unit of the series per second; `_pos` at the
        end of the name becomes `_vel`, any other name gets `_vel` appended.

    Example:
        ```python
        >>> times, values = np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 3.0])
        >>> velocity = derive_velocity(BehaviorSeries("cursor_pos", times, values, [""], "cm"))
        >>> velocity.name, velocity.unit, velocity.values.ravel().tolist()
        ('cursor_vel', 'cm/s', [nan, 2.0, 4.0])

        ```
    """
    steps = np.diff(series.timestamps)
    velocity = np.full(series.values.shape, np.nan)
    velocity[1:] = np.diff(series.values.astype(np.float64), axis=0) / steps[:, None]
    velocity[1:][steps > MAX_GAP_IN_SAMPLES * series.sample_interval] = np.nan
    name = f"{series.name.removesuffix('_pos')}_vel"
    return BehaviorSeries(name, series.timestamps, velocity, series.dimension_names, f"{series.unit}/s")
