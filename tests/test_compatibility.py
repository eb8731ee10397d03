"""Checkpoints of every released format version load, whole, and compute what they did when they were made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForPreTraining, AutoModelForTimeSeriesPrediction, AutoProcessor

from rpnt_hf import load_decoder
from rpnt_hf.configuration_rpnt import FORMAT_VERSION
from rpnt_hf.errors import CheckpointError

FORMATS = sorted((Path(__file__).parent / "fixtures").glob("format_*"))
# Checkpoint, its session, and how it is loaded; adapters have no Auto class.
CHECKPOINTS = {
    "pretrained": ("monday", AutoModelForPreTraining),
    "decoder": ("monday", AutoModelForTimeSeriesPrediction),
    "slots": ("monday", AutoModelForTimeSeriesPrediction),
    "adapter": ("tuesday", None),
}


def load(folder, auto_class):
    """Loads a checkpoint and makes sure that each of its weights found its place."""
    if auto_class is None:
        return load_decoder(folder)
    model, loading = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval(), AutoProcessor.from_pretrained(folder)


def test_the_present_format_has_its_checkpoints():
    assert f"format_{FORMAT_VERSION}" in [folder.name for folder in FORMATS]


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_released_checkpoint_computes_what_it_did(folder, name):
    session_id, auto_class = CHECKPOINTS[name]
    model, processor = load(folder / name, auto_class)
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "expected.safetensors")
    batch = processor(inputs[f"counts.{session_id}"].numpy(), session_id=session_id)
    for key, value in batch.items():
        torch.testing.assert_close(value, inputs[f"{name}.{key}"], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        outputs = model(**batch)
    recorded = {
        key.removeprefix(f"{name}."): value for key, value in expected.items() if key.startswith(name)
    }
    assert recorded
    for key, value in recorded.items():
        torch.testing.assert_close(outputs[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_a_released_processor_knows_what_was_fitted(folder):
    _, processor = load_decoder(folder / "decoder")
    assert (processor.bin_size, processor.window_bins, processor.subjects) == (0.02, 20, ["A", "B"])
    source = {"file_name": "monday.nwb", "sha256": None}
    fitted = processor.is_fitted("monday", source, np.array([1.05, 1.11, 2.09, 2.11]))
    assert fitted.tolist() == [False, True, True, False]


def rename(folder, change):
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda weights: weights.pop("decoder.bias"), "decoder.bias"),
        (lambda weights: weights.update({"decoder.scale": torch.ones(2)}), "decoder.scale"),
    ],
    ids=["missing", "unexpected"],
)
def test_weights_are_neither_made_up_nor_left_over(tmp_path, change, key):
    folder = tmp_path / "decoder"
    shutil.copytree(FORMATS[-1] / "decoder", folder)
    rename(folder, change)
    with pytest.raises(CheckpointError, match=f"every weight of its model.*{key}"):
        load_decoder(folder)
