import numpy as np
import pytest
import torch
from small_corpus import build_small_corpus, make_recording

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import (
    label_statistics,
    load_rows,
    select_sessions,
    select_trials,
    unit_means,
    view_rows,
)
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.data.windows import (
    MaskingConfig,
    Window,
    WindowCollator,
    WindowDataset,
    Windows,
    WindowSampler,
)
from rpnt_hf.errors import ConfigurationError, DatasetError, InputError
from rpnt_hf.processing_rpnt import RPNTProcessor


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def rows(corpus):
    return view_rows(load_rows(corpus))


@pytest.fixture(scope="module")
def processor(rows):
    return RPNTProcessor.from_rows(rows)


def collate(rows, processor, windows, **options):
    return WindowCollator(rows, processor, **options)(WindowDataset(rows).__getitems__(windows))


def equal(first, second):
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def times_of(row, start, stop):
    """Bins of the recording, as whole numbers, that lie in bins [start, stop) of a row."""
    first = round(row["start_time"] / row["bin_size"])
    return set(range(first + start, first + stop))


@pytest.mark.parametrize("pairs", [False, True])
def test_no_bin_of_a_test_trial_is_in_a_training_window(corpus, rows, pairs):
    held_out = {
        (row["session_id"], time)
        for split in ("validation", "test")
        for row in view_rows(load_rows(corpus, split=split))
        for trial in row["trials"]
        for time in times_of(row, trial["start_bin"], trial["stop_bin"])
    }
    sampler = WindowSampler(rows, 25, 4, pairs=pairs)
    for epoch in range(3):
        for window in sampler.windows(epoch):
            row = rows[window.row]
            for time in times_of(row, window.start, window.stop):
                assert (row["session_id"], time) not in held_out


def test_rows_are_views_of_the_file(rows):
    counts = row_counts(rows[0])
    assert not counts.flags.owndata
    assert not counts.flags.writeable  # the file is mapped for reading
    window = WindowSampler(rows, 25, 4).windows(0)[0]
    assert np.shares_memory(WindowDataset(rows)[window].counts, row_counts(rows[window.row]))


def test_the_order_is_a_function_of_seed_and_epoch(rows):
    first, second = WindowSampler(rows, 25, 4, seed=3), WindowSampler(rows, 25, 4, seed=3)
    second.batches(7)
    assert first.batches(2) == second.batches(2)
    assert first.batches(2) != first.batches(3)
    assert first.batches(2) != WindowSampler(rows, 25, 4, seed=4).batches(2)
    first.set_epoch(2)
    assert list(first) == second.batches(2)
    assert len(first) == len(first.batches(2))


def test_an_epoch_can_go_on_in_the_middle_once(rows):
    sampler = WindowSampler(rows, 10, 4)
    batches = list(sampler)
    sampler.start_at(2)
    assert list(sampler) == batches[2:]
    assert list(sampler) == batches


@pytest.mark.parametrize("context_bins", [0, 10])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lead_bins", [None, 0, 3])
def test_decoding_learns_from_each_scored_bin_once_an_epoch(rows, context_bins, training, lead_bins):
    sampler = WindowSampler(rows, 25, 4, context_bins=context_bins, training=training, lead_bins=lead_bins)
    dataset = WindowDataset(rows)
    for epoch in range(3):
        learned = [np.zeros(row["num_bins"], dtype=int) for row in rows]
        for window in (window for batch in sampler.batches(epoch) for window in batch):
            assert 0 <= window.start <= window.scored_from < window.stop <= window.start + 25
            learned[window.row][window.start : window.stop] += dataset[window].label_mask
        for row, times in zip(rows, learned, strict=True):
            np.testing.assert_array_equal(times, scored_bins(row))


@pytest.mark.parametrize("lead_bins", [0, 3])
def test_a_training_window_keeps_so_many_bins_before_the_first_that_it_learns_from(rows, lead_bins):
    whole, cut = WindowSampler(rows, 10, 4), WindowSampler(rows, 10, 4, lead_bins=lead_bins)
    dataset = WindowDataset(rows)
    shortened = 0
    for before, after in zip(whole.windows(1), cut.windows(1), strict=True):
        first = before.start + int(np.flatnonzero(dataset[before].label_mask)[0])
        assert after.start == max(before.start, first - lead_bins)
        assert (after.row, after.stop, after.seed) == (before.row, before.stop, before.seed)
        shortened += after.start > before.start
    assert shortened
    fixed = WindowSampler(rows, 10, 4, lead_bins=lead_bins, training=False)
    assert fixed.windows(0) == WindowSampler(rows, 10, 4, training=False).windows(0)
    with pytest.raises(ConfigurationError, match="`lead_bins` must be 0 or more"):
        WindowSampler(rows, 10, 4, lead_bins=-1)


def test_pretraining_batches_hold_pairs_that_do_not_overlap(rows):
    sampler = WindowSampler(rows, 8, 6, pairs=True)
    for epoch in range(3):
        for batch in sampler.batches(epoch):
            assert len(batch) <= 6
            sessions = [rows[window.row]["session_id"] for window in batch]
            assert min(sessions.count(session) for session in sessions) >= 2
        used = [window for batch in sampler.batches(epoch) for window in batch]
        for i, window in enumerate(used):
            assert min(4, rows[window.row]["num_bins"]) <= window.stop - window.start <= 8
            assert not any(
                other.row == window.row and other.start < window.stop and window.start < other.stop
                for other in used[:i]
            )


@pytest.mark.parametrize("num_bins", [8, 9, 16, 20, 24])
def test_pretraining_cuts_differ_between_epochs_and_cover_every_bin(rows, num_bins):
    """Even where the length of a row is a multiple of the window; a row of one window stays whole."""
    cut = select_trials(rows, count=1)[0][0]
    assert cut["num_bins"] == 20
    units = len(cut["unit_ids"])
    counts, observed = np.resize(row_counts(cut), (num_bins, units)), bytes([1]) * num_bins
    row = {**cut, "num_bins": num_bins, "counts": counts.tobytes(), "observed": observed}
    sampler = WindowSampler([row], 8, 4, seed=1, pairs=True)
    cuts = [[(window.start, window.stop) for window in sampler.windows(epoch)] for epoch in range(100)]
    assert cuts == [
        [(window.start, window.stop) for window in WindowSampler([row], 8, 4, seed=1, pairs=True).windows(e)]
        for e in range(100)
    ]
    if num_bins == 8:
        assert set(map(tuple, cuts)) == {((0, 8),)}
        return
    assert len(set(map(tuple, cuts))) == 8  # one for each phase
    times = np.zeros(num_bins, dtype=int)
    for windows in cuts:
        covered = [bin_ for start, stop in windows for bin_ in range(start, stop)]
        assert len(set(covered)) == len(covered)
        assert all(4 <= stop - start <= 8 for start, stop in windows)
        times[covered] += 1
    assert times.min() >= 35  # of 100 epochs; the ends of a row sit out some


def test_fixed_windows_leave_context_out_and_cover_the_rest(corpus):
    rows = view_rows(load_rows(corpus, split="validation"))
    assert any(row["num_context_bins"] for row in rows)
    windows = WindowSampler(rows, 8, 4, pairs=True, training=False).windows(0)
    for index, row in enumerate(rows):
        covered = [
            bin_ for window in windows if window.row == index for bin_ in range(window.start, window.stop)
        ]
        assert covered == list(range(row["num_context_bins"], row["num_bins"]))
    assert windows == WindowSampler(rows, 8, 4, pairs=True, training=False).windows(5)


def test_padding_does_not_change_what_a_window_holds(rows, processor):
    windows = [window for batch in WindowSampler(rows, 30, 4).batches(0) for window in batch]
    long = next(window for window in windows if rows[window.row]["session_id"] == "a")
    short = next(
        w for w in windows if rows[w.row]["session_id"] == "b" and w.stop - w.start < long.stop - long.start
    )
    together = collate(rows, processor, [long, short], unit_dropout=0.3, metadata_dropout=0.5)
    alone = collate(rows, processor, [short], unit_dropout=0.3, metadata_dropout=0.5)
    bins, units = short.stop - short.start, alone["unit_mask"].shape[-1]
    assert together["spike_counts"].shape[2] > bins
    for name, value in alone.items():
        cut = together[name][1:]
        if name == "spike_counts":
            cut = cut[:, :, :bins, :units]
        elif name in ("unit_ids", "unit_mask"):
            cut = cut[..., :units]
        elif name in ("labels", "label_mask"):
            cut = cut[:, :bins]
        elif name == "bin_mask":
            cut = cut[..., :bins]
        torch.testing.assert_close(cut, value, rtol=0, atol=0, equal_nan=True)
    assert not together["bin_mask"][1, :, bins:].any()
    assert not together["label_mask"][1, bins:].any()
    assert not together["unit_mask"][1, :, units:].any()
    assert together["spike_counts"][1, :, bins:].sum() == 0


def test_a_window_holds_the_counts_and_labels_of_its_bins(rows, processor):
    window = WindowSampler(rows, 25, 4).windows(0)[0]
    row = rows[window.row]
    batch = collate(rows, processor, [window])
    counts = row_counts(row)[window.start : window.stop]
    sites = np.asarray(row["unit_sites"])
    for site in (0, 1):
        real = batch["unit_mask"][0, site]
        np.testing.assert_array_equal(batch["spike_counts"][0, site][:, real], counts[:, sites == site])
    learned = batch["label_mask"][0].numpy()
    np.testing.assert_array_equal(
        batch["labels"][0][learned], row_behavior(row)[window.start : window.stop][learned]
    )


def test_masks_do_not_depend_on_the_other_windows(rows, processor):
    windows = WindowSampler(rows, 10, 6, pairs=True).batches(0)[0]
    masking = MaskingConfig(site_mask_probability=0.3)
    options = {"masking": masking, "metadata_dropout": 0.5, "unit_dropout": 0.4}
    together = collate(rows, processor, windows, **options)
    for i, window in enumerate(windows):
        alone = collate(rows, processor, [window], **options)
        for name in ("masked_bins", "labels", "metadata"):
            torch.testing.assert_close(together[name][i : i + 1], alone[name], rtol=0, atol=0, equal_nan=True)
        units = alone["masked_units"].shape[-1]
        for name in ("masked_units", "unit_mask"):
            assert torch.equal(together[name][i : i + 1, :, :units], alone[name])
            assert not together[name][i, :, units:].any()


@pytest.mark.parametrize("least", [1, 2])
def test_a_site_keeps_visible_units_under_masks_and_dropout_at_once(least):
    """Four units in one site, three and one in the other two, so that both minima are often at stake."""
    rng = np.random.default_rng(0)
    row = {
        "session_id": "a", "subject_id": None, "task": None, "recording_date": None, "bin_size": 0.05,
        "num_bins": 4000, "num_context_bins": 0, "start_time": 0.0, "trials": [],
        "unit_ids": list("abcdefgh"), "unit_sites": [0, 0, 0, 0, 1, 1, 1, 2], "site_ids": ["x", "y", "z"],
        "site_positions": [[None] * 3] * 3, "counts": rng.integers(0, 3, (4000, 8), dtype=np.uint8).tobytes(),
        "observed": bytes([1]) * 4000, "behavior": None, "behavior_names": [],
    }  # fmt: skip
    processor = RPNTProcessor.from_rows([row])
    windows = WindowSampler([row], 5, 2, pairs=True).windows(0)
    assert len(windows) >= 799
    options = {"masking": MaskingConfig(min_visible_units=least), "unit_dropout": 0.5}
    batch = collate([row], processor, windows, **options)
    visible = (batch["unit_mask"] & ~batch["masked_units"]).sum(dim=-1)
    assert (visible >= torch.tensor([least, least, 1])).all()
    assert not (batch["masked_units"] & ~batch["unit_mask"]).any()  # what is dropped is not scored
    assert (batch["unit_mask"].sum(dim=(1, 2)) < 8).float().mean() > 0.3
    assert (batch["masked_units"].sum(dim=(1, 2)) > 0).float().mean() > 0.3
    everything = collate([row], processor, windows)["unit_mask"]
    dropped = collate([row], processor, windows, unit_dropout=0.5)["unit_mask"]
    assert dropped.any(dim=-1).all()
    assert dropped.sum() < everything.sum()


def test_spike_dropout_thins_units_at_rates_of_their_own(rows, processor):
    windows = WindowSampler(rows, 10, 64).windows(0)
    before = collate(rows, processor, windows)["spike_counts"].double()
    thinned = collate(rows, processor, windows, spike_dropout=0.8)
    after = thinned["spike_counts"].double()
    assert (after <= before).all()
    assert abs((after.sum() / before.sum()).item() - 0.6) < 0.05
    shares = (after.sum(dim=2) / before.sum(dim=2))[before.sum(dim=2) >= 4]
    assert shares.min() < 0.4 and shares.max() > 0.9
    alone = collate(rows, processor, windows[:1], spike_dropout=0.8)["spike_counts"][0]
    units, bins = alone.shape[2], alone.shape[1]
    torch.testing.assert_close(thinned["spike_counts"][0, :, :bins, :units], alone)
    with pytest.raises(ConfigurationError, match=r"`spike_dropout`.*reconstructed"):
        collate(rows, processor, windows, spike_dropout=0.5, masking=MaskingConfig())


def test_a_site_mask_probability_of_one_leaves_one_site(rows, processor):
    windows = WindowSampler(rows, 10, 64, pairs=True).windows(0)
    batch = collate(rows, processor, windows, masking=MaskingConfig(site_mask_probability=1.0))
    hidden = (batch["masked_bins"] | ~batch["bin_mask"]).all(dim=-1)
    assert (hidden.sum(dim=-1) == 1).all()  # of two sites


def test_sites_of_a_session_have_names_of_their_own(rows, processor):
    windows = WindowSampler(rows, 10, 64, pairs=True).windows(0)
    labels = collate(rows, processor, windows, masking=MaskingConfig())["labels"]
    assert len(labels.unique()) == 4  # two sessions of two sites
    sessions = [rows[window.row]["session_id"] for window in windows]
    for session in ("a", "b"):
        same = [i for i, name in enumerate(sessions) if name == session]
        assert len(labels[same].unique(dim=0)) == 1


def test_metadata_dropout_takes_site_axes_together(rows, processor):
    windows = WindowSampler(rows, 5, 64).windows(0)
    metadata = collate(rows, processor, windows, metadata_dropout=0.5)["metadata"][:, 0]
    missing = torch.isnan(metadata)
    assert torch.equal(missing[:, 0], missing[:, 1])
    assert 0 < missing[:, 3].float().mean() < 1
    assert torch.isnan(collate(rows, processor, windows, metadata_dropout=1.0)["metadata"]).all()


def test_slots_are_sampled_from_the_seed_of_the_window(rows):
    processor = RPNTProcessor.from_rows(rows, unit_embedding="slots", num_slots=2)
    windows = WindowSampler(rows, 10, 4).windows(0)
    batch = collate(rows, processor, windows)
    assert batch["spike_counts"].shape[-1] == 2
    equal(batch, collate(rows, processor, windows))
    fixed = collate(rows, processor, windows, sample_units=False)
    assert not torch.equal(batch["spike_counts"], fixed["spike_counts"])


def make_row(session_id, unit_sites, num_bins=60, seed=0):
    """A row of random counts; the first bins are context, some were not observed, some lack behaviour."""
    rng = np.random.default_rng(seed)
    num_sites = max(unit_sites) + 1
    behavior = rng.standard_normal((num_bins, 2)).astype(np.float32)
    behavior[20:24] = np.nan
    observed = np.ones(num_bins, np.uint8)
    observed[30:33] = 0
    return {
        "session_id": session_id, "subject_id": None, "task": None, "recording_date": None, "bin_size": 0.05,
        "num_bins": num_bins, "num_context_bins": 2, "start_time": 0.0, "trials": [],
        "unit_ids": [str(n) for n in range(len(unit_sites))], "unit_sites": unit_sites,
        "site_ids": [f"site {s}" for s in range(num_sites)], "site_positions": [[0.0, 0.0, 0.0]] * num_sites,
        "counts": rng.integers(0, 9, (num_bins, len(unit_sites)), dtype=np.uint8).tobytes(),
        "observed": observed.tobytes(), "behavior": behavior.tobytes(), "behavior_names": ["x", "y"],
    }  # fmt: skip


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("num_slots", [None, 2, 9])
def test_a_batch_equals_windows_laid_out_one_by_one(num_slots, lag):
    """Sessions of one to three sites, units in no order, rows of several lengths, windows at every edge."""
    rows = [
        make_row("a", [2, 0, 2, 1, 0, 2, 2]),
        make_row("b", [0, 0, 0], 40, 1),
        make_row("a", [2, 0, 2, 1, 0, 2, 2], 9, 2),
    ]
    mode = {} if num_slots is None else {"unit_embedding": "slots", "num_slots": num_slots}
    processor = RPNTProcessor.from_rows(rows, **mode)
    windows = [
        Window(0, 25, 45, 30, 1),
        Window(1, 0, 15, 2, 2),
        Window(2, 0, 9, 0, 3),
        Window(0, 50, 60, 50, 4),
    ]
    means = {"a": np.arange(7.0), "b": np.arange(3.0)}
    dataset = WindowDataset(rows, lag)
    collator = WindowCollator(rows, processor, sample_units=False, mean_counts=means)
    batch = collator(dataset.__getitems__(windows))
    assert batch["spike_counts"].shape[:3] == (4, 3, 20) and batch["spike_counts"].dtype == torch.uint8
    for b, window in enumerate(windows):
        row, inside = rows[window.row], slice(window.start, window.stop)
        sites, size = len(row["site_ids"]), window.stop - window.start
        index, unit_ids, unit_mask = processor.unit_layout(
            row["session_id"], np.array(row["unit_sites"]), sites
        )
        units = index.shape[1]
        expected = {
            "spike_counts": np.moveaxis(row_counts(row)[inside][:, index] * unit_mask, 0, 1),
            "unit_ids": unit_ids,
            "unit_mask": unit_mask,
            "mean_counts": means[row["session_id"]][index] * unit_mask,
            "bin_mask": np.broadcast_to(np.frombuffer(row["observed"], np.uint8)[inside] > 0, (sites, size)),
        }
        for name, value in expected.items():
            cut = batch[name][b, :sites]
            cut = cut[:, :size] if name in ("spike_counts", "bin_mask") else cut
            cut = cut if name == "bin_mask" else cut[..., :units]
            np.testing.assert_array_equal(cut, value)
            assert batch[name][b].sum() == value.sum()  # nothing but zeros beyond
        sample = dataset[window]
        assert batch["label_mask"][b].sum() == sample.label_mask.sum()
        np.testing.assert_array_equal(batch["label_mask"][b, :size], sample.label_mask)
        learned = sample.label_mask
        np.testing.assert_array_equal(batch["labels"][b, :size][learned], sample.behavior[learned])
        assert not batch["labels"][b][~batch["label_mask"][b]].any()


def test_unit_samples_are_uniform_keep_their_order_and_fill_slots_as_far_as_they_go():
    """Nine units in one site and two in the other, four slots."""
    rows = [make_row("a", [0] * 9 + [1] * 2)]
    processor = RPNTProcessor.from_rows(rows, unit_embedding="slots", num_slots=4)
    # Each unit has a count of its own, which names it.
    rows[0]["counts"] = np.tile(np.arange(1, 12, dtype=np.uint8), (60, 1)).tobytes()
    windows = [Window(0, 0, 3, 0, seed) for seed in range(6000)]
    batch = WindowCollator(rows, processor)(WindowDataset(rows).__getitems__(windows))
    drawn, filled = batch["spike_counts"][:, :, 0], batch["unit_mask"]
    assert (
        filled[:, 0].all()
        and (filled[:, 1].sum(dim=1) == 2).all()
        and (drawn[:, 1, :2] == torch.tensor([10, 11])).all()
    )
    assert (drawn[:, 0].diff(dim=1) > 0).all() and drawn[:, 0].max() == 9
    often = torch.bincount(drawn[:, 0].flatten().long(), minlength=10)[1:] / len(windows)
    torch.testing.assert_close(often, torch.full((9,), 4 / 9), atol=0.025, rtol=0)
    pairs = torch.stack([(drawn[:, 0] == a).any(1) & (drawn[:, 0] == a + 1).any(1) for a in range(1, 9)])
    torch.testing.assert_close(pairs.float().mean(dim=1), torch.full((8,), 1 / 6), atol=0.025, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"num_slots": 2}, {"unit_dropout": 0.5}, {"spike_dropout": 0.9}, {"masking": MaskingConfig()}],
    ids=str,
)
def test_what_is_drawn_does_not_depend_on_wider_or_longer_neighbours(options):
    rows = [make_row("a", [1, 0, 1, 1, 0]), make_row("b", [0, 1, 2] + [0] * 8)]
    options = dict(options)
    slots = options.pop("num_slots", None)
    mode = {"unit_embedding": "slots", "num_slots": slots} if slots else {}
    collator = WindowCollator(rows, RPNTProcessor.from_rows(rows, **mode), **options)
    dataset = WindowDataset(rows)
    windows = [Window(0, 0, 20, 0, seed) for seed in range(20)]
    alone = collator(dataset.__getitems__(windows))
    together = collator(dataset.__getitems__([Window(1, 0, 50, 0, 99), *windows]))
    for name, value in alone.items():
        inside = (slice(1, None), *(slice(size) for size in value.shape[1:]))
        torch.testing.assert_close(together[name][inside], value, rtol=0, atol=0, equal_nan=True)


def test_spike_dropout_keeps_each_spike_with_the_probability_of_its_unit():
    rows = [make_row("a", [0, 0, 0, 1])]
    rows[0]["counts"] = np.full((60, 4), 40, np.uint8).tobytes()
    processor = RPNTProcessor.from_rows(rows)
    windows = [Window(0, 0, 50, 0, seed) for seed in range(300)]
    batch = WindowCollator(rows, processor, spike_dropout=0.6)(WindowDataset(rows).__getitems__(windows))
    counts = batch["spike_counts"].double().swapaxes(2, 3)[batch["unit_mask"]]  # (windows x units, bins)
    kept = counts.mean(dim=1) / 40
    assert 0.36 < kept.min() < 0.42 and kept.max() > 0.98
    assert abs(kept.mean() - 0.7) < 0.02  # uniform from 0.4 to 1
    binomial = (kept * (1 - kept) / 40).sqrt() * 40
    assert abs((counts.std(dim=1) / binomial)[kept < 0.95].mean() - 1) < 0.05


def test_windows_are_a_sequence_that_can_be_filled_up():
    windows = Windows.of([Window(0, 1, 2, 1, 2**63 - 1), Window(3, 4, 5, 4, 6)])
    assert windows[0] == Window(0, 1, 2, 1, 2**63 - 1) and windows[-1] == list(windows)[1]
    assert windows[1:].__add__([windows[0]]) == Windows.of(list(windows)[::-1])
    assert [*windows] != [*windows[1:]] and windows != windows[1:]


def test_labels_can_come_later_than_counts(rows):
    window = WindowSampler(rows, 25, 4, label_lag=2).windows(0)[0]
    sample = WindowDataset(rows, label_lag=2)[window]
    behavior = row_behavior(rows[window.row])[window.start + 2 : window.stop + 2]
    np.testing.assert_array_equal(sample.behavior[: len(behavior)], behavior)
    learned = np.flatnonzero(sample.label_mask) + window.start
    assert scored_bins(rows[window.row])[learned + 2].all()


def test_few_trials_are_cut_out_and_nothing_else(rows):
    everything, total = select_trials(rows)
    assert everything == list(rows)
    for count in (1, 3, total):
        cut, kept = select_trials(rows, count=count, seed=1)
        assert kept == count == sum(len(row["trials"]) for row in cut)
        assert sum(row["num_bins"] for row in cut) == 20 * count
    some, more = (
        {
            (row["session_id"], trial["trial_index"])
            for row in select_trials(rows, count=n)[0]
            for trial in row["trials"]
        }
        for n in (3, 6)
    )
    assert some < more
    assert select_trials(rows, fraction=0.01)[1] == 1
    cut, _ = select_trials(rows, count=total)
    assert sum(scored_bins(row).sum() for row in cut) == sum(scored_bins(row).sum() for row in rows)


@pytest.mark.parametrize(
    "arguments", [{"count": 0}, {"count": 10_000}, {"fraction": 1.5}, {"count": 1, "fraction": 0.5}]
)
def test_impossible_numbers_of_trials_are_refused(rows, arguments):
    with pytest.raises(DatasetError, match="Training trials must be"):
        select_trials(rows, **arguments)


def test_sessions_are_chosen_by_name(rows):
    assert {row["session_id"] for row in select_sessions(rows, ["a"])} == {"a"}
    assert {row["session_id"] for row in select_sessions(rows, exclude=["a"])} == {"b"}
    with pytest.raises(DatasetError, match=r"got .c..*There are: a, b"):
        select_sessions(rows, ["c"])
    with pytest.raises(DatasetError, match="At least one session must remain"):
        select_sessions(rows, exclude=["a", "b"])


def test_statistics_are_those_of_scored_bins(rows):
    mean, std = label_statistics(rows)
    values = np.concatenate([row_behavior(row)[scored_bins(row)] for row in rows])
    np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std, values.std(axis=0), rtol=1e-5)
    means = unit_means(rows)
    counts = np.concatenate([row_counts(row) for row in rows if row["session_id"] == "b"])
    np.testing.assert_allclose(means["b"], counts.mean(axis=0))


def test_a_dataset_that_is_built_again_is_read_again(tmp_path):
    for bin_size, name in ((0.05, "first"), (0.1, "second")):
        build_dataset([make_recording("a")], tmp_path / name, BuilderConfig(bin_size))
    for name in ("first", "second"):
        (tmp_path / name).rename(tmp_path / "built")
        assert load_rows(tmp_path / "built")[0]["bin_size"] == (0.05 if name == "first" else 0.1)
        (tmp_path / "built").rename(tmp_path / "done")
        (tmp_path / "done").rename(tmp_path / f"done {name}")


def test_what_is_no_dataset_is_refused(tmp_path, corpus):
    with pytest.raises(DatasetError, match="cannot be loaded"):
        load_rows(tmp_path)
    with pytest.raises(DatasetError, match="cannot be loaded"):
        load_rows(corpus, "another")


@pytest.mark.parametrize("arguments", [(0, 4), (10, 0)])
def test_impossible_windows_are_refused(rows, arguments):
    with pytest.raises(ConfigurationError, match="Windows need"):
        WindowSampler(rows, *arguments)


def test_rows_that_do_not_fit_the_processor_are_refused(rows):
    only_a = RPNTProcessor.from_rows([row for row in rows if row["session_id"] == "a"])
    with pytest.raises(InputError, match="got 'b'"):
        WindowCollator(rows, only_a)
