"""One recording cut into the rows of a built dataset.

Chooses the series to decode, makes blocks where there are no trials, divides trials over the splits, and cuts
each observed interval where the split changes. Not for files: that is `builder.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from rpnt_hf.data.binning import EDGE_TOLERANCE, BinnedInterval, bin_behavior, bin_spikes, derive_velocity
from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.data.schema import BuilderConfig, CorpusRecording
from rpnt_hf.data.splits import SPLITS, SplitFile, draw_split, make_blocks, num_guard_bins, split_bins
from rpnt_hf.errors import BinningError, RecordingError, SplitError, closest_names

DEFAULT_BEHAVIOR = ("cursor_vel", "hand_vel")

# Columns of the trials table that the row schema has a place of its own for.
OWN_COLUMNS = ("target_dir", "result", "condition", "label")


@dataclass
class PreparedRecording:
    """A recording with its trials (or blocks), their splits and its series, ready to be cut into rows.

    Args:
        entry (`CorpusRecording`): The recording.
        config (`BuilderConfig`): How it is cut.
        trials (`pd.DataFrame`): Trials, or the blocks that stand for them.
        splits (`list[str | None]`): Split of each trial, `None` where excluded.
        reasons (`dict[int, str]`): Why, by index of the excluded trials.
        series (`list[BehaviorSeries]`): Series to decode; empty where there are none.
        are_blocks (`bool`): True where `trials` are blocks.
        first_index (`int`): Number of the first trial; above 0 for the blocks of a session's later files.
    """

    entry: CorpusRecording
    config: BuilderConfig
    trials: pd.DataFrame
    splits: list[str | None]
    reasons: dict[int, str]
    series: list[BehaviorSeries]
    are_blocks: bool
    first_index: int

    @classmethod
    def of(
        cls,
        entry: CorpusRecording,
        config: BuilderConfig,
        split_file: SplitFile | None,
        part: int,
        num_blocks: int,
    ) -> "PreparedRecording":
        """Chooses series, makes blocks where there are no trials, and divides.

        Args:
            entry (`CorpusRecording`): The recording.
            config (`BuilderConfig`): How.
            split_file (`SplitFile` or `None`): A fixed split.
            part (`int`): Number of files of the same session before it.
            num_blocks (`int`): Number of blocks in those; numbering goes on from there.

        Returns:
            `PreparedRecording`: with a split for every trial.

        Raises:
            RecordingError: If the behaviour is missing or does not span the trials.
            BinningError: If a trial is shorter than a bin.
            SplitError: If trials cannot be divided.
        """
        recording = entry.recording
        series = _chosen_series(recording, config)
        are_blocks = len(recording.trials) == 0
        if are_blocks:
            trials = make_blocks(recording.obs_intervals, config.bin_size, config.block_length, config.guard)
        else:
            trials = recording.trials
        key = f"{recording.session_id}#{part}"
        named: dict[int, str] | None = None
        unusable = _unusable_trials(trials, recording.obs_intervals)
        if split_file is not None:
            file_name = recording.source["file_name"] if recording.source else None
            named = split_file.splits_of(recording.session_id, file_name, len(trials))
            if lost := sorted(set(unusable) & set(named)):
                raise SplitError(
                    f"`split_file` must name observed trials, got {lost[:5]} of session "
                    f"'{recording.session_id}', the first being {unusable[lost[0]]}. Remove them from it."
                )
            reasons = {
                index: "not named by the split file" for index in range(len(trials)) if index not in named
            }
        elif entry.splits is not None:
            named = dict(entry.splits)
            reasons = {index: "in no split" for index in range(len(trials)) if index not in named}
            reasons |= unusable | dict(entry.excluded_trials)
            named = {index: split for index, split in named.items() if index not in reasons}
        else:
            reasons = unusable | dict(entry.excluded_trials)
        included = [index for index in range(len(trials)) if index not in reasons]
        _check_trial_lengths(recording, trials, included, config.bin_size)
        if named is None:
            records = trials.to_dict("records")
            strata = [_condition(records[index]) or "" for index in included]
            drawn = draw_split(strata, key, config.seed, config.proportions)
            named = dict(zip(included, drawn, strict=True))
        splits = [named.get(index) for index in range(len(trials))]
        if not are_blocks:
            _check_coverage(recording, series, trials.iloc[included], config.bin_size)
        return cls(
            entry, config, trials, splits, reasons, series, are_blocks, num_blocks if are_blocks else 0
        )

    @cached_property
    def _records(self) -> list[dict[Any, Any]]:
        """The trials as plain values; rows of a table cost a hundred times as much to look into."""
        return self.trials.to_dict("records")

    def summary(self) -> dict[str, Any]:
        """Collects what the card and `rpnt_build.json` say about the recording.

        Returns:
            `dict[str, Any]`: ready for JSON; the numbers of rows, bins and spikes are 0 and added by the
            builder.
        """
        recording = self.entry.recording
        reasons: dict[str, list[int]] = {}
        for index, reason in sorted(self.reasons.items()):
            reasons.setdefault(reason, []).append(index)
        return {
            "session_id": recording.session_id,
            "config": self.entry.config_name,
            "subject_id": recording.subject_id,
            "task": recording.task,
            "recording_date": str(recording.recording_date) if recording.recording_date else None,
            "source": recording.source or {"file_name": None, "sha256": None},
            "num_units": recording.num_units,
            "num_silent_units": sum(len(times) == 0 for times in recording.spike_times),
            "site_ids": recording.site_ids,
            "num_spikes": 0,
            "num_spikes_in_file": recording.num_spikes,
            "behavior_names": _behavior_names(self.series),
            "behavior_units": [one.unit for one in self.series for _ in one.dimension_names],
            "trials_are_blocks": self.are_blocks,
            "trials": {split: self.splits.count(split) for split in SPLITS},
            "excluded_trials": reasons,
            "notes": [
                *self.entry.notes,
                *(
                    f"series '{name}' cannot be used: {why}"
                    for name, why in recording.unusable_behavior.items()
                ),
            ],
            "rows": dict.fromkeys(SPLITS, 0),
            "bins": dict.fromkeys(SPLITS, 0),
            "scored_bins": dict.fromkeys(SPLITS, 0),
        }

    def rows(self) -> Iterator[tuple[str, dict[str, Any], int]]:
        """Cuts the recording into rows.

        Yields:
            `tuple[str, dict[str, Any], int]`: the split, the row, and how many of its bins are decoding
            targets.

        Raises:
            BinningError: If the bins do not fit or overflow.
            RecordingError: If there is behaviour but none of it lies in a trial.
        """
        num_labels = 0
        for interval in bin_spikes(self.entry.recording, self.config.bin_size):
            for split, row, num_scored, num_finite in self._rows_of(interval):
                num_labels += num_finite
                yield split, row, num_scored
        if self.series and num_labels == 0:
            raise RecordingError(
                "A recording must have behaviour in at least one bin of a trial, got none of "
                f"{_behavior_names(self.series)} in session '{self.entry.recording.session_id}'. Choose "
                "another series, or allow recordings without behaviour and leave it out."
            )

    def _rows_of(self, interval: BinnedInterval) -> Iterator[tuple[str, dict[str, Any], int, int]]:
        bin_size = self.config.bin_size
        num_bins = len(interval.counts)
        # A trial without a start lies nowhere, one without a stop where it starts; both are excluded.
        starts = self.trials["start_time"].fillna(interval.start_time + num_bins * bin_size)
        stops = self.trials["stop_time"].fillna(starts + bin_size)
        # Of each trial, in bins of this interval and exclusive of the last: all bins it touches.
        first_bins = self._bins_before(starts, interval.start_time)
        stop_bins = -self._bins_before(-stops, -interval.start_time)
        here = np.flatnonzero((stop_bins > 0) & (first_bins < num_bins))
        here = here[np.argsort(first_bins[here], kind="stable")]
        guard_bins = num_guard_bins(self.config.guard, bin_size) if self.are_blocks else 0
        split_of_bin, excluded = split_bins(
            num_bins, first_bins[here], stop_bins[here], [self.splits[index] for index in here], guard_bins
        )
        labels = self._labels(interval, excluded)
        num_context = round(self.config.context_length / bin_size)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(split_of_bin)) + 1, [num_bins]])
        for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            split = SPLITS[split_of_bin[first]]
            row_start = first if split == "train" else max(first - num_context, 0)
            values = labels[row_start:stop].copy()
            values[: first - row_start] = np.nan
            trials = [
                self._trial(
                    index, interval.start_time, first, stop, row_start, first_bins[index], stop_bins[index]
                )
                for index in here.tolist()
                if self.splits[index] == split and first_bins[index] < stop and stop_bins[index] > first
            ]
            if not trials:  # between trials, or in a trial of another split: not for decoding
                values[:] = np.nan
            target = np.zeros(stop - row_start, dtype=bool)
            for trial in trials:
                target[trial["scored_start_bin"] : trial["scored_stop_bin"]] = True
            finite = np.isfinite(values).all(axis=1) if self.series else np.zeros(len(values), dtype=bool)
            row = self._row(interval, row_start, first, stop, values, trials)
            yield split, row, int((target & finite).sum()), int(finite.sum())

    def _bins_before(self, times: pd.Series | float, start_time: float) -> Any:
        """Number of whole bins between a start and each time, where a time on an edge lies behind it."""
        bins = np.floor((np.asarray(times, np.float64) - start_time) / self.config.bin_size + EDGE_TOLERANCE)
        return np.clip(bins, -(2**62), 2**62).astype(np.int64)

    def _labels(self, interval: BinnedInterval, excluded: np.ndarray) -> np.ndarray:
        """Labels of all bins, NaN in excluded trials."""
        num_bins = len(interval.counts)
        if not self.series:
            return np.empty((num_bins, 0), dtype=np.float32)
        binned = [
            bin_behavior(one, interval.start_time, num_bins, self.config.bin_size) for one in self.series
        ]
        labels = np.concatenate(binned, axis=1)
        labels[excluded] = np.nan
        return labels

    def _trial(
        self,
        index: int,
        start_time: float,
        first: int,
        stop: int,
        row_start: int,
        first_bin: int,
        stop_bin: int,
    ) -> dict[str, Any]:
        """One entry of `trials`; bins are counted from the row's first one and cut to the row."""
        trial = self._records[index]
        scored_from, scored_to = scored_interval(trial)
        low, high = max(first_bin, first), min(stop_bin, stop)
        scored_start = -int(self._bins_before(-scored_from, -start_time))
        scored_stop = int(self._bins_before(scored_to, start_time))
        scored_start = min(max(scored_start, low), high)

        def event_bin(time: float) -> int:
            event = int(self._bins_before(time, start_time)) if np.isfinite(time) else -1
            return event - row_start if first <= event < stop else -1

        target_dir = _number(trial, "target_dir") % (2 * np.pi)
        columns = {name: _plain(value) for name, value in trial.items() if name not in OWN_COLUMNS}
        return {
            "trial_index": self.first_index + int(index),
            "start_bin": int(low - row_start),
            "stop_bin": int(high - row_start),
            "scored_start_bin": int(scored_start - row_start),
            "scored_stop_bin": int(min(max(scored_stop, scored_start), high) - row_start),
            "go_cue_bin": event_bin(_go_cue_time(trial)),
            "move_onset_bin": event_bin(_number(trial, "move_onset_time")),
            "target_dir": 0.0 if target_dir >= 2 * np.pi else float(target_dir),
            "result": _text(trial, "result"),
            "condition": _condition(trial, by_direction=False),
            "label": _label(trial),
            "trial_columns": json.dumps(columns),
        }

    def _row(
        self,
        interval: BinnedInterval,
        row_start: int,
        first: int,
        stop: int,
        labels: np.ndarray,
        trials: list[dict[str, Any]],
    ) -> dict[str, Any]:
        recording = self.entry.recording
        counts, observed = interval.counts[row_start:stop], interval.observed[row_start:stop].astype(np.uint8)
        start_time = interval.start_time + row_start * self.config.bin_size
        if self.entry.site_intervals is not None:
            at_sites = self._sites_observed(self.entry.site_intervals, start_time, stop - row_start)
            observed = at_sites * observed[:, None]
            counts = counts * observed[:, recording.unit_sites]
        return {
            "session_id": recording.session_id,
            "subject_id": recording.subject_id,
            "task": recording.task,
            "recording_date": recording.recording_date,
            "site_ids": recording.site_ids,
            "site_positions": recording.site_positions.tolist(),
            "bin_size": self.config.bin_size,
            "start_time": start_time,
            "num_bins": stop - row_start,
            "num_context_bins": first - row_start,
            "unit_ids": recording.unit_ids,
            "unit_sites": recording.unit_sites.tolist(),
            "counts": np.ascontiguousarray(counts).tobytes(),
            "observed": observed.tobytes(),
            "behavior": np.ascontiguousarray(labels, dtype=np.float32).tobytes(),
            "behavior_names": _behavior_names(self.series),
            "behavior_units": [one.unit for one in self.series for _ in one.dimension_names],
            "trials": trials,
            "source": recording.source or {"file_name": None, "sha256": None},
        }

    def _sites_observed(
        self, site_intervals: Sequence[np.ndarray], start_time: float, num_bins: int
    ) -> np.ndarray:
        """Which bins lie wholly in an interval of each site, (bins, sites), uint8."""
        edges = start_time + np.arange(num_bins + 1) * self.config.bin_size
        slack = EDGE_TOLERANCE * self.config.bin_size * 2
        observed = np.zeros((num_bins, len(site_intervals)), dtype=np.uint8)
        for site, intervals in enumerate(site_intervals):
            if len(intervals):
                interval = np.searchsorted(intervals[:, 0], edges[:-1] + slack, side="right") - 1
                observed[:, site] = (interval >= 0) & (edges[1:] <= intervals[interval, 1] + slack)
        return observed


def scored_interval(trial: Mapping[Any, Any]) -> tuple[float, float]:
    """Gives the part of a trial whose bins are decoding targets.

    From `target_on_time`, else the go cue (`go_cue_time`, else the first time of `go_cue_time_array`), else
    the start; to `end_time`, else the stop. Columns that are missing or NaN are passed over.

    Args:
        trial (`Mapping` or `pd.Series`): Row of the trials table, times in s.

    Returns:
        `tuple[float, float]`: start and end in s.

    Example:
        ```python
        >>> scored_interval({"start_time": 1.0, "stop_time": 4.0, "go_cue_time": 2.0})
        (2.0, 4.0)

        ```
    """
    starts = [_number(trial, "target_on_time"), _go_cue_time(trial), _number(trial, "start_time")]
    ends = [_number(trial, name) for name in ("end_time", "stop_time")]
    return next(time for time in starts if np.isfinite(time)), next(
        time for time in ends if np.isfinite(time)
    )


def _go_cue_time(trial: Mapping[Any, Any]) -> float:
    """Time of the go cue, of several the first; NaN where none was given."""
    time = _number(trial, "go_cue_time")
    if np.isfinite(time) or trial.get("go_cue_time_array") is None:
        return time
    times = np.asarray(trial["go_cue_time_array"], np.float64).ravel()
    return float(times[np.isfinite(times)].min()) if np.isfinite(times).any() else time


def _chosen_series(recording: Recording, config: BuilderConfig) -> list[BehaviorSeries]:
    """The series to decode: those asked for by name, or the first velocity there is."""
    available = dict(recording.behavior)
    if config.derive_velocity:
        positions = [series for name, series in available.items() if name.endswith("_pos")]
        available = {series.name: series for series in map(derive_velocity, positions)} | available
    there = {*available, *recording.unusable_behavior}
    wanted = config.behavior or [name for name in DEFAULT_BEHAVIOR if name in there][:1]
    missing = [name for name in wanted if name not in available]
    if wanted and not missing:
        return [available[name] for name in wanted]
    if config.allow_no_behavior:
        return []
    lacking = missing or list(DEFAULT_BEHAVIOR)
    reasons = "".join(f"'{name}' cannot be used: {why} " for name, why in recording.unusable_behavior.items())
    raise RecordingError(
        f"A recording must have the behaviour {' and '.join(missing) or ' or '.join(DEFAULT_BEHAVIOR)}, got "
        f"{sorted(recording.behavior) or 'no series'} in session '{recording.session_id}'. {reasons}"
        "Name a series that it has (`behavior`), derive velocity from position (`derive_velocity`), or build "
        f"for spikes alone (`allow_no_behavior`).{closest_names(lacking[0], recording.behavior)}"
    )


def _behavior_names(series: list[BehaviorSeries]) -> list[str]:
    return [f"{one.name}_{dimension}".rstrip("_") for one in series for dimension in one.dimension_names]


def _unusable_trials(trials: pd.DataFrame, obs_intervals: np.ndarray) -> dict[int, str]:
    """Why trials cannot be used, by index: their times are unknown, or overlap no observed interval."""
    start, stop = trials["start_time"].to_numpy(np.float64), trials["stop_time"].to_numpy(np.float64)
    observed = np.searchsorted(obs_intervals[:, 1], start, side="right") < np.searchsorted(
        obs_intervals[:, 0], stop
    )
    reasons = dict.fromkeys(np.flatnonzero(~observed).tolist(), "outside the observed intervals")
    reasons |= dict.fromkeys(np.flatnonzero(np.isnan(stop)).tolist(), "without a stop time")
    return reasons | dict.fromkeys(np.flatnonzero(np.isnan(start)).tolist(), "without a start time")


def _check_trial_lengths(
    recording: Recording, trials: pd.DataFrame, included: list[int], bin_size: float
) -> None:
    lengths = (trials["stop_time"] - trials["start_time"]).to_numpy(np.float64)
    short = [index for index in included if lengths[index] < bin_size * (1 - EDGE_TOLERANCE)]
    if short:
        raise BinningError(
            f"`bin_size` must not be longer than a trial, got {bin_size} s where trial {short[0]} lasts "
            f"{lengths[short[0]]:.6g} s ({len(short)} such trials) in session '{recording.session_id}'. Use "
            "smaller bins, or exclude those trials."
        )


def _check_coverage(
    recording: Recording, series: list[BehaviorSeries], trials: pd.DataFrame, bin_size: float
) -> None:
    """Refuses a series that begins after the first scored bin or ends before the last one."""
    if not len(trials):
        return
    scored = np.array([scored_interval(trial) for trial in trials.to_dict("records")])
    for one in series:
        slack = bin_size + one.sample_interval
        first, last = one.timestamps[[0, -1]]
        outside = (scored[:, 0] < first - slack) | (scored[:, 1] > last + slack)
        if outside.any():
            raise RecordingError(
                f"A behaviour series must span all trials, got '{one.name}' from {first:.6g} to {last:.6g} s "
                f"where {np.count_nonzero(outside)} of {len(trials)} trials lie outside, the first being "
                f"trial {trials.index[outside][0]}, in session '{recording.session_id}'. Write NaN where "
                "behaviour is absent, or exclude those trials."
            )


def _number(trial: Mapping[Any, Any], name: str) -> float:
    value = trial.get(name)
    return (
        float(value)
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        else float("nan")
    )


def _text(trial: Mapping[Any, Any], name: str) -> str | None:
    value = trial.get(name)
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _condition(trial: Mapping[Any, Any], by_direction: bool = True) -> str | None:
    """Name of the condition: `condition`, else `target_id`; for strata also the target's direction."""
    if (condition := _text(trial, "condition")) is not None:
        return condition
    if np.isfinite(target := _number(trial, "target_id")):
        return f"{target:g}"
    direction = _number(trial, "target_dir")
    return f"{direction % (2 * np.pi):.3f}" if by_direction and np.isfinite(direction) else None


def _label(trial: Mapping[Any, Any]) -> int:
    """Class of a trial: `label`, else `target_id`, where that is a whole number from 0; else -1."""
    value = next(
        (number for name in ("label", "target_id") if np.isfinite(number := _number(trial, name))), -1.0
    )
    return int(value) if value >= 0 and value == int(value) else -1


def _plain(value: Any) -> Any:
    """A value of a trials table as JSON has it; NaN becomes null."""
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
