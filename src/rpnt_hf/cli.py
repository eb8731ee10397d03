"""The command `rpnt`: its table of contents, and how the chosen command is run.

What a command does is in `commands/NAME.py`, imported only where that command is the chosen one. Not for
training: `training/pretrain.py` and `training/finetune.py` run under `accelerate launch`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from rpnt_hf import __version__
from rpnt_hf.commands.output import add_output_arguments
from rpnt_hf.errors import RPNTError, closest_names

# Group, command, what it does in one line: `rpnt --help` in this order.
COMMANDS = {
    "Start here": {
        "demo": "run the whole path on simulated recordings, from NWB files to a decoder",
        "app": "decode, look into a decoder and train one on a page in the browser",
        "info": "print versions and devices, for reports of bugs",
        "completion": "print what makes a shell complete these commands",
    },
    "Data": {
        "inspect": "say what is in a recording, dataset or checkpoint, and what is wrong",
        "download": "bring recordings of a public corpus from the DANDI archive",
        "build": "turn recordings into a dataset for training",
    },
    "Train and evaluate": {
        "evaluate": "compare decoders on a dataset, with intervals",
        "connectivity": "map which recording sites draw on which",
    },
    "Decode": {
        "decode": "decode movement from an NWB file",
        "adapt": "carry a decoder over to a new day of the same units, without labels",
        "stream": "replay an NWB file bin by bin, in real time or not",
    },
    "Share": {
        "export": "write a decoder for programs without this package",
        "push": "push a checkpoint or a dataset to the Hub",
    },
}
NOTES = {
    "Train and evaluate": "    To train: accelerate launch training/pretrain.py, or training/finetune.py",
}
RULES = """\
`rpnt COMMAND --help` explains a command, with examples.

Output: a result goes to standard output; messages and progress bars go to standard error (bars only in a
terminal). With --json a command prints its result as one line of JSON and nothing else, with --quiet neither
messages nor bars.

Exit codes:
    0    done
    1    the machine refused: a file, a missing extra
    2    the input, an option or the Hub refused; the message says what to do
    130  interrupted
"""
SILENCE = ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS")


def build_parser(chosen: Iterable[str] | None = None) -> argparse.ArgumentParser:
    """Describes the commands of `rpnt`.

    Args:
        chosen (`Iterable[str]`, *optional*): Commands to describe with their arguments; all where left out.

    Returns:
        `argparse.ArgumentParser`: Parser whose result has `run`, the function that takes the arguments.
    """
    parser = argparse.ArgumentParser(
        prog="rpnt",
        usage="rpnt [--help] [--version] COMMAND ...",
        description=_contents(),
        epilog=RULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rpnt {__version__}")
    subparsers = parser.add_subparsers(prog="rpnt", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name, summary in list_commands().items():
        if chosen is None or name in chosen:
            module = import_module(f"rpnt_hf.commands.{name}")
            command = subparsers.add_parser(
                name,
                help=summary,
                description=module.DESCRIPTION,
                epilog=module.EXAMPLES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(command)
            add_output_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def list_commands() -> dict[str, str]:
    """Lists the commands.

    Returns:
        `dict[str, str]`: Name to what it does in one line.
    """
    return {name: summary for group in COMMANDS.values() for name, summary in group.items()}


def _contents() -> str:
    """Writes the table of contents."""
    width = max(map(len, list_commands()))
    lines = ["Spikes in, movement out: RPNT, a pretrained transformer for intracortical recordings."]
    for group, commands in COMMANDS.items():
        lines += ["", f"{group}:", *(f"    {name:<{width}}  {line}" for name, line in commands.items())]
        lines += [NOTES[group]] if group in NOTES else []
    return "\n".join(lines)


@contextmanager
def _messages(quiet: bool) -> Iterator[None]:
    """Sends the log of the package to standard error for a while, and keeps progress bars to terminals."""
    handler = logging.StreamHandler(sys.stderr)
    loggers = [logging.getLogger(name) for name in ("rpnt_hf", "rpnt_hf_scripts")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    silenced = [name for name in SILENCE if name not in os.environ]
    if quiet or not sys.stderr.isatty():
        os.environ.update(dict.fromkeys(silenced, "1"))
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for name in silenced:
            os.environ.pop(name, None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv (`Sequence[str]`, *optional*): Words after `rpnt`; those of the process where left out.

    Returns:
        `int`: 0, 2 where the input or the Hub refused (`RPNTError`), or an option does not exist, 1 where the
        machine refused (a file, a missing extra), 130 where the user interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    name = words[0]
    if not name.startswith("-") and name not in list_commands():
        close = closest_names(name, list_commands())
        print(f"rpnt: COMMAND must be one that `rpnt --help` lists, got '{name}'.{close}", file=sys.stderr)
        return 2
    arguments = build_parser([name]).parse_args(words)
    with _messages(arguments.quiet or "--quiet" in getattr(arguments, "options", [])):
        try:
            arguments.run(arguments)
        except RPNTError as error:
            print(f"rpnt: {error}", file=sys.stderr)
            return 2
        except (OSError, ImportError) as error:
            print(f"rpnt: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("rpnt: interrupted", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
