"""Cards say what `results.json` says, leave nothing blank, and hold metadata that the Hub accepts."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from small_corpus import build_small_corpus

from rpnt_hf.cards import CONVENTIONS, render_card, render_eval_results, write_card
from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.data.card import REPO_PLACEHOLDER
from rpnt_hf.data.loading import load_rows, unit_means, view_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.decoding import decode_rows
from rpnt_hf.errors import CheckpointError
from rpnt_hf.evaluation.statistics import (
    TrialSums,
    bits_per_spike_interval,
    r2_intervals,
    scored_trials,
    trial_scores,
)
from rpnt_hf.metrics import bits_per_spike
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding, RPNTForPreTraining
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.push import plan_push
from rpnt_hf.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "--model.hidden_size=32", "--model.intermediate_size=32", "--model.num_attention_heads=1",
    "--model.num_hidden_layers=1", "--model.attention_window=8", "--model.stem_kernel=3", "--cpu=true",
    "--window_bins=16", "--batch_size=8", "--epochs=2",
]  # fmt: skip
KINDS = ["pretrained", "decoder", "adapter", "scratch"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Leaves nothing of an accelerator for tests that follow."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint of each kind: pretrained on "a", decoders of "b", one of both from scratch."""
    out = tmp_path_factory.mktemp("runs")
    build_small_corpus(out / "corpus")
    runs = {
        "pretrained": ("pretrain", ["--exclude_sessions=[b]"]),
        "decoder": ("finetune", ["--sessions=[b]", f"--init={out / 'pretrained'}", "--training_trials=5"]),
        "adapter": ("finetune", ["--sessions=[b]", f"--init={out / 'pretrained'}", "--mode=adapters"]),
        "scratch": ("finetune", ["--model.unit_embedding=slots", "--num_slots=3"]),
    }
    for name, (script, arguments) in runs.items():
        main = load_script(f"training/{script}.py").main
        fields = SMALL[6:] if name == "adapter" else SMALL
        if name == "adapter":
            pytest.importorskip("peft")
        main([f"--data={out / 'corpus'}", f"--output_dir={out / name}", *fields, *arguments])
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    return {name: out / name for name in runs}


@pytest.fixture
def results(folders):
    return {name: json.loads((folder / "results.json").read_text()) for name, folder in folders.items()}


@pytest.fixture
def configs(folders):
    return {name: RPNTConfig.from_pretrained(folder) for name, folder in folders.items()}


def leaves(value, place=()):
    """Every place in nested dictionaries and lists that holds a plain value, or nothing more."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, item in items for leaf in leaves(item, (*place, key))]
    return found or [place]


def changed(results, place, value=None, drop=False):
    """A copy of results with one value changed or left out."""
    results = copy.deepcopy(results)
    inner = results
    for key in place[:-1]:
        inner = inner[key]
    if drop:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_a_card_that_the_hub_accepts(folders, results, kind, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    card = ModelCard.load(folders[kind] / "README.md")
    card.validate()
    data = card.data
    assert data.library_name == ("peft" if kind == "adapter" else "transformers")
    assert data.datasets == ["nwb"] and data.license == "unknown"
    assert data.model_name == kind
    related = {"decoder": "finetune", "adapter": "adapter"}
    assert data.get("base_model") == ("pretrained" if kind in related else None)
    assert data.get("base_model_relation") == related.get(kind)
    assert not list(folders[kind].glob(".README*")) and not list(folders[kind].glob(".eval_results/.*"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_index_reads_back_as_the_scores_of_the_results(folders, results, kind):
    head = yaml.safe_load((folders[kind] / "README.md").read_text().split("---\n")[1])
    name, entries = model_index_to_eval_results(head["model-index"])
    assert name == kind
    assert ModelCard.load(folders[kind] / "README.md").data.eval_results == entries
    again = render_card(results[kind], RPNTConfig.from_pretrained(folders[kind]), kind)
    assert again.data.eval_results == entries
    part = results[kind]["validation" if kind == "pretrained" else "test"]
    if kind == "pretrained":
        expected = {"Bits per spike": (part["bits_per_spike"], part["interval"])}
    else:
        titles = {key: title for key, title in CONVENTIONS.items() if part[key] is not None}
        expected = {f"R2, {title}": (part[key], part["intervals"][key]) for key, title in titles.items()}
    assert {e.metric_name: (e.metric_value, e.metric_args["interval"]) for e in entries} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_eval_results_read_back_as_the_first_score(folders, results, kind):
    written = yaml.safe_load((folders[kind] / ".eval_results" / "rpnt.yaml").read_text())
    assert huggingface_hub.parse_eval_result_entries(written) == render_eval_results(results[kind])
    part = results[kind]["validation" if kind == "pretrained" else "test"]
    assert written[0]["value"] == part["bits_per_spike" if kind == "pretrained" else "r2"]
    assert f"content {results[kind]['data']['fingerprint']}" in written[0]["notes"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_card_states_is_in_the_results(folders, results, configs, kind):
    text = (folders[kind] / "README.md").read_text()
    found, data = results[kind], results[kind]["data"]
    build = json.loads((folders[kind].parent / "corpus" / "rpnt_build.json").read_text())
    head = (folders[kind].parent / "corpus" / "README.md").read_text()
    assert data["corpus"] == build["corpus"] and f"content {data['fingerprint']}" in head
    rows = {
        "version": f"content {data['fingerprint']}",
        "subjects": {"pretrained": "A", "scratch": "A, B"}.get(kind, "B"),
        "sessions": str(len(found["sessions"])),
        "bin size": "0.05 s",
        "parameters": f"{found['parameters']:,}",
        "without unit embeddings": f"{found['parameters_without_units']:,}",
        "time": f"{found['training']['seconds']:.1f} s",
        "commit of `rpnt_hf`": found["run"]["commit"] or "not run from a git checkout",
    }
    for name, value in rows.items():
        assert f"| {name} | {value}" in text
    assert "70 % training, 10 % validation, 20 % test" in text
    assert found["run"]["command"] in text
    model_class = RPNTForPreTraining if kind == "pretrained" else RPNTForMotorDecoding
    model = model_class(configs[kind])
    assert found["parameters"] == sum(weight.numel() for weight in model.parameters())
    units = model.model.embeddings.unit_embedding.weight.numel()
    assert found["parameters_without_units"] == found["parameters"] - units
    if kind == "decoder":
        assert "Trained on 5 training trials" in text and "pretrained had not seen b." in text
    if kind == "adapter":
        saved = sum(p.stat().st_size for p in folders[kind].glob("*.safetensors"))
        assert found["adapter_parameters"] * 4 <= saved < found["adapter_parameters"] * 4 + 5000


def test_intervals_are_those_of_the_decoded_test_trials(folders, results):
    folder = folders["decoder"]
    model, processor = RPNTForMotorDecoding.from_pretrained(folder), RPNTProcessor.from_pretrained(folder)
    rows = view_rows(load_rows(folder.parent / "corpus", split="test"))
    rows = [row for row in rows if row["session_id"] == "b"]
    trials = scored_trials(rows, decode_rows(model, processor, rows, 8))
    test = results["decoder"]["test"]
    assert test["trials"] == len(trials)
    assert test["scored_bins"] == sum(len(trial.targets) for trial in trials)
    for convention, value in trial_scores(trials).items():
        assert test[convention] == (None if value is None else pytest.approx(value, abs=1e-6))
    assert test["r2_reach"] is None and test["intervals"]["r2_reach"] is None  # the corpus has no go cue
    assert test["intervals"]["r2"] == pytest.approx(r2_intervals(TrialSums.of(trials))["r2"], abs=1e-6)
    assert test["sessions"]["b"]["r2"] == test["r2"]


def test_two_processes_give_the_trials_of_one_in_the_same_order(folders, monkeypatch):
    folder, finetune = folders["scratch"], load_script("training/finetune.py")
    model, processor = RPNTForMotorDecoding.from_pretrained(folder), RPNTProcessor.from_pretrained(folder)
    rows = view_rows(load_rows(folder.parent / "corpus", split="test"))
    alone = finetune.decode_trials(
        SimpleNamespace(process_index=0, num_processes=1), model, processor, rows, 8
    )
    gathered = []

    def gather(found):
        gathered.extend(found)
        return list(gathered)

    monkeypatch.setattr(finetune, "gather_object", gather)
    for index in (0, 1):
        part = SimpleNamespace(process_index=index, num_processes=2)
        together = finetune.decode_trials(part, model, processor, rows, 8)
    assert len(rows) > 2 and len(together) == len(alone)
    for one, two in zip(alone, together, strict=True):
        assert one.session_id == two.session_id
        np.testing.assert_array_equal(one.targets, two.targets)
        np.testing.assert_allclose(one.predictions, two.predictions, atol=1e-4)


def test_the_interval_of_bits_per_spike_is_that_of_the_validation_windows(folders, results):
    folder, pretrain = folders["pretrained"], load_script("training/pretrain.py")
    model, processor = RPNTForPreTraining.from_pretrained(folder), RPNTProcessor.from_pretrained(folder)
    train, held_out = (
        [
            row
            for row in view_rows(load_rows(folder.parent / "corpus", split=split))
            if row["session_id"] == "a"
        ]
        for split in ("train", "validation")
    )
    batches = WindowSampler(held_out, 16, 8, seed=0, pairs=True, training=False).batches(0)
    collator = WindowCollator(
        held_out, processor, masking=MaskingConfig(), mean_counts=unit_means(train), sample_units=False
    )
    windows = WindowDataset(held_out)
    sums = pretrain.window_likelihoods(Accelerator(cpu=True), model, batches, windows, collator).numpy()
    validation = results["pretrained"]["validation"]
    assert validation["windows"] == len(sums) == sum(map(len, batches))
    found = bits_per_spike_interval(sums[:, :3], ["a"] * len(sums))
    assert validation["interval"] == pytest.approx(found, abs=1e-6)
    # The sums are those of the score that `metrics` defines, on the hidden entries of all windows.
    rates, counts, null = [], [], []
    for batch in (collator(windows.__getitems__(batch)) for batch in batches):
        hidden = batch["masked_bins"][..., None] | batch["masked_units"][..., None, :]
        hidden = hidden & batch["bin_mask"][..., None] & batch["unit_mask"][..., None, :]
        means = batch["mean_counts"][..., None, :].expand_as(hidden)
        inputs = {name: value for name, value in batch.items() if name not in ("mean_counts", "labels")}
        with torch.no_grad():
            output = model(**inputs).log_rates
        for part, values in ((rates, output), (counts, batch["spike_counts"]), (null, means)):
            part.append(values[hidden].double().numpy())
    score = bits_per_spike(*(np.concatenate(part) for part in (rates, counts, null)))
    assert validation["bits_per_spike"] == pytest.approx(score, abs=1e-6)


def test_several_sessions_are_scored_together_and_each_alone(results):
    test = results["scratch"]["test"]
    assert list(test["sessions"]) == ["a", "b"]
    assert sum(part["trials"] for part in test["sessions"].values()) == test["trials"]
    assert len({test["r2"], *(part["r2"] for part in test["sessions"].values())}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_the_results_can_be_missing_in_silence(results, configs, kind):
    """Without any one value the card is the same, or an error; it never has a gap."""
    whole = str(render_card(results[kind], configs[kind], kind))
    refused = set()
    for place in leaves(results[kind]):
        is_open = place[:2] == ("run", "versions") or (place[:2] == ("test", "sessions") and len(place) == 3)
        if isinstance(place[-1], int) or is_open:
            continue  # lists of any length: what is not in them is not stated
        without = changed(results[kind], place, drop=True)
        try:
            assert str(render_card(without, configs[kind], kind)) == whole, place
        except CheckpointError as error:
            refused.add(place)
            assert f"`{'.'.join(key for key in place if isinstance(key, str))}`" in str(error), place
    score = ("validation", "bits_per_spike") if kind == "pretrained" else ("test", "r2")
    assert {score, ("data", "bin_size"), ("training", "seconds"), ("run", "commit"), ("seed",)} <= refused


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_not_there_is_an_error_that_names_it(results, configs, kind):
    for place in [("parameters",), ("training", "seconds"), ("data", "bin_size")]:
        for value in (None, float("nan"), "many"):
            broken = changed(results[kind], place, value)
            with pytest.raises(CheckpointError, match=rf"`{'.'.join(place)}` .* must be a finite number"):
                render_card(broken, configs[kind], kind)
    with pytest.raises(CheckpointError, match=r"`kind` .* must be one of .* got None"):
        render_card(changed(results[kind], ("kind",)), configs[kind], kind)


@pytest.mark.parametrize(
    ("kind", "place", "value", "shown"),
    [
        ("decoder", ("test", "r2"), 0.123456, "| 0.1235 |"),
        ("decoder", ("test", "intervals", "r2"), [0.111111, 0.222222], "| 0.1111 to 0.2222 |"),
        ("decoder", ("training", "seconds"), 7200.0, "| time | 2.0 hours |"),
        ("decoder", ("training_trials",), 77, "Trained on 77 training trials"),
        ("decoder", ("new_sessions",), [], "pretrained was trained on training trials of b before."),
        ("decoder", ("run", "commit"), "c0ffee+", "c0ffee+ (+: and changes that were not committed)"),
        ("decoder", ("data", "license"), "cc-by-4.0", "| licence of the data | cc-by-4.0 |"),
        ("decoder", ("data", "tags"), ["synthetic"], "these are simulated"),
        ("decoder", ("data", "split_options"), None, "How it was split the dataset does not say"),
        ("decoder", ("data", "provenance"), {"identifier": "DANDI:000688"}, "| source | DANDI:000688 |"),
        ("pretrained", ("validation", "bits_per_spike"), 0.98765, "0.9877 bits per spike"),
        ("pretrained", ("data", "fingerprint"), None, "| version | not stated by the dataset |"),
        ("adapter", ("adapter_parameters",), 4321, "| of the adapter alone | 4,321 |"),
    ],
)
def test_changed_results_change_the_card(results, configs, kind, place, value, shown):
    whole = str(render_card(results[kind], configs[kind], kind))
    text = str(render_card(changed(results[kind], place, value), configs[kind], kind))
    assert shown not in whole
    assert shown in text


def test_a_run_outside_a_checkout_says_so_instead_of_a_commit(results, configs):
    text = str(render_card(changed(results["decoder"], ("run", "commit")), configs["decoder"], "decoder"))
    assert "| commit of `rpnt_hf` | not run from a git checkout |" in text


def test_a_split_file_is_named_in_the_card(results, configs):
    named = {"file_name": "split.json", "sha256": "ab" * 32}
    place = ("data", "split_options", "split_file")
    text = str(render_card(changed(results["decoder"], place, named), configs["decoder"], "decoder"))
    assert f"Split by the trials that `split.json` names (sha256 {'ab' * 32})." in text


def test_a_decoder_that_diverged_has_a_card_that_says_so(folders, results, tmp_path):
    folder = tmp_path / "decoder"
    shutil.copytree(folders["decoder"], folder)
    broken = results["decoder"]
    for part in (broken["test"], broken["test"]["sessions"]["b"]):
        part |= {**dict.fromkeys(CONVENTIONS), "intervals": dict.fromkeys(CONVENTIONS), "non_finite_bins": 3}
    (folder / "results.json").write_text(json.dumps(broken))
    text = write_card(folder).read_text()
    bins = broken["test"]["scored_bins"]
    assert f"There is no R2 on the test trials: 3 of {bins} scored bins have predictions that are not" in text
    assert "model-index" not in text
    assert not (folder / ".eval_results" / "rpnt.yaml").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_is_written_again_byte_for_byte_and_whole(folders, kind, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(folders[kind], folder)
    before = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    assert write_card(folder) == folder / "README.md"
    assert (folder / "README.md").read_bytes() == before
    (folder / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"`kind` must be in `results\.json`"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before
    (folder / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"made from `results.json` and `config.json`"):
        write_card(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_card_says_names_a_folder_of_this_machine(folders, kind):
    for name in ("README.md", "results.json", ".eval_results/rpnt.yaml"):
        text = (folders[kind] / name).read_text()
        assert str(folders[kind].parent) not in text
        assert not re.findall(r"(?<![\w.:/~>)\]}-])/[\w.+-]+/[\w.+-]+", text)
    if kind != "adapter":  # whose base has no id on the Hub yet
        plan = plan_push(folders[kind], f"lab/{kind}")
        assert {"README.md", ".eval_results/rpnt.yaml"} <= set(plan.files)


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_of_a_card_load_the_checkpoint(folders, kind):
    text = (folders[kind] / "README.md").read_text().replace(REPO_PLACEHOLDER, str(folders[kind]))
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == (1 if kind == "adapter" else 2)
    for example in examples:
        names = {}
        exec(compile(example, "README.md", "exec"), names)
        assert names["model"].config.hidden_size == 32
        assert names["processor"].bin_size == 0.05


def reference_checkpoints():
    return sorted(path.parent for path in (ROOT / "reference_checkpoints").glob("*/results.json"))


@pytest.mark.parametrize("folder", reference_checkpoints(), ids=lambda folder: folder.name)
def test_the_released_card_of_a_reference_checkpoint_is_what_is_rendered_now(folder):
    results = json.loads((folder / "results.json").read_text())
    card = str(render_card(results, RPNTConfig.from_pretrained(folder), folder.name))
    assert (ROOT / "model_cards" / f"{folder.name}.md").read_text() == card
    assert (folder / "README.md").read_text() == card


def test_every_released_card_belongs_to_a_reference_checkpoint():
    templates = {"decoder", "pretrained", "sections"}
    released = {path.stem for path in (ROOT / "model_cards").glob("*.md")} - templates
    made = {folder.name for folder in reference_checkpoints()}
    assert released == made, "copy reference_checkpoints/NAME/README.md to model_cards/NAME.md"
