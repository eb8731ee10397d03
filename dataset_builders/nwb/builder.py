"""Build a dataset from any folder of NWB files: the way in for a lab's own recordings.

Trials are divided over the splits where the files have them, blocks with a guard gap where they have none.
"""

import argparse
from pathlib import Path

from rpnt_hf.data.builder import add_build_arguments, build_dataset, config_from, find_nwb_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rpnt build nwb`.

    Args:
        parser (`argparse.ArgumentParser`): Parser of the command.
    """
    add_build_arguments(parser)
    add = parser.add_argument
    add("--nwb-dir", type=Path, required=True, metavar="DIR", help="folder of NWB files, or one file")
    naming = "series to decode (default: cursor_vel, else hand_vel)"
    add("--behavior", nargs="+", default=(), metavar="SERIES", help=naming)
    add("--derive-velocity", action="store_true", help="derive X_vel from X_pos where a file lacks it")
    add("--allow-no-behavior", action="store_true", help="take files without the series, for spikes alone")
    sharing = "files whose names agree in the first group of REGEX are one session, with the same units"
    add("--session-pattern", metavar="REGEX", help=sharing)


def build(arguments: argparse.Namespace) -> Path:
    """Builds the dataset.

    Args:
        arguments (`argparse.Namespace`): Parsed options.

    Returns:
        `Path`: the built folder.
    """
    config = config_from(arguments)
    files = find_nwb_files(arguments.nwb_dir)
    card = Path(__file__).with_name("README.md")
    return build_dataset(
        files, arguments.out, config, "nwb", card, arguments.nwb_dir, num_proc=arguments.num_proc,
        add=arguments.add,
    )  # fmt: skip
