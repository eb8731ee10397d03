"""Attention weights and context kernels of a network on given data."""

import numpy as np
import pytest
import torch
from small_corpus import BIN_SIZE, make_recording
from stream_models import UNITS, make, make_processor

from rpnt_hf import RPNTProcessor
from rpnt_hf.analysis.maps import attention_maps, recording_maps
from rpnt_hf.attention_rpnt import RPNTContextKernel
from rpnt_hf.errors import InputError

COUNTS = np.random.default_rng(0).poisson(1.0, (40, 5)).astype(np.uint8)
ROW = {
    "session_id": "today", "subject_id": "B", "task": None, "recording_date": None, "bin_size": 0.05,
    "site_ids": ["M1", "PMd"], "site_positions": np.full((2, 3), np.nan), "start_time": 2.0, "num_bins": 40,
    "unit_ids": ["a", "b", "c", "d", "e"], "unit_sites": [1, 0, 1, 1, 0], "counts": COUNTS,
    "observed": np.ones(40, np.uint8),
}  # fmt: skip


def small_model(**overrides):
    return make(num_units=2 * UNITS, **overrides)


def test_weights_sum_to_one_and_never_lie_in_the_future():
    model = small_model(num_spatial_layers=1)
    maps = attention_maps(model, make_processor(), ROW, num_bins=20)
    anchors = model.config.num_anchors
    assert [layer.shape for layer in maps.attentions] == [(2, 2, 20, anchors + 20)] * 2
    assert [layer.shape for layer in maps.spatial_attentions] == [(20, 2, 2, anchors + 2)]
    assert maps.num_anchors == anchors and maps.site_ids == ["M1", "PMd"]
    for layer in maps.attentions:
        np.testing.assert_allclose(layer.sum(axis=-1), 1.0, atol=1e-5)
        assert not np.triu(layer[..., anchors:], 1).any()
    np.testing.assert_allclose(maps.spatial_attentions[0].sum(axis=-1), 1.0, atol=1e-5)


def test_kernels_are_those_that_smoothed_the_scores():
    model = small_model()
    seen = []
    hook = model.model.temporal_layers[0].attention.context_kernel.register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    maps = attention_maps(model, make_processor(), ROW, num_bins=20)
    hook.remove()
    np.testing.assert_array_equal(maps.kernels[0], seen[0][0].numpy())
    assert len(maps.kernels) == model.config.num_hidden_layers
    assert maps.kernels[0].shape == (2, 2, 20, 3, 3)
    np.testing.assert_allclose(maps.kernels[0].sum(axis=(-2, -1)), 1.0, atol=1e-5)


def test_a_network_without_kernels_has_attention_only():
    maps = attention_maps(
        small_model(context_attention={"enabled": False}), make_processor(), ROW, num_bins=20
    )
    assert maps.kernels == [] and maps.spatial_attentions == [] and len(maps.attentions) == 2


def test_a_window_sees_nothing_before_it():
    model, processor = small_model(), make_processor()
    maps = attention_maps(model, processor, ROW, start_bin=25, num_bins=10)
    assert maps.start_time == pytest.approx(2.0 + 25 * 0.05)
    changed = {**ROW, "counts": COUNTS.copy()}
    changed["counts"][:25] = 9
    again = attention_maps(model, processor, changed, start_bin=25, num_bins=10)
    np.testing.assert_array_equal(again.attentions[0], maps.attentions[0])
    last = attention_maps(model, processor, ROW, start_bin=35, num_bins=10)
    assert last.attentions[0].shape[2] == 5


def test_the_model_is_left_as_it_was():
    model = small_model().train()
    model.set_attn_implementation("sdpa")
    attention_maps(model, make_processor(), ROW, num_bins=10)
    assert model.training and model.model.training
    assert model.config._attn_implementation == "sdpa" == model.model.config._attn_implementation
    kernels = [module for module in model.modules() if isinstance(module, RPNTContextKernel)]
    assert kernels and not any(module._forward_hooks for module in kernels)


@pytest.mark.parametrize(
    "window", [{"start_bin": 40}, {"start_bin": -1}, {"num_bins": 0}, {"num_bins": 5000}]
)
def test_a_window_outside_the_row_is_refused(window):
    with pytest.raises(InputError, match="A window must begin in"):
        attention_maps(small_model(), make_processor(), ROW, **window)


def test_a_window_of_a_recording_begins_where_it_is_asked_to():
    torch.manual_seed(0)
    recording = make_recording("a")
    processor = RPNTProcessor(bin_size=BIN_SIZE, sessions={"a": recording.unit_ids})
    model = make(num_units=6)
    maps = recording_maps(model, processor, recording, start=3.02, num_bins=20)
    assert maps.start_time == pytest.approx(3.0) and maps.attentions[0].shape[2] == 20
    first = recording_maps(model, processor, recording, num_bins=20)
    assert first.start_time == 0.0
    assert not np.array_equal(first.attentions[0], maps.attentions[0])
    with pytest.raises(InputError, match="must lie in an observed interval, got 99 s"):
        recording_maps(model, processor, recording, start=99, num_bins=20)
