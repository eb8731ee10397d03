"""Build a dataset from the recordings of Perich and Miller (layout of DANDI:000688).

Four macaques (C, J, M, T) with arrays in M1 and PMd, center-out and random-target reaching; each task is a
part of the dataset (`center_out`, `random_target`). Failed trials (result other than R) are left out.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation

from rpnt_hf.data.binning import derive_velocity
from rpnt_hf.data.builder import (
    CorpusRecording,
    add_build_arguments,
    build_dataset,
    config_from,
    find_nwb_files,
)
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.errors import ConfigurationError, RecordingError

DANDISET = "000688"  # what `rpnt download perich_miller` brings
TASKS = ("center_out", "random_target")

# An outlier is a sample with more than this acceleration, with as many samples around, or this far from the
# centre.
MAX_ACCELERATION = 1500.0  # cm/s2
SAMPLES_AROUND = 2
MAX_DISTANCE = 10.0  # cm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rpnt build perich_miller`.

    Args:
        parser (`argparse.ArgumentParser`): Parser of the command.
    """
    add_build_arguments(parser)
    add = parser.add_argument
    folder = "folder of NWB files (as of `rpnt download perich_miller`), or one file"
    add("--nwb-dir", type=Path, required=True, metavar="DIR", help=folder)
    add(
        "--exclude-outliers",
        action="store_true",
        help="no labels where the cursor jumps or leaves the workspace",
    )


def build(arguments: argparse.Namespace) -> Path:
    """Builds the dataset.

    Args:
        arguments (`argparse.Namespace`): Parsed options.

    Returns:
        `Path`: the built folder.

    Raises:
        ConfigurationError: If outliers are to be excluded beside a split file.
    """
    if arguments.exclude_outliers and arguments.split_file:
        raise ConfigurationError(
            "`--exclude-outliers` must not be used with `--split-file`, which excludes nothing beyond "
            "itself. Leave one of them out."
        )
    config = config_from(arguments, derive_velocity=True)
    read = functools.partial(
        read_recording, repair_spikes=config.repair_spikes, exclude_outliers=arguments.exclude_outliers
    )
    card = Path(__file__).with_name("README.md")
    return build_dataset(
        find_nwb_files(arguments.nwb_dir), arguments.out, config, "perich_miller", card, arguments.nwb_dir,
        read=read, num_proc=arguments.num_proc, add=arguments.add,
    )  # fmt: skip


def read_recording(path: Path, repair_spikes: bool, exclude_outliers: bool) -> CorpusRecording:
    """Reads a file and adds what is known about this corpus.

    Args:
        path (`Path`): NWB file.
        repair_spikes (`bool`): Whether spikes are sorted and freed of duplicates.
        exclude_outliers (`bool`): Whether the labels of outliers become NaN.

    Returns:
        `CorpusRecording`: with its task as part of the corpus, and failed trials excluded.

    Raises:
        RecordingError: If the task of a file is neither center-out nor random-target.
    """
    recording = read_nwb(path, repair_spikes=repair_spikes)
    task = str(recording.task)
    if task not in TASKS:
        raise RecordingError(
            f"The task must be one of {list(TASKS)}, got {recording.task} in '{path.name}'. Name it as "
            "in `sub-C_ses-CO-20131003_behavior+ecephys.nwb` (CO or RT), or use `rpnt build nwb`."
        )
    notes: list[str] = []
    if exclude_outliers:
        recording, notes = without_outliers(recording)
    return CorpusRecording(recording, task, failed_trials(recording.trials), notes)


def failed_trials(trials: pd.DataFrame) -> dict[int, str]:
    """Gives the trials that were not rewarded.

    Args:
        trials (`pd.DataFrame`): Trials of a file.

    Returns:
        `dict[int, str]`: reason by index; empty where the file has no results.
    """
    if "result" not in trials.columns:
        return {}
    return {index: f"result {result}" for index, result in enumerate(trials["result"]) if result != "R"}


def without_outliers(recording: Recording) -> tuple[Recording, list[str]]:
    """Makes the velocity NaN where the cursor jumps or is outside the workspace.

    The centre of the workspace is the median cursor position; where a file has no position only jumps are
    found.

    Args:
        recording (`Recording`): With `cursor_vel` in cm/s, or `cursor_pos` in cm.

    Returns:
        `tuple[Recording, list[str]]`: the recording, and a note for the card.

    Raises:
        RecordingError: If neither is there, or units are not centimetres.
    """
    position = recording.behavior.get("cursor_pos")
    velocity = recording.behavior.get("cursor_vel")
    if velocity is None and position is not None:
        velocity = derive_velocity(position)
    if velocity is None or velocity.unit != "cm/s" or (position is not None and position.unit != "cm"):
        raise RecordingError(
            "Outliers need `cursor_vel` in cm/s or `cursor_pos` in cm, got "
            f"{ {name: series.unit for name, series in recording.behavior.items()} } in session "
            f"'{recording.session_id}'. Build without `--exclude-outliers`."
        )
    outlier = find_outliers(velocity, position)
    values = np.where(outlier[:, None], np.nan, velocity.values)
    behavior = recording.behavior | {"cursor_vel": dataclasses.replace(velocity, values=values)}
    note = (
        f"{np.count_nonzero(outlier)} of {len(outlier)} samples of cursor_vel are outliers and have no label"
    )
    return dataclasses.replace(recording, behavior=behavior), [note]


def find_outliers(velocity: BehaviorSeries, position: BehaviorSeries | None) -> np.ndarray:
    """Finds samples where the cursor jumps or is outside the workspace.

    That is an acceleration over 1500 cm/s2, with 2 samples around, or over 10 cm from the median position.

    Args:
        velocity (`BehaviorSeries`): Cursor velocity in cm/s.
        position (`BehaviorSeries` or `None`): Cursor position in cm.

    Returns:
        `np.ndarray` of shape `(num_samples,)`: True where a sample of the velocity is an outlier.
    """
    acceleration = np.diff(velocity.values, axis=0, prepend=velocity.values[:1])
    seconds = np.diff(velocity.timestamps, prepend=velocity.timestamps[0] - 1.0)
    size = np.linalg.norm(acceleration, axis=1) / seconds
    outlier = binary_dilation(size > MAX_ACCELERATION, np.ones(2 * SAMPLES_AROUND + 1, dtype=bool))
    if position is not None:
        distance = np.linalg.norm(position.values - np.nanmedian(position.values, axis=0), axis=1)
        outlier |= np.interp(velocity.timestamps, position.timestamps, distance > MAX_DISTANCE) > 0
    return outlier
