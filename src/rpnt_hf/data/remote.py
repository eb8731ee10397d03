"""Built datasets at a URL: which files they have, and bytes of them by range, with patience.

Every file system that fsspec knows will do: http, s3, hf, memory, file. Not for rows: `loading.py` loads them
onto this machine, `streamed.py` reads them as they are needed.
"""

import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec  # type: ignore[import-untyped]

from rpnt_hf.data.card import BUILD_FILE
from rpnt_hf.disk import explain_disk_errors
from rpnt_hf.errors import DatasetError, RPNTError, closest_names

__all__ = ["RangeFile", "RemoteDataset", "is_url", "small_file"]

TRIES = 6
LONGEST_PAUSE = 15.0  # s
FETCH_BYTES = 16 * 2**20  # of one request
CACHE_ADVICE = "HF_DATASETS_CACHE names the folder of the cache."


def is_url(data: str | Path) -> bool:
    """Says whether a dataset is named by a URL rather than a folder or a name on the Hub."""
    return "://" in str(data)


@dataclass(frozen=True)
class RemoteDataset:
    """A folder that `rpnt build` wrote, wherever it lies now.

    Args:
        url (`str`): The folder.
        build (`Mapping[str, Any]`): Its `rpnt_build.json`.
    """

    url: str
    build: Mapping[str, Any]

    @classmethod
    def open(cls, data: str | Path) -> "RemoteDataset":
        """Reads what a dataset has.

        Args:
            data (`str` or `Path`): URL of the folder, a folder, or the name of a dataset on the Hub.

        Returns:
            `RemoteDataset`: The dataset.

        Raises:
            DatasetError: There is none, it cannot be reached, or an older version of this package wrote it.
        """
        url = str(data)
        if not is_url(url) and not Path(url).is_dir() and url.count("/") == 1 and url[0] not in "./":
            url = f"hf://datasets/{url}"
        url = url.rstrip("/")
        file_system, path = _file_system(f"{url}/{BUILD_FILE}")
        try:
            build = json.loads(_patiently(file_system, path, f"{url}/{BUILD_FILE}"))
        except DatasetError:
            raise
        except ValueError as error:
            raise DatasetError(
                f"`{BUILD_FILE}` must be JSON, but '{url}/{BUILD_FILE}' is not. Build the dataset "
                f"again. ({error})"
            ) from error
        try:
            facts = {name for shard in build["shards"] for name in ("name", "bytes", "sha256") if shard[name]}
            is_complete = len(facts) == 3 and isinstance(build["sessions"], list)
        except (KeyError, TypeError):
            is_complete = False
        if not is_complete:
            raise DatasetError(
                f"A dataset at a URL must list its files, but `{BUILD_FILE}` of '{url}' does not. Build it "
                "again with this version of rpnt_hf."
            )
        return cls(url, build)

    def files(self, config_name: str | None, split: str) -> list[tuple[str, int]]:
        """Lists the Parquet files of one split.

        Args:
            config_name (`str`, *optional*): Part of the corpus; None where there is only one.
            split (`str`): "train", "validation" or "test".

        Returns:
            `list[tuple[str, int]]`: URL and bytes of each.

        Raises:
            DatasetError: There is no such configuration or split.
        """
        name = self.config_name(config_name)
        found = [
            (f"{self.url}/{shard['name']}", int(shard["bytes"]))
            for shard in self.build["shards"]
            if shard["name"].startswith(f"{name}/{split}-")
        ]
        if not found:
            raise DatasetError(
                f"Split '{split}' of configuration '{name}' must be in '{self.url}', got no file of it. Name "
                "another split."
            )
        return found

    @property
    def config_names(self) -> list[str]:
        """Parts of the corpus."""
        return sorted({str(shard["name"]).split("/")[0] for shard in self.build["shards"]})

    def config_name(self, config_name: str | None) -> str:
        """Gives the configuration that is meant: the one that was named, or the only one."""
        names = self.config_names
        if config_name is None and len(names) == 1:
            return str(names[0])
        if config_name not in names:
            raise DatasetError(
                f"`dataset_config` must be one of {names} in '{self.url}', got {config_name!r}. Name one of "
                f"them.{closest_names(str(config_name), names)}"
            )
        return str(config_name)

    def download(self, config_name: str | None, split: str) -> list[Path]:
        """Brings the files of one split into the cache of `datasets`, named by their digests.

        Args:
            config_name (`str`, *optional*): Part of the corpus; None where there is only one.
            split (`str`): "train", "validation" or "test".

        Returns:
            `list[Path]`: The files, verified; what is there already is not fetched again.

        Raises:
            DatasetError: A file cannot be fetched or kept, or is not the one that was built.
        """
        wanted = {url for url, _ in self.files(config_name, split)}
        paths = []
        for shard in self.build["shards"]:
            url = f"{self.url}/{shard['name']}"
            if url in wanted:
                paths.append(self._kept(url, int(shard["bytes"]), shard["sha256"]))
        return paths

    def _kept(self, url: str, size: int, sha256: str) -> Path:
        path = cache_folder() / f"{sha256}.parquet"
        if path.is_file() and path.stat().st_size == size:
            return path
        with (
            explain_disk_errors(path, DatasetError, CACHE_ADVICE),
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
        ):
            unfinished = Path(folder) / path.name
            source = RangeFile(url, size)
            with unfinished.open("wb") as file:
                while chunk := source.read(FETCH_BYTES):
                    file.write(chunk)
            with unfinished.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != sha256:
                raise DatasetError(
                    f"A file of a dataset must be the one that was built, but the bytes of '{url}' differ "
                    f"from those that `{BUILD_FILE}` states. Copy the dataset there again."
                )
            unfinished.replace(path)
        return path


def cache_folder() -> Path:
    """Gives the folder for what comes from URLs, inside the cache of `datasets`."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "rpnt_hf"
    with explain_disk_errors(folder, DatasetError, CACHE_ADVICE):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def small_file(data: str, name: str) -> Path | None:
    """Brings a small file of a dataset at a URL, such as its card, to this machine.

    Args:
        data (`str`): URL of the folder.
        name (`str`): Name of the file.

    Returns:
        `Path` or `None`: The file as it is now; None where there is none.
    """
    url = f"{data.rstrip('/')}/{name}"
    file_system, path = _file_system(url)
    try:
        content = _patiently(file_system, path, url)
    except DatasetError as error:
        if error.__cause__ is not None:  # it is not there, or refused; else there may be one
            return None
        raise
    kept = cache_folder() / hashlib.sha256(content).hexdigest() / name
    with explain_disk_errors(kept, DatasetError, CACHE_ADVICE):
        kept.parent.mkdir(exist_ok=True)
        unfinished = kept.with_name(f".{name}.{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(kept)
    return kept


class RangeFile(io.RawIOBase):
    """A file at a URL that is read by ranges; each read is one request, tried again where it fails.

    Args:
        url (`str`): The file.
        size (`int`): Its size in bytes.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url = url
        self.size = size
        self.position = 0
        self.file_system, self.path = _file_system(url)

    def readable(self) -> bool:
        """Says that it can be read."""
        return True

    def seekable(self) -> bool:
        """Says that any place of it can be read."""
        return True

    def tell(self) -> int:
        """Gives the place of the next read."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Reads from the place on.

        Args:
            size (`int`): Bytes; all that follow where negative.

        Returns:
            `bytes`: At most as many.

        Raises:
            DatasetError: The file is gone, cannot be reached, or is not served by ranges.
        """
        stop = self.size if size is None or size < 0 else min(self.position + size, self.size)
        if stop <= self.position:
            return b""
        content = _patiently(self.file_system, self.path, self.url, self.position, stop)
        self.position = stop
        return content


def _file_system(url: str) -> tuple[Any, str]:
    """Finds the file system of a URL, and the path in it."""
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise DatasetError(
            f"A URL must be of a kind that fsspec knows and has a package for, got '{url}'. Correct it, or "
            f"install what is missing. ({error})"
        ) from error
    return file_system, path


def _patiently(
    file_system: Any, path: str, url: str, start: int | None = None, stop: int | None = None
) -> bytes:
    """Reads bytes of a file, and tries again where that may help."""
    for attempt in range(TRIES):
        try:
            content = bytes(file_system.cat_file(path, start=start, end=stop))
            if start is None or stop is None or len(content) == stop - start:
                return content
            if len(content) > stop - start:
                raise DatasetError(
                    f"A server must answer a range with that range to be streamed from, but '{url}' came "
                    "whole. Use another server, or train without `streaming`: files are then downloaded."
                )
            reason = f"{len(content)} bytes came where {stop - start} were asked for"
        except FileNotFoundError as error:
            raise DatasetError(
                f"A file of a dataset must stay where it is while it is used, but '{url}' is not there (any "
                "more). Check the URL, or put it back and resume."
            ) from error
        except RPNTError:
            raise
        except Exception as error:  # each file system has kinds of its own
            status = getattr(error, "status", None)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, PermissionError) or (
                isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
            ):
                raise DatasetError(
                    f"A file of a dataset must be readable, but '{url}' is refused ({reason}). Check the URL "
                    "and your rights."
                ) from error
        if attempt + 1 < TRIES:
            _pause(min(0.25 * 2**attempt, LONGEST_PAUSE))
    raise DatasetError(
        f"A file of a dataset must be within reach while it is used, but '{url}' could not be read in "
        f"{TRIES} tries. Check the connection and resume. ({reason})"
    )


def _pause(seconds: float) -> None:
    time.sleep(seconds)
