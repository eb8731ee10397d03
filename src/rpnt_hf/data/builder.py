"""Built datasets: recordings in, a folder of Parquet files with a dataset card out.

The part that every corpus shares. What a corpus has of its own stands in `dataset_builders/`. Not for reading
rows: that is `rows.py` and `windows.py`, or plain `datasets.load_dataset`.
"""

import argparse
import dataclasses
import logging
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from rpnt_hf.data.card import read_dandiset, write_card
from rpnt_hf.data.cutting import PreparedRecording
from rpnt_hf.data.nwb import Recording, read_nwb
from rpnt_hf.data.schema import FEATURES, BuilderConfig, CorpusRecording
from rpnt_hf.data.splits import SplitFile
from rpnt_hf.errors import ConfigurationError, DatasetError, RecordingError

__all__ = [
    "FEATURES",
    "BuilderConfig",
    "CorpusRecording",
    "add_build_arguments",
    "build_dataset",
    "config_from",
    "find_nwb_files",
]

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 256
BYTES_PER_GROUP = 8 * 2**20
BYTES_PER_FILE = 512 * 2**20


def build_dataset(
    recordings: Iterable[CorpusRecording | Recording | str | Path],
    output_dir: str | Path,
    config: BuilderConfig,
    corpus: str = "nwb",
    card_template: Path | None = None,
    source_dir: Path | None = None,
) -> Path:
    """Builds a dataset folder that plain `datasets.load_dataset` reads, without this package.

    Recordings are taken one at a time. Files are written beside `output_dir` and moved there at the end, so a
    build that fails leaves nothing.

    Args:
        recordings (`Iterable`): Recordings, paths of NWB files, or recordings with corpus knowledge; read
            lazily.
        output_dir (`str` or `Path`): Folder to make; must not exist or be empty.
        config (`BuilderConfig`): How.
        corpus (`str`, defaults to `"nwb"`): Name of the corpus, for the card.
        card_template (`Path` or `None`, defaults to `None`): Markdown with YAML head, in which `{{ build }}`
            is replaced by the tables of this build.
        source_dir (`Path` or `None`, defaults to `None`): Where the recordings lie; a `dandiset.yaml` there
            is quoted in the card.

    Returns:
        `Path`: `output_dir`, with `<config>/<split>-*.parquet`, `README.md` and `rpnt_build.json`.

    Raises:
        DatasetError: If the folder holds something, there are no recordings, or two share a session id.
        RecordingError: If a recording cannot be read, lacks the behaviour, or has it for less than its
        trials. BinningError: If the bins do not fit.
        SplitError: If trials cannot be divided.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise DatasetError(
            f"`output_dir` must not exist or be an empty folder, got '{output_dir}', which holds something. "
            "Remove it or choose another one."
        )
    split_file = SplitFile.read(config.split_file) if config.split_file else None
    provenance = read_dandiset(source_dir) if source_dir is not None else {}
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as temporary:
        folder = Path(temporary) / "dataset"
        folder.mkdir()
        sessions = _write_recordings(recordings, folder, config, split_file)
        write_card(folder, sessions, config, corpus, card_template, provenance)
        folder.rename(output_dir)
    return output_dir


def _write_recordings(
    recordings: Iterable[CorpusRecording | Recording | str | Path],
    folder: Path,
    config: BuilderConfig,
    split_file: SplitFile | None,
) -> list[dict[str, Any]]:
    writers: dict[tuple[str, str], _SplitWriter] = {}
    sessions: list[dict[str, Any]] = []
    parts: dict[str, list[Recording]] = {}
    num_blocks: dict[str, int] = {}
    try:
        for item in tqdm(recordings, desc="Building", unit="recording"):
            entry = (
                item if isinstance(item, CorpusRecording) else CorpusRecording(_as_recording(item, config))
            )
            entry = dataclasses.replace(entry, recording=_in_session(entry.recording, config, parts))
            session_id = entry.recording.session_id
            prepared = PreparedRecording.of(
                entry, config, split_file, len(parts[session_id]) - 1, num_blocks.get(session_id, 0)
            )
            num_blocks[session_id] = num_blocks.get(session_id, 0) + len(prepared.trials)
            summary = prepared.summary()
            for split, row, num_scored in prepared.rows():
                key = (entry.config_name, split)
                if key not in writers:
                    writers[key] = _SplitWriter(folder, *key)
                writers[key].add(row)
                summary["rows"][split] += 1
                summary["bins"][split] += row["num_bins"] - row["num_context_bins"]
                summary["scored_bins"][split] += num_scored
                counts = np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1)
                summary["num_spikes"] += int(counts[row["num_context_bins"] :].sum(dtype=np.int64))
            sessions.append(summary)
    finally:
        for writer in writers.values():
            writer.close()
    if not sessions:
        raise DatasetError(
            "A dataset must have at least one recording, got none. Check the folder of NWB files."
        )
    if split_file:
        used = {
            name for session in sessions for name in (session["session_id"], session["source"]["file_name"])
        }
        unused = sorted({*split_file.by_session, *split_file.by_file} - used)
        if unused:
            logger.warning(
                "Split file '%s' also names %s, which are not in this build.", split_file.name, unused
            )
    return sessions


def _as_recording(item: Recording | str | Path, config: BuilderConfig) -> Recording:
    return item if isinstance(item, Recording) else read_nwb(item, repair_spikes=config.repair_spikes)


def _in_session(recording: Recording, config: BuilderConfig, parts: dict[str, list[Recording]]) -> Recording:
    """Gives a recording the session id that it shares, and checks that it may share it."""
    if config.session_pattern is not None:
        stem = Path(recording.source["file_name"]).stem if recording.source else recording.session_id
        match = re.search(config.session_pattern, stem)
        if match is None:
            raise DatasetError(
                f"`session_pattern` must match the name of every file, got '{config.session_pattern}', which "
                f"does not match '{stem}'. Correct the pattern or leave the file out."
            )
        recording = dataclasses.replace(recording, session_id=match.group(1 if match.re.groups else 0))
    others = parts.setdefault(recording.session_id, [])
    if others and config.session_pattern is None:
        raise DatasetError(
            f"`session_id` must be unique, got '{recording.session_id}' twice. Rename it, or use "
            "`session_pattern` where several files are one session."
        )
    if others and (others[0].unit_ids != recording.unit_ids or others[0].site_ids != recording.site_ids):
        raise RecordingError(
            f"Files of one session must have the same units, got {others[0].num_units} and "
            f"{recording.num_units} units that differ in session '{recording.session_id}'. Make "
            "`session_pattern` tell them apart."
        )
    if others and config.split_file is not None:
        raise ConfigurationError(
            "`split_file` must not be used where files share a session, got several files of session "
            f"'{recording.session_id}': trial indices would be ambiguous. Leave out `session_pattern`."
        )
    # Only names are compared later: the spikes of earlier parts need not stay in memory.
    others.append(
        dataclasses.replace(recording, spike_times=[np.empty(0)] * recording.num_units, behavior={})
    )
    return recording


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every builder of `rpnt build` shares.

    Args:
        parser (`argparse.ArgumentParser`): Parser of one builder.
    """
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    add("--bin-size", type=float, required=True, metavar="S", help="width of a bin in seconds")
    add("--context-length", type=float, default=1.0, metavar="S", help="past before held-out rows in seconds")
    add(
        "--block-length",
        type=float,
        default=5.0,
        metavar="S",
        help="blocks where there are no trials, in seconds",
    )
    add("--guard", type=float, default=1.0, metavar="S", help="gap around held-out blocks in seconds")
    add("--seed", type=int, default=0, metavar="N", help="seed of the split")
    parts = ("TRAIN", "VALIDATION", "TEST")
    add(
        "--proportions",
        type=float,
        nargs=3,
        default=(0.7, 0.1, 0.2),
        metavar=parts,
        help="parts of the trials",
    )
    add("--split-file", metavar="F", help="JSON file with a fixed split; excludes nothing beyond itself")
    add("--license", metavar="ID", help="licence of the data for the card, such as cc-by-4.0")
    add(
        "--repair-spikes",
        action="store_true",
        help="sort spikes and drop duplicates instead of refusing them",
    )


def config_from(arguments: argparse.Namespace, **overrides: Any) -> BuilderConfig:
    """Makes the options of a build from parsed arguments.

    Args:
        arguments (`argparse.Namespace`): Parsed; every attribute with the name of a field is taken.
        **overrides: Fields that the corpus sets itself.

    Returns:
        `BuilderConfig`: checked.
    """
    names = {field.name for field in dataclasses.fields(BuilderConfig)}
    taken = {name: value for name, value in vars(arguments).items() if name in names}
    taken = {name: tuple(value) if isinstance(value, list) else value for name, value in taken.items()}
    return BuilderConfig(**(taken | overrides))


def find_nwb_files(folder: str | Path) -> list[Path]:
    """Lists the NWB files of a folder and its subfolders, sorted by path.

    Args:
        folder (`str` or `Path`): A folder, or one NWB file.

    Returns:
        `list[Path]`: at least one file.

    Raises:
        RecordingError: If there is none.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.nwb"))
    if not files:
        raise RecordingError(f"`--nwb-dir` must hold NWB files, got none in '{folder}'. Check the name.")
    return files


class _SplitWriter:
    """Writes the rows of one split to numbered Parquet files, some rows to a group."""

    def __init__(self, folder: Path, config_name: str, split: str) -> None:
        self.folder = folder / config_name
        self.split = split
        self.num_files = 0
        self.rows: list[dict[str, Any]] = []
        self.num_bytes = 0
        self.writer: pq.ParquetWriter | None = None
        self.path: Path | None = None

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.num_bytes += len(row["counts"]) + len(row["behavior"])
        if len(self.rows) >= ROWS_PER_GROUP or self.num_bytes >= BYTES_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            if self.writer is None:
                self.folder.mkdir(exist_ok=True)
                self.path = self.folder / f"{self.split}-{self.num_files:05d}.parquet"
                self.writer = pq.ParquetWriter(self.path, FEATURES.arrow_schema, compression="zstd")
                self.num_files += 1
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=FEATURES.arrow_schema))
            self.rows, self.num_bytes = [], 0
            if self.path is not None and self.path.stat().st_size >= BYTES_PER_FILE:
                self.writer.close()
                self.writer = None

    def close(self) -> None:
        self.flush()
        if self.writer is not None:
            self.writer.close()
            self.writer = None
