"""What is exported equals the model, says what it is, and runs where this package is not."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from stream_models import SITES, SWITCHES, make, make_counts, make_processor

from rpnt_hf import StreamingDecoder, export
from rpnt_hf.cli import main
from rpnt_hf.errors import CheckpointError, ConfigurationError, DatasetError, InputError
from rpnt_hf.export import export_decoder
from rpnt_hf.export_offline import OfflineDecoder

LABELS = {"label_mean": [1.0, -1.0], "label_std": [2.0, 3.0], "target_names": ["vx", "vy"]}


def make_decoder(**overrides):
    """A decoder of the session "today" and its processor."""
    processor = make_processor()
    return make(
        num_units=processor.num_units, **{**LABELS, "target_units": ["cm/s"] * 2, **overrides}
    ), processor


@pytest.fixture
def offline_untraced(monkeypatch):
    """Tracing the offline model takes seconds; tests of everything else take the module that is traced."""
    monkeypatch.setattr(
        export, "_write_onnx_offline", lambda decoder, *_: OfflineDecoder(decoder.prepared, decoder.model)
    )


def run_alone(program, *arguments, without=("torch", "rpnt_hf", "transformers", "onnx")):
    """Runs a program in a process where some packages cannot be imported; its last line is JSON."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    finished = subprocess.run(
        [sys.executable, "-c", blocked + program, *map(str, arguments)], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("sites", [1, SITES])
@torch.no_grad()
def test_the_module_that_is_traced_equals_the_model(switch, sites):
    model = make(sites, **SWITCHES[switch])
    scale = torch.tensor(model.config.label_std or [1.0, 1.0])
    offline = OfflineDecoder(StreamingDecoder(model, sites=sites, backend="torch").prepared, model)
    for batch, bins in ((1, 1), (2, 30)):
        counts = make_counts(batch, bins, sites)
        recorded = torch.rand(counts.shape[:3]) < 0.8
        recorded[:, :, :3] = False
        expected = model(counts, bin_mask=recorded).predictions
        torch.testing.assert_close(offline(counts, recorded) / scale, expected / scale, atol=1e-5, rtol=1e-5)


STEP_ALONE = """
import json
sys.path.insert(0, sys.argv[1])
import numpy as np
from run_step import ExportedStep
runner = ExportedStep(sys.argv[1])
counts = np.load(sys.argv[2])
outputs = []
for _ in range(2):
    runner.reset()
    outputs.append([runner.step(bin_counts[None])[0].tolist() for bin_counts in counts])
print(json.dumps({"outputs": outputs, "description": runner.description}))
"""


@pytest.mark.parametrize(
    "switch",
    [
        "default",
        "window of one",
        "no kernels",
        "both stems",
        "spatial",
        "sinusoidal",
    ],
)
def test_an_exported_step_runs_with_numpy_and_onnxruntime_alone(switch, tmp_path, offline_untraced):
    model, processor = make_decoder(**SWITCHES[switch])
    report = export_decoder(model, processor, tmp_path / "out", "onnx", "today")
    assert report["files"] == ["run_step.py", "step.onnx", "step_state.npz"]
    counts = np.random.default_rng(0).poisson(1.0, size=(25, 5)).astype(np.uint8)
    np.save(tmp_path / "counts.npy", counts)
    printed = run_alone(STEP_ALONE, tmp_path / "out", tmp_path / "counts.npy")
    decoder = StreamingDecoder(model, processor, "today", backend="torch")
    expected = np.stack([decoder.step(bin_counts).numpy() for bin_counts in counts])
    for outputs in printed["outputs"]:  # the second time after a reset
        np.testing.assert_allclose(outputs, expected, atol=1e-5, rtol=1e-5)
    about = printed["description"]
    assert about["format_version"] == export.FORMAT_VERSION
    assert (about["session_id"], about["units"]) == ("today", ["a", "b", "c", "d", "e"])
    assert (about["bin_size"], about["target_names"], about["target_units"]) == (
        0.05,
        ["vx", "vy"],
        ["cm/s"] * 2,
    )


def test_parallel_streams_and_a_model_without_a_window_are_exported(tmp_path, offline_untraced):
    model, processor = make_decoder(attention_window=None)
    report = export_decoder(model, processor, tmp_path / "out", "onnx", "today", batch_size=3, max_bins=20)
    assert report["step"]["num_bins"] == 20 and report["step"]["parity"] < 1e-4
    with pytest.raises(ConfigurationError, match="or `max_bins`"):
        export_decoder(model, processor, tmp_path / "other", "onnx", "today")


def test_what_differs_from_the_model_is_not_written(tmp_path, monkeypatch, offline_untraced):
    model, processor = make_decoder()
    monkeypatch.setattr(export, "_forward", lambda *inputs, forward=export._forward: forward(*inputs) + 1e-3)
    with pytest.raises(CheckpointError, match=r"exported offline must equal the model.*Nothing was written"):
        export_decoder(model, processor, tmp_path / "out", "onnx", "today")
    assert not list(tmp_path.iterdir())


def test_export_refuses_what_it_cannot_do(tmp_path, monkeypatch, offline_untraced):
    model, processor = make_decoder()
    with pytest.raises(ConfigurationError, match="Did you mean `onnx`"):
        export_decoder(model, processor, tmp_path / "out", "onx", "today")
    with pytest.raises(
        InputError, match=r"must be a session of the vocabulary \('earlier', 'today'\), got 'None'"
    ):
        export_decoder(model, processor, tmp_path / "out", "onnx")
    with pytest.raises(ConfigurationError, match="'learned'"):
        export_decoder(*make_decoder(position_encoding="learned"), tmp_path / "out", "onnx", "today")
    monkeypatch.setattr(export, "find_obstacle", lambda step: "`onnx` cannot be imported")
    with pytest.raises(
        ConfigurationError, match="`format`='onnx' must have what it needs, but `onnx` cannot"
    ):
        export_decoder(model, processor, tmp_path / "out", "onnx", "today")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="which holds something"):
        export_decoder(model, processor, tmp_path, "onnx", "today")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_model_in_bf16_is_exported_in_fp32_and_left_as_it_is(tmp_path, offline_untraced):
    model, processor = make_decoder()
    model.to(torch.bfloat16)
    assert export_decoder(model, processor, tmp_path / "out", "onnx", "today")["step"]["parity"] < 1e-4
    assert model.dtype == torch.bfloat16


OFFLINE_ONNX_ALONE = """
import json
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/offline.onnx")
inputs = dict(np.load(sys.argv[2]))
units = json.loads(session.get_modelmeta().custom_metadata_map["units"])
print(json.dumps({"outputs": session.run(["predictions"], inputs)[0].tolist(), "units": units}))
"""
OFFLINE_TORCH_ALONE = """
import json
import numpy as np
import torch
extra = {"description.json": ""}
program = torch.export.load(sys.argv[1] + "/offline.pt2", extra_files=extra).module()
inputs = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[2]).items()}
units = json.loads(extra["description.json"])["units"]
step = torch.export.load(sys.argv[1] + "/step.pt2").module()
state = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1] + "/step_state.npz").items()}
first = step(inputs["spike_counts"][:1, :, 0], **state)[0]
outputs = program(inputs["spike_counts"], inputs["bin_mask"])
print(json.dumps({"outputs": outputs.tolist(), "units": units, "first": first[0].tolist()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "program", "without"),
    [
        ("onnx", OFFLINE_ONNX_ALONE, ("torch", "rpnt_hf", "transformers", "onnx")),
        ("torch", OFFLINE_TORCH_ALONE, ("rpnt_hf", "transformers", "onnx", "onnxruntime")),
    ],
    ids=["onnx", "torch"],
)
@torch.no_grad()
def test_the_command_exports_checks_and_times_both_programs(format, program, without, tmp_path, capsys):
    model, processor = make_decoder(num_spatial_layers=1, recurrent_stem=True, layer_scale=0.5)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    options = ["--format", format, "--out", str(tmp_path / "out"), "--session-id", "today"]
    assert main(["export", str(tmp_path / "checkpoint"), *options]) == 0
    *files, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert files == [str(tmp_path / "out" / name) for name in report["files"]]
    for part in ("offline", "step"):
        assert report[part]["parity"] < 1e-4
        assert report[part]["exported_ms"] > 0 and report[part]["torch_ms"] > 0

    counts = np.random.default_rng(0).poisson(1.0, size=(40, 5)).astype(np.uint8)
    inputs = processor(counts, session_id="today")
    recorded = torch.rand(2, SITES, 40) < 0.8
    recorded[:, :, 0] = True
    doubled = {name: value.expand(2, *value.shape[1:]) for name, value in inputs.items()}
    np.savez(
        tmp_path / "window.npz",
        spike_counts=doubled["spike_counts"].float().numpy(),
        bin_mask=recorded.numpy(),
    )
    printed = run_alone(program, tmp_path / "out", tmp_path / "window.npz", without=without)
    expected = model(**{**doubled, "bin_mask": recorded}).predictions
    np.testing.assert_allclose(printed["outputs"], expected, atol=1e-4, rtol=1e-4)
    assert printed["units"] == ["a", "b", "c", "d", "e"]
    if "first" in printed:
        np.testing.assert_allclose(printed["first"], expected[0, 0], atol=1e-4, rtol=1e-4)
