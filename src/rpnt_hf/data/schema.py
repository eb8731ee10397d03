"""What a row of a built dataset holds, and the options that a build takes.

The row schema is fixed here and nowhere else. Not for reading or writing rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Features, List, Value

from rpnt_hf.data.binning import check_bin_size
from rpnt_hf.data.nwb import Recording
from rpnt_hf.errors import BinningError, ConfigurationError

FEATURES = Features(
    {
        "session_id": Value("string"),
        "subject_id": Value("string"),
        "task": Value("string"),
        "recording_date": Value("date32"),
        "site_ids": List(Value("string")),
        "site_positions": List(List(Value("float64"))),
        "bin_size": Value("float64"),
        "start_time": Value("float64"),
        "num_bins": Value("int64"),
        "num_context_bins": Value("int64"),
        "unit_ids": List(Value("string")),
        "unit_sites": List(Value("int64")),
        "counts": Value("large_binary"),
        "observed": Value("large_binary"),
        "behavior": Value("large_binary"),
        "behavior_names": List(Value("string")),
        "behavior_units": List(Value("string")),
        "trials": List(
            {
                "trial_index": Value("int64"),
                "start_bin": Value("int64"),
                "stop_bin": Value("int64"),
                "scored_start_bin": Value("int64"),
                "scored_stop_bin": Value("int64"),
                "go_cue_bin": Value("int64"),
                "move_onset_bin": Value("int64"),
                "target_dir": Value("float64"),
                "result": Value("string"),
                "condition": Value("string"),
                "label": Value("int64"),
                "trial_columns": Value("string"),
            }
        ),
        "source": {"file_name": Value("string"), "sha256": Value("string")},
    }
)


@dataclass(frozen=True)
class BuilderConfig:
    """How recordings become rows; saved with the dataset in `rpnt_build.json`.

    Args:
        bin_size (`float`): Width of a bin in s, above 0.
        behavior (`tuple[str, ...]`, defaults to `()`): Series to decode; where empty, the first of
            `cursor_vel` and `hand_vel` that a recording has.
        derive_velocity (`bool`, defaults to `False`): Derive `X_vel` from `X_pos` by backward differences
            where a recording lacks it.
        allow_no_behavior (`bool`, defaults to `False`): Take recordings that lack the series, with no
            targets, instead of refusing them; for pretraining on spikes alone.
        context_length (`float`, defaults to 1.0): Seconds of past that validation and test rows begin with.
        block_length (`float`, defaults to 5.0): Length in s of the blocks that stand for trials where there
            are none.
        guard (`float`, defaults to 1.0): Seconds around held-out blocks that are neither scored nor trained
            on.
        proportions (`tuple[float, float, float]`, defaults to `(0.7, 0.1, 0.2)`): Parts of training,
            validation and test trials.
        seed (`int`, defaults to 0): Seed of the split.
        split_file (`str` or `None`, defaults to `None`): JSON file with a fixed split instead of a drawn one.
            Trials that it does not name are excluded, and it excludes nothing beyond that.
        session_pattern (`str` or `None`, defaults to `None`): Regular expression on file stems; files where
            its first group (or the whole match) is equal are one session and must have the same units.
        repair_spikes (`bool`, defaults to `False`): Sort spikes and drop duplicates instead of refusing them.
        license (`str` or `None`, defaults to `None`): Licence of the data as the Hub names it, such as
            "cc-by-4.0", for the card; None for what the source or the corpus states.

    Raises:
        BinningError: If `bin_size` is not above 0.
        ConfigurationError: If another field is out of range.
    """

    bin_size: float
    behavior: tuple[str, ...] = ()
    derive_velocity: bool = False
    allow_no_behavior: bool = False
    context_length: float = 1.0
    block_length: float = 5.0
    guard: float = 1.0
    proportions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0
    split_file: str | None = None
    session_pattern: str | None = None
    repair_spikes: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_bin_size(self.bin_size)
        if self.bin_size > 1:
            raise BinningError(
                f"`bin_size` must be a width in seconds of at most 1, got {self.bin_size}. For milliseconds "
                f"divide by 1000: {self.bin_size / 1000:g}."
            )
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise ConfigurationError(
                "`license` must be an identifier in lower case as the Hub has it, such as 'cc-by-4.0', "
                f"'cc0-1.0' or 'other', got '{self.license}'."
            )
        for name in ("context_length", "guard", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if not self.block_length > 0:
            raise ConfigurationError(f"`block_length` must be above 0 s, got {self.block_length}.")


@dataclass(frozen=True)
class CorpusRecording:
    """A recording with what its corpus knows about it.

    Args:
        recording (`Recording`): The recording.
        config_name (`str`, defaults to `"default"`): Part of the corpus that it belongs to.
        excluded_trials (`Mapping[int, str]`, defaults to `{}`): Reason by index of the trials to leave out; a
            split file overrides it.
        notes (`Sequence[str]`, defaults to `()`): Lines for the card, for example what was masked.
        splits (`Mapping[int, str]` or `None`, defaults to `None`): Split by index of the trials, where the
            corpus has drawn it; trials that it does not name are excluded. Not together with a split file.
        site_intervals (`Sequence[np.ndarray]` or `None`, defaults to `None`): For each site the intervals in
            s in which it was recorded, shape `(intervals, 2)`; None where all were all the time.
    """

    recording: Recording
    config_name: str = "default"
    excluded_trials: Mapping[int, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    splits: Mapping[int, str] | None = None
    site_intervals: Sequence[np.ndarray] | None = None
