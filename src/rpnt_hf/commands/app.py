"""`rpnt app`: recordings, decoding and finetuning in a browser."""

import argparse
import importlib.util
import re
import time

from rpnt_hf.commands.output import print_json, print_text
from rpnt_hf.errors import ConfigurationError

DESCRIPTION = """\
Serve a page on which a recording is decoded bin by bin, looked into, and trained on.

Choose a simulated recording or upload an NWB file, and a decoder: the bundled one, a folder, or one of the
Hub. Needs the extra `app`: pip install 'rpnt_hf[app]'. The page fetches nothing from elsewhere.
"""
EXAMPLES = """\
examples:
  rpnt app
  rpnt app --checkpoint demo_out/decoder my-lab/reach-decoder
  rpnt app --host 0.0.0.0 --port 7860 --no-browser --no-folders

With --json the address is printed as JSON. Ctrl-C ends the page. Uploads are removed when they are read, and
decoders that were trained on the page when it ends, or an hour after their visitor has left. With --host
0.0.0.0 everybody who can reach this machine can use the page: add --no-folders, so that visitors cannot name
folders of it.
"""


def _port(word: str) -> int:
    """Reads a port."""
    if not word.isdecimal() or not 1 <= int(word) <= 65535:
        raise argparse.ArgumentTypeError(f"the port must be a number from 1 to 65535, got '{word}'")
    return int(word)


def _size(word: str) -> str:
    """Reads a size as Gradio takes it."""
    if not re.fullmatch(r"[0-9]+(kb|mb|gb)", word.lower()):
        raise argparse.ArgumentTypeError(f"the size must be a number with kb, mb or gb, got '{word}'")
    return word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt app`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine alone)")
    add("--port", type=_port, help="port (default: the first free one from 7860 on)")
    add(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="CHECKPOINT",
        help="decoders to offer: folders, Hub ids",
    )
    add("--max-upload", type=_size, default="500mb", metavar="SIZE", help="largest upload (default 500mb)")
    add("--no-browser", action="store_true", help="do not open a browser")
    add("--no-folders", action="store_true", help="visitors may not name folders of this machine")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt app` until it is interrupted.

    Args:
        arguments (`argparse.Namespace`): `host`, `port`, `checkpoint`, `max_upload`, `no_browser` and
            `no_folders`.

    Raises:
        ConfigurationError: Gradio is not installed, or the port is taken.
        CheckpointError: A checkpoint is missing, or is no decoder.
        HubError: It is on the Hub, and cannot be had from there.
        KeyboardInterrupt: The user ended it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigurationError(
            "`rpnt app` must have the package `gradio`, which is not installed: pip install 'rpnt_hf[app]'"
        )
    from rpnt_hf.app.page import launch, make_page
    from rpnt_hf.hub import load_decoder

    for checkpoint in arguments.checkpoint:
        load_decoder(checkpoint)  # before the page opens, not when a visitor chooses it
    blocks = make_page(arguments.checkpoint, allow_folders=not arguments.no_folders)
    try:
        _, address, _ = launch(
            blocks,
            arguments.host,
            arguments.port,
            arguments.max_upload,
            inbrowser=not arguments.no_browser,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ConfigurationError(
            f"`--host` and `--port` must be free to listen on, got {arguments.host} and "
            f"{arguments.port or 'none'}. Choose another port. ({error})"
        ) from error
    print_text(arguments, f"The page is at {address} (Ctrl-C ends it)")
    if arguments.json:
        print_json({"address": address})
    try:
        while True:
            time.sleep(1)
    finally:
        blocks.close(verbose=False)
