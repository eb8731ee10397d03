"""Intervals against a slow oracle, against scipy, and against the truth of simulated trials."""

import json
import time

import numpy as np
import pytest
from scipy import stats
from small_corpus import build_small_corpus

from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import reach_bins, row_behavior, scored_bins
from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.statistics import (
    ScoredTrial,
    TrialSums,
    _resamples,
    bits_per_spike_interval,
    compare_decoders,
    compare_sessions,
    r2_intervals,
    scored_trials,
    trial_scores,
    verdict,
)
from rpnt_hf.metrics import R2_CONVENTIONS, r2_scores


def simulate_trials(rng, num_trials, noise=3.0, session_id="a", truth=None):
    """Reaches of random direction and speed; errors are correlated within a trial and vary between trials."""
    trials = []
    for i in range(num_trials):
        if truth is None:
            num_bins = int(rng.integers(15, 45))
            times = np.arange(num_bins)
            speed = rng.gamma(6, 5) * np.exp(-0.5 * ((times / num_bins - 0.6) / 0.15) ** 2)
            angle = rng.uniform(0, 2 * np.pi)
            targets = speed[:, None] * [np.cos(angle), np.sin(angle)] + rng.normal(0, 2, (num_bins, 2))
            reach = times > num_bins // 3
        else:
            targets, reach = truth[i].targets, truth[i].reach
        scale = noise * rng.gamma(3, 1 / 3)
        errors = scale * (0.6 * rng.standard_normal((1, 2)) + rng.standard_normal(targets.shape))
        trials.append(ScoredTrial(session_id, targets + 100.0, targets + 100.0 + errors, reach))
        # A position far from zero: sums of squares would cancel if they were not centred.
    return trials


def shifted(trials, by):
    """The same trials with targets that `simulate_trials(truth=...)` can start from."""
    return [ScoredTrial(t.session_id, t.targets - by, t.predictions - by, t.reach) for t in trials]


def slow_scores(trials, counts):
    """The oracle: bins of the drawn trials one after another, scored by `r2_scores`."""
    drawn = [trial for trial, count in zip(trials, counts, strict=True) for _ in range(int(count))]
    targets, predictions = (
        np.concatenate([getattr(t, n) for t in drawn]) for n in ("targets", "predictions")
    )
    reach = np.concatenate([trial.reach for trial in drawn])
    scores, in_reach = r2_scores(targets, predictions), r2_scores(targets, predictions, reach)
    return [scores["r2"], scores["r2_variance_weighted"], in_reach["r2"], in_reach["r2_variance_weighted"]]


def test_intervals_equal_those_of_a_slow_oracle_that_concatenates_bins():
    rng = np.random.default_rng(0)
    trials = simulate_trials(rng, 12) + simulate_trials(rng, 7, session_id="b")
    sums = TrialSums.of(trials)
    counts = _resamples(sums.sessions, 200, 3)
    assert (counts[:, :12].sum(axis=1) == 12).all() and (counts[:, 12:].sum(axis=1) == 7).all()
    slow = np.array([slow_scores(trials, drawn) for drawn in counts])
    expected = np.quantile(slow, [0.05, 0.95], axis=0).T
    found = r2_intervals(sums, num_resamples=200, level=0.9, seed=3)
    assert list(found) == list(R2_CONVENTIONS)
    np.testing.assert_allclose([found[name] for name in R2_CONVENTIONS], expected, rtol=1e-10)


def test_differences_equal_those_of_the_oracle_on_the_same_resamples():
    rng = np.random.default_rng(1)
    first = simulate_trials(rng, 15)
    seeds = [simulate_trials(rng, 15, noise=4.0, truth=shifted(first, 100.0)) for _ in range(2)]
    sums = TrialSums.of(first)
    counts = _resamples(sums.sessions, 100, 0)
    slow = np.array(
        [
            np.array(slow_scores(first, drawn))
            - np.mean([slow_scores(seed, drawn) for seed in seeds], axis=0)
            for drawn in counts
        ]
    )
    found = compare_decoders([sums], [TrialSums.of(seed) for seed in seeds], num_resamples=100)
    for column, name in enumerate(R2_CONVENTIONS):
        comparison = found[name]
        expected = np.quantile(slow[:, column], [0.025, 0.975])
        np.testing.assert_allclose(comparison.interval, expected, rtol=1e-8, atol=1e-12)
        assert comparison.first == pytest.approx(trial_scores(first)[name], abs=1e-10)
        mean = np.mean([trial_scores(seed)[name] for seed in seeds])
        assert comparison.difference == pytest.approx(comparison.first - mean, abs=1e-10)


def test_pairing_makes_the_interval_of_a_difference_narrow():
    """Errors that two decoders share do not blur which one is better."""
    rng = np.random.default_rng(2)
    first = simulate_trials(rng, 30)
    second = [
        ScoredTrial(t.session_id, t.targets, t.targets + 1.03 * (t.predictions - t.targets), t.reach)
        for t in first
    ]
    sums = [TrialSums.of(trials) for trials in (first, second)]
    comparison = compare_decoders(sums[:1], sums[1:])["r2"]
    low, high = r2_intervals(sums[0])["r2"]
    assert comparison.verdict == "ahead"
    assert comparison.interval[1] - comparison.interval[0] < 0.1 * (high - low)
    assert compare_decoders(sums[1:], sums[:1])["r2"].verdict == "behind"
    same = compare_decoders(sums[:1], sums[:1])["r2"]
    assert (same.difference, same.interval, same.verdict) == (0.0, (0.0, 0.0), "tie")


def test_a_thousand_resamples_of_a_session_take_milliseconds():
    sums = TrialSums.of(simulate_trials(np.random.default_rng(0), 80))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        r2_intervals(sums)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.1


def test_the_same_seed_draws_the_same_resamples_and_another_does_not():
    sums = TrialSums.of(simulate_trials(np.random.default_rng(0), 20))
    assert r2_intervals(sums) == r2_intervals(sums)
    assert r2_intervals(sums) != r2_intervals(sums, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("num_trials", "at_least"), [(20, 0.885), (60, 0.91)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(num_trials, at_least):
    """Percentile intervals of few trials cover a little less; `docs/decisions.md` says how much."""
    rng = np.random.default_rng(0)
    truth = trial_scores(simulate_trials(rng, 20_000))
    hits = dict.fromkeys(R2_CONVENTIONS, 0)
    for seed in range(500):
        found = r2_intervals(TrialSums.of(simulate_trials(rng, num_trials)), seed=seed)
        for name, (low, high) in found.items():
            hits[name] += low <= truth[name] <= high
    assert all(at_least <= count / 500 <= 0.98 for count in hits.values()), hits


@pytest.mark.slow
def test_equal_decoders_are_rarely_called_ahead_or_behind():
    rng = np.random.default_rng(0)
    verdicts = []
    for seed in range(500):
        first = simulate_trials(rng, 40)
        second = simulate_trials(rng, 40, truth=shifted(first, 100.0))
        comparison = compare_decoders([TrialSums.of(first)], [TrialSums.of(second)], seed=seed)["r2"]
        verdicts.append(comparison.verdict)
    assert verdicts.count("ahead") / 500 < 0.06
    assert verdicts.count("behind") / 500 < 0.06
    assert verdicts.count("tie") / 500 > 0.9


@pytest.mark.filterwarnings("error")
def test_what_is_not_defined_has_no_interval(caplog):
    rng = np.random.default_rng(0)
    trials = simulate_trials(rng, 6)
    without_cue = [ScoredTrial(t.session_id, t.targets, t.predictions, t.reach & False) for t in trials]
    found = r2_intervals(TrialSums.of(without_cue))
    assert found["r2_reach"] is None and found["r2_variance_weighted_reach"] is None
    assert found["r2"][0] < trial_scores(without_cue)["r2"] < found["r2"][1]
    assert trial_scores(without_cue)["r2_reach"] is None
    assert compare_decoders([TrialSums.of(without_cue)], [TrialSums.of(without_cue)])["r2_reach"] is None
    # Only one trial moves along y: a resample without it has no R2 of y.
    still = [t.targets * [1.0, 0.0] if i else t.targets for i, t in enumerate(trials)]
    partly = [
        ScoredTrial(t.session_id, targets, targets + 1.0, t.reach)
        for t, targets in zip(trials, still, strict=True)
    ]
    found = r2_intervals(TrialSums.of(partly))
    assert found["r2"] is None and found["r2_variance_weighted"] is not None
    assert "r2 is not defined on" in caplog.text


def test_bad_trials_are_refused():
    trials = simulate_trials(np.random.default_rng(0), 4)
    sums = TrialSums.of(trials)
    with pytest.raises(InputError, match="at least one trial, got none"):
        TrialSums.of([])
    with pytest.raises(InputError, match="same test trials in the same order"):
        compare_decoders([sums], [TrialSums.of(trials[::-1])])
    with pytest.raises(InputError, match="at least one trained seed"):
        compare_decoders([sums], [])
    with pytest.raises(InputError, match=r"`level` must lie in \(0, 1\), got 95"):
        r2_intervals(sums, level=95)
    trials[1].predictions[2] = np.nan
    with pytest.raises(InputError, match="must be finite, got 1 bins"):
        TrialSums.of(trials)


def test_trials_of_rows_hold_every_scored_bin_once(tmp_path):
    rows = view_rows(load_rows(build_small_corpus(tmp_path / "built"), split="train"))
    rng = np.random.default_rng(0)
    decoded = [rng.standard_normal((row["num_bins"], 2)) for row in rows]
    trials = scored_trials(rows, decoded, label_lag=3)
    assert len(trials) == sum(len(row["trials"]) for row in rows)
    masks = [scored_bins(row) for row in rows]
    for mask in masks:
        mask[:3] = False
    expected = np.concatenate([row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)])
    np.testing.assert_array_equal(np.concatenate([trial.targets for trial in trials]), expected)
    in_reach = np.concatenate([reach_bins(row)[mask] for row, mask in zip(rows, masks, strict=True)])
    np.testing.assert_array_equal(np.concatenate([trial.reach for trial in trials]), in_reach)
    without_trials = [{**row, "trials": []} for row in rows]
    assert len(scored_trials(without_trials, decoded)) == len(rows)
    with pytest.raises(InputError, match="must have the shape of the row's behaviour"):
        scored_trials(rows, [values[1:] for values in decoded])


def test_across_sessions_the_session_is_the_unit():
    rng = np.random.default_rng(0)
    first = {f"s{i}": list(0.8 + 0.02 * rng.standard_normal(3)) for i in range(7)}
    second = {name: [np.mean(values) - 0.03 - 0.01 * rng.random()] for name, values in first.items()}
    found = compare_sessions(first, dict(reversed(second.items())))
    means = [np.array([np.mean(side[name]) for name in first]) for side in (first, second)]
    test = stats.ttest_rel(*means)
    assert found.num_sessions == 7
    assert found.difference == pytest.approx((means[0] - means[1]).mean())
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_t_test == pytest.approx(test.pvalue)
    assert found.p_wilcoxon == pytest.approx(2 / 2**7)
    assert found.verdict == "ahead"
    few = [{name: side[name] for name in list(first)[:5]} for side in (first, second)]
    assert compare_sessions(*few).p_wilcoxon is None


@pytest.mark.filterwarnings("error")
def test_the_same_difference_everywhere_is_no_division_by_zero():
    scores = {f"s{i}": [0.5] for i in range(6)}
    found = compare_sessions(scores, scores)
    assert (found.interval, found.p_t_test, found.p_wilcoxon, found.verdict) == ((0, 0), 1.0, 1.0, "tie")
    found = compare_sessions({name: [0.75] for name in scores}, scores)
    assert (found.interval, found.p_t_test, found.verdict) == ((0.25, 0.25), 0.0, "ahead")


def test_a_missing_session_or_seed_is_never_left_out_of_a_comparison():
    with pytest.raises(InputError, match="same sessions, at least two"):
        compare_sessions({"a": [0.5], "b": [0.5]}, {"a": [0.5]})
    with pytest.raises(InputError, match=r"got \[0.5, None\] in session 'b'"):
        compare_sessions({"a": [0.5], "b": [0.5, None]}, {"a": [0.5], "b": [0.5]})


def test_the_interval_of_bits_per_spike_is_that_of_resampled_windows():
    rng = np.random.default_rng(0)
    spikes = rng.poisson(50, 30).astype(float)
    null = -2.0 * spikes
    model = null + spikes * np.log(2) * rng.normal(0.3, 0.1, 30)
    values = np.stack([model, null, spikes], axis=1)
    sessions = ["a"] * 10 + ["b"] * 20
    slow = []
    for counts in _resamples(sessions, 1000, 0):
        total = values[np.repeat(np.arange(30), counts.astype(int))].sum(axis=0)
        slow.append((total[0] - total[1]) / (total[2] * np.log(2)))
    found = bits_per_spike_interval(values, sessions)
    np.testing.assert_allclose(found, np.quantile(slow, [0.025, 0.975]))
    assert bits_per_spike_interval(np.zeros((4, 3)), ["a"] * 4) is None


def test_intervals_can_be_written_as_json():
    sums = TrialSums.of(simulate_trials(np.random.default_rng(0), 5))
    assert json.loads(json.dumps(r2_intervals(sums)))["r2"] == list(r2_intervals(sums)["r2"])


@pytest.mark.parametrize(("low", "high", "said"), [(0.0, 0.1, "tie"), (-0.1, 0.0, "tie"), (1e-9, 1, "ahead")])
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, said):
    assert verdict(low, high) == said
