# ruff: noqa: T201
"""`rpnt build NAME`: recordings into a dataset. The builders themselves are in `dataset_builders`."""

import argparse

from rpnt_hf.scripts import list_builders, load_builder

DESCRIPTION = "Turn recordings into a dataset of binned spikes and behaviour, split for training and test."
EXAMPLES = """\
examples:
  rpnt build synthetic --help
  rpnt build nwb --nwb-dir recordings --behavior cursor_vel --bin-size 0.05 --out dataset
  rpnt build perich_miller --nwb-dir 000688 --bin-size 0.05 --out dataset

The result is a folder of Parquet with a card; `datasets.load_dataset(folder)` reads it without this package.
Each builder has its own options: `rpnt build NAME --help`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt build`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("name", metavar="NAME", help=f"builder: {', '.join(list_builders())}")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of that builder")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt build NAME ...`.

    Args:
        arguments (`argparse.Namespace`): `name` and `options`, the words that follow it.

    Raises:
        RPNTError: The input, or the Hub, does not fit.
    """
    builder = load_builder(arguments.name)
    parser = argparse.ArgumentParser(
        prog=f"rpnt build {arguments.name}",
        description=builder.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    builder.add_arguments(parser)
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument("--push-to-hub", metavar="REPO_ID", help="push the dataset there, OWNER/NAME")
    sharing.add_argument("--private", action="store_true", help="make that repository private")
    options = parser.parse_args(arguments.options)
    if options.push_to_hub is None:
        print(builder.build(options))
        return
    from rpnt_hf.hub import check_access
    from rpnt_hf.push import plan_push, push

    check_access(options.push_to_hub)  # before the work, not after it
    folder = builder.build(options)
    print(folder)
    url, commit = push(plan_push(folder, options.push_to_hub), options.private)
    print(f"{url} at {commit}")
