"""`rpnt stream`: an NWB file through a decoder bin by bin."""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from rpnt_hf.commands.output import picture_path, print_json, print_text, table_path, write_table

DESCRIPTION = "Replay an NWB file through a decoder bin by bin, as in a closed loop, and time every step."
EXAMPLES = """\
examples:
  rpnt stream demo_out/decoder FILE.nwb
  rpnt stream demo_out/decoder FILE.nwb --realtime --max-seconds 30 --plot trace.png

In a terminal, decoded (o) and true (.) movement are drawn as the bins come. The last line of the output is
JSON: the scores of `rpnt decode`, num_bins, bin_size (s), backend, latency_ms (p50, p95, p99, max of a step),
missed_deadlines (steps that ended later than one bin after the bin was there), wakeup_lateness_ms (with
--realtime: from the end of a bin to the start of its step), interrupted and seconds. Ctrl-C ends the replay
and prints the same for what ran.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt stream`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    parser.add_argument("recording", type=Path, metavar="FILE.nwb", help="recording to replay")
    parser.add_argument("--realtime", action="store_true", help="wait for the end of each bin")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="replay this much of the recording")
    parser.add_argument(
        "--backend", choices=("torch", "onnx"), help="what computes a step (default: the faster)"
    )
    parser.add_argument("--session-id", metavar="ID", help="session of the checkpoint whose units these are")
    parser.add_argument(
        "--out", type=table_path, metavar="FILE", help="write one row per bin, .parquet or .csv"
    )
    parser.add_argument(
        "--plot", type=picture_path, metavar="FILE.png", help="draw the decoded and the true trace"
    )
    parser.add_argument(
        "--repair-spikes",
        action="store_true",
        help="sort spikes and drop duplicates instead of refusing them",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt stream`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `recording`, `realtime`, `max_seconds`, `backend`,
            `session_id`, `out`, `plot` and `repair_spikes`.

    Raises:
        CheckpointError: The checkpoint is missing, or is no decoder.
        HubError: It is on the Hub, and cannot be had from there.
        RecordingError: The recording cannot be read.
        InputError: The recording does not fit the checkpoint.
        KeyboardInterrupt: The user stopped it; what ran has been printed.
    """
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.hub import load_decoder
    from rpnt_hf.replay import plot_replay, replay_recording, shown_in_terminal

    began = time.perf_counter()
    recording = read_nwb(arguments.recording, repair_spikes=arguments.repair_spikes)
    if arguments.session_id is not None:
        recording = dataclasses.replace(recording, session_id=arguments.session_id)
    model, processor = load_decoder(arguments.checkpoint)
    replay = replay_recording(
        model,
        processor,
        recording,
        realtime=arguments.realtime,
        max_seconds=arguments.max_seconds,
        show=None if arguments.quiet else shown_in_terminal(model, processor, sys.stderr),
        **({} if arguments.backend is None else {"backend": arguments.backend}),
    )
    if arguments.out is not None:
        write_table(replay.table, arguments.out)
        print_text(arguments, arguments.out)
    if arguments.plot is not None:
        print_text(arguments, plot_replay(replay, model, arguments.plot))
    seconds = round(time.perf_counter() - began, 3)
    print_json({**replay.report(), "seconds": seconds})
    if replay.interrupted:
        raise KeyboardInterrupt
