"""A reader of recordings that takes its time, for tests that stop a build: importable by its processes."""

import time

from rpnt_hf.data.nwb import read_nwb


def slow_read(path, seconds):
    """Reads after a while."""
    time.sleep(seconds)
    return read_nwb(path)
