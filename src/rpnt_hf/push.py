"""Checkpoints and built datasets to the Hub, in one commit.

A push sends what is on a list, and refuses a folder that holds anything else but what training leaves there.
Not for cards: those are `cards.py` and `data/card.py`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from safetensors import SafetensorError, safe_open

from .data.card import BUILD_FILE, REPO_PLACEHOLDER
from .data.schema import FEATURES
from .data.splits import SPLITS
from .errors import CheckpointError, DatasetError, HubError, RPNTError
from .hub import check_access, check_repo_id, explained, is_repo_id, read_json
from .sharing_rpnt import CONFIG_AUTO_MAP, PROCESSOR_AUTO_MAP, code_files

__all__ = ["PushPlan", "plan_push", "push"]

CODE_NAMES = frozenset(path.name for path in code_files({**CONFIG_AUTO_MAP, **PROCESSOR_AUTO_MAP}))
MODEL_FILES = re.compile(
    r"config\.json|preprocessor_config\.json|adapter_config\.json|README\.md|LICENSE"
    r"|(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
    r"|\.eval_results/[\w.-]+\.yaml"
)
DATASET_FILES = re.compile(
    rf"README\.md|LICENSE|{re.escape(BUILD_FILE)}|[\w.-]+/({'|'.join(SPLITS)})-\d{{5}}\.parquet"
)
# What a push replaces, or deletes where the new push lacks it: nothing of an older one is left among the new.
STALE_MODEL_FILES = re.compile(rf"{MODEL_FILES.pattern}|{'|'.join(map(re.escape, sorted(CODE_NAMES)))}")

TRAINING_FILES = {
    "checkpoints": "state of the optimiser, to resume with",
    "run_config.json": "options of the run, with paths of this machine",
    "history.json": "curves of the run",
    "results.json": "its numbers stand in README.md and .eval_results",
    "tensorboard": "curves of the run",
}
PRIVATE_TO_TOOLS = dict.fromkeys(
    (".git", ".gitattributes", ".cache", "__pycache__", ".DS_Store"), "of a tool"
)

# What tells where a file was made, or lets others in; text that has it stays here.
SECRETS = {
    "a path of this machine": re.compile(
        r"(?<![\w.:/~>)\]}-])/(?!/)[\w.+-]+/[\w.+-]+|\bfile://|(?<![\w])[A-Za-z]:\\{1,2}\w|(?<![\w/])~/\w"
    ),
    "an access token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
}


@dataclass(frozen=True)
class PushPlan:
    """What a push sends, and what it leaves where it is.

    Args:
        repo_id (`str`): "OWNER/NAME".
        repo_type (`str`): "model" or "dataset".
        files (`Mapping[str, Path | bytes]`): Path in the repository to the file, or to the content where that
            was made for the push.
        staying (`Mapping[str, str]`): Why, by name of what stays.
    """

    repo_id: str
    repo_type: str
    files: Mapping[str, Path | bytes]
    staying: Mapping[str, str]

    def sizes(self) -> dict[str, int]:
        """Gives the size in bytes of each file that is sent."""
        return {
            name: len(source) if isinstance(source, bytes) else source.stat().st_size
            for name, source in self.files.items()
        }


def plan_push(folder: str | Path, repo_id: str) -> PushPlan:
    """Lists what a push of a checkpoint or of a built dataset would send; contacts nobody.

    Of a checkpoint: configuration, processor, safetensors, card, evaluation results and code. The code is
    that of this installation, whatever lies in the folder. Of a dataset: Parquet, card and `rpnt_build.json`.

    Args:
        folder (`str` or `Path`): Folder of a checkpoint, an adapter or a built dataset.
        repo_id (`str`): Where it would go, "OWNER/NAME"; cards name it.

    Returns:
        [`PushPlan`]: What goes, what stays.

    Raises:
        HubError: `repo_id` is no such name.
        CheckpointError: The folder is no whole checkpoint, or holds something that is not to be pushed.
        DatasetError: Likewise of a dataset.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"What is pushed must be the folder of a checkpoint or of a built dataset, got '{folder}', which "
            "is no folder. Check the name."
        )
    if (folder / BUILD_FILE).is_file():
        return _plan_dataset(folder, repo_id)
    if (folder / "config.json").is_file():
        return _plan_model(folder, repo_id)
    raise CheckpointError(
        f"What is pushed must hold `config.json` (a checkpoint) or `{BUILD_FILE}` (a built dataset), got "
        f"'{folder}' with neither. Recordings are not pushed: build a dataset of them with `rpnt build`."
    )


def _plan_model(folder: Path, repo_id: str) -> PushPlan:
    known = {**PRIVATE_TO_TOOLS, **TRAINING_FILES}
    files, staying = _sort_files(folder, MODEL_FILES, known, CODE_NAMES, CheckpointError)
    config = read_json(folder / "config.json")
    architectures = config.get("architectures") or []
    ours = {reference.split(".")[1] for reference in CONFIG_AUTO_MAP.values()}
    if not architectures or not set(architectures) <= ours:
        raise CheckpointError(
            f"`architectures` in `config.json` must be a model of rpnt_hf, got {architectures} in "
            f"'{folder}'. Push it with the package that made it."
        )
    is_adapter = "adapter_config.json" in files
    weights = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    missing = [name for name in ("preprocessor_config.json", "README.md") if name not in files]
    if weights not in files and (is_adapter or "model.safetensors.index.json" not in files):
        missing.append(weights)
    if missing:
        raise CheckpointError(
            f"A checkpoint must hold all of configuration, processor, weights and card, but '{folder}' lacks "
            f"{', '.join(missing)}. Save model and processor to it with `save_pretrained`; training writes "
            "the card."
        )
    _check_weights(folder, files)
    content: dict[str, Path | bytes] = dict(files)
    auto_map = dict(PROCESSOR_AUTO_MAP) if is_adapter else {**CONFIG_AUTO_MAP, **PROCESSOR_AUTO_MAP}
    if is_adapter:  # whose code is fetched with its base
        _check_base(folder)
    else:
        content["config.json"] = _as_json({**config, "auto_map": CONFIG_AUTO_MAP})
    processor = read_json(folder / "preprocessor_config.json")
    content["preprocessor_config.json"] = _as_json({**processor, "auto_map": PROCESSOR_AUTO_MAP})
    content["README.md"], _ = _read_card(folder, repo_id, CheckpointError)
    _check_texts(folder, content, CheckpointError)
    content |= {path.name: path for path in code_files(auto_map)}
    return PushPlan(repo_id, "model", dict(sorted(content.items())), staying)


def _plan_dataset(folder: Path, repo_id: str) -> PushPlan:
    files, staying = _sort_files(folder, DATASET_FILES, PRIVATE_TO_TOOLS, frozenset(), DatasetError)
    content: dict[str, Path | bytes] = dict(files)
    if "README.md" not in files:
        raise DatasetError(f"A dataset must have a card, but '{folder}' has no `README.md`. Build it again.")
    card, head = _read_card(folder, repo_id, DatasetError)
    content["README.md"] = card
    if not head.get("license"):
        raise DatasetError(
            f"A dataset must state its licence before it is shared, but `README.md` of '{folder}' has no "
            "`license` in its head. Build it with `--license`, such as `--license cc-by-4.0`, or write the "
            "line."
        )
    parts = {str(part.get("config_name")) for part in head.get("configs") or []}
    tables = {name: path for name, path in files.items() if name.endswith(".parquet")}
    if not tables or parts != {name.split("/")[0] for name in tables}:
        raise DatasetError(
            f"The parts that `README.md` names (`configs`) must be the folders of Parquet files, got "
            f"{sorted(parts)} and {sorted({name.split('/')[0] for name in tables})} in '{folder}'. Build it "
            "again."
        )
    for name, path in tables.items():
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(
                f"Every Parquet file must be whole, but '{name}' of '{folder}' cannot be read. Build it "
                f"again. ({error})"
            ) from error
        if not schema.equals(FEATURES.arrow_schema):
            raise DatasetError(
                f"Every Parquet file must have the columns of a built dataset, but '{name}' of '{folder}' "
                "has others. Build it again with this version of rpnt_hf."
            )
    _check_texts(folder, content, DatasetError)
    return PushPlan(repo_id, "dataset", dict(sorted(content.items())), staying)


def _sort_files(
    folder: Path,
    allowed: re.Pattern[str],
    staying: Mapping[str, str],
    replaced: frozenset[str],
    error_class: type[RPNTError],
) -> tuple[dict[str, Path], dict[str, str]]:
    """Divides a folder into what goes and what stays; refuses it where there is something else."""
    files: dict[str, Path] = {}
    left: dict[str, str] = {}
    foreign: list[str] = []
    root = folder.resolve()

    def visit(directory: Path) -> None:
        for path in sorted(directory.iterdir()):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                foreign.append(f"{name} (a link to outside)")
            elif name in staying or path.name in PRIVATE_TO_TOOLS:
                left[name] = staying[path.name]
            elif path.is_dir() and not path.is_symlink():
                visit(path)
            elif path.is_file() and allowed.fullmatch(name):
                files[name] = path
            elif name not in replaced:
                foreign.append(name)

    visit(folder)
    if foreign:
        shown = ", ".join(foreign[:10]) + (f" and {len(foreign) - 10} more" if len(foreign) > 10 else "")
        raise error_class(
            f"The folder must hold nothing but what is pushed and what training leaves there, got {shown} in "
            f"'{folder}'. Nothing was sent: move such files elsewhere, if they are not to be shared anyway."
        )
    return files, left


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _read_card(folder: Path, repo_id: str, error_class: type[RPNTError]) -> tuple[bytes, dict[str, Any]]:
    """Reads a card, with the name of the repository where it belongs, and the metadata at its head."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    try:
        head = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (yaml.YAMLError, IndexError):
        head = None
    if not isinstance(head, dict):
        raise error_class(
            "A card must begin with metadata, YAML between two lines of `---`, but `README.md` of "
            f"'{folder}' does not. The Hub finds licence and parts there."
        )
    return text.replace(REPO_PLACEHOLDER, repo_id).encode(), head


def _check_weights(folder: Path, names: Iterable[str]) -> None:
    names = set(names)
    shards = {name for name in names if name.endswith(".safetensors")}
    for name in sorted(shards):
        try:
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"Weights must be whole safetensors files, but '{folder / name}' cannot be read. Save the "
                f"model again. ({error})"
            ) from error
    if "model.safetensors.index.json" in names:
        expected = set(read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values())
        if expected != shards:
            raise CheckpointError(
                "The files that `model.safetensors.index.json` names must be those that are there, got "
                f"{sorted(expected ^ shards)} in one of the two in '{folder}'. Save the model again to a new "
                "folder."
            )
    elif len(shards) > 1:
        raise CheckpointError(
            f"Weights must be one file, or come with an index, got {sorted(shards)} in '{folder}'. Save the "
            "model again to a new folder."
        )


def _check_base(folder: Path) -> None:
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not is_repo_id(base) or Path(base).exists():
        raise CheckpointError(
            "An adapter that is shared must name its base as others find it, by its id on the Hub, got "
            f"'{base}' in `adapter_config.json` of '{folder}'. Push the base, and write its id there "
            "(`base_model_name_or_path`)."
        )


def _check_texts(folder: Path, files: Mapping[str, Path | bytes], error_class: type[RPNTError]) -> None:
    """Refuses text that has a path of this machine or a token in it."""
    for name, source in files.items():
        if name.endswith((".safetensors", ".parquet")):
            continue
        try:
            text = (source if isinstance(source, bytes) else source.read_bytes()).decode()
        except UnicodeDecodeError as error:
            raise error_class(f"`{name}` of '{folder}' must be text in UTF-8. ({error})") from error
        for what, pattern in SECRETS.items():
            if found := pattern.search(text):
                line = text.count("\n", 0, found.start()) + 1
                shown = f", '{found.group()}'" if what.startswith("a path") else ""
                raise error_class(
                    f"What is pushed must not hold {what}, but line {line} of `{name}` in '{folder}' "
                    f"does{shown}. Remove it there."
                )


def push(plan: PushPlan, private: bool = False, revision: str | None = None) -> tuple[str, str]:
    """Pushes what was planned in one commit; files of earlier pushes do not stay among the new ones.

    Args:
        plan ([`PushPlan`]): What `plan_push` gave.
        private (`bool`, *optional*, defaults to `False`): Make the repository private. A public one that
            exists is refused.
        revision (`str`, *optional*): Branch to push to, made where it does not exist; None for "main".

    Returns:
        `tuple[str, str]`: Address of the repository, and the commit, which pins it.

    Raises:
        HubError: The Hub cannot be reached or refuses, or there is no token.
    """
    check_access(plan.repo_id)
    api = HfApi()
    target: dict[str, Any] = {"repo_id": plan.repo_id, "repo_type": plan.repo_type}
    with explained(f"'{plan.repo_id}' cannot be pushed"):
        url = api.create_repo(**target, private=private or None, exist_ok=True)
        if private and not api.repo_info(**target).private:
            raise HubError(
                f"'{plan.repo_id}' cannot be pushed as private: it exists and is public. Make it private on "
                "its page, or choose another name."
            )
        if revision is not None:
            api.create_branch(**target, branch=revision, exist_ok=True)
        stale = STALE_MODEL_FILES if plan.repo_type == "model" else DATASET_FILES
        before = api.list_repo_files(**target, revision=revision)
        operations: list[Any] = [
            CommitOperationDelete(name) for name in before if stale.fullmatch(name) and name not in plan.files
        ]
        operations += [CommitOperationAdd(name, source) for name, source in plan.files.items()]
        commit = api.create_commit(
            **target,
            operations=operations,
            commit_message=f"Push {plan.repo_type} with rpnt_hf",
            revision=revision,
        )
    return str(url), commit.oid
