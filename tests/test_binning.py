"""Counts and behaviour per bin, with results worked out by eye, and properties of any spike train."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpnt_hf.data.binning import bin_behavior, bin_spikes, count_bins, derive_velocity
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.errors import BinningError


def make_recording(spike_times, obs_intervals):
    return Recording.from_arrays(
        "day1", [np.asarray(times) for times in spike_times], obs_intervals=obs_intervals
    )


def make_series(times, values):
    return BehaviorSeries("speed", np.asarray(times), np.asarray(values), [""], "cm/s")


def test_counts_of_a_spike_train_written_by_hand():
    recording = make_recording([[0.05, 0.15, 0.16, 0.29], [], [0.31, 0.99]], [[0.0, 0.4], [0.9, 1.1]])
    first, second = bin_spikes(recording, 0.1)
    assert first.counts.tolist() == [[1, 0, 0], [2, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert second.counts.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert first.counts.dtype == np.uint8 and first.observed.all() and len(first.observed) == 4
    assert (first.start_time, second.start_time) == (0.0, 0.9)


def test_spikes_in_gaps_and_behind_the_last_whole_bin_are_left_out():
    recording = make_recording([[-0.01, 0.0, 0.29, 0.35, 0.5]], [[0.0, 0.35]])
    assert bin_spikes(recording, 0.1)[0].counts.ravel().tolist() == [1, 0, 1]


@pytest.mark.parametrize("bin_size", [0.1, 0.05, 0.01, 0.02, 1 / 3])
@pytest.mark.parametrize("start", [0.0, 5.55, 1234.1, 9_000.7])
def test_a_spike_on_every_edge_lands_in_exactly_one_bin(bin_size, start):
    num_bins = 500
    times = start + np.arange(num_bins + 1) * bin_size
    counts = bin_spikes(make_recording([times], [[start, start + num_bins * bin_size]]), bin_size)[0].counts
    assert counts.ravel().tolist() == [1] * num_bins  # the last edge belongs to no bin


def test_a_spike_a_float_error_below_an_edge_goes_to_the_later_bin():
    recording = make_recording([[np.nextafter(0.3, 0.0)]], [[0.0, 1.0]])
    assert bin_spikes(recording, 0.1)[0].counts.ravel().tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_neighbouring_intervals_share_no_spike_and_lose_none():
    edges = np.array([0.0, 0.1 + 0.2, 0.7, 1.1, 2.1])
    times = np.unique(np.concatenate([edges[1:-1], np.nextafter(edges[1:], 0), np.nextafter(edges[:-1], 3)]))
    recording = make_recording([times], np.stack([edges[:-1], edges[1:]], axis=1))
    assert sum(int(interval.counts.sum()) for interval in bin_spikes(recording, 0.1)) == len(times)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1.0, 12.0, allow_nan=False), max_size=60),
    st.lists(st.floats(0.0, 11.0, allow_nan=False), min_size=2, max_size=8, unique=True),
    st.floats(0.02, 1.0),
)
def test_binning_conserves_spikes(times, edges, bin_size):
    """Every spike inside the bins is counted once; no other is."""
    edges = np.sort(edges)[: len(edges) // 2 * 2].reshape(-1, 2)
    times = np.unique(times)
    recording = make_recording([times, []], edges)
    lengths = np.array([count_bins(start, stop, bin_size) for start, stop in edges])
    if not lengths.any():
        with pytest.raises(BinningError, match="must fit into an observed interval"):
            bin_spikes(recording, bin_size)
        return
    intervals = bin_spikes(recording, bin_size)
    assert [len(interval.counts) for interval in intervals] == lengths[lengths > 0].tolist()
    for interval in intervals:
        end = interval.start_time + len(interval.counts) * bin_size
        inside = np.count_nonzero((times >= interval.start_time) & (times < end - 1e-5 * bin_size))
        at_most = np.count_nonzero((times >= interval.start_time) & (times < end + 1e-5 * bin_size))
        assert inside <= interval.counts[:, 0].sum() <= at_most
        centres = interval.start_time + (np.arange(len(interval.counts)) + 0.5) * bin_size
        reference = (np.abs(times[None] - centres[:, None]) < 0.4999 * bin_size).sum(axis=1)
        assert (interval.counts[:, 0] >= reference).all()
        assert not interval.counts[:, 1].any()


@pytest.mark.parametrize("bin_size", [0.0, -0.1, np.nan, np.inf])
def test_a_bin_size_that_is_not_positive_is_refused(bin_size):
    with pytest.raises(BinningError, match="`bin_size` must be above 0 s"):
        bin_spikes(make_recording([[0.1]], [[0.0, 1.0]]), bin_size)


def test_a_bin_longer_than_every_interval_is_refused():
    with pytest.raises(BinningError, match=r"got 2.0 s where the longest lasts 1 s in session 'day1'"):
        bin_spikes(make_recording([[0.1]], [[0.0, 1.0], [3.0, 3.5]]), 2.0)


def test_an_interval_shorter_than_a_bin_is_left_out_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        intervals = bin_spikes(make_recording([[3.1]], [[0.0, 0.5], [3.0, 4.0]]), 1.0)
    assert [interval.index for interval in intervals] == [
        1
    ] and "1 of 2 observed intervals are shorter than one bin" in caplog.text


def test_255_spikes_in_a_bin_are_counted_and_256_are_refused():
    times = np.linspace(0.5, 0.59, 256)
    assert bin_spikes(make_recording([times[1:]], [[0.0, 1.0]]), 0.1)[0].counts[5, 0] == 255
    with pytest.raises(BinningError, match=r"got 256 of unit '1' in the bin of 0.1 s at 0.5 s"):
        bin_spikes(make_recording([[], times], [[0.0, 1.0]]), 0.1)


def test_behavior_of_a_bin_is_the_mean_of_the_samples_inside():
    series = make_series([0.0, 0.04, 0.1, 0.13, 0.2], [1.0, 3.0, 5.0, 9.0, 100.0])
    assert bin_behavior(series, 0.0, 2, 0.1).ravel().tolist() == [2.0, 7.0]


def test_a_slow_series_is_interpolated_at_bin_centres_but_not_outside():
    series = make_series([0.0, 1.0, 2.0], [0.0, 10.0, 0.0])
    binned = bin_behavior(series, -0.25, 5, 0.5).ravel()  # centres at 0, 0.5, 1, 1.5, 2
    np.testing.assert_allclose(binned, [0.0, 5.0, 10.0, 5.0, 0.0], atol=1e-6)
    outside = bin_behavior(series, 2.1, 3, 0.5).ravel()
    assert np.isnan(outside).all()


def test_nothing_is_interpolated_across_a_gap():
    times = np.concatenate([np.arange(10) * 0.1, 2.0 + np.arange(10) * 0.1])
    binned = bin_behavior(make_series(times, np.ones(20)), 0.0, 60, 0.05).ravel()
    centres = (np.arange(60) + 0.5) * 0.05
    assert np.isnan(binned[(centres > 0.95) & (centres < 2.0)]).all()
    assert (
        np.isfinite(binned[centres < 0.9]).all()
        and np.isfinite(binned[(centres > 2.0) & (centres < 2.9)]).all()
    )


def test_a_bin_with_a_nan_sample_is_nan():
    series = make_series([0.0, 0.05, 0.1, 0.15], [1.0, np.nan, 3.0, 5.0])
    np.testing.assert_array_equal(bin_behavior(series, 0.0, 2, 0.1).ravel(), np.float32([np.nan, 4.0]))


def test_samples_at_bin_rate_keep_their_bins_over_a_long_recording():
    series = make_series(np.arange(200_000) * 0.05, np.arange(200_000.0))
    np.testing.assert_array_equal(
        bin_behavior(series, 0.0, 200_000, 0.05).ravel(), np.arange(200_000, dtype=np.float32)
    )


def test_derived_velocity_uses_no_later_sample():
    times = np.arange(50) * 0.1
    positions = np.random.default_rng(0).normal(size=(50, 2))
    changed = positions.copy()
    changed[30:] += 5.0
    first, second = (
        derive_velocity(BehaviorSeries("cursor_pos", times, x, ["x", "y"], "cm"))
        for x in (positions, changed)
    )
    np.testing.assert_array_equal(first.values[:30], second.values[:30])
    assert (first.values[30] != second.values[30]).all()
    np.testing.assert_allclose(first.values[1:], np.diff(positions, axis=0) / 0.1, rtol=1e-4)
    assert (first.name, first.unit) == ("cursor_vel", "cm/s") and np.isnan(first.values[0]).all()


def test_derived_velocity_is_unknown_behind_a_gap():
    series = make_series([0.0, 0.1, 0.2, 1.2, 1.3], [0.0, 1.0, 2.0, 9.0, 10.0])
    np.testing.assert_array_equal(
        np.isnan(derive_velocity(series).values.ravel()), [True, False, False, True, False]
    )


def test_real_counts_at_the_source_bin_size_are_all_there(shared_data):
    recording = read_nwb(next(shared_data.glob("reach/sub-X*.nwb")))
    intervals = recording.bin_spikes(0.05)
    assert sum(int(interval.counts.sum()) for interval in intervals) == 1_073_553
    assert sum(len(interval.counts) for interval in intervals) == 22_263
