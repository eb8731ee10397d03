"""Warped windows: conserved spikes, faster movement along the same path, no look into the future."""

import numpy as np
import pytest
from small_corpus import build_small_corpus

from rpnt_hf.data.augmentation import warp_time
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.errors import ConfigurationError
from rpnt_hf.processing_rpnt import RPNTProcessor

SEEDS = np.arange(40, dtype=np.int64)
BINS = 30


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    label_mask = np.ones((40, BINS), dtype=bool)
    label_mask[:, :3] = False
    return {
        "spike_counts": rng.poisson(2.0, (40, 2, BINS, 5)).astype(np.uint8),
        "bin_mask": np.ones((40, 2, BINS), dtype=bool),
        "labels": np.where(label_mask[..., None], rng.standard_normal((40, BINS, 2)), 0).astype(np.float32),
        "label_mask": label_mask,
        "unit_ids": np.zeros((40, 2, 5)),
    }


def factors_of(warped, arrays):
    """Counts per bin are means, so that a long window keeps its rate; labels of constant velocity scale."""
    ones = {**arrays, "labels": np.ones_like(arrays["labels"])}
    ones["label_mask"] = np.ones_like(arrays["label_mask"])
    return warp_time(ones, SEEDS, 0.25, ["cm/s", "cm/s"])["labels"][:, 0, 0]


def test_factors_lie_in_their_range_and_differ_between_windows(arrays):
    factors = factors_of(None, arrays)
    assert factors.min() >= 1 / 1.25 - 1e-6 and factors.max() <= 1.25 + 1e-6
    assert factors.min() < 0.9 and factors.max() > 1.1
    assert len(np.unique(factors.round(6))) == 40
    assert abs(np.log(factors).mean()) < 0.05


def test_a_window_against_a_slow_loop_over_fine_time(arrays):
    """Every old bin is cut into 1,000 slices, and new bins gather those that they cover."""
    warped = warp_time(arrays, SEEDS, 0.25, ["cm/s", "cm"])
    factors, fine = factors_of(None, arrays), 1000
    for window in (0, 1, 2):
        middles = (np.arange(BINS * fine) + 0.5) / fine
        new_bin = (middles / factors[window]).astype(int)
        for bin_ in (0, 7, 20):
            mine = new_bin == bin_
            if not mine.any() or middles[mine].max() + 0.01 < (bin_ + 1) * factors[window]:
                continue
            old = middles[mine].astype(int)
            expected = arrays["spike_counts"][window, 1, old].mean(axis=0)
            np.testing.assert_allclose(warped["spike_counts"][window, 1, bin_], expected, atol=0.02)
            assert warped["label_mask"][window, bin_] == arrays["label_mask"][window, old].all()
            if warped["label_mask"][window, bin_]:
                expected = arrays["labels"][window, old].mean(axis=0) * [factors[window], 1.0]
                np.testing.assert_allclose(warped["labels"][window, bin_], expected, atol=0.02)


def test_the_path_stays_the_same(arrays):
    smooth = {**arrays, "label_mask": np.ones_like(arrays["label_mask"])}
    times = np.arange(BINS) / BINS
    smooth["labels"] = np.broadcast_to(np.stack([np.sin(3 * times), times], 1), (40, BINS, 2)).astype(
        np.float32
    )
    warped = warp_time(smooth, SEEDS, 0.25, ["cm/s", "cm/s"])
    before, after = (np.cumsum(part["labels"], axis=1) for part in (smooth, warped))
    factors = factors_of(None, arrays)
    for window in range(40):
        last = min(int(BINS / factors[window]), BINS) - 1
        place = (last + 1) * factors[window] - 1
        expected = [np.interp(place, np.arange(BINS), before[window, :, k]) for k in (0, 1)]
        np.testing.assert_allclose(after[window, last], expected, atol=1e-3)


def test_bins_beyond_the_window_are_not_recorded_and_nothing_comes_from_later(arrays):
    warped = warp_time(arrays, SEEDS, 0.25, ["cm/s", "cm/s"])
    factors = factors_of(None, arrays)
    fast = int(factors.argmax())
    assert not warped["bin_mask"][fast, 0, -1] and warped["bin_mask"][fast, 0, 0]
    assert (warped["spike_counts"][~warped["bin_mask"]] == 0).all()
    changed = {**arrays, "spike_counts": arrays["spike_counts"].copy()}
    changed["spike_counts"][:, :, 15:] += 1
    again = warp_time(changed, SEEDS, 0.25, ["cm/s", "cm/s"])
    for window in range(40):
        safe = int(15 / factors[window] + 1e-9)
        np.testing.assert_allclose(
            again["spike_counts"][window, :, :safe], warped["spike_counts"][window, :, :safe]
        )


def test_the_collator_warps_for_decoding_only(tmp_path):
    rows = view_rows(load_rows(build_small_corpus(tmp_path / "built"), split="train"))
    processor = RPNTProcessor.from_rows(rows)
    windows = WindowSampler(rows, 16, 4).batches(0)[0]
    plain, warped = (
        WindowCollator(rows, processor, time_warp=time_warp)(WindowDataset(rows).__getitems__(windows))
        for time_warp in (0.0, 0.3)
    )
    assert plain["spike_counts"].shape == warped["spike_counts"].shape
    assert not np.allclose(plain["spike_counts"].float(), warped["spike_counts"])
    with pytest.raises(ConfigurationError, match=r"0 where counts are reconstructed, got 0\.3"):
        WindowCollator(rows, processor, time_warp=0.3, masking=MaskingConfig())
    with pytest.raises(ConfigurationError, match="must be 0 or more"):
        WindowCollator(rows, processor, time_warp=-0.1)
