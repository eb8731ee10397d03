"""What is in a checkpoint: task, network, the sessions that it knows, what it was trained on, its scores."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.data.nwb import Recording
from rpnt_hf.errors import CheckpointError
from rpnt_hf.hub import checkpoint_folder, read_json
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = ["checkpoint_maps", "describe_checkpoint", "inspect_checkpoint"]

if TYPE_CHECKING:
    from rpnt_hf.analysis.maps import AttentionMaps

SHOWN_SECONDS = 5.0
RANDOM_RATE = 5.0  # spikes/s
TASKS = {
    "RPNTForMotorDecoding": "decoder of behaviour",
    "RPNTForPreTraining": "pretrained on masked spike counts",
    "RPNTForSequenceClassification": "classifier of windows",
    "RPNTModel": "encoder without a head",
}


def inspect_checkpoint(checkpoint: str | Path) -> dict[str, Any]:
    """Says what is in a checkpoint, without loading its weights.

    Args:
        checkpoint (`str` or `Path`): Folder, name of a bundled checkpoint, or id on the Hub.

    Returns:
        `dict`: `kind` ("checkpoint"), `task`, `architecture` and `network` (sizes, window, kernels, axes),
        `num_parameters`, `bin_size` (s), `reach` (bins that an output looks back, None for all), `sessions`
        (each with units, subject, task, date, and whether it was decoded in training), `targets` with unit,
        mean and standard deviation, `training` (what `results.json` says), `scores` and `usage`.

    Raises:
        CheckpointError: There is no such checkpoint, or it is broken.
        HubError: It is on the Hub, and cannot be had from there.
    """
    folder = checkpoint_folder(checkpoint)
    if (folder / "adapter_config.json").is_file():
        return _inspect_adapter(folder, str(checkpoint))
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"CHECKPOINT must be a folder with a saved model and its processor, got '{checkpoint}', "
                f"which has no `{name}`."
            )
    config = RPNTConfig.from_pretrained(folder)
    processor = RPNTProcessor.from_pretrained(folder)
    architecture = (config.architectures or ["RPNTModel"])[0]
    decoded = {known["session_id"] for known in processor.fitted_intervals}
    results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    names = config.target_names or ([] if architecture != "RPNTForMotorDecoding" else None)
    if names is None:
        names = [f"target_{k}" for k in range(config.num_targets)]
    return {
        "kind": "checkpoint",
        "name": str(checkpoint),
        "task": TASKS.get(architecture, architecture),
        "architecture": architecture,
        "network": {
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "num_spatial_layers": config.num_spatial_layers,
            "num_attention_heads": config.num_attention_heads,
            "attention_window": config.attention_window,
            "kernel_size": config.context_attention.kernel_size if config.context_attention.enabled else None,
            "position_encoding": config.position_encoding,
            "metadata_axes": list(config.metadata_axes),
            "unit_embedding": config.unit_embedding,
            "label_lag": config.label_lag,
        },
        "num_parameters": _count_parameters(folder),
        "bin_size": processor.bin_size,
        "reach": config.reach,
        "sessions": [
            {
                "session_id": session_id,
                "num_units": len(units),
                "subject_id": processor.session_facts.get(session_id, {}).get("subject_id"),
                "task": processor.session_facts.get(session_id, {}).get("task"),
                "recording_date": _text(processor.session_facts.get(session_id, {}).get("recording_date")),
                "decoded_in_training": session_id in decoded,
            }
            for session_id, units in processor.sessions.items()
        ],
        "targets": [
            {
                "name": name,
                "unit": config.target_units[k] if config.target_units else None,
                "mean": (config.label_mean or [0.0] * len(names))[k],
                "std": (config.label_std or [1.0] * len(names))[k],
            }
            for k, name in enumerate(names)
        ],
        "training": _describe_training(results),
        "scores": _describe_scores(results),
        "usage": _usage(architecture, str(checkpoint)),
    }


def _inspect_adapter(folder: Path, name: str) -> dict[str, Any]:
    results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    adapter = read_json(folder / "adapter_config.json")
    return {
        "kind": "checkpoint",
        "name": name,
        "task": "adapter: low-rank terms on a base checkpoint",
        "architecture": "adapter",
        "base_model": adapter.get("base_model_name_or_path"),
        "rank": adapter.get("r"),
        "num_parameters": _count_parameters(folder),
        "sessions": [{"session_id": session_id} for session_id in results.get("sessions", [])],
        "training": _describe_training(results),
        "scores": _describe_scores(results),
        "usage": _usage("RPNTForMotorDecoding", name),
    }


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _count_parameters(folder: Path) -> int:
    """Counts numbers in the weights, from the heads of the files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(
            f"CHECKPOINT must hold its weights as safetensors, got '{folder.name}' without them. Save it "
            "again by `save_pretrained`."
        )
    total = 0
    for path in files:
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _describe_training(results: Mapping[str, Any]) -> dict[str, Any] | None:
    if not results:
        return None
    data, training = results.get("data", {}), results.get("training", {})
    return {
        "date": results.get("date"),
        "data": data.get("title") or data.get("name"),
        "license": data.get("license"),
        "sessions": results.get("sessions", []),
        "training_trials": results.get("training_trials"),
        "init": results.get("init"),
        "mode": results.get("mode"),
        "steps": training.get("steps"),
        "seconds": training.get("seconds"),
        "device": training.get("device"),
        "command": results.get("run", {}).get("command"),
    }


def _describe_scores(results: Mapping[str, Any]) -> dict[str, Any]:
    """Test R2 with its interval, of all and of each session; of a pretrained model bits per spike."""
    scores: dict[str, Any] = {}
    validation = results.get("validation", {})
    if "bits_per_spike" in validation:
        scores["validation_bits_per_spike"] = validation["bits_per_spike"]
        scores["interval"] = validation.get("interval")
    test = results.get("test") or {}
    if "r2" in test:
        scores["test_r2"] = test["r2"]
        scores["interval"] = (test.get("intervals") or {}).get("r2")
        scores["trials"] = test.get("trials")
        scores["sessions"] = {
            name: {"test_r2": part.get("r2"), "interval": (part.get("intervals") or {}).get("r2")}
            for name, part in (test.get("sessions") or {}).items()
        }
    return scores


def _usage(architecture: str, name: str) -> list[str]:
    if architecture == "RPNTForMotorDecoding":
        return [
            f"rpnt decode {name} FILE.nwb",
            f"rpnt stream {name} FILE.nwb",
            f"load_decoder({json.dumps(name)})",
        ]
    return [
        "accelerate launch training/finetune.py --config training/configs/tiny_finetune.yaml --data DATASET "
        f"--init {name} --output_dir decoder"
    ]


def checkpoint_maps(
    checkpoint: str | Path, recording: Recording | None = None, seed: int = 0
) -> "AttentionMaps":
    """Runs the encoder of a checkpoint over five seconds of spikes and keeps its attention and kernels.

    Args:
        checkpoint (`str` or `Path`): Folder, name of a bundled checkpoint, or id on the Hub.
        recording ([`Recording`], *optional*): Recording of a session that it knows, from its first bin on;
            without one, random spikes of 5 a second from the units of its last session.
        seed (`int`, *optional*, defaults to 0): Seed of the random spikes.

    Returns:
        [`AttentionMaps`]: For `analysis.plots`.

    Raises:
        CheckpointError: There is no such checkpoint, or it is broken.
        HubError: It is on the Hub, and cannot be had from there.
        InputError: The recording does not fit it.
    """
    from rpnt_hf import modeling_rpnt
    from rpnt_hf.adapters import is_adapter
    from rpnt_hf.analysis.maps import attention_maps, recording_maps
    from rpnt_hf.hub import load_decoder

    folder = checkpoint_folder(checkpoint)
    if is_adapter(folder):
        model, processor = load_decoder(folder)
    else:
        architecture = (RPNTConfig.from_pretrained(folder).architectures or ["RPNTModel"])[0]
        model = getattr(modeling_rpnt, architecture).from_pretrained(folder)
        processor = RPNTProcessor.from_pretrained(folder)
    num_bins = max(round(SHOWN_SECONDS / processor.bin_size), 2)
    if recording is not None:
        return recording_maps(model, processor, recording, num_bins=num_bins)
    if not processor.sessions:
        raise CheckpointError(
            f"CHECKPOINT must know a session to be drawn without a recording, got '{checkpoint}', which "
            "knows none. Name a recording."
        )
    session_id, unit_ids = list(processor.sessions.items())[-1]
    facts = processor.session_facts.get(session_id, {})
    unit_sites = facts.get("unit_sites") or [0] * len(unit_ids)
    num_sites = max(unit_sites) + 1
    rng = np.random.default_rng(seed)
    counts = rng.poisson(RANDOM_RATE * processor.bin_size, (num_bins, len(unit_ids))).astype(np.uint8)
    row = {
        "session_id": session_id,
        "subject_id": facts.get("subject_id"),
        "task": facts.get("task"),
        "recording_date": facts.get("recording_date"),
        "site_ids": [str(site) for site in range(num_sites)],
        "site_positions": facts.get("site_positions") or np.full((num_sites, 3), np.nan),
        "bin_size": processor.bin_size,
        "start_time": 0.0,
        "num_bins": num_bins,
        "unit_ids": list(unit_ids),
        "unit_sites": unit_sites,
        "counts": counts,
        "observed": np.ones(num_bins, np.uint8),
    }
    return attention_maps(model, processor, row, num_bins=num_bins)


def describe_checkpoint(report: Mapping[str, Any]) -> str:
    """Writes a report of `inspect_checkpoint` for people.

    Args:
        report (`Mapping`): The report.

    Returns:
        `str`: A few lines.
    """
    lines = [
        f"{report['name']}: {report['task']} ({report['architecture']})",
        f"  parameters {report['num_parameters']:,}",
    ]
    if "network" in report:
        network = report["network"]
        window = "all earlier bins" if report["reach"] is None else f"{report['reach']} bins"
        kernel = network["kernel_size"]
        lines += [
            f"  network    {network['num_hidden_layers']} temporal and {network['num_spatial_layers']} "
            f"spatial layers of {network['hidden_size']}, {network['num_attention_heads']} heads, "
            f"{network['position_encoding']} positions, "
            + ("no context kernels" if kernel is None else f"{kernel[0]} x {kernel[1]} context kernels"),
            f"  bins       {report['bin_size']} s; an output looks back {window}"
            + ("" if report["reach"] is None else f" ({report['reach'] * report['bin_size']:.2f} s)"),
            f"  metadata   {', '.join(network['metadata_axes']) or 'not used'}",
        ]
    else:
        lines.append(f"  base       {report['base_model']}, rank {report['rank']}")
    for index, target in enumerate(report.get("targets", [])):
        lines.append(
            f"  {'targets' if index == 0 else '':<10} {target['name']} ({target['unit'] or 'no unit'}): "
            f"mean {target['mean']:.3g}, s.d. {target['std']:.3g}"
        )
    for index, session in enumerate(report["sessions"]):
        about = [session.get("subject_id") and f"subject {session['subject_id']}", session.get("task"),
                 session.get("recording_date")]  # fmt: skip
        units = f", {session['num_units']} units" if "num_units" in session else ""
        mark = ", decoded in training" if session.get("decoded_in_training") else ""
        known = "".join(f", {fact}" for fact in about if fact)
        lines.append(f"  {'sessions' if index == 0 else '':<10} {session['session_id']}{units}{known}{mark}")
    training, scores = report["training"], report["scores"]
    if training is not None:
        trials = f", {training['training_trials']} trials" if training["training_trials"] else ""
        time = f", {training['seconds']:.0f} s on {training['device']}" if training["seconds"] else ""
        lines.append(
            f"  trained    {training['date']} on {training['data']}{trials}, from {training['init']}, "
            f"{training['steps']} steps{time}"
        )
    else:
        lines.append("  trained    not said (no results.json)")
    interval = scores.get("interval")
    ends = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    if scores.get("test_r2") is not None:
        lines.append(f"  score      test R2 {scores['test_r2']:.3f}{ends}, {scores['trials']} trials")
    elif scores.get("validation_bits_per_spike") is not None:
        lines.append(
            f"  score      {scores['validation_bits_per_spike']:.4f} bits per spike on validation{ends}"
        )
    lines += ["", "Use it:", *(f"  {line}" for line in report["usage"])]
    return "\n".join(lines)
