"""The whole path on simulated recordings, for `rpnt demo`: from NWB files to a decoder that loads by name.

Not a benchmark: one simulated session, one seed. What is trained, and for how long, stands in
`training/configs/tiny_pretrain.yaml` and `tiny_finetune.yaml`.
"""

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpnt_hf.analysis.plots import (
    plot_overview,
    plot_training_curves,
    plot_trajectories,
    plot_velocity_traces,
    save_figure,
)
from rpnt_hf.auto import AutoModelForMotorDecoding
from rpnt_hf.data.loading import load_rows, select_sessions, view_rows
from rpnt_hf.data.nwb import Recording, read_nwb
from rpnt_hf.data.rows import row_behavior, scored_bins
from rpnt_hf.decoding import decode_recording, decode_rows
from rpnt_hf.errors import DatasetError
from rpnt_hf.evaluation.comparators import RidgeDecoder
from rpnt_hf.evaluation.report import write_report
from rpnt_hf.metrics import r2_scores
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.scripts import find_script, load_builder, load_script

logger = logging.getLogger(__name__)

__all__ = ["run"]

BIN_SIZE = 0.05  # s
RIDGE, SCRATCH, PRETRAINED = "ridge", "from scratch", "pretrained"
FOLDERS = {SCRATCH: "scratch", PRETRAINED: "decoder"}

Rows = Sequence[Mapping[str, Any]]
Decoded = Mapping[str, Sequence[NDArray[np.float32]]]


def run(
    out: str | Path, seed: int = 0, build_options: Sequence[str] = (), epochs: int | None = None
) -> dict[str, Any]:
    """Simulates, builds, pretrains, finetunes, compares, loads again, decodes and reports.

    Args:
        out (`str` or `Path`): Folder to write; must not exist or be empty.
        seed (`int`, *optional*, defaults to 0): Seed of the simulation, the split and the training.
        build_options (`Sequence[str]`, *optional*, defaults to `()`):
            More options of `rpnt build synthetic`, for a corpus of another size.
        epochs (`int`, *optional*): Epochs of each training; those of the configurations where absent.

    Returns:
        `dict`: What `report.json` holds: `r2` and `r2_variance_weighted` of each decoder on the test trials
        of the held-out session, `r2_from_nwb` (the pretrained one on the same trials, decoded from the NWB
        file), `seconds` of each step, and `run`.

    Raises:
        DatasetError: The folder holds something.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(
            f"`out` must not exist or be an empty folder, got '{out}', which holds something. Remove it or "
            "choose another one."
        )
    # Tensors this small gain nothing from a second thread, and threads that wait for each other on busy
    # cores cost minutes (docs/decisions.md).
    torch.set_num_threads(1)
    watch = _Stopwatch()
    _build(out, seed, build_options)
    files = sorted((out / "nwb").rglob("*.nwb"))
    recording = read_nwb(files[-1])
    session_id = recording.session_id
    watch.finish(f"simulate {len(files)} recordings and build the dataset")

    _train("pretrain", out, "pretrained", seed, epochs, exclude_sessions=[session_id])
    watch.finish(f"pretrain on the other {len(files) - 1} sessions")
    for name, init in ((SCRATCH, "scratch"), (PRETRAINED, str(out / "pretrained"))):
        _train("finetune", out, FOLDERS[name], seed, epochs, sessions=[session_id], init=init)
        watch.finish(f"train a decoder, {name}")

    train, validation, test = (
        select_sessions(view_rows(load_rows(out / "dataset", split=split)), [session_id])
        for split in ("train", "validation", "test")
    )
    ridge = RidgeDecoder().fit(train, validation)
    decoded = {RIDGE: [ridge.predict(row) for row in test]}
    for name, folder in FOLDERS.items():
        model = AutoModelForMotorDecoding.from_pretrained(out / folder)
        processor = RPNTProcessor.from_pretrained(out / folder)
        decoded[name] = decode_rows(model, processor, test)
    predictions = decode_recording(model, processor, recording)
    predictions.to_parquet(out / "predictions.parquet", index=False)
    watch.finish("fit ridge, load the decoders again and decode")

    scores = {name: _score(test, parts) for name, parts in decoded.items()}
    columns = [f"{name}_predicted" for name in test[0]["behavior_names"]]
    from_nwb = _score(test, [_bins_of(row, predictions["time"], predictions[columns]) for row in test])
    figures = _draw(out, recording, test, decoded, {name: score["r2"] for name, score in scores.items()})
    watch.finish("draw")
    results = {
        "title": "The whole path on simulated recordings",
        "summary": (
            f"Session {session_id} was held out of pretraining. The table has R2 on its {_num_trials(test)} "
            f"test trials ({sum(int(scored_bins(row).sum()) for row in test)} bins of {BIN_SIZE} s); every "
            f"decoder learned from its {_num_trials(train)} training trials. Loaded again through "
            "AutoModelForMotorDecoding and run on the NWB file, the pretrained decoder has "
            f"{from_nwb['r2']:.3f} on the same trials."
        ),
        "table": [{"decoder": name, **score} for name, score in scores.items()],
        "figures": figures,
        "seeds": [seed],
        "r2": {name: score["r2"] for name, score in scores.items()},
        "r2_variance_weighted": {name: score["r2_variance_weighted"] for name, score in scores.items()},
        "r2_from_nwb": from_nwb["r2"],
        "held_out": {"session_id": session_id, "file": files[-1].relative_to(out)},
        "seconds": watch.seconds,
    }
    return write_report(results, out)


class _Stopwatch:
    """Times the steps of the demo, and logs each as it ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def finish(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._began, 1)
        self._began = now
        logger.info("%s: %.1f s", step, self.seconds[step])


def _build(out: Path, seed: int, options: Sequence[str]) -> None:
    builder = load_builder("synthetic")
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    seeds = ["--seed", str(seed), "--corpus-seed", str(seed)]
    folders = ["--nwb-dir", str(out / "nwb"), "--out", str(out / "dataset")]
    builder.build(parser.parse_args([*folders, *seeds, "--bin-size", str(BIN_SIZE), *options]))


def _train(script: str, out: Path, folder: str, seed: int, epochs: int | None, **options: Any) -> None:
    """Runs a training script in this process, with its tiny configuration."""
    options |= {"data": str(out / "dataset"), "output_dir": str(out / folder), "seed": seed, "cpu": True}
    if epochs is not None:
        options["epochs"] = epochs
    argv = ["--config", str(find_script(f"training/configs/tiny_{script}.yaml"))]
    for name, value in options.items():
        argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    load_script(f"training/{script}.py").main(argv)


def _num_trials(rows: Rows) -> int:
    return sum(len(row["trials"]) for row in rows)


def _score(rows: Rows, decoded: Sequence[NDArray[np.float32]]) -> dict[str, float | None]:
    """Scores all scored bins of the rows at once."""
    masks = [scored_bins(row) for row in rows]
    targets = [row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)]
    predictions = [values[mask] for values, mask in zip(decoded, masks, strict=True)]
    return r2_scores(np.concatenate(targets), np.concatenate(predictions))


def _bins_of(row: Mapping[str, Any], times: Any, values: Any) -> NDArray[np.float32]:
    """Picks the bins of a row out of those of the whole recording."""
    first = int(np.argmin(np.abs(np.asarray(times) - row["start_time"])))
    return np.asarray(values, dtype=np.float32)[first : first + row["num_bins"]]


def _draw(
    out: Path, recording: Recording, rows: Rows, decoded: Decoded, r2: Mapping[str, float | None]
) -> list[str]:
    """Draws the pictures of the report and lists their names."""
    longest = int(np.argmax([row["num_bins"] for row in rows]))
    row = rows[longest]
    shown = slice(row["num_context_bins"], None)
    times = row["start_time"] + row["bin_size"] * np.arange(row["num_bins"])
    truth = row_behavior(row)[shown]
    traces = {name: parts[longest][shown] for name, parts in decoded.items()}
    reaches = [
        (index, slice(trial["scored_start_bin"], trial["scored_stop_bin"]), trial["target_dir"])
        for index, row in enumerate(rows)
        for trial in row["trials"]
    ]
    histories = {
        name: json.loads((out / folder / "history.json").read_text()) for name, folder in FOLDERS.items()
    }
    figures = {
        "overview.png": plot_overview(
            recording.spike_times, truth, traces[PRETRAINED], times[shown], r2[PRETRAINED]
        ),
        "trajectories.png": plot_trajectories(
            [row_behavior(rows[index])[bins] for index, bins, _ in reaches],
            {name: [parts[index][bins] for index, bins, _ in reaches] for name, parts in decoded.items()},
            [direction for _, _, direction in reaches],
            row["bin_size"],
            r2,
        ),
        "velocity.png": plot_velocity_traces(
            truth,
            traces,
            times[shown],
            r2,
            names=row["behavior_names"],
            unit=row["behavior_units"][0],
            trial_starts=[times[trial["start_bin"]] for trial in row["trials"]],
        ),
        "training.png": plot_training_curves(histories),
    }
    return [save_figure(figure, out / name).name for name, figure in figures.items()]
