"""Bin by bin equals the whole forward pass, for every switch; bad input leaves the stream as it was."""

import logging

import numpy as np
import pytest
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, StreamingDecoder
from rpnt_hf.errors import CheckpointError, ConfigurationError, InputError

UNITS, SITES, BINS = 4, 2, 60
SWITCHES = {
    "default": {},
    "no stem": {"stem_kernel": 1},
    "no kernels": {"context_attention": {"enabled": False}},
    "wide kernels": {"context_attention": {"kernel_size": (5, 4), "context_size": 8}},
    "one tap": {"context_attention": {"kernel_size": (1, 1), "context_size": 8}},
    "no anchors": {"num_anchors": 0, "position_encoding": "rope"},
    "window of one": {"attention_window": 1},
    "spatial": {"num_spatial_layers": 2},
    "slots": {"unit_embedding": "slots", "num_units": UNITS},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "no positions": {"position_encoding": "none"},
    "variance": {"predict_variance": True},
}


def make(**overrides):
    torch.manual_seed(0)
    settings = {"num_units": UNITS * SITES, "attention_window": 7, "initializer_range": 0.2, **overrides}
    return RPNTForMotorDecoding(RPNTConfig.preset("tiny", **settings)).eval()


def make_counts(batch=1, bins=BINS):
    return torch.poisson(torch.ones(batch, SITES, bins, UNITS))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("switch", SWITCHES)
@torch.no_grad()
def test_streaming_equals_the_forward_pass(switch, batch):
    model, counts = make(**SWITCHES[switch]), make_counts(batch)
    recorded = torch.rand(batch, SITES, BINS) < 0.8
    recorded[:, :, :3] = False
    expected = model(counts, bin_mask=recorded).predictions
    decoder = StreamingDecoder(model, batch_size=batch, sites=SITES)
    streamed = torch.stack([decoder.step(counts[:, :, t], recorded[:, :, t]) for t in range(BINS)])
    streamed = streamed.transpose(0, 1) if batch > 1 else streamed[None]
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_long_stream_stays_equal_and_needs_no_more_memory():
    model, counts = make(), make_counts(bins=3000)
    decoder = StreamingDecoder(model, sites=SITES)

    def state_size():
        return sum(tensor.untyped_storage().nbytes() for tensor in decoder.state)

    expected = model(counts).predictions[0]
    sizes, worst = set(), 0.0
    for t in range(3000):
        worst = max(worst, (decoder.step(counts[0, :, t]) - expected[t]).abs().max().item())
        if t > 5:
            sizes.add(state_size())
    assert worst < 1e-5 and len(sizes) == 1


@torch.no_grad()
def test_a_model_without_a_window_streams_up_to_the_stated_length():
    model, counts = make(attention_window=None), make_counts(bins=20)
    with pytest.raises(ConfigurationError, match=r"`attention_window`.*or `max_bins`"):
        StreamingDecoder(model, sites=SITES)
    decoder = StreamingDecoder(model, sites=SITES, max_bins=20)
    streamed = torch.stack([decoder.step(counts[0, :, t]) for t in range(20)])
    torch.testing.assert_close(streamed, model(counts).predictions[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="`max_bins`=20"):
        decoder.step(counts[0, :, 0])


@torch.no_grad()
def test_reset_and_state_dict_go_back_and_on():
    model, counts = make(), make_counts()
    decoder, other = (StreamingDecoder(model, sites=SITES) for _ in range(2))
    first = [decoder.step(counts[0, :, t]) for t in range(30)]
    saved = decoder.state_dict()
    rest = [decoder.step(counts[0, :, t]) for t in range(30, BINS)]
    other.load_state_dict(saved)
    again = [other.step(counts[0, :, t]) for t in range(30, BINS)]
    torch.testing.assert_close(torch.stack(again), torch.stack(rest), atol=0, rtol=0)
    decoder.reset()
    restarted = [decoder.step(counts[0, :, t]) for t in range(30)]
    torch.testing.assert_close(torch.stack(restarted), torch.stack(first), atol=0, rtol=0)
    with pytest.raises(CheckpointError, match="same model, session and batch size"):
        StreamingDecoder(model, sites=SITES, batch_size=2).load_state_dict(saved)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros(UNITS), r"must have shape \(2, 4\) or \(8,\) or \(1, 2, 4\), got \(4,\)"),
        (np.full((SITES, UNITS), np.nan), "finite"),
        (np.full((SITES, UNITS), -1), "0 or more, got -1"),
    ],
    ids=["units", "nan", "negative"],
)
@torch.no_grad()
def test_bad_counts_are_refused_and_the_stream_goes_on(counts, message):
    model, good = make(), make_counts(bins=12)
    decoder = StreamingDecoder(model, sites=SITES)
    for t in range(8):
        decoder.step(good[0, :, t])
    with pytest.raises(InputError, match=message):
        decoder.step(counts)
    streamed = torch.stack([decoder.step(good[0, :, t]) for t in range(8, 12)])
    torch.testing.assert_close(streamed, model(good).predictions[0, 8:], atol=1e-5, rtol=1e-5)


def test_learned_positions_cannot_stream():
    with pytest.raises(ConfigurationError, match="'learned'"):
        StreamingDecoder(make(position_encoding="learned"))


def make_processor(**overrides):
    processor = RPNTProcessor(bin_size=0.05, subjects=["A", "B"], corpus_start="2026-01-01", **overrides)
    processor.add_session("earlier", ["x"])
    processor.add_session(
        "today",
        ["a", "b", "c", "d", "e"],
        unit_sites=[1, 0, 1, 1, 0],
        site_positions=[[0.5, 1.0, np.nan], [2.0, 0.0, 1.0]],
        subject_id="B",
        recording_date="2026-03-04",
    )
    return processor


@torch.no_grad()
def test_a_session_of_a_saved_processor_streams_with_its_sites_and_metadata(tmp_path):
    make_processor().save_pretrained(tmp_path)
    processor = RPNTProcessor.from_pretrained(tmp_path)
    model = make(num_units=processor.num_units, num_spatial_layers=1)
    counts = torch.poisson(torch.ones(30, 5)).to(torch.uint8).numpy()
    inputs = processor(counts, session_id="today")
    assert torch.isfinite(inputs["metadata"][0, 1, :5]).all() and inputs["spike_counts"].shape == (
        1,
        2,
        30,
        3,
    )
    decoder = StreamingDecoder(model, processor, "today")
    streamed = torch.stack([decoder.step(counts[t]) for t in range(30)])
    torch.testing.assert_close(streamed, model(**inputs).predictions[0], atol=1e-5, rtol=1e-5)
    unknown = dict(inputs, metadata=torch.full_like(inputs["metadata"], torch.nan))
    assert (model(**unknown).predictions[0] - streamed).abs().max() > 1e-4
    with pytest.raises(InputError, match="'yesterday'"):
        StreamingDecoder(model, processor, "yesterday")


def test_a_window_longer_than_the_training_windows_is_warned_of(caplog):
    processor = make_processor(window_bins=5)
    with caplog.at_level(logging.WARNING):
        StreamingDecoder(make(num_units=processor.num_units), processor, "today")
    assert "`attention_window` is 7 bins but training windows had 5" in caplog.text


@torch.no_grad()
def test_a_session_with_more_units_than_slots_streams():
    processor = RPNTProcessor(bin_size=0.05, unit_embedding="slots", num_slots=4)
    processor.add_session("today", [str(n) for n in range(10)])
    model = make(unit_embedding="slots", num_units=4)
    counts = torch.poisson(torch.ones(12, 10)).to(torch.uint8).numpy()
    decoder = StreamingDecoder(model, processor, "today")
    streamed = torch.stack([decoder.step(counts[t]) for t in range(12)])
    expected = model(**processor(counts, session_id="today")).predictions[0]
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bf16_weights_stream():
    model, counts = make().to(torch.bfloat16), make_counts(bins=20)
    decoder = StreamingDecoder(model, sites=SITES)
    streamed = torch.stack([decoder.step(counts[0, :, t]) for t in range(20)])
    torch.testing.assert_close(streamed, model(counts).predictions[0], atol=0.1, rtol=0.1)
