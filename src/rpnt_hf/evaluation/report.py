"""Reports of runs: `report.json` for programs, `report.md` for people, with what is needed to run it again.

Also the facts that a model card states: data, hardware, command. They travel, so no folder of this machine is
in them. Not for pictures: those are made by `rpnt_hf.analysis.plots` and only named here.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from rpnt_hf.data.card import BUILD_FILE
from rpnt_hf.data.remote import is_url, small_file
from rpnt_hf.data.rows import scored_bins
from rpnt_hf.errors import InputError

__all__ = ["describe_data", "describe_hardware", "describe_run", "shared_name", "write_report"]

PACKAGES = ("rpnt_hf", "torch", "transformers", "datasets", "accelerate", "numpy", "scikit-learn", "pynwb")


def write_report(results: Mapping[str, Any], output_dir: str | Path, name: str = "report") -> dict[str, Any]:
    """Writes `NAME.json` and `NAME.md`, each whole or not at all.

    Args:
        results (`Mapping[str, Any]`):
            What was found; everything goes to the JSON file. These keys also shape the Markdown file, and
            each may be absent: `title` (`str`), `summary` (`str`, a paragraph), `table` (list of
            dictionaries, one per row, with the same keys), `tables` (heading to such a list), `figures` (list
            of file names in the folder), `seeds` (list of int).
        output_dir (`str` or `Path`): Folder for both files; made where it does not exist.
        name (`str`, *optional*, defaults to `"report"`): Name of both files.

    Returns:
        `dict[str, Any]`: The content of `report.json`: `results` and a key `run` that holds command, commit
        (None outside a git checkout) and versions. Values that are not finite became None.

    Raises:
        InputError: If a value cannot be written as JSON, or rows of the table differ in their keys.
    """
    output_dir = Path(output_dir)
    report = _plain({**results, "run": describe_run()}, "results")
    for table in _tables(report).values():
        if any(list(row) != list(table[0]) for row in table):
            keys = sorted({key for row in table for key in row})
            raise InputError(
                f"Rows of `table` must have the same keys, got {keys} in some of them only. Fill the gaps "
                "with None."
            )
    output_dir.mkdir(parents=True, exist_ok=True)
    _write(output_dir / f"{name}.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    _write(output_dir / f"{name}.md", _markdown(report))
    return report


def describe_run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Says how this process was started and with what.

    Args:
        argv (`Sequence[str]`, *optional*): Program and arguments; those of the process where absent.

    Returns:
        `dict[str, Any]`: `command` (of absolute paths only the last part), `commit` (with "+" where files
        differ from it; None outside a git checkout of the package), `python` and `versions`.
    """
    argv = list(sys.argv if argv is None else argv)
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": shlex.join(_without_folders(argument) for argument in argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
    }


def shared_name(place: str | Path) -> str:
    """Names a checkpoint or dataset without saying where it lies on this machine.

    Args:
        place (`str` or `Path`): Folder, or id on the Hub.

    Returns:
        `str`: Name of the folder, or the id as it is.

    Example:
        ```python
        >>> shared_name("/anywhere/pretrained"), shared_name("org/rpnt-neuropixel")
        ('pretrained', 'org/rpnt-neuropixel')

        ```
    """
    path = Path(place)
    return path.resolve().name if path.is_dir() or path.is_absolute() else str(place)


def describe_hardware(accelerator: Accelerator) -> dict[str, Any]:
    """Says what a run computes on.

    Args:
        accelerator (`Accelerator`): The one of the run.

    Returns:
        `dict[str, Any]`: `device` (name of the accelerator or processor), `device_type`, `num_processes`,
        `threads` (of each process, on the CPU) and `mixed_precision`.
    """
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "device": name,
        "device_type": device.type,
        "num_processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
    }


def describe_data(
    data: str, dataset_config: str | None, splits: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """Collects what a model card says about the rows of a run and the dataset that they come from.

    Args:
        data (`str`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        dataset_config (`str`, *optional*): Part of the corpus.
        splits (`Mapping[str, Sequence[Mapping]]`): Rows that the run uses, by split.

    Returns:
        `dict[str, Any]`: Plain values. What only the dataset's card or `rpnt_build.json` can say is None
        where these are missing: `corpus`, `title`, `license`, `fingerprint`, `split_options`; unknown
        subjects, tasks and dates are None too.
    """
    build_file, card = _dataset_file(data, BUILD_FILE), _dataset_file(data, "README.md")
    build = json.loads(build_file.read_text(encoding="utf-8")) if build_file else {}
    head = _yaml_head(card.read_text(encoding="utf-8")) if card else {}
    parts = [
        part
        for part in head.get("configs", [])
        if (part.get("config_name") == dataset_config if dataset_config else part.get("default"))
    ] or head.get("configs", [])
    part = parts[0] if len(parts) == 1 else {}
    described = re.search(r"content ([0-9a-f]+)", part.get("description") or "")
    on_hub = not Path(data).is_dir() and not is_url(data)
    sessions: dict[str, dict[str, Any]] = {}
    for split, rows in splits.items():
        for row in rows:
            session = sessions.setdefault(
                row["session_id"],
                {
                    "session_id": row["session_id"],
                    "subject_id": row["subject_id"],
                    "task": row["task"],
                    "recording_date": str(row["recording_date"]) if row["recording_date"] else None,
                    "site_ids": list(row["site_ids"]),
                    "num_units": len(row["unit_ids"]),
                    "trials": dict.fromkeys(splits, 0),
                    "bins": dict.fromkeys(splits, 0),
                    "scored_bins": dict.fromkeys(splits, 0),
                },
            )
            session["trials"][split] += len(row["trials"] or [])
            session["bins"][split] += row["num_bins"] - row["num_context_bins"]
            session["scored_bins"][split] += int(scored_bins(row).sum())
    streamed = [split for split, rows in splits.items() if any("place" in row for row in rows)]
    for built in build.get("sessions", []) if streamed else []:
        if built["session_id"] in sessions:
            session = sessions[built["session_id"]]
            for split in streamed:  # rows that are streamed do not say it
                session["trials"][split] += built["trials"][split]
                session["scored_bins"][split] += built["scored_bins"][split]
    facts = list(sessions.values())
    first = min((row for rows in splits.values() for row in rows), key=lambda row: "place" in row)
    return {
        "name": shared_name(data),
        "on_hub": on_hub,
        "revision": card.parent.name if card and on_hub else None,  # the cache names snapshots by commit
        "config": dataset_config or part.get("config_name"),
        "corpus": build.get("corpus"),
        "provenance": {
            name: text
            for name, text in (build.get("provenance") or {}).items()
            if name in ("identifier", "version", "name")
        },
        "title": head.get("pretty_name"),
        "license": head.get("license"),
        "tags": head.get("tags") or [],
        "fingerprint": described.group(1) if described else None,
        "split_options": build.get("options"),
        "bin_size": first["bin_size"],
        "behavior_names": list(first["behavior_names"] or []),
        "behavior_units": list(first["behavior_units"] or []),
        "subjects": sorted({fact["subject_id"] for fact in facts if fact["subject_id"] is not None}),
        "sessions": facts,
    }


def _dataset_file(data: str, name: str) -> Path | None:
    """Finds a small file of a dataset; None where it has none, or none is at hand offline."""
    path = Path(data) / name
    if is_url(data):
        return small_file(data, name)
    if not Path(data).is_dir():
        try:
            path = Path(huggingface_hub.hf_hub_download(data, name, repo_type="dataset"))
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return None
    return path if path.is_file() else None


def _yaml_head(text: str) -> dict[str, Any]:
    """Reads the YAML head of a card."""
    found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    return yaml.safe_load(found.group(1)) or {} if found else {}


def _processor_name() -> str:
    """Names the processor as the system does."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        found = re.search(r"model name\s*:\s*(.+)", described.read_text(encoding="utf-8"))
        if found:
            return " ".join(found.group(1).split())
    return platform.processor() or platform.machine()


def _without_folders(argument: str) -> str:
    """Leaves of each absolute path in an argument only its last part."""
    name, sign, value = argument.partition("=")
    if PurePath(argument).is_absolute():
        return PurePath(argument).name
    if sign and PurePath(value).is_absolute():
        return f"{name}={PurePath(value).name}"
    return re.sub(r"(?<![\w.~/:-])/(?:[^\s\"',\[\]/]+/)*(?=[^\s\"',\[\]/])", "", argument)


def _commit() -> str | None:
    """Reads the commit of the checkout that this file belongs to."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    outputs = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        outputs.append(done.stdout.strip())
    return outputs[0] + ("+" if outputs[1] else "")


def _plain(value: Any, place: str) -> Any:
    """Turns a value into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), place)
    if isinstance(value, np.generic):
        return _plain(value.item(), place)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Sequence | set):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise InputError(
        f"A report must hold numbers, strings, lists and dictionaries, got {type(value).__name__} at "
        f"`{place}`. Convert it first."
    )


def _tables(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Every table by its heading; the single one of `table` has none."""
    return {"": report.get("table", []), **report.get("tables", {})}


def _markdown(report: dict[str, Any]) -> str:
    """Writes the report for people."""
    parts = [f"# {report.get('title', 'Report')}"]
    if report.get("summary"):
        parts.append(report["summary"])
    for heading, table in _tables(report).items():
        if not table:
            continue
        if heading:
            parts.append(f"## {heading}")
        lines = [list(table[0]), ["---"] * len(table[0])]
        lines += [[_cell(value) for value in row.values()] for row in table]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in report.get("figures", [])]
    run = report["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    facts = [f"Command: `{run['command']}`", f"Commit: {run['commit'] or 'not a git checkout'}"]
    if "seeds" in report:
        facts.append(f"Seeds: {', '.join(str(seed) for seed in report['seeds'])}")
    facts.append(f"Versions: Python {run['python']}, {versions}")
    parts.append("\n".join(f"- {fact}" for fact in facts))
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    """Writes one value of the table: numbers to a thousandth, smaller ones to two digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if abs(value) < 0.001:
            return f"{value:.2g}"
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
    if isinstance(value, list):
        return " to ".join(_cell(item) for item in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def _write(path: Path, text: str) -> None:
    """Writes a file under another name and renames it when it is whole."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
