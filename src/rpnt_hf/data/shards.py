"""Rows of single sessions on their way into the Parquet files of a dataset.

Each session is first staged as Arrow files of its own, so that sessions can be cut in any order and by any
number of processes; then staged rows are packed into files of equal size, in the order of the sessions. The
result depends on the sessions only. Not for what a row holds (`schema.py`, `cutting.py`).
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rpnt_hf.data.schema import FEATURES
from rpnt_hf.data.splits import SPLITS

__all__ = ["Shard", "StagingWriter", "describe_shards", "pack_shard", "plan_shards"]

ROWS_PER_GROUP = 256
BYTES_PER_GROUP = 8 * 2**20
BYTES_PER_SHARD = 512 * 2**20  # before compression

# Configuration and split.
Part = tuple[str, str]


class StagingWriter:
    """Writes the rows of one session to `FOLDER/<config>/<split>.arrow`, some rows to a batch.

    Args:
        folder (`Path`): The session's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[Part, list[dict[str, Any]]] = {}
        self.waiting: dict[Part, int] = {}
        self.batches: dict[Part, list[int]] = {}
        self.writers: dict[Part, pa.ipc.RecordBatchFileWriter] = {}

    def add(self, config_name: str, split: str, row: dict[str, Any]) -> None:
        """Adds a row; large columns leave the memory once a batch is full."""
        part = (config_name, split)
        self.rows.setdefault(part, []).append(row)
        size = len(row["counts"]) + len(row["observed"]) + len(row["behavior"])
        self.waiting[part] = self.waiting.get(part, 0) + size
        if len(self.rows[part]) >= ROWS_PER_GROUP or self.waiting[part] >= BYTES_PER_GROUP:
            self._flush(part)

    def close(self) -> list[dict[str, Any]]:
        """Writes what is left.

        Returns:
            `list[dict]`: One entry for each file with its `config`, `split` and `batches`, the bytes of each.
        """
        for part in list(self.rows):
            self._flush(part)
        for writer in self.writers.values():
            writer.close()
        return [
            {"config": config_name, "split": split, "batches": sizes}
            for (config_name, split), sizes in self.batches.items()
        ]

    def abandon(self) -> None:
        """Lets go of the files of a session that could not be staged."""
        for writer in self.writers.values():
            with contextlib.suppress(OSError, pa.ArrowInvalid):
                writer.close()

    def _flush(self, part: Part) -> None:
        rows = self.rows.pop(part)
        if part not in self.writers:
            path = staged_file(self.folder, *part)
            path.parent.mkdir(exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self.writers[part] = pa.ipc.new_file(str(path), FEATURES.arrow_schema, options=options)
        self.writers[part].write_batch(pa.RecordBatch.from_pylist(rows, schema=FEATURES.arrow_schema))
        self.batches.setdefault(part, []).append(self.waiting.pop(part))


def staged_file(folder: Path, config_name: str, split: str) -> Path:
    """Names the file of a staged session's rows in one configuration and split."""
    return folder / config_name / f"{split}.arrow"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset and what goes into it.

    Args:
        name (`str`): Path inside the dataset.
        pieces (`tuple[tuple[Path, int], ...]`): Staged file and number of its batch, in order.
    """

    name: str
    pieces: tuple[tuple[Path, int], ...]


def plan_shards(
    staged: Iterable[tuple[Path, Sequence[Mapping[str, Any]]]], taken: Iterable[str] = ()
) -> list[Shard]:
    """Divides staged rows over Parquet files.

    Args:
        staged (`Iterable[tuple[Path, Sequence[Mapping]]]`): Folder of each session in order, with what
            `StagingWriter.close` returned.
        taken (`Iterable[str]`, *optional*): Names of files that the dataset has; numbers go on after them.

    Returns:
        `list[Shard]`: For each configuration and split, files of about 512 MiB before compression.
    """
    pieces: dict[Part, list[tuple[Path, int, int]]] = {}
    for folder, files in staged:
        for entry in files:
            part = (entry["config"], entry["split"])
            path = staged_file(folder, *part)
            pieces.setdefault(part, []).extend(
                (path, batch, size) for batch, size in enumerate(entry["batches"])
            )
    numbers: dict[str, int] = {}
    for name in taken:
        stem, _, number = name.removesuffix(".parquet").rpartition("-")
        numbers[stem] = max(numbers.get(stem, 0), int(number) + 1)
    shards = []
    for (config_name, split), found in sorted(
        pieces.items(), key=lambda item: (item[0][0], SPLITS.index(item[0][1]))
    ):
        stem = f"{config_name}/{split}"
        groups: list[list[tuple[Path, int]]] = [[]]
        filled = 0
        for path, batch, size in found:
            if filled >= BYTES_PER_SHARD:
                groups.append([])
                filled = 0
            groups[-1].append((path, batch))
            filled += size
        first = numbers.get(stem, 0)
        shards += [
            Shard(f"{stem}-{first + index:05d}.parquet", tuple(group)) for index, group in enumerate(groups)
        ]
    return shards


def pack_shard(shard: Shard, folder: Path) -> dict[str, Any]:
    """Writes one Parquet file of staged rows.

    Args:
        shard (`Shard`): What goes where.
        folder (`Path`): The dataset.

    Returns:
        `dict[str, Any]`: What `describe_shards` says about it.
    """
    path = folder / shard.name
    path.parent.mkdir(exist_ok=True)
    opened: tuple[Path, Any] | None = None
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(
        path, FEATURES.arrow_schema, compression="zstd", write_page_checksum=True
    ) as writer:

        def write() -> None:
            if waiting:
                table = pa.concat_tables(waiting).combine_chunks()
                writer.write_table(table, row_group_size=len(table))
                waiting.clear()

        for source, batch in shard.pieces:
            if opened is None or opened[0] != source:
                opened = (source, pa.ipc.open_file(pa.memory_map(str(source))))
            table = pa.Table.from_batches([opened[1].get_batch(batch)])
            num_rows = sum(map(len, waiting)) + len(table)
            num_bytes = sum(one.nbytes for one in waiting) + table.nbytes
            if waiting and (num_rows > ROWS_PER_GROUP or num_bytes > BYTES_PER_GROUP):
                write()
            waiting.append(table)
        write()
    return describe_shard(folder, shard.name)


def describe_shard(folder: Path, name: str) -> dict[str, Any]:
    """Says what one Parquet file holds, for `rpnt_build.json`.

    Args:
        folder (`Path`): The dataset.
        name (`str`): Path inside it.

    Returns:
        `dict[str, Any]`: `name`, `rows`, `bytes` and `sha256`.
    """
    path = folder / name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    num_rows = pq.read_metadata(path).num_rows
    return {"name": name, "rows": num_rows, "bytes": path.stat().st_size, "sha256": digest}


def describe_shards(folder: Path) -> list[dict[str, Any]]:
    """Says what every Parquet file of a dataset holds, where its `rpnt_build.json` does not say it yet.

    Args:
        folder (`Path`): The dataset.

    Returns:
        `list[dict]`: One entry for each file, by name.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.parquet"))
    return [describe_shard(folder, name) for name in names]
