"""Runs a protocol from a built dataset to `results.json`, `results.md` and pictures, for `rpnt evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpnt_hf.data.loading import load_rows
from rpnt_hf.evaluation.protocols import ablation_arms, plan
from rpnt_hf.evaluation.runner import Recipe, execute_runs, list_sessions
from rpnt_hf.evaluation.summary import summarize

__all__ = ["evaluate"]


def evaluate(
    protocol: str,
    data: str,
    out: str | Path,
    *,
    dataset_config: str | None = None,
    recipe: str = "reach",
    targets: Sequence[str] = (),
    methods: Sequence[str] = (),
    amounts: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    num_proc: int = 1,
    min_steps: int = 400,
    held_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains and scores every decoder of a protocol (DESIGN section 5).

    Args:
        protocol (`str`): One of `protocols.PROTOCOLS`.
        data (`str`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        out (`str` or `Path`):
            Folder to write. An evaluation that was interrupted goes on where it stopped when it is called
            again with the same settings; runs that failed are tried again.
        dataset_config (`str`, *optional*): Part of the corpus.
        recipe (`str`, *optional*, defaults to `"reach"`):
            NAME of NAME_finetune.yaml, NAME_comparators.yaml and, for protocols with transfer,
            NAME_pretrain.yaml in `training/configs`; FOLDER/NAME for files of your own.
        targets (`Sequence[str]`, *optional*): Sessions to decode; all where empty.
        methods (`Sequence[str]`, *optional*): Comparators, modes, or arms of the ablation; all where empty.
        amounts (`Sequence[str]`, *optional*): Training data, as "10%" or "16"; the protocol's where empty.
        seeds (`Sequence[int]`, *optional*, defaults to `(0, 1, 2)`): Seeds.
        num_proc (`int`, *optional*, defaults to 1): Runs at a time, each on one thread.
        min_steps (`int`, *optional*, defaults to 400): Steps that a training on few trials takes at least.
        held_out (`Sequence[str]`, *optional*): Sessions that no base may learn from, beside the target.

    Returns:
        `dict[str, Any]`: The content of `results.json`.

    Raises:
        ConfigurationError: A name or a number is not what it must be.
        DatasetError: No session can be decoded, or every run failed.
        CheckpointError: The folder holds something else.
    """
    out = Path(out)
    sessions = list_sessions(data, dataset_config)
    files = Recipe.named(recipe)
    runs, left_out = plan(
        protocol, sessions, targets=targets, methods=methods, amounts=amounts, seeds=seeds, held_out=held_out,
        arms=ablation_arms(files.options()) if protocol == "ablation" else None,
    )  # fmt: skip
    settings = {
        "protocol": protocol,
        "dataset_config": dataset_config,
        "recipe": recipe,
        "sessions": [[session.session_id, session.num_trials] for session in sessions],
    }
    facts = execute_runs(
        runs,
        out,
        data=data,
        dataset_config=dataset_config,
        recipe=files,
        num_proc=num_proc,
        min_steps=min_steps,
        settings=settings,
    )
    bin_size = load_rows(data, dataset_config, "test")[0]["bin_size"]
    return summarize(out, protocol, runs, facts, left_out, bin_size)
