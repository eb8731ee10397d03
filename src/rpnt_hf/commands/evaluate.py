"""`rpnt evaluate`: decoders compared by a protocol."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from rpnt_hf.commands.output import print_json, print_text
from rpnt_hf.errors import ConfigurationError, closest_names

DEFAULTS: dict[str, Any] = {
    "protocol": None,
    "data": None,
    "out": None,
    "dataset_config": None,
    "recipe": "reach",
    "targets": (),
    "methods": (),
    "amounts": (),
    "seeds": (0, 1, 2),
    "num_proc": 1,
    "min_steps": 400,
    "checkpoint": None,
    "held_out": (),
}

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
  rpnt evaluate --config training/configs/perich_miller_t_co.yaml --data dataset --out t_co
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

    def add(*names: str, **options: Any) -> None:
        parser.add_argument(*names, default=argparse.SUPPRESS, **options)

    add("protocol", nargs="?", metavar="PROTOCOL", help="what is compared; see above")
    add("--config", type=Path, metavar="FILE.yaml", help="options by name, which the command line overrides")
    add("--data", metavar="DATASET", help="folder of `rpnt build`, or Hub name; needed")
    add("--out", type=Path, metavar="DIR", help="folder to write; needed")
    add("--dataset-config", metavar="NAME", help="part of the corpus")
    add("--recipe", metavar="NAME", help="NAME of training/configs/NAME_*.yaml (default reach)")
    add("--targets", nargs="+", metavar="SESSION", help="sessions to decode (all)")
    add("--methods", nargs="+", metavar="NAME", help="decoders, or arms (all)")
    add("--amounts", nargs="+", metavar="N", help="training data: 10%% or 16 trials")
    add("--seeds", nargs="+", type=int, metavar="SEED", help="(0 1 2)")
    add("--num-proc", type=int, metavar="N", help="runs at a time (default 1)")
    add("--min-steps", type=int, metavar="N", help="steps on few trials (400)")
    add("--checkpoint", help="falcon: the decoder, a folder or Hub id")
    add("--held-out", nargs="+", metavar="SESSION", help="no pretraining sees them; falcon: held-out ones")


def read_options(arguments: argparse.Namespace) -> argparse.Namespace:
    """Completes what the command line says from `--config` and the defaults.

    Args:
        arguments (`argparse.Namespace`): Only what was given.

    Returns:
        `argparse.Namespace`: Every option.

    Raises:
        ConfigurationError: The file is missing, cannot be read or names an unknown option, or an option that
            is needed is not given.
    """
    given = vars(arguments)
    written: Any = {}
    if "config" in given:
        path = given["config"]
        try:
            written = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigurationError(
                f"`--config` must be a readable YAML file, got '{path}': {error}"
            ) from error
        if not isinstance(written, dict):
            raise ConfigurationError(
                f"`--config` must hold options by name, got {type(written).__name__} in '{path}'."
            )
        for name in written:
            if name not in DEFAULTS:
                hint = closest_names(str(name), list(DEFAULTS))
                raise ConfigurationError(
                    f"'{path}' must hold options of `rpnt evaluate`, got `{name}`.{hint}"
                )
    options = {**DEFAULTS, **written, **given}
    for name, option in (("protocol", "PROTOCOL"), ("data", "--data"), ("out", "--out")):
        if options[name] is None:
            raise ConfigurationError(
                f"`rpnt evaluate` must be given {option}, got none. See `rpnt evaluate --help`."
            )
    return argparse.Namespace(**{**options, "out": Path(options["out"])})


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt evaluate`.

    Args:
        arguments (`argparse.Namespace`): `protocol`, `config` and the arguments of
            `evaluation.evaluate.evaluate`.

    Raises:
        RPNTError: An option, the data or the folder is not what it must be.
    """
    arguments = read_options(arguments)
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
        names: tuple[str, ...] = ("target", "decoder", "coordinates", "amount", "seed", "r2")
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
            held_out=arguments.held_out,
        )
        names = ("session", "amount", "decoder", "r2", "r2_interval")
        found = [{name: row[name] for name in names} for row in results["scores"]]
    print_text(arguments, (arguments.out / "results.md").read_text())
    print_json(found)
