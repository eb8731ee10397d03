"""Sampling over sessions by temperature."""

import numpy as np
import pytest
from small_corpus import make_recording

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.sampling import WindowSampler
from rpnt_hf.errors import ConfigurationError

SIZES = {"large": 640, "middle": 40, "small": 10}  # windows of 10 bins


def plain_rows(sizes=SIZES):
    return [
        {"session_id": name, "num_bins": 10 * number, "num_context_bins": 0} for name, number in sizes.items()
    ]


def shares(sampler, epoch=0):
    batches = sampler.batches(epoch)
    rows = np.concatenate([batch.table[:, 0] for batch in batches])
    return np.bincount(rows, minlength=len(SIZES)) / len(rows)


def make(temperature, sizes=SIZES, **options):
    options = {"seed": 3, "pairs": True} | options
    return WindowSampler(plain_rows(sizes), 10, 32, session_temperature=temperature, **options)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, float("inf")])
def test_sessions_give_shares_by_the_power_of_their_size(temperature):
    expected = np.array(list(SIZES.values()), float) ** (1 / temperature)
    np.testing.assert_allclose(shares(make(temperature)), expected / expected.sum(), atol=0.01)


def test_an_epoch_is_as_long_at_every_temperature():
    numbers = [len(make(temperature).windows(0)) for temperature in (1.0, 3.0, 100.0)]
    assert numbers[0] == numbers[1] == numbers[2]


def test_of_a_large_session_no_window_comes_twice_and_another_part_each_epoch():
    sampler = make(5.0)
    chosen = []
    for epoch in (0, 1):
        table = sampler.windows(epoch).table
        large = table[table[:, 0] == 0]
        assert len(np.unique(large[:, 1])) == len(large) < 640
        chosen.append(set((large[:, 1] // 10).tolist()))
    assert chosen[0] != chosen[1] and len(chosen[0] | chosen[1]) > len(chosen[0])


def test_of_a_small_session_every_window_comes_equally_often_with_seeds_of_its_own():
    table = make(float("inf")).windows(0).table
    small = table[table[:, 0] == 2]
    _, times = np.unique(small[:, 1], return_counts=True)
    assert times.max() - times.min() <= 1 and times.min() > 10
    assert len(np.unique(table[:, 4])) == len(table)


def test_no_pair_holds_the_same_bins_twice():
    for batch in make(float("inf")).batches(0):
        table = batch.table
        for first, second in zip(table[:-1:2], table[1::2], strict=True):
            if first[0] == second[0]:
                assert first[1] != second[1]


def test_the_order_is_a_function_of_seed_and_epoch():
    one, other = make(4.0), make(4.0)
    other.batches(7)
    assert all(a == b for a, b in zip(one.batches(1), other.batches(1), strict=True))
    assert any(a != b for a, b in zip(one.batches(1), one.batches(2), strict=False))


def test_one_is_what_it_was_before_there_was_a_temperature(tmp_path):
    folder = build_dataset([make_recording("a"), make_recording("b", seed=1)], tmp_path, BuilderConfig(0.05))
    rows = view_rows(load_rows(folder))
    for pairs in (True, False):
        options = {"seed": 1, "pairs": pairs}
        plain = WindowSampler(rows, 20, 8, **options).batches(2)
        tempered = WindowSampler(rows, 20, 8, session_temperature=1.0, **options).batches(2)
        assert all(a == b for a, b in zip(plain, tempered, strict=True))


def test_validation_takes_every_window_at_every_temperature():
    assert make(9.0, training=False).windows(0) == make(1.0, training=False).windows(0)


@pytest.mark.parametrize("temperature", [0.5, 0.0, float("nan")])
def test_a_temperature_below_one_is_refused(temperature):
    with pytest.raises(ConfigurationError, match="`session_temperature` must be at least 1"):
        make(temperature)
