"""Where a build works: a locked folder beside the dataset, in which finished sessions outlive interruptions.

A finished session lies under a name made of everything that decides its rows: options, version, and name,
size and time of its files. So a build that goes on takes what fits and nothing else. Not for rows
(`shards.py`) or for what is built (`builder.py`).
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from rpnt_hf.data.card import BUILD_FILE
from rpnt_hf.disk import flush_tree
from rpnt_hf.errors import DatasetError

logger = logging.getLogger(__name__)

__all__ = ["StagingFolder", "is_finished", "read_summary", "session_key", "write_summary"]

SUMMARY_FILE = "summary.json"


def session_key(files: Sequence[Path], options: Mapping[str, Any]) -> str:
    """Names a session by what decides its rows; a file is known by its path, size and time.

    Args:
        files (`Sequence[Path]`): Its files, in order.
        options (`Mapping[str, Any]`): Options of the build, as plain values.

    Returns:
        `str`: 32 hexadecimal digits.
    """
    stated = [
        [str(file.resolve()), status.st_size, status.st_mtime_ns]
        for file in files
        for status in [file.stat()]
    ]
    text = json.dumps([stated, options, importlib.metadata.version("rpnt_hf")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_summary(folder: Path, content: Any) -> None:
    """Writes the last file of a staged session, and waits until all of it is on the disk."""
    (folder / SUMMARY_FILE).write_text(json.dumps(content), encoding="utf-8")
    flush_tree(folder)


def read_summary(folder: Path) -> Any:
    """Reads what `write_summary` wrote."""
    return json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))


def is_finished(folder: Path) -> bool:
    """Says whether a session was staged to its end."""
    return (folder / SUMMARY_FILE).is_file()


class StagingFolder:
    """The folder that one build of a dataset works in, for one process at a time.

    The lock is the operating system's: that of a process that died is gone with it.

    Args:
        output_dir (`Path`): The dataset.
        keep_finished (`bool`): Whether finished sessions outlive a build that stops.

    Attributes: `sessions` holds a folder for each staged session (those of arrays, which no later build can
    know again, begin with `_`), `dataset` is the dataset to be.
    """

    def __init__(self, output_dir: Path, keep_finished: bool) -> None:
        self.output_dir = output_dir
        self.keep_finished = keep_finished
        self.path = output_dir.with_name(f".{output_dir.name}-building")
        self.sessions = self.path / "sessions"
        self.dataset = self.path / "dataset"
        self.previous = self.path / "previous"
        self._is_done = False
        self._lock_path = output_dir.with_name(f".{output_dir.name}.lock")
        self._lock = FileLock(self._lock_path)

    def __enter__(self) -> "StagingFolder":
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DatasetError(
                f"One build at a time must write '{self.output_dir}', but another one is at it. Wait for it, "
                "stop it, or build into another folder."
            ) from error
        if self.previous.exists():  # an addition was killed
            if self.output_dir.exists():  # after it had put its result there
                shutil.rmtree(self.path)
            else:  # between its last two steps
                self.previous.rename(self.output_dir)
        return self

    def prepare(self) -> None:
        """Makes the folders; what an interrupted build packed is dropped, what it staged stays."""
        if self.dataset.exists():
            shutil.rmtree(self.dataset)
        for leftover in [*self.sessions.glob(".*"), *self.sessions.glob("_*")]:
            shutil.rmtree(leftover)
        self.sessions.mkdir(parents=True, exist_ok=True)
        self.dataset.mkdir()

    def link_existing(self, names: Sequence[str]) -> None:
        """Takes files of the dataset as it is into the dataset to be; linked, or else copied.

        Args:
            names (`Sequence[str]`): All files that stay as they are.
        """
        for name in names:
            (self.dataset / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.output_dir / name, self.dataset / name)
            except OSError:
                shutil.copy2(self.output_dir / name, self.dataset / name)

    def finish(self) -> None:
        """Puts the dataset into its place, and with it nothing that is not whole."""
        flush_tree(self.dataset)
        if (self.output_dir / BUILD_FILE).exists():
            self.output_dir.rename(self.previous)
        self.dataset.rename(self.output_dir)
        self._is_done = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        finished = sum(map(is_finished, self.sessions.glob("[!._]*")))
        if self._is_done or not self.keep_finished or not finished:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            shutil.rmtree(self.dataset, ignore_errors=True)
            logger.warning(
                "%d finished sessions stay in '%s', where the command that made them goes on; remove that "
                "folder to begin anew.", finished, self.path,
            )  # fmt: skip
        with contextlib.suppress(OSError):
            self._lock_path.unlink()
        self._lock.release()


def files_of(folder: Path) -> Iterator[str]:
    """Lists the files under a folder, as paths inside it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()
