"""Model cards: `README.md` and `.eval_results` of a checkpoint, from its `results.json` and configuration.

The words are templates in `model_cards/`; no number is typed. Not for cards of datasets: those are written by
the builder (`data/card.py`).
"""

import functools
import json
import math
import operator
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.data.card import REPO_PLACEHOLDER
from rpnt_hf.errors import CheckpointError
from rpnt_hf.scripts import find_script

__all__ = ["render_card", "render_eval_results", "write_card"]

RESULTS_FILE, CARD_FILE, EVAL_RESULTS_FILE = "results.json", "README.md", ".eval_results/rpnt.yaml"
CONVENTIONS = {
    "r2": "mean over targets, all scored bins",
    "r2_variance_weighted": "variance-weighted, all scored bins",
    "r2_reach": "mean over targets, reach period",
    "r2_variance_weighted_reach": "variance-weighted, reach period",
}
TASK_TYPE, TASK_NAME = "motor-decoding", "Decoding of movement from spike counts"
PRETRAINING_TYPE, PRETRAINING_NAME = "masked-count-reconstruction", "Reconstruction of hidden spike counts"

# What a card cannot be without: finite numbers and words. A score that is not defined is None in the file.
NUMBERS = (
    "seed", "parameters", "parameters_without_units", "data.bin_size", "training.seconds", "training.steps",
    "training.epochs", "training.num_processes", "training.threads",
)  # fmt: skip
WORDS = ("date", "data.name", "training.device", "training.mixed_precision", "run.command", "run.python")
NUMBERS_OF = {
    "pretrained": (
        "validation.bits_per_spike", "validation.poisson_loss", "validation.hidden_entries",
        "validation.windows", "validation.interval_level",
    ),
    "decoder": (
        "training_trials", "test.trials", "test.scored_bins", "test.reach_bins", "test.non_finite_bins",
        "test.interval_level",
    ),
}  # fmt: skip
NUMBERS_OF["adapter"] = (*NUMBERS_OF["decoder"], "adapter_parameters")


def write_card(folder: str | Path) -> Path:
    """Writes `README.md` and `.eval_results/rpnt.yaml` of a checkpoint, each whole or not at all.

    Args:
        folder (`str` or `Path`): Folder that a training script wrote, with `results.json` and `config.json`.
            Its name is the name of the model; examples name the placeholder of the repository, which `rpnt
            push` replaces.

    Returns:
        `Path`: The card.

    Raises:
        CheckpointError: A file or a value that the card states is missing.
    """
    folder = Path(folder)
    path = folder / RESULTS_FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        config = RPNTConfig.from_pretrained(folder)
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"A model card is made from `{RESULTS_FILE}` and `config.json` of a finished run, but '{folder}' "
            f"has none that can be read: {error}. Train with training/pretrain.py or training/finetune.py."
        ) from error
    name = folder.resolve().name
    card = render_card(results, config, name)
    entries = render_eval_results(results)
    _write(folder / CARD_FILE, str(card))
    if entries:
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        _write(folder / EVAL_RESULTS_FILE, text)
    else:
        (folder / EVAL_RESULTS_FILE).unlink(missing_ok=True)
    return folder / CARD_FILE


def render_card(results: Mapping[str, Any], config: RPNTConfig, name: str) -> ModelCard:
    """Fills the template of a kind of checkpoint.

    Args:
        results (`Mapping[str, Any]`): Content of `results.json`.
        config ([`RPNTConfig`]): Configuration of the network.
        name (`str`): Name of the model.

    Returns:
        `ModelCard`: Metadata (with model-index) and text.

    Raises:
        CheckpointError: A value that the card states is missing from `results`, or is no number.
    """
    results = _Facts(results)
    kind = _check(results)
    template = _environment().get_template("pretrained.md" if kind == "pretrained" else "decoder.md")
    text = template.render(
        results=results, config=config, name=name, repo_id=REPO_PLACEHOLDER, conventions=CONVENTIONS
    )
    head = _metadata(results, kind, name).to_yaml()
    text = re.sub(r"\n{3,}", "\n\n", text)  # what conditions leave
    return ModelCard(f"---\n{head}\n---\n{text}")


def render_eval_results(results: Mapping[str, Any]) -> list[EvalResultEntry]:
    """Lists the scores in the form of `.eval_results`.

    Args:
        results (`Mapping[str, Any]`): Content of `results.json`.

    Returns:
        `list[EvalResultEntry]`: The first score of the card, with its interval as a note; empty where it is
        not defined.
    """
    results = _Facts(results)
    found = _scores(results)
    if not found:
        return []
    data = results["data"]
    first = found[0]
    part = results["validation" if results["kind"] == "pretrained" else "test"]
    count = f"{part['windows']} windows" if "windows" in part else f"{part['trials']} trials"
    notes = (
        f"{first.metric_name}, {first.dataset_split} split, sessions {', '.join(results['sessions'])}; "
        f"{100 * part['interval_level']:.0f} % interval {_interval(first.metric_args['interval'])} over "
        f"{count}; dataset content {data['fingerprint'] or 'not stated'}"
        if first.metric_args
        else f"{first.metric_name}, {first.dataset_split} split"
    )
    return [
        EvalResultEntry(
            dataset_id=first.dataset_type,
            task_id=first.task_type,
            value=first.metric_value,
            dataset_revision=first.dataset_revision,
            date=results["date"],
            notes=notes,
        )
    ]


@functools.cache
def _environment() -> jinja2.Environment:
    """Finds templates, and has the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(find_script("model_cards")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
        "count": lambda number: f"{number:,}",
        "duration": _duration,
        "interval": _interval,
        "score": _score,
        "split_rule": _split_rule,
    }
    return environment


class _Facts(dict[str, Any]):
    """Results in which a value that is not there is an error that names it, at any depth."""

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        super().__init__({key: _as_facts(value, f"{place}{key}.") for key, value in values.items()})
        self.place = place

    def __missing__(self, key: str) -> None:
        raise CheckpointError(
            f"`{self.place}{key}` must be in `{RESULTS_FILE}`, but it is not: a card leaves nothing blank. "
            "Train again, or add it."
        )


def _as_facts(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        return _Facts(value, place)
    return [_as_facts(item, place) for item in value] if isinstance(value, list) else value


def _check(results: Mapping[str, Any]) -> str:
    """Names the first value that must be a number or words and is not; gives the kind of the checkpoint."""
    kind = results["kind"]
    if kind not in NUMBERS_OF:
        raise CheckpointError(
            f"`kind` in `{RESULTS_FILE}` must be one of {', '.join(NUMBERS_OF)}, got {kind!r}. Only runs of "
            "training/pretrain.py and training/finetune.py have cards."
        )
    for place in (*NUMBERS, *NUMBERS_OF[kind], *WORDS):
        value: Any = functools.reduce(operator.getitem, place.split("."), results)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, str) and value if place in WORDS else is_number and math.isfinite(value)):
            what = "words" if place in WORDS else "a finite number"
            raise CheckpointError(
                f"`{place}` in `{RESULTS_FILE}` must be {what}, got {value!r}: a card leaves nothing blank. "
                "Train again, or correct it."
            )
    return str(kind)


def _metadata(results: Mapping[str, Any], kind: str, name: str) -> ModelCardData:
    data = results["data"]
    base = results["base_model"]
    tags = ["rpnt", "neuroscience", "brain-computer-interface", "electrophysiology"]
    tags += ["synthetic"] if "synthetic" in data["tags"] else []
    relation: Any = {"base_model_relation": "adapter" if kind == "adapter" else "finetune"} if base else {}
    scores = _scores(results)
    return ModelCardData(
        license=data["license"] or "unknown",
        library_name="peft" if kind == "adapter" else "transformers",
        tags=[*tags, "lora"] if kind == "adapter" else tags,
        datasets=[_dataset_id(data)],
        base_model=base,
        metrics=["bits_per_spike" if kind == "pretrained" else "r_squared"],
        model_name=name if scores else None,
        eval_results=scores or None,
        **relation,
    )


def _dataset_id(data: Mapping[str, Any]) -> str:
    """The id on the Hub; else the corpus, since the name of a local folder says nothing."""
    return str(data["name"] if data["on_hub"] else data["corpus"] or data["name"])


def _scores(results: Mapping[str, Any]) -> list[EvalResult]:
    """Lists the scores in the form of a model-index; those that are not defined are left out."""
    data = results["data"]
    if results["kind"] == "pretrained":
        part, split = results["validation"], "validation"
        task, metric = (PRETRAINING_TYPE, PRETRAINING_NAME), "bits_per_spike"
        found = [("Bits per spike", part["bits_per_spike"], part["interval"])]
    else:
        part, split = results["test"], "test"
        task, metric = (TASK_TYPE, TASK_NAME), "r_squared"
        found = [(f"R2, {title}", part[key], part["intervals"][key]) for key, title in CONVENTIONS.items()]
    described = {"content": data["fingerprint"], "sessions": results["sessions"]}
    return [
        EvalResult(
            task_type=task[0],
            task_name=task[1],
            dataset_type=_dataset_id(data),
            dataset_name=data["title"] or _dataset_id(data),
            dataset_config=data["config"],
            dataset_split=split,
            dataset_revision=data["revision"],
            dataset_args={key: value for key, value in described.items() if value},
            metric_type=metric,
            metric_name=title,
            metric_value=value,
            metric_args={"interval": list(interval), "level": part["interval_level"]} if interval else None,
        )
        for title, value, interval in found
        if value is not None
    ]


def _score(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def _interval(interval: tuple[float, float] | list[float] | None) -> str:
    return "not defined" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _split_rule(data: Mapping[str, Any]) -> str:
    """Says how trials were divided, from the options of the build."""
    options = data["split_options"]
    if options is None:
        return "How it was split the dataset does not say: it has no `rpnt_build.json`."
    if options["split_file"] is not None:
        named = options["split_file"]
        return f"Split by the trials that `{named['file_name']}` names (sha256 {named['sha256']})."
    parts = ", ".join(
        f"{100 * part:g} % {split}"
        for part, split in zip(options["proportions"], ("training", "validation", "test"), strict=True)
    )
    return (
        f"Split by trials, drawn once by the builder (seed {options['seed']}): {parts}. Where a session has "
        f"no trials, blocks of {options['block_length']:g} s stand for them, with a guard of "
        f"{options['guard']:g} s around those that are held out."
    )


def _write(path: Path, text: str) -> None:
    """Writes a file under another name and renames it when it is whole."""
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
