"""Low-rank adapters of a decoder through `peft`: trained beside a frozen base, saved and shared without it.

An adapter folder holds `adapter_model.safetensors` (low-rank terms, head, trained rows of the unit
embedding; nothing of the base), `adapter_config.json` (which names the base), and the configuration and
processor of the decoder. Loading merges it into the base, so that what comes back is an ordinary decoder.
Not here: the training loop (`training/finetune.py`, mode "adapters").
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from .configuration_rpnt import RPNTConfig
from .errors import CheckpointError, ConfigurationError, RPNTError
from .modeling_rpnt import RPNTForMotorDecoding
from .processing_rpnt import RPNTProcessor
from .scripts import find_reference_checkpoint

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

__all__ = [
    "AdapterBase",
    "AdapterConfig",
    "add_adapters",
    "is_adapter",
    "load_adapter_decoder",
    "save_adapter",
]

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
UNIT_EMBEDDING = "unit_embedding"
LINEAR_LAYERS = r"model\.(temporal|spatial)_layers\.\d+\.(attention\.(qkv_proj|o_proj)|mlp\.(0|3))"
# Settings of `LoraConfig` that an adapter may choose; any other one would change what is computed.
CHOSEN_SETTINGS = {
    "r", "lora_alpha", "lora_dropout", "trainable_token_indices", "base_model_name_or_path", "revision",
    "inference_mode", "peft_version",
}  # fmt: skip


@dataclass
class AdapterConfig:
    """Low-rank adapters on the linear layers of the encoder.

    Args:
        rank: Rank of each term that is added to a linear layer, 1 or more.
        alpha: The terms are scaled by `alpha / rank`; above 0.
        dropout: Dropout before the terms, in [0, 1).
        base_name: Name under which others find the base, such as its id on the Hub; empty for `init`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    base_name: str | None = None

    def __post_init__(self) -> None:
        rules = {
            "rank": (self.rank >= 1, "1 or more"),
            "alpha": (self.alpha > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigurationError(
                    f"`{name}` of AdapterConfig must be {rule}, got {getattr(self, name)}."
                )


@dataclass(frozen=True)
class AdapterBase:
    """Which checkpoint an adapter belongs to.

    Args:
        name (`str`): Folder or Hub id.
        revision (`str`, *optional*): Commit on the Hub; None for a folder.
        sha256 (`str`): Digest of its encoder (names, shapes, types and values of the weights).
    """

    name: str
    revision: str | None
    sha256: str

    @classmethod
    def of(cls, model: RPNTForMotorDecoding, num_units: int, init: str, name: str | None) -> "AdapterBase":
        """Describes the checkpoint that a model was just loaded from.

        Args:
            model ([`RPNTForMotorDecoding`]): The model, with the weights of the checkpoint.
            num_units (`int`): Rows of the unit embedding in the checkpoint; later ones are new.
            init (`str`): Folder or Hub id that it was loaded from.
            name (`str`, *optional*): Name under which others find it; None for `init`.
        """
        revision = None
        if name is None and not Path(init).is_dir():
            init, _, revision = init.partition("@")
            cached = try_to_load_from_cache(init, "config.json", revision=revision or None)
            revision = Path(cached).parent.name if isinstance(cached, str) else None
        return cls(name or init, revision, _encoder_digest(model, num_units))


def _encoder_digest(model: RPNTForMotorDecoding, num_units: int) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.model.state_dict().items()):
        if name == f"embeddings.{UNIT_EMBEDDING}.weight":
            weight = weight[:num_units]
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lora_config(
    model: RPNTForMotorDecoding, rank: int, alpha: float, dropout: float, rows: Sequence[int]
) -> "LoraConfig":
    """Says what is trained: low-rank terms, everything outside the encoder, and some unit embeddings."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=LINEAR_LAYERS,
        modules_to_save=[
            name
            for name, part in model.named_children()
            if name != model.base_model_prefix and any(True for _ in part.parameters())
        ],
        trainable_token_indices={UNIT_EMBEDDING: list(rows)} if rows else None,
    )


def _require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Low-rank adapters need the package `peft`, which is not installed: pip install 'rpnt_hf[peft]'."
        ) from error


def add_adapters(model: RPNTForMotorDecoding, config: AdapterConfig, rows: Sequence[int]) -> "PeftModel":
    """Freezes a decoder, all but what its adapter trains.

    That is a low-rank term at every linear layer of attention and feed-forward, the head, and the rows named.

    Args:
        model ([`RPNTForMotorDecoding`]): The decoder; its layers are wrapped in place.
        config ([`AdapterConfig`]): Rank and scale of the terms.
        rows (`Sequence[int]`): Rows of the unit embedding to train.

    Returns:
        `PeftModel`: Called like the model; at first it computes what the model did.

    Raises:
        ImportError: `peft` is not installed.
    """
    _require_peft()
    from peft import PeftModel, get_peft_model

    lora = _lora_config(model, config.rank, config.alpha, config.dropout, rows)
    adapted = get_peft_model(model, lora)
    assert isinstance(adapted, PeftModel)
    return adapted


def _adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().cpu().contiguous() for name, weight in state.items()}


def save_adapter(model: "PeftModel", base: AdapterBase, folder: str | Path) -> None:
    """Saves an adapter without its base; the processor is saved by itself.

    Args:
        model (`PeftModel`): What `add_adapters` gave.
        base ([`AdapterBase`]): The checkpoint below it.
        folder (`str` or `Path`): Folder to write to; made where it is missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"unfinished_{WEIGHTS_NAME}"
    save_file(_adapter_state(model), unfinished, metadata={"format": "pt", "base_sha256": base.sha256})
    unfinished.replace(folder / WEIGHTS_NAME)
    decoder: Any = model.get_base_model()
    settings = {**decoder.config.to_dict(), "architectures": [type(decoder).__name__]}
    settings.pop("auto_map", None)  # code is fetched with the base
    RPNTConfig.from_dict(settings).to_json_file(str(folder / "config.json"))
    lora = model.peft_config["default"]
    lora.base_model_name_or_path, lora.revision, lora.inference_mode = base.name, base.revision, True
    lora.save_pretrained(str(folder))


def is_adapter(checkpoint: str | Path) -> bool:
    """Says whether a folder or Hub id holds an adapter instead of a whole checkpoint.

    Args:
        checkpoint (`str` or `Path`): Folder, or id on the Hub.

    Returns:
        `bool`: False also where there is nothing.
    """
    try:
        return find_adapter_config_file(str(checkpoint)) is not None
    except (OSError, ValueError):
        return False


def load_adapter_decoder(
    adapter: str | Path, base: str | Path | None = None, revision: str | None = None
) -> tuple[RPNTForMotorDecoding, RPNTProcessor]:
    """Loads the base that an adapter names and merges the adapter into it.

    A base that was named by a relative path is also looked for beside the adapter, and one that is bundled
    with this package is found by its name.

    Args:
        adapter (`str` or `Path`): Folder that `save_adapter` wrote, or the id of one on the Hub.
        base (`str` or `Path`, *optional*): Folder or Hub id of the base, where it is no longer where the
            adapter says.
        revision (`str`, *optional*): Revision of the adapter on the Hub.

    Returns:
        `tuple`: The [`RPNTForMotorDecoding`] in evaluation mode, without trace of `peft`, which
        `save_pretrained` saves whole, and its [`RPNTProcessor`].

    Raises:
        CheckpointError: Adapter or base is missing or broken, or the base is not the one that the adapter was
            trained on.
        ImportError: `peft` is not installed.
    """
    _require_peft()
    from peft import get_peft_model, set_peft_model_state_dict

    folder = _adapter_folder(str(adapter), revision)
    settings = _read_settings(folder, adapter)
    weights, sha256 = _read_weights(folder, adapter)
    named = settings["base_model_name_or_path"]
    base = str(base or _find_base(named, folder))
    base_revision = "main"
    if base == named and not Path(base).is_dir():
        base_revision = settings["revision"] or base_revision
    try:
        config, processor = RPNTConfig.from_pretrained(folder), RPNTProcessor.from_pretrained(folder)
        model = _load_base(base, base_revision, config, processor, adapter)
    except RPNTError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter '{adapter}' must come with the checkpoint that it was trained on, '{base}', but "
            f"that cannot be loaded. Give its folder or Hub id as `base`. ({_first_line(error)})"
        ) from error
    if _encoder_digest(model, model.config.num_units) != sha256:
        raise _wrong_base(adapter, base, "the weights differ from those that it was trained on")
    if config.num_units > model.config.num_units:
        model.resize_unit_vocabulary(config.num_units)

    rows = (settings.get("trainable_token_indices") or {}).get(UNIT_EMBEDDING, [])
    lora = _lora_config(model, settings["r"], settings["lora_alpha"], 0.0, rows)
    expected = {name: _plain(value) for name, value in lora.to_dict().items()}
    changed = [
        name
        for name in sorted(settings.keys() & expected.keys() - CHOSEN_SETTINGS)
        if _plain(settings[name]) != expected[name]
    ]
    if changed:
        raise CheckpointError(
            f"`{CONFIG_NAME}` of '{adapter}' must have the settings that rpnt_hf gives adapters, but "
            f"{', '.join(f'`{name}`' for name in changed)} differ. Load it with peft itself."
        )
    adapted = get_peft_model(model, lora)
    own = {name: tuple(weight.shape) for name, weight in _adapter_state(adapted).items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if own != found:
        names = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        raise CheckpointError(
            f"The adapter '{adapter}' must hold the weights that its `{CONFIG_NAME}` describes, but "
            f"{', '.join(names[:3])} ({len(names)} in all) are missing, left over or of another shape. Save "
            "it again."
        )
    set_peft_model_state_dict(adapted, weights)
    merged: Any = adapted.merge_and_unload()
    merged.requires_grad_(True)
    return merged.eval(), processor


def _adapter_folder(adapter: str, revision: str | None) -> Path:
    """Finds an adapter on disk, where it is fetched to if it is on the Hub."""
    folder = Path(adapter)
    if not folder.is_dir():
        try:
            folder = Path(
                snapshot_download(adapter, revision=revision, allow_patterns=["*.json", WEIGHTS_NAME])
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"An adapter must be a folder, or the id of one on the Hub, got '{adapter}'. "
                f"({_first_line(error)})"
            ) from error
    for name in (CONFIG_NAME, WEIGHTS_NAME, "config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"An adapter must consist of `{CONFIG_NAME}`, `{WEIGHTS_NAME}`, `config.json` and "
                f"`preprocessor_config.json`, but '{adapter}' has no `{name}`. Adapters are made by "
                "training/finetune.py in mode 'adapters'; weights in other formats are not read."
            )
    return folder


def _read_settings(folder: Path, adapter: str | Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        needed: dict[str, Any] = {
            "peft_type": str,
            "r": int,
            "lora_alpha": (int, float),
            "base_model_name_or_path": str,
        }
        good = all(isinstance(settings.get(name), kind) for name, kind in needed.items())
    except (ValueError, AttributeError):
        good = False
    if not good or settings["peft_type"] != "LORA":
        raise CheckpointError(
            f"`{CONFIG_NAME}` must describe low-rank adapters (`peft_type` 'LORA') and name their base, got "
            f"something else in '{adapter}'. Train the adapter again, or fetch it again."
        )
    settings.setdefault("revision", None)
    return settings


def _read_weights(folder: Path, adapter: str | Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        with safe_open(folder / WEIGHTS_NAME, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"`{WEIGHTS_NAME}` of '{adapter}' must be a whole safetensors file, but it cannot be read. Fetch "
            f"it again. ({_first_line(error)})"
        ) from error
    if "base_sha256" not in metadata:
        raise CheckpointError(
            f"`{WEIGHTS_NAME}` must say which base it belongs to (`base_sha256` in its metadata), but in "
            f"'{adapter}' it does not: it was not saved by rpnt_hf. Load it with peft itself."
        )
    return weights, metadata["base_sha256"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find_base(named: str, folder: Path) -> str:
    if Path(named).is_dir():
        return named
    beside = folder.resolve().parent / Path(named).name
    return str(beside if beside.is_dir() else find_reference_checkpoint(named) or named)


def _plain(value: Any) -> Any:
    """Makes values comparable with those read from JSON."""
    if isinstance(value, set | tuple | list):
        return sorted(value)
    return getattr(value, "value", value)


def _wrong_base(adapter: str | Path, base: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The adapter '{adapter}' must be applied to the checkpoint that it was trained on, got '{base}': "
        f"{reason}. Give the right one as `base`, or the `revision` that the adapter names."
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from reporting weights as new or left over where they are meant to be.

    Whoever uses it looks at what `output_loading_info` says.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_base(
    base: str, revision: str, config: RPNTConfig, processor: RPNTProcessor, adapter: str | Path
) -> RPNTForMotorDecoding:
    """Loads the base with the configuration of the decoder, and its own vocabulary."""
    known = list(RPNTProcessor.from_pretrained(base, revision=revision).sessions.items())
    if list(processor.sessions.items())[: len(known)] != known:
        raise _wrong_base(adapter, base, "its unit vocabulary is not the one that the adapter extends")
    num_units = RPNTConfig.from_pretrained(base, revision=revision).num_units
    own = RPNTConfig.from_dict({**config.to_dict(), "num_units": num_units})
    try:
        with quiet_loading():
            loaded: Any = RPNTForMotorDecoding.from_pretrained(
                base, revision=revision, config=own, use_safetensors=True, output_loading_info=True
            )
    except RuntimeError as error:  # what transformers raises where shapes differ
        raise _wrong_base(adapter, base, "its weights have other shapes") from error
    model, loading = loaded
    keys = [*loading["missing_keys"], *loading["unexpected_keys"]]
    if any(key.startswith(f"{model.base_model_prefix}.") for key in keys):
        raise _wrong_base(adapter, base, "it has other weights")
    return model
