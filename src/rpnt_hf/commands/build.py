"""`rpnt build NAME`: recordings into a dataset. The builders themselves are in `dataset_builders`."""

import argparse
from types import ModuleType

from rpnt_hf.commands.output import add_output_arguments, print_json, print_text
from rpnt_hf.scripts import list_builders, load_builder

DESCRIPTION = "Turn recordings into a dataset of binned spikes and behaviour, split for training and test."
EXAMPLES = """\
examples:
  rpnt build synthetic --help
  rpnt build nwb --nwb-dir recordings --behavior cursor_vel --bin-size 0.05 --out dataset
  rpnt build perich_miller --nwb-dir 000688 --bin-size 0.05 --out dataset

The result is a folder of Parquet with a card; `datasets.load_dataset(folder)` reads it without this package.
Each builder has its own options: `rpnt build NAME --help`. `rpnt inspect FILE.nwb` says what suits a file.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt build`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("name", metavar="NAME", help=f"builder: {', '.join(list_builders())}")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of that builder")


def builder_parser(name: str, builder: ModuleType) -> argparse.ArgumentParser:
    """Describes the options of one builder.

    Args:
        name (`str`): Its name.
        builder (`ModuleType`): Its module, from `scripts.load_builder`.

    Returns:
        `argparse.ArgumentParser`: Parser of what follows the name.
    """
    parser = argparse.ArgumentParser(
        prog=f"rpnt build {name}",
        description=builder.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_builder_arguments(parser, builder)
    return parser


def add_builder_arguments(parser: argparse.ArgumentParser, builder: ModuleType) -> None:
    """Adds the options of one builder, and those that all of them have.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
        builder (`ModuleType`): Its module, from `scripts.load_builder`.
    """
    builder.add_arguments(parser)
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument("--push-to-hub", metavar="REPO_ID", help="push the dataset there, OWNER/NAME")
    sharing.add_argument("--private", action="store_true", help="make that repository private")
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt build NAME ...`.

    Args:
        arguments (`argparse.Namespace`): `name` and `options`, the words that follow it.

    Raises:
        RPNTError: The input, or the Hub, does not fit.
    """
    builder = load_builder(arguments.name)
    options = builder_parser(arguments.name, builder).parse_args(arguments.options)
    options.json |= arguments.json
    if options.push_to_hub is not None:
        from rpnt_hf.hub import check_access

        check_access(options.push_to_hub)  # before the work, not after it
    folder = builder.build(options)
    print_text(options, folder)
    url, commit = None, None
    if options.push_to_hub is not None:
        from rpnt_hf.push import plan_push, push

        url, commit = push(plan_push(folder, options.push_to_hub), options.private)
        print_text(options, f"{url} at {commit}")
    if options.json:
        print_json({"folder": folder, "url": url, "commit": commit})
