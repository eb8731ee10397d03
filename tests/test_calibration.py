"""Uncertainty: likelihood and coverage against known Gaussians."""

import numpy as np
import pytest

from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.calibration import coverage, fit_calibration, negative_log_likelihood

LEVELS = (0.5, 0.8, 0.95)


@pytest.fixture
def decoded():
    rng = np.random.default_rng(0)
    log_variances = rng.normal(0, 1, (20_000, 2))
    predictions = rng.normal(0, 5, (20_000, 2))
    targets = predictions + np.exp(log_variances / 2) * rng.standard_normal((20_000, 2))
    return targets, predictions, log_variances


def test_intervals_of_the_true_gaussians_cover_what_they_say(decoded):
    for level, observed in coverage(*decoded, LEVELS).items():
        assert observed == pytest.approx(level, abs=0.01)


def test_likelihood_is_that_of_the_gaussians():
    nll = negative_log_likelihood([[1.0, 0.0]], [[0.0, 0.0]], [[0.0, np.log(4.0)]])
    by_hand = (0.5 * np.log(2 * np.pi) + 0.5 + 0.5 * np.log(2 * np.pi * 4.0)) / 2
    assert nll == pytest.approx(by_hand)


def test_a_decoder_that_is_too_sure_is_calibrated_by_one_scale_for_each_target(decoded):
    targets, predictions, log_variances = decoded
    too_sure = log_variances - np.log([4.0, 9.0])
    assert coverage(targets, predictions, too_sure, [0.95])[0.95] < 0.7
    added, dof = fit_calibration(targets, predictions, too_sure)
    np.testing.assert_allclose(added, np.log([4.0, 9.0]), atol=0.05)
    assert min(dof) > 20  # as good as normal
    calibrated = too_sure + added
    assert coverage(targets, predictions, calibrated, [0.95])[0.95] == pytest.approx(0.95, abs=0.01)
    assert negative_log_likelihood(targets, predictions, calibrated) < negative_log_likelihood(
        targets, predictions, too_sure
    )


def test_heavy_tails_are_found_and_covered_at_every_level():
    rng = np.random.default_rng(1)
    log_variances = rng.normal(0, 1, (20_000, 2))
    predictions = np.zeros((20_000, 2))
    scales = np.exp(log_variances / 2) * [1.0, 3.0]
    targets = scales * np.stack([rng.standard_t(5, 20_000), rng.standard_t(9, 20_000)], axis=1)
    added, dof = fit_calibration(targets[:10_000], predictions[:10_000], log_variances[:10_000])
    np.testing.assert_allclose(dof, [5, 9], rtol=0.2)
    np.testing.assert_allclose(added, np.log([5 / 3, 9 * 9 / 7]), atol=0.1)  # the variances of those
    held_out = targets[10_000:], predictions[10_000:], (log_variances + added)[10_000:]
    for level, observed in coverage(*held_out, LEVELS, dof).items():
        assert observed == pytest.approx(level, abs=0.015)
    assert coverage(*held_out, [0.5])[0.5] > 0.54  # normal intervals of the same variance are too wide
    assert negative_log_likelihood(*held_out, dof) < negative_log_likelihood(*held_out)


def test_a_target_that_is_decoded_exactly_stays_finite():
    added, dof = fit_calibration([[1.0], [1.0]], [[1.0], [1.0]], [[0.0], [0.0]])
    assert np.isfinite(added).all()
    assert min(dof) > 2


def test_values_that_do_not_fit_are_refused(decoded):
    targets, predictions, log_variances = decoded
    with pytest.raises(InputError, match="one shape"):
        negative_log_likelihood(targets[1:], predictions, log_variances)
    with pytest.raises(InputError, match="must be finite"):
        fit_calibration(targets * np.nan, predictions, log_variances)
    with pytest.raises(InputError, match="2 numbers above 2"):
        coverage(targets, predictions, log_variances, LEVELS, [1.0, 5.0])
    with pytest.raises(InputError, match=r"`levels` must lie in \(0, 1\), got \[95\]"):
        coverage(targets, predictions, log_variances, [95])
