"""Scores, against scikit-learn and against sums done by hand."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from rpnt_hf.errors import InputError
from rpnt_hf.metrics import bits_per_spike, r2_scores


@pytest.fixture
def decoded():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((4, 25, 2)) * [1.0, 5.0]
    return targets, targets + rng.standard_normal(targets.shape), rng.random((4, 25)) < 0.6


def test_r2_scores_equal_those_of_scikit_learn(decoded):
    targets, predictions, mask = decoded
    scores = r2_scores(targets, predictions, mask)
    assert scores["r2"] == pytest.approx(r2_score(targets[mask], predictions[mask]), abs=1e-12)
    weighted = r2_score(targets[mask], predictions[mask], multioutput="variance_weighted")
    assert scores["r2_variance_weighted"] == pytest.approx(weighted, abs=1e-12)
    assert scores["r2"] != pytest.approx(scores["r2_variance_weighted"], abs=0.01)


def test_r2_by_hand():
    assert r2_scores([[0.0], [1.0], [2.0]], [[0.0], [1.0], [1.0]])["r2"] == pytest.approx(0.5)
    assert r2_scores([[0.0], [1.0]], [[0.5], [0.5]])["r2"] == pytest.approx(0.0)


def test_masked_values_do_not_count_even_where_they_are_nan(decoded):
    targets, predictions, mask = decoded
    scores = r2_scores(targets, predictions, mask)
    targets[~mask] = np.nan
    predictions[~mask] = 1e9
    assert r2_scores(targets, predictions, mask) == scores


def test_a_constant_target_has_no_r2_and_the_other_one_still_has():
    targets = np.stack([np.arange(5.0), np.full(5, 3.0)], axis=1)
    predictions = targets + 0.5
    scores = r2_scores(targets, predictions)
    assert scores["r2"] is None
    assert scores["r2_variance_weighted"] == pytest.approx(r2_score(targets[:, 0], predictions[:, 0]))
    assert r2_scores(targets[:, 1:], predictions[:, 1:]) == {"r2": None, "r2_variance_weighted": None}
    assert r2_scores(targets[:1], predictions[:1])["r2"] is None


def test_r2_of_bad_input_is_refused(decoded):
    targets, predictions, mask = decoded
    with pytest.raises(InputError, match="at least one bin, got none"):
        r2_scores(targets, predictions, np.zeros_like(mask))
    with pytest.raises(InputError, match=r"one shape \(..., K\), got \(4, 25, 2\) and \(4, 24, 2\)"):
        r2_scores(targets, predictions[:, 1:])
    with pytest.raises(InputError, match=r"`mask` must have shape \(4, 25\)"):
        r2_scores(targets, predictions, mask[:2])
    predictions[mask] = np.nan
    with pytest.raises(InputError, match="`predictions` must be finite"):
        r2_scores(targets, predictions, mask)


def test_bits_per_spike_by_hand():
    # Model 2 ln 2 - 2 on the bin with spikes and 0 on the other one; null 2 ln 1 - 1 - 1.
    log_rates = np.array([[np.log(2.0)], [-50.0]])
    assert bits_per_spike(log_rates, [[2], [0]], [1.0]) == pytest.approx(1.0)


def test_the_null_model_has_zero_bits_per_spike():
    rng = np.random.default_rng(0)
    counts, null_rates = rng.poisson(1.5, (30, 4)), np.array([0.5, 1.0, 1.5, 2.0])
    log_rates = np.broadcast_to(np.log(null_rates), counts.shape)
    assert bits_per_spike(log_rates, counts, null_rates) == pytest.approx(0.0, abs=1e-12)


def test_bits_per_spike_scores_masked_entries_only():
    rng = np.random.default_rng(1)
    counts, log_rates, mask = (
        rng.poisson(2.0, (30, 4)),
        rng.standard_normal((30, 4)),
        rng.random((30, 4)) < 0.5,
    )
    score = bits_per_spike(log_rates, counts, [2.0] * 4, mask)
    log_rates[~mask] = np.nan
    assert bits_per_spike(log_rates, counts, [2.0] * 4, mask) == score
    rates = np.exp(log_rates)
    likelihood = (counts * np.log(rates) - rates)[mask].sum() - (counts * np.log(2.0) - 2.0)[mask].sum()
    assert score == pytest.approx(likelihood / counts[mask].sum() / np.log(2))


def test_units_that_never_fired_in_training_are_left_out():
    counts, log_rates = np.array([[1, 3], [2, 1]]), np.zeros((2, 2))
    assert bits_per_spike(log_rates, counts, [0.5, 0.0]) == bits_per_spike(
        log_rates[:, :1], counts[:, :1], [0.5]
    )


def test_bits_per_spike_of_bad_input_is_refused():
    with pytest.raises(InputError, match="at least one spike, got none"):
        bits_per_spike(np.zeros((3, 2)), np.zeros((3, 2)), [1.0, 1.0])
    with pytest.raises(InputError, match=r"`null_rates` must broadcast to \(3, 2\), got \(3,\)"):
        bits_per_spike(np.zeros((3, 2)), np.ones((3, 2)), [1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="`counts` must not be negative"):
        bits_per_spike(np.zeros((3, 2)), -np.ones((3, 2)), [1.0, 1.0])
