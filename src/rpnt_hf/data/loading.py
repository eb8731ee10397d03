"""Loads built datasets and picks what a run trains on: sessions, trials, label statistics.

Rows stay memory-mapped: their large columns are views of the Arrow file. Not here: cutting windows
(`windows.py`).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import DatasetError, closest_names
from .card import BUILD_FILE
from .remote import RemoteDataset, is_url
from .rows import row_behavior, row_counts, row_site_observed, scored_bins

logger = logging.getLogger(__name__)

__all__ = ["label_statistics", "load_rows", "select_sessions", "select_trials", "unit_means", "view_rows"]

Row = Mapping[str, Any]

COLUMNS = (
    "session_id", "subject_id", "task", "recording_date", "site_ids", "site_positions", "bin_size",
    "start_time", "num_bins", "num_context_bins", "unit_ids", "unit_sites", "counts", "observed", "behavior",
    "behavior_names", "behavior_units", "trials", "source",
)  # fmt: skip
ALL_PARTS = "all"
BINARY_COLUMNS = {"counts": 1, "observed": 1, "behavior": 4}  # bytes per value


def load_rows(data: str | Path, config_name: str | None = None, split: str = "train") -> datasets.Dataset:
    """Opens one split of a built dataset through plain `datasets.load_dataset`.

    Args:
        data (`str` or `Path`): Folder that `rpnt build` wrote, its URL (http, s3 and whatever else fsspec
            knows), or the name of a dataset on the Hub. What is elsewhere is brought into the cache.
        config_name (`str`, *optional*): Part of the corpus; None where there is only one, "all" for all.
        split (`str`, *optional*, defaults to `"train"`): "train", "validation" or "test".

    Returns:
        `datasets.Dataset`: Memory-mapped rows.

    Raises:
        DatasetError: Nothing of that name can be loaded, or it is not a built dataset.
    """
    if (
        not is_url(data)
        and not Path(data).is_dir()
        and (Path(data).is_absolute() or str(data).count("/") != 1 or str(data)[0] == ".")
    ):
        raise DatasetError(
            "`data` must be a folder that `rpnt build` wrote, or a dataset on the Hub (owner/name), got "
            f"'{data}', and there is no such folder. Check the path."
        )
    if Path(data).is_dir():
        _check_files(Path(data))
    if config_name == ALL_PARTS:
        parts = [load_rows(data, name, split) for name in _list_parts(data)]
        return datasets.concatenate_datasets(parts)
    try:
        if is_url(data):
            files = [str(file) for file in RemoteDataset.open(data).download(config_name, split)]
            dataset = datasets.load_dataset("parquet", data_files={split: files}, split=split)
        else:
            dataset = datasets.load_dataset(str(data), config_name, split=split)
    except DatasetError:
        raise
    except (datasets.exceptions.DatasetGenerationError, OSError) as error:
        if isinstance(error, FileNotFoundError | ConnectionError):
            raise _not_loadable(data, config_name, split, error) from error
        reason = str(error.__cause__ or error).splitlines()[0]
        raise DatasetError(
            f"Split '{split}' of '{data}' must fit into the cache of `datasets` at "
            f"'{datasets.config.HF_DATASETS_CACHE}', but it could not be written or read. Make room, or "
            f"name another folder by HF_DATASETS_CACHE. ({reason})"
        ) from error
    except ValueError as error:
        raise _not_loadable(data, config_name, split, error) from error
    pa.default_memory_pool().release_unused()  # of filling the cache: 0.1 GB at 200 sessions
    missing = [name for name in COLUMNS if name not in dataset.column_names]
    if missing:
        raise DatasetError(
            f"Split '{split}' of '{data}' must have the columns of a built dataset, but {', '.join(missing)} "
            "are missing. Build it with `rpnt build`."
        )
    return dataset


def _check_files(folder: Path) -> None:
    """Compares the files of a built dataset with the list of them: a copy that ended early lacks some."""
    if not (folder / BUILD_FILE).is_file():
        return
    try:
        shards = json.loads((folder / BUILD_FILE).read_text(encoding="utf-8")).get("shards", [])
        sizes = {folder / shard["name"]: shard["bytes"] for shard in shards}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise DatasetError(
            f"`{BUILD_FILE}` of a dataset must list its files, but that of '{folder}' cannot be read. Copy "
            f"or build the dataset again. ({error!r})"
        ) from error
    for path, size in sizes.items():
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise DatasetError(
                f"A dataset must have every file that its `{BUILD_FILE}` lists, but '{path}' has {found} of "
                f"{size} bytes. Copy or build the dataset again."
            )


def _list_parts(data: str | Path) -> list[str]:
    """Names the parts of a corpus."""
    if is_url(data):
        return RemoteDataset.open(data).config_names
    return sorted(datasets.get_dataset_config_names(str(data)))


def _not_loadable(data: str | Path, config_name: str | None, split: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"A dataset with configuration {config_name} and split '{split}' must be in '{data}', but it "
        f"cannot be loaded: {error}. Build it with `rpnt build`, or name another `dataset_config`."
    )


def view_rows(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """Makes plain rows whose large columns are views of the memory-mapped file.

    Args:
        dataset (`datasets.Dataset`): Rows of a built dataset.

    Returns:
        `list[dict]`: One per row. `counts`, `observed` and `behavior` are buffers that `np.frombuffer` reads
        without copying (see `rows.py`); the other columns are Python values.
    """
    tables = dataset.with_format("arrow")
    rows: list[dict[str, Any]] = []
    for i in range(len(dataset)):
        table = tables[i]
        row = {}
        for name in table.column_names:
            values = table.column(name).chunk(0)
            row[name] = _view(values) if name in BINARY_COLUMNS else values[0].as_py()
            if rows and rows[-1][name] == row[name] and name not in BINARY_COLUMNS:
                row[name] = rows[-1][name]  # rows of a session share their lists
        rows.append(row)
    return rows


def _view(values: pa.LargeBinaryArray) -> pa.Buffer | None:
    """Slices the bytes of one value out of its array's buffer; `values[0].as_buffer()` would copy them."""
    if not values[0].is_valid:
        return None
    _, offsets, content = values.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[values.offset : values.offset + 2].tolist()
    return content.slice(start, stop - start) if stop > start else pa.py_buffer(b"")


def select_sessions(
    rows: Sequence[Row], include: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> list[Row]:
    """Keeps the rows of some sessions.

    Args:
        rows (`Sequence[Mapping]`): Rows of one split.
        include (`Sequence[str]`, *optional*): Sessions to keep; None keeps all.
        exclude (`Sequence[str]`, *optional*, defaults to `()`): Sessions to leave out.

    Returns:
        `list[Mapping]`: The rows that remain, in the same order.

    Raises:
        DatasetError: A named session is not in the rows, or nothing remains.
    """
    known = sorted({row["session_id"] for row in rows})
    for name in [*(include or ()), *exclude]:
        if name not in known:
            raise DatasetError(
                "Sessions to keep or exclude must be in the dataset, got "
                f"'{name}'.{closest_names(name, known)} There are: {', '.join(known)}."
            )
    kept = [
        row
        for row in rows
        if (include is None or row["session_id"] in include) and row["session_id"] not in exclude
    ]
    if not kept:
        raise DatasetError(
            f"At least one session must remain, got none out of {', '.join(known) or 'no rows'}."
        )
    return kept


def select_trials(
    rows: Sequence[Row], count: int | None = None, fraction: float | None = None, seed: int = 0
) -> tuple[list[Row], int]:
    """Keeps a random few of the training trials, and no bin of any other (DESIGN section 5, few-shot).

    Each kept trial brings the bins from its start to the start of the next trial of its row; neighbours that
    are both kept stay one row. A trial without scored bins is not counted.

    Args:
        rows (`Sequence[Mapping]`): Training rows.
        count (`int`, *optional*): Number of trials over all rows, at least 1; at most those there are.
        fraction (`float`, *optional*): Share of the trials instead, in (0, 1]; at least one trial is kept.
        seed (`int`, *optional*, defaults to 0): Decides which; fewer trials are a subset of more.

    Returns:
        `tuple[list[Mapping], int]`: Rows cut to the kept trials, and the number of trials kept. With neither
        number the rows come back as they are.

    Raises:
        DatasetError: Both numbers are given, one is out of range, or there are no trials.
    """
    trials = [
        (row_index, trial_index)
        for row_index, row in enumerate(rows)
        for scored in [scored_bins(row)]
        for trial_index, trial in enumerate(row["trials"] or [])
        if scored[trial["start_bin"] : trial["stop_bin"]].any()
    ]
    if count is None and fraction is None:
        return list(rows), len(trials)
    if not trials or (count is not None and fraction is not None):
        raise DatasetError(
            f"Training trials must be chosen by count or by fraction out of at least one, got count={count}, "
            f"fraction={fraction} and {len(trials)} trials with scored bins."
        )
    if fraction is not None and 0 < fraction <= 1:
        count = max(1, round(fraction * len(trials)))
    if count is None or not 1 <= count <= len(trials):
        raise DatasetError(
            f"Training trials must be 1 to {len(trials)} (those with scored bins) or a fraction in (0, 1], "
            f"got count={count}, fraction={fraction}."
        )
    order = np.random.default_rng(seed).permutation(len(trials))[:count]
    kept = {trials[i] for i in order}
    cut: list[Row] = []
    for row_index, row in enumerate(rows):
        indices = [i for i in range(len(row["trials"] or [])) if (row_index, i) in kept]
        groups = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if indices else []
        cut += [_cut_row(row, int(group[0]), int(group[-1])) for group in groups]
    return cut, count


def _cut_row(row: Row, first_trial: int, last_trial: int) -> dict[str, Any]:
    """Cuts a row to the bins from the start of one trial to the start of the trial after another."""
    trials = row["trials"]
    start = max(trials[first_trial]["start_bin"], row["num_context_bins"])
    is_last = last_trial + 1 == len(trials)
    stop = row["num_bins"] if is_last else trials[last_trial + 1]["start_bin"]
    cut = dict(row)
    for column, size in BINARY_COLUMNS.items():
        width = len(row[column] or b"") // (row["num_bins"] * size)  # `observed` may differ between sites
        stride = width * size
        cut[column] = memoryview(row[column] or b"")[start * stride : stop * stride]
    cut["num_bins"], cut["num_context_bins"] = stop - start, 0
    cut["start_time"] = row["start_time"] + start * row["bin_size"]
    cut["trials"] = [
        {
            name: max(value - start, -1) if name.endswith("_bin") and value >= 0 else value
            for name, value in trial.items()
        }
        for trial in trials[first_trial : last_trial + 1]
    ]
    return cut


def label_statistics(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Measures mean and standard deviation of the behaviour over scored bins, for `RPNTConfig`.

    Args:
        rows (`Sequence[Mapping]`): Training rows.

    Returns:
        `tuple[list[float], list[float]]`: Mean and standard deviation of each target, in its unit.

    Raises:
        DatasetError: There is no scored bin, or a target does not vary.
    """
    values = [row_behavior(row)[scored_bins(row)].astype(np.float64) for row in rows]
    behavior = np.concatenate([value for value in values if len(value)] or [np.zeros((0, 0))])
    if not len(behavior):
        sessions = ", ".join(sorted({row["session_id"] for row in rows}))
        raise DatasetError(
            "Training rows must have bins with behaviour to learn from, got none in "
            f"{sessions or 'no rows'}. Build the dataset with behaviour."
        )
    mean, std = behavior.mean(axis=0), behavior.std(axis=0)
    # Numbers of 32 bits that are all the same differ by rounding once they are averaged.
    if not (std > 1e-6 * np.abs(behavior).max(axis=0)).all():
        raise DatasetError(
            f"Every target must vary over the training bins, got standard deviations {std.tolist()} for "
            f"{rows[0]['behavior_names']}."
        )
    return mean.tolist(), std.tolist()


def unit_means(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Measures the mean count per bin of every unit, the null model of bits per spike.

    Args:
        rows (`Sequence[Mapping]`): Training rows.

    Returns:
        `dict[str, np.ndarray]`: Per session, shape `(num_units,)`: spikes per bin over the observed bins of
        the unit's site.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    bins: dict[str, NDArray[np.float64]] = {}
    for row in rows:
        learned = slice(row["num_context_bins"], None)
        observed = row_site_observed(row)[learned]
        session_id = row["session_id"]
        # Where a site is absent, its counts are 0.
        counts = row_counts(row)[learned][observed.any(axis=1)].sum(axis=0, dtype=np.float64)
        sums[session_id] = sums.get(session_id, np.zeros_like(counts)) + counts
        of_units = observed.sum(axis=0)[np.asarray(row["unit_sites"], dtype=np.int64)]
        bins[session_id] = bins.get(session_id, np.zeros_like(counts)) + of_units
    return {session_id: sums[session_id] / np.maximum(bins[session_id], 1) for session_id in sums}
