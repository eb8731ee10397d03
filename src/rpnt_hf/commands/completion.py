"""`rpnt completion`: what a shell needs to complete `rpnt`."""

import argparse

from rpnt_hf.commands.build import add_builder_arguments
from rpnt_hf.commands.output import print_json, print_text
from rpnt_hf.scripts import list_builders, load_builder

DESCRIPTION = "Print the script that makes a shell complete commands, options and files of `rpnt`."
EXAMPLES = """\
examples:
  rpnt completion bash > ~/.local/share/bash-completion/completions/rpnt
  rpnt completion zsh > ~/.zsh/completions/_rpnt

In bash for this session only: eval "$(rpnt completion bash)". The script is made by the package shtab
(pip install shtab) and does not need it afterwards. Write it again after an upgrade.
"""
FOLDERS = ("DIR", "DATASET", "CHECKPOINT", "CHECKPOINT_OR_DATASET")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt completion`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt completion`.

    Args:
        arguments (`argparse.Namespace`): `shell`.

    Raises:
        ImportError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "`rpnt completion` must have the package shtab, which is not installed. Install it: "
            "pip install shtab"
        ) from error

    from rpnt_hf.cli import build_parser  # which imports this module

    parser = build_parser()
    _spell_out_builders(parser)
    for action in _actions(parser):
        if action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif str(action.metavar).startswith("FILE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(parser, arguments.shell)
    print_text(arguments, script)
    if arguments.json:
        print_json({"shell": arguments.shell, "script": script})


def _spell_out_builders(parser: argparse.ArgumentParser) -> None:
    """Puts every builder with its options where `rpnt build` takes a name and whatever follows."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    build = commands.choices["build"]
    for action in [action for action in build._actions if not action.option_strings]:
        build._remove_action(action)
    builders = build.add_subparsers()
    for name in list_builders():
        builder = load_builder(name)
        summary = (builder.__doc__ or name).split("\n", 1)[0]  # shtab leaves out what has none
        add_builder_arguments(builders.add_parser(name, help=summary), builder)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Lists the options and arguments of every command."""
    found: list[argparse.Action] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.help = None  # shtab leaves out what help leaves out
            found += [inner for command in action.choices.values() for inner in _actions(command)]
        else:
            found.append(action)
    return found
