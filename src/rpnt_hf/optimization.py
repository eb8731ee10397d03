"""What training runs share: checks, options of optimiser and schedule, weight averaging, the command line.

Not here: the loops, which stand in `training/`.
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jsonargparse
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel

from .errors import ConfigurationError, DatasetError, closest_names

__all__ = [
    "OptimizerConfig",
    "as_list",
    "average_weights",
    "check_range",
    "check_sessions",
    "make_optimizer",
    "make_schedule",
    "parse_options",
    "train_only",
    "train_only_rows",
]

Options = TypeVar("Options")


@dataclass
class OptimizerConfig:
    """AdamW, its learning-rate schedule and weight averaging.

    Args:
        learning_rate: Highest learning rate, above 0.
        weight_decay: Decoupled weight decay of matrices; biases, norms and embeddings have none.
        beta2: Decay of the second moment, in (0, 1).
        max_grad_norm: Norm to which gradients are clipped, above 0.
        schedule: "one_cycle" (rise to the highest rate, cosine fall), "cosine" (linear warmup, cosine fall)
            or "constant" (linear warmup).
        warmup_fraction: Share of all steps in which the rate rises, in [0, 1).
        averaging_decay: Highest decay per step of the moving average of weights, in [0, 1); 0 is off. After n
            steps the decay is (1 + n) / (10 + n) where that is less. The averaged weights are what is
            validated and saved.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup_fraction: float = 0.1
    averaging_decay: float = 0.0


def check_range(name: str, value: float, holds: bool, rule: str) -> None:
    """Refuses an option that is out of range.

    Args:
        name (`str`): The option.
        value (`float`): What it is.
        holds (`bool`): Whether it is right.
        rule (`str`): What must hold.

    Raises:
        ConfigurationError: If it is not right.
    """
    if not holds:
        raise ConfigurationError(f"`{name}` must be {rule}, got {value}. Change it in the configuration.")


def check_sessions(
    train: Iterable[Mapping[str, Any]], held_out: Iterable[Mapping[str, Any]], remedy: str
) -> None:
    """Refuses sessions that would be scored without having been trained on.

    Args:
        train (`Iterable[Mapping]`): Training rows.
        held_out (`Iterable[Mapping]`): Validation and test rows.
        remedy (`str`): What to do about such sessions, for the message.

    Raises:
        DatasetError: A session has held-out rows and no training rows.
    """
    missing = {row["session_id"] for row in held_out} - {row["session_id"] for row in train}
    if missing:
        raise DatasetError(
            "Every session with validation or test rows must have training rows, got none for "
            f"{', '.join(sorted(missing))}. {remedy}, or build the dataset with another split."
        )


def make_optimizer(
    model: nn.Module, config: OptimizerConfig, body_rate: float = 1.0, unit_rate: float = 1.0
) -> torch.optim.AdamW:
    """Makes AdamW over the parameters that require gradients.

    Args:
        model (`nn.Module`): The model.
        config (`OptimizerConfig`): The options.
        body_rate (`float`, *optional*, defaults to 1.0):
            Share of the learning rate, in (0, 1], for everything but embeddings (Howard and Ruder 2018,
            arXiv:1801.06146). With slots for embeddings too: all sessions share them.
        unit_rate (`float`, *optional*, defaults to 1.0):
            That of embeddings of units, in (0, 1].

    Returns:
        `torch.optim.AdamW`: With one group that decays and two that do not, vectors and embeddings (a row
        that a batch does not use must stay as it is).

    Raises:
        ConfigurationError: An option is out of range.
    """
    check_range("learning_rate", config.learning_rate, config.learning_rate > 0, "above 0")
    check_range("body_rate", body_rate, 0 < body_rate <= 1, "in (0, 1]")
    check_range("unit_rate", unit_rate, 0 < unit_rate <= 1, "in (0, 1]")
    check_range("weight_decay", config.weight_decay, config.weight_decay >= 0, "0 or more")
    check_range("beta2", config.beta2, 0 < config.beta2 < 1, "in (0, 1)")
    check_range("max_grad_norm", config.max_grad_norm, config.max_grad_norm > 0, "above 0")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # Rows of an embedding that adapters keep beside it.
    embeddings |= {id(weight) for name, weight in model.named_parameters() if "trainable_tokens" in name}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2 and id(parameter) not in embeddings]
    vectors = [parameter for parameter in trained if parameter.ndim < 2 and id(parameter) not in embeddings]
    rows = [parameter for parameter in trained if id(parameter) in embeddings]
    slower = config.learning_rate * body_rate
    has_own_rows = getattr(getattr(model, "config", None), "unit_embedding", "vocabulary") == "vocabulary"
    of_units = config.learning_rate * unit_rate if has_own_rows else slower
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr": slower},
        {"params": vectors, "weight_decay": 0.0, "lr": slower},
        {"params": rows, "weight_decay": 0.0, "lr": of_units},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=(0.9, config.beta2)
    )


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_steps: int) -> LRScheduler:
    """Makes the learning-rate schedule.

    Args:
        optimizer (`torch.optim.Optimizer`): The optimiser.
        config (`OptimizerConfig`): The options.
        num_steps (`int`): Optimiser steps of the whole run, at least 1.

    Returns:
        `LRScheduler`: To be stepped after each optimiser step.
    """
    check_range("warmup_fraction", config.warmup_fraction, 0 <= config.warmup_fraction < 1, "in [0, 1)")
    if config.schedule == "one_cycle":
        # One step more than the run has, so that the last rate is above 0 and each phase has a length.
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=num_steps + 2,
            pct_start=max(config.warmup_fraction, 2 / (num_steps + 2)),
            cycle_momentum=False,
        )
    warmup = round(config.warmup_fraction * num_steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(num_steps - warmup, 1), 1.0)))

    return LambdaLR(optimizer, scale)


def average_weights(model: nn.Module, config: OptimizerConfig) -> AveragedModel:
    """Makes the exponential moving average of a model's weights: what is validated, tested and saved.

    Args:
        model (`nn.Module`): The model, before `Accelerator.prepare` wraps its `forward`: scores are those of
            float32 weights, whatever precision the model trains in.
        config (`OptimizerConfig`): The options.

    Returns:
        `AveragedModel`: To be updated after each optimiser step; where averaging is off, a copy of the
        weights.
    """
    decay = config.averaging_decay
    check_range("averaging_decay", decay, 0 <= decay < 1, "in [0, 1)")
    return AveragedModel(model, multi_avg_fn=_WarmAverage(decay))


class _WarmAverage:
    """Moving average whose decay grows with the steps taken, so that early weights are soon forgotten."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(
        self,
        averages: Sequence[torch.Tensor],
        currents: Sequence[torch.Tensor],
        num_averaged: torch.Tensor | int,
    ) -> None:
        steps = int(num_averaged)
        decay = min((1 + steps) / (10 + steps), self.decay)
        for average, current in zip(averages, currents, strict=True):
            average.copy_(torch.lerp(current, average, decay))


def train_only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freezes every parameter of a model but those named.

    Args:
        model (`nn.Module`): The model.
        parameters (`Iterable[nn.Parameter]`): What is to be trained.
    """
    kept = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def train_only_rows(embedding: nn.Embedding, rows: Sequence[int]) -> None:
    """Lets gradients reach only some rows of an embedding.

    Args:
        embedding (`nn.Embedding`): The embedding; it must not be under weight decay.
        rows (`Sequence[int]`): The rows to train.
    """
    mask = torch.zeros(embedding.num_embeddings, 1, device=embedding.weight.device)
    mask[list(rows)] = 1.0
    embedding.weight.register_hook(lambda gradient: gradient * mask.to(gradient))


def as_list(names: list[str] | str) -> list[str]:
    """Takes one name for a list of one, as it is typed on a command line.

    Args:
        names (`list[str]` or `str`): One name or several.

    Returns:
        `list[str]`: The names.
    """
    return [names] if isinstance(names, str) else names


def parse_options(options: type[Options], argv: Sequence[str] | None, description: str) -> Options:
    """Reads a run's options from `--config FILE.yaml` and dotted overrides.

    Args:
        options (`type`): Dataclass of the options, which may nest others.
        argv (`Sequence[str]`, *optional*): Arguments; None for those of the process.
        description (`str`): What `--help` says first.

    Returns:
        An object of that class. Later arguments win; a key that is not a field is refused.

    Raises:
        ConfigurationError: An option is unknown, missing or of the wrong type, or the file cannot be read.
    """
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below.")
    parser.add_class_arguments(options, nested_key=None)
    try:
        values: dict[str, Any] = vars(parser.instantiate(parser.parse_args(argv)))
    except (argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        message = " ".join(str(error).split())
        unknown = re.search(r"(?:[Oo]ption '|arguments: --)([\w.]+)", message)
        known = [action.dest for action in parser._actions]
        hint = (
            closest_names(unknown[1].split(".")[-1], [name.split(".")[-1] for name in known])
            if unknown
            else ""
        )
        raise ConfigurationError(f"Options must be as `--help` lists them, got: {message}{hint}") from error
    assert dataclasses.is_dataclass(options)
    return options(**{field.name: values[field.name] for field in dataclasses.fields(options)})
