"""What can be wrong with a checkpoint on the Hub: one clear error each, no code run, nothing half-written."""

import ast
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from hub_server import HubServer
from safetensors import SafetensorError
from small_corpus import build_small_corpus, make_recording
from transformers import AutoModel, AutoModelForTimeSeriesPrediction

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining, RPNTProcessor
from rpnt_hf.adapters import AdapterBase, AdapterConfig, add_adapters, save_adapter
from rpnt_hf.checkpoints import MANIFEST, RunFolder, TrainingProgress, write_manifest
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.errors import CheckpointError, HubError
from rpnt_hf.hub import load_decoder
from rpnt_hf.initialization import from_checkpoint, from_scratch
from rpnt_hf.scripts import find_script

ROOT = Path(__file__).resolve().parents[1]
NUM_UNITS = 6

# Loads decoders one after another, and prints for each what was raised, and how long it took.
SCRIPT = """
import json, os, sys, time

import rpnt_hf
from rpnt_hf.hub import load_decoder
from rpnt_hf.initialization import from_checkpoint, from_scratch
from rpnt_hf.scripts import find_script

results = []
for checkpoint, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    began, error = time.perf_counter(), None
    try:
        load_decoder(checkpoint)
    except Exception as caught:
        error = caught
    bases = [base.__name__ for base in type(error).__mro__]
    results.append([bases, str(error or ""), time.perf_counter() - began])
print(json.dumps(results))
"""


class Payload:
    """What a pickle of it does when it is loaded: it writes a file."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def run(environment, cases, cwd):
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def check(result, kind, *words, seconds=None):
    bases, message, took = result
    assert kind in bases and "RPNTError" in bases, (bases, message)
    assert "\n" not in message and len(message) < 700, message
    for word in words:
        assert word in message, message
    assert seconds is None or took < seconds, (took, message)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of a tiny decoder."""
    folder = tmp_path_factory.mktemp("decoder")
    config = RPNTConfig.preset("tiny", num_units=NUM_UNITS)
    RPNTForMotorDecoding(config).save_pretrained(folder)
    RPNTProcessor(bin_size=0.02, sessions={"today": [str(n) for n in range(NUM_UNITS)]}).save_pretrained(
        folder
    )
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def adapter_files(folder, files, base):
    """Files of an adapter that was trained on other weights than those of `base`."""
    (folder / "base").mkdir()
    for name, content in files.items():
        (folder / "base" / name).write_bytes(content)
    model = RPNTForMotorDecoding.from_pretrained(folder / "base")
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    described = AdapterBase.of(model, NUM_UNITS, str(folder / "base"), base)
    save_adapter(add_adapters(model, AdapterConfig(), []), described, folder / "adapter")
    RPNTProcessor.from_pretrained(folder / "base").save_pretrained(folder / "adapter")
    return {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}


def test_a_broken_or_hidden_checkpoint_is_one_clear_error(hub, files, tmp_path, monkeypatch):
    weights = files["model.safetensors"]
    others = {name: content for name, content in files.items() if name != "model.safetensors"}
    config = json.loads(files["config.json"])
    proof = tmp_path / "code was run"
    payload = pickle.dumps(Payload(proof))

    def add(name, **changed):
        changed = {path.replace("__", "."): content for path, content in changed.items()}
        hub.add_repository(f"faults/{name}", files={**others, "model.safetensors": weights, **changed})

    add("good")
    add("private")
    hub.repository("faults/private").private = True
    add("truncated", model__safetensors=weights[: len(weights) // 2])
    add("corrupt", model__safetensors=b"\xff" * 8 + weights[8:])
    add("newer", config__json=json.dumps({**config, "format_version": 99, "new_field": 1}).encode())
    add("no-json", config__json=b"{")
    add("damaged")
    add("short")
    add("down")
    hub.add_repository("faults/pickle", files={**others, "pytorch_model.bin": payload})
    hub.add_repository("faults/disguised", files={**others, "model.safetensors": payload})
    hub.add_repository("faults/empty", files={"README.md": b"Nothing yet"})
    hub.add_repository("faults/adapter", files=adapter_files(tmp_path, files, "faults/good"))
    hub.break_requests("*/faults/damaged/model.safetensors", "corrupt", times=1)
    hub.break_requests("*/faults/short/model.safetensors", "truncate", times=1)
    hub.break_requests("*/faults/down*", "error")
    stranger = "hf_stranger"
    expected = {
        ("faults/none", stranger): ("HubError", "'faults/none'", "does not exist, is private"),
        ("faults/none", ""): ("HubError", "'faults/none'", "does not exist, is private", "hf auth login"),
        ("faults/private", stranger): ("HubError", "'faults/private'", "does not exist, is private"),
        ("faults/private", ""): ("HubError", "'faults/private'", "hf auth login"),
        ("faults/good", "hf_wrong"): ("HubError", "'faults/good'", "token"),
        ("faults/good@v9", stranger): ("HubError", "'faults/good'", "no such revision"),
        ("faults/truncated", stranger): ("CheckpointError", "'faults/truncated'"),
        ("faults/corrupt", stranger): ("CheckpointError", "'faults/corrupt'"),
        ("faults/newer", stranger): ("ConfigurationError", "got 99", "Upgrade"),
        ("faults/no-json", stranger): ("CheckpointError", "config.json"),
        ("faults/pickle", stranger): ("CheckpointError", "'faults/pickle'", "can hold code"),
        ("faults/disguised", stranger): ("CheckpointError", "'faults/disguised'"),
        ("faults/empty", stranger): ("CheckpointError", "'faults/empty'", "config.json"),
        ("faults/damaged", stranger): ("CheckpointError", "model.safetensors", "digest"),
        ("faults/short", stranger): ("HubError", "'faults/short'", "did not come to its end"),
        ("faults/adapter", stranger): ("CheckpointError", "'faults/good'", "weights differ"),
    }
    slow = {("faults/down", stranger): ("HubError", "'faults/down'", "503")}
    loaded = [("faults/damaged", stranger), ("faults/short", stranger), ("faults/good", stranger)]
    home = tmp_path / "home"
    try:
        results = run(hub.environment(home), [*expected, *slow, *loaded], tmp_path)
    finally:
        hub.mend()
    for (case, words), result in zip([*expected.items(), *slow.items()], results, strict=False):
        assert result[1], f"{case} was loaded"
        check(result, *words, seconds=10)
    for case, result in zip(loaded, results[-len(loaded) :], strict=True):
        assert not result[1], (case, result)
    assert not proof.exists()
    # What is in the cache under the name of its digest has that digest, and nothing is left over.
    blobs = [path for path in home.rglob("blobs/*") if not path.name.endswith(".incomplete")]
    assert blobs
    for path in blobs:
        if len(path.name) == 64:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, path
    assert not list(home.rglob("*.incomplete"))
    # What is there still loads when the Hub has gone.
    with HubServer() as stopped:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stopped.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    model, _ = load_decoder("faults/good")
    assert torch.equal(model.decoder.weight, safetensors.torch.load(weights)["decoder.weight"])
    with pytest.raises(HubError, match=r"'faults/none' .* cannot be reached"):
        load_decoder("faults/none")


def test_without_network_a_misspelt_name_fails_in_seconds(tmp_path, monkeypatch):
    with HubServer() as stopped:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stopped.url)
    rows = view_rows(load_rows(build_small_corpus(tmp_path / "corpus")))
    began = time.perf_counter()
    for name in ("org/misspelt", "misspelt"):
        said = f"'{name}' is no folder here and cannot be loaded .* at {stopped.url} cannot be reached"
        with pytest.raises(HubError, match=said):
            load_decoder(name)
        with pytest.raises(HubError, match=said):
            from_checkpoint(RPNTForMotorDecoding, name, {}, rows, window_bins=16)
    assert time.perf_counter() - began < 10


@pytest.mark.slow
def test_training_begins_with_a_checkpoint_of_the_hub_at_a_revision(hub, tmp_path):
    corpus = build_small_corpus(tmp_path / "corpus")
    shape = {"hidden_size": 32, "num_attention_heads": 1, "num_hidden_layers": 1}
    rows = view_rows(load_rows(corpus))
    model, processor = from_scratch(RPNTForPreTraining, "tiny", shape, rows, window_bins=16)
    model.save_pretrained(tmp_path / "pretrained")
    processor.save_pretrained(tmp_path / "pretrained")
    files = {path.name: path.read_bytes() for path in (tmp_path / "pretrained").iterdir()}
    repository = hub.add_repository("org/for-training", files=files)
    commit = repository.branches["main"].oid
    repository.add_files({"model.safetensors": b"a later one that is broken"})
    home, script = hub.environment(tmp_path / "home"), find_script("training/finetune.py")
    arguments = ["--cpu=true", "--window_bins=16", "--epochs=1", f"--data={corpus}", "--output_dir=out"]
    for revision, succeeds in ((f"@{commit}", True), ("", False)):
        command = [sys.executable, str(script), *arguments, f"--init=org/for-training{revision}"]
        result = subprocess.run(
            command, env=home, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
        )
        assert (result.returncode == 0) == succeeds, result.stderr[-3000:]
        if succeeds:
            assert (tmp_path / "out" / "model.safetensors").is_file()
            shutil.rmtree(tmp_path / "out")
        else:
            assert "error: `init` must be" in result.stderr and "Traceback" not in result.stderr
            assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_network_that_swallows_requests_is_given_up_in_seconds(hub, tmp_path):
    hub.break_requests("*/org/swallowed*", "hang", seconds=60)
    try:
        (result,) = run(hub.environment(tmp_path / "home"), [("org/swallowed", "")], tmp_path)
    finally:
        hub.mend()
    check(result, "HubError", "'org/swallowed'", "cannot be reached", seconds=15)


@pytest.mark.slow
def test_the_command_line_says_it_in_one_paragraph_and_writes_nothing(tmp_path):
    recording = write_nwb(make_recording("today"), tmp_path / "today.nwb")
    with HubServer() as stopped:
        environment = stopped.environment(tmp_path / "home")
    command = ["-m", "rpnt_hf.cli", "decode", "org/misspelt", str(recording), "--out", "out/table.parquet"]
    result = subprocess.run(
        [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("rpnt: 'org/misspelt'") and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.safetensors"]
)
def test_weights_in_a_pickle_are_not_read_whatever_is_asked(files, tmp_path, name):
    proof, folder = tmp_path / "code was run", tmp_path / "decoder"
    folder.mkdir()
    for path, content in files.items():
        if path != "model.safetensors":
            (folder / path).write_bytes(content)
    torch.save(Payload(proof), folder / name)
    index = {"metadata": {}, "weight_map": {"decoder.bias": name}}
    if "-of-" in name:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for asked in ({}, {"use_safetensors": False}, {"weights_only": False, "use_safetensors": None}):
        for load in (RPNTForMotorDecoding, AutoModelForTimeSeriesPrediction, AutoModel):
            with pytest.raises((OSError, SafetensorError)):
                load.from_pretrained(folder, **asked)
    with pytest.raises(CheckpointError, match=r"can hold code|cannot be loaded"):
        load_decoder(folder)
    if name == "pytorch_model.bin":  # nor is one that would be harmless
        torch.save(safetensors.torch.load(files["model.safetensors"]), folder / name)
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            RPNTForMotorDecoding.from_pretrained(folder)
    assert not proof.exists()


def test_a_run_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path):
    proof = tmp_path / "code was run"
    folder = RunFolder(tmp_path / "run", {}, resume=False, keep=1)
    folder.open()
    accelerator, progress = Accelerator(cpu=True), TrainingProgress()
    model = torch.nn.Linear(2, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(progress)
    progress.step = 3
    folder.save_checkpoint(accelerator, 3)
    progress.step = 0
    saved = folder.load_last_checkpoint(accelerator)
    assert progress.step == 3
    names = {path.name for path in saved.iterdir()} - {"model.safetensors", MANIFEST}
    assert {"custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl"} <= names
    for name in names:
        good = (saved / name).read_bytes()
        torch.save(Payload(proof), saved / name)
        with pytest.raises(CheckpointError, match=rf"each is damaged: .*`{name}`"):
            folder.load_last_checkpoint(accelerator)
        write_manifest(saved, 1)  # as one who means harm would
        with pytest.raises(CheckpointError, match=rf"`{name}`.*holds code, which is not run"):
            folder.load_last_checkpoint(accelerator)
        (saved / name).write_bytes(pickle.dumps(Payload(proof)))
        write_manifest(saved, 1)
        with pytest.raises(CheckpointError, match=rf"`{name}`"):
            folder.load_last_checkpoint(accelerator)
        (saved / name).write_bytes(good[: len(good) // 2])
        write_manifest(saved, 1)
        with pytest.raises(CheckpointError, match=rf"`{name}`.*is broken"):
            folder.load_last_checkpoint(accelerator)
        (saved / name).write_bytes(good)
        write_manifest(saved, 1)
    assert not proof.exists()
    torch.save(Payload(proof), saved / "shown.pkl")
    torch.load(saved / "shown.pkl", weights_only=False)  # the payload would have worked
    assert proof.exists()


def test_no_module_loads_a_pickle():
    loaders = {
        ("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("torch", "load"),
        ("joblib", "load"), ("pandas", "read_pickle"), ("pd", "read_pickle"), ("dill", "load"),
    }  # fmt: skip
    found = []
    for folder in ("src", "training", "dataset_builders", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    found += [(path.name, node.lineno)] if (node.value.id, node.attr) in loaders else []
                elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
                    safe = isinstance(node.value, ast.Constant) and node.value.value is (
                        node.arg != "allow_pickle"
                    )
                    found += [] if safe else [(path.name, node.value.lineno)]
                elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "joblib", "dill"):
                    names = {alias.name for alias in node.names} - {"UnpicklingError"}
                    found += [(path.name, node.lineno)] if names else []
    assert not found
