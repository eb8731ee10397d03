"""`rpnt adapt`: a decoder for a new day of the same units, without labels and without training."""

import argparse
import time
from pathlib import Path

from rpnt_hf.commands.output import picture_path, print_json, print_text
from rpnt_hf.errors import CheckpointError

DESCRIPTION = """\
Carry a decoder over to a new session of a subject that it knows, without labels and without training.

The units of the new recording must have the ids that they have in an earlier session of the checkpoint. They
take over its embeddings; with --reference, the recording of that session, their embeddings also move to where
a minute of unlabelled activity says that they belong now, which also gives new units a place.
"""
EXAMPLES = """\
examples:
  rpnt adapt decoder TUESDAY.nwb --out tuesday_decoder
  rpnt adapt decoder TUESDAY.nwb --reference MONDAY.nwb --out tuesday_decoder --plot tuesday.png
  rpnt decode tuesday_decoder TUESDAY.nwb

The last line of the output is JSON: reference (the session that units came from), seconds, and with
--reference shared_units, new_units, factors, misfit (0 to 1, of the same units in both recordings),
shuffled_misfit (of units paired at random) and moved (mean part of the way that the shared units went). The
behaviour of the new recording, where it has one, is only drawn.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt adapt`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    parser.add_argument("recording", type=Path, metavar="FILE.nwb", help="recording of the new session")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="FILE.nwb", help="recording of the session that units come from"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="activity to look at (default 60)"
    )
    parser.add_argument(
        "--plot", type=picture_path, metavar="FILE.png", help="draw what it now decodes of the new session"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt adapt`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `recording`, `out`, `reference`, `seconds` and
            `plot`.

    Raises:
        CheckpointError: The checkpoint is no decoder, shares no units with the recording, or `out` is in use.
        DatasetError: There is too little activity, or ids do not name the same units.
        InputError: The session is known already, or the reference is another session.
        RecordingError: A recording cannot be read.
    """
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.hub import load_decoder
    from rpnt_hf.stabilization import adapt_decoder, save_decoder

    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        raise CheckpointError(
            f"`--out` must be a new or empty folder, got '{arguments.out}', which holds something. "
            "Choose another."
        )
    began = time.perf_counter()
    recording = read_nwb(arguments.recording)
    reference = None if arguments.reference is None else read_nwb(arguments.reference)
    model, processor = load_decoder(arguments.checkpoint)
    facts = adapt_decoder(model, processor, recording, reference, arguments.seconds)
    save_decoder(model, processor, arguments.out)
    print_text(arguments, arguments.out)
    if arguments.plot is not None:
        from rpnt_hf.analysis.plots import plot_predictions, save_figure
        from rpnt_hf.decoding import decode_recording, target_unit

        table = decode_recording(model, processor, recording)
        figure = plot_predictions(table, target_unit(model), f"Session {recording.session_id}")
        print_text(arguments, save_figure(figure, arguments.plot))
    print_json({**facts, "seconds": round(time.perf_counter() - began, 3)})
