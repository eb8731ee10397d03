"""Chooses the settings of the neural comparators by random search on validation trials.

    python training/tune_comparators.py --data DIR --session SESSION --trials 20 --out FILE.yaml

Test rows are never opened. What it finds is stored as training/configs/NAME_comparators.yaml.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm.auto import tqdm

from rpnt_hf.data.loading import load_rows, select_sessions, view_rows
from rpnt_hf.errors import RPNTError
from rpnt_hf.evaluation.neural_comparators import NeuralDecoder, NeuralSettings
from rpnt_hf.optimization import OptimizerConfig

KINDS = ("mlp", "gru", "lstm")
SPACE: dict[str, tuple[Any, ...]] = {
    "hidden_size": (64, 128, 192, 256),
    "num_layers": (1, 2),
    "dropout": (0.1, 0.2, 0.3, 0.5),
    "unit_dropout": (0.0, 0.1, 0.2),
    "spike_dropout": (0.0, 0.3, 0.5),
    "batch_size": (16, 32),
    "epochs": (60, 120, 200),
    "learning_rate": (1e-3, 2e-3, 4e-3),
    "weight_decay": (0.0, 0.01, 0.1, 0.3),
    "averaging_decay": (0.0, 0.99, 0.995),
}
MLP_SPACE = {"num_lags": (6, 10, 14)}
OPTIMIZER_FIELDS = {field.name for field in dataclasses.fields(OptimizerConfig)}


def draw_fields(kind: str, generator: np.random.Generator) -> dict[str, Any]:
    """Draws the fields of one candidate.

    Args:
        kind (`str`): "mlp", "gru" or "lstm".
        generator (`np.random.Generator`): Where the draw comes from.

    Returns:
        `dict[str, Any]`: As in a YAML file of settings.
    """
    space = {**SPACE, **(MLP_SPACE if kind == "mlp" else {})}
    drawn = {name: values[int(generator.integers(len(values)))] for name, values in space.items()}
    optimizer = {name: drawn.pop(name) for name in list(drawn) if name in OPTIMIZER_FIELDS}
    return {**drawn, "optimizer": optimizer}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the search.

    Args:
        argv (`Sequence[str]`, *optional*): Options; None takes those of the process.

    Returns:
        `dict`: Kind to the chosen fields, as written to the file.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="folder that `rpnt build` wrote")
    parser.add_argument("--session", required=True, help="session to tune on")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.yaml", help="file to write")
    parser.add_argument("--trials", type=int, default=20, help="candidates of each kind (default 20)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="seed of the candidates")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    train, validation = (
        select_sessions(view_rows(load_rows(arguments.data, split=split)), [arguments.session])
        for split in ("train", "validation")
    )
    chosen: dict[str, Any] = {}
    for kind in arguments.kinds:
        generator = np.random.default_rng([arguments.seed, KINDS.index(kind)])
        best = -np.inf
        for _ in tqdm(range(arguments.trials), desc=kind, unit="candidate"):
            fields = draw_fields(kind, generator)
            settings = NeuralSettings(
                **{**fields, "kind": kind, "optimizer": OptimizerConfig(**fields["optimizer"])}
            )
            score = NeuralDecoder(settings).fit(train, validation).validation_r2
            tqdm.write(
                json.dumps({"kind": kind, "validation_r2": round(score, 4), **fields}), file=sys.stderr
            )
            if score > best:
                best, chosen[kind] = score, fields
    heading = (
        f"# Best of {arguments.trials} random candidates on validation, by training/tune_comparators.py.\n"
    )
    unfinished = arguments.out.with_suffix(".unfinished")
    unfinished.write_text(heading + yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
    unfinished.replace(arguments.out)
    return chosen


if __name__ == "__main__":
    try:
        main()
    except RPNTError as error:
        sys.exit(f"error: {error}")
