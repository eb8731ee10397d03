"""Compares the finished runs of an evaluation and writes `results.json`, `results.md` and the pictures.

Within a session decoders meet the same resampled test trials; across sessions the session is the unit
(`statistics.py`). A run that failed is a row, never left out in silence.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.analysis.plots import (
    plot_amounts,
    plot_calibration,
    plot_sessions,
    plot_trajectories,
    save_figure,
)
from rpnt_hf.errors import DatasetError
from rpnt_hf.evaluation.protocols import MODES, WHOLE, Run
from rpnt_hf.evaluation.report import write_report
from rpnt_hf.evaluation.runner import read_predictions, run_folder
from rpnt_hf.evaluation.statistics import (
    ScoredTrial,
    TrialSums,
    compare_decoders,
    compare_sessions,
    r2_intervals,
)
from rpnt_hf.metrics import R2_CONVENTIONS

__all__ = ["summarize"]

Group = tuple[str, str]  # session and amount
COVERED = (0.5, 0.8, 0.95)  # central intervals whose coverage is reported


def summarize(
    out: Path,
    protocol: str,
    runs: Sequence[Run],
    facts: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
    bin_size: float,
) -> dict[str, Any]:
    """Scores, compares, draws and writes.

    Args:
        out (`Path`): Folder of the evaluation.
        protocol (`str`): Its name.
        runs (`Sequence[Run]`): The plan.
        facts (`Sequence[Mapping]`): What `execute_runs` gave for each run.
        left_out (`Mapping[str, str]`): Sessions that are not decoded, with the reason.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `dict[str, Any]`: The content of `results.json`.

    Raises:
        DatasetError: Every run failed.
    """
    done: dict[Group, dict[str, list[tuple[Run, Mapping[str, Any], dict[str, NDArray[Any]]]]]] = {}
    failed = []
    for run, fact in zip(runs, facts, strict=True):
        if "error" in fact:
            failed.append({name: fact[name] for name in ("session_id", "amount", "name", "seed", "error")})
            continue
        group = done.setdefault((run.session_id, run.amount.name), {})
        group.setdefault(run.name, []).append((run, fact, read_predictions(run_folder(out, run))))
    if not done:
        reasons = "; ".join(sorted({row["error"] for row in failed}))
        raise DatasetError(f"At least one run must succeed, got {len(failed)} that failed: {reasons}")

    sums = {
        group: {name: [_sums(run, values) for run, _, values in found] for name, found in by_name.items()}
        for group, by_name in done.items()
    }
    scores = [
        _score_row(group, name, done[group][name], sums[group][name])
        for group in done
        for name in done[group]
    ]
    comparisons = [row for group in done for row in _compare_within(group, protocol, sums[group])]
    across = _compare_across(protocol, scores)
    figures = _draw(out, protocol, done, scores, bin_size)
    tables = {"Scores on test trials": [_shown(row) for row in scores]}
    if uncertain := [_shown_uncertainty(row) for row in scores if "nll" in row]:
        tables["Uncertainty on test trials"] = uncertain
    if comparisons:
        tables["Compared within a session, on the same resampled test trials"] = [
            {key: value for key, value in row.items() if key != "convention"}
            for row in comparisons
            if row["convention"] == "r2"
        ]
    if across:
        tables["Compared across sessions"] = across
    if failed:
        tables["Runs that failed"] = failed
    if left_out:
        tables["Sessions left out"] = [
            {"session": name, "reason": reason} for name, reason in left_out.items()
        ]
    results = {
        "title": f"Evaluation: {protocol}",
        "summary": _summary(facts, failed),
        "protocol": protocol,
        "scores": scores,
        "comparisons": comparisons,
        "across_sessions": across,
        "failed": failed,
        "left_out": dict(left_out),
        "runs": list(facts),
        "tables": tables,
        "figures": figures,
        "seeds": sorted({run.seed for run in runs}),
    }
    return write_report(results, out, name="results")


def _summary(facts: Sequence[Mapping[str, Any]], failed: Sequence[Any]) -> str:
    seconds = sum(fact["seconds"] for fact in facts)
    return (
        f"{len(facts) - len(failed)} of {len(facts)} runs finished, {seconds / 60:.0f} minutes of training "
        "and decoding in all. R2 is the mean over the decoded dimensions on all scored bins of the test "
        "trials, averaged over seeds; its interval is the 95 % percentile interval of 1,000 resamples of the "
        "test trials. A decoder is ahead where the 95 % interval of the difference lies above 0."
    )


def _trials(run: Run, values: Mapping[str, NDArray[Any]]) -> list[ScoredTrial]:
    """Cuts the predictions of a run into its test trials."""
    cuts = np.flatnonzero(np.diff(values["trials"])) + 1
    columns = [np.split(values[name], cuts) for name in ("targets", "predictions", "reach")]
    return [ScoredTrial(run.session_id, *parts) for parts in zip(*columns, strict=True)]


def _sums(run: Run, values: Mapping[str, NDArray[Any]]) -> TrialSums:
    return TrialSums.of(_trials(run, values))


def _mean_over_seeds(parts: Sequence[TrialSums]) -> TrialSums:
    """R2 is linear in the squared errors, so their mean gives the mean R2 of every resample."""
    sums = parts[0].sums.copy()
    sums[..., 3] = np.mean([part.sums[..., 3] for part in parts], axis=0)
    return TrialSums(sums, parts[0].sessions)


def _score_row(group: Group, name: str, found: Sequence[Any], sums: Sequence[TrialSums]) -> dict[str, Any]:
    per_seed = [compare_decoders([part], [part]) for part in sums]
    intervals = r2_intervals(_mean_over_seeds(sums))
    facts = [fact for _, fact, _ in found]
    row: dict[str, Any] = {"session": group[0], "amount": group[1], "decoder": name}
    row["trials"] = facts[0]["num_trials"]
    for convention in R2_CONVENTIONS:
        found_here = [seed[convention] for seed in per_seed]
        values = [None if one is None else one.first for one in found_here]
        known = [value for value in values if value is not None]
        row[convention] = float(np.mean(known)) if len(known) == len(values) else None
        row[f"{convention}_interval"] = intervals[convention]
        row[f"{convention}_seeds"] = values
    row["parameters"] = facts[0].get("parameters")
    row["seconds"] = float(np.mean([fact["seconds"] for fact in facts]))
    row |= _uncertainty([values for _, _, values in found])
    return row


def _uncertainty(runs: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
    """Negative log-likelihood and coverage of decoders that say how sure they are; else nothing."""
    if not all("log_variances" in values for values in runs):
        return {}
    from rpnt_hf.evaluation.calibration import coverage, negative_log_likelihood

    decoded = [(v["targets"], v["predictions"], v["log_variances"]) for v in runs]
    shapes = [_shape(v) for v in runs]
    inside = [coverage(*one, COVERED, dof) for one, dof in zip(decoded, shapes, strict=True)]
    nll = [negative_log_likelihood(*one, dof) for one, dof in zip(decoded, shapes, strict=True)]
    means = {_covered(level): float(np.mean([row[level] for row in inside])) for level in COVERED}
    return {"nll": float(np.mean(nll)), **means}


def _covered(level: float) -> str:
    return f"coverage_{round(100 * level)}"


def _shown_uncertainty(row: Mapping[str, Any]) -> dict[str, Any]:
    """How sure a decoder was, for people: calibrated on validation, counted on test bins."""
    inside = {f"bins within {100 * level:.0f} %": f"{100 * row[_covered(level)]:.1f} %" for level in COVERED}
    shown = {"session": row["session"], "trained on": f"{row['trials']} trials ({row['amount']})"}
    return {**shown, "decoder": row["decoder"], **inside, "negative log-likelihood, nats": row["nll"]}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that people read."""
    seeds = row["r2_seeds"]
    shown = {
        "session": row["session"],
        "trained on": f"{row['trials']} trials ({row['amount']})",
        "decoder": row["decoder"],
        "R2": row["r2"],
        "95 %": _interval(row["r2_interval"]),
        "seeds": ", ".join("-" if value is None else f"{value:.3f}" for value in seeds),
        "variance-weighted": row["r2_variance_weighted"],
        "reach period": row["r2_reach"],
        "reach, variance-weighted": row["r2_variance_weighted_reach"],
        "parameters": row["parameters"],
        "seconds": row["seconds"],
    }
    return shown


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _pairs(protocol: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which decoders are compared: ours with every other; in an ablation the whole with each arm."""
    if protocol == "ablation":
        return [(WHOLE, name) for name in names if name != WHOLE and WHOLE in names]
    ours = [name for name in MODES if name in names]
    earlier = {name: set(ours[:place]) for place, name in enumerate(ours)}
    return [(one, two) for one in ours for two in names if two not in ours or two in earlier[one]]


def _compare_within(
    group: Group, protocol: str, sums: Mapping[str, Sequence[TrialSums]]
) -> list[dict[str, Any]]:
    rows = []
    for first, second in _pairs(protocol, list(sums)):
        found = compare_decoders(sums[first], sums[second])
        for convention, comparison in found.items():
            if comparison is None:
                continue
            rows.append(
                {
                    "session": group[0],
                    "amount": group[1],
                    "decoder": first,
                    "against": second,
                    "convention": convention,
                    "difference": comparison.difference,
                    "interval": None if comparison.interval is None else list(comparison.interval),
                    "verdict": comparison.verdict,
                }
            )
    return rows


def _compare_across(protocol: str, scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares over sessions, for every amount that at least two sessions have."""
    rows = []
    for amount in dict.fromkeys(row["amount"] for row in scores):
        by_name: dict[str, dict[str, list[float]]] = {}
        for row in scores:
            if row["amount"] == amount and None not in row["r2_seeds"]:
                by_name.setdefault(row["decoder"], {})[row["session"]] = row["r2_seeds"]
        for first, second in _pairs(protocol, list(by_name)):
            shared = by_name[first].keys() & by_name[second].keys()
            if len(shared) < 2:
                continue
            one, two = ({name: by_name[side][name] for name in shared} for side in (first, second))
            found = compare_sessions(one, two)
            rows.append(
                {
                    "amount": amount,
                    "decoder": first,
                    "against": second,
                    "sessions": found.num_sessions,
                    "difference": found.difference,
                    "interval": list(found.interval),
                    "p (paired t)": found.p_t_test,
                    "p (Wilcoxon)": found.p_wilcoxon,
                    "verdict": found.verdict,
                }
            )
    return rows


def _draw(
    out: Path, protocol: str, done: Mapping[Group, Any], scores: Sequence[Mapping[str, Any]], bin_size: float
) -> list[str]:
    """Draws the pictures of a protocol and lists their names."""
    figures = {}
    sessions = list(dict.fromkeys(session for session, _ in done))
    if len({row["amount"] for row in scores}) > 1:
        for session in sessions:
            curves: dict[str, list[tuple[float, float, float, float]]] = {}
            for row in scores:
                if row["session"] == session and row["r2"] is not None:
                    low, high = row["r2_interval"] or (np.nan, np.nan)
                    curves.setdefault(row["decoder"], []).append((row["trials"], row["r2"], low, high))
            figures[f"amounts_{_file_name(session)}.png"] = plot_amounts(curves, session)
    largest = {session: max(r["trials"] for r in scores if r["session"] == session) for session in sessions}
    whole = [row for row in scores if row["trials"] == largest[row["session"]] and row["r2"] is not None]
    paired: dict[str, dict[str, float]] = {}
    for row in whole:
        paired.setdefault(row["decoder"], {})[row["session"]] = row["r2"]
    if paired:
        figures["sessions.png"] = plot_sessions(paired, f"{protocol}, all training trials")
    for (session, amount), by_name in done.items():
        if not any(row["session"] == session and row["amount"] == amount for row in whole):
            continue
        uncertain = {name: runs[0][2] for name, runs in by_name.items() if "log_variances" in runs[0][2]}
        if uncertain:
            figures[f"calibration_{_file_name(session)}.png"] = plot_calibration(_calibration(uncertain))
        shown = _best_of_each(by_name)
        _, _, values = next(iter(shown.values()))
        cuts = np.flatnonzero(np.diff(values["trials"])) + 1
        directions = [float(part[0]) for part in np.split(values["directions"], cuts)]
        if values["targets"].shape[1] != 2 or not np.isfinite(directions).any():
            continue
        truth = np.split(values["targets"], cuts)
        decoded = {name: np.split(found[2]["predictions"], cuts) for name, found in shown.items()}
        r2 = {
            row["decoder"]: row["r2"]
            for row in whole
            if row["session"] == session and row["decoder"] in shown
        }
        figures[f"trajectories_{_file_name(session)}.png"] = plot_trajectories(
            truth, decoded, directions, bin_size, r2
        )
    return [save_figure(figure, out / name).name for name, figure in figures.items()]


def _best_of_each(by_name: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The first seed of our first decoder and of at most two others, for pictures of trajectories."""
    ours = [name for name in by_name if name in MODES or name == "all"][:1]
    others = [name for name in ("lstm", "ridge") if name in by_name]
    names = [*ours, *others] or list(by_name)[:3]
    return {name: by_name[name][0] for name in names}


def _shape(run: Mapping[str, NDArray[Any]]) -> list[float] | None:
    """Degrees of freedom of the decoded distributions, where they were calibrated."""
    return run["variance_dof"].tolist() if "variance_dof" in run else None


def _calibration(decoders: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, list[tuple[float, float]]]:
    from rpnt_hf.evaluation.calibration import coverage

    levels = tuple(np.round(np.arange(0.05, 1.0, 0.05), 2).tolist())
    return {
        name: list(coverage(v["targets"], v["predictions"], v["log_variances"], levels, _shape(v)).items())
        for name, v in decoders.items()
    }


def _file_name(session: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in session)


def read_results(out: Path) -> dict[str, Any]:
    """Reads the results of an evaluation.

    Args:
        out (`Path`): Its folder.

    Returns:
        `dict[str, Any]`: The content of `results.json`.
    """
    return dict(json.loads((out / "results.json").read_text(encoding="utf-8")))
