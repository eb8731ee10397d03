"""Intervals and comparisons of scores: resampled test trials within a session, sessions as the unit across.

DESIGN section 5. R2 of a resample needs a few sums of every trial, so a thousand resamples take milliseconds.
Not for scores themselves: those are in `rpnt_hf.metrics`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rpnt_hf.data.rows import reach_bins, row_behavior, scored_bins
from rpnt_hf.errors import InputError
from rpnt_hf.metrics import R2_CONVENTIONS, r2_conventions

logger = logging.getLogger(__name__)

__all__ = [
    "DecoderComparison",
    "ScoredTrial",
    "SessionComparison",
    "TrialSums",
    "bits_per_spike_interval",
    "compare_decoders",
    "compare_sessions",
    "r2_intervals",
    "scored_trials",
    "trial_scores",
    "verdict",
]

NUM_RESAMPLES = 1000
LEVEL = 0.95
MIN_SESSIONS_WILCOXON = 6  # with five pairs no two-sided p of Wilcoxon's test can fall below 0.05
NEGLIGIBLE = 1e-12  # of the sum of squares: what rounding leaves where a target is constant

Interval = tuple[float, float]


@dataclass(frozen=True)
class ScoredTrial:
    """The scored bins of one test trial, with what a decoder said about them.

    Args:
        session_id (`str`): Its session.
        targets (`np.ndarray` of shape `(bins, targets)`): Behaviour, in its units.
        predictions (`np.ndarray` of the same shape): Decoded behaviour, in the same units.
        reach (`np.ndarray` of shape `(bins,)`, bool): True from the go cue on.
    """

    session_id: str
    targets: NDArray[np.floating[Any]]
    predictions: NDArray[np.floating[Any]]
    reach: NDArray[np.bool_]


def scored_trials(
    rows: Sequence[Mapping[str, Any]], predictions: Sequence[ArrayLike], label_lag: int = 0
) -> list[ScoredTrial]:
    """Cuts decoded rows into their trials; together these hold every scored bin once.

    Args:
        rows (`Sequence[Mapping]`): Rows of a built dataset.
        predictions (`Sequence[ArrayLike]`): One per row, shape `(num_bins, targets)`.
        label_lag (`int`, *optional*, defaults to 0): Bins at the start of a row without a prediction; they
            are not scored.

    Returns:
        `list[ScoredTrial]`: Trials with scored bins, in the order of the rows. A row without trials is one
        trial; a bin of two trials belongs to the later one.

    Raises:
        InputError: A prediction does not have the shape of the row's behaviour.
    """
    trials = []
    for row, values in zip(rows, predictions, strict=True):
        targets, decoded = row_behavior(row), np.asarray(values)
        if decoded.shape != targets.shape:
            raise InputError(
                f"Predictions must have the shape of the row's behaviour, {targets.shape}, got "
                f"{decoded.shape} in session '{row['session_id']}'. Decode the same rows."
            )
        scored, reach = scored_bins(row), reach_bins(row)
        scored[:label_lag] = False
        owner = np.full(row["num_bins"], -1)
        intervals = [(trial["scored_start_bin"], trial["scored_stop_bin"]) for trial in row["trials"] or []]
        for number, (start, stop) in enumerate(intervals or [(0, row["num_bins"])]):
            owner[max(start, 0) : max(stop, 0)] = number
        owner[~scored] = -1
        for number in np.unique(owner[scored]):
            bins = owner == number
            trials.append(ScoredTrial(row["session_id"], targets[bins], decoded[bins], reach[bins]))
    return trials


def trial_scores(trials: Sequence[ScoredTrial]) -> dict[str, float | None]:
    """Scores all bins of the trials at once, in the four conventions of `r2_conventions`.

    Args:
        trials (`Sequence[ScoredTrial]`): At least one.

    Returns:
        `dict`: As `r2_conventions`.

    Raises:
        InputError: There is no trial, or a value is not finite.
    """
    _check_trials(trials)
    columns = ((getattr(trial, name) for trial in trials) for name in ("targets", "predictions", "reach"))
    return r2_conventions(*(np.concatenate(list(column)) for column in columns))


@dataclass(frozen=True)
class TrialSums:
    """What R2 of any resample of trials needs: sums over the bins of each trial.

    Args:
        sums (`np.ndarray` of shape `(trials, 2, targets, 4)`): For all scored bins and for those of the reach
            period: the number of bins, the sum of the targets, of their squares, and of squared errors.
            Targets are counted from their mean over all scored bins, so that nothing cancels.
        sessions (`tuple[str, ...]`): The session of each trial; trials are resampled within theirs.
    """

    sums: NDArray[np.float64]
    sessions: tuple[str, ...]

    @classmethod
    def of(cls, trials: Sequence[ScoredTrial]) -> "TrialSums":
        """Sums up trials.

        Args:
            trials (`Sequence[ScoredTrial]`): At least one.

        Returns:
            `TrialSums`: in the order of the trials.

        Raises:
            InputError: There is no trial, or a value is not finite.
        """
        _check_trials(trials)
        targets = np.concatenate([trial.targets for trial in trials]).astype(np.float64)
        errors = np.concatenate([trial.predictions for trial in trials]).astype(np.float64) - targets
        reach = np.concatenate([trial.reach for trial in trials])
        if not (np.isfinite(targets).all() and np.isfinite(errors).all()):
            raise InputError(
                "Targets and predictions of scored trials must be finite, got "
                f"{int((~np.isfinite(targets + errors)).any(axis=1).sum())} bins that are not. A decoder "
                "that diverged has no R2."
            )
        centred = targets - targets.mean(axis=0)
        terms = np.stack([np.ones_like(centred), centred, centred**2, errors**2], axis=-1)
        periods = np.stack([terms, terms * reach[:, None, None]], axis=1)
        starts = np.cumsum([0, *(len(trial.targets) for trial in trials)])[:-1]
        return cls(np.add.reduceat(periods, starts, axis=0), tuple(trial.session_id for trial in trials))


def r2_intervals(
    trials: TrialSums, num_resamples: int = NUM_RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, Interval | None]:
    """Percentile interval of R2 over resamples of the test trials of each session.

    Args:
        trials (`TrialSums`): What a decoder did on the test trials.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        level (`float`, *optional*, defaults to 0.95): Nominal coverage, in (0, 1). With few trials the true
            one is lower (`docs/decisions.md`).
        seed (`int`, *optional*, defaults to 0): Seed of the resamples.

    Returns:
        `dict[str, tuple[float, float] | None]`: Low and high end for each of the four conventions; None
        where R2 is not defined on the trials or on one of the resamples.
    """
    weights = _resamples(trials.sessions, num_resamples, seed)
    drawn = _r2(np.tensordot(weights, trials.sums, axes=1))
    return {name: _percentiles(drawn[:, column], level, name) for column, name in enumerate(R2_CONVENTIONS)}


@dataclass(frozen=True)
class DecoderComparison:
    """Two decoders on the same test trials of a session, in one convention of R2.

    Args:
        first (`float`): R2 of the first decoder, averaged over seeds.
        second (`float`): R2 of the second.
        difference (`float`): First minus second.
        interval (`tuple[float, float]` or `None`): Percentile interval of the difference; None where it is
            not defined on a resample.
        verdict (`str` or `None`): "ahead", "behind" or "tie" of the first; None without an interval.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    verdict: str | None


def compare_decoders(
    first: Sequence[TrialSums],
    second: Sequence[TrialSums],
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, DecoderComparison | None]:
    """Compares two decoders on paired resamples of the same test trials.

    Args:
        first (`Sequence[TrialSums]`): The first decoder, one entry per seed of its training.
        second (`Sequence[TrialSums]`): The second; the number of seeds may differ.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples; both decoders meet the same.
        level (`float`, *optional*, defaults to 0.95): Nominal coverage of the interval, in (0, 1).
        seed (`int`, *optional*, defaults to 0): Seed of the resamples.

    Returns:
        `dict[str, DecoderComparison | None]`: One for each of the four conventions; None where R2 is not
        defined on the trials.

    Raises:
        InputError: The trials of two entries are not the same.
    """
    every = [*first, *second]
    if not first or not second:
        raise InputError("Both decoders must have at least one trained seed, got none for one of them.")
    for other in every[1:]:
        is_same = other.sessions == every[0].sessions and other.sums.shape == every[0].sums.shape
        if not is_same or not np.allclose(other.sums[..., :3], every[0].sums[..., :3]):
            raise InputError(
                "Decoders must be compared on the same test trials in the same order, got others in "
                f"{len(other.sessions)} and {len(every[0].sessions)} trials. Decode the same rows."
            )
    weights = _resamples(every[0].sessions, num_resamples, seed)
    points, drawn = (
        [
            np.mean([_r2(np.tensordot(counts, part.sums, axes=1)) for part in side], axis=0)
            for side in (first, second)
        ]
        for counts in (np.ones((1, len(every[0].sessions))), weights)
    )
    comparisons: dict[str, DecoderComparison | None] = {}
    for column, name in enumerate(R2_CONVENTIONS):
        one, two = (float(side[0, column]) for side in points)
        if np.isnan(one) or np.isnan(two):
            comparisons[name] = None
            continue
        interval = _percentiles(drawn[0][:, column] - drawn[1][:, column], level, name)
        comparisons[name] = DecoderComparison(
            one, two, one - two, interval, verdict(*interval) if interval else None
        )
    return comparisons


@dataclass(frozen=True)
class SessionComparison:
    """Two decoders over sessions (or simulated corpora).

    Args:
        num_sessions (`int`): Number of pairs.
        difference (`float`): Mean over sessions of first minus second.
        interval (`tuple[float, float]`): Interval of that mean, from the paired t-test.
        p_t_test (`float`): Two-sided p of the paired t-test.
        p_wilcoxon (`float` or `None`): Two-sided p of Wilcoxon's signed-rank test; None below six sessions.
        verdict (`str`): "ahead", "behind" or "tie" of the first, by the interval.
    """

    num_sessions: int
    difference: float
    interval: Interval
    p_t_test: float
    p_wilcoxon: float | None
    verdict: str


def compare_sessions(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], level: float = LEVEL
) -> SessionComparison:
    """Compares two decoders over sessions: seeds are averaged first, and the session is the unit.

    Args:
        first (`Mapping[str, Sequence[float]]`): Scores of the first decoder by session, one per seed.
        second (`Mapping[str, Sequence[float]]`): The same of the second, of the same sessions.
        level (`float`, *optional*, defaults to 0.95): Nominal coverage of the interval, in (0, 1).

    Returns:
        `SessionComparison`: with a paired t-test, and Wilcoxon's test from six sessions on.

    Raises:
        InputError: Sessions differ or are fewer than two, or a score is missing or not finite.
    """
    if set(first) != set(second) or len(first) < 2:
        raise InputError(
            "Scores must be of the same sessions, at least two of them, got "
            f"{sorted(first)} and {sorted(second)}. Score both decoders on each session."
        )
    names = sorted(first)
    for side in (first, second):
        for name in names:
            scores = np.array([np.nan if score is None else score for score in side[name]], dtype=np.float64)
            if not len(scores) or not np.isfinite(scores).all():
                raise InputError(
                    f"Every seed of every session must have a score, got {list(side[name])} in session "
                    f"'{name}'. Report a failed run as a row of its own, and compare the other sessions."
                )
    one, two = (np.array([np.mean(side[name]) for name in names]) for side in (first, second))
    differences = one - two
    mean = float(differences.mean())
    if np.ptp(differences) <= NEGLIGIBLE * max(1.0, abs(mean)):  # the same everywhere: no spread to test
        interval, p_t_test = (mean, mean), float(abs(mean) <= NEGLIGIBLE)
    else:
        test = stats.ttest_rel(one, two)
        found = test.confidence_interval(level)
        interval, p_t_test = (float(found.low), float(found.high)), float(test.pvalue)
    p_wilcoxon = None
    if len(names) >= MIN_SESSIONS_WILCOXON:
        p_wilcoxon = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return SessionComparison(len(names), mean, interval, p_t_test, p_wilcoxon, verdict(*interval))


def verdict(low: float, high: float) -> str:
    """Says what an interval of a difference allows to say.

    Args:
        low (`float`): Low end of the interval.
        high (`float`): High end, at least `low`.

    Returns:
        `str`: "ahead" where the interval lies above 0, "behind" where it lies below, else "tie".

    Example:
        ```python
        >>> verdict(0.01, 0.05), verdict(-0.01, 0.05), verdict(-0.05, -0.01)
        ('ahead', 'tie', 'behind')

        ```
    """
    return "ahead" if low > 0 else "behind" if high < 0 else "tie"


def bits_per_spike_interval(
    likelihoods: ArrayLike,
    sessions: Sequence[str],
    num_resamples: int = NUM_RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval | None:
    """Percentile interval of bits per spike over resamples of the windows of each session.

    Args:
        likelihoods (`ArrayLike` of shape `(windows, 3)`): Log-likelihood of the model and of the null model
            (nats, without `log(y!)`) and number of spikes, over the hidden entries of each window.
        sessions (`Sequence[str]`): The session of each window.
        num_resamples (`int`, *optional*, defaults to 1000): Number of resamples.
        level (`float`, *optional*, defaults to 0.95): Nominal coverage, in (0, 1).
        seed (`int`, *optional*, defaults to 0): Seed of the resamples.

    Returns:
        `tuple[float, float]` or `None`: Low and high end; None where a resample has no spikes.
    """
    model, null, spikes = (_resamples(sessions, num_resamples, seed) @ np.asarray(likelihoods, np.float64)).T
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(spikes > 0, (model - null) / (spikes * np.log(2)), np.nan)
    return _percentiles(drawn, level, "bits_per_spike")


def _check_trials(trials: Sequence[ScoredTrial]) -> None:
    if not trials:
        raise InputError("A score must rest on at least one trial, got none. Check the split.")


def _resamples(sessions: Sequence[str], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """Draws how often each trial is in each resample, shape `(resamples, trials)`, within sessions."""
    generator = np.random.default_rng(seed)
    names = np.asarray(sessions)
    counts = np.zeros((num_resamples, len(names)))
    for name in dict.fromkeys(sessions):
        mine = np.flatnonzero(names == name)
        counts[:, mine] = generator.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), num_resamples)
    return counts


def _r2(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """R2 in the order of `R2_CONVENTIONS`, `(..., 2, targets, 4)` to `(..., 4)`; NaN where not defined."""
    bins, targets, squares, errors = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = squares - targets**2 / bins
        varies = total > NEGLIGIBLE * squares
        uniform = np.where(varies.all(axis=-1), (1 - errors / total).mean(axis=-1), np.nan)
        weighted = 1 - (errors * varies).sum(axis=-1) / np.where(varies, total, 0).sum(axis=-1)
        weighted = np.where(varies.any(axis=-1), weighted, np.nan)
    return np.stack([uniform, weighted], axis=-1).reshape(*sums.shape[:-3], len(R2_CONVENTIONS))


def _percentiles(values: NDArray[np.float64], level: float, name: str) -> Interval | None:
    """The middle part of resampled values; None where one of them is not defined."""
    if not 0 < level < 1:
        raise InputError(f"`level` must lie in (0, 1), got {level}.")
    undefined = int(np.isnan(values).sum())
    if undefined:
        if undefined < len(values):
            logger.warning(
                "%s is not defined on %d of %d resamples: it gets no interval.", name, undefined, len(values)
            )
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
