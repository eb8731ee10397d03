"""Executes the runs of a protocol in processes of their own; what was interrupted goes on where it stopped.

Each run leaves a folder with `run.json` and the predictions of its test bins. Not for comparing them: that is
`summary.py`.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.data.loading import load_rows, select_sessions, select_trials, view_rows
from rpnt_hf.data.rows import reach_bins, row_behavior, row_counts, scored_bins
from rpnt_hf.data.windows import WindowSampler
from rpnt_hf.decoding import decode_distributions, decode_rows
from rpnt_hf.errors import CheckpointError, ConfigurationError
from rpnt_hf.evaluation.comparators import KalmanDecoder, RidgeDecoder
from rpnt_hf.evaluation.neural_comparators import NeuralDecoder, read_settings
from rpnt_hf.evaluation.protocols import ALL_TRIALS, COMPARATORS, UNLABELLED, Base, Run, Session
from rpnt_hf.progress import progress_bar
from rpnt_hf.scripts import find_script, load_script

logger = logging.getLogger(__name__)

__all__ = ["Recipe", "execute_runs", "list_sessions", "read_predictions", "run_folder"]

SPLITS = ("train", "validation", "test")
RUN_FILE, PREDICTIONS_FILE = "run.json", "predictions.npz"
UNLABELLED_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """The configurations that an evaluation trains with.

    Args:
        finetune (`Path`): YAML of `training/finetune.py`.
        comparators (`Path`): YAML of the neural comparators.
        pretrain (`Path`, *optional*): YAML of `training/pretrain.py`; for protocols with transfer.
    """

    finetune: Path
    comparators: Path
    pretrain: Path | None = None

    @classmethod
    def named(cls, name: str) -> "Recipe":
        """Finds a recipe: NAME_finetune.yaml, NAME_comparators.yaml and, where it exists, NAME_pretrain.yaml.

        Args:
            name (`str`):
                First part of the file names in `training/configs`, such as "reach"; or with a folder, such as
                "my_recipes/mine".

        Returns:
            `Recipe`: The paths of its files.

        Raises:
            ConfigurationError: There is no such recipe.
        """
        folder = Path(name).parent if "/" in name else find_script("training/configs")
        stem = Path(name).name
        finetune, pretrain = folder / f"{stem}_finetune.yaml", folder / f"{stem}_pretrain.yaml"
        comparators = folder / f"{stem}_comparators.yaml"
        if not finetune.is_file() or not comparators.is_file():
            ending = "_comparators.yaml"
            known = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
            raise ConfigurationError(
                f"`recipe` must be one of {', '.join(known) or 'none'} in '{folder}', got '{name}'. A recipe "
                f"is at least {stem}_finetune.yaml and {stem}_comparators.yaml."
            )
        return cls(finetune, comparators, pretrain if pretrain.is_file() else None)

    def fingerprint(self) -> str:
        """Hashes the content of the configurations, to tell whether an evaluation can go on."""
        files = [path for path in (self.finetune, self.comparators, self.pretrain) if path is not None]
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]

    def model(self, transfer: bool) -> dict[str, Any]:
        """Gives the network's fields: those that are pretrained with transfer, else those of finetuning."""
        path = self.pretrain if transfer and self.pretrain is not None else self.finetune
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {}))

    def options(self) -> dict[str, Any]:
        """Lists what the recipe finetunes with, nested names joined by dots, as on the command line."""
        script = load_script("training/finetune.py")
        written = yaml.safe_load(self.finetune.read_text(encoding="utf-8"))
        fields = dataclasses.fields(script.FinetuneOptions)
        options: dict[str, Any] = {field.name: field.default for field in fields}
        options["optimizer"] = dataclasses.asdict(script.OptimizerConfig(**written.get("optimizer", {})))
        plain = {name: value for name, value in written.items() if name not in ("optimizer", "model")}
        options |= plain
        config = RPNTConfig.preset(str(options["preset"]), **written.get("model", {}))
        flat = {name: value for name, value in options.items() if name not in ("optimizer", "model")}
        flat |= {f"optimizer.{name}": value for name, value in options["optimizer"].items()}
        return flat | {f"model.{name}": value for name, value in config.to_dict().items()}


def list_sessions(data: str, dataset_config: str | None = None) -> list[Session]:
    """Lists the sessions of a dataset with what a plan needs to know.

    Args:
        data (`str`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        dataset_config (`str`, *optional*): Part of the corpus.

    Returns:
        `list[Session]`: Sorted by name.
    """
    rows = view_rows(load_rows(data, dataset_config, "train"))
    sessions = []
    for session_id in sorted({row["session_id"] for row in rows}):
        own = select_sessions(rows, [session_id])
        scored = sum(int(scored_bins(row).any()) for row in own)
        num_trials = select_trials(own)[1] or scored
        sessions.append(Session(session_id, own[0]["subject_id"], own[0]["task"], num_trials))
    return sessions


def run_folder(out: Path, run: Run) -> Path:
    """Names the folder of a run below the evaluation's.

    Args:
        out (`Path`): Folder of the evaluation.
        run (`Run`): The run.

    Returns:
        `Path`: The folder, which may not exist yet.
    """
    amount = "all" if run.amount.trials is None else f"trials{run.amount.trials}"
    return out / "runs" / _safe(run.session_id) / _safe(run.name) / amount / f"seed{run.seed}"


def _base_folder(out: Path, base: Base) -> Path:
    sources = hashlib.sha256("\0".join(base.sources).encode()).hexdigest()[:8]
    return out / "bases" / f"{base.kind}_{len(base.sources)}sessions_{sources}_seed{base.seed}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def read_predictions(folder: Path) -> dict[str, NDArray[Any]]:
    """Reads what a finished run predicted.

    Args:
        folder (`Path`): Folder of the run.

    Returns:
        `dict[str, np.ndarray]`: `targets` and `predictions` `(bins, targets)` float32, `trials` `(bins,)`
        int64 (one number per test trial), `reach` `(bins,)` bool, `directions` `(bins,)` float64 (radians,
        NaN where unknown), and where the decoder gives them `log_variances`, with `variance_dof`
        `(targets,)`. Scored test bins only.
    """
    with np.load(folder / PREDICTIONS_FILE) as file:
        return dict(file)


def execute_runs(
    runs: Sequence[Run],
    out: Path,
    *,
    data: str,
    dataset_config: str | None = None,
    recipe: Recipe,
    num_proc: int = 1,
    min_steps: int = 0,
    settings: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Executes the runs that are not finished, and the bases they begin from.

    Args:
        runs (`Sequence[Run]`): The plan.
        out (`Path`): Folder of the evaluation; new, empty, or of the same evaluation.
        data (`str`): The dataset.
        dataset_config (`str`, *optional*): Part of the corpus.
        recipe (`Recipe`): What to train with.
        num_proc (`int`, *optional*, defaults to 1): Runs at a time, each on one thread; at least 1.
        min_steps (`int`, *optional*, defaults to 0):
            Steps that every training takes at least, ours and the comparators alike: few trials make short
            epochs, so such runs get more of them.
        settings (`Mapping[str, Any]`): What makes this evaluation this one, as plain values.

    Returns:
        `list[dict]`: The content of `run.json` of each run, in the order of the plan. A run that failed has
        `error`, and is tried again by the next call.

    Raises:
        CheckpointError: The folder holds something else.
        ConfigurationError: The recipe lacks what the plan needs, or `num_proc` is below 1.
    """
    if num_proc < 1:
        raise ConfigurationError(f"`num_proc` must be 1 or more, got {num_proc}.")
    if recipe.pretrain is None and any(run.base for run in runs):
        raise ConfigurationError(
            "A protocol with transfer must have a recipe with a NAME_pretrain.yaml, got only "
            f"'{recipe.finetune.name}'. Choose another `recipe`."
        )
    settings = json.loads(
        json.dumps({**settings, "recipe_fingerprint": recipe.fingerprint(), "min_steps": min_steps})
    )
    _claim(out, settings)
    # With transfer, a network from scratch is the one that is pretrained.
    transfer = any(run.base for run in runs)
    common: dict[str, Any] = {
        "transfer": transfer,
        "min_steps": min_steps,
        "data": data,
        "dataset_config": dataset_config,
        "recipe": recipe,
        "out": out,
    }
    bases = dict.fromkeys(run.base for run in runs if run.base)
    # A base that decodes begins from the one that was pretrained on the same sessions.
    pretrained = dict.fromkeys(Base("pretrained", base.sources, base.seed) for base in bases)
    decoders = [base for base in bases if base.kind == "decoder"]
    unfinished = [run for run in runs if not _is_finished(run_folder(out, run))]
    if len(unfinished) < len(runs):
        logger.info("%d of %d runs are finished already.", len(runs) - len(unfinished), len(runs))
    waiting = [
        [base for base in group if not _is_finished(_base_folder(out, base))]
        for group in (pretrained, decoders)
    ]
    total = sum(map(len, waiting)) + len(unfinished)
    context = multiprocessing.get_context("spawn")
    with (
        progress_bar(total=total, unit="run", disable=total == 0) as bar,
        ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start_worker) as pool,
    ):
        for group in waiting:
            _finish(pool, bar, [(_train_base, base, common) for base in group])
        _finish(pool, bar, [(_execute, run, common) for run in unfinished])
    return [json.loads((run_folder(out, run) / RUN_FILE).read_text(encoding="utf-8")) for run in runs]


def _finish(
    pool: ProcessPoolExecutor,
    bar: tqdm,
    jobs: Iterable[tuple[Callable[..., str], Run | Base, Mapping[str, Any]]],
) -> None:
    for future in as_completed([pool.submit(work, job, common) for work, job, common in jobs]):
        bar.set_postfix_str(future.result())
        bar.update()


def _start_worker() -> None:
    os.environ["TQDM_DISABLE"] = "1"  # the bar of the evaluation is enough
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder ours, or checks that it is."""
    path = out / "evaluation.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in before.keys() | settings if before.get(name) != settings.get(name))
        if changed:
            raise CheckpointError(
                f"An evaluation can go on with the settings it began with, but {', '.join(changed)} changed "
                f"in '{out}'. Give the same, or choose another folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(
            f"`out` must be a new or empty folder, or one of an evaluation, got '{out}', which holds "
            "something else. Choose another."
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(path, settings)


def _is_finished(folder: Path) -> bool:
    path = folder / RUN_FILE
    return path.is_file() and "error" not in json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


@contextlib.contextmanager
def _logged(folder: Path) -> Any:
    """Sends what a run prints to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def _train_base(base: Base, common: Mapping[str, Any]) -> str:
    """Trains a checkpoint that runs begin from; a failure is written down."""
    folder = _base_folder(common["out"], base)
    recipe: Recipe = common["recipe"]
    began = time.perf_counter()
    facts: dict[str, Any] = {"kind": base.kind, "sources": base.sources, "seed": base.seed}
    with _logged(folder):
        try:
            options = {"seed": base.seed, **_data_options(common)}
            if base.kind == "pretrained":
                everything = [
                    session.session_id for session in list_sessions(common["data"], common["dataset_config"])
                ]
                others = sorted(set(everything) - set(base.sources))
                assert recipe.pretrain is not None
                facts |= _train("pretrain", recipe.pretrain, folder, exclude_sessions=others, **options)
            else:
                init = _finished_base(common["out"], Base("pretrained", base.sources, base.seed))
                options |= {"sessions": list(base.sources), "init": str(init / "model"), "model": {}}
                facts |= _train("finetune", recipe.finetune, folder, **options)
        except Exception as error:
            facts["error"] = _reason(error)
        _write_json(folder / RUN_FILE, {**facts, "seconds": time.perf_counter() - began})
    return folder.name


def _finished_base(out: Path, base: Base) -> Path:
    folder = _base_folder(out, base)
    if not _is_finished(folder):
        raise CheckpointError(
            f"The checkpoint that this run begins from must be there, but '{folder}' failed."
        )
    return folder


def _execute(run: Run, common: Mapping[str, Any]) -> str:
    """Trains and scores one decoder; a failure is written down."""
    folder = run_folder(common["out"], run)
    began = time.perf_counter()
    facts: dict[str, Any] = {
        "method": run.method, "arm": run.arm, "name": run.name, "session_id": run.session_id,
        "amount": run.amount.name, "seed": run.seed,
    }  # fmt: skip
    with _logged(folder):
        try:
            work = _run_comparator if run.method in COMPARATORS else _run_ours
            work = _run_unlabelled if run.method in UNLABELLED else work
            found, predictions = work(run, folder, common)
            facts |= found
            _write_predictions(folder / PREDICTIONS_FILE, predictions)
        except Exception as error:
            facts["error"] = _reason(error)
        _write_json(folder / RUN_FILE, {**facts, "seconds": time.perf_counter() - began})
    return f"{run.session_id} {run.name} {run.amount.name} seed {run.seed}"


def _reason(error: Exception) -> str:
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"


def _data_options(common: Mapping[str, Any]) -> dict[str, Any]:
    options = {"data": str(common["data"])}
    return (
        options
        if common["dataset_config"] is None
        else {**options, "dataset_config": common["dataset_config"]}
    )


def _session_rows(run: Run, common: Mapping[str, Any]) -> tuple[dict[str, list[Any]], int]:
    """Rows of the target by split, training rows cut to the amount, and the number of training trials."""
    splits = {
        split: select_sessions(
            view_rows(load_rows(common["data"], common["dataset_config"], split)), [run.session_id]
        )
        for split in SPLITS
    }
    splits["train"], num_trials = select_trials(splits["train"], run.amount.trials, seed=run.seed)
    return splits, num_trials


def _stretch(recipe: Mapping[str, Any], rows: Sequence[Any], min_steps: int) -> tuple[int, int]:
    """Gives epochs that make at least so many steps, and as many validations as before."""
    steps = len(WindowSampler(rows, recipe["window_bins"], recipe["batch_size"]).batches(0))
    factor = max(1, math.ceil(min_steps / (recipe["epochs"] * steps)))
    return recipe["epochs"] * factor, recipe["validate_every"] * factor


def _run_comparator(
    run: Run, folder: Path, common: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    splits, num_trials = _session_rows(run, common)
    facts: dict[str, Any] = {"num_trials": num_trials}
    decoder: Any
    if run.method in ("ridge", "kalman"):
        decoder = {"ridge": RidgeDecoder, "kalman": KalmanDecoder}[run.method]()
    else:
        settings = read_settings(common["recipe"].comparators)[run.method]
        epochs, validate_every = _stretch(vars(settings), splits["train"], common["min_steps"])
        settings = dataclasses.replace(settings, epochs=epochs, validate_every=validate_every)
        decoder = NeuralDecoder(settings, seed=run.seed)
    decoder.fit(splits["train"], splits["validation"])
    if isinstance(decoder, NeuralDecoder):
        facts |= {"parameters": decoder.num_parameters, "validation_r2": decoder.validation_r2}
    return facts, _test_bins(splits["test"], [decoder.predict(row) for row in splits["test"]])


def _run_ours(run: Run, folder: Path, common: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from rpnt_hf.hub import load_decoder

    recipe: Recipe = common["recipe"]
    splits, _ = _session_rows(run, common)
    plain = yaml.safe_load(recipe.finetune.read_text(encoding="utf-8"))
    options: dict[str, Any] = {"sessions": [run.session_id], "seed": run.seed, **_data_options(common)}
    options["epochs"], options["validate_every"] = _stretch(plain, splits["train"], common["min_steps"])
    if run.amount.trials is not None:
        options["training_trials"] = run.amount.trials
    if run.base is None:
        changed = {
            name.removeprefix("model."): value
            for name, value in run.overrides.items()
            if name.startswith("model.")
        }
        fields = {**recipe.model(common["transfer"]), **changed}
        options |= {"init": "scratch", "mode": "full", "model": fields}
        options |= {name: value for name, value in run.overrides.items() if not name.startswith("model.")}
    else:
        init = _finished_base(common["out"], run.base) / "model"
        options |= {"init": str(init), "mode": run.method.split()[0], "model": {}}
    results = _train("finetune", recipe.finetune, folder, **options)
    model, processor = load_decoder(str(folder / "model"))
    log_variances = None
    if model.config.predict_variance:
        decoded, log_variances = decode_distributions(model, processor, splits["test"])
    else:
        decoded = decode_rows(model, processor, splits["test"])
    facts = {
        "num_trials": results["training_trials"],
        "parameters": results["parameters"],
        "validation_r2": results["validation"]["r2"],
    }
    predictions = _test_bins(splits["test"], decoded, log_variances, skip=model.config.label_lag)
    if log_variances is not None and model.config.variance_dof is not None:
        predictions["variance_dof"] = np.array(model.config.variance_dof)
    return facts, predictions


def _run_unlabelled(
    run: Run, folder: Path, common: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Carries a decoder over to the session by `UNLABELLED_SECONDS` of its counts; sees no label of it."""
    from rpnt_hf.hub import load_decoder
    from rpnt_hf.stabilization import add_session, align_units, carry_units

    assert run.base is not None
    splits, _ = _session_rows(dataclasses.replace(run, amount=ALL_TRIALS), common)
    model, processor = load_decoder(str(_finished_base(common["out"], run.base) / "model"))
    reference_id = add_session(model, processor, splits["train"][0])
    carry_units(model, processor, run.session_id, reference_id)
    facts: dict[str, Any] = {"num_trials": 0, "reference": reference_id}
    if run.method == "aligned":
        rows = view_rows(load_rows(common["data"], common["dataset_config"], "train"))
        counts, reference_counts = (
            np.concatenate([row_counts(row) for row in some])
            for some in (splits["train"], select_sessions(rows, [reference_id]))
        )
        num_bins = round(UNLABELLED_SECONDS / processor.bin_size)
        facts |= align_units(
            model, processor, run.session_id, reference_id, counts[:num_bins], reference_counts
        )
    decoded = decode_rows(model, processor, splits["test"])
    return facts, _test_bins(splits["test"], decoded, skip=model.config.label_lag)


def _train(script: str, config: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Runs a training script in this process, going on where it was interrupted; keeps no training state."""
    target = folder / "model"
    options |= {"output_dir": str(target), "resume": (target / "run_config.json").is_file()}
    if target.exists() and not options["resume"]:
        shutil.rmtree(target)
    argv = ["--config", str(config)]
    for name, value in options.items():
        argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    results = load_script(f"training/{script}.py").main(argv)
    shutil.rmtree(target / "checkpoints", ignore_errors=True)
    return dict(results)


def _test_bins(
    rows: Sequence[Any],
    decoded: Sequence[NDArray[np.float32]],
    log_variances: Sequence[NDArray[np.float32]] | None = None,
    skip: int = 0,
) -> dict[str, Any]:
    """Gathers the scored bins of the test rows, each with the number of its trial and its direction."""
    parts: dict[str, list[NDArray[Any]]] = {}
    first = 0
    for index, row in enumerate(rows):
        scored = scored_bins(row)
        scored[:skip] = False
        trial_numbers = np.full(row["num_bins"], first)
        directions = np.full(row["num_bins"], np.nan)
        for number, trial in enumerate(row["trials"] or []):
            inside = slice(max(trial["start_bin"], 0), trial["stop_bin"])
            trial_numbers[inside] = first + number
            directions[inside] = np.nan if trial["target_dir"] is None else trial["target_dir"]
        columns = {
            "targets": row_behavior(row), "predictions": decoded[index], "trials": trial_numbers,
            "reach": reach_bins(row), "directions": directions,
        }  # fmt: skip
        if log_variances is not None:
            columns["log_variances"] = log_variances[index]
        for name, column in columns.items():
            parts.setdefault(name, []).append(column[scored])
        first += max(len(row["trials"] or []), 1)
    gathered = {name: np.concatenate(columns) for name, columns in parts.items()}
    if not np.isfinite(gathered["predictions"]).all():
        raise ConfigurationError(
            "Predictions of test bins must be finite, got values that are not: the run diverged. Lower the "
            "learning rate of the recipe."
        )
    return gathered


def _write_predictions(path: Path, predictions: Mapping[str, NDArray[Any]]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez_compressed(file, allow_pickle=False, **predictions)
    os.replace(file.name, path)
