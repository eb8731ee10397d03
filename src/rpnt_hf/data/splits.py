"""Which trials, and with them which bins, are for training, validation and test.

Drawn once, when a dataset is built, or read from a split file. Not for choosing fewer training trials later:
that is a matter of evaluation.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rpnt_hf.data.binning import EDGE_TOLERANCE
from rpnt_hf.errors import SplitError, closest_names

SPLITS = ("train", "validation", "test")


def draw_split(
    strata: Sequence[str], key: str, seed: int, proportions: Sequence[float] = (0.7, 0.1, 0.2)
) -> list[str]:
    """Divides trials over the splits at random, each stratum in nearly the same proportions.

    Trials are shuffled inside their stratum, strata laid one after another, and validation and test trials
    picked at even distances. The result depends on nothing but the arguments.

    Args:
        strata (`Sequence[str]`): One name per trial, for example its target; trials of one name are spread
            evenly.
        key (`str`): Name that makes the draw its own, for example the session.
        seed (`int`): Seed of all draws.
        proportions (`Sequence[float]`, defaults to `(0.7, 0.1, 0.2)`): Parts of train, validation and test,
            which add up to 1; a part above 0 gets at least one trial.

    Returns:
        `list[str]`: the split of each trial.

    Raises:
        SplitError: If the proportions do not add up to 1, or there are fewer trials than splits.

    Example:
        ```python
        >>> sorted(draw_split(["left", "right"] * 5, "day1", seed=0))
        ['test', 'test', 'train', 'train', 'train', 'train', 'train', 'train', 'train', 'validation']

        ```
    """
    parts = np.asarray(proportions, dtype=np.float64)
    if parts.shape != (3,) or (parts < 0).any() or abs(parts.sum() - 1) > 1e-6 or parts[0] == 0:
        raise SplitError(
            "`proportions` must be three parts (train above 0, validation, test) that add up to 1, got "
            f"{list(proportions)}."
        )
    num_trials = len(strata)
    if num_trials < np.count_nonzero(parts):
        raise SplitError(
            f"A session must have at least {np.count_nonzero(parts)} trials or blocks to be divided, got "
            f"{num_trials} in '{key}'. Use a shorter `block_length`, or set the parts of some splits to 0."
        )
    sizes = np.where(parts > 0, np.maximum(1, np.round(parts * num_trials)), 0).astype(int)
    num_validation, num_test = sizes[1:]
    while num_validation + num_test >= num_trials:
        num_validation, num_test = (
            (num_validation, num_test - 1) if num_test > 1 else (num_validation - 1, num_test)
        )
    digest = hashlib.sha256(key.encode()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
    order = np.lexsort(
        (rng.random(num_trials), np.unique(np.asarray(strata, dtype=str), return_inverse=True)[1])
    )
    splits = np.full(num_trials, "train", dtype=object)
    for name, number in (("test", num_test), ("validation", num_validation)):
        left = order[splits[order] == "train"]
        splits[left[((np.arange(number) + rng.random()) * len(left) / max(number, 1)).astype(int)]] = name
    return splits.tolist()


def make_blocks(
    obs_intervals: np.ndarray, bin_size: float, block_length: float, guard: float
) -> pd.DataFrame:
    """Cuts observed intervals into blocks that stand for trials where there are none.

    Blocks start on bin edges and last `block_length` (rounded to bins); the last one of an interval also
    takes what remains, and an interval shorter than that is one block.

    Args:
        obs_intervals (`np.ndarray` of shape `(num_intervals, 2)`): Start and stop in s.
        bin_size (`float`): Width of a bin in s.
        block_length (`float`): Length of a block in s, above 0.
        guard (`float`): Gap that is kept free between blocks of different splits in s, at least 0.

    Returns:
        `pd.DataFrame`: one row per block with `start_time` and `stop_time` in s.

    Raises:
        SplitError: If two guards do not fit into a block with a bin between them.
    """
    block_bins = round(block_length / bin_size)
    guard_bins = num_guard_bins(guard, bin_size)
    if block_bins <= 2 * guard_bins:
        raise SplitError(
            f"`block_length` must be longer than two guards, got {block_length} s with a `guard` of {guard} "
            f"s and bins of {bin_size} s. Use longer blocks or a shorter guard."
        )
    rows = []
    for start, stop in obs_intervals:
        num_bins = int(np.floor((stop - start) / bin_size + EDGE_TOLERANCE))
        edges = np.arange(0, max(num_bins - block_bins, 0) + 1, block_bins)
        edges = np.append(edges, num_bins)
        rows += [(start + a * bin_size, start + b * bin_size) for a, b in pairwise(edges)]
    return pd.DataFrame([row for row in rows if row[1] > row[0]], columns=["start_time", "stop_time"])


def num_guard_bins(guard: float, bin_size: float) -> int:
    """Gives the number of bins that a guard needs.

    Args:
        guard (`float`): Gap in s, at least 0.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `int`: number of bins, rounded up.

    Raises:
        SplitError: If the guard is negative.
    """
    if not guard >= 0:
        raise SplitError(f"`guard` must be at least 0 s, got {guard}.")
    return int(np.ceil(guard / bin_size - EDGE_TOLERANCE))


def split_bins(
    num_bins: int,
    first_bins: np.ndarray,
    stop_bins: np.ndarray,
    splits: Sequence[str | None],
    guard_bins: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every bin of one interval to a split, so that no bin of a test trial is in another one.

    The interval is cut where trials start: a segment reaches from the start of its trial to the start of the
    next one, the first from the first bin. Segments of excluded trials (split `None`) join the segment before
    them, else the one behind, unless that is a test segment; else they are training bins. Then every bin that
    a validation or test trial touches goes to its split, test last. At last each run of held-out bins takes
    `guard_bins` from its neighbours in training, and test also from validation.

    Args:
        num_bins (`int`): Number of bins of the interval.
        first_bins (`np.ndarray` of shape `(num_trials,)`): Bin in which each trial starts, in order.
        stop_bins (`np.ndarray` of shape `(num_trials,)`): First bin that lies wholly behind each trial.
        splits (`Sequence[str | None]`): Split of each trial, `None` where excluded.
        guard_bins (`int`, defaults to 0): Bins that held-out runs take from their neighbours.

    Returns:
        `tuple[np.ndarray, np.ndarray]` of shape `(num_bins,)` each: index of the split in `SPLITS`; and True
        where the bin belongs to the segment of an excluded trial, or to an interval without trials.

    Example:
        ```python
        >>> bins, excluded = split_bins(6, np.array([1, 3]), np.array([3, 5]), ["train", "test"])
        >>> bins.tolist()
        [0, 0, 0, 2, 2, 2]

        ```
    """
    numbers = [SPLITS.index(split) if split is not None else -1 for split in splits]
    resolved: list[int] = []
    for index, number in enumerate(numbers):
        before = resolved[-1] if resolved else 2
        behind = next((other for other in numbers[index:] if other >= 0), 2)
        resolved.append(
            number if number >= 0 else next((other for other in (before, behind) if other != 2), 0)
        )
    bins = np.zeros(num_bins, dtype=np.int64)
    excluded = np.full(num_bins, not numbers)
    starts = np.append(first_bins, num_bins)
    for index, number in enumerate(resolved):
        first = 0 if index == 0 else max(starts[index], 0)
        bins[first : max(starts[index + 1], 0)] = number
        excluded[first : max(starts[index + 1], 0)] = numbers[index] < 0
    for held_out in (1, 2):
        for first, stop, number in zip(first_bins, stop_bins, numbers, strict=True):
            if number == held_out:
                bins[max(first, 0) : max(stop, 0)] = number
                excluded[max(first, 0) : max(stop, 0)] = False
    for held_out in (1, 2):
        is_held_out = bins >= held_out
        for shift in range(1, guard_bins + 1):
            near = np.zeros(num_bins, dtype=bool)
            near[:-shift] |= is_held_out[shift:]
            near[shift:] |= is_held_out[:-shift]
            bins[near & (bins < held_out)] = held_out
    return bins, excluded


@dataclass(frozen=True)
class SplitFile:
    """A fixed split of trials, read from JSON.

    Trials that it does not name are excluded: they are in no split's scored bins. It is the only thing that
    excludes trials; results and outliers do not.

    Args:
        name (`str`): Name of the file, for errors and cards.
        by_session (`dict[str, dict[int, str]]`): Per session id the split of each named trial.
        by_file (`dict[str, dict[int, str]]`): The same by name of the NWB file, of the single-file form.
    """

    name: str
    by_session: dict[str, dict[int, str]]
    by_file: dict[str, dict[int, str]]

    @classmethod
    def read(cls, path: str | Path) -> "SplitFile":
        """Reads either form of split file.

        `{"sessions": {session_id: {"train": [trial_index], "validation": [...], "test": [...]}}}`, or for a
        single file `{"file": name, "trials": {"train": [...], ...}}`, where other keys are notes.

        Args:
            path (`str` or `Path`): A JSON file.

        Returns:
            `SplitFile`: the split.

        Raises:
            SplitError: If the file is missing, is neither form, or puts a trial into two splits.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise SplitError(
                f"`split_file` must be a JSON file, got '{path}' ({error}). Check the name."
            ) from error
        if isinstance(content, dict) and isinstance(content.get("sessions"), dict):
            sessions = {
                name: _split_of_trials(lists, name, path) for name, lists in content["sessions"].items()
            }
            return cls(path.name, sessions, {})
        if isinstance(content, dict) and isinstance(content.get("file"), str) and "trials" in content:
            file_name = Path(content["file"]).name
            return cls(path.name, {}, {file_name: _split_of_trials(content["trials"], file_name, path)})
        raise SplitError(
            f"`split_file` must have `sessions`, or `file` and `trials`, got neither in '{path}'. Write "
            '{"sessions": {session_id: {"train": [...], "validation": [...], "test": [...]}}}.'
        )

    def splits_of(self, session_id: str, file_name: str | None, num_trials: int) -> dict[int, str]:
        """Gives the split of each named trial of a session.

        Args:
            session_id (`str`): The session.
            file_name (`str` or `None`): Name of its NWB file.
            num_trials (`int`): Number of trials that it has.

        Returns:
            `dict[int, str]`: split by index of the trial.

        Raises:
            SplitError: If the file does not name the session, or names a trial that it does not have.
        """
        splits = self.by_session.get(session_id, self.by_file.get(file_name or ""))
        if splits is None:
            known = [*self.by_session, *self.by_file]
            raise SplitError(
                f"`split_file` must name every session, got nothing for session '{session_id}' in "
                f"'{self.name}', which names {known}. Add it, or build without "
                f"it.{closest_names(session_id, known)}"
            )
        outside = sorted(index for index in splits if not 0 <= index < num_trials)
        if outside:
            raise SplitError(
                f"`split_file` must name trials from 0 to {num_trials - 1}, got {outside[:5]} for session "
                f"'{session_id}' in '{self.name}'. Count trials from 0, by row of the NWB table."
            )
        return splits


def _split_of_trials(lists: Mapping[str, Any], name: str, path: Path) -> dict[int, str]:
    unknown = sorted(set(lists) - set(SPLITS)) if isinstance(lists, Mapping) else ["no mapping"]
    if unknown:
        raise SplitError(f"A split must be one of {list(SPLITS)}, got {unknown} for '{name}' in '{path}'.")
    splits: dict[int, str] = {}
    for split, indices in lists.items():
        for index in indices:
            if not isinstance(index, int) or isinstance(index, bool):
                raise SplitError(
                    f"A trial must be named by its index, got {index!r} for '{name}' in '{path}'."
                )
            if index in splits:
                raise SplitError(
                    f"A trial must be in one split only, got trial {index} of '{name}' in {splits[index]} "
                    f"and {split} in '{path}'. Remove one of them."
                )
            splits[index] = split
    if not splits:
        raise SplitError(
            f"A session must have at least one trial in a split, got none for '{name}' in '{path}'."
        )
    return splits
