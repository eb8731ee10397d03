"""Pretrains RPNT on spike counts without labels: hidden counts are reconstructed, sites are told apart.

    accelerate launch training/pretrain.py --config training/configs/tiny_pretrain.yaml --data DIR
    --output_dir DIR

What is saved at the end are the weights that were best on validation. No time is marked as fitted in the
processor: no label was seen.
"""

import dataclasses
import datetime
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import set_seed
from torch import Tensor, nn

from rpnt_hf.cards import write_card
from rpnt_hf.checkpoints import RunFolder, TrainingProgress
from rpnt_hf.data.loading import load_rows, select_sessions, unit_means, view_rows
from rpnt_hf.data.streamed import StreamedWindows, StreamSampler, recorded_unit_means, stream_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.errors import CheckpointError, RPNTError
from rpnt_hf.evaluation.report import describe_data, describe_hardware, describe_run, shared_name
from rpnt_hf.evaluation.statistics import LEVEL, bits_per_spike_interval
from rpnt_hf.initialization import from_checkpoint, from_scratch
from rpnt_hf.modeling_rpnt import RPNTForPreTraining
from rpnt_hf.optimization import (
    OptimizerConfig,
    as_list,
    average_weights,
    check_range,
    check_sessions,
    make_optimizer,
    make_schedule,
    parse_options,
)
from rpnt_hf.processes import (
    WholeState,
    let_go,
    load_whole_weights,
    make_accelerator,
    make_loader,
    prepare_with_copy,
    total,
    use_own_random_state,
    whole_weights,
)
from rpnt_hf.progress import progress_bar

logger = get_logger(__name__)


@dataclass
class PretrainOptions:
    """Options of a pretraining run.

    Args:
        data: Folder that `rpnt build` wrote, its URL, or a dataset on the Hub.
        output_dir: New folder for the model, its results and its checkpoints.
        dataset_config: Part of the corpus; empty where there is only one.
        exclude_sessions: Session to leave out, or a list, such as those that are finetuned on later.
        init: "scratch", or the folder of a checkpoint to go on from.
        preset: Preset of the network, from scratch.
        model: Fields of RPNTConfig that differ: from scratch any, from a checkpoint those without weights
            (dropout).
        num_slots: Slots per site, where the network has `unit_embedding` "slots".
        window_bins: Length of windows, in bins.
        session_temperature: T of sampling over sessions, at least 1: one with n windows gives a share
            proportional to n^(1/T). 1 takes every window once an epoch, larger values even sessions out.
        streaming: Read training rows as they are needed, and do not bring them into the cache first. Windows
            are then shuffled among some row groups at a time, and each process has groups of its own.
        masking: How counts are hidden.
        unit_dropout: Mean share of units that a training window loses, in [0, 0.5].
        metadata_dropout: Probability in [0, 1] that a training window loses a metadata axis.
        batch_size: Windows per batch and process, at least 2: they come in pairs of a session.
        accumulation_steps: Batches per optimiser step.
        epochs: Passes over the training rows.
        optimizer: Optimiser, schedule and weight averaging.
        validate_every: Optimiser steps between validations; there is always one at the end.
        checkpoint_every: Optimiser steps between checkpoints; there is always one at the end.
        keep_checkpoints: Checkpoints that are kept.
        resume: Go on from the last finished checkpoint in `output_dir`.
        mixed_precision: "no" or "bf16".
        tensorboard: Write curves for tensorboard under `output_dir`.
        seed: Seed of everything random.
        cpu: Train on the CPU even where there is an accelerator.
    """

    data: str
    output_dir: str
    dataset_config: str | None = None
    exclude_sessions: list[str] | str = field(default_factory=list)
    init: str = "scratch"
    preset: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    num_slots: int | None = None
    window_bins: int = 100
    session_temperature: float = 1.0
    streaming: bool = False
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    unit_dropout: float = 0.0
    metadata_dropout: float = 0.1
    batch_size: int = 32
    accumulation_steps: int = 1
    epochs: int = 50
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validate_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    resume: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    tensorboard: bool = False
    seed: int = 0
    cpu: bool = False


def likelihood_sums(log_rates: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Sums log-likelihoods of model and null, spikes and entries over the hidden counts of each window.

    Args:
        log_rates (`torch.FloatTensor` of shape `(batch, sites, bins, units)`): Log of the expected count per
            bin.
        batch (`Mapping[str, torch.Tensor]`): Model input with `mean_counts`, the null model.

    Returns:
        `torch.DoubleTensor` of shape `(batch, 4)`: Nats (without `log(y!)`), nats, spikes, entries.
    """
    hidden = batch["masked_bins"][..., None] | batch["masked_units"][..., None, :]
    hidden &= batch["bin_mask"][..., None] & batch["unit_mask"][..., None, :]
    # A unit that is silent in training would make one spike infinitely unlikely: it is left out.
    null = batch["mean_counts"][..., None, :].expand_as(log_rates)
    hidden &= null > 0
    counts = batch["spike_counts"].double()
    terms = [counts * rate - rate.exp() for rate in (log_rates.double(), null.double().log())]
    return torch.stack(
        [
            term.masked_fill(~hidden, 0).flatten(1).sum(1)
            for term in (*terms, counts, torch.ones_like(counts))
        ],
        dim=1,
    )


@torch.no_grad()
def window_likelihoods(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Sequence[Sequence[Any]],
    windows: WindowDataset,
    collator: WindowCollator,
) -> Tensor:
    """Runs a model over fixed windows under fixed masks, shared out over the processes.

    Returns:
        `torch.DoubleTensor` of shape `(windows, 4)`: `likelihood_sums` of the windows of all batches.
    """
    model.eval()
    starts = np.cumsum([0, *map(len, batches)]).tolist()
    sums = torch.zeros(starts[-1], 4, dtype=torch.float64)
    for first in range(0, len(batches), accelerator.num_processes):
        # Losses gather over processes, so all take part in each round; a surplus batch does not count.
        index = first + accelerator.process_index
        mine = batches[index % len(batches)]
        batch = {
            name: value.to(accelerator.device) for name, value in collator(windows.__getitems__(mine)).items()
        }
        inputs = {name: value for name, value in batch.items() if name not in ("mean_counts", "labels")}
        outputs = model(**inputs)
        if index < len(batches):
            sums[starts[index] : starts[index + 1]] = likelihood_sums(outputs.log_rates.float(), batch).cpu()
    let_go(model)
    own = sums.to(accelerator.device, torch.float32 if accelerator.device.type == "mps" else torch.float64)
    return accelerator.reduce(own, "sum").cpu()


def validate(accelerator: Accelerator, model: nn.Module, *fixed: Any) -> dict[str, float]:
    """Scores a model on what `window_likelihoods` takes.

    Returns:
        `dict`: `poisson_loss` (nats per hidden entry), `bits_per_spike` over the null model and the number of
        `hidden_entries`. The site-contrastive term is left out: it needs windows in pairs.
    """
    sums = window_likelihoods(accelerator, model, *fixed).sum(dim=0)
    model_nats, null_nats, spikes, entries = sums.tolist()
    return {
        "poisson_loss": -model_nats / max(entries, 1.0),
        "bits_per_spike": (model_nats - null_nats) / (max(spikes, 1.0) * math.log(2)),
        "hidden_entries": int(entries),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a pretraining.

    Args:
        argv (`Sequence[str]`, *optional*): Options as on the command line; None takes those of the process.

    Returns:
        `dict`: What `results.json` holds: metrics on validation, sessions, parameters, speed.

    Raises:
        RPNTError: An option, the data or the checkpoint is not what it must be.
    """
    options = parse_options(PretrainOptions, argv, description=(__doc__ or "").split("\n", 1)[0])
    for name in ("epochs", "accumulation_steps", "validate_every", "checkpoint_every"):
        check_range(name, getattr(options, name), getattr(options, name) >= 1, "1 or more")
    settings = dataclasses.asdict(options)
    for name in ("resume", "output_dir"):
        settings.pop(name)
    folder = RunFolder(options.output_dir, settings, options.resume, options.keep_checkpoints)
    accelerator = make_accelerator(
        options.output_dir,
        cpu=options.cpu,
        mixed_precision=options.mixed_precision,
        accumulation_steps=options.accumulation_steps,
        tensorboard=options.tensorboard,
    )
    set_seed(options.seed)
    with accelerator.local_main_process_first():  # the others find what it has cached
        held_out = view_rows(load_rows(options.data, options.dataset_config, "validation"))
        if options.streaming:
            train = stream_rows(options.data, options.dataset_config)
        else:
            train = view_rows(load_rows(options.data, options.dataset_config, "train"))
    excluded, size = as_list(options.exclude_sessions), options.window_bins
    rows = select_sessions([*train, *held_out], exclude=excluded)
    train, held_out = (
        [row for row in found if row["session_id"] not in excluded] for found in (train, held_out)
    )
    check_sessions(train, held_out, "Name them in `exclude_sessions`")
    facts = describe_data(options.data, options.dataset_config, {"train": train, "validation": held_out})
    mean_counts = recorded_unit_means(options.data, train) if options.streaming else unit_means(train)
    if options.init == "scratch":
        model, processor = from_scratch(
            RPNTForPreTraining,
            options.preset,
            options.model,
            rows,
            window_bins=size,
            num_slots=options.num_slots,
        )
        overall = float(np.concatenate(list(mean_counts.values())).mean())
        start = torch.tensor(overall)
        if model.config.unit_readout == "own":
            start = start.repeat(model.config.num_units)
            for session_id, means in mean_counts.items():  # a unit that is silent must not begin at 0
                own = processor.session_rows(session_id, len(means))
                start[own.start : own.stop] = torch.from_numpy(np.maximum(means, 0.01 * overall))
        model.set_mean_count(start)
    else:
        model, processor, _ = from_checkpoint(
            RPNTForPreTraining, options.init, options.model, rows, window_bins=size
        )

    batch_size = options.batch_size * accelerator.num_processes
    order: dict[str, Any] = {"seed": options.seed, "session_temperature": options.session_temperature}
    sampler: WindowSampler
    windows: WindowDataset
    if options.streaming:
        sampler = StreamSampler(train, size, batch_size, num_streams=accelerator.num_processes, **order)
        windows = StreamedWindows(train, sampler)
    else:
        sampler = WindowSampler(train, size, batch_size, pairs=True, **order)
        windows = WindowDataset(train)
    collator = WindowCollator(
        train,
        processor,
        masking=options.masking,
        unit_dropout=options.unit_dropout,
        metadata_dropout=options.metadata_dropout,
    )
    loader = make_loader(accelerator, windows, sampler, collator)
    fixed = WindowSampler(
        held_out, size, options.batch_size, seed=options.seed, pairs=True, training=False
    ).batches(0)
    judge = (
        fixed,
        WindowDataset(held_out),
        WindowCollator(
            held_out, processor, masking=options.masking, mean_counts=mean_counts, sample_units=False
        ),
    )
    num_steps = sum(
        math.ceil(len(sampler.batches(epoch)) / options.accumulation_steps) for epoch in range(options.epochs)
    )
    optimizer = make_optimizer(model, options.optimizer)
    schedule = make_schedule(optimizer, options.optimizer, num_steps)
    averaged = average_weights(model.to(accelerator.device), options.optimizer)
    judged: Any = averaged.module  # never wrapped: scores are those of the float32 weights that are saved
    model, optimizer = prepare_with_copy(accelerator, model, optimizer, judged)
    trained = accelerator.unwrap_model(model)
    progress = TrainingProgress()
    accelerator.register_for_checkpointing(schedule, WholeState(averaged), progress)
    use_own_random_state(accelerator, options.seed)
    if accelerator.is_main_process:
        folder.open()
    accelerator.wait_for_everyone()
    if options.resume:
        logger.info("resumed from %s", folder.load_last_checkpoint(accelerator))
    if options.tensorboard:
        # What a killed run wrote after its last checkpoint is written again.
        accelerator.init_trackers(
            "tensorboard", init_kwargs={"tensorboard": {"purge_step": progress.step + 1}}
        )

    bar = progress_bar(
        total=num_steps, initial=progress.step, disable=not accelerator.is_main_process, unit="step"
    )
    began, bins, clock = time.perf_counter(), 0, time.perf_counter()
    while progress.epoch < options.epochs:
        sampler.set_epoch(progress.epoch)
        sampler.start_at(progress.batch)
        loader.set_epoch(progress.epoch)
        for batch in loader:
            model.train()
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), options.optimizer.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            progress.batch += 1
            progress.losses.append(float(accelerator.reduce(loss.detach(), "mean")))
            bins += int(batch["bin_mask"].any(dim=1).sum())
            if not accelerator.sync_gradients:
                continue
            schedule.step()
            averaged.update_parameters(trained)
            progress.step += 1
            bar.update()
            bar.set_postfix(loss=f"{progress.losses[-1]:.4f}")
            is_last = progress.step == num_steps
            if is_last or progress.step % options.validate_every == 0:
                entry = {
                    "epoch": progress.epoch,
                    "step": progress.step,
                    "loss": float(np.mean(progress.losses)),
                    "learning_rate": schedule.get_last_lr()[0],
                    "bins_per_second": total(accelerator, bins) / (time.perf_counter() - began),
                }
                metrics = validate(accelerator, judged, *judge)
                entry |= {f"validation_{name}": value for name, value in metrics.items()}
                if metrics["bits_per_spike"] > progress.best_rank:  # never where it is not a number
                    progress.best_rank = metrics["bits_per_spike"]
                    progress.best = {**metrics, "step": progress.step}
                    progress.best_weights = whole_weights(judged)
                progress.history.append(entry)
                accelerator.log(entry, step=progress.step)
                logger.info(
                    "step %d  loss %.4f  bits/spike %.4f  learning rate %.2e  %.0f bins/s",
                    *(entry[name] for name in ("step", "loss", "validation_bits_per_spike", "learning_rate")),
                    entry["bins_per_second"],
                )
                progress.losses = []
                began, bins = time.perf_counter(), 0
            if is_last or progress.step % options.checkpoint_every == 0:
                progress.seconds, clock = progress.seconds + time.perf_counter() - clock, time.perf_counter()
                folder.save_checkpoint(accelerator, progress.step)
                if accelerator.is_main_process:
                    folder.write_json("history.json", progress.history)
        progress.epoch, progress.batch = progress.epoch + 1, 0
    bar.close()

    if progress.best is None or progress.best_weights is None:
        raise CheckpointError(
            f"At least one validation must be finite, got none in {progress.step} steps: the run diverged. "
            "Lower `optimizer.learning_rate`."
        )
    load_whole_weights(judged, progress.best_weights)
    likelihoods = window_likelihoods(accelerator, judged, *judge)[:, :3].numpy()
    window_sessions = [held_out[window.row]["session_id"] for batch in fixed for window in batch]
    num_parameters = sum(parameter.numel() for parameter in judged.parameters())
    results = {
        "kind": "pretrained",
        "date": datetime.date.today().isoformat(),
        "validation": {
            **progress.best,
            "interval": bits_per_spike_interval(likelihoods, window_sessions),
            "interval_level": LEVEL,
            "windows": len(window_sessions),
        },
        "sessions": sorted({row["session_id"] for row in train}),
        "init": shared_name(options.init),
        "base_model": None if options.init == "scratch" else shared_name(options.init),
        "seed": options.seed,
        "num_processes": accelerator.num_processes,
        "parameters": num_parameters,
        "parameters_without_units": num_parameters - judged.model.embeddings.unit_embedding.weight.numel(),
        "bins_per_second": float(np.median([entry["bins_per_second"] for entry in progress.history])),
        "data": facts,
        "training": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "epochs": progress.epoch,
            **describe_hardware(accelerator),
        },
        "run": describe_run(["training/pretrain.py", *(sys.argv[1:] if argv is None else argv)]),
    }
    if accelerator.is_main_process:
        whole = RPNTForPreTraining(judged.config)
        whole.load_state_dict(progress.best_weights)
        with folder.files_together() as files:
            whole.save_pretrained(files)
            processor.save_pretrained(files)
        folder.write_json("history.json", progress.history)
        folder.write_json("results.json", results)
        write_card(folder.path)
    accelerator.wait_for_everyone()
    logger.info("best validation: %.4f bits per spike", progress.best["bits_per_spike"])
    accelerator.end_training()
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger(__name__).setLevel(logging.INFO)
    try:
        main()
    except RPNTError as error:
        sys.exit(f"error: {error}")
