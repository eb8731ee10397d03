"""What is in a built dataset: sessions, splits, rows, bins, units, spikes, targets and sites."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_counts, row_observed, scored_bins
from rpnt_hf.data.splits import SPLITS
from rpnt_hf.errors import DatasetError
from rpnt_hf.progress import progress_bar

__all__ = ["describe_dataset", "inspect_dataset"]


def inspect_dataset(data: str | Path, dataset_config: str | None = None) -> dict[str, Any]:
    """Says what is in a built dataset.

    Args:
        data (`str` or `Path`): Folder that `rpnt build` wrote, or the name of a dataset on the Hub.
        dataset_config (`str`, *optional*): Part of the corpus; all of them where left out.

    Returns:
        `dict`: `kind` ("dataset"), `name`, `license`, `title`, `bin_size` (s), `configs`, `splits` (rows,
        minutes, bins, scored bins and trials of each), `sessions`, each with `minutes` by split, `rates` of
        its units (spikes/s, over observed bins of all splits), sites and targets; `problems` with advice.

    Raises:
        DatasetError: It cannot be loaded, or is no built dataset.
    """
    configs = [dataset_config] if dataset_config is not None else _configs(data)
    splits: dict[str, dict[str, float]] = {}
    sessions: dict[tuple[str | None, str], dict[str, Any]] = {}
    for config in configs:
        for split in SPLITS:
            dataset = load_rows(data, config, split)
            for row in progress_bar(view_rows(dataset), desc=split, unit="row"):
                _add_row(splits.setdefault(split, {}), sessions, config, split, row)
    for session in sessions.values():
        seconds = session.pop("seconds")
        session["rates"] = (session.pop("spikes") / max(seconds, 1e-12)).tolist()
    card = _card(data)
    sizes = sorted({session["bin_size"] for session in sessions.values()})
    return {
        "kind": "dataset",
        "name": str(data),
        "title": card.get("pretty_name"),
        "license": card.get("license"),
        "bin_size": sizes[0] if len(sizes) == 1 else sizes,
        "configs": configs,
        "splits": splits,
        "sessions": list(sessions.values()),
        "problems": _find_problems(card, splits, list(sessions.values())),
    }


def _configs(data: str | Path) -> list[str | None]:
    try:
        return list(datasets.get_dataset_config_names(str(data)))
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise DatasetError(
            f"A dataset must be a folder that `rpnt build` wrote, or one on the Hub (owner/name), got "
            f"'{data}', which cannot be loaded: {error}. Check the name."
        ) from error


def _card(data: str | Path) -> dict[str, Any]:
    """The head of the card, where the dataset is a folder; of one on the Hub, what the client says."""
    path = Path(data) / "README.md"
    if not path.is_file():
        info = datasets.load_dataset_builder(str(data)).info
        return {"license": info.license or None}
    parts = path.read_text(encoding="utf-8").split("---", 2)
    return dict(yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0].strip() else {}


def _add_row(
    totals: dict[str, float],
    sessions: dict[tuple[str | None, str], dict[str, Any]],
    config: str | None,
    split: str,
    row: Mapping[str, Any],
) -> None:
    """Adds one row to the sums of its split and its session."""
    observed = row_observed(row)
    trials = sum(1 for trial in row["trials"] or [] if trial["stop_bin"] > row["num_context_bins"])
    minutes = row["num_bins"] * row["bin_size"] / 60
    numbers = {
        "rows": 1, "minutes": minutes, "bins": row["num_bins"], "scored_bins": int(scored_bins(row).sum()),
        "trials": trials,
    }  # fmt: skip
    for name, number in numbers.items():
        totals[name] = totals.get(name, 0) + number
    session = sessions.setdefault(
        (config, row["session_id"]),
        {
            "session_id": row["session_id"],
            "config": config,
            "subject_id": row["subject_id"],
            "task": row["task"],
            "recording_date": str(row["recording_date"]) if row["recording_date"] else None,
            "bin_size": row["bin_size"],
            "num_units": len(row["unit_ids"]),
            "num_spikes": 0,
            "sites": list(row["site_ids"]),
            "targets": list(row["behavior_names"] or []),
            "target_units": list(row["behavior_units"] or []),
            "minutes": dict.fromkeys(SPLITS, 0.0),
            "scored_bins": dict.fromkeys(SPLITS, 0),
            "trials": dict.fromkeys(SPLITS, 0),
            "seconds": 0.0,
            "spikes": np.zeros(len(row["unit_ids"])),
        },
    )
    fresh = observed.copy()
    fresh[: row["num_context_bins"]] = False  # the context of a row is in another row too
    spikes = row_counts(row)[fresh].sum(axis=0, dtype=np.float64)
    session["spikes"] += spikes
    session["seconds"] += float(fresh.sum()) * row["bin_size"]
    session["num_spikes"] += int(spikes.sum())
    session["minutes"][split] += minutes
    session["scored_bins"][split] += numbers["scored_bins"]
    session["trials"][split] += trials


def _find_problems(
    card: Mapping[str, Any], splits: Mapping[str, Any], sessions: list[dict[str, Any]]
) -> list[dict[str, str]]:
    found = []
    if not card.get("license"):
        advice = "Build with `--license ID`, or write it into README.md, before sharing it."
        found.append({"problem": "the card states no licence", "advice": advice})
    for session in sessions:
        name = session["session_id"]
        if session["targets"] and not session["scored_bins"]["test"]:
            advice = "It can be trained on, not evaluated. Build with other `--proportions` or `--seed`."
            found.append({"problem": f"session '{name}' has no scored test bins", "advice": advice})
    silent = sum(int((np.asarray(session["rates"]) == 0).sum()) for session in sessions)
    if silent:
        advice = "They do no harm, and stand where other files of a session have the same units."
        found.append({"problem": f"{silent} units have no spikes in any row", "advice": advice})
    if not any(session["targets"] for session in sessions):
        advice = "Pretraining works; a decoder needs behaviour. Name the series as `--behavior`."
        found.append({"problem": "no session has behaviour to decode", "advice": advice})
    names = {tuple(session["targets"]) for session in sessions if session["targets"]}
    if len(names) > 1:
        advice = "Sessions that are decoded together must have the same; choose `--sessions`."
        found.append({"problem": f"sessions have different targets: {sorted(names)}", "advice": advice})
    return found


def describe_dataset(report: Mapping[str, Any]) -> str:
    """Writes a report of `inspect_dataset` for people.

    Args:
        report (`Mapping`): The report.

    Returns:
        `str`: A few lines.
    """
    sessions = report["sessions"]
    units = sum(session["num_units"] for session in sessions)
    spikes = sum(session["num_spikes"] for session in sessions)
    subjects = sorted({session["subject_id"] or "unknown" for session in sessions})
    targets = sorted(
        {
            f"{name} ({unit})"
            for session in sessions
            for name, unit in zip(session["targets"], session["target_units"], strict=True)
        }
    )
    sites = sorted({site for session in sessions for site in session["sites"]})
    lines = [
        f"{report['name']}: dataset{' (' + report['title'] + ')' if report['title'] else ''}",
        f"  licence    {report['license'] or 'not stated'}",
        f"  bins       {report['bin_size']} s",
        f"  sessions   {len(sessions)} of {len(subjects)} subjects ({', '.join(subjects)}), in "
        f"{', '.join(str(config) for config in report['configs'])}",
        f"  units      {units:,}, {spikes:,} spikes in all rows",
        f"  sites      {', '.join(sites)}",
        f"  targets    {', '.join(targets) or 'none'}",
    ]
    for split, sums in report["splits"].items():
        lines.append(
            f"  {split:<10} {sums['rows']} rows, {sums['minutes']:.1f} min, {sums['bins']:,} bins, "
            f"{sums['scored_bins']:,} scored, {sums['trials']} trials"
        )
    width = max(len(session["session_id"]) for session in sessions)
    lines += ["", f"  {'session':<{width}}  units  rate (1/s)  train  validation  test (trials)"]
    for session in sessions:
        rate = float(np.median(session["rates"])) if session["rates"] else float("nan")
        trials = session["trials"]
        lines.append(
            f"  {session['session_id']:<{width}}  {session['num_units']:>5}  {rate:>10.2f}  "
            f"{trials['train']:>5}  {trials['validation']:>10}  {trials['test']:>4}"
        )
    lines += ["", "Problems found:" if report["problems"] else "No problems found."]
    lines += [f"  - {problem['problem']}. {problem['advice']}" for problem in report["problems"]]
    lines += ["", "Train on it:", f"  accelerate launch training/finetune.py --config training/configs/"
              f"tiny_finetune.yaml --data {report['name']} --output_dir decoder"]  # fmt: skip
    return "\n".join(lines)
