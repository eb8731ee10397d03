"""`rpnt evaluate`: decoders compared by a protocol."""

import argparse
from pathlib import Path

from rpnt_hf.commands.output import print_json, print_text
from rpnt_hf.errors import ConfigurationError

DESCRIPTION = """\
Compare decoders on the sessions of a built dataset, with intervals and a verdict.

PROTOCOL is one of within-session, few-shot, cross-session, cross-task, cross-subject, ablation. Our decoder
is trained in every mode of the protocol (pretrained first where there is transfer, never on the session that
is decoded), and ridge, Kalman filter, MLP, GRU and LSTM on the same trials. Test trials are scored once.
PROTOCOL cross-site leaves one site (--targets SESSION/SITE) at a time out of pretraining and decodes it from
scratch and from what was pretrained, with its true coordinates, those of another site, and none.
PROTOCOL falcon feeds a finished decoder (--checkpoint) bin by bin through the interface of that benchmark.
"""
EXAMPLES = """\
examples:
  rpnt evaluate within-session --data dataset --out evaluation --num-proc 2
  rpnt evaluate few-shot --data dataset --out few --recipe transfer --targets SESSION --amounts 8 16 100%
  rpnt evaluate ablation --data dataset --out ablation --seeds 0 1 2 3 4
  rpnt evaluate cross-site --data dataset --recipe neuropixel_slots --out sites --amounts 10% 100%
  rpnt evaluate falcon --data dataset --checkpoint decoder --held-out SESSION --out falcon

An evaluation that was interrupted goes on where it stopped when the same command is given again.

writes:
  DIR/results.md, DIR/results.json    scores, intervals, comparisons, failed runs, command, commit, seeds
  DIR/*.png                           scores by session and by training trials, trajectories by direction
  DIR/runs/                           every decoder with its predictions
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt evaluate`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("protocol", metavar="PROTOCOL", help="what is compared; see above")
    parser.add_argument(
        "--data", required=True, metavar="DATASET", help="folder of `rpnt build`, or Hub name"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--dataset-config", metavar="NAME", help="part of the corpus")
    parser.add_argument(
        "--recipe", default="reach", help="NAME of training/configs/NAME_*.yaml (default reach)"
    )
    parser.add_argument(
        "--targets", nargs="+", default=[], metavar="SESSION", help="sessions to decode (all)"
    )
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="decoders, or arms (all)")
    parser.add_argument(
        "--amounts", nargs="+", default=[], metavar="N", help="training data: 10%% or 16 trials"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="(0 1 2)")
    parser.add_argument("--num-proc", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--min-steps", type=int, default=400, metavar="N", help="steps on few trials (400)")
    parser.add_argument("--checkpoint", help="falcon: the decoder, a folder or Hub id")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="SESSION", help="falcon: held-out ones")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt evaluate`.

    Args:
        arguments (`argparse.Namespace`): `protocol` and the arguments of `evaluation.evaluate.evaluate`.
    """
    if arguments.protocol == "falcon":
        from rpnt_hf.evaluation.falcon import evaluate_falcon

        if arguments.checkpoint is None:
            raise ConfigurationError("Protocol 'falcon' must have the decoder as `--checkpoint`, got none.")
        results = evaluate_falcon(
            data=arguments.data,
            out=arguments.out,
            dataset_config=arguments.dataset_config,
            checkpoint=arguments.checkpoint,
            held_out=arguments.held_out,
        )
        found = results["sessions"]
    elif arguments.protocol == "cross-site":
        from rpnt_hf.evaluation.cross_site import METHODS, evaluate_cross_site

        results = evaluate_cross_site(
            arguments.data,
            arguments.out,
            dataset_config=arguments.dataset_config,
            recipe=arguments.recipe,
            targets=arguments.targets,
            methods=arguments.methods or METHODS,
            amounts=arguments.amounts or ("10%", "100%"),
            seeds=arguments.seeds,
            num_proc=arguments.num_proc,
            min_steps=arguments.min_steps,
        )
        names = ("target", "decoder", "coordinates", "amount", "seed", "r2")
        found = [{name: row[name] for name in names} for row in results["table"]]
    else:
        from rpnt_hf.evaluation.evaluate import evaluate

        results = evaluate(
            arguments.protocol,
            arguments.data,
            arguments.out,
            dataset_config=arguments.dataset_config,
            recipe=arguments.recipe,
            targets=arguments.targets,
            methods=arguments.methods,
            amounts=arguments.amounts,
            seeds=arguments.seeds,
            num_proc=arguments.num_proc,
            min_steps=arguments.min_steps,
        )
        names = ("session", "amount", "decoder", "r2", "r2_interval")
        found = [{name: row[name] for name in names} for row in results["scores"]]
    print_text(arguments, (arguments.out / "results.md").read_text())
    print_json(found)
