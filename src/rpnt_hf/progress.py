"""Progress bars: with rate and time left, for people at a terminal only.

Not for logs: what a file should tell goes to the logger.
"""

import os
import sys
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress_bar"]

DELAY = 2.0  # s; what takes less needs no bar


def progress_bar(*arguments: Any, disable: bool = False, **options: Any) -> tqdm:
    """Makes a bar on standard error that comes up when the work takes more than two seconds.

    It stays away where standard error is no terminal, and where the environment variable `TQDM_DISABLE` is
    set (`rpnt --quiet`).

    Args:
        *arguments: As for `tqdm`; first the iterable.
        disable (`bool`, *optional*, defaults to `False`): Whether to draw nothing in any case.
        **options: As for `tqdm`, such as `total` and `unit`.

    Returns:
        `tqdm`: The bar.
    """
    silent = disable or bool(os.environ.get("TQDM_DISABLE")) or not sys.stderr.isatty()
    return tqdm(*arguments, disable=silent, **{"delay": DELAY, **options})
