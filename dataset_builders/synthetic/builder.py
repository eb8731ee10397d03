"""Build a dataset of simulated reaching recordings, by way of NWB files.

No data and no network are needed. Recordings are simulated, written as NWB in the layout of DANDI:000688, and
built from these files like any other corpus; each task is a part of the dataset. Failed trials (result F) are
left out.
"""

import argparse
import functools
import tempfile
from pathlib import Path

from rpnt_hf.data.builder import (
    CorpusRecording,
    add_build_arguments,
    build_dataset,
    config_from,
    find_nwb_files,
)
from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.data.reaches import TASKS
from rpnt_hf.data.simulate import SimulationConfig, simulate_session, write_nwb
from rpnt_hf.errors import DatasetError

DEFAULTS = SimulationConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rpnt build synthetic`.

    Args:
        parser (`argparse.ArgumentParser`): Parser of the command.
    """
    add_build_arguments(parser)
    add = parser.add_argument
    add(
        "--nwb-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write the NWB files to; new or empty",
    )
    add("--corpus-seed", type=int, default=DEFAULTS.seed, metavar="N", help="seed of the simulation")
    add(
        "--tasks",
        nargs="+",
        default=DEFAULTS.tasks,
        choices=list(TASKS),
        help="tasks, taken in turn by the sessions",
    )
    for name, description in {
        "num_subjects": "subjects",
        "sessions_per_subject": "sessions of each subject",
        "num_units": "units of each site",
        "num_sites": "recording sites of each subject",
        "num_trials": "trials of each session",
        "depth": "scale of the tuning; larger is easier to decode",
        "noise": "scale of the fluctuations of the rates",
        "drift": "standard deviation over weeks of preferred directions, rad",
    }.items():
        default = getattr(DEFAULTS, name)
        option = "--" + name.replace("_", "-")
        add(
            option,
            type=type(default),
            default=default,
            metavar="N",
            help=f"{description} (default {default})",
        )


def build(arguments: argparse.Namespace) -> Path:
    """Simulates, writes the NWB files, and builds the dataset from them.

    A build that fails leaves neither NWB files nor a dataset.

    Args:
        arguments (`argparse.Namespace`): Parsed options.

    Returns:
        `Path`: the built folder.

    Raises:
        DatasetError: If the folder for the NWB files holds something.
    """
    config = config_from(arguments)
    simulation = SimulationConfig(
        seed=arguments.corpus_seed,
        tasks=tuple(arguments.tasks),
        num_subjects=arguments.num_subjects,
        sessions_per_subject=arguments.sessions_per_subject,
        num_units=arguments.num_units,
        num_sites=arguments.num_sites,
        num_trials=arguments.num_trials,
        depth=arguments.depth,
        noise=arguments.noise,
        drift=arguments.drift,
    )
    nwb_dir: Path = arguments.nwb_dir
    if nwb_dir.exists() and (not nwb_dir.is_dir() or any(nwb_dir.iterdir())):
        raise DatasetError(
            f"`--nwb-dir` must not exist or be an empty folder, got '{nwb_dir}', which holds something. "
            "Remove it or choose another one."
        )
    nwb_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=nwb_dir.parent, prefix=f".{nwb_dir.name}-") as temporary:
        folder = Path(temporary) / "nwb"
        write_corpus(simulation, folder)
        card = Path(__file__).with_name("README.md")
        read = functools.partial(read_recording, repair_spikes=config.repair_spikes)
        output_dir = build_dataset(
            find_nwb_files(folder), arguments.out, config, "synthetic", card, read=read,
            num_proc=arguments.num_proc, add=arguments.add, keep_finished=False,
        )  # fmt: skip
        folder.rename(nwb_dir)
    return output_dir


def write_corpus(simulation: SimulationConfig, nwb_dir: Path) -> None:
    """Writes one NWB file per session, `sub-A/sub-A_ses-CO-20240115_behavior+ecephys.nwb`.

    Args:
        simulation (`SimulationConfig`): What to simulate.
        nwb_dir (`Path`): Folder for the files.
    """
    for subject in range(simulation.num_subjects):
        for session in range(simulation.sessions_per_subject):
            recording = simulate_session(simulation, subject, session)
            name = f"{recording.session_id}_behavior+ecephys.nwb"
            write_nwb(recording, nwb_dir / f"sub-{recording.subject_id}" / name)


def read_recording(path: Path, repair_spikes: bool) -> CorpusRecording:
    """Reads a file, with the task as part of the corpus and failed trials excluded.

    Args:
        path (`Path`): NWB file.
        repair_spikes (`bool`): Whether spikes are sorted and freed of duplicates.

    Returns:
        `CorpusRecording`: for `build_dataset`.
    """
    recording = read_nwb(path, repair_spikes=repair_spikes)
    results = enumerate(recording.trials["result"])
    failed = {index: f"result {result}" for index, result in results if result != "R"}
    return CorpusRecording(recording, recording.task or "default", failed)
