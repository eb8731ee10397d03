"""Trains a decoder of behaviour, from scratch or from a checkpoint.

    accelerate launch training/finetune.py --config training/configs/tiny_finetune.yaml --data DIR
    --output_dir DIR

Test rows are scored once, at the end, with the weights that were best on validation.
"""

import dataclasses
import datetime
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object, set_seed
from transformers import PreTrainedModel

from rpnt_hf.adapters import AdapterBase, AdapterConfig, add_adapters, save_adapter
from rpnt_hf.cards import write_card
from rpnt_hf.checkpoints import RunFolder, TrainingProgress
from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.data.loading import label_statistics, load_rows, select_sessions, select_trials, view_rows
from rpnt_hf.data.rows import row_behavior, scored_bins
from rpnt_hf.data.windows import WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.decoding import decode_distributions, decode_rows
from rpnt_hf.errors import CheckpointError, ConfigurationError, DatasetError, RPNTError
from rpnt_hf.evaluation.calibration import fit_calibration
from rpnt_hf.evaluation.report import describe_data, describe_hardware, describe_run, shared_name
from rpnt_hf.evaluation.statistics import (
    LEVEL,
    ScoredTrial,
    TrialSums,
    r2_intervals,
    scored_trials,
    trial_scores,
)
from rpnt_hf.hub import checkpoint_folder
from rpnt_hf.initialization import from_checkpoint, from_scratch
from rpnt_hf.metrics import R2_CONVENTIONS
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding
from rpnt_hf.optimization import (
    OptimizerConfig,
    as_list,
    average_weights,
    check_range,
    check_sessions,
    make_optimizer,
    make_schedule,
    parse_options,
    train_only,
    train_only_rows,
)
from rpnt_hf.processes import (
    make_accelerator,
    make_loader,
    total,
    use_own_random_state,
    whole_weights,
)
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.progress import progress_bar
from rpnt_hf.token_map import fit_token_map, place_units

logger = get_logger(__name__)


@dataclass
class FinetuneOptions:
    """Options of a finetuning run.

    Args:
        data: Folder that `rpnt build` wrote, or a dataset on the Hub.
        output_dir: New folder for the decoder, its results and its checkpoints.
        dataset_config: Part of the corpus; empty where there is only one.
        sessions: Session to train on, or a list, '["a", "b"]'; empty for all.
        training_trials: Number of training trials for few-shot; empty for all.
        training_fraction: Share of the training trials instead, in (0, 1].
        init: "scratch", or the folder of a pretrained model or a decoder.
        mode: "full" trains everything; "frozen" the unit embeddings of these sessions and the head; "units"
            only the unit embeddings of sessions that the checkpoint does not know; "adapters" what "frozen"
            does and low-rank terms in every layer, and saves these alone, without the checkpoint.
        adapters: Rank and scale of those terms.
        decoder_rate: Share of the learning rate, in (0, 1], for what a decoder brings: all but the unit
            embeddings, and these too with slots and where they were placed.
        place_units: Whether units that are new to a decoder begin where its token map places them by the
            labelled training bins (`rpnt_hf.token_map`), or at random; not for slots.
        preset: Preset of the network, from scratch.
        model: Fields of RPNTConfig that differ: from scratch any, from a checkpoint those without weights
            (dropout).
        num_slots: Slots per site, where the network has `unit_embedding` "slots".
        window_bins: Length of training windows, in bins.
        context_bins: Bins at the start of a window that are only looked at.
        lead_bins: Bins before the first that it learns from that a training window keeps; empty for all.
        unit_dropout: Mean share of units that a training window loses, in [0, 0.5].
        spike_dropout: Largest share of its spikes that a unit loses in a training window, in [0, 1).
        time_warp: Training windows are played faster or slower by factors of up to 1 + this, 0 or more.
        metadata_dropout: Probability in [0, 1] that a training window loses a metadata axis.
        batch_size: Windows per batch and process.
        accumulation_steps: Batches per optimiser step.
        epochs: Passes over the training rows.
        optimizer: Optimiser, schedule and weight averaging.
        validate_every: Epochs between validations.
        checkpoint_every: Epochs between checkpoints.
        keep_checkpoints: Checkpoints that are kept.
        resume: Go on from the last finished checkpoint in `output_dir`.
        mixed_precision: "no" or "bf16".
        tensorboard: Write curves for tensorboard under `output_dir`.
        seed: Seed of everything random, the choice of trials included.
        cpu: Train on the CPU even where there is an accelerator.
    """

    data: str
    output_dir: str
    dataset_config: str | None = None
    sessions: list[str] | str = field(default_factory=list)
    training_trials: int | None = None
    training_fraction: float | None = None
    init: str = "scratch"
    mode: Literal["full", "frozen", "units", "adapters"] = "full"
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    decoder_rate: float = 1.0
    place_units: bool = True
    preset: str = "tiny"
    model: dict[str, Any] = field(default_factory=dict)
    num_slots: int | None = None
    window_bins: int = 100
    context_bins: int = 0
    lead_bins: int | None = None
    unit_dropout: float = 0.15
    spike_dropout: float = 0.5
    time_warp: float = 0.0
    metadata_dropout: float = 0.1
    batch_size: int = 32
    accumulation_steps: int = 1
    epochs: int = 100
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validate_every: int = 1
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    resume: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    tensorboard: bool = False
    seed: int = 0
    cpu: bool = False


Rows = Sequence[Any]


def load_splits(options: FinetuneOptions) -> tuple[dict[str, Rows], int]:
    """Loads the rows of each split, training rows cut to the chosen trials, and counts those trials."""
    splits: dict[str, Rows] = {
        split: view_rows(load_rows(options.data, options.dataset_config, split))
        for split in ("train", "validation", "test")
    }
    everything = [row for rows in splits.values() for row in rows]
    chosen = {row["session_id"] for row in select_sessions(everything, as_list(options.sessions) or None)}
    splits = {split: [row for row in rows if row["session_id"] in chosen] for split, rows in splits.items()}
    for split in ("validation", "test"):
        if not any(scored_bins(row).any() for row in splits[split]):
            raise DatasetError(
                f"Split '{split}' of '{options.data}' must have scored bins, got none. Build the dataset "
                "with behaviour and larger `proportions`."
            )
    splits["train"], num_trials = select_trials(
        splits["train"], options.training_trials, options.training_fraction, options.seed
    )
    check_sessions(
        splits["train"],
        [*splits["validation"], *splits["test"]],
        "Choose `sessions` that have some, or more `training_trials`",
    )
    return splits, num_trials


def make_model(
    options: FinetuneOptions, splits: dict[str, Rows]
) -> tuple[RPNTForMotorDecoding, RPNTProcessor, list[str]]:
    """Makes model and processor, and lists the sessions that are new to the checkpoint."""
    rows = [*splits["train"], *splits["validation"], *splits["test"]]
    for name in ("behavior_names", "behavior_units"):
        for row in rows:
            if row[name] != rows[0][name]:
                raise DatasetError(
                    f"Sessions that are decoded together must have the same `{name}`, got {rows[0][name]} in "
                    f"'{rows[0]['session_id']}' and {row[name]} in '{row['session_id']}'. Choose `sessions`."
                )
    label_mean, label_std = label_statistics(splits["train"])
    targets = {
        "num_targets": len(label_mean),
        "target_names": list(rows[0]["behavior_names"]),
        "target_units": list(rows[0]["behavior_units"]),
        "label_mean": label_mean,
        "label_std": label_std,
    }
    if options.init == "scratch":
        if options.mode != "full":
            raise ConfigurationError(
                f"From scratch everything must be trained (`mode` 'full'), got '{options.mode}'. Name a "
                "checkpoint as `init`."
            )
        fields = {**targets, **options.model}
        model, processor = from_scratch(
            RPNTForMotorDecoding,
            options.preset,
            fields,
            rows,
            window_bins=options.window_bins,
            num_slots=options.num_slots,
        )
        return model, processor, sorted(processor.sessions)
    try:
        config = RPNTConfig.from_pretrained(checkpoint_folder(options.init))
    except OSError as error:
        raise CheckpointError(
            f"`init` must be 'scratch' or a checkpoint folder, but '{options.init}' cannot be loaded: {error}"
        ) from error
    if is_decoder(options):
        for name in ("target_names", "target_units"):
            if getattr(config, name) != targets[name]:
                raise CheckpointError(
                    f"The decoder must have been trained on the same `{name}`, {targets[name]}, got "
                    f"{getattr(config, name)} in '{options.init}'. Pretrain, or train one from scratch."
                )
        targets = {}
    elif options.mode == "units":
        raise CheckpointError(
            f"Mode 'units' must start from a checkpoint with a decoding head, got {config.architectures} in "
            f"'{options.init}'. Finetune it in mode 'full' on other sessions first."
        )
    fields = {**targets, **options.model}
    return from_checkpoint(RPNTForMotorDecoding, options.init, fields, rows, window_bins=options.window_bins)


def freeze(
    model: RPNTForMotorDecoding,
    processor: RPNTProcessor,
    mode: str,
    sessions: Sequence[str],
    new_sessions: Sequence[str],
) -> None:
    """Lets gradients reach what the mode trains."""
    if mode in ("full", "adapters"):  # adapters freeze what is below them
        return
    embedding = model.model.embeddings.unit_embedding
    if mode == "units":
        if processor.unit_embedding != "vocabulary":
            raise CheckpointError(
                "Mode 'units' must have a checkpoint with `unit_embedding` 'vocabulary', got "
                f"'{processor.unit_embedding}': slots have no rows of their own for the units of a session. "
                "Use mode 'frozen' or 'full'."
            )
        if not new_sessions:
            raise CheckpointError(
                "Mode 'units' must have a session whose units the checkpoint does not know, got "
                f"{', '.join(sessions)}, all known. Use mode 'frozen' or 'full'."
            )
        train_only(model, [embedding.weight])
        sessions = new_sessions
    else:
        encoder = {id(parameter) for parameter in model.model.parameters()}
        head = [parameter for parameter in model.parameters() if id(parameter) not in encoder]
        train_only(model, [*head, embedding.weight])
    if processor.unit_embedding == "vocabulary":
        train_only_rows(
            embedding, [row for session_id in sessions for row in processor.session_rows(session_id)]
        )


def adapt(
    options: FinetuneOptions,
    model: RPNTForMotorDecoding,
    processor: RPNTProcessor,
    sessions: Sequence[str],
    new_sessions: Sequence[str],
) -> tuple[Any, AdapterBase | None]:
    """Puts adapters on the model where the mode asks for them, and says what they were put on."""
    if options.mode != "adapters":
        if options.adapters != AdapterConfig():
            raise ConfigurationError(
                f"`adapters` belongs to `mode` 'adapters', got {options.adapters} in mode '{options.mode}'. "
                "Choose that mode, or leave `adapters` as it is."
            )
        return model, None
    num_units = model.config.num_units
    rows = list(range(num_units))
    if processor.unit_embedding == "vocabulary":
        num_units -= sum(len(processor.session_rows(session_id)) for session_id in new_sessions)
        rows = [row for session_id in sessions for row in processor.session_rows(session_id)]
    base = AdapterBase.of(model, num_units, options.init, options.adapters.base_name)
    return add_adapters(model, options.adapters, rows), base


def is_decoder(options: FinetuneOptions) -> bool:
    """Says whether the run begins with a checkpoint that decodes already."""
    if options.init == "scratch":
        return False
    config = RPNTConfig.from_pretrained(checkpoint_folder(options.init))
    return "RPNTForMotorDecoding" in (config.architectures or [])


def base_name(options: FinetuneOptions) -> str | None:
    """Names the checkpoint that the run begins with, as others know it."""
    if options.init == "scratch":
        return None
    return options.adapters.base_name or shared_name(options.init)


def decode_trials(
    accelerator: Accelerator, model: PreTrainedModel, processor: RPNTProcessor, rows: Rows, batch_size: int
) -> list[ScoredTrial]:
    """Decodes rows, shared out over the processes, and cuts them into trials, in the order of the rows."""
    mine = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
    decoded = decode_rows(model, processor, [rows[index] for index in mine], batch_size)
    found = [
        (index, scored_trials([rows[index]], [values], model.config.label_lag))
        for index, values in zip(mine, decoded, strict=True)
    ]
    if accelerator.num_processes > 1:
        found = sorted(gather_object(found), key=lambda item: item[0])
    return [trial for _, trials in found for trial in trials]


def score_trials(trials: Sequence[ScoredTrial]) -> dict[str, Any]:
    """Scores all bins of trials at once, in the four conventions of R2.

    Returns:
        `dict`: What `trial_scores` gives, `scored_bins` and `non_finite_bins`: those of them whose prediction
        is not finite. Where there is one, the scores are None.
    """
    num_bins = sum(len(trial.targets) for trial in trials)
    finite = sum(int(np.isfinite(trial.predictions).all(axis=1).sum()) for trial in trials)
    scores: dict[str, float | None] = dict.fromkeys(R2_CONVENTIONS)
    if finite < num_bins:
        logger.warning(
            "%d of %d scored bins have predictions that are not finite: there is no R2.",
            num_bins - finite,
            num_bins,
        )
    else:
        scores = trial_scores(trials)
    return {**scores, "scored_bins": num_bins, "non_finite_bins": num_bins - finite}


def score(
    accelerator: Accelerator, model: PreTrainedModel, processor: RPNTProcessor, rows: Rows, batch_size: int
) -> dict[str, Any]:
    """Decodes rows and scores all their scored bins at once, for validation.

    Returns:
        `dict`: As `score_trials`, without the reach period. The first `label_lag` bins of a row have no
        prediction and are not scored.
    """
    scores = score_trials(decode_trials(accelerator, model, processor, rows, batch_size))
    return {name: value for name, value in scores.items() if not name.endswith("_reach")}


def describe_test(trials: Sequence[ScoredTrial]) -> dict[str, Any]:
    """Scores test trials with intervals over resamples of them: all together, and each session alone."""
    groups = {"": list(trials)}
    for trial in trials:
        groups.setdefault(trial.session_id, []).append(trial)
    parts = {
        name: {
            **score_trials(mine),
            "trials": len(mine),
            "reach_bins": sum(int(trial.reach.sum()) for trial in mine),
        }
        for name, mine in groups.items()
    }
    for name, part in parts.items():
        part["intervals"] = (
            dict.fromkeys(R2_CONVENTIONS)
            if part["non_finite_bins"]
            else r2_intervals(TrialSums.of(groups[name]))
        )
    return {**parts.pop(""), "interval_level": LEVEL, "sessions": parts}


def calibrate(
    model: PreTrainedModel, processor: RPNTProcessor, rows: Rows, batch_size: int
) -> dict[str, list[float]]:
    """Fits the predicted variances of each target to what validation rows show: a bias, and `variance_dof`.

    Returns:
        `dict`: `added` to the log variance of each target, and its `variance_dof`.
    """
    predictions, log_variances = decode_distributions(model, processor, rows, batch_size)
    masks = [scored_bins(row) for row in rows]
    for mask in masks:
        mask[: model.config.label_lag] = False
    targets = [row_behavior(row) for row in rows]
    added, model.config.variance_dof = fit_calibration(
        *(
            np.concatenate([values[mask] for values, mask in zip(part, masks, strict=True)])
            for part in (targets, predictions, log_variances)
        )
    )
    head = ("decoder.bias", "decoder.modules_to_save.default.bias")  # the second is that of an adapter
    names = [name for name, _ in model.named_parameters() if name.endswith(head) and "stem_" not in name]
    bias = model.get_parameter(names[-1])
    with torch.no_grad():
        bias[model.config.num_targets :] += torch.tensor(added).to(bias)
    return {"added": added, "variance_dof": model.config.variance_dof}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs a finetuning.

    Args:
        argv (`Sequence[str]`, *optional*): Options as on the command line; None takes those of the process.

    Returns:
        `dict`: What `results.json` holds: metrics on validation and test, trials, parameters, speed.

    Raises:
        RPNTError: An option, the data or the checkpoint is not what it must be.
    """
    options = parse_options(FinetuneOptions, argv, description=(__doc__ or "").split("\n", 1)[0])
    for name in ("epochs", "accumulation_steps", "validate_every", "checkpoint_every"):
        check_range(name, getattr(options, name), getattr(options, name) >= 1, "1 or more")
    settings = {
        key: value
        for key, value in dataclasses.asdict(options).items()
        if key not in ("resume", "output_dir")
    }
    folder = RunFolder(options.output_dir, settings, options.resume, options.keep_checkpoints)
    accelerator = make_accelerator(
        options.output_dir,
        cpu=options.cpu,
        mixed_precision=options.mixed_precision,
        accumulation_steps=options.accumulation_steps,
        tensorboard=options.tensorboard,
    )
    if accelerator.is_fsdp2:
        raise ConfigurationError(
            "Finetuning must be launched as one process or with DDP, got FSDP2, which is for pretraining: "
            "what is frozen and which rows of embeddings learn would be lost. Choose another `--config_file`."
        )
    set_seed(options.seed)
    with accelerator.local_main_process_first():  # the others find what it has cached
        splits, num_trials = load_splits(options)
    model, processor, new_sessions = make_model(options, splits)
    placed_sessions = new_sessions if options.place_units and model.token_map is not None else []
    place_units(model, processor, splits["train"], placed_sessions)
    sessions = sorted({row["session_id"] for row in splits["train"]})
    freeze(model, processor, options.mode, sessions, new_sessions)
    facts = describe_data(options.data, options.dataset_config, splits)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_unit_parameters = model.model.embeddings.unit_embedding.weight.numel()
    model, base = adapt(options, model, processor, sessions, new_sessions)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    processor.mark_fitted([*splits["train"], *splits["validation"]])
    logger.info("%d training trials of sessions %s", num_trials, ", ".join(sessions))

    lag = model.config.label_lag
    batch_size = options.batch_size * accelerator.num_processes
    sampler = WindowSampler(
        splits["train"], options.window_bins, batch_size, seed=options.seed,
        context_bins=options.context_bins, lead_bins=options.lead_bins, label_lag=lag,
    )  # fmt: skip
    collator = WindowCollator(
        splits["train"],
        processor,
        unit_dropout=options.unit_dropout,
        spike_dropout=options.spike_dropout,
        time_warp=options.time_warp,
        metadata_dropout=options.metadata_dropout,
    )
    loader = make_loader(accelerator, WindowDataset(splits["train"], lag), sampler, collator)
    steps_per_epoch = [
        math.ceil(len(sampler.batches(epoch)) / options.accumulation_steps) for epoch in range(options.epochs)
    ]
    body_rate = options.decoder_rate if is_decoder(options) else 1.0
    unit_rate = body_rate if placed_sessions else 1.0
    optimizer = make_optimizer(model, options.optimizer, body_rate, unit_rate)
    schedule = make_schedule(optimizer, options.optimizer, sum(steps_per_epoch))
    averaged = average_weights(model.to(accelerator.device), options.optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    trained = accelerator.unwrap_model(model)
    judged: Any = averaged.module  # never wrapped: scores are those of the float32 weights that are saved
    progress = TrainingProgress()
    accelerator.register_for_checkpointing(schedule, averaged, progress)
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
        total=sum(steps_per_epoch),
        initial=progress.step,
        disable=not accelerator.is_main_process,
        unit="step",
    )
    while progress.epoch < options.epochs:
        epoch, began, losses, bins = progress.epoch, time.perf_counter(), [], 0
        sampler.set_epoch(epoch)
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), options.optimizer.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
                averaged.update_parameters(trained)
                progress.step += 1
                bar.update()
            losses.append(accelerator.reduce(loss.detach(), "mean"))
            bins += int(batch["bin_mask"].any(dim=1).sum())
        progress.epoch += 1
        entry = {
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": float(torch.stack(losses).mean()),
            "learning_rate": schedule.get_last_lr()[0],
            "bins_per_second": total(accelerator, bins) / (time.perf_counter() - began),
        }
        is_last = progress.epoch == options.epochs
        if progress.epoch % options.validate_every == 0 or is_last:
            metrics = score(accelerator, judged, processor, splits["validation"], options.batch_size)
            entry |= {f"validation_{name}": value for name, value in metrics.items()}
            # Without R2 a target is constant, and the first validation stays the best, or the run diverges.
            rank = -math.inf if metrics["r2"] is None else metrics["r2"]
            is_first = progress.best is None and not metrics["non_finite_bins"]
            if is_first or rank > progress.best_rank:
                progress.best_rank = rank
                progress.best = {**metrics, "epoch": progress.epoch, "step": progress.step}
                progress.best_weights = whole_weights(judged)
            logger.info(
                "epoch %d  loss %.4f  R2 %.4f  learning rate %.2e  %.0f bins/s",
                progress.epoch, entry["loss"], rank, entry["learning_rate"], entry["bins_per_second"],
            )  # fmt: skip
        progress.history.append(entry)
        progress.seconds += time.perf_counter() - began
        shown = {name: value for name, value in entry.items() if isinstance(value, float)}
        accelerator.log(shown, step=progress.step)
        bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items() if name != "learning_rate"})
        if progress.epoch % options.checkpoint_every == 0 or is_last:
            folder.save_checkpoint(accelerator, progress.step)
            if accelerator.is_main_process:
                folder.write_json("history.json", progress.history)
    bar.close()

    if progress.best is None or progress.best_weights is None:
        raise CheckpointError(
            "At least one validation must have predictions that are all finite, got none in "
            f"{progress.epoch} epochs: the run diverged. Lower `optimizer.learning_rate`."
        )
    judged.load_state_dict(progress.best_weights)
    calibration = None
    if judged.config.predict_variance:
        calibration = calibrate(judged, processor, splits["validation"], options.batch_size)
    if judged.token_map is None and base is None and processor.unit_embedding == "vocabulary":
        fit_token_map(judged, processor, splits["train"])
    test = describe_test(decode_trials(accelerator, judged, processor, splits["test"], options.batch_size))
    results = {
        "kind": "decoder" if base is None else "adapter",
        "date": datetime.date.today().isoformat(),
        "validation": progress.best,
        "variance_calibration": calibration,
        "test": test,
        "sessions": sessions,
        "training_trials": num_trials,
        "init": shared_name(options.init),
        "base_model": base_name(options),
        "new_sessions": new_sessions,
        "placed_sessions": placed_sessions,
        "mode": options.mode,
        "seed": options.seed,
        "num_processes": accelerator.num_processes,
        "parameters": num_parameters,
        "parameters_without_units": num_parameters - num_unit_parameters,
        "adapter_parameters": num_trained if base else None,
        "bins_per_second": float(np.median([entry["bins_per_second"] for entry in progress.history])),
        "data": facts,
        "training": {
            "seconds": progress.seconds,
            "steps": progress.step,
            "epochs": progress.epoch,
            **describe_hardware(accelerator),
        },
        "run": describe_run(["training/finetune.py", *(sys.argv[1:] if argv is None else argv)]),
    }
    if accelerator.is_main_process:
        with folder.files_together() as files:
            if base is None:
                judged.save_pretrained(files)
            else:
                save_adapter(judged, base, files)
            processor.save_pretrained(files)
        folder.write_json("history.json", progress.history)
        folder.write_json("results.json", results)
        write_card(folder.path)
    accelerator.wait_for_everyone()
    logger.info("test R2 %s, validation R2 %s", test["r2"], progress.best["r2"])
    accelerator.end_training()
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger(__name__).setLevel(logging.INFO)
    try:
        main()
    except RPNTError as error:
        sys.exit(f"error: {error}")
