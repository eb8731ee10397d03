"""Carries a decoder to a new session of the same subject without labels and without gradients.

The units that an earlier session shares with the new one take over its rows of the unit embedding; factor
analysis of a minute of unlabelled activity says how each unit now takes part in what the population does, and
the rows move accordingly. Degenhart et al. 2020, doi:10.1038/s41551-020-0542-9, align a linear decoder so;
here the alignment changes what each unit adds to the token of its bin, and the network stays as it is.

Not for sessions without a unit in common: unlabelled activity of a reaching task looks the same when all
directions are turned, so that nothing could tell which turn is right.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import FactorAnalysis

from rpnt_hf.data.binning import bin_spikes
from rpnt_hf.data.nwb import Recording
from rpnt_hf.disk import explain_disk_errors
from rpnt_hf.errors import CheckpointError, DatasetError, DiskError, InputError
from rpnt_hf.modeling_rpnt import RPNTPreTrainedModel
from rpnt_hf.processing_rpnt import SESSION_FACTS, RPNTProcessor

__all__ = ["adapt_decoder", "add_session", "align_units", "carry_units", "find_reference", "save_decoder"]

NUM_FACTORS = 10
STABLE_SHARE = 0.7  # of the shared units, those that fit best decide the alignment
NUM_ROUNDS = 10
NUM_SHUFFLES, CHANCE = 99, 0.05  # shared ids must fit better than shuffled ones

Array = NDArray[np.float64]


def adapt_decoder(
    model: RPNTPreTrainedModel,
    processor: RPNTProcessor,
    recording: Recording,
    reference: Recording | None = None,
    seconds: float = 60.0,
) -> dict[str, Any]:
    """Carries a decoder over to a recording of a new session.

    Args:
        model (`RPNTPreTrainedModel`): The decoder; changed in place.
        processor (`RPNTProcessor`): Its processor; changed in place.
        recording (`Recording`): The new session. Its behaviour is not looked at.
        reference (`Recording`, *optional*): The session that the units are carried over from; where it is
            given, units are aligned, else only carried.
        seconds (`float`, *optional*, defaults to 60.0): Length of activity of the new session to align by.

    Returns:
        `dict`: `reference`, and what `align_units` gives.

    Raises:
        CheckpointError: No session of the same subject shares units with it.
        DatasetError: As in `align_units`.
        InputError: The session is known already, or `reference` is not the session that units come from.
    """
    session = {name: getattr(recording, name) for name in ("session_id", "unit_ids", *SESSION_FACTS)}
    reference_id = add_session(model, processor, session)
    carry_units(model, processor, recording.session_id, reference_id)
    if reference is None:
        return {"reference": reference_id}
    if reference.session_id != reference_id or reference.unit_ids != processor.sessions[reference_id]:
        raise InputError(
            f"`reference` must be the recording of session '{reference_id}', from which the units come, with "
            f"the units that it was trained on, got '{reference.session_id}' with "
            f"{len(reference.unit_ids)} units. Give that recording."
        )
    counts, reference_counts = (
        np.concatenate([interval.counts for interval in bin_spikes(one, processor.bin_size)])
        for one in (recording, reference)
    )
    counts = counts[: round(seconds / processor.bin_size)]
    return {
        "reference": reference_id,
        **align_units(model, processor, recording.session_id, reference_id, counts, reference_counts),
    }


def save_decoder(model: RPNTPreTrainedModel, processor: RPNTProcessor, folder: str | Path) -> None:
    """Saves a model and its processor into a new folder, whole or not at all.

    Args:
        model (`RPNTPreTrainedModel`): The model.
        processor (`RPNTProcessor`): Its processor.
        folder (`str` or `Path`): Does not exist, or is empty.

    Raises:
        DiskError: It cannot be written.
    """
    folder = Path(folder)
    with explain_disk_errors(folder, DiskError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as unfinished:
            target = Path(unfinished) / folder.name
            model.save_pretrained(target)
            processor.save_pretrained(target)
            target.replace(folder)


def add_session(model: RPNTPreTrainedModel, processor: RPNTProcessor, session: Mapping[str, Any]) -> str:
    """Adds a session whose units a checkpoint does not know, and finds where to carry its units over from.

    Args:
        model (`RPNTPreTrainedModel`): With `unit_embedding` "vocabulary"; gets rows for the units.
        processor (`RPNTProcessor`): Its processor; gets the session.
        session (`Mapping`): `session_id`, `unit_ids` and the other facts of a row of a built dataset.

    Returns:
        `str`: The reference session; see `find_reference`.

    Raises:
        CheckpointError: No session of the same subject shares units with it.
        ConfigurationError: The model has slots instead of a vocabulary of units.
        InputError: The session is known already.
    """
    known = list(processor.sessions)
    facts = {name: session[name] for name in SESSION_FACTS}
    session_id = session["session_id"]
    trial = copy.deepcopy(processor)
    trial.add_session(session_id, list(session["unit_ids"]), **facts)
    reference_id = find_reference(trial, session_id, known)
    model.resize_unit_vocabulary(trial.num_units)
    processor.add_session(session_id, list(session["unit_ids"]), **facts, aligned_to=reference_id)
    return reference_id


def find_reference(processor: RPNTProcessor, session_id: str, known: Sequence[str], minimum: int = 2) -> str:
    """Finds the session to carry units over from.

    Args:
        processor (`RPNTProcessor`): It knows the new session and those of the checkpoint.
        session_id (`str`): The new session.
        known (`Sequence[str]`): Sessions that the weights were trained on.
        minimum (`int`, *optional*, defaults to 2): Units that must be shared.

    Returns:
        `str`: Of the sessions of the same subject that share the most units with the new one, the one
        recorded last.

    Raises:
        CheckpointError: None of the same subject shares so many units.
    """
    facts = processor.session_facts
    subject = facts[session_id].get("subject_id")
    units = set(processor.sessions[session_id])
    shared = {
        other: len(units & set(processor.sessions[other]))
        for other in known
        if subject is not None and facts[other].get("subject_id") == subject
    }
    best = max(shared.values(), default=0)
    if best < minimum:
        raise CheckpointError(
            f"Units can be carried over from a session of subject '{subject}' that shares at least {minimum} "
            f"`unit_ids` with '{session_id}', got {best} at most, in sessions {', '.join(known) or 'none'}. "
            "Use mode 'units' with a few labelled trials, or give units that are the same the same ids."
        )
    candidates = [other for other, number in shared.items() if number == best]
    return max(candidates, key=lambda other: (facts[other].get("recording_date") or "", other))


def carry_units(
    model: RPNTPreTrainedModel, processor: RPNTProcessor, session_id: str, reference_id: str
) -> None:
    """Gives the units of a session the embeddings that the same units have in another; others get none (0).

    Args:
        model (`RPNTPreTrainedModel`): Its unit embedding has rows for both sessions; changed in place.
        processor (`RPNTProcessor`): It knows both sessions.
        session_id (`str`): The new session.
        reference_id (`str`): A session that the weights were trained on.
    """
    new, old = _shared(processor, session_id, reference_id)
    rows = _embeddings(model, processor, session_id)
    rows[:] = 0
    rows[new] = _embeddings(model, processor, reference_id)[old] * _share(processor, session_id, reference_id)
    _write(model, processor, session_id, rows)


def align_units(
    model: RPNTPreTrainedModel,
    processor: RPNTProcessor,
    session_id: str,
    reference_id: str,
    counts: NDArray[np.integer],
    reference_counts: NDArray[np.integer],
) -> dict[str, float]:
    """Gives the units of a session embeddings that agree with how they fire together.

    Factors of the root of counts are found in both sessions, those of the new one turned so that the shared
    units load on them as before (only those that still do, found in rounds), and read out to the tokens that
    the model knows. A unit that is new goes to where the alignment puts it. A shared unit goes a part of the
    way there, from its embedding in the reference session: the part of its change of loadings that parts of
    the reference session, aligned in the same way, do not show among themselves (empirical Bayes shrinkage).

    Args:
        model (`RPNTPreTrainedModel`): Its unit embedding has rows for both sessions; changed in place.
        processor (`RPNTProcessor`): It knows both sessions.
        session_id (`str`): The new session.
        reference_id (`str`): A session that the weights were trained on.
        counts (`np.ndarray` of shape `(bins, units)`): Unlabelled spike counts of the new session; a minute.
        reference_counts (`np.ndarray` of shape `(bins, units)`): Those of the reference session.

    Returns:
        `dict[str, float]`: `shared_units`, `new_units`, `factors`, `misfit` and `shuffled_misfit` (between 0
        and 1; of the shared units, and of units paired at random), and `moved` (mean part of the way that the
        shared units went).

    Raises:
        DatasetError: There are too few bins, or the shared units do not fit better than shuffled ones, so
            that their ids say nothing.
    """
    new, old = _shared(processor, session_id, reference_id)
    for name, values in ((session_id, counts), (reference_id, reference_counts)):
        if len(values) < 2 * values.shape[1]:
            raise DatasetError(
                f"To align units, session '{name}' must have at least {2 * values.shape[1]} bins, twice its "
                f"units, got {len(values)}. Record longer."
            )
    num_factors = min(NUM_FACTORS, max(1, len(new) // 4))
    loadings, weights = _factors(counts, num_factors)
    old_loadings, old_weights = _factors(reference_counts, num_factors)
    turn, misfit = _turn(loadings[new], old_loadings[old])
    random = np.random.default_rng(0)
    shuffled = [_turn(loadings[random.permutation(new)], old_loadings[old])[1] for _ in range(NUM_SHUFFLES)]
    if (1 + sum(other <= misfit for other in shuffled)) / (1 + NUM_SHUFFLES) > CHANCE:
        raise DatasetError(
            f"Units with the same id must fire together in the same way in '{session_id}' and "
            f"'{reference_id}', but they fit no better than units chosen at random (misfit {misfit:.3f}, "
            f"shuffled {np.median(shuffled):.3f}). The ids probably do not name the same units: use mode "
            "'units' with a few labelled trials."
        )
    rows = _embeddings(model, processor, reference_id)
    roots = np.sqrt(reference_counts) - np.sqrt(reference_counts).mean(axis=0)
    readout = np.linalg.lstsq(roots @ old_weights, roots @ rows, rcond=None)[0]
    aligned = weights @ turn @ readout
    change = ((loadings[new] @ turn - old_loadings[old]) ** 2).sum(axis=1)
    noise = _noise(reference_counts, old, old_loadings, len(counts))
    part = np.maximum(0, 1 - noise / np.maximum(change, 1e-12))
    aligned[new] = rows[old] + part[:, None] * (aligned[new] - (old_weights @ readout)[old])
    _write(model, processor, session_id, aligned * _share(processor, session_id, reference_id))
    return {
        "shared_units": len(new),
        "new_units": len(aligned) - len(new),
        "factors": num_factors,
        "misfit": misfit,
        "shuffled_misfit": float(np.median(shuffled)),
        "moved": float(part.mean()),
    }


def _factors(counts: NDArray[np.integer], num_factors: int) -> tuple[Array, Array]:
    """Loadings of units on factors, and the weights that estimate factors from roots of counts, (N, k) each.

    The posterior mean of factor analysis: (I + L' Psi^-1 L)^-1 L' Psi^-1 (x - mean).
    """
    analysis = FactorAnalysis(num_factors, svd_method="lapack").fit(np.sqrt(counts))
    loadings = analysis.components_.T
    scaled = loadings / (analysis.noise_variance_ + 1e-3)[:, None]  # a silent unit has no noise
    return loadings, scaled @ np.linalg.inv(np.eye(num_factors) + loadings.T @ scaled)


def _noise(counts: NDArray[np.integer], units: list[int], loadings: Array, num_bins: int) -> Array:
    """Squared change of loadings to expect of a session of so many bins in which nothing has changed.

    From parts of this session against the whole. Parts share bins with it, a new session does not: with a
    share f, variances of differences are as (1 - f) to (1 + f).
    """
    changes = []
    parts = np.array_split(counts, max(2, len(counts) // num_bins))
    for part in parts:
        found, _ = _factors(part, loadings.shape[1])
        turn, _ = _turn(found[units], loadings[units])
        changes.append(((found[units] @ turn - loadings[units]) ** 2).sum(axis=1))
    share = 1 / len(parts)
    return np.mean(changes, axis=0) * (1 + share) / (1 - share)


def _turn(loadings: Array, old_loadings: Array) -> tuple[Array, float]:
    """Orthogonal matrix that turns loadings to the old ones, decided by the units that fit best.

    Also the mean misfit of those units, between 0 and 1.
    """
    size = np.linalg.norm(loadings, axis=1) + np.linalg.norm(old_loadings, axis=1) + 1e-6
    num_stable = max(loadings.shape[1], round(STABLE_SHARE * len(loadings)))
    stable = np.arange(len(loadings))
    for _ in range(NUM_ROUNDS + 1):
        turn, _ = orthogonal_procrustes(loadings[stable], old_loadings[stable])
        misfit = np.linalg.norm(loadings @ turn - old_loadings, axis=1) / size
        stable = np.argsort(misfit, kind="stable")[:num_stable]
    return turn, float(misfit[stable].mean())


def _shared(processor: RPNTProcessor, session_id: str, reference_id: str) -> tuple[list[int], list[int]]:
    """Positions of the shared units in both sessions."""
    old = {unit_id: index for index, unit_id in enumerate(processor.sessions[reference_id])}
    pairs = [
        (index, old[unit_id])
        for index, unit_id in enumerate(processor.sessions[session_id])
        if unit_id in old
    ]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _share(processor: RPNTProcessor, session_id: str, reference_id: str) -> float:
    """Tokens are sums over units divided by the root of their number, which may differ."""
    return float(np.sqrt(len(processor.sessions[session_id]) / len(processor.sessions[reference_id])))


def _embeddings(model: RPNTPreTrainedModel, processor: RPNTProcessor, session_id: str) -> Array:
    weight = _weight(model)
    return weight[list(processor.session_rows(session_id))].double().cpu().numpy()


def _write(model: RPNTPreTrainedModel, processor: RPNTProcessor, session_id: str, rows: Array) -> None:
    weight = _weight(model)
    weight[list(processor.session_rows(session_id))] = torch.from_numpy(rows).to(weight)


def _weight(model: RPNTPreTrainedModel) -> torch.Tensor:
    return model.get_input_embeddings().get_parameter("weight").detach()  # shares its memory
