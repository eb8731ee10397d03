"""What the disk refuses, said in one paragraph (full, read-only, no permission, gone), and what it must keep.

For everything that writes files of a user. Not for what is written: nothing here knows a format.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import RPNTError

__all__ = ["explain_disk_errors", "flush", "flush_tree"]

REASONS = {
    errno.ENOSPC: "the disk is full. Free some room, or choose a folder on another disk",
    errno.EDQUOT: "the quota of the disk is used up. Free some room, or choose a folder on another disk",
    errno.EFBIG: "the file would be larger than is allowed. Raise the limit (`ulimit -f`), or choose another "
    "disk",
    errno.EROFS: "the disk is read-only. Choose a folder that can be written",
    errno.EACCES: "there is no permission. Choose a folder of your own, or ask for the right to write",
    errno.EPERM: "there is no permission. Choose a folder of your own, or ask for the right to write",
    errno.ENOENT: "a file or folder of it is gone: something else removed it. Leave it alone meanwhile",
    errno.ESTALE: "a file or folder of it is gone: something else removed it. Leave it alone meanwhile",
    errno.EIO: "the disk reports a fault. Check it, or choose another disk",
}


@contextmanager
def explain_disk_errors(path: str | Path, error_class: type[RPNTError], advice: str = "") -> Iterator[None]:
    """Turns what the operating system refuses into one paragraph.

    Args:
        path (`str` or `Path`): What is being written; named in the error.
        error_class (`type[RPNTError]`): Class of the error.
        advice (`str`, *optional*): What stays and what to do next, a sentence that ends in a period.

    Raises:
        RPNTError: Of that class, where a file could not be written. Errors that are none of the disk's pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        reason = REASONS.get(error.errno, "the operating system refused. Check the disk and the name")
        where = f": '{error.filename}'" if error.filename else ""
        raise error_class(
            f"It must be possible to write '{path}', but {reason}. {advice}{' ' if advice else ''}"
            f"({error.strerror or error}{where})"
        ) from error


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk: not only processes die, machines do too.

    Args:
        path (`Path`): A file that is closed, or a folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Waits until everything in a folder is on the disk, before a rename says that it is whole.

    Args:
        folder (`Path`): A folder.
    """
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
