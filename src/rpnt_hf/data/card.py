"""The dataset card of a built dataset, and `rpnt_build.json` beside it.

For what was built, how, and what was left out. Not for the words about a corpus: those are the template of
its builder.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rpnt_hf.data.schema import BuilderConfig
from rpnt_hf.data.splits import SPLITS
from rpnt_hf.errors import DatasetError

BUILD_FILE = "rpnt_build.json"
PLACEHOLDER = "{{ build }}"
REPO_PLACEHOLDER = "OWNER/NAME"  # replaced in a card by the name of its repository when it is pushed
DEFAULT_TEMPLATE = f"# Recordings built with rpnt_hf\n\n{PLACEHOLDER}\n"


def _fingerprint(folder: Path) -> str:
    """Hash of the content of the Parquet files of a configuration."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.parquet")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def write_card(
    folder: Path, sessions: list[dict[str, Any]], config: BuilderConfig, corpus: str, template: Path | None
) -> None:
    """Writes `README.md`, whose YAML head makes the folder loadable, and `rpnt_build.json`.

    Args:
        folder (`Path`): The dataset, with its Parquet files.
        sessions (`list[dict[str, Any]]`): Summary of every recording.
        config (`BuilderConfig`): Options of the build.
        corpus (`str`): Name of the corpus.
        template (`Path` or `None`): Markdown with a YAML head, in which `{{ build }}` is replaced.

    Raises:
        DatasetError: If the template lacks the placeholder.
    """
    options = dataclasses.asdict(config)
    if config.split_file is not None:
        content = Path(config.split_file).read_bytes()
        options["split_file"] = {
            "file_name": Path(config.split_file).name,
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    build = {"corpus": corpus, "options": options, "sessions": sessions}
    (folder / BUILD_FILE).write_text(json.dumps(build, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    text = DEFAULT_TEMPLATE if template is None else template.read_text(encoding="utf-8")
    head: dict[str, Any] = {}
    if text.startswith("---\n"):
        yaml_text, text = text.removeprefix("---\n").split("\n---\n", 1)
        head = yaml.safe_load(yaml_text)
    if PLACEHOLDER not in text:
        raise DatasetError(f"`card_template` must contain `{PLACEHOLDER}`, got none in '{template}'. Add it.")
    names = list(dict.fromkeys(session["config"] for session in sessions))
    head["configs"] = [
        {
            "config_name": name,
            # `datasets` keys its cache by the names of folder and configuration and by this text, not by the
            # files: without it a folder that was built again would be read as it was before.
            "description": f"content {_fingerprint(folder / name)}",
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
    body = text.replace(PLACEHOLDER, _tables(sessions, options))
    (folder / "README.md").write_text(f"---\n{yaml_text}---\n{body}", encoding="utf-8")


def _tables(sessions: list[dict[str, Any]], options: dict[str, Any]) -> str:
    sections = [
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
