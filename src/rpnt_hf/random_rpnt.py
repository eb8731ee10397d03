"""Random numbers that are a pure function of (seed, purpose, counter), for many seeds at once.

A generator object costs 10 us to make, which is more than cutting a window; a hash of its seed costs
nanoseconds and gives the same numbers in every batch, worker and process. Not for cryptography.
"""

import functools
import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@functools.cache
def _key_of(purpose: str) -> np.uint64:
    """A constant for each purpose, so that one seed gives unrelated numbers for each."""
    return np.uint64(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little"))


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), in place: every bit depends on every bit."""
    shifted = state >> np.uint64(30)
    state ^= shifted
    state *= _FIRST
    np.right_shift(state, np.uint64(27), out=shifted)
    state ^= shifted
    state *= _SECOND
    np.right_shift(state, np.uint64(31), out=shifted)
    state ^= shifted
    return state


def random_bits(seeds: NDArray[np.int64], purpose: str, counters: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Draws 64 random bits for every seed and counter.

    Args:
        seeds (`np.ndarray` of any shape, int64): One per window, of any value; neighbours are unrelated.
        purpose (`str`): What the numbers are for; other purposes give unrelated numbers.
        counters (`np.ndarray` that broadcasts against `seeds`): Which number of the stream, 0 or more.

    Returns:
        `np.ndarray` of the broadcast shape, uint64.

    Example:
        ```python
        >>> seeds, counters = np.array([[1], [2]]), np.arange(3)
        >>> bits = random_bits(seeds, "units", counters)
        >>> bits.shape, bool((bits[1:] == random_bits(seeds[1:], "units", counters)).all())
        ((2, 3), True)
        ```
    """
    start = _mix(np.asarray(seeds).astype(np.uint64) + _key_of(purpose))
    return _mix(start + np.asarray(counters).astype(np.uint64) * _GOLDEN)


def uniforms(seeds: NDArray[np.int64], purpose: str, counters: NDArray[np.integer]) -> NDArray[np.float64]:
    """Draws numbers in [0, 1), uniform, for every seed and counter.

    Args:
        seeds (`np.ndarray` of any shape, int64): As in `random_bits`.
        purpose (`str`): Likewise.
        counters (`np.ndarray` that broadcasts against `seeds`): Likewise.

    Returns:
        `np.ndarray` of the broadcast shape, float64.

    Example:
        ```python
        >>> draws = uniforms(np.arange(1000)[:, None], "dropout", np.arange(100))
        >>> bool(abs(draws.mean() - 0.5) < 0.01)
        True
        ```
    """
    return (random_bits(seeds, purpose, counters) >> np.uint64(11)) * np.float64(2.0**-53)


__all__ = ["random_bits", "uniforms"]
