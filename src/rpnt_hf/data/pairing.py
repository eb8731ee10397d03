"""Pairs trials of different days, so that sites recorded one a day stand side by side in one session.

For corpora with one probe a day. Sites that were recorded at once need none of this. What two paired sites
share is what the task makes them share: couplings from moment to moment cannot be in such data.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rpnt_hf.data.binning import EDGE_TOLERANCE, bin_behavior
from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.data.schema import CorpusRecording
from rpnt_hf.data.splits import SPLITS
from rpnt_hf.errors import ConfigurationError, RecordingError

__all__ = ["EVENTS", "PairingConfig", "pair_days"]

EVENTS: Mapping[str, str] = {"go_cue": "go_cue_time", "move_onset": "move_onset_time"}
GAP = 1.0  # s between paired trials on the time axis of the session that is made


@dataclass(frozen=True)
class PairingConfig:
    """How trials of different days are brought together.

    Args:
        bin_size (`float`): Width of a bin in s, above 0.
        align (`str`, *optional*, defaults to `"go_cue"`): Event that lies at the same place in all trials of
            a pair: "go_cue" or "move_onset".
        before (`float`, *optional*, defaults to 0.3): Seconds before the event, at least 0; a whole number of
            bins.
        after (`float`, *optional*, defaults to 0.7): Seconds from the event on, above 0; likewise.
        seed (`int`, *optional*, defaults to 0): Seed of the pairing.

    Raises:
        ConfigurationError: The event is unknown, or a time is out of range or no whole number of bins.
    """

    bin_size: float
    align: str = "go_cue"
    before: float = 0.3
    after: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        if self.align not in EVENTS:
            raise ConfigurationError(f"`align` must be one of {', '.join(EVENTS)}, got '{self.align}'.")
        for name, least in (("before", 0), ("after", 1)):
            bins = getattr(self, name) / self.bin_size
            if abs(bins - round(bins)) > 1e-6 or round(bins) < least:
                raise ConfigurationError(
                    f"`{name}` must be a whole number of bins, at least {least}, got {getattr(self, name)} s "
                    f"with bins of {self.bin_size} s."
                )

    @property
    def num_bins(self) -> tuple[int, int]:
        """`tuple[int, int]`: bins before the event, and from it on."""
        return round(self.before / self.bin_size), round(self.after / self.bin_size)


@dataclass(frozen=True)
class _Piece:
    """What one day gives to one pair: a trial, and the bins of the window in which it was recorded."""

    trial: int
    window_start: float  # s, in the time of the day
    first_bin: int
    stop_bin: int


def pair_days(
    days: Sequence[tuple[Recording, Sequence[str | None]]], config: PairingConfig
) -> CorpusRecording:
    """Makes one recording with the sites of several days out of paired trials.

    In each split, trials of one condition (their `condition`, else their target direction) are drawn in a
    seeded order on each day and laid side by side; every trial is used once at most. A day with fewer trials
    of a condition is absent from the last pairs, and a site is absent from bins outside its own trial, so
    that no bin of another trial, or split, comes in. Behaviour is the mean over the days that are there: no
    single trial is what all sites saw.

    Args:
        days (`Sequence[tuple[Recording, Sequence[str | None]]]`): Recordings of one subject and task, and the
            split of each of their trials, `None` where excluded.
        config (`PairingConfig`): How.

    Returns:
        `CorpusRecording`: With `splits` and `site_intervals`; its trials have a column `paired_trials`, the
        index of the trial of each day, -1 where the day is absent.

    Raises:
        RecordingError: Fewer than two days, of several subjects or tasks, or no trial can be paired.
    """
    _check_days(days)
    events, left_out = [], []
    for recording, splits in days:
        pieces, reasons = _pieces(recording, splits, config)
        events.append(pieces)
        left_out.append(reasons)
    pairs = _draw_pairs(days, events, config)
    if not pairs:
        raise RecordingError(
            f"Days to be paired must have trials with a condition and `{EVENTS[config.align]}`, got none in "
            f"{', '.join(recording.session_id for recording, _ in days)}. Choose another event to align on."
        )
    return _assemble(days, pairs, left_out, config)


def _check_days(days: Sequence[tuple[Recording, Sequence[str | None]]]) -> None:
    known = {(recording.subject_id, recording.task) for recording, _ in days}
    if len(days) < 2 or len(known) != 1:
        raise RecordingError(
            "Days to be paired must be at least two, of one subject and one task, got "
            f"{len(days)} with {sorted(map(str, known))}. Build other subjects and tasks apart."
        )


def _pieces(
    recording: Recording, splits: Sequence[str | None], config: PairingConfig
) -> tuple[dict[tuple[str, str], list[_Piece]], dict[str, int]]:
    """Trials of a day by split and condition, and why others are left out."""
    column = EVENTS[config.align]
    before, after = config.num_bins
    pieces: dict[tuple[str, str], list[_Piece]] = {}
    reasons: dict[str, int] = {}

    def leave_out(reason: str) -> None:
        reasons[reason] = reasons.get(reason, 0) + 1

    for index, (trial, split) in enumerate(zip(recording.trials.to_dict("records"), splits, strict=True)):
        event = trial.get(column)
        condition = _condition(trial)
        if split is None:
            leave_out("in no split")
        elif isinstance(trial.get("result"), str) and trial["result"] != "R":
            leave_out("not rewarded")
        elif condition is None:
            leave_out("without a condition")
        elif not isinstance(event, (int, float, np.number)) or not np.isfinite(event):
            leave_out(f"without {column}")
        else:
            start = float(event) - before * config.bin_size
            low, high = _recorded_around(recording, trial, float(event))
            first = max(int(np.ceil((low - start) / config.bin_size - EDGE_TOLERANCE)), 0)
            stop = min(int(np.floor((high - start) / config.bin_size + EDGE_TOLERANCE)), before + after)
            if stop <= first:
                leave_out("not recorded at its event")
            else:
                pieces.setdefault((split, condition), []).append(_Piece(index, start, first, stop))
    return pieces, reasons


def _recorded_around(recording: Recording, trial: Mapping, event: float) -> tuple[float, float]:
    """The part of a trial that was observed without a gap around its event; empty where the event was not."""
    starts, stops = recording.obs_intervals.T
    interval = int(np.searchsorted(starts, event, side="right")) - 1
    if interval < 0 or event >= stops[interval]:
        return event, event
    return max(starts[interval], float(trial["start_time"])), min(stops[interval], float(trial["stop_time"]))


def _condition(trial: Mapping) -> str | None:
    """Condition of a trial, else its target's direction; None where it has neither."""
    condition = trial.get("condition")
    if isinstance(condition, str) and condition:
        return condition
    direction = trial.get("target_dir")
    if isinstance(direction, (int, float, np.number)) and np.isfinite(direction):
        return f"{float(direction) % (2 * np.pi):.3f}"
    return None


@dataclass(frozen=True)
class _Pair:
    split: str
    condition: str
    pieces: list[_Piece | None]  # one per day


def _draw_pairs(
    days: Sequence[tuple[Recording, Sequence[str | None]]],
    events: Sequence[Mapping[tuple[str, str], list[_Piece]]],
    config: PairingConfig,
) -> list[_Pair]:
    """Lays the trials of all days side by side, conditions mixed inside each split."""
    pairs: list[_Pair] = []
    for split in SPLITS:
        found = []
        for condition in sorted({key[1] for pieces in events for key in pieces if key[0] == split}):
            orders = []
            for (recording, _), pieces in zip(days, events, strict=True):
                mine = pieces.get((split, condition), [])
                generator = _generator(config.seed, split, condition, recording.session_id)
                orders.append([mine[index] for index in generator.permutation(len(mine))])
            for number in range(max(map(len, orders))):
                found.append(
                    _Pair(
                        split, condition, [order[number] if number < len(order) else None for order in orders]
                    )
                )
        generator = _generator(config.seed, split, "order")
        pairs += [found[index] for index in generator.permutation(len(found))]
    return pairs


def _generator(seed: int, *names: str) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def _assemble(
    days: Sequence[tuple[Recording, Sequence[str | None]]],
    pairs: Sequence[_Pair],
    left_out: Sequence[Mapping[str, int]],
    config: PairingConfig,
) -> CorpusRecording:
    recordings = [recording for recording, _ in days]
    before, after = config.num_bins
    length = (before + after) * config.bin_size
    starts = np.arange(len(pairs)) * (length + GAP)
    first = recordings[0]
    name = f"sub-{first.subject_id or 'unknown'}_task-{first.task or 'unknown'}_paired-{config.align}"
    site_ids: list[str] = []
    unit_ids, unit_sites, spike_times, intervals = [], [], [], []
    for day, recording in enumerate(recordings):
        taken = [(start, pair.pieces[day]) for start, pair in zip(starts, pairs, strict=True)]
        present = [(start, piece) for start, piece in taken if piece is not None]
        recorded = np.array(
            [
                [start + piece.first_bin * config.bin_size, start + piece.stop_bin * config.bin_size]
                for start, piece in present
            ]
        ).reshape(-1, 2)
        unit_sites.append(recording.unit_sites + len(site_ids))
        site_ids += [f"{recording.session_id}:{site}" for site in recording.site_ids]
        intervals += [recorded] * len(recording.site_ids)
        unit_ids += [f"{recording.session_id}:{unit}" for unit in recording.unit_ids]
        spike_times += [_moved(times, present, config.bin_size) for times in recording.spike_times]
    short = [site.partition(":")[2] for site in site_ids]
    # Every bin in which a day is there is observed; bins before and after all trials of a pair are not.
    trials = pd.DataFrame(
        {
            "start_time": starts,
            "stop_time": starts + length,
            "target_on_time": starts,  # all bins of a pair are decoding targets
            EVENTS[config.align]: starts + before * config.bin_size,
            "target_dir": [_direction(recordings, pair) for pair in pairs],
            "condition": [pair.condition for pair in pairs],
            "paired_trials": [
                [-1 if piece is None else piece.trial for piece in pair.pieces] for pair in pairs
            ],
        }
    )
    recording = Recording(
        session_id=name,
        subject_id=first.subject_id,
        task=first.task,
        # Days differ from site to site, and a row has one.
        recording_date=first.recording_date if len({one.recording_date for one in recordings}) == 1 else None,
        unit_ids=unit_ids,
        unit_sites=np.concatenate(unit_sites),
        site_ids=short if len(set(short)) == len(short) else site_ids,
        site_positions=np.concatenate([one.site_positions for one in recordings]),
        spike_times=spike_times,
        obs_intervals=np.stack([starts, starts + length], axis=1),
        behavior=_mean_behavior(recordings, pairs, starts, config),
        trials=trials,
    )
    return CorpusRecording(
        recording,
        notes=_notes(recordings, pairs, left_out, config),
        splits={number: pair.split for number, pair in enumerate(pairs)},
        site_intervals=intervals,
    )


def _moved(times: np.ndarray, present: Sequence[tuple[float, _Piece]], bin_size: float) -> np.ndarray:
    """Takes the spikes of the pieces of a day to their places on the new time axis."""
    moved = []
    for start, piece in present:
        edges = piece.window_start + np.array([piece.first_bin, piece.stop_bin]) * bin_size
        low, high = np.searchsorted(times, edges - EDGE_TOLERANCE * bin_size)
        moved.append(times[low:high] - piece.window_start + start)
    return np.concatenate([*moved, np.empty(0)])


def _direction(recordings: Sequence[Recording], pair: _Pair) -> float:
    """Direction of the target, which all trials of a pair share; NaN where they do not, or have none."""
    directions = [
        float(recording.trials["target_dir"].iloc[piece.trial])
        if "target_dir" in recording.trials
        else np.nan
        for recording, piece in zip(recordings, pair.pieces, strict=True)
        if piece is not None
    ]
    return directions[0] if np.ptp(directions) < 1e-6 else float("nan")


def _mean_behavior(
    recordings: Sequence[Recording], pairs: Sequence[_Pair], starts: np.ndarray, config: PairingConfig
) -> dict[str, BehaviorSeries]:
    """Averages the series that all days have, bin by bin, over the days that are in a pair."""
    num_bins = sum(config.num_bins)
    shared = set.intersection(*(set(recording.behavior) for recording in recordings))
    behavior = {}
    for name in sorted(shared):
        series = [recording.behavior[name] for recording in recordings]
        if len({(tuple(one.dimension_names), one.unit) for one in series}) > 1:
            continue
        width = len(series[0].dimension_names)
        values = np.full((len(pairs), num_bins, width), np.nan)
        for number, pair in enumerate(pairs):
            total, count = np.zeros((num_bins, width)), np.zeros((num_bins, width))
            for one, piece in zip(series, pair.pieces, strict=True):
                if piece is not None:
                    binned = bin_behavior(one, piece.window_start, num_bins, config.bin_size)
                    binned[: piece.first_bin] = binned[piece.stop_bin :] = np.nan
                    total += np.nan_to_num(binned)
                    count += np.isfinite(binned)
            values[number] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        centres = starts[:, None] + (np.arange(num_bins) + 0.5) * config.bin_size
        behavior[name] = BehaviorSeries(
            name, centres.ravel(), values.reshape(-1, width), series[0].dimension_names, series[0].unit
        )
    return behavior


def _notes(
    recordings: Sequence[Recording],
    pairs: Sequence[_Pair],
    left_out: Sequence[Mapping[str, int]],
    config: PairingConfig,
) -> list[str]:
    notes = [
        f"paired: trials of {len(recordings)} days, by condition and inside each split, aligned on "
        f"{config.align} ({config.before:g} s before, {config.after:g} s from it on), seed {config.seed}; "
        f"{len(pairs)} pairs; behaviour is the mean over the days of a pair",
    ]
    for day, (recording, reasons) in enumerate(zip(recordings, left_out, strict=True)):
        used = sum(pair.pieces[day] is not None for pair in pairs)
        why = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items())) or "none left out"
        source = recording.source or {"file_name": "no file", "sha256": "none"}
        notes.append(
            f"paired day '{recording.session_id}' ({source['file_name']}, sha256 {source['sha256']}): {used} "
            f"trials used; {why}"
        )
    return notes
