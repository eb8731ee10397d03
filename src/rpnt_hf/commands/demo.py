"""`rpnt demo`: the whole path on simulated recordings."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text

DESCRIPTION = """\
Run the whole path on simulated recordings: no data, no network, at most five minutes on two cores.

Recordings of three subjects are simulated and written as NWB, built into a dataset and used for
pretraining, all but one session. A decoder of that session is then trained from scratch and from the
pretrained weights and compared with ridge regression, saved, loaded again through the Auto classes and
run on the NWB file.
"""
EXAMPLES = """\
examples:
  rpnt demo --out demo_out
  rpnt demo --out demo_out --seed 3

writes:
  DIR/report.md, DIR/report.json    scores of the three decoders, with times
  DIR/decoder/                      the finetuned checkpoint, for `rpnt decode` and from_pretrained
  DIR/*.png                         decoded trajectories by direction, velocity traces, training curves
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt demo`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and training (default 0)")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt demo`.

    Args:
        arguments (`argparse.Namespace`): `out` and `seed`.
    """
    from rpnt_hf.demo import run as run_demo

    report = run_demo(arguments.out, seed=arguments.seed)
    print_text(arguments, (arguments.out / "report.md").read_text())
    print_json(report["r2"])
