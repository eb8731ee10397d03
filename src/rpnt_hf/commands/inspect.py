"""`rpnt inspect`: what is in a recording, a dataset or a checkpoint."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rpnt_hf.commands.output import picture_path, print_json, print_text
from rpnt_hf.errors import RPNTError
from rpnt_hf.scripts import find_reference_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DESCRIPTION = """\
Say what is in an NWB file, a built dataset or a checkpoint, and what is wrong with it. Nothing is changed.

Of a file: units and their rates, sites, trials, behaviour, problems with what to do about each, and the
`rpnt build` command that takes it. Of a dataset: sessions, splits, units, targets, licence. Of a checkpoint:
task, network, the sessions that it knows, what it was trained on, how to use it.
"""
EXAMPLES = """\
examples:
  rpnt inspect recording.nwb --plot recording.png
  rpnt inspect dataset
  rpnt inspect rpnt-tiny-synthetic-decoder --json
  rpnt inspect demo_out/decoder --plot training.png
  rpnt inspect demo_out/decoder --on recording.nwb --plot kernels.png

The picture shows: of a file, spikes, behaviour and rates; of a dataset, minutes and rates of every session;
of a checkpoint, loss and score over its training where that left a `history.json`; with --on, or without that
file, the kernels of its context attention (where it has none, its attention) on that recording, or on random
spikes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt inspect`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument(
        "thing", metavar="FILE.nwb|DATASET|CHECKPOINT", help="a file, a folder, a bundled name or a Hub id"
    )
    parser.add_argument("--dataset-config", metavar="NAME", help="part of a dataset (all)")
    parser.add_argument("--plot", type=picture_path, metavar="FILE.png", help="draw it")
    parser.add_argument(
        "--on", type=Path, metavar="FILE.nwb", help="recording on which --plot shows a checkpoint"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt inspect`.

    Args:
        arguments (`argparse.Namespace`): `thing`, `dataset_config`, `plot` and `on`.

    Raises:
        RPNTError: There is no such thing, or it is broken.
    """
    kind = find_kind(arguments.thing)
    if kind == "recording":
        from rpnt_hf.inspection.recording import describe_recording, inspect_nwb

        recording, report = inspect_nwb(arguments.thing)
        text = describe_recording(report)
    elif kind == "dataset":
        from rpnt_hf.inspection.dataset import describe_dataset, inspect_dataset

        report = inspect_dataset(arguments.thing, arguments.dataset_config)
        text = describe_dataset(report)
    else:
        from rpnt_hf.inspection.checkpoint import describe_checkpoint, inspect_checkpoint

        report = inspect_checkpoint(arguments.thing)
        text = describe_checkpoint(report)
    print_text(arguments, text)
    if arguments.plot is not None:
        from rpnt_hf.analysis import plots

        if kind == "recording":
            figure = plots.plot_recording(recording)
        elif kind == "dataset":
            figure = plots.plot_dataset(report["sessions"], report["title"] or report["name"])
        else:
            figure = _draw_checkpoint(arguments.thing, arguments.on)
        print_text(arguments, plots.save_figure(figure, arguments.plot))
    if arguments.json:
        print_json(report)


def _draw_checkpoint(checkpoint: str, on: Path | None) -> "Figure":
    """Draws how a checkpoint was trained, or its context kernels, or its attention where it has none."""
    from rpnt_hf.analysis.plots import plot_attention, plot_context_kernels, plot_training_curves
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.inspection.checkpoint import checkpoint_maps

    history = Path(checkpoint) / "history.json"
    if on is None and history.is_file():
        return plot_training_curves(json.loads(history.read_text(encoding="utf-8")))
    recording = None if on is None else read_nwb(on)
    maps = checkpoint_maps(checkpoint, recording)
    data = "random spikes" if recording is None else recording.session_id
    title = f"{Path(checkpoint).name} on {data}"
    if maps.kernels:
        return plot_context_kernels([layer[0] for layer in maps.kernels], maps.bin_size, title)
    return plot_attention(maps.attentions[0][0], maps.bin_size, maps.num_anchors, maps.start_time, title)


def find_kind(thing: str) -> str:
    """Says what a name stands for.

    Args:
        thing (`str`): A file, a folder, the name of a bundled checkpoint, or an id on the Hub.

    Returns:
        `str`: "recording", "dataset" or "checkpoint". An id on the Hub is a dataset where there is one of
        that name and no model.

    Raises:
        RPNTError: It stands for nothing.
        HubError: The Hub cannot be asked.
    """
    path = Path(thing)
    if path.is_file() or path.suffix == ".nwb":
        return "recording"
    if path.is_dir():
        is_checkpoint = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        return "checkpoint" if is_checkpoint else "dataset"
    if find_reference_checkpoint(thing) is not None:
        return "checkpoint"
    from huggingface_hub import HfApi

    from rpnt_hf.hub import explained, is_repo_id

    name = thing.partition("@")[0]
    if not is_repo_id(name):
        raise RPNTError(
            "What is inspected must be an NWB file, a folder, a bundled checkpoint or an id on the Hub "
            f"(OWNER/NAME), got '{thing}', which is none of these. Check the name."
        )
    with explained(f"'{thing}' is no file or folder here and cannot be looked up on the Hub"):
        is_dataset = not HfApi().repo_exists(name) and HfApi().repo_exists(name, repo_type="dataset")
    return "dataset" if is_dataset else "checkpoint"
