"""Bin by bin equals the whole forward pass, for every switch; bad input leaves the stream as it was."""

import gc
import io
import logging
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import torch
from stream_models import SITES, SWITCHES, UNITS, make, make_counts, make_processor
from torch import nn

from rpnt_hf import RPNTProcessor, StreamingDecoder, streaming_onnx
from rpnt_hf.errors import CheckpointError, ConfigurationError, InputError

BACKENDS = ("torch", "onnx")
# Backend, streams and sites: each backend meets one and several of both.
ARRANGEMENTS = [("torch", 1, 1), ("torch", 3, 2), ("onnx", 1, 2), ("onnx", 3, 1)]


def stream(decoder, counts, recorded=None):
    """(B, S, T, N) -> (B, T, K)."""
    bins = range(counts.shape[2])
    steps = [decoder.step(counts[:, :, t], None if recorded is None else recorded[:, :, t]) for t in bins]
    return torch.stack(steps).transpose(0, 1) if decoder.batch_size > 1 else torch.stack(steps)[None]


def assert_same_state(state, other, tolerance=0.0):
    assert state.keys() == other.keys() and state["bin"] == other["bin"]
    for name in state.keys() - {"bin"}:
        torch.testing.assert_close(state[name], other[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("backend", "batch", "sites"), ARRANGEMENTS)
@pytest.mark.parametrize("switch", SWITCHES)
@torch.no_grad()
def test_streaming_equals_the_forward_pass(switch, backend, batch, sites):
    model, counts = make(sites, **SWITCHES[switch]), make_counts(batch, sites=sites)
    scale = torch.tensor(model.config.label_std or [1.0, 1.0])
    recorded = torch.rand(counts.shape[:3]) < 0.8
    recorded[:, :, :3] = False
    decoder = StreamingDecoder(model, batch_size=batch, sites=sites, backend=backend)
    assert decoder.backend == backend
    for bin_mask in (recorded, None):
        decoder.reset()
        expected = model(counts, bin_mask=bin_mask).predictions
        streamed = stream(decoder, counts, bin_mask)
        torch.testing.assert_close(streamed / scale, expected / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_long_stream_stays_equal_and_needs_no_more_memory(backend):
    model, counts = make(initializer_range=0.1), make_counts(bins=1200)
    decoder = StreamingDecoder(model, sites=SITES, backend=backend)
    expected = model(counts).predictions[0]
    places, worst = set(), 0.0
    for t in range(1200):
        worst = max(worst, (decoder.step(counts[0, :, t]) - expected[t]).abs().max().item())
        places.add(tuple((tensor.data_ptr(), tensor.untyped_storage().nbytes()) for tensor in decoder.state))
        if t == 400:
            gc.collect()
            before = len(gc.get_objects())
    gc.collect()
    # The state is written in place, and 800 bins leave no object behind.
    assert worst < 1e-5 and len(places) == 1 and len(gc.get_objects()) - before < 100


@pytest.mark.parametrize(("backend", "batch", "sites"), ARRANGEMENTS)
@torch.no_grad()
def test_warming_up_works_on_the_weights_and_changes_nothing(backend, batch, sites, monkeypatch):
    model, counts = make(sites, num_spatial_layers=1), make_counts(batch, bins=12, sites=sites)
    recorded = torch.rand(counts.shape[:3]) < 0.8
    decoder = StreamingDecoder(model, batch_size=batch, sites=sites, backend=backend)
    expected = stream(decoder, counts, recorded)
    decoder.reset()
    steps = []
    for t in range(counts.shape[2]):
        before = decoder.state_dict()
        decoder.warm_up()
        assert_same_state(decoder.state_dict(), before)
        steps.append(decoder.step(counts[:, :, t], recorded[:, :, t]))
        decoder.warm_up()
    streamed = torch.stack(steps).transpose(0, 1) if batch > 1 else torch.stack(steps)[None]
    assert torch.equal(streamed, expected)
    # It runs the network, on which all of this depends.
    name = {"torch": "step", "onnx": "session"}[backend]
    monkeypatch.setattr(decoder._backend, name, None)
    with pytest.raises((TypeError, AttributeError)):
        decoder.warm_up()


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_model_without_a_window_streams_up_to_the_stated_length(backend):
    model, counts = make(attention_window=None), make_counts(bins=20)
    with pytest.raises(ConfigurationError, match=r"`attention_window`.*or `max_bins`"):
        StreamingDecoder(model, sites=SITES)
    decoder = StreamingDecoder(model, sites=SITES, max_bins=20, backend=backend)
    torch.testing.assert_close(stream(decoder, counts), model(counts).predictions, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="`max_bins`=20"):
        decoder.step(counts[0, :, 0])


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_time_may_grow_without_bound(backend):
    model, counts = make(), make_counts()
    decoder = StreamingDecoder(model, sites=SITES, backend=backend)
    expected = stream(decoder, counts)
    decoder.reset()
    # Two months of bins: only differences of time may matter.
    decoder.load_state_dict({**decoder.state_dict(), "bin": 6 * 10**7 * 10})
    torch.testing.assert_close(stream(decoder, counts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_reset_and_state_dict_go_back_and_on(backend):
    model, counts = make(position_encoding="sinusoidal"), make_counts()
    decoder, other = (StreamingDecoder(model, sites=SITES, backend=backend) for _ in range(2))
    first = stream(decoder, counts[:, :, :15])
    saved = decoder.state_dict()
    rest = stream(decoder, counts[:, :, 15:])
    other.load_state_dict(saved)
    torch.testing.assert_close(stream(other, counts[:, :, 15:]), rest, atol=0, rtol=0)
    decoder.reset()
    torch.testing.assert_close(stream(decoder, counts[:, :, :15]), first, atol=0, rtol=0)
    assert_same_state(decoder.state_dict(), saved)


@pytest.mark.parametrize(("first", "second"), [("torch", "onnx"), ("onnx", "torch")])
@torch.no_grad()
def test_a_stream_goes_on_in_the_other_backend_from_a_file(first, second):
    model, counts = make(num_spatial_layers=1), make_counts()
    expected = model(counts).predictions
    begun = StreamingDecoder(model, sites=SITES, backend=first)
    stream(begun, counts[:, :, :15])
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    taken_over = StreamingDecoder(model, sites=SITES, backend=second)
    taken_over.load_state_dict(torch.load(file, weights_only=True))
    streamed = stream(taken_over, counts[:, :, 15:])
    torch.testing.assert_close(streamed, expected[:, 15:], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_stream_goes_on_in_another_process(tmp_path):
    model, counts = make(), make_counts()
    decoder = StreamingDecoder(model, sites=SITES)
    stream(decoder, counts[:, :, :15])
    model.save_pretrained(tmp_path / "model")
    torch.save({"state": decoder.state_dict(), "counts": counts}, tmp_path / "stream.pt")
    program = f"""
import sys, torch
from rpnt_hf import RPNTForMotorDecoding, StreamingDecoder
folder = sys.argv[1]
saved = torch.load(folder + "/stream.pt", weights_only=True)
decoder = StreamingDecoder(RPNTForMotorDecoding.from_pretrained(folder + "/model"), sites={SITES})
decoder.load_state_dict(saved["state"])
torch.save(torch.stack([decoder.step(saved["counts"][0, :, t]) for t in range(15, 30)]), folder + "/out.pt")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    torch.testing.assert_close(
        torch.load(tmp_path / "out.pt"), stream(decoder, counts[:, :, 15:])[0], atol=1e-6, rtol=1e-6
    )


OTHER_MODELS = {
    "window": {"attention_window": 9},
    "taps": {"context_attention": {"kernel_size": (3, 2), "context_size": 16}},
    "stem": {"stem_kernel": 3},
}


@pytest.mark.parametrize("other", OTHER_MODELS)
def test_the_state_of_another_model_or_batch_is_refused(other):
    decoder = StreamingDecoder(make(), sites=SITES, backend="torch")
    before = decoder.state_dict()
    for foreign in (
        StreamingDecoder(make(**OTHER_MODELS[other]), sites=SITES, backend="torch").state_dict(),
        StreamingDecoder(make(), sites=SITES, batch_size=2, backend="torch").state_dict(),
        {name: value for name, value in before.items() if name != "bin"},
    ):
        with pytest.raises(CheckpointError, match=r"same model.*, whose `\w+` has shape"):
            decoder.load_state_dict(foreign)
    assert_same_state(decoder.state_dict(), before)


BAD_BINS = {
    "units": ((np.zeros(UNITS),), r"must have shape \(2, 4\) or \(8,\) or \(1, 2, 4\), got \(4,\) at bin 8"),
    "nan": ((np.full((SITES, UNITS), np.nan),), "finite"),
    "infinity": ((np.full((SITES, UNITS), np.inf),), "finite"),
    "negative": ((np.full((SITES, UNITS), -1),), "0 or more, got -1"),
    "text": ((np.full((SITES, UNITS), "1"),), "must be numbers"),
    "sites": (
        (np.ones((SITES, UNITS)), [True]),
        r"shape \(2,\) or \(1, 2\), got \(1,\)",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", BAD_BINS)
@torch.no_grad()
def test_a_bad_bin_is_refused_and_the_stream_goes_on(bad, backend):
    arguments, message = BAD_BINS[bad]
    model, good = make(), make_counts(bins=12)
    decoder = StreamingDecoder(model, sites=SITES, backend=backend)
    stream(decoder, good[:, :, :8])
    before = decoder.state_dict()
    with pytest.raises(InputError, match=message):
        decoder.step(*arguments)
    assert_same_state(decoder.state_dict(), before)
    streamed = stream(decoder, good[:, :, 8:])
    torch.testing.assert_close(streamed, model(good).predictions[:, 8:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, bool, torch.uint8, torch.bfloat16])
def test_counts_of_any_numeric_type_are_taken(dtype):
    counts = make_counts(bins=1).clamp(max=1)[0, :, 0]
    typed = counts.to(dtype) if isinstance(dtype, torch.dtype) else counts.numpy().astype(dtype)
    forms = (counts, typed, typed.reshape(-1))
    outputs = [StreamingDecoder(make(), sites=SITES).step(given) for given in forms]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


@pytest.mark.parametrize("option", ["batch_size", "sites", "num_threads"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ConfigurationError, match=f"`{option}` must be at least 1, got 0"):
        StreamingDecoder(make(), **{option: 0})


def test_learned_positions_cannot_stream():
    with pytest.raises(ConfigurationError, match="'learned'"):
        StreamingDecoder(make(position_encoding="learned"))


def test_the_fast_backend_is_taken_where_it_can_be(monkeypatch):
    model = make()
    assert StreamingDecoder(model, sites=SITES).backend == "onnx"
    assert StreamingDecoder(make().to(torch.bfloat16), sites=SITES).backend == "torch"
    assert StreamingDecoder(make(hidden_act="silu"), sites=SITES).backend == "torch"
    with pytest.raises(ConfigurationError, match=r"float32, and this one is torch.bfloat16"):
        StreamingDecoder(make().to(torch.bfloat16), sites=SITES, backend="onnx")
    with pytest.raises(ConfigurationError, match=r"`hidden_act` gelu.*and this model has 'silu'"):
        StreamingDecoder(make(hidden_act="silu"), sites=SITES, backend="onnx")
    with pytest.raises(ConfigurationError, match="Did you mean `onnx`"):
        StreamingDecoder(model, sites=SITES, backend="onx")

    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(streaming_onnx.importlib, "import_module", missing)
    assert StreamingDecoder(model, sites=SITES).backend == "torch"
    with pytest.raises(ConfigurationError, match=r"`onnx` cannot be imported: pip install 'rpnt_hf\[onnx\]'"):
        StreamingDecoder(model, sites=SITES, backend="onnx")


def test_onnx_takes_the_stated_threads_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for threads in (1, 2):
        decoder = StreamingDecoder(make(), sites=SITES, backend="onnx", num_threads=threads)
        decoder.step(make_counts(bins=1)[0, :, 0])
        assert decoder._backend.session.get_session_options().intra_op_num_threads == threads
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_weights_are_those_of_the_model_when_the_decoder_was_made(backend):
    model, counts = make(), make_counts()
    expected = model(counts).predictions
    decoder = StreamingDecoder(model, sites=SITES, backend=backend)
    for parameter in model.parameters():
        parameter.mul_(1.5)
    torch.testing.assert_close(stream(decoder, counts), expected, atol=1e-5, rtol=1e-5)


def test_layers_that_are_not_plain_are_refused():
    class AdaptedLinear(nn.Linear):
        pass

    model = make()
    model.model.temporal_layers[1].attention.o_proj = AdaptedLinear(64, 64)
    with pytest.raises(ConfigurationError, match=r"got AdaptedLinear. Merge adapters first"):
        StreamingDecoder(model, sites=SITES)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_session_of_a_saved_processor_streams_with_its_sites_and_metadata(tmp_path, backend):
    make_processor().save_pretrained(tmp_path)
    processor = RPNTProcessor.from_pretrained(tmp_path)
    model = make(num_units=processor.num_units, num_spatial_layers=1)
    counts = torch.poisson(torch.ones(30, 5)).to(torch.uint8).numpy()
    inputs = processor(counts, session_id="today")
    assert torch.isfinite(inputs["metadata"][0, 1, :5]).all()
    assert inputs["spike_counts"].shape == (1, 2, 30, 3)
    decoder = StreamingDecoder(model, processor, "today", backend=backend)
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


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_a_session_with_more_units_than_slots_streams(backend):
    processor = RPNTProcessor(bin_size=0.05, unit_embedding="slots", num_slots=4)
    processor.add_session("today", [str(n) for n in range(10)])
    model = make(unit_embedding="slots", num_units=4)
    counts = torch.poisson(torch.ones(12, 10)).to(torch.uint8).numpy()
    decoder = StreamingDecoder(model, processor, "today", backend=backend)
    streamed = torch.stack([decoder.step(counts[t]) for t in range(12)])
    expected = model(**processor(counts, session_id="today")).predictions[0]
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float64, 1e-6)])
@torch.no_grad()
def test_weights_of_other_types_stream(dtype, tolerance):
    model, counts = make(num_spatial_layers=1).to(dtype), make_counts()
    decoder = StreamingDecoder(model, sites=SITES)
    assert decoder.backend == "torch"
    expected = model(counts.to(dtype)).predictions
    streamed = stream(decoder, counts).to(expected.dtype)
    torch.testing.assert_close(streamed, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@torch.no_grad()
def test_the_step_compiles_as_one_graph():
    model, counts = make(num_hidden_layers=1), make_counts(bins=12)
    decoder = StreamingDecoder(model, sites=SITES, backend="torch")
    decoder._backend.step = torch.compile(decoder.prepared, fullgraph=True)
    streamed = stream(decoder, counts)
    torch.testing.assert_close(streamed, model(counts).predictions, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@torch.no_grad()
def test_a_model_on_a_gpu_streams():
    model, counts = make(num_spatial_layers=1), make_counts()
    expected = model(counts).predictions
    decoder = StreamingDecoder(model.to("cuda"), sites=SITES)
    assert decoder.backend == "torch"
    torch.testing.assert_close(stream(decoder, counts).cpu(), expected, atol=1e-4, rtol=1e-4)
