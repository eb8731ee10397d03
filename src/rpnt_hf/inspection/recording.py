"""What is in an NWB file: units, trials, behaviour, the problems found, and the build that fits it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rpnt_hf.data.cutting import PreparedRecording, scored_interval
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.data.schema import BuilderConfig, CorpusRecording
from rpnt_hf.errors import RecordingError, RPNTError

__all__ = ["describe_recording", "inspect_nwb", "inspect_recording"]

REFRACTORY = 0.001  # s; no single neuron fires twice within it
MAX_VIOLATIONS = 0.01  # share of intervals between spikes that may be shorter
MAX_RATE = 200.0  # spikes/s; above, noise or several units
MAX_SILENCE = 10.0  # s without a spike of any unit while the recording ran
BIN_SIZES = (0.05, 0.1, 0.02)  # s, in this order
MAX_DIMENSIONS = 10  # of a series that is proposed for decoding


def inspect_nwb(path: str | Path) -> tuple[Recording, dict[str, Any]]:
    """Reads an NWB file and says what is in it.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `tuple`: The [`Recording`], with spikes sorted and without duplicates where the file has others (which
        is among the problems then), and what `inspect_recording` says.

    Raises:
        RecordingError: It cannot be read at all.
    """
    try:
        recording, disorder = read_nwb(path), None
    except RecordingError as error:
        try:
            recording, disorder = read_nwb(path, repair_spikes=True), str(error)
        except RecordingError:
            raise error from None
    report = inspect_recording(recording, path)
    if disorder is not None:
        report["problems"].insert(
            0, _problem(disorder, "Build and decode with `--repair-spikes`; below, spikes are repaired.")
        )
        report["build"] = report["build"] and f"{report['build']} --repair-spikes"
    return recording, report


def inspect_recording(recording: Recording, path: str | Path = "FILE.nwb") -> dict[str, Any]:
    """Says what is in a recording and what is wrong with it.

    Args:
        recording ([`Recording`]): The recording.
        path (`str` or `Path`, *optional*, defaults to `"FILE.nwb"`): Its file, for the command.

    Returns:
        `dict`: `kind` ("recording"), `session_id`, `subject_id`, `task`, `recording_date`, `observed` (span,
        seconds, gaps), `units`, `sites`, `trials`, `behavior` and `unusable_behavior`; `problems`, each with
        `problem` and `advice`; `build`, the `rpnt build` command that takes it, or None, and `build_refused`,
        why options that come first were refused.
    """
    seconds = float(np.diff(recording.obs_intervals, axis=1).sum())
    command, refused = _find_build(recording, path)
    return {
        "kind": "recording",
        "file": Path(path).name,
        "session_id": recording.session_id,
        "subject_id": recording.subject_id,
        "task": recording.task,
        "recording_date": str(recording.recording_date) if recording.recording_date else None,
        "observed": {
            "start": float(recording.obs_intervals[0, 0]),
            "stop": float(recording.obs_intervals[-1, 1]),
            "seconds": seconds,
            "num_intervals": len(recording.obs_intervals),
        },
        "units": _describe_units(recording, seconds),
        "sites": [
            {
                "site_id": site_id,
                "num_units": int((recording.unit_sites == index).sum()),
                "position_mm": place if np.isfinite(place).any() else None,
            }
            for index, (site_id, place) in enumerate(
                zip(recording.site_ids, recording.site_positions.tolist(), strict=True)
            )
        ],
        "trials": _describe_trials(recording),
        "behavior": [_describe_series(series) for series in recording.behavior.values()],
        "unusable_behavior": dict(recording.unusable_behavior),
        "problems": _find_problems(recording, seconds, command, refused),
        "build": command,
        "build_refused": refused,
    }


def _quantiles(values: ArrayLike) -> dict[str, float] | None:
    """Minimum, quartiles and maximum."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return None
    names = ("min", "low_quarter", "median", "high_quarter", "max")
    return dict(zip(names, np.quantile(finite, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True))


def _describe_units(recording: Recording, seconds: float) -> dict[str, Any]:
    rates = np.array([len(times) for times in recording.spike_times]) / seconds
    return {
        "num_units": recording.num_units,
        "num_spikes": recording.num_spikes,
        "rates": _quantiles(rates),
        "mean_rate": float(rates.mean()),
        "silent": [name for name, rate in zip(recording.unit_ids, rates, strict=True) if rate == 0],
        "num_below_0.1": int((rates < 0.1).sum()),
    }


def _describe_trials(recording: Recording) -> dict[str, Any]:
    trials = recording.trials
    columns: dict[str, str] = {}
    for name in trials.columns:
        values = trials[name].dropna()
        if not len(values):
            columns[name] = "empty"
        elif pd.api.types.is_numeric_dtype(trials[name]):
            columns[name] = f"{values.min():.4g} to {values.max():.4g}"
        else:
            distinct = sorted({str(value) for value in values})
            shown = ", ".join(distinct[:6])
            columns[name] = shown if len(distinct) <= 6 and len(shown) <= 60 else f"{len(distinct)} values"
        if 0 < len(values) < len(trials):
            columns[name] += f" ({len(trials) - len(values)} missing)"
    lengths = trials["stop_time"].to_numpy(np.float64) - trials["start_time"].to_numpy(np.float64)
    return {"num_trials": len(trials), "seconds": _quantiles(lengths), "columns": columns}


def _describe_series(series: BehaviorSeries) -> dict[str, Any]:
    steps = np.diff(series.timestamps)
    gaps = steps[steps > 1.5 * series.sample_interval]
    finite = np.isfinite(series.values)
    ranges = [
        np.quantile(values[mask], (0.01, 0.99)).tolist() if mask.any() else None
        for values, mask in zip(series.values.T, finite.T, strict=True)
    ]
    return {
        "name": series.name,
        "unit": series.unit,
        "dimensions": series.dimension_names,
        "num_samples": len(series.timestamps),
        "rate_hz": 1 / series.sample_interval if series.sample_interval else None,
        "start": float(series.timestamps[0]),
        "stop": float(series.timestamps[-1]),
        "num_gaps": len(gaps),
        "longest_gap": float(gaps.max()) if len(gaps) else 0.0,
        "nan_share": float(1 - finite.all(axis=1).mean()),
        "middle_98_percent": ranges,
    }


def _problem(problem: str, advice: str) -> dict[str, str]:
    return {"problem": problem, "advice": advice}


def _find_problems(
    recording: Recording, seconds: float, command: str | None, refused: Sequence[str]
) -> list[dict[str, str]]:
    """Lists what is wrong, or what one should know before using it."""
    found = [*_unit_problems(recording, seconds), *_time_problems(recording), *_trial_problems(recording)]
    for name, why in recording.unusable_behavior.items():
        found.append(
            _problem(f"series '{name}' cannot be used: {why}", "Correct it in the file, or do without it.")
        )
    for series in recording.behavior.values():
        if series.sample_interval > 1.01 * BIN_SIZES[0]:
            found.append(
                _problem(
                    f"'{series.name}' has a sample every {1000 * series.sample_interval:.0f} ms",
                    "Shorter bins hold interpolated values. Use bins at least that long.",
                )
            )
        share = float(1 - np.isfinite(series.values).all(axis=1).mean())
        if share > 0.01:
            found.append(
                _problem(
                    f"{100 * share:.1f} % of the samples of '{series.name}' are NaN",
                    "Those bins are neither scored nor learned from. Fill short gaps in the file otherwise.",
                )
            )
    if command is None and refused:
        found.append(_problem(f"no build takes it: {refused[-1]}", "Do what the message says, then build."))
    return found


def _unit_problems(recording: Recording, seconds: float) -> list[dict[str, str]]:
    found = []
    rates = np.array([len(times) for times in recording.spike_times]) / seconds
    if silent := int((rates == 0).sum()):
        found.append(
            _problem(
                f"{silent} of {recording.num_units} units have no spikes",
                "They do no harm; leave them in where other sessions have the same units.",
            )
        )
    short = [
        float((np.diff(times) < REFRACTORY).mean()) if len(times) > 100 else 0.0
        for times in recording.spike_times
    ]
    if many := int((np.array(short) > MAX_VIOLATIONS).sum()):
        found.append(
            _problem(
                f"{many} of {recording.num_units} units have more than {100 * MAX_VIOLATIONS:.0f} % of their "
                f"intervals below {1000 * REFRACTORY:.0f} ms (most: {100 * max(short):.1f} %)",
                "They are several neurons or threshold crossings. Decoding works with them; do not call them "
                "single units.",
            )
        )
    if fast := int((rates > MAX_RATE).sum()):
        found.append(
            _problem(
                f"{fast} units fire more than {MAX_RATE:.0f} spikes/s on average",
                "Such rates are noise or come of a threshold too low. Leave them out of the `units` table.",
            )
        )
    trains: dict[bytes, list[str]] = {}
    for name, times in zip(recording.unit_ids, recording.spike_times, strict=True):
        if len(times):
            trains.setdefault(times.tobytes(), []).append(name)
    if doubles := [names for names in trains.values() if len(names) > 1]:
        found.append(
            _problem(
                f"{sum(len(names) - 1 for names in doubles)} units have the same spikes as another, such as "
                f"{' and '.join(doubles[0][:3])}",
                "Leave all but one of each out of the `units` table: copies inflate what seems to be known.",
            )
        )
    return found


def _time_problems(recording: Recording) -> list[dict[str, str]]:
    found = []
    spikes = np.sort(np.concatenate([*recording.spike_times, np.empty(0)]))
    starts, stops = recording.obs_intervals.T
    place = np.searchsorted(starts, spikes, side="right") - 1
    inside = (place >= 0) & (spikes < stops[np.maximum(place, 0)])
    # A spike at the very end of a span that it made itself lies outside, and is no problem.
    if (num_outside := int((~inside).sum())) > max(1, len(spikes) // 10_000):
        found.append(
            _problem(
                f"{num_outside} of {len(spikes)} spikes lie outside the observed intervals",
                "They are not used. Check `obs_intervals` and `invalid_times` if they should be.",
            )
        )
    silences = [
        np.diff(np.concatenate([[begin], spikes[(spikes >= begin) & (spikes < end)], [end]])).max()
        for begin, end in recording.obs_intervals
    ]
    if (longest := max(silences)) > MAX_SILENCE:
        found.append(
            _problem(
                f"no unit has a spike for {longest:.1f} s while the recording is said to run",
                "If it was interrupted, write `obs_intervals`; else the silence is learned as data.",
            )
        )
    return found


def _trial_problems(recording: Recording) -> list[dict[str, str]]:
    trials = recording.trials
    if not len(trials):
        return [
            _problem(
                "there are no trials",
                "A build makes blocks instead (`--block-length`, 5 s). Write a `trials` table to train and "
                "score on movement only.",
            )
        ]
    found = []
    known = trials.dropna(subset=["start_time", "stop_time"])
    if missing := len(trials) - len(known):
        found.append(_problem(f"{missing} trials have no start or stop time", "A build leaves them out."))
    others = int((trials["result"].astype(str) != "R").sum()) if "result" in trials.columns else 0
    if 0 < others < len(trials):
        found.append(
            _problem(
                f"{others} of {len(trials)} trials have a `result` other than 'R' (rewarded)",
                "`rpnt build perich_miller` leaves them out, `rpnt build nwb` does not: it takes the trials "
                "that a `--split-file` names.",
            )
        )
    scored = np.array([scored_interval(trial) for trial in known.to_dict("records")]).reshape(-1, 2)
    for series in recording.behavior.values():
        first, last = series.timestamps[[0, -1]]
        slack = 0.05 + series.sample_interval
        outside = int(((scored[:, 0] < first - slack) | (scored[:, 1] > last + slack)).sum())
        if outside:
            found.append(
                _problem(
                    f"'{series.name}' goes from {first:.1f} to {last:.1f} s, and {outside} of {len(known)} "
                    "trials lie outside",
                    "Write NaN where behaviour is absent, or leave those trials out by a `--split-file`.",
                )
            )
    return found


def _find_build(recording: Recording, path: str | Path) -> tuple[str | None, list[str]]:
    """Tries options of `rpnt build nwb` on the recording, the best first; gives the command that works."""
    refused: list[str] = []
    for options in _candidates(recording):
        for bin_size in _bin_sizes(recording, options):
            try:
                config = BuilderConfig(bin_size=bin_size, **options)
                entry = CorpusRecording(recording)
                for _ in PreparedRecording.of(entry, config, None, 0, 0).rows():
                    pass
            except RPNTError as error:
                refused.append(str(error))
            else:
                return _command(path, config), refused
    return None, refused


def _candidates(recording: Recording) -> list[dict[str, Any]]:
    """Options that could take the recording: velocity, derived velocity, another series, spikes alone."""
    names = list(recording.behavior)
    candidates: list[dict[str, Any]] = [
        {"behavior": (name,)} for name in ("cursor_vel", "hand_vel") if name in names
    ]
    candidates += [
        {"behavior": (f"{name.removesuffix('_pos')}_vel",), "derive_velocity": True}
        for name in names
        if name.endswith("_pos")
    ]
    others = sorted(names, key=lambda name: "vel" not in name.lower())
    candidates += [
        {"behavior": (name,)}
        for name in others
        if len(recording.behavior[name].dimension_names) <= MAX_DIMENSIONS and not name.endswith("_pos")
    ]
    candidates += [{"behavior": (name,)} for name in names if name.endswith("_pos")]
    return [*candidates, {"allow_no_behavior": True}]


def _bin_sizes(recording: Recording, options: Mapping[str, Any]) -> list[float]:
    """Bin sizes to try: first those for which the series has a sample in every bin."""
    names = options.get("behavior", ())
    sources = (name if name in recording.behavior else f"{name.removesuffix('_vel')}_pos" for name in names)
    slowest = max((recording.behavior[name].sample_interval for name in sources), default=0.0)
    return sorted(BIN_SIZES, key=lambda bin_size: bin_size < 0.99 * slowest)


def _command(path: str | Path, config: BuilderConfig) -> str:
    words = ["rpnt", "build", "nwb", "--nwb-dir", str(path), "--bin-size", f"{config.bin_size:g}"]
    if config.behavior:
        words += ["--behavior", *config.behavior]
    if config.derive_velocity:
        words.append("--derive-velocity")
    if config.allow_no_behavior:
        words.append("--allow-no-behavior")
    return shlex.join([*words, "--out", "dataset"])


def describe_recording(report: Mapping[str, Any]) -> str:
    """Writes a report of `inspect_recording` for people.

    Args:
        report (`Mapping`): The report.

    Returns:
        `str`: A few lines.
    """
    observed, units, trials = report["observed"], report["units"], report["trials"]
    facts = [
        report["subject_id"] and f"subject {report['subject_id']}",
        report["task"],
        report["recording_date"],
    ]
    rates = units["rates"]
    lines = [
        f"{report['file']}: recording '{report['session_id']}'",
        f"  about      {', '.join(fact for fact in facts if fact) or 'no subject, task or date'}",
        f"  observed   {observed['start']:.1f} to {observed['stop']:.1f} s, {observed['seconds']:.1f} s in "
        f"{observed['num_intervals']} interval{'s' * (observed['num_intervals'] != 1)}",
        f"  units      {units['num_units']}, {units['num_spikes']:,} spikes; median {rates['median']:.2f} "
        f"spikes/s ({rates['min']:.2f} to {rates['max']:.1f}), {len(units['silent'])} silent, "
        f"{units['num_below_0.1']} below 0.1",
    ]
    for index, site in enumerate(report["sites"]):
        place = site["position_mm"]
        where = "place unknown" if place is None else f"at ({', '.join(f'{x:.2f}' for x in place)}) mm"
        lines.append(
            f"  {'sites' if index == 0 else '':<9}  {site['site_id']}: {site['num_units']} units, {where}"
        )
    length = trials["seconds"]
    lines.append(
        "  trials     none"
        if not trials["num_trials"]
        else f"  trials     {trials['num_trials']}"
        + (
            ""
            if length is None
            else f", {length['min']:.2f} to {length['max']:.2f} s (median {length['median']:.2f})"
        )
    )
    if trials["num_trials"]:
        lines += [f"{'':13}{name}: {what}" for name, what in trials["columns"].items()]
    for index, series in enumerate(report["behavior"]):
        lines.append(f"  {'behaviour' if index == 0 else '':<9}  {_series_line(series)}")
    if not report["behavior"]:
        lines.append("  behaviour  none that can be used")
    lines += ["", "Problems found:" if report["problems"] else "No problems found."]
    lines += [f"  - {problem['problem']}. {problem['advice']}" for problem in report["problems"]]
    lines += ["", "A build that takes it:", f"  {report['build']}"] if report["build"] else []
    return "\n".join(lines)


def _series_line(series: Mapping[str, Any]) -> str:
    dimensions = [name for name in series["dimensions"] if name]
    ranges = [f"{low:.3g} to {high:.3g}" for low, high in filter(None, series["middle_98_percent"][:3])]
    gaps = (
        f"{series['num_gaps']} gaps (longest {series['longest_gap']:.2f} s)"
        if series["num_gaps"]
        else "no gaps"
    )
    shape = (
        f" {'/'.join(dimensions)}" if 0 < len(dimensions) <= 3 else f" x {len(dimensions)}" * bool(dimensions)
    )
    rate = f"{series['rate_hz']:.4g} Hz" if series["rate_hz"] else "one sample"
    return (
        f"{series['name']}{shape} ({series['unit']}): {rate}, {series['start']:.1f} to {series['stop']:.1f} "
        f"s, {gaps}, {100 * series['nan_share']:.1f} % NaN, 98 % within {'; '.join(ranges) or 'nothing'}"
    )
