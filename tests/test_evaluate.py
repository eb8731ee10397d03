"""Evaluations: every run leaves predictions, an interrupted one goes on, a failed one is a row."""

import json
import shutil

import numpy as np
import pytest
from small_corpus import build_small_corpus

from rpnt_hf.cli import main
from rpnt_hf.errors import CheckpointError, ConfigurationError
from rpnt_hf.evaluation.evaluate import evaluate
from rpnt_hf.evaluation.protocols import Amount, Run, Session, plan
from rpnt_hf.evaluation.runner import Recipe, list_sessions, read_predictions, run_folder
from rpnt_hf.evaluation.summary import summarize
from rpnt_hf.metrics import r2_scores

FINETUNE = """\
model: {hidden_size: 32, intermediate_size: 32, num_attention_heads: 1, num_hidden_layers: 1,
  attention_window: 8, stem_kernel: 3, predict_variance: true}
window_bins: 20
batch_size: 8
epochs: 4
validate_every: 2
metadata_dropout: 0.0
"""
PRETRAIN = """\
model: {hidden_size: 32, intermediate_size: 32, num_attention_heads: 1, num_hidden_layers: 1,
  attention_window: 8, stem_kernel: 3}
window_bins: 20
batch_size: 8
epochs: 2
"""
COMPARATORS = """\
mlp: {hidden_size: 16, num_lags: 4, epochs: 2, batch_size: 8, window_bins: 20}
gru: {hidden_size: 16, epochs: 2, batch_size: 8, window_bins: 20}
lstm: {hidden_size: 16, epochs: 2, batch_size: 8, window_bins: 20}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for kind, text in (("finetune", FINETUNE), ("pretrain", PRETRAIN), ("comparators", COMPARATORS)):
        (folder / f"small_{kind}.yaml").write_text(text)
    return f"{folder}/small"


@pytest.fixture(scope="module")
def within(corpus, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("within") / "out"
    words = ["evaluate", "within-session", "--data", str(corpus), "--out", str(out), "--recipe", recipe]
    words += [
        "--targets",
        "a",
        "--min-steps",
        "1",
        "--seeds",
        "0",
        "1",
        "--methods",
        "scratch",
        "ridge",
        "lstm",
    ]
    assert main(words) == 0
    return out


def test_sessions_are_listed_with_their_training_trials(corpus):
    sessions = list_sessions(str(corpus))
    assert [session.session_id for session in sessions] == ["a", "b"]
    assert [session.subject_id for session in sessions] == ["A", "B"]
    assert all(0 < session.num_trials < 20 for session in sessions)


def test_results_hold_every_decoder_with_intervals_seeds_and_a_verdict(within):
    results = json.loads((within / "results.json").read_text())
    rows = {row["decoder"]: row for row in results["scores"]}
    assert rows.keys() == {"scratch", "ridge", "lstm"}
    for row in rows.values():
        assert len(row["r2_seeds"]) == 2
        assert row["r2"] == pytest.approx(np.mean(row["r2_seeds"]))
        assert row["r2_interval"][0] <= row["r2"] <= row["r2_interval"][1]
    assert rows["ridge"]["r2_seeds"][0] == rows["ridge"]["r2_seeds"][1]
    assert rows["lstm"]["r2_seeds"][0] != rows["lstm"]["r2_seeds"][1]
    assert {row["against"] for row in results["comparisons"]} == {"ridge", "lstm"}
    assert {row["verdict"] for row in results["comparisons"]} <= {"ahead", "tie", "behind", None}
    assert results["seeds"] == [0, 1] and results["failed"] == []
    assert results["run"].keys() >= {"command", "commit", "versions"}
    assert "coverage_80" in rows["scratch"] and "coverage_80" not in rows["ridge"]
    text = (within / "results.md").read_text()
    assert "scratch" in text and "95 %" in text
    for name in results["figures"]:
        assert (within / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_says_how_sure_decoders_are_where_trials_have_no_direction_too(within):
    results = json.loads((within / "results.json").read_text())
    scratch = next(row for row in results["scores"] if row["decoder"] == "scratch")
    [row] = results["tables"]["Uncertainty on test trials"]
    assert (row["session"], row["decoder"]) == ("a", "scratch")
    assert row["bins within 50 %"] == f"{100 * scratch['coverage_50']:.1f} %"
    assert row["negative log-likelihood, nats"] == scratch["nll"]
    assert "| bins within 95 % |" in (within / "results.md").read_text()
    assert "calibration_a.png" in results["figures"]


def test_scores_are_those_of_the_predictions_that_are_kept(within):
    results = json.loads((within / "results.json").read_text())
    run = Run("lstm", "a", Amount("100 %", None), 1)
    kept = read_predictions(run_folder(within, run))
    expected = r2_scores(kept["targets"], kept["predictions"])
    row = next(row for row in results["scores"] if row["decoder"] == "lstm")
    assert row["r2_seeds"][1] == pytest.approx(expected["r2"])
    reach = r2_scores(kept["targets"], kept["predictions"])["r2_variance_weighted"]
    assert row["r2_variance_weighted_seeds"][1] == pytest.approx(reach)


def test_an_evaluation_goes_on_where_it_stopped(within, corpus, recipe):
    lost = run_folder(within, Run("lstm", "a", Amount("100 %", None), 0))
    kept = run_folder(within, Run("lstm", "a", Amount("100 %", None), 1)) / "run.json"
    before, untouched = json.loads((within / "results.json").read_text()), kept.stat().st_mtime_ns
    shutil.rmtree(lost)
    evaluate(
        "within-session", str(corpus), within, recipe=recipe, targets=["a"], seeds=[0, 1],
        methods=["scratch", "ridge", "lstm"], min_steps=1,
    )  # fmt: skip
    assert kept.stat().st_mtime_ns == untouched
    after = json.loads((within / "results.json").read_text())
    assert [row["r2_seeds"] for row in after["scores"]] == [row["r2_seeds"] for row in before["scores"]]


def test_a_folder_of_something_else_is_refused(within, corpus, recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something else"):
        evaluate("within-session", str(corpus), tmp_path, recipe=recipe)
    with pytest.raises(CheckpointError, match="but protocol changed"):
        evaluate("few-shot", str(corpus), within, recipe=recipe, min_steps=1)
    with pytest.raises(ConfigurationError, match=r"`recipe` must be one of .*got 'nowhere'"):
        evaluate("within-session", str(corpus), tmp_path / "new", recipe="nowhere")


@pytest.mark.slow
def test_transfer_trains_every_mode_and_no_base_sees_its_target(corpus, recipe, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    results = evaluate(
        "few-shot", str(corpus), out, recipe=recipe, targets=["a"], seeds=[0], amounts=["4", "100%"],
        methods=["scratch", "full", "frozen", "adapters", "units", "kalman"], min_steps=1,
    )  # fmt: skip
    assert results["failed"] == []
    assert {(row["decoder"], row["amount"]) for row in results["scores"]} == {
        (name, amount)
        for name in ("scratch", "full", "frozen", "adapters", "units", "kalman")
        for amount in ("4 trials", "100 %")
    }
    bases = [json.loads(path.read_text()) for path in out.glob("bases/*/run.json")]
    assert {base["kind"] for base in bases} == {"pretrained", "decoder"}
    assert all(list(base["sources"]) == ["b"] for base in bases)
    assert any(name.startswith("amounts_") for name in results["figures"])


@pytest.mark.slow
def test_a_run_that_fails_is_a_row_and_is_tried_again(corpus, recipe, tmp_path):
    broken = tmp_path / "recipes"
    shutil.copytree(recipe.rsplit("/", 1)[0], broken)
    path = broken / "small_comparators.yaml"
    path.write_text(path.read_text().replace("gru: {", "gru: {dropout: 7.0, "))
    out = tmp_path / "out"
    arguments = {"targets": ["a"], "seeds": [0], "methods": ["ridge", "gru"]}
    results = evaluate("within-session", str(corpus), out, recipe=f"{broken}/small", min_steps=1, **arguments)
    assert [row["decoder"] for row in results["scores"]] == ["ridge"]
    (failed,) = results["failed"]
    assert failed["name"] == "gru" and "dropout" in failed["error"]
    assert "Runs that failed" in (out / "results.md").read_text()


def test_sessions_are_the_unit_across_sessions(tmp_path):
    """Two sessions, two seeds; the first decoder is better by 0.1 and 0.2."""
    sessions = [Session("s1", "A", "t", 10), Session("s2", "A", "t", 10)]
    runs, left_out = plan("within-session", sessions, methods=["scratch", "ridge"], seeds=[0, 1])
    rng = np.random.default_rng(0)
    facts = []
    for run in runs:
        folder = run_folder(tmp_path, run)
        folder.mkdir(parents=True)
        targets = np.random.default_rng(7).standard_normal((300, 2)).astype(np.float32)
        noise = 0.2 if run.method == "scratch" else 0.2 + (0.3 if run.session_id == "s1" else 0.5)
        np.savez(
            folder / "predictions.npz",
            targets=targets,
            predictions=(targets + noise * rng.standard_normal(targets.shape)).astype(np.float32),
            trials=np.repeat(np.arange(15), 20),
            reach=np.ones(300, dtype=bool),
            directions=np.repeat(np.arange(15) % 4, 20) * np.pi / 2,
        )
        facts.append(
            {"method": run.method, "name": run.name, "session_id": run.session_id, "amount": "100 %",
             "seed": run.seed, "num_trials": 10, "seconds": 1.0}
        )  # fmt: skip
    results = summarize(tmp_path, "within-session", runs, facts, left_out, bin_size=0.05)
    (row,) = results["across_sessions"]
    by = {(r["decoder"], r["session"]): r["r2"] for r in results["scores"]}
    differences = [by["scratch", name] - by["ridge", name] for name in ("s1", "s2")]
    assert row["difference"] == pytest.approx(np.mean(differences))
    assert row["sessions"] == 2 and row["p (Wilcoxon)"] is None
    assert all(r["verdict"] == "ahead" for r in results["comparisons"] if r["convention"] == "r2")
    assert set(results["figures"]) == {"sessions.png", "trajectories_s1.png", "trajectories_s2.png"}


def test_named_recipes_are_complete():
    assert Recipe.named("tiny").pretrain is not None
    with pytest.raises(ConfigurationError, match="`recipe` must be one of"):
        Recipe.named("microelectrode_of_mine")


def test_the_arms_of_an_ablation_are_trained_as_they_say(corpus, recipe, tmp_path):
    arms = ["all", "no spike dropout", "no weight averaging", "with recurrent stem"]
    # The small recipe averages no weights: then the arm adds it.
    with pytest.raises(ConfigurationError, match="got 'no weight averaging'"):
        evaluate(
            "ablation", str(corpus), tmp_path / "out", recipe=recipe, targets=["a"], methods=arms, seeds=[0]
        )
    arms[2] = "with weight averaging"
    results = evaluate(
        "ablation", str(corpus), tmp_path / "out", recipe=recipe, targets=["a"], methods=arms, seeds=[0],
        min_steps=1,
    )  # fmt: skip
    assert {score["decoder"] for score in results["scores"]} == set(arms)
    found = {}
    for arm in arms:
        path = tmp_path / "out" / "runs" / "a" / arm.replace(" ", "-") / "all" / "seed0" / "model"
        written = json.loads((path / "run_config.json").read_text())
        written = written.get("settings", written)
        found[arm] = (
            written["spike_dropout"], written["optimizer"]["averaging_decay"],
            json.loads((path / "config.json").read_text())["recurrent_stem"],
        )  # fmt: skip
    assert found == {
        "all": (0.5, 0.0, False),
        "no spike dropout": (0.0, 0.0, False),
        "with weight averaging": (0.5, 0.99, False),
        "with recurrent stem": (0.5, 0.0, True),
    }
