"""`rpnt decode`: movement from an NWB file."""

import argparse
import dataclasses
import time
from pathlib import Path

from rpnt_hf.commands.output import picture_path, print_json, print_text, table_path, write_table

DESCRIPTION = "Decode movement from an NWB file; score it where the file has the behaviour."
EXAMPLES = """\
examples:
  rpnt decode demo_out/decoder FILE.nwb
  rpnt decode demo_out/decoder FILE.nwb --out predictions.parquet --plot traces.png

The last line of the output is JSON: r2 (mean over the decoded dimensions), r2_variance_weighted and
num_scored_bins, on bins that the decoder was neither trained nor chosen on; r2_fitted and so on, on bins
that it was, which are no test; num_bins and seconds. Scores are null where there is no bin or no behaviour
to compare with.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt decode`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    parser.add_argument("recording", type=Path, metavar="FILE.nwb", help="recording to decode")
    parser.add_argument(
        "--out", type=table_path, metavar="FILE", help="write one row per bin, .parquet or .csv; may exist"
    )
    parser.add_argument(
        "--plot", type=picture_path, metavar="FILE.png", help="draw decoded and true movement of 30 s"
    )
    parser.add_argument("--session-id", metavar="ID", help="session of the checkpoint whose units these are")
    parser.add_argument(
        "--repair-spikes",
        action="store_true",
        help="sort spikes and drop duplicates instead of refusing them",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt decode`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `recording`, `out`, `plot`, `session_id` and
            `repair_spikes`.

    Raises:
        CheckpointError: The checkpoint is missing, or is no decoder.
        HubError: It is on the Hub, and cannot be had from there.
        RecordingError: The recording cannot be read.
        InputError: The recording does not fit the checkpoint.
    """
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.decoding import decode_recording, score_table, target_unit
    from rpnt_hf.hub import load_decoder

    began = time.perf_counter()
    recording = read_nwb(arguments.recording, repair_spikes=arguments.repair_spikes)
    if arguments.session_id is not None:
        recording = dataclasses.replace(recording, session_id=arguments.session_id)
    model, processor = load_decoder(arguments.checkpoint)
    table = decode_recording(model, processor, recording)
    scores = score_table(table)
    seconds = round(time.perf_counter() - began, 3)
    if arguments.out is not None:
        write_table(table, arguments.out)
        print_text(arguments, arguments.out)
    if arguments.plot is not None:
        from rpnt_hf.analysis.plots import plot_predictions, save_figure

        figure = plot_predictions(table, target_unit(model), f"Session {recording.session_id}")
        print_text(arguments, save_figure(figure, arguments.plot))
    print_json({**scores, "num_bins": len(table), "seconds": seconds})
