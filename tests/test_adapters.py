"""Low-rank adapters: trained beside a frozen base, saved alone, merged into the base that they name."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_corpus import build_small_corpus, make_recording

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, StreamingDecoder
from rpnt_hf.adapters import (
    AdapterBase,
    AdapterConfig,
    add_adapters,
    is_adapter,
    load_adapter_decoder,
    save_adapter,
)
from rpnt_hf.cli import main as rpnt
from rpnt_hf.data.loading import load_rows, select_sessions, view_rows
from rpnt_hf.data.rows import row_behavior, scored_bins
from rpnt_hf.data.simulate import write_nwb
from rpnt_hf.decoding import decode_rows
from rpnt_hf.errors import CheckpointError, ConfigurationError
from rpnt_hf.metrics import r2_scores
from rpnt_hf.modeling_rpnt import RPNTForPreTraining
from rpnt_hf.optimization import OptimizerConfig, make_optimizer
from rpnt_hf.scripts import find_reference_checkpoint, load_script

SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_hidden_layers": 1,
    "attention_window": 8, "stem_kernel": 3,
}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"
UNITS = {"a": ["a0", "a1", "a2"], "b": ["b0", "b1"]}


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def make_processor(*sessions):
    return RPNTProcessor(bin_size=0.05, sessions={name: UNITS[name] for name in sessions}, window_bins=16)


@pytest.fixture
def base(tmp_path):
    """A pretrained checkpoint of session "a"."""
    folder = tmp_path / "base"
    RPNTForPreTraining(RPNTConfig.preset("tiny", **SMALL, num_units=3)).save_pretrained(folder)
    make_processor("a").save_pretrained(folder)
    return folder


def disturb(model):
    """Stands for training: moves every weight that would be trained."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.2 * torch.randn_like(weight)


@pytest.fixture
def adapted(base, tmp_path):
    """A saved adapter that adds session "b", and the model in memory."""
    targets = {"label_mean": [1.0, 2.0], "label_std": [3.0, 4.0]}
    config = RPNTConfig.from_dict({**RPNTConfig.from_pretrained(base).to_dict(), **targets})
    model = RPNTForMotorDecoding.from_pretrained(base, config=config)
    model.resize_unit_vocabulary(5)
    described = AdapterBase.of(model, 3, str(base), None)
    model = add_adapters(model, AdapterConfig(rank=2), rows=[3, 4])
    disturb(model)
    folder = tmp_path / "adapter"
    save_adapter(model, described, folder)
    make_processor("a", "b").save_pretrained(folder)
    return folder, model.eval()


def inputs(num_bins=12):
    counts = np.random.default_rng(0).poisson(1.0, (num_bins, 2)).astype(np.uint8)
    return make_processor("a", "b")(counts, session_id="b")


def test_a_loaded_adapter_decodes_like_the_model_that_was_saved(adapted):
    folder, trained = adapted
    model, processor = load_adapter_decoder(folder)
    assert type(model) is RPNTForMotorDecoding
    assert not model.training
    assert processor.sessions == UNITS
    torch.testing.assert_close(
        model(**inputs()).predictions, trained(**inputs()).predictions, rtol=1e-5, atol=1e-5
    )


def test_an_adapter_folder_holds_nothing_of_the_base(adapted, base):
    folder, trained = adapted
    assert not (folder / "model.safetensors").exists()
    saved = load_file(folder / WEIGHTS)
    own = load_file(base / "model.safetensors")
    assert {tuple(value.shape) for name, value in saved.items() if "trainable_tokens" in name} == {(2, 32)}
    assert not any(
        value.shape == other.shape and torch.equal(value, other)
        for value in saved.values()
        for other in own.values()
    )
    trainable = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    assert sum(value.numel() for value in saved.values()) == trainable
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert len(file.metadata()["base_sha256"]) == 64


def test_a_merged_adapter_saves_as_an_ordinary_checkpoint_and_streams(adapted, tmp_path):
    folder, trained = adapted
    model, processor = load_adapter_decoder(folder)
    model.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    again = RPNTForMotorDecoding.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(again(**inputs()).predictions, model(**inputs()).predictions, rtol=0, atol=0)
    decoder = StreamingDecoder(again, processor, "b")
    counts = inputs()["spike_counts"][0, 0].numpy()
    streamed = torch.stack([torch.as_tensor(decoder.step(bin_counts)) for bin_counts in counts])
    torch.testing.assert_close(streamed, trained(**inputs()).predictions[0], rtol=1e-4, atol=1e-4)


def test_peft_itself_reads_the_adapter(adapted, base):
    folder, trained = adapted
    model = RPNTForMotorDecoding.from_pretrained(base, config=RPNTConfig.from_pretrained(folder, num_units=3))
    model.resize_unit_vocabulary(5)
    model = PeftModel.from_pretrained(model, folder).eval()
    torch.testing.assert_close(model(**inputs()).predictions, trained(**inputs()).predictions)


def test_a_base_is_found_beside_an_adapter_that_was_moved_with_it(adapted, base, tmp_path):
    folder, _ = adapted
    expected = load_adapter_decoder(folder)[0](**inputs()).predictions
    (tmp_path / "elsewhere").mkdir()
    for path in (folder, base):
        path.rename(tmp_path / "elsewhere" / path.name)
    model, _ = load_adapter_decoder(tmp_path / "elsewhere" / folder.name)
    torch.testing.assert_close(model(**inputs()).predictions, expected, rtol=0, atol=0)
    model, _ = load_adapter_decoder(
        tmp_path / "elsewhere" / folder.name, base=tmp_path / "elsewhere" / base.name
    )
    torch.testing.assert_close(model(**inputs()).predictions, expected, rtol=0, atol=0)


def test_a_bundled_base_is_found_by_its_name(tmp_path):
    name, folder = "rpnt-tiny-synthetic", tmp_path / "adapter"
    source = find_reference_checkpoint(name)
    targets = {"label_mean": [1.0, 2.0], "label_std": [3.0, 4.0]}
    config = RPNTConfig.from_dict({**RPNTConfig.from_pretrained(source).to_dict(), **targets})
    model = RPNTForMotorDecoding.from_pretrained(source, config=config)
    described = AdapterBase.of(model, model.config.num_units, name, None)
    save_adapter(add_adapters(model, AdapterConfig(rank=2), rows=[0]), described, folder)
    processor = RPNTProcessor.from_pretrained(source)
    processor.save_pretrained(folder)
    _, loaded = load_adapter_decoder(folder)
    assert loaded.sessions == processor.sessions


def other_base(folder, sessions=("a",), **fields):
    processor = make_processor(*sessions)
    config = RPNTConfig.preset("tiny", **{**SMALL, **fields}, num_units=processor.num_units)
    RPNTForPreTraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "weights differ"),
        ({"intermediate_size": 16}, "other shapes"),
        ({"num_hidden_layers": 2}, "other weights"),
        ({"sessions": ("b",)}, "unit vocabulary"),
    ],
)
def test_an_adapter_refuses_another_base(adapted, tmp_path, changes, reason):
    torch.manual_seed(1)
    base = other_base(tmp_path / "other", **changes)
    with pytest.raises(CheckpointError, match=f"must be applied to the checkpoint .*{reason}"):
        load_adapter_decoder(adapted[0], base=base)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def break_weights(folder, change):
    path = folder / WEIGHTS
    with safe_open(path, "pt") as file:
        metadata, saved = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(saved, metadata)
    save_file(saved, path, metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / WEIGHTS).unlink(),
            "has no `adapter_model.safetensors`",
        ),
        (
            lambda folder: (folder / WEIGHTS).write_bytes(b"torn"),
            "whole safetensors file",
        ),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "must describe low-rank adapters"),
        (lambda folder: edit_json(folder / "adapter_config.json", peft_type="LOHA"), "'LORA'"),
        (lambda folder: edit_json(folder / "adapter_config.json", use_dora=True), "`use_dora` .*differ"),
        (lambda folder: edit_json(folder / "adapter_config.json", r=3), "must hold the weights"),
        (
            lambda folder: edit_json(folder / "adapter_config.json", base_model_name_or_path="gone/away"),
            "'gone/away', but that cannot be loaded",
        ),
        (
            lambda folder: break_weights(folder, lambda saved, _: saved.pop(next(iter(saved)))),
            r"must hold the weights .*1 in all",
        ),
        (
            lambda folder: break_weights(folder, lambda _, metadata: metadata.pop("base_sha256")),
            "base_sha256",
        ),
    ],
)
def test_a_damaged_adapter_gives_one_clear_error(adapted, damage, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    damage(adapted[0])
    with pytest.raises(CheckpointError, match=message):
        load_adapter_decoder(adapted[0])


def test_pickled_adapter_weights_are_not_read(adapted):
    folder, _ = adapted
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="weights in other formats are not read"):
        load_adapter_decoder(folder)


def test_trained_rows_are_not_decayed(base):
    model = RPNTForMotorDecoding.from_pretrained(base)
    model = add_adapters(model, AdapterConfig(), rows=[1])
    decayed, *rest = make_optimizer(model, OptimizerConfig()).param_groups
    assert all(group["weight_decay"] == 0 for group in rest)
    assert any(weight.shape == (1, 32) for group in rest for weight in group["params"])
    assert all(weight.ndim == 2 for weight in decayed["params"])
    assert len(decayed["params"]) == 2 * 4 + 2  # four linear layers, the pooling score and the decoder


@pytest.mark.parametrize("fields", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_an_adapter_config_out_of_range_is_refused(fields):
    with pytest.raises(ConfigurationError, match=f"`{next(iter(fields))}` of AdapterConfig must be"):
        AdapterConfig(**fields)


def train(script, corpus, output_dir, *arguments):
    small = [f"--model.{name}={value}" for name, value in SMALL.items()]
    common = ["--cpu=true", "--window_bins=16", "--batch_size=8", "--optimizer.averaging_decay=0.9"]
    main = load_script(f"training/{script}.py").main
    return main([f"--data={corpus}", f"--output_dir={output_dir}", *small, *common, *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A corpus, a model pretrained on session "a" and adapters of session "b"."""
    folder = tmp_path_factory.mktemp("adapters")
    corpus = build_small_corpus(folder / "corpus")
    train("pretrain", corpus, folder / "base", "--exclude_sessions=[b]", "--epochs=2")
    arguments = [
        "--sessions=[b]", f"--init={folder / 'base'}", "--mode=adapters", "--adapters.rank=4", "--epochs=6",
        "--optimizer.learning_rate=0.01",
    ]  # fmt: skip
    results = train("finetune", corpus, folder / "adapter", *arguments)
    return corpus, folder, results, arguments


def test_mode_adapters_trains_and_saves_what_was_scored(trained):
    corpus, folder, results, _ = trained
    assert is_adapter(folder / "adapter")
    assert not is_adapter(folder / "base")
    assert not (folder / "adapter" / "model.safetensors").exists()
    assert results["mode"] == "adapters"
    model, processor = load_adapter_decoder(folder / "adapter")
    assert results["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert model.config.target_names == ["cursor_vel_x", "cursor_vel_y"]
    rows = select_sessions(view_rows(load_rows(corpus, split="test")), ["b"])
    decoded = decode_rows(model, processor, rows)
    masks = [scored_bins(row) for row in rows]
    r2 = r2_scores(
        np.concatenate([row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)]),
        np.concatenate([values[mask] for values, mask in zip(decoded, masks, strict=True)]),
    )["r2"]
    assert r2 == pytest.approx(results["test"]["r2"], abs=1e-5)


def test_a_resumed_adapter_run_equals_an_uninterrupted_one(trained, tmp_path):
    corpus, folder, _, arguments = trained
    shutil.copytree(folder / "adapter", tmp_path / "run")
    (tmp_path / "run" / WEIGHTS).unlink()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert len(checkpoints) == 1
    train("finetune", corpus, tmp_path / "run", *arguments, "--resume=true")
    torch.testing.assert_close(
        load_file(tmp_path / "run" / WEIGHTS), load_file(folder / "adapter" / WEIGHTS), rtol=0, atol=0
    )


def test_rpnt_decode_takes_an_adapter_folder(trained, tmp_path, capsys):
    _, folder, _, _ = trained
    write_nwb(make_recording("b", num_units=5, seed=1, subject_id="B"), tmp_path / "b.nwb")
    assert rpnt(["decode", str(folder / "adapter"), str(tmp_path / "b.nwb")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_bins"] == 400


def test_adapters_are_refused_where_they_do_not_belong(trained, tmp_path):
    corpus, folder, _, _ = trained
    with pytest.raises(ConfigurationError, match="From scratch everything must be trained"):
        train("finetune", corpus, tmp_path / "run", "--mode=adapters")
    with pytest.raises(ConfigurationError, match="`adapters` belongs to `mode` 'adapters'"):
        train("finetune", corpus, tmp_path / "run", "--adapters.rank=2")
    with pytest.raises(CheckpointError, match="holds adapters without their base"):
        train("finetune", corpus, tmp_path / "run", f"--init={folder / 'adapter'}")


def test_the_base_of_others_can_be_named(base):
    model = RPNTForMotorDecoding.from_pretrained(base)
    named = AdapterBase.of(model, 3, str(base), "lab/base")
    assert (named.name, named.revision) == ("lab/base", None)
    assert named.sha256 == AdapterBase.of(model, 3, str(base), None).sha256
    assert Path(AdapterBase.of(model, 3, str(base), None).name) == base
