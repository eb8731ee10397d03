"""Built datasets: recordings in, a folder of Parquet files with a dataset card out.

The part that every corpus shares. What a corpus has of its own stands in `dataset_builders/`. Not for reading
rows: that is `rows.py` and `windows.py`, or plain `datasets.load_dataset`.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpnt_hf.data.card import BUILD_FILE, describe_options, read_dandiset, write_card
from rpnt_hf.data.cutting import PreparedRecording
from rpnt_hf.data.nwb import Recording, read_nwb
from rpnt_hf.data.parallel import run_tasks
from rpnt_hf.data.rows import row_site_observed
from rpnt_hf.data.schema import FEATURES, BuilderConfig, CorpusRecording
from rpnt_hf.data.shards import StagingWriter, describe_shards, pack_shard, plan_shards
from rpnt_hf.data.splits import SplitFile
from rpnt_hf.data.staging import (
    StagingFolder,
    files_of,
    is_finished,
    read_summary,
    session_key,
    write_summary,
)
from rpnt_hf.disk import explain_disk_errors
from rpnt_hf.errors import ConfigurationError, DatasetError, RecordingError
from rpnt_hf.progress import progress_bar

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

Read = Callable[[Path], Recording | CorpusRecording]


def build_dataset(
    recordings: Iterable[CorpusRecording | Recording | str | Path],
    output_dir: str | Path,
    config: BuilderConfig,
    corpus: str = "nwb",
    card_template: Path | None = None,
    source_dir: Path | None = None,
    *,
    read: Read | None = None,
    num_proc: int = 1,
    add: bool = False,
    keep_finished: bool = True,
) -> Path:
    """Builds a dataset folder that plain `datasets.load_dataset` reads, without this package.

    Each process holds one recording at a time, and the result is the same, byte by byte, for any number of
    them. The work is done beside `output_dir` and moved there at the end. Where a build stops before, what
    was finished of the recordings that are given as paths stays in `.NAME-building`, and the same call goes
    on from there; where nothing was, nothing stays.

    Args:
        recordings (`Iterable`): Paths of NWB files, or recordings, which are taken one by one in this
            process.
        output_dir (`str` or `Path`): Folder to make; must not exist or be empty, unless `add`.
        config (`BuilderConfig`): How.
        corpus (`str`, defaults to `"nwb"`): Name of the corpus, for the card.
        card_template (`Path` or `None`, defaults to `None`): Markdown with YAML head, in which `{{ build }}`
            is replaced by the tables of this build.
        source_dir (`Path` or `None`, defaults to `None`): Where the recordings lie; a `dandiset.yaml` there
            is quoted in the card.
        read (`Callable`, *optional*): Function of a module that reads a path, or a `functools.partial` of
            one, whose keywords are recorded with the options; `read_nwb` where left out.
        num_proc (`int`, *optional*, defaults to 1): Processes that build.
        add (`bool`, *optional*, defaults to `False`): Add the recordings that `output_dir` does not have yet
            to the dataset there, which must have been built with the same options. What is there is neither
            read nor changed.
        keep_finished (`bool`, *optional*, defaults to `True`): False where no later call could use what was
            finished.

    Returns:
        `Path`: `output_dir`, with `<config>/<split>-*.parquet`, `README.md` and `rpnt_build.json`.

    Raises:
        DatasetError: If the folder holds something, is written by another build, cannot be written, or (with
            `add`) holds no dataset of these options; there are no recordings, or two share a session id.
        RecordingError: If a recording cannot be read, lacks the behaviour, or has it for less than its
            trials.
        BinningError: If the bins do not fit.
        SplitError: If trials cannot be divided.
    """
    output_dir = Path(output_dir)
    if num_proc < 1:
        raise ConfigurationError(f"`num_proc` must be at least 1, got {num_proc}.")
    split_file = SplitFile.read(config.split_file) if config.split_file else None
    if read is None:
        read = functools.partial(read_nwb, repair_spikes=config.repair_spikes)
    options = describe_options(config) | dict(getattr(read, "keywords", {}))
    provenance = read_dandiset(source_dir) if source_dir is not None else {}
    staying = "What was finished stays, and the same command goes on from there." if keep_finished else ""
    with (
        explain_disk_errors(output_dir, DatasetError, staying),
        StagingFolder(output_dir, keep_finished) as staging,
    ):
        existing = _existing_build(output_dir, corpus, options, add)
        staging.prepare()
        staged = _Build(config, split_file, read, options, staging, existing).stage(recordings, num_proc)
        if existing and not staged:
            logger.info("Nothing to add: '%s' has all of these recordings.", output_dir)
            return output_dir
        old_sessions, old_shards = existing.get("sessions", []), existing.get("shards", [])
        if existing:
            own = {"README.md", BUILD_FILE}
            staging.link_existing([name for name in files_of(output_dir) if name not in own])
            provenance = _joined(existing.get("provenance", {}), provenance)
        shards = plan_shards(
            ((folder, entry["files"]) for folder, entry in staged), [shard["name"] for shard in old_shards]
        )
        tasks = [functools.partial(pack_shard, shard, staging.dataset) for shard in shards]
        packed = run_tasks(tasks, num_proc, "Packing", "file")
        sessions = old_sessions + [one for _, entry in staged for one in entry["sessions"]]
        _warn_of_unused(split_file, sessions)
        described = sorted([*old_shards, *packed], key=lambda shard: str(shard["name"]))
        write_card(staging.dataset, sessions, described, options, config, corpus, card_template, provenance)
        staging.finish()
    return output_dir


def _existing_build(output_dir: Path, corpus: str, options: Mapping[str, Any], add: bool) -> dict[str, Any]:
    """What `rpnt_build.json` says of the dataset that is added to; empty where one is made."""
    holds_something = output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))
    if not add:
        if holds_something:
            raise DatasetError(
                f"`output_dir` must not exist or be an empty folder, got '{output_dir}', which holds "
                "something. Remove it, choose another one, or add to a dataset there by `--add` (`add=True`)."
            )
        return {}
    if not (output_dir / BUILD_FILE).is_file():
        raise DatasetError(
            f"`output_dir` must hold a built dataset to add to, got '{output_dir}' without `{BUILD_FILE}`. "
            "Build it first, without `--add`."
        )
    try:
        existing = json.loads((output_dir / BUILD_FILE).read_text(encoding="utf-8"))
        before = existing["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"`{BUILD_FILE}` must say what a dataset was built from, but that of '{output_dir}' cannot be "
            f"read. Build the dataset anew. ({error!r})"
        ) from error
    now = json.loads(json.dumps(options))
    changed = sorted(
        f"`{name}` (was {before.get(name)!r}, is {now.get(name)!r})"
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name)
    )
    if existing["corpus"] != corpus:
        changed.insert(0, f"the builder (was {existing['corpus']}, is {corpus})")
    if changed:
        raise DatasetError(
            f"What is added must be built like the rest of '{output_dir}', but there differ: "
            f"{', '.join(changed)}. Give the same options, or build all recordings anew elsewhere."
        )
    return {**existing, "shards": existing.get("shards") or describe_shards(output_dir)}


def _joined(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Provenance of a dataset whose parts may come from two versions of a source."""
    joined = {**now, **before}
    if before.get("version") and now.get("version") and before["version"] != now["version"]:
        joined["version"] = f"{before['version']}, {now['version']}"
    return joined


def _warn_of_unused(split_file: SplitFile | None, sessions: Sequence[Mapping[str, Any]]) -> None:
    if split_file is None:
        return
    used = {name for session in sessions for name in (session["session_id"], session["source"]["file_name"])}
    unused = sorted({*split_file.by_session, *split_file.by_file} - used)
    if unused:
        logger.warning("Split file '%s' also names %s, which are not in this build.", split_file.name, unused)


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every builder of `rpnt build` shares.

    Args:
        parser (`argparse.ArgumentParser`): Parser of one builder.
    """
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to make; must not hold anything")
    add("--num-proc", type=int, default=1, metavar="N", help="sessions that are built at a time (default 1)")
    adding = "add recordings that the dataset in --out lacks; same options, the rest is not touched"
    add("--add", action="store_true", help=adding)
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


@dataclass
class _Build:
    """What all sessions of a build have in common."""

    config: BuilderConfig
    split_file: SplitFile | None
    read: Read
    options: Mapping[str, Any]
    staging: StagingFolder
    existing: Mapping[str, Any]

    def stage(
        self, recordings: Iterable[CorpusRecording | Recording | str | Path], num_proc: int
    ) -> list[tuple[Path, dict[str, Any]]]:
        """Stages every session: its folder and summary, in the order of the recordings."""
        groups: dict[str, list[Path]] = {}  # files of a session, under the name of their first place
        places: dict[str, int] = {}
        found: list[tuple[int, Path]] = []
        arrays = progress_bar(desc="Building", unit="session")
        state: dict[str, _SessionState] = {}
        for place, item in enumerate(recordings):
            if isinstance(item, str | Path):
                path = Path(item)
                name = self._session_of(path) or f"file {place}"
                groups.setdefault(name, []).append(path)
                places.setdefault(name, place)
                continue
            folder = self.staging.sessions / f"_array-{place}"
            stage_session([item], folder, self.config, self.split_file, self.read, state)
            found.append((place, folder))
            arrays.update()
        arrays.close()
        tasks: list[Callable[[], None]] = []
        waiting: list[tuple[int, Path]] = []
        folders: set[Path] = set()
        for name, files in self._new(groups).items():
            _check_files(files)
            folder = self.staging.sessions / session_key(files, self.options)
            if folder in folders:
                raise DatasetError(f"A recording must be given once, got '{files[0]}' twice. Name it once.")
            folders.add(folder)
            waiting.append((places[name], folder))
            if not is_finished(folder):
                tasks.append(
                    functools.partial(stage_session, files, folder, self.config, self.split_file, self.read)
                )
        if len(tasks) < len(waiting):
            logger.info("%d of %d sessions were finished before.", len(waiting) - len(tasks), len(waiting))
        run_tasks(tasks, num_proc, "Building", "session", of=self.read, finished=len(waiting) - len(tasks))
        staged = [(folder, read_summary(folder)) for _, folder in sorted(found + waiting)]
        if not staged and not self.existing:
            raise DatasetError(
                "A dataset must have at least one recording, got none. Check the folder of NWB files."
            )
        self._check_ids(staged)
        return staged

    def _session_of(self, path: Path) -> str | None:
        """The session that a file belongs to, where its name says so."""
        pattern = self.config.session_pattern
        return None if pattern is None else _matched(pattern, path.stem)

    def _new(self, groups: Mapping[str, list[Path]]) -> dict[str, list[Path]]:
        """Leaves out files that the dataset has."""
        if not self.existing:
            return dict(groups)
        sources = [session["source"] for session in self.existing["sessions"]]
        digests = {source["sha256"] for source in sources}
        names = {source["file_name"] for source in sources}
        new: dict[str, list[Path]] = {}
        for name, files in groups.items():
            _check_files(files)
            for path in files:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest not in digests and path.name in names:
                    raise DatasetError(
                        f"A recording that the dataset has must not change, but '{path}' differs from the "
                        "file of that name that it was built from. Build the dataset anew."
                    )
                if digest not in digests:
                    new.setdefault(name, []).append(path)
        return new

    def _check_ids(self, staged: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
        taken = {session["session_id"] for session in self.existing.get("sessions", ())}
        for _, entry in staged:
            session_id = entry["sessions"][0]["session_id"]
            if session_id in taken and not entry["parts_before"]:
                raise DatasetError(
                    f"`session_id` must be unique, got '{session_id}' twice. Rename it, or use "
                    "`session_pattern` where several files are one session."
                )
            taken.add(session_id)


@dataclass
class _SessionState:
    """What later files of a session must agree with, and go on from."""

    first: Recording
    num_files: int = 0
    num_blocks: int = 0


def stage_session(
    items: Iterable[Path | Recording | CorpusRecording],
    folder: Path,
    config: BuilderConfig,
    split_file: SplitFile | None,
    read: Read,
    state: dict[str, _SessionState] | None = None,
) -> None:
    """Cuts the files of one session, one at a time, into rows in a folder of its own.

    Args:
        items (`Iterable`): Paths or recordings of the session, in order.
        folder (`Path`): Where to; appears when it is whole.
        config (`BuilderConfig`): How.
        split_file (`SplitFile` or `None`): A fixed split.
        read (`Callable`): Reads a path.
        state (`dict`, *optional*): Sessions whose first files were staged elsewhere; is added to.

    Raises:
        RPNTError: A recording cannot be read or cut.
    """
    state = {} if state is None else state
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    writer = StagingWriter(unfinished)
    summaries: list[dict[str, Any]] = []
    parts_before = None
    try:
        for item in items:
            loaded = read(item) if isinstance(item, Path) else item
            entry = loaded if isinstance(loaded, CorpusRecording) else CorpusRecording(loaded)
            recording = _in_session(entry.recording, config, state)
            session = state[recording.session_id]
            part = session.num_files - 1
            parts_before = part if parts_before is None else parts_before
            prepared = PreparedRecording.of(
                dataclasses.replace(entry, recording=recording), config, split_file, part, session.num_blocks
            )
            session.num_blocks += len(prepared.trials)
            summaries.append(_write_rows(prepared, entry.config_name, writer))
            del item, loaded, entry, recording, prepared
        files = writer.close()
        write_summary(unfinished, {"sessions": summaries, "files": files, "parts_before": parts_before})
    except BaseException:
        writer.abandon()
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(folder)


def _write_rows(prepared: PreparedRecording, config_name: str, writer: StagingWriter) -> dict[str, Any]:
    """Writes the rows of a recording and counts what they hold."""
    summary = prepared.summary()
    totals = np.zeros(summary["num_units"], np.int64)
    site_bins = np.zeros(len(summary["site_ids"]), np.int64)
    for split, row, num_scored in prepared.rows():
        writer.add(config_name, split, row)
        own = slice(row["num_context_bins"], None)
        counts = np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1)[own]
        summary["rows"][split] += 1
        summary["bins"][split] += len(counts)
        summary["scored_bins"][split] += num_scored
        summary["num_spikes"] += int(counts.sum(dtype=np.int64))
        if split == "train":
            observed = row_site_observed(row)[own]
            totals += counts[observed.any(axis=1)].sum(axis=0, dtype=np.int64)
            site_bins += observed.sum(axis=0)
    # The null model of bits per spike, for training that streams rows and never sees all of them at once.
    summary["train_unit_spikes"], summary["train_site_bins"] = totals.tolist(), site_bins.tolist()
    return summary


def _matched(pattern: str, stem: str) -> str:
    match = re.search(pattern, stem)
    if match is None:
        raise DatasetError(
            f"`session_pattern` must match the name of every file, got '{pattern}', which does not match "
            f"'{stem}'. Correct the pattern or leave the file out."
        )
    return match.group(1 if match.re.groups else 0)


def _in_session(recording: Recording, config: BuilderConfig, state: dict[str, _SessionState]) -> Recording:
    """Gives a recording the session id that it shares, and checks that it may share it."""
    if config.session_pattern is not None:
        stem = Path(recording.source["file_name"]).stem if recording.source else recording.session_id
        recording = dataclasses.replace(recording, session_id=_matched(config.session_pattern, stem))
    if recording.session_id not in state:
        # Only names are compared later: the spikes of earlier files need not stay in memory.
        empty = dataclasses.replace(recording, spike_times=[np.empty(0)] * recording.num_units, behavior={})
        state[recording.session_id] = _SessionState(empty, num_files=1)
        return recording
    session = state[recording.session_id]
    session.num_files += 1
    if config.session_pattern is None:
        raise DatasetError(
            f"`session_id` must be unique, got '{recording.session_id}' twice. Rename it, or use "
            "`session_pattern` where several files are one session."
        )
    first = session.first
    if first.subject_id != recording.subject_id:
        raise RecordingError(
            f"Files of one session must be of one subject, got '{first.subject_id}' and "
            f"'{recording.subject_id}' in session '{recording.session_id}'. Make `session_pattern` tell them "
            "apart."
        )
    same_sites = first.site_ids == recording.site_ids and (first.unit_sites == recording.unit_sites).all()
    if first.unit_ids != recording.unit_ids or not same_sites:
        raise RecordingError(
            f"Files of one session must have the same units, got {first.num_units} and "
            f"{recording.num_units} units that differ in session '{recording.session_id}'. Make "
            "`session_pattern` tell them apart."
        )
    if config.split_file is not None:
        raise ConfigurationError(
            "`split_file` must not be used where files share a session, got several files of session "
            f"'{recording.session_id}': trial indices would be ambiguous. Leave out `session_pattern`."
        )
    return recording


def _check_files(files: Iterable[Path]) -> None:
    for path in files:
        if not path.is_file():
            raise RecordingError(
                f"A recording must be an NWB file, got '{path}', where there is no file. Check the name."
            )
