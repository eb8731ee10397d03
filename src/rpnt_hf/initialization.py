"""Makes the model and processor that a training run begins with: from a preset, or from a checkpoint folder.

Not for inference: there `from_pretrained` is enough.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from safetensors import SafetensorError

from .adapters import is_adapter, quiet_loading
from .configuration_rpnt import RPNTConfig
from .errors import CheckpointError, ConfigurationError, closest_names
from .hub import checkpoint_folder
from .modeling_rpnt import RPNTPreTrainedModel
from .processing_rpnt import RPNTProcessor

logger = logging.getLogger(__name__)

__all__ = ["from_checkpoint", "from_scratch"]

Model = TypeVar("Model", bound=RPNTPreTrainedModel)


def from_scratch(
    model_class: type[Model],
    preset: str,
    fields: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    window_bins: int,
    num_slots: int | None = None,
) -> tuple[Model, RPNTProcessor]:
    """Makes an untrained model whose vocabulary, subjects and tasks are those of the rows.

    Args:
        model_class (`type`): Class of the model.
        preset (`str`): Preset of `RPNTConfig`.
        fields (`Mapping[str, Any]`): Fields of `RPNTConfig` that differ from it, targets included.
        rows (`Sequence[Mapping]`): Rows of all splits.
        window_bins (`int`): Length of training windows in bins.
        num_slots (`int`, *optional*): Slots per site, where the network has them.

    Returns:
        `tuple`: The model and its processor.

    Raises:
        ConfigurationError: A field or the preset is unknown or out of range.
        InputError: The rows do not fit each other.
    """
    shape = RPNTConfig.preset(preset, **fields)
    processor = RPNTProcessor.from_rows(
        rows,
        metadata_axes=shape.metadata_axes,
        behavior_names=shape.target_names,
        behavior_units=shape.target_units,
        window_bins=window_bins,
        unit_embedding=shape.unit_embedding,
        num_slots=num_slots,
    )
    config = RPNTConfig.preset(preset, **{**fields, "num_units": processor.num_units})
    _warn_of_short_windows(config, window_bins)
    return model_class(config), processor


def from_checkpoint(
    model_class: type[Model],
    folder: str,
    fields: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    window_bins: int,
) -> tuple[Model, RPNTProcessor, list[str]]:
    """Loads a model and adds the units of sessions that it does not know.

    Args:
        model_class (`type`): Class of the model; a head that the checkpoint lacks is new.
        folder (`str`): Folder of the checkpoint, or its id on the Hub, as for `hub.checkpoint_folder`.
        fields (`Mapping[str, Any]`): Fields of `RPNTConfig` to change, without effect on the shape of
            weights.
        rows (`Sequence[Mapping]`): Rows of all splits.
        window_bins (`int`): Length of training windows in bins.

    Returns:
        `tuple`: The model, its processor, and the sessions that are new to it. Subjects and tasks that the
        checkpoint does not know stay unknown (NaN).

    Raises:
        CheckpointError: There is no such checkpoint, or the fields do not fit its weights.
        ConfigurationError: A field is unknown.
        HubError: It is on the Hub, and cannot be had from there.
        InputError: The rows do not fit the checkpoint (bin size) or each other.
    """
    known = [field.name for field in dataclasses.fields(RPNTConfig)]
    for name in fields:
        if name not in known:
            raise ConfigurationError(
                f"`model` must name fields of RPNTConfig, got `{name}`.{closest_names(name, known)}"
            )
    path = checkpoint_folder(folder)
    if is_adapter(path):
        raise CheckpointError(
            f"`init` must be 'scratch' or a whole checkpoint, got '{folder}', which holds adapters without "
            "their base. Load it by `rpnt_hf.adapters.load_adapter_decoder` and save what that gives."
        )
    found = RPNTProcessor.from_rows(rows)
    try:
        processor = RPNTProcessor.from_pretrained(path)
        config = RPNTConfig.from_pretrained(path)
        processor.check_bin_size(found.bin_size, "the training data")
        config = RPNTConfig.from_dict({**config.to_dict(), **fields})
        with quiet_loading():  # a head is new, and that of pretraining left over
            loaded: Any = model_class.from_pretrained(path, config=config, output_loading_info=True)
        model, loading = loaded
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"`init` must be 'scratch' or a checkpoint that fits the options in `model`, but '{folder}' "
            f"cannot be loaded: {error}"
        ) from error
    stray = [
        key
        for keys in ("missing_keys", "unexpected_keys")
        for key in loading[keys]
        if key.startswith("model.")
    ]
    if stray:
        raise CheckpointError(
            f"The options in `model` must fit the weights of '{folder}', but {', '.join(sorted(stray)[:5])} "
            f"({len(stray)} in all) would be new or left over. Change only fields without weights, such as "
            "`dropout`, or train from scratch."
        )
    if "token_map" in loading["missing_keys"]:  # pretrained from a decoder, whose map it has not kept
        model.set_token_map(None)
    for session_id in found.sessions.keys() & processor.sessions.keys():
        if found.sessions[session_id] != processor.sessions[session_id]:
            raise CheckpointError(
                f"Session '{session_id}' must have the units of the checkpoint '{folder}', in their order, "
                "got others. Give the session another id, so that it gets rows of its own."
            )
    new_sessions = sorted(found.sessions.keys() - processor.sessions.keys())
    for session_id in new_sessions:
        processor.add_session(session_id, found.sessions[session_id], **found.session_facts[session_id])
    if new_sessions and processor.unit_embedding == "vocabulary":
        model.resize_unit_vocabulary(processor.num_units)
    if config.target_names is not None:
        processor.behavior_names = list(config.target_names)
        processor.behavior_units = list(config.target_units or [])
    processor.window_bins = window_bins
    _warn_of_short_windows(config, window_bins)
    return model, processor, new_sessions


def _warn_of_short_windows(config: RPNTConfig, window_bins: int) -> None:
    if config.reach is not None and window_bins <= config.reach:
        logger.warning(
            "Training windows of %d bins are not longer than the %d bins that the model reaches back: "
            "where it runs on longer data it looks further back than it was trained to.",
            window_bins,
            config.reach,
        )
