"""Errors that users see: each is a `ValueError` that says what must hold, what arrived, where, what to do.

Not for facts that the code itself guarantees: those are assertions.
"""

import difflib
from collections.abc import Iterable


class RPNTError(ValueError):
    """Base of every error that this package raises on bad input."""


class ConfigurationError(RPNTError):
    """A configuration field is unknown, out of range, or contradicts another one."""


class RecordingError(RPNTError):
    """A recording cannot be read, or what it holds breaks a rule (no units, NaN times, missing behaviour)."""


class BinningError(RPNTError):
    """Spikes or behaviour cannot be put into bins of the asked size."""


class SplitError(RPNTError):
    """Trials or blocks cannot be divided into training, validation and test."""


class DatasetError(RPNTError):
    """A built dataset cannot be written or read, or breaks the row schema."""


class InputError(RPNTError):
    """A model or processor received arrays of the wrong shape, type or range."""


class CheckpointError(RPNTError):
    """A checkpoint is missing, unfinished, or does not fit what it is asked to do."""


class HubError(RPNTError):
    """The Hub cannot be reached, or refuses: a name, a revision, a right or a token is missing."""


class DiskError(RPNTError):
    """A file that a command writes cannot be written: full disk, read-only folder, no permission."""


class DownloadError(RPNTError):
    """An archive cannot be reached, refuses, or sends other bytes than it states."""


def closest_names(unknown: str, known: Iterable[str]) -> str:
    """Says which known names look like an unknown one, for use at the end of an error message.

    Args:
        unknown (`str`): Name that was not recognised.
        known (`Iterable[str]`): Names that exist.

    Returns:
        `str`: " Did you mean `a`, `b`?" or an empty string where nothing is close.

    Example:
        ```python
        >>> closest_names("mask_raito", ["mask_ratio", "hidden_size"])
        ' Did you mean `mask_ratio`?'
        ```
    """
    matches = difflib.get_close_matches(unknown, list(known), n=3, cutoff=0.6)
    return f" Did you mean {', '.join(f'`{match}`' for match in matches)}?" if matches else ""
