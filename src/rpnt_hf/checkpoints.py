"""Output folders of training runs: refused when in use, checkpointed so that a kill loses little.

A checkpoint is written under a temporary name and renamed when it is whole, so one that has its name is
finished. Not here: what a run trains (`training/`).
"""

import json
import logging
import math
import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import load as load_plain_values

from .errors import CheckpointError

logger = logging.getLogger(__name__)

__all__ = ["RunFolder", "TrainingProgress"]

CHECKPOINT_NAME = re.compile(r"step_(\d+)")
UNFINISHED = "unfinished_"


class TrainingProgress:
    """Where a run stands, saved in every checkpoint beside model, optimiser and random states.

    Args:
        None. Attributes: `epoch` and `batch` (the next one to run), `step` (optimiser steps done), `best`
        (metrics of the best validation, with its step), `best_weights` (the weights then), `history` (one
        dictionary per entry), `seconds` (time spent so far, validations included).
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.best_rank = -math.inf
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, Any] | None = None
        self.history: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.seconds = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Gives everything as a dictionary, for Accelerate."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes everything back from such a dictionary."""
        vars(self).update(state)


class RunFolder:
    """Folder that one training run writes to.

    Args:
        path (`str` or `Path`): The folder; made on the first write.
        settings (`dict`): The run's configuration as plain values; a resumed run must have the same.
        resume (`bool`): Whether to go on from the last finished checkpoint, if there is one.
        keep (`int`): Number of checkpoints that are kept, at least 1.

    Raises:
        CheckpointError: The folder holds something and `resume` is False, or it holds another run.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], resume: bool, keep: int) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.settings = json.loads(json.dumps(settings))
        self.keep = keep
        if keep < 1:
            raise CheckpointError(f"At least 1 checkpoint must be kept, got `keep_checkpoints`={keep}.")
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            if not resume:
                raise CheckpointError(
                    f"`output_dir` must be a new or empty folder, got '{self.path}', which holds something. "
                    "Choose another, or go on with it by `--resume true`."
                )
            self._check_settings()

    def _check_settings(self) -> None:
        written = self.path / "run_config.json"
        if not written.is_file():
            raise CheckpointError(
                f"A run can be resumed where `run_config.json` is, but '{self.path}' has none: it holds "
                "something else."
            )
        before = json.loads(written.read_text(encoding="utf-8"))
        changed = sorted(
            key for key in before.keys() | self.settings.keys() if before.get(key) != self.settings.get(key)
        )
        if changed:
            raise CheckpointError(
                f"A resumed run must have the configuration it began with, but {', '.join(changed)} changed "
                f"in '{self.path}'. Give the same values, or start a new run in another `output_dir`."
            )

    def open(self) -> None:
        """Makes the folder and writes the run's configuration into it. For the main process."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.write_json("run_config.json", self.settings)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all.

        Args:
            name (`str`): File name inside the folder.
            content: Plain values.
        """
        unfinished = self.path / f"{name}.{UNFINISHED}"
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self.path / name)

    def finished_checkpoints(self) -> list[Path]:
        """Lists the finished checkpoints, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [path for path in self.checkpoints.iterdir() if CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))

    def save_checkpoint(self, accelerator: Accelerator, step: int) -> None:
        """Saves the state of a run. For all processes.

        Args:
            accelerator (`Accelerator`): Knows the model, the optimiser and what is registered for
                checkpoints.
            step (`int`): Optimiser steps done; names the checkpoint.
        """
        final = self.checkpoints / f"step_{step:08d}"
        unfinished = self.checkpoints / f"{UNFINISHED}{final.name}"
        if accelerator.is_main_process:
            for leftover in [*self.checkpoints.glob(f"{UNFINISHED}*"), *self.checkpoints.glob(final.name)]:
                shutil.rmtree(leftover)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            unfinished.rename(final)
            for old in self.finished_checkpoints()[: -self.keep]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load_last_checkpoint(self, accelerator: Accelerator) -> Path | None:
        """Loads the last finished checkpoint into what the accelerator knows. For all processes.

        Args:
            accelerator (`Accelerator`): As in `save_checkpoint`.

        Returns:
            `Path` or `None`: The checkpoint, or None where there is none.

        Raises:
            CheckpointError: A file of it is broken, or would run code.
        """
        found = self.finished_checkpoints()
        for leftover in self.checkpoints.glob(f"{UNFINISHED}*"):
            logger.warning("An unfinished checkpoint is ignored: %s.", leftover.name)
        if not found:
            return None
        _check_plain_values(found[-1])
        accelerator.load_state(str(found[-1]))
        return found[-1]


def _check_plain_values(checkpoint: Path) -> None:
    """Reads every file that is no safetensors with a loader that knows tensors and plain values only.

    Accelerate reads the states registered with it with one that runs what a file tells it to.
    """
    for path in sorted(checkpoint.rglob("*")):
        if path.is_dir() or path.suffix in (".safetensors", ".json"):
            continue
        try:
            load_plain_values(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            raise CheckpointError(
                f"A checkpoint must hold tensors and plain values only, but `{path.name}` in '{checkpoint}' "
                "is broken, or holds code, which is not run. Resume only runs of your own; to go on from the "
                f"checkpoint before, remove this one. ({str(error).splitlines()[0]})"
            ) from error
