"""Maps of connectivity: windows at events, shuffles, estimators on data with known answers, files."""

import csv
import json

import numpy as np
import pytest
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining
from rpnt_hf.analysis.connectivity import (
    Permutation,
    attention_rollout,
    compare_with_shuffles,
    load_pretrained,
    map_connectivity,
    write_connectivity,
)
from rpnt_hf.analysis.site_statistics import lagged_regression, partial_correlation, rate_correlation
from rpnt_hf.analysis.site_windows import SiteWindows, cut_site_windows
from rpnt_hf.cli import main
from rpnt_hf.data.builder import BuilderConfig, CorpusRecording, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.simulate_sites import simulate_sites
from rpnt_hf.errors import CheckpointError, ConfigurationError, DatasetError
from rpnt_hf.processing_rpnt import RPNTProcessor

BIN_SIZE = 0.05


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    simulated = simulate_sites(num_sites=3, num_controls=1, num_units=4, num_trials=30, seed=1)
    config = BuilderConfig(BIN_SIZE, proportions=(0.4, 0.1, 0.5))
    folder = tmp_path_factory.mktemp("connectivity") / "data"
    return build_dataset([CorpusRecording(simulated.recordings[0])], folder, config)


@pytest.fixture(scope="module")
def rows(dataset):
    return view_rows(load_rows(dataset, split="test"))


@pytest.fixture(scope="module")
def pretrained(rows, tmp_path_factory):
    torch.manual_seed(0)
    processor = RPNTProcessor.from_rows(rows, window_bins=20)
    config = RPNTConfig.preset("tiny", num_units=12, num_spatial_layers=2)
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    RPNTForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_windows(spike_counts, conditions=None):
    W, S, _, N = spike_counts.shape
    return SiteWindows(
        "one", [f"s{site}" for site in range(S)], np.zeros((S, 3)), spike_counts.astype(np.uint8),
        np.ones(spike_counts.shape[:3], bool), np.arange(S * N).reshape(S, N), np.ones((S, N), bool),
        np.full((S, 6), np.nan, np.float32), np.array(conditions or [""] * W), 0,
    )  # fmt: skip


def chain(num_windows=60, num_bins=40, seed=0):
    """Site 1 follows site 0 two bins later, site 2 follows site 1 likewise, site 3 is alone."""
    rng = np.random.default_rng(seed)
    drive = rng.standard_normal((num_windows, 4, num_bins, 2))
    drive[:, 1, 2:] += 1.5 * drive[:, 0, :-2]
    drive[:, 2, 2:] += 1.5 * drive[:, 1, :-2]
    mixing = rng.standard_normal((4, 2, 6)) * 0.5
    return make_windows(rng.poisson(np.exp(np.einsum("wstl,sln->wstn", drive, mixing).clip(-3, 3))))


def test_windows_begin_before_the_event_and_end_with_the_trial(rows):
    processor = RPNTProcessor.from_rows(rows)
    windows = cut_site_windows(rows, processor, 30, align="go_cue", before=4)
    trials = [(row, trial) for row in rows for trial in row["trials"] if trial["go_cue_bin"] >= 4]
    assert windows.num_windows + windows.num_left_out == sum(len(row["trials"]) for row in rows)
    row, trial = trials[0]
    counts = np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1)
    start = trial["go_cue_bin"] - 4
    stop = min(start + 30, trial["stop_bin"])
    np.testing.assert_array_equal(
        windows.spike_counts[0, :, : stop - start], counts[start:stop].reshape(-1, 3, 4).swapaxes(0, 1)
    )
    assert windows.bin_mask[0, :, : stop - start].all() and not windows.bin_mask[0, :, stop - start :].any()
    assert set(windows.conditions) <= {str(target) for target in range(8)}


def test_shuffles_keep_the_trials_of_a_site_and_their_condition_and_part_the_sites():
    counts = np.arange(12)[:, None, None, None] + 20 * np.arange(3)[:, None, None] + np.zeros((12, 3, 2, 1))
    windows = make_windows(counts, ["a", "b"] * 6)
    shuffled = (
        windows.reordered(windows.draw_order(np.random.default_rng(0))).spike_counts[:, :, 0, 0].astype(int)
    )
    for site in range(3):
        own = shuffled[:, site] - 20 * site
        assert sorted(own) == list(range(12)) and (own % 2 == np.arange(12) % 2).all()
    assert ((shuffled[:, 0] != shuffled[:, 1] - 20).sum()) > 6


def test_regression_on_the_past_finds_the_direction_and_correlation_does_not():
    windows = chain()
    every = slice(0, windows.num_bins)
    lagged = lagged_regression(windows, every)
    assert min(lagged[1, 0], lagged[2, 1]) > 5 * max(lagged[0, 1], lagged[1, 2], abs(lagged[3]).max())
    plain = rate_correlation(windows, every)
    np.testing.assert_allclose(plain, plain.T)


def test_partial_correlation_takes_out_what_a_third_site_explains():
    rng = np.random.default_rng(1)
    middle = rng.standard_normal((80, 1, 30, 1))
    drive = np.concatenate([middle, middle + 0.6 * rng.standard_normal((80, 2, 30, 1))], axis=1)
    windows = make_windows(rng.poisson(np.exp(1.5 + 0.7 * drive.repeat(8, axis=-1)).clip(0, 60)))
    every = slice(0, 30)
    plain, partial = rate_correlation(windows, every), partial_correlation(windows, every)
    assert plain[1, 2] > 0.5 * plain[1, 0]
    assert partial[1, 2] < 0.6 * partial[1, 0]


def test_the_test_finds_what_sticks_out_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    shuffled = rng.standard_normal((20, 5, 5))
    values = rng.standard_normal((5, 5))
    assert not compare_with_shuffles(values, shuffled).significant.any()
    values[1, 3] = 12.0
    found = compare_with_shuffles(values, shuffled)
    assert np.argwhere(found.significant).tolist() == [[1, 3]]
    assert found.p_values[1, 3] == pytest.approx(1 / (1 + 20 * 20))
    assert np.isnan(found.p_values.diagonal()).all() and found.control_discoveries < 0.3


def test_the_test_holds_its_rate_of_false_discoveries():
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.1, 10, (6, 6))
    discoveries = [
        compare_with_shuffles(
            scale * rng.standard_normal((6, 6)), scale * rng.standard_normal((20, 6, 6))
        ).significant.any()
        for _ in range(100)
    ]
    assert np.mean(discoveries) <= 0.12  # 0.05 expected; 0.12 is beyond the 99.8th percentile


def brute_force(model, windows, order, hidden_every):
    """The permutation map by whole passes of the model, one for each turn and source."""
    S = windows.num_sites
    lost = np.zeros((S, S))

    @torch.inference_mode()
    def nats(seen, hidden):
        (batch,) = seen.batches(windows.num_windows)
        rates = model(**batch, masked_bins=hidden).log_rates
        counts = torch.from_numpy(windows.spike_counts)
        return ((rates.exp() - counts * rates) * hidden[..., None]).double().sum(dim=(0, 2, 3)).numpy()

    for turn in range(hidden_every):
        bins = torch.arange(windows.num_bins) % hidden_every == turn
        hidden = bins & torch.from_numpy(windows.bin_mask)
        for source in range(S):
            mixed = np.repeat(np.arange(windows.num_windows)[:, None], S, axis=1)
            mixed[:, source] = order[:, source]
            lost[:, source] += nats(windows.reordered(mixed), hidden) - nats(windows, hidden)
    np.fill_diagonal(lost, np.nan)
    return lost / (windows.bin_mask.sum(axis=(0, 2)) * windows.unit_mask.sum(axis=1))[:, None]


@pytest.fixture
def attentive(pretrained):
    """An untrained model whose sites look at each other."""
    model, processor = load_pretrained(pretrained)
    with torch.no_grad():
        for layer in model.model.spatial_layers:
            layer.attention.o_proj.weight.mul_(20)
    return model, processor


def test_a_permutation_map_is_what_whole_passes_of_the_model_give(rows, attentive):
    model, processor = attentive
    windows = cut_site_windows(rows, processor, 12)
    assert windows.bin_mask.all()
    permutation = Permutation(model, windows, slice(0, 12), hidden_every=3, batch_size=4)
    values = permutation.map(np.random.default_rng(3), num_draws=1)
    order = windows.draw_order(np.random.default_rng(3))
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(values, brute_force(model, windows, order, 3), rtol=1e-3, atol=1e-8)
    assert abs(values[off]).min() > 1e-6


def test_a_permutation_map_of_shuffled_trials_is_that_of_shuffled_windows(rows, attentive):
    model, processor = attentive
    windows = cut_site_windows(rows, processor, 20)
    order = windows.draw_order(np.random.default_rng(0))
    mapped = Permutation(model, windows, slice(4, 20)).map(np.random.default_rng(1), order)
    again = Permutation(model, windows.reordered(order), slice(4, 20), batch_size=5)
    np.testing.assert_allclose(mapped, again.map(np.random.default_rng(1)), rtol=1e-3, atol=1e-8)


def test_a_permutation_map_does_not_tell_a_site_by_what_others_do_at_the_same_time(rows, attentive):
    model, processor = attentive
    windows = cut_site_windows(rows, processor, 20)
    first = Permutation(model, windows, slice(0, 1)).map(np.random.default_rng(0))  # a bin without a past
    assert abs(np.nan_to_num(first)).max() < 1e-8


def test_attention_is_averaged_over_bins_and_adds_up_to_one(rows, pretrained):
    model, processor = load_pretrained(pretrained)
    windows = cut_site_windows(rows, processor, 20)
    rolled = attention_rollout(model, windows, slice(0, 20), batch_size=8)
    np.testing.assert_allclose(rolled.sum(axis=1), 1.0, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    single = [attention_rollout(model, windows, slice(t, t + 1)) for t in (3, 4)]
    both = attention_rollout(model, windows, slice(3, 5))
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-6)


def test_maps_are_written_with_their_control_and_drawn(rows, pretrained, tmp_path):
    model, processor = load_pretrained(pretrained)
    found = map_connectivity(model, processor, rows, num_shuffles=5, window_bins=20, seed=3)
    paths = write_connectivity(found, tmp_path, plot=True)
    assert {path.name for path in paths} == {
        "connectivity.json", "connectivity.csv", *(f"{name}.png" for name in found.maps)
    }  # fmt: skip
    report = json.loads((tmp_path / "connectivity.json").read_text())
    assert report["site_ids"] == ["S00", "S01", "S02"] and set(report["maps"]) == set(found.maps)
    assert np.shape(report["maps"]["permutation"]["q_values"]) == (3, 3)
    with (tmp_path / "connectivity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found.maps) * 6
    again = map_connectivity(model, processor, rows, num_shuffles=5, window_bins=20, seed=3)
    for name, one in found.maps.items():
        np.testing.assert_array_equal(one.p_values, again.maps[name].p_values)


def test_the_command_writes_maps_and_says_what_it_found(dataset, pretrained, tmp_path, capsys):
    arguments = [str(pretrained), str(dataset), "--out", str(tmp_path / "maps"), "--shuffles", "5"]
    assert main(["connectivity", *arguments, "--align", "go_cue", "--before", "5", "--bins", "2", "15"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    (session,) = report
    assert set(report[session]["attention"]) == {"significant_pairs", "control_discoveries"}
    assert (tmp_path / "maps" / "connectivity.json").is_file()
    assert main(["connectivity", *arguments, "--session-id", "nobody"]) == 2


def test_models_without_a_spatial_stage_and_decoders_are_refused(rows, tmp_path):
    processor = RPNTProcessor.from_rows(rows, window_bins=20)
    model = RPNTForPreTraining(RPNTConfig.preset("tiny", num_units=12))
    with pytest.raises(CheckpointError, match="must come from a model with spatial layers"):
        map_connectivity(model, processor, rows)
    decoder = RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=12))
    decoder.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"must be one of pretraining \(RPNTForPreTraining\)"):
        load_pretrained(tmp_path)


def test_options_out_of_range_and_single_sites_are_refused(rows, pretrained):
    model, processor = load_pretrained(pretrained)
    with pytest.raises(ConfigurationError, match="`estimators` must be names out of"):
        map_connectivity(model, processor, rows, estimators=["coherence"])
    with pytest.raises(ConfigurationError, match="`num_shuffles` must be at least 5"):
        map_connectivity(model, processor, rows, num_shuffles=2)
    with pytest.raises(ConfigurationError, match="`hidden_every` at least 2"):
        map_connectivity(model, processor, rows, hidden_every=1)
    with pytest.raises(ConfigurationError, match="`bins` must leave at least one"):
        map_connectivity(model, processor, rows, window_bins=20, bins=(30, 40))
    with pytest.raises(DatasetError, match="with 1 site"):
        cut_site_windows([{**row, "site_ids": ["S00"]} for row in rows], processor, 20)
