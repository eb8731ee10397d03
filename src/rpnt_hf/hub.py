"""Decoders from a folder or the Hub, and what is common to all dealings with the Hub.

Nothing here runs code of a repository, or reads weights through pickle. Not for pushing: that is `push.py`.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError

from .errors import CheckpointError, HubError, RPNTError
from .scripts import find_reference_checkpoint

logger = logging.getLogger(__name__)

__all__ = [
    "check_access",
    "check_repo_id",
    "checkpoint_folder",
    "explained",
    "is_repo_id",
    "load_decoder",
    "read_json",
]

PROBE_TIMEOUT = 5.0  # s; no name is worth more where there is no network

# The base of the client's own errors, whichever HTTP library it uses: the class above that of a refusal.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]


def is_repo_id(name: str) -> bool:
    """Says whether a name is one of a repository with its owner.

    Args:
        name (`str`): Any text.

    Returns:
        `bool`: True for "OWNER/NAME" in the letters that the Hub allows.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no name of a repository.

    Args:
        repo_id (`str`): "OWNER/NAME".

    Raises:
        HubError: It is something else.
    """
    if not is_repo_id(repo_id):
        raise HubError(
            f"REPO_ID must be OWNER/NAME, an owner and a name of letters, digits, '-', '_' and '.', got "
            f"'{repo_id}'."
        )


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turns what the client raises into one paragraph.

    Args:
        problem (`str`): What could not be done, such as "'org/name' cannot be pushed"; begins the paragraph.

    Raises:
        HubError: The Hub cannot be reached, or refused.
    """
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        server = error.server_message or str(error).splitlines()[0]
        if isinstance(error, RevisionNotFoundError):
            reason = "it has no such revision. Check the name after '@' or `--revision`"
        elif isinstance(error, GatedRepoError):
            reason = "it is gated. Ask for access on its page, and log in with `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            reason = (
                "it does not exist, is private, or the token is not valid. Check the name, and log in with "
                "`hf auth login` or set HF_TOKEN"
            )
        elif status == 403:
            reason = "the token has no right to. Use one with the right to write to that owner"
        else:
            reason = "the Hub refused. Try again later, or report it"
        raise HubError(f"{problem}: {reason}. (status {status}: {server})") from error
    except (OfflineModeIsEnabled, TransportError) as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        reason = "is not asked, because HF_HUB_OFFLINE is set" if offline else "cannot be reached"
        raise HubError(
            f"{problem}: the Hub at {constants.ENDPOINT} {reason}. Check the name, the connection and "
            "HF_ENDPOINT. "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error


def check_access(repo_id: str) -> None:
    """Checks that something could be pushed: the name, a token, and that the Hub knows it.

    For before a long build. It writes nothing.

    Args:
        repo_id (`str`): "OWNER/NAME".

    Raises:
        HubError: The name is none, there is no token or not a valid one, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    if get_token() is None:
        raise HubError(
            "A push must have an access token with the right to write, got none. Make one on the Hub "
            "(Settings, Access Tokens), then run `hf auth login` or set HF_TOKEN."
        )
    with explained(f"'{repo_id}' cannot be pushed"):
        HfApi().whoami()


def load_decoder(checkpoint: str | Path) -> tuple[Any, Any]:
    """Loads a trained decoder and its processor.

    Args:
        checkpoint (`str` or `Path`): Folder, name of a reference checkpoint, or id on the Hub, at a revision
            where it ends in "@REVISION". Also that of an adapter, whose base is then loaded too.

    Returns:
        `tuple`: The `RPNTForMotorDecoding` and its `RPNTProcessor`.

    Raises:
        CheckpointError: There is no such checkpoint, it is broken, or it holds no decoder.
        HubError: The Hub cannot be reached, or refuses.

    Example:
        ```python
        >>> from rpnt_hf import load_decoder, simulate
        >>> from rpnt_hf.decoding import decode_recording, score_table
        >>> model, processor = load_decoder("rpnt-tiny-synthetic-decoder")
        >>> recording = simulate(num_subjects=1, sessions_per_subject=1)[0]
        >>> score_table(decode_recording(model, processor, recording))["r2"] > 0.8
        True
        ```
    """
    return _load_folder(checkpoint_folder(checkpoint), str(checkpoint))


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Finds a checkpoint on this machine; one of the Hub is brought into the cache, without its code.

    Args:
        checkpoint (`str` or `Path`): Folder, or id on the Hub, at a revision where it ends in "@REVISION".

    Returns:
        `Path`: The folder.

    Raises:
        CheckpointError: It is neither a folder nor an id, or was damaged on the way.
        HubError: The Hub cannot be reached, or refuses.
    """
    name = str(checkpoint)
    path = Path(checkpoint)
    if path.is_dir():
        return path
    reference = find_reference_checkpoint(name)
    if reference is not None:
        return reference
    if path.exists() or path.is_absolute() or (len(path.parts) > 1 and path.parent.is_dir()):
        raise CheckpointError(f"CHECKPOINT must be a folder with a saved model, got '{path}', which is none.")
    repo_id, _, revision = name.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(
            "CHECKPOINT must be a folder with a saved model, or the id of one on the Hub "
            f"(OWNER/NAME or OWNER/NAME@REVISION), got '{name}', which is neither."
        ) from error
    return _fetch(repo_id, revision or None)


def _fetch(repo_id: str, revision: str | None) -> Path:
    """Brings what a checkpoint consists of into the cache, or finds it there where there is no network."""
    offline: Exception | None = None
    problem = f"'{repo_id}' is no folder here and cannot be loaded from the Hub"
    try:
        HfApi().model_info(repo_id, revision=revision, timeout=PROBE_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response is None or error.response.status_code < 500:
            with explained(problem):
                raise
        offline = error
    except (OfflineModeIsEnabled, TransportError) as error:
        offline = error
    patterns = ["*.json", "*.safetensors"]
    with explained(problem):
        try:
            folder = snapshot_download(
                repo_id, revision=revision, allow_patterns=patterns, local_files_only=offline is not None
            )
        except OSError as error:
            if isinstance(error, TransportError):
                raise
            if offline is not None and isinstance(error, LocalEntryNotFoundError):
                raise offline from None
            raise HubError(
                f"{problem}: the download did not come to its end. Load it again. "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
            ) from error
    if offline is not None:
        logger.warning("The Hub cannot be reached: '%s' is taken from the cache.", repo_id)
    for path in sorted(Path(folder).glob("*.safetensors")):
        _check_digest(path)
    return Path(folder)


def _check_digest(path: Path) -> None:
    """Checks a cached file against its name, which is its digest; one that differs is removed."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        with blob.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise CheckpointError(
                f"Weights must come as they were pushed, but '{path.name}' was damaged on the way: its "
                "digest differs. It was removed from the cache; load it again."
            )


def _load_folder(folder: Path, name: str) -> tuple[Any, Any]:
    from .adapters import is_adapter, load_adapter_decoder
    from .modeling_rpnt import RPNTForMotorDecoding
    from .processing_rpnt import RPNTProcessor

    decoder: Any = RPNTForMotorDecoding
    if is_adapter(folder):
        return load_adapter_decoder(folder)
    for file in ("config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            raise CheckpointError(
                f"CHECKPOINT must be a folder with a saved decoder, or the id of one on the Hub, got "
                f"'{name}', which has no `{file}`."
            )
    architectures = read_json(folder / "config.json").get("architectures") or []
    if "RPNTForMotorDecoding" not in architectures:
        raise CheckpointError(
            "CHECKPOINT must hold a trained decoder (RPNTForMotorDecoding), got "
            f"{', '.join(architectures) or 'no model'} in '{name}'. Train one with "
            "training/finetune.py, which takes a pretrained model as `init`."
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"CHECKPOINT must hold its weights as safetensors, got '{name}' without them. Weights in other "
            "formats, such as `pytorch_model.bin`, are not read, because they can hold code. Save it again "
            "by `save_pretrained`."
        )
    try:
        model, loading = decoder.from_pretrained(folder, output_loading_info=True)
        processor = RPNTProcessor.from_pretrained(folder)
    except RPNTError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise CheckpointError(
            "CHECKPOINT must hold a whole decoder that this version of rpnt_hf can read, but "
            f"'{name}' cannot be loaded. Fetch or save it again. ({_first_line(error)})"
        ) from error
    stray = sorted({*loading["missing_keys"], *loading["unexpected_keys"]})
    if stray:
        raise CheckpointError(
            f"CHECKPOINT must hold every weight of its model and no other, but in '{name}' "
            f"{', '.join(stray[:5])} ({len(stray)} in all) are missing or left over. Save it again, or use "
            "the version of rpnt_hf that wrote it."
        )
    return model, processor


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a checkpoint.

    Args:
        path (`Path`): The file.

    Returns:
        `dict[str, Any]`: The object in it.

    Raises:
        CheckpointError: It is not JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"`{path.name}` must be JSON, but '{path}' cannot be read. Save it again. ({error})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"`{path.name}` must hold an object, got a {type(content).__name__} in '{path}'."
        )
    return content
