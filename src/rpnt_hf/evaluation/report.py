"""Reports of runs: `report.json` for programs, `report.md` for people, with what is needed to run it again.

Not for pictures: those are made by `rpnt_hf.analysis.plots` and only named here.
"""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpnt_hf.errors import InputError

__all__ = ["describe_run", "write_report"]

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


def describe_run() -> dict[str, Any]:
    """Says how this process was started and with what.

    Returns:
        `dict[str, Any]`: `command` (without the folder of the program), `commit` (with "+" where files differ
        from it; None outside a git checkout of the package), `python` and `versions`.
    """
    program = Path(sys.argv[0]).name
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
    }


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
    """Writes one value of the table; numbers with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"
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
