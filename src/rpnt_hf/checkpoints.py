"""Output folders of training runs: refused when in use, checkpointed so that a kill loses little.

A checkpoint is written under a temporary name; when every process has written its part, a manifest with the
size and the SHA-256 of each file is added and the folder is renamed. One without the temporary name is
finished, and one that its manifest does not describe is damaged. Not here: what a run trains (`training/`).
"""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils import load as load_plain_values
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .disk import explain_disk_errors, flush
from .errors import CheckpointError

logger = logging.getLogger(__name__)

__all__ = ["RunFolder", "TrainingProgress", "find_damage", "write_manifest"]

GO_ON = "Checkpoints that are finished stay: go on by `--resume true`."
CHECKPOINT_NAME = re.compile(r"step_(\d+)")
UNFINISHED = "unfinished_"
DAMAGED = "damaged_"
MANIFEST = "manifest.json"
LOCK = ".lock"


class TrainingProgress:
    """Where a run stands, saved in every checkpoint beside model, optimiser and random states.

    It takes no arguments. Its attributes are `epoch` and `batch` (the next one to run), `step` (optimiser
    steps done), `best` (metrics of the best validation, with its step), `best_weights` (the weights then),
    `history` (one dictionary per entry) and `seconds` (time spent so far, validations included).
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
        self._lock_path = self.checkpoints / LOCK
        self.settings = json.loads(json.dumps(settings))
        self.keep = keep
        if keep < 1:
            raise CheckpointError(f"At least 1 checkpoint must be kept, got `keep_checkpoints`={keep}.")
        if self.path.exists() and not self._is_empty():
            if not resume:
                raise CheckpointError(
                    f"`output_dir` must be a new or empty folder, got '{self.path}', which holds something. "
                    "Choose another, or go on with it by `--resume true`."
                )
            self._check_settings()

    def _is_empty(self) -> bool:
        """Says whether there is nothing but what a run leaves that is killed in `open`."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir()} - {f"run_config.json.{UNFINISHED}"}
        if names - {self.checkpoints.name}:
            return False
        return not names or {path.name for path in self.checkpoints.iterdir()} <= {LOCK}

    def _check_settings(self) -> None:
        written = self.path / "run_config.json"
        if not written.is_file():
            raise CheckpointError(
                f"A run can be resumed where `run_config.json` is, but '{self.path}' has none: it holds "
                "something else."
            )
        try:
            before = _flat(json.loads(written.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"A run can be resumed where `run_config.json` says how it began, but '{written}' cannot be "
                "read. Start a new run in another `output_dir`, from the weights of this one by `--init`. "
                f"({str(error).splitlines()[0]})"
            ) from error
        now = _flat(self.settings)
        changed = [
            f"`{name}` (was {before.get(name, 'absent')!r}, is {now.get(name, 'absent')!r})"
            for name in sorted(before.keys() | now.keys())
            if name not in before or name not in now or before[name] != now[name]
        ]
        if changed:
            raise CheckpointError(
                f"A resumed run must have the configuration it began with, but of '{self.path}' there "
                f"differ: {', '.join(changed)}. Give the same values to the same version of rpnt_hf, or "
                "start a new run in another `output_dir`."
            )

    def open(self) -> None:
        """Makes the folder and writes the run's configuration into it. For the main process.

        Raises:
            CheckpointError: Another run writes to the folder, or it cannot be written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # Let go by the system when the process ends, however it ends; held once per process.
            self._lock = FileLock(self._lock_path, is_singleton=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise CheckpointError(
                f"Only one run may write to an `output_dir`, but another writes to '{self.path}', perhaps "
                "processes of one whose launcher was killed. Wait for them, end them, or choose another. "
                "Where none runs on any node (some file systems keep locks of the dead), remove "
                f"'{self._lock_path}'."
            ) from error
        except NotImplementedError:
            logger.warning("The file system of '%s' has no locks: start only one run there.", self.path)
        except OSError as error:
            raise CheckpointError(
                f"`output_dir` must be a folder that can be written to, got '{self.path}': {error.strerror}. "
                "Choose another."
            ) from error
        self.write_json("run_config.json", self.settings)

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file whole or not at all.

        Args:
            name (`str`): File name inside the folder.
            content: Plain values.

        Raises:
            CheckpointError: It cannot be written, for example because the disk is full.
        """
        unfinished = self.path / f"{name}.{UNFINISHED}"
        with explain_disk_errors(self.path / name, CheckpointError, GO_ON):
            try:
                unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
                flush(unfinished)
                unfinished.replace(self.path / name)
            except OSError:
                unfinished.unlink(missing_ok=True)
                raise

    @contextmanager
    def files_together(self) -> Iterator[Path]:
        """Lets several files be written, and puts them into the folder when all of them are whole.

        Returns:
            `Iterator[Path]`: A temporary folder inside the folder, removed afterwards.

        Raises:
            CheckpointError: A file cannot be written, for example because the disk is full.
        """
        unfinished = self.path / f"{UNFINISHED}files"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            with explain_disk_errors(self.path, CheckpointError, GO_ON):
                unfinished.mkdir()
                yield unfinished
                for path in sorted(unfinished.iterdir()):
                    path.replace(self.path / path.name)
        except SafetensorError as error:  # which names what the disk refused in words only
            raise CheckpointError(
                f"The model must be written whole, but it cannot be written to '{self.path}': "
                f"{str(error).splitlines()[0]}. {GO_ON}"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

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

        Raises:
            CheckpointError: A file cannot be written, for example because the disk is full.
        """
        final = self.checkpoints / f"step_{step:08d}"
        unfinished = self.checkpoints / f"{UNFINISHED}{final.name}"
        if accelerator.is_main_process:
            with explain_disk_errors(unfinished, CheckpointError, GO_ON):
                for leftover in self.checkpoints.glob(f"{UNFINISHED}*"):
                    shutil.rmtree(leftover)
                unfinished.mkdir()
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_manifest(unfinished, accelerator.num_processes)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"A checkpoint must be written whole, but step {step} cannot be written to "
                f"'{self.checkpoints}': {str(error).splitlines()[0]}. Nothing of it is left and the "
                "checkpoints before it are untouched: make room, then go on by `--resume true`."
            ) from error
        if accelerator.is_main_process:
            with explain_disk_errors(final, CheckpointError, GO_ON):
                if final.exists():
                    self._remove(final)
                unfinished.rename(final)
                flush(self.checkpoints)
                for old in self.finished_checkpoints()[: -self.keep]:
                    self._remove(old)
        accelerator.wait_for_everyone()

    def _remove(self, checkpoint: Path) -> None:
        """Removes a checkpoint so that a kill on the way leaves nothing that looks finished."""
        leaving = checkpoint.rename(checkpoint.with_name(f"{UNFINISHED}removal_of_{checkpoint.name}"))
        shutil.rmtree(leaving)

    def load_last_checkpoint(self, accelerator: Accelerator) -> Path | None:
        """Loads the last whole checkpoint into what the accelerator knows. For all processes.

        Damaged ones that are later are renamed, with a warning.

        Args:
            accelerator (`Accelerator`): As in `save_checkpoint`.

        Returns:
            `Path` or `None`: The checkpoint, or None where the run has not finished one.

        Raises:
            CheckpointError: Every finished checkpoint is damaged, one would run code, or the number of
                processes is another.
        """
        chosen = [self._last_whole_checkpoint() if accelerator.is_main_process else None]
        [found] = broadcast_object_list(chosen)
        if found is None:
            return None
        if not found.is_dir():
            raise CheckpointError(
                f"Every process must see one `output_dir`, but process {accelerator.process_index} has no "
                f"'{found}'. Choose a folder on a file system that all nodes share."
            )
        num_processes = json.loads((found / MANIFEST).read_text(encoding="utf-8"))["num_processes"]
        if num_processes != accelerator.num_processes:
            raise CheckpointError(
                f"A run must be resumed with as many processes as it began with, {num_processes}, got "
                f"{accelerator.num_processes}: each has random states of its own in '{found}'. Launch "
                f"{num_processes}, or begin a new run from its weights by `--init`."
            )
        _check_plain_values(found)
        accelerator.load_state(str(found))
        return found

    def _last_whole_checkpoint(self) -> Path | None:
        for leftover in self.checkpoints.glob(f"{UNFINISHED}*"):
            logger.warning("An unfinished checkpoint is ignored: %s.", leftover.name)
        damaged: list[tuple[Path, str]] = []
        for checkpoint in reversed(self.finished_checkpoints()):
            damage = find_damage(checkpoint)
            if damage is None:
                for path, fault in damaged:
                    logger.warning(
                        "Checkpoint %s is damaged (%s): the run goes on from %s, and it is kept as %s.",
                        path.name, fault, checkpoint.name, f"{DAMAGED}{path.name}",
                    )  # fmt: skip
                    target = path.with_name(f"{DAMAGED}{path.name}")
                    shutil.rmtree(target, ignore_errors=True)
                    path.rename(target)
                return checkpoint
            damaged.append((checkpoint, damage))
        if damaged:
            faults = "; ".join(f"in {path.name} {fault}" for path, fault in damaged)
            raise CheckpointError(
                f"A run can be resumed from a whole checkpoint, but in '{self.checkpoints}' each is damaged: "
                f"{faults}. Copy a whole one there, or start a new run in another `output_dir`."
            )
        return None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Names what is nested as options do, such as `optimizer.learning_rate`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def write_manifest(folder: Path, num_processes: int) -> None:
    """Says what a checkpoint consists of, once all of it is written and on the disk.

    Args:
        folder (`Path`): The checkpoint.
        num_processes (`int`): Processes of the run; each has written its random states.

    Raises:
        CheckpointError: The random states of a process are not there.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    missing = [name for name in _random_states(num_processes) if name not in files]
    if missing:
        raise CheckpointError(
            f"Every process must write to one `output_dir`, but {', '.join(missing)} did not arrive in "
            f"'{folder}'. Choose a folder on a file system that all nodes share."
        )
    facts = {}
    for name, path in files.items():
        flush(path)
        facts[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    text = json.dumps({"num_processes": num_processes, "files": facts}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


def find_damage(folder: Path) -> str | None:
    """Compares a checkpoint with its manifest.

    Args:
        folder (`Path`): The checkpoint.

    Returns:
        `str` or `None`: What is wrong, or None where every file is as it was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {
            name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()
        }
        needed = _random_states(int(manifest["num_processes"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"`{MANIFEST}` is missing or cannot be read"
    try:
        for name, (size, digest) in files.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"`{name}` has {path.stat().st_size} bytes instead of {size}"
            if _digest(path) != digest:
                return f"`{name}` is not what was written (SHA-256)"
    except OSError as error:
        return f"`{name}` cannot be read ({error.strerror})"
    # Without its random states a process would go on with others, and Accelerate would not say so.
    return next((f"`{name}` is missing" for name in needed if name not in files), None)


def _random_states(num_processes: int) -> list[str]:
    return [f"random_states_{index}.pkl" for index in range(num_processes)]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
