"""The dataset card of a built dataset, and `rpnt_build.json` beside it.

For what was built, how, and what was left out. Not for the words about a corpus: those are the template of
its builder.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rpnt_hf.data.schema import BuilderConfig
from rpnt_hf.data.splits import SPLITS
from rpnt_hf.errors import DatasetError

BUILD_FILE = "rpnt_build.json"
PLACEHOLDER = "{{ build }}"
REPO_PLACEHOLDER = "OWNER/NAME"  # replaced in a card by the name of its repository when it is pushed
DANDISET_FILE = "dandiset.yaml"  # which the client of DANDI writes into the folder that it downloads to

MAX_LISTED = 500  # recordings in the tables of a card

# Upper limits of the Hub's categories of size, in rows.
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (math.inf, "n>1M"))

# Says how to use a dataset without this package; users copy it, so it is plain numpy, and a test runs it.
USAGE = """\
```python
import numpy as np
from datasets import load_dataset

def to_arrays(row):
    \"\"\"Counts (bins, units) uint8, observed (bins,) bool, behavior (bins, targets) float32.\"\"\"
    num_bins, num_units, num_targets = row["num_bins"], len(row["unit_ids"]), len(row["behavior_names"])
    counts = np.frombuffer(row["counts"], np.uint8).reshape(num_bins, num_units)
    observed = np.frombuffer(row["observed"], np.uint8).astype(bool)
    behavior = np.frombuffer(row["behavior"], np.float32).reshape(num_bins, num_targets)
    return counts, observed, behavior

rows = load_dataset("{repo_id}", "{config}", split="{split}")
counts, observed, behavior = to_arrays(rows[0])
```

`streaming=True` reads rows as they are asked for (`next(iter(rows))`). The first `num_context_bins` bins of a
row are there to be looked at: they are neither scored nor learned from. With `rpnt_hf` installed,
`rpnt_hf.data.rows.row_to_arrays` does the same."""
DEFAULT_TEMPLATE = f"# Recordings built with rpnt_hf\n\n{PLACEHOLDER}\n"


def describe_options(config: BuilderConfig) -> dict[str, Any]:
    """Says how a dataset is built, in plain values; a split file by its name and content.

    Args:
        config (`BuilderConfig`): Options of the build.

    Returns:
        `dict[str, Any]`: Name to value.
    """
    options = dataclasses.asdict(config)
    if config.split_file is not None:
        content = Path(config.split_file).read_bytes()
        options["split_file"] = {
            "file_name": Path(config.split_file).name,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    return options


def _fingerprint(shards: Sequence[Mapping[str, Any]], config_name: str) -> str:
    """Hash of the content of the Parquet files of a configuration."""
    digests = [shard["sha256"] for shard in shards if shard["name"].startswith(f"{config_name}/")]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def read_dandiset(source_dir: Path) -> dict[str, str]:
    """Reads where recordings come from, if they were downloaded from the DANDI archive.

    Args:
        source_dir (`Path`): Folder of the recordings, one of its subfolders, or one recording.

    Returns:
        `dict[str, str]`: Those of `identifier`, `version`, `name`, `license` and `citation` that
        `dandiset.yaml` states; empty where there is no such file.

    Raises:
        DatasetError: The file is not YAML.
    """
    for folder in (source_dir, *source_dir.resolve().parents[:2]):
        path = folder / DANDISET_FILE
        if path.is_file():
            break
    else:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DatasetError(
            f"`{DANDISET_FILE}` must be YAML, but '{path}' is not. Download it again or remove it. ({error})"
        ) from error
    content = content if isinstance(content, dict) else {}
    licences = content.get("license") or []
    content["license"] = (licences if isinstance(licences, str) else ", ".join(licences)).removeprefix(
        "spdx:"
    )
    names = ("identifier", "version", "name", "license", "citation")
    return {name: str(content[name]) for name in names if content.get(name)}


def write_card(
    folder: Path,
    sessions: list[dict[str, Any]],
    shards: list[dict[str, Any]],
    options: Mapping[str, Any],
    config: BuilderConfig,
    corpus: str,
    template: Path | None,
    provenance: Mapping[str, str],
) -> None:
    """Writes `README.md`, whose YAML head makes the folder loadable, and `rpnt_build.json`.

    Args:
        folder (`Path`): The dataset, with its Parquet files.
        sessions (`list[dict[str, Any]]`): Summary of every recording.
        shards (`list[dict[str, Any]]`): Its Parquet files, as `shards.describe_shards` gives them.
        options (`Mapping[str, Any]`): What `describe_options` gave, and what the corpus adds.
        config (`BuilderConfig`): Options of the build.
        corpus (`str`): Name of the corpus.
        template (`Path` or `None`): Markdown with a YAML head, in which `{{ build }}` is replaced.
        provenance (`Mapping[str, str]`): What `read_dandiset` gave.

    Raises:
        DatasetError: If the template lacks the placeholder.
    """
    build = {"corpus": corpus, "provenance": dict(provenance), "options": options}
    # One line for each session and file: lists of thousands of units stay readable and short.
    listed = {
        name: "[\n  " + ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in entries) + "\n ]"
        for name, entries in (("sessions", sessions), ("shards", shards))
    }
    head_text = json.dumps(build, indent=1, ensure_ascii=False).removesuffix("\n}")
    tail_text = "".join(f',\n "{name}": {entries}' for name, entries in listed.items())
    (folder / BUILD_FILE).write_text(f"{head_text}{tail_text}\n}}\n", encoding="utf-8")

    text = DEFAULT_TEMPLATE if template is None else template.read_text(encoding="utf-8")
    head: dict[str, Any] = {}
    if text.startswith("---\n"):
        yaml_text, text = text.removeprefix("---\n").split("\n---\n", 1)
        head = yaml.safe_load(yaml_text)
    if PLACEHOLDER not in text:
        raise DatasetError(f"`card_template` must contain `{PLACEHOLDER}`, got none in '{template}'. Add it.")
    licence = config.license or provenance.get("license", "").lower() or head.get("license")
    if licence:
        head["license"] = licence
    num_rows = sum(sum(session["rows"].values()) for session in sessions)
    head["size_categories"] = [next(name for limit, name in SIZES if num_rows < limit)]
    names = list(dict.fromkeys(session["config"] for session in sessions))
    head["configs"] = [
        {
            "config_name": name,
            # `datasets` keys its cache by the names of folder and configuration and by this text, not by the
            # files: without it a folder that was built again would be read as it was before.
            "description": f"content {_fingerprint(shards, name)}",
            "data_files": [
                {"split": split, "path": f"{name}/{split}-*.parquet"}
                for split in SPLITS
                if any((folder / name).glob(f"{split}-*.parquet"))
            ],
        }
        for name in names
    ]
    if len(names) > 1:
        head["configs"][0]["default"] = True
    yaml_text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    first = head["configs"][0]
    usage = USAGE.format(
        repo_id=REPO_PLACEHOLDER, config=first["config_name"], split=first["data_files"][0]["split"]
    )
    facts = _facts(shards, sessions, config, licence, provenance)
    body = text.replace(PLACEHOLDER, "\n\n".join([facts, "## Use", usage, _tables(sessions, options)]))
    (folder / "README.md").write_text(f"---\n{yaml_text}---\n{body}", encoding="utf-8")


def _facts(
    shards: list[dict[str, Any]],
    sessions: list[dict[str, Any]],
    config: BuilderConfig,
    licence: str | None,
    provenance: Mapping[str, str],
) -> str:
    num_bins = sum(sum(session["bins"].values()) for session in sessions)
    targets = {
        f"{name} ({unit})"
        for session in sessions
        for name, unit in zip(session["behavior_names"], session["behavior_units"], strict=True)
    }
    num_bytes = sum(shard["bytes"] for shard in shards)
    unit = "blocks" if all(session["trials_are_blocks"] for session in sessions) else "trials"
    if config.split_file is None:
        parts = " : ".join(f"{part:g}" for part in config.proportions)
        rule = f"{unit} drawn at random by session and condition, {parts}, seed {config.seed}"
    else:
        rule = f"fixed, read from '{Path(config.split_file).name}'"
    source = " ".join(provenance[name] for name in ("identifier", "version", "name") if name in provenance)
    facts = {
        "source": source or "files named below",
        "cite": provenance.get("citation"),
        "licence": licence or "not stated",
        "subjects": ", ".join(sorted({session["subject_id"] or "unknown" for session in sessions})),
        "sessions": len({session["session_id"] for session in sessions}),
        "units": sum({session["session_id"]: session["num_units"] for session in sessions}.values()),
        "recorded": f"{num_bins * config.bin_size / 3600:.2f} h in {num_bins} bins of {config.bin_size:g} s",
        "spikes": sum(session["num_spikes"] for session in sessions),
        "behaviour": ", ".join(sorted(targets)) or "none",
        "split": f"{rule}; no bin of a test or validation trial is in a training row",
        "size": f"{num_bytes / 1e6:.2f} MB of Parquet",
        "built with": f"rpnt_hf {importlib.metadata.version('rpnt_hf')}",
    }
    return _table(["fact", "value"], ([name, value] for name, value in facts.items() if value is not None))


def _tables(sessions: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    num_sessions, sessions = len(sessions), sessions[:MAX_LISTED]
    rest = f"The first {len(sessions)} of {num_sessions} recordings are listed here, all in `{BUILD_FILE}`."
    sections = [
        *([rest] if len(sessions) < num_sessions else []),
        "## Sessions",
        _table(
            [
                "config",
                "session",
                "subject",
                "task",
                "date",
                "units (silent)",
                "sites",
                "spikes",
                "of the file's",
                "targets",
            ],
            (
                [
                    session["config"],
                    session["session_id"],
                    session["subject_id"] or "unknown",
                    session["task"] or "unknown",
                    session["recording_date"] or "unknown",
                    f"{session['num_units']} ({session['num_silent_units']})",
                    ", ".join(session["site_ids"]),
                    session["num_spikes"],
                    session["num_spikes_in_file"],
                    ", ".join(session["behavior_names"]) or "none",
                ]
                for session in sessions
            ),
        ),
        "Spikes of the file that are not counted lie outside the whole bins of its observed intervals.",
        "## Sources",
        _table(
            ["session", "file", "sha256"],
            (
                [
                    session["session_id"],
                    session["source"]["file_name"] or "given as arrays",
                    session["source"]["sha256"] or "",
                ]
                for session in sessions
            ),
        ),
        "## Splits",
        _table(
            ["session", "split", "trials", "rows", "bins", "scored bins"],
            (
                [
                    session["session_id"],
                    split,
                    f"{session['trials'][split]} {'blocks' if session['trials_are_blocks'] else 'trials'}",
                    *(session[name][split] for name in ("rows", "bins", "scored_bins")),
                ]
                for session in sessions
                for split in SPLITS
            ),
        ),
        "## Exclusions",
        _exclusions(sessions),
        "## Options of the build",
        _table(
            ["option", "value"], ([f"`{name}`", f"`{json.dumps(value)}`"] for name, value in options.items())
        ),
    ]
    return "\n\n".join(sections)


def _exclusions(sessions: list[dict[str, Any]]) -> str:
    lines = [
        f"- {session['session_id']}: {len(indices)} trials {reason}" + f" ({', '.join(map(str, indices))})"
        for session in sessions
        for reason, indices in session["excluded_trials"].items()
    ]
    lines += [f"- {session['session_id']}: {note}" for session in sessions for note in session["notes"]]
    return "\n".join(lines) or "Nothing was excluded."


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
