"""Hashed random numbers: uniform, and unrelated between seeds, counters and purposes."""

import numpy as np
import pytest
from scipy import stats

from rpnt_hf.random_rpnt import random_bits, uniforms

SEEDS = {
    "neighbours": np.arange(400),
    "powers of two": 2 ** np.arange(62),
    "negative": -np.arange(1, 400),
    "random": np.random.default_rng(0).integers(0, 2**63, 400),
}


@pytest.mark.parametrize("name", SEEDS)
def test_numbers_are_uniform_over_counters_and_over_seeds(name):
    seeds = SEEDS[name]
    draws = uniforms(seeds[:, None], "test", np.arange(500))
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    # One p-value for each seed, and one for each counter: uniform themselves where all is well.
    for values in (draws, draws.T):
        p_values = [stats.kstest(value, "uniform").pvalue for value in values[:100]]
        assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_every_bit_is_set_half_of_the_time_and_flips_with_every_bit_of_the_seed():
    seeds = np.random.default_rng(0).integers(0, 2**63, 2000)
    bits = random_bits(seeds, "test", np.zeros(1, int))
    set_ = np.unpackbits(bits.view(np.uint8).reshape(-1, 8), axis=1)
    np.testing.assert_allclose(set_.mean(axis=0), 0.5, atol=0.06)
    for bit in range(0, 63, 7):
        other = random_bits(seeds ^ (1 << bit), "test", np.zeros(1, int))
        flipped = np.unpackbits((bits ^ other).view(np.uint8).reshape(-1, 8), axis=1)
        np.testing.assert_allclose(flipped.mean(axis=0), 0.5, atol=0.06)


def test_neighbouring_seeds_counters_and_purposes_are_unrelated():
    draws = uniforms(np.arange(301)[:, None], "test", np.arange(301))
    others = uniforms(np.arange(301)[:, None], "other", np.arange(301))
    pairs = {
        "seeds": (draws[1:], draws[:-1]),
        "counters": (draws[:, 1:], draws[:, :-1]),
        "both": (draws[1:, :-1], draws[:-1, 1:]),
        "purposes": (draws, others),
    }
    for first, second in pairs.values():
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(first.size)
    table = np.histogram2d(draws[1:].ravel(), draws[:-1].ravel(), bins=16)[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    assert len(np.unique(np.concatenate([draws, others]))) == draws.size + others.size


def test_a_number_depends_on_nothing_but_seed_purpose_and_counter():
    whole = random_bits(np.arange(10)[:, None], "test", np.arange(20))
    assert (random_bits(np.array([7]), "test", np.array([3, 11])) == whole[7, [3, 11]]).all()
    # Fixed for good: numbers must not change between versions, or a resumed run would draw others.
    assert whole[1, :2].tolist() == [2857116520677348334, 15356461197280951517]
