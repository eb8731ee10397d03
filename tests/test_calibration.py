"""Uncertainty: likelihood and coverage against known Gaussians."""

import numpy as np
import pytest

from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.calibration import calibration_scale, coverage, gaussian_nll

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
    nll = gaussian_nll([[1.0, 0.0]], [[0.0, 0.0]], [[0.0, np.log(4.0)]])
    by_hand = (0.5 * np.log(2 * np.pi) + 0.5 + 0.5 * np.log(2 * np.pi * 4.0)) / 2
    assert nll == pytest.approx(by_hand)


def test_a_decoder_that_is_too_sure_is_calibrated_by_one_scale_for_each_target(decoded):
    targets, predictions, log_variances = decoded
    too_sure = log_variances - np.log([4.0, 9.0])
    assert coverage(targets, predictions, too_sure, [0.95])[0.95] < 0.7
    scale = calibration_scale(targets, predictions, too_sure)
    np.testing.assert_allclose(scale, np.log([4.0, 9.0]), atol=0.05)
    calibrated = too_sure + scale
    assert coverage(targets, predictions, calibrated, [0.95])[0.95] == pytest.approx(0.95, abs=0.01)
    assert gaussian_nll(targets, predictions, calibrated) < gaussian_nll(targets, predictions, too_sure)


def test_values_that_do_not_fit_are_refused(decoded):
    targets, predictions, log_variances = decoded
    with pytest.raises(InputError, match="one shape"):
        gaussian_nll(targets[1:], predictions, log_variances)
    with pytest.raises(InputError, match="must be finite"):
        calibration_scale(targets * np.nan, predictions, log_variances)
    with pytest.raises(InputError, match=r"`levels` must lie in \(0, 1\), got \[95\]"):
        coverage(targets, predictions, log_variances, [95])
