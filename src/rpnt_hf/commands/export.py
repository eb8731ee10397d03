"""`rpnt export`: a decoder for programs without this package."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text

DESCRIPTION = """\
Export the decoder of one session for programs without this package: the offline model (a window in, behaviour
at every bin out) and the step of a stream (a bin and the state in, behaviour and new state out).

Both are compared with the model before anything is written, and timed.
"""
EXAMPLES = """\
examples:
  rpnt export demo_out/decoder --format onnx --out exported --session-id SESSION
  rpnt export demo_out/decoder --format torch --out exported --session-id SESSION

writes:
  DIR/offline.onnx, DIR/step.onnx     or .pt2; session, units, bin size and targets are inside
  DIR/step_state.npz                  the state before the first bin
  DIR/run_step.py                     onnx: runs the step with numpy and onnxruntime alone; says how

The last line of the output is JSON: `offline` and `step`, each with parity (largest difference from the model
in label s.d.), exported_ms and torch_ms (medians of a window of num_bins bins, and of one bin); and `files`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt export`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    parser.add_argument("--format", required=True, choices=("onnx", "torch"), help="ONNX, or torch.export")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty"
    )
    parser.add_argument(
        "--session-id", metavar="ID", help="session of the checkpoint; needed where there are several"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="parallel streams of the step (default 1)"
    )
    parser.add_argument(
        "--max-bins", type=int, metavar="N", help="longest stream of a model without a window"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt export`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `format`, `out`, `session_id`, `batch_size` and
            `max_bins`.

    Raises:
        RPNTError: The checkpoint cannot be exported, or what was exported differs from it.
    """
    from rpnt_hf.export import export_decoder
    from rpnt_hf.hub import load_decoder

    model, processor = load_decoder(arguments.checkpoint)
    report = export_decoder(
        model, processor, arguments.out, arguments.format, arguments.session_id, arguments.batch_size,
        arguments.max_bins,
    )  # fmt: skip
    for name in report["files"]:
        print_text(arguments, arguments.out / name)
    print_json(report)
