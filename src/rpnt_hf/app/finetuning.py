"""Trains a decoder on the recording before the visitor: `training/finetune.py`, in a process of its own.

The process can be ended at any moment and takes its memory with it. Not for long runs: those belong on the
command line, where they can be resumed.
"""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.nwb import Recording
from rpnt_hf.errors import CheckpointError, ConfigurationError
from rpnt_hf.hub import checkpoint_folder
from rpnt_hf.push import plan_push
from rpnt_hf.scripts import find_reference_checkpoint, find_script

__all__ = ["SCRATCH", "Training", "pack_decoder", "start_training"]

SCRATCH = "scratch"
WINDOW_BINS, BATCH_SIZE = 60, 16  # as in training/configs/tiny_finetune.yaml
EPOCH = re.compile(r"epoch (\d+)  loss (\S+)  R2 (\S+)")


class Training:
    """A training run in a process of its own.

    Args:
        command (`Sequence[str]`): What runs.
        folder (`Path`): Where it runs, so that no path of this machine gets into the card.
        output (`str`): Folder of the decoder, in `folder`.
        num_passes (`int`): Passes over the training data that it makes.
    """

    def __init__(self, command: Sequence[str], folder: Path, output: str, num_passes: int) -> None:
        self.folder, self.output = folder, folder / output
        self.num_passes = num_passes
        self.curve: list[tuple[int, float, float]] = []
        self.is_cancelled = False
        self.began = time.perf_counter()
        self.first_pass_at, self.last_pass_at = 0.0, 0.0
        self._lines: list[str] = []
        environment = {
            **os.environ,
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        environment.setdefault("OMP_NUM_THREADS", "1")  # tensors this small gain nothing from a second thread
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        weakref.finalize(self, self.process.kill)  # at the latest when the server ends
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """Follows the log."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := EPOCH.search(line):
                self.last_pass_at = time.perf_counter()
                self.first_pass_at = self.first_pass_at or self.last_pass_at
                self.curve.append((int(found[1]), float(found[2]), float(found[3])))
            elif line.strip():
                self._lines = [*self._lines, line.strip()][-50:]

    @property
    def is_running(self) -> bool:
        """`bool`: whether the process still runs."""
        return self.process.poll() is None

    def wait(self, seconds: float) -> None:
        """Waits for the process to end.

        Args:
            seconds (`float`): How long at most.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def cancel(self) -> None:
        """Ends the process; without effect where it has ended."""
        if self.is_running:
            self.is_cancelled = True
            self.process.kill()
        self.process.wait()

    def progress(self) -> dict[str, Any]:
        """Says how far it is.

        Returns:
            `dict`: Plain values for the view "training".
        """
        passes = self.curve[-1][0] if self.curve else 0
        each = None
        if len(self.curve) > 1:
            each = (self.last_pass_at - self.first_pass_at) / (passes - self.curve[0][0])
        return {
            "passes": passes,
            "num_passes": self.num_passes,
            "seconds_per_pass": each,
            "seconds_left": None if each is None else each * (self.num_passes - passes),
            "seconds": time.perf_counter() - self.began,
            "curve": [[epoch, loss, r2] for epoch, loss, r2 in self.curve if math.isfinite(r2)],
        }

    def finish(self) -> dict[str, Any]:
        """Reads the results of a run that has ended.

        Returns:
            `dict`: What `results.json` holds.

        Raises:
            CheckpointError: It was cancelled, or failed; then the paragraph of its error.
        """
        self._reader.join(5)
        if self.is_cancelled:
            raise CheckpointError("The training was cancelled: nothing was kept. Start it again to train.")
        if self.process.returncode != 0:
            error = next((line for line in self._lines if line.startswith("error: ")), None)
            if error is None:
                last = self._lines[-1] if self._lines else f"exit code {self.process.returncode}"
                error = f"The training must run to its end, but it failed. ({last})"
            raise CheckpointError(error.removeprefix("error: ").replace(f"{self.folder}/", ""))
        results: dict[str, Any] = json.loads((self.output / "results.json").read_text(encoding="utf-8"))
        return results


def start_training(
    recording: Recording,
    folder: Path,
    init: str | Path,
    steps: int,
    *,
    processor: Any = None,
    behavior: str | None = None,
    bin_size: float = 0.05,
    seed: int = 0,
) -> Training:
    """Builds a dataset of one recording and begins to train on it.

    Args:
        recording (`Recording`): What is trained on; its trials are divided into training, validation and
            test.
        folder (`Path`): Empty folder for the dataset and the decoder.
        init (`str` or `Path`): "scratch", or the decoder to start from.
        steps (`int`): Optimiser steps, about; whole passes over the data are made, at least two.
        processor (`RPNTProcessor`, *optional*): That of the decoder to start from: its bin size and behaviour
            are taken.
        behavior (`str`, *optional*): Series to decode, from scratch.
        bin_size (`float`, *optional*, defaults to 0.05): Width of a bin in s, from scratch.
        seed (`int`, *optional*, defaults to 0): Seed of the split and the training.

    Returns:
        [`Training`]: The run, which has begun.

    Raises:
        BinningError: The bins do not fit.
        ConfigurationError: `steps` is out of range.
        RecordingError: The recording lacks the behaviour.
        SplitError: There are too few trials.
    """
    if not 1 <= steps <= 20_000:
        raise ConfigurationError(f"`steps` must be from 1 to 20,000, got {steps}. Choose another number.")
    from_scratch = init == SCRATCH
    if not from_scratch:
        bin_size = processor.bin_size
        behavior = _series_of(processor.behavior_names)
    config = BuilderConfig(bin_size, (behavior,) if behavior else (), derive_velocity=True, seed=seed)
    build_dataset([recording], folder / "dataset", config)
    epochs = max(round(steps / _steps_per_epoch(folder / "dataset")), 2)
    options = {
        "data": "dataset",
        "output_dir": "decoder",
        "init": str(init),
        "epochs": epochs,
        "validate_every": max(epochs // 100, 1),
        "checkpoint_every": epochs,
        "seed": seed,
        "cpu": "true",
    }
    if from_scratch and len(recording.site_ids) > 1:
        options["model.num_spatial_layers"] = 1
    script, recipe = find_script("training/finetune.py"), find_script("training/configs/tiny_finetune.yaml")
    command = [sys.executable, str(script), "--config", str(recipe)]
    if not from_scratch:
        command += ["--model", "{}"]  # its shape is that of the checkpoint
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return Training(command, folder, "decoder", epochs)


def _series_of(names: Sequence[str]) -> str | None:
    """Names the series whose columns a decoder decodes: "cursor_vel" of "cursor_vel_x" and "cursor_vel_y"."""
    if len(names) < 2:
        return "".join(names) or None
    same = [set(letters) for letters in zip(*names, strict=False)]
    length = next((i for i, letters in enumerate(same) if len(letters) > 1), len(same))
    return names[0][:length].rstrip("_") or None


def _steps_per_epoch(dataset: Path) -> float:
    """Estimates the batches of one pass from the lengths of the training rows."""
    windows = 0
    for path in sorted(dataset.rglob("train-*.parquet")):
        table = pq.read_table(path, columns=["num_bins", "num_context_bins"])
        bins = table["num_bins"].to_numpy() - table["num_context_bins"].to_numpy()
        windows += int(sum(max(math.ceil(number / WINDOW_BINS), 1) for number in bins))
    return max(math.ceil(windows / BATCH_SIZE), 1)


def init_for_training(checkpoint: str, trained: dict[str, Path]) -> str:
    """Gives the name of a decoder as the training process finds it.

    Args:
        checkpoint (`str`): Name on the page.
        trained (`dict[str, Path]`): Folders of the decoders that were trained here.

    Returns:
        `str`: A bundled name or a folder.
    """
    if checkpoint not in trained and find_reference_checkpoint(checkpoint) is not None:
        return checkpoint
    return str(Path(checkpoint_folder(trained.get(checkpoint, checkpoint))).resolve())


def pack_decoder(folder: Path, path: Path) -> Path:
    """Packs what a push would send into a zip file: weights, configuration, processor, card and code.

    Args:
        folder (`Path`): Folder of a decoder.
        path (`Path`): File to write.

    Returns:
        `Path`: The file, whole or not at all.

    Raises:
        CheckpointError: The folder holds what is not to be shared.
    """
    plan = plan_push(folder, "OWNER/NAME")
    unfinished = path.with_suffix(".unfinished")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in plan.files.items():
            content = source if isinstance(source, bytes) else source.read_bytes()
            archive.writestr(f"{path.stem}/{name}", content)
    unfinished.replace(path)
    return path
