"""Where the units of a session stand in a rectangle of sites x units, or in slots.

Not for names of units: those are the vocabulary of `processing_rpnt.py`.
"""

import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def site_layout(unit_sites: NDArray[np.int64], num_sites: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Finds where each unit of a flat list goes in a rectangle of sites x units.

    Args:
        unit_sites (`np.ndarray` of shape `(units,)`, int): Site of each unit, in [0, num_sites).
        num_sites (`int`): Number of sites.

    Returns:
        `tuple` of two arrays of shape `(num_sites, most units of a site)`: the index into the flat list, and
        True where there is a unit (elsewhere the index is 0).

    Raises:
        InputError: If a site lies outside the range.

    Example:
        ```python
        >>> index, present = site_layout(np.array([1, 0, 1]), num_sites=2)
        >>> index.tolist(), present.tolist()
        ([[1, 0], [0, 2]], [[True, False], [True, True]])
        ```
    """
    unit_sites = np.asarray(unit_sites, dtype=np.int64)
    if unit_sites.size == 0 or unit_sites.min() < 0 or unit_sites.max() >= num_sites:
        raise InputError(
            f"`unit_sites` must name a site in [0, {num_sites}) for at least one unit, got {unit_sites.size} "
            "units" + (f" with sites {unit_sites.min()} to {unit_sites.max()}." if unit_sites.size else ".")
        )
    order = np.argsort(unit_sites, kind="stable")
    units_per_site = np.bincount(unit_sites, minlength=num_sites)
    first = np.cumsum(units_per_site) - units_per_site
    position = np.arange(unit_sites.size) - first[unit_sites[order]]
    index = np.zeros((num_sites, units_per_site.max()), dtype=np.int64)
    present = np.zeros(index.shape, dtype=bool)
    index[unit_sites[order], position] = order
    present[unit_sites[order], position] = True
    return index, present


def fit_slots(
    index: NDArray[np.int64],
    present: NDArray[np.bool_],
    num_slots: int,
    generator: np.random.Generator | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Samples or pads the units of every site into a fixed number of slots.

    Args:
        index (`np.ndarray` of shape `(sites, units)`, int): Index of each unit, as from `site_layout`.
        present (`np.ndarray` of the same shape, bool): True where there is a unit.
        num_slots (`int`): Slots per site.
        generator (`np.random.Generator`, *optional*):
            Draws the sample; None takes units at even spacing, always the same ones.

    Returns:
        `tuple` of two arrays of shape `(sites, num_slots)` like those that came in. Units keep their order.
    """
    num_units = index.shape[1]
    if num_units < num_slots:
        padding = ((0, 0), (0, num_slots - num_units))
        return np.pad(index, padding), np.pad(present, padding)
    counts = present.sum(axis=1, keepdims=True)
    position = np.arange(num_units)[None, :]
    if generator is None:
        # Unit u of a site is kept where floor(u * slots / units) moves on: `slots` of them, evenly spaced.
        step = (position * num_slots) // np.maximum(counts, 1)
        kept = (step != np.roll(step, 1, axis=1)) | (position == 0) | (counts <= num_slots)
        key = np.where(kept & present, 0, 1)
    else:
        rank = np.argsort(np.argsort(np.where(present, generator.random(index.shape), 2.0), axis=1), axis=1)
        key = np.where((rank < num_slots) & present, 0, 1)
    chosen = np.argsort(key, axis=1, kind="stable")[:, :num_slots]
    taken = np.take_along_axis(present & (key == 0), chosen, axis=1)
    return np.where(taken, np.take_along_axis(index, chosen, axis=1), 0), taken


def flat_counts(
    counts: NDArray[np.uint8], unit_sites: NDArray[np.int64], session_id: str | None
) -> NDArray[np.uint8]:
    """Turns counts laid out by site into the flat order of a session.

    Args:
        counts (`np.ndarray` of shape `(sites, bins, units per site)`, uint8): Counts, padded where a site has
            fewer units.
        unit_sites (`np.ndarray` of shape `(units,)`, int): Site of each unit of the session.
        session_id (`str`, *optional*): For the message.

    Returns:
        `np.ndarray` of shape `(bins, units)`, uint8.

    Raises:
        InputError: The shape is not that of the session.
    """
    index, present = site_layout(unit_sites, max(int(unit_sites.max()) + 1, counts.shape[0]))
    if counts.shape[::2] != index.shape:
        raise InputError(
            f"Counts of session '{session_id}' must have {index.shape[0]} sites of up to {index.shape[1]} "
            f"units, got shape {counts.shape} (sites, bins, units). Pad sites with fewer units, or give "
            "counts of shape (bins, units)."
        )
    flat = np.zeros((counts.shape[1], len(unit_sites)), dtype=np.uint8)
    flat[:, index[present]] = np.moveaxis(counts, 0, 1)[:, present]
    return flat


__all__ = ["fit_slots", "flat_counts", "site_layout"]
