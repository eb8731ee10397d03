"""Ridge and Kalman decoders on rows with known answers."""

import numpy as np
import pytest
from scipy.linalg import lstsq

from rpnt_hf.data.rows import scored_bins
from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.comparators import KalmanDecoder, RidgeDecoder, lagged_counts
from rpnt_hf.metrics import r2_scores

NUM_UNITS = 12


def make_row(rng, weights, num_bins=300, num_context_bins=0, lag=1, unit_ids=None):
    """A smooth velocity drives Poisson counts that lead it by `lag` bins."""
    smooth = np.exp(-np.arange(20) / 5.0)
    velocity = np.stack(
        [np.convolve(rng.standard_normal(num_bins + lag), smooth)[: num_bins + lag] for _ in "xy"], 1
    )
    counts = rng.poisson(np.exp(0.5 + velocity[lag:] @ weights)).clip(0, 255).astype(np.uint8)
    behavior = velocity[:num_bins].astype(np.float32)
    return {
        "session_id": "a",
        "start_time": 0.0,
        "num_bins": num_bins,
        "num_context_bins": num_context_bins,
        "unit_ids": unit_ids or [str(unit) for unit in range(NUM_UNITS)],
        "counts": counts.tobytes(),
        "observed": np.ones(num_bins, dtype=np.uint8).tobytes(),
        "behavior": behavior.tobytes(),
        "behavior_names": ["vel_x", "vel_y"],
        "trials": [],
    }


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    weights = 0.3 * rng.standard_normal((2, NUM_UNITS))
    return [make_row(rng, weights, num_context_bins=10 * (index > 3)) for index in range(6)]


def targets_of(row):
    return np.frombuffer(row["behavior"], np.float32).reshape(-1, 2)


def test_lagged_counts_by_hand():
    counts = np.array([[1, 10], [2, 20], [3, 30]], dtype=np.uint8)
    assert lagged_counts(counts, 3).tolist() == [
        [1, 10, 0, 0, 0, 0],
        [2, 20, 1, 10, 0, 0],
        [3, 30, 2, 20, 1, 10],
    ]
    assert lagged_counts(counts, 1).tolist() == counts.tolist()


@pytest.mark.parametrize("decoder", [RidgeDecoder(num_lags=5), KalmanDecoder()])
def test_decoders_find_a_velocity_that_drives_the_counts(rows, decoder):
    decoder.fit(rows[:4], rows[4:5])
    predictions = decoder.predict(rows[5])
    assert predictions.shape == (300, 2) and predictions.dtype == np.float32
    assert r2_scores(targets_of(rows[5]), predictions, scored_bins(rows[5]))["r2"] > 0.6


@pytest.mark.parametrize("decoder", [RidgeDecoder(num_lags=5), KalmanDecoder()])
def test_decoders_are_causal(rows, decoder):
    decoder.fit(rows[:4], rows[4:5])
    counts = np.frombuffer(rows[5]["counts"], np.uint8).reshape(300, NUM_UNITS).copy()
    counts[150:] = 7
    changed = decoder.predict(rows[5] | {"counts": counts.tobytes()})
    np.testing.assert_array_equal(changed[:150], decoder.predict(rows[5])[:150])
    assert not np.allclose(changed[150:], decoder.predict(rows[5])[150:])


def test_ridge_without_penalty_is_least_squares_within_rows(rows):
    decoder = RidgeDecoder(num_lags=2, alphas=[0.0]).fit(rows[:2], rows[4:5])
    inputs, targets = [], []
    for row in rows[:2]:
        counts = np.frombuffer(row["counts"], np.uint8).reshape(300, NUM_UNITS).astype(float)
        before = np.vstack([np.zeros(NUM_UNITS), counts[:-1]])
        inputs.append(np.hstack([counts, before, np.ones((300, 1))]))
        targets.append(targets_of(row))
    weights = lstsq(np.vstack(inputs), np.vstack(targets))[0]
    np.testing.assert_allclose(decoder.predict(rows[0]), inputs[0] @ weights, atol=1e-3)


def test_ridge_chooses_the_penalty_on_the_validation_rows(rows):
    few, alphas = [rows[0] | {"num_context_bins": 200}], [0.01, 30.0, 1e6]
    mask = scored_bins(rows[4])
    scores = [
        r2_scores(targets_of(rows[4]), RidgeDecoder(10, [alpha]).fit(few, rows[4:5]).predict(rows[4]), mask)[
            "r2"
        ]
        for alpha in alphas
    ]
    assert np.argmax(scores) == 1
    assert RidgeDecoder(10, alphas).fit(few, rows[4:5]).alpha == 30.0


def test_the_kalman_filter_chooses_the_lag_of_the_counts():
    rng = np.random.default_rng(1)
    weights = 0.3 * rng.standard_normal((2, NUM_UNITS))
    rows = [make_row(rng, weights, num_bins=600, lag=2) for _ in range(4)]
    assert KalmanDecoder().fit(rows[:3], rows[3:]).lag == 2


def test_bins_that_are_not_scored_are_not_learned_from(rows):
    behavior = targets_of(rows[0]).copy()
    behavior[:50] = 1e6
    changed = [rows[0] | {"behavior": behavior.tobytes(), "num_context_bins": 50}, *rows[1:4]]
    plain = [rows[0] | {"num_context_bins": 50}, *rows[1:4]]
    for kind in (RidgeDecoder, KalmanDecoder):
        first, second = kind().fit(plain, rows[4:5]), kind().fit(changed, rows[4:5])
        np.testing.assert_allclose(first.predict(rows[5]), second.predict(rows[5]), atol=1e-5)


def test_a_silent_unit_is_no_obstacle(rows):
    quiet = []
    for row in rows:
        counts = np.frombuffer(row["counts"], np.uint8).reshape(300, NUM_UNITS).copy()
        counts[:, 3] = 0
        quiet.append(row | {"counts": counts.tobytes()})
    for decoder in (RidgeDecoder(), KalmanDecoder()):
        assert np.isfinite(decoder.fit(quiet[:4], quiet[4:5]).predict(quiet[5])).all()


@pytest.mark.parametrize("kind", [RidgeDecoder, KalmanDecoder])
def test_rows_with_other_units_and_rows_without_behavior_are_refused(rows, kind):
    other = rows[4] | {"unit_ids": [f"other {unit}" for unit in range(NUM_UNITS)]}
    with pytest.raises(
        InputError, match="must have the 12 units that were fitted, got 12 units in session 'a'"
    ):
        kind().fit(rows[:4], [other])
    with pytest.raises(
        InputError, match="`train_rows` must have scored bins with behaviour, got none in 1 rows"
    ):
        kind().fit([rows[0] | {"num_context_bins": 300}], rows[4:5])
    with pytest.raises(InputError, match="must be fitted before it predicts"):
        kind().predict(rows[0])
    with pytest.raises(InputError, match="units that were fitted"):
        kind().fit(rows[:4], rows[4:5]).predict(other)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="`num_lags` of at least 1"):
        RidgeDecoder(num_lags=0)
    with pytest.raises(InputError, match="`lags` that are not negative"):
        KalmanDecoder(lags=[-1])
