"""The interface of FALCON: streams of a batch are those of StreamingDecoder, each with its own session."""

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nwb_files import write_nwb
from pynwb import TimeSeries
from pynwb.behavior import BehavioralTimeSeries
from sklearn.metrics import r2_score
from small_corpus import build_small_corpus

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, StreamingDecoder
from rpnt_hf.cli import main
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.decoding import decode_rows
from rpnt_hf.errors import ConfigurationError, DatasetError, InputError
from rpnt_hf.evaluation.falcon import FalconDecoder, evaluate_falcon
from rpnt_hf.metrics import r2_scores
from rpnt_hf.processing_rpnt import RPNTProcessor


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """An untrained decoder of sessions "a" (6 units) and "b" (5 units)."""
    rows = view_rows(load_rows(corpus, split="train"))
    processor = RPNTProcessor.from_rows(rows)
    torch.manual_seed(0)
    config = RPNTConfig.preset(
        "tiny", num_units=processor.num_units, attention_window=8, label_mean=[1.0, 2.0], label_std=[3.0, 4.0]
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "decoder"
    RPNTForMotorDecoding(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return RPNTForMotorDecoding.from_pretrained(checkpoint), RPNTProcessor.from_pretrained(checkpoint)


def test_each_place_of_the_batch_decodes_its_own_session(decoder):
    counts = np.random.default_rng(0).poisson(1.0, (12, 2, 6)).astype(np.uint8)
    falcon = FalconDecoder(*decoder, batch_size=2)
    falcon.reset(["a", "b"])
    found = np.stack([falcon.predict(step) for step in counts])
    for place, (session, units) in enumerate({"a": 6, "b": 5}.items()):
        alone = StreamingDecoder(*decoder, session)
        expected = np.stack([alone.step(step[place, :units]).numpy() for step in counts])
        np.testing.assert_allclose(found[:, place], expected, atol=1e-5)


def test_the_end_of_a_trial_resets_a_stream_only_where_that_is_asked(decoder):
    counts = np.random.default_rng(0).poisson(1.0, (6, 1, 6)).astype(np.uint8)
    for reset_on_done in (False, True):
        falcon = FalconDecoder(*decoder, reset_on_done=reset_on_done)
        falcon.reset(["a"])
        first = falcon.predict(counts[0])
        for step in counts[1:]:
            falcon.observe(step)
        falcon.on_done(np.array([True]))
        assert np.allclose(falcon.predict(counts[0]), first, atol=1e-6) == reset_on_done


def test_a_tag_is_a_session_or_a_part_of_one_and_empty_places_stay_empty(decoder):
    falcon = FalconDecoder(*decoder, batch_size=2)
    falcon.reset(["b"])
    assert (falcon.predict(np.ones((2, 6)))[1] == 0).all()
    with pytest.raises(InputError, match="got 'c', which fits none of a, b"):
        falcon.reset(["c"])
    with pytest.raises(InputError, match="at most `batch_size`=2 dataset tags, got 3"):
        falcon.reset(["a", "b", "a"])
    with pytest.raises(InputError, match="`reset` must be called"):
        FalconDecoder(*decoder).predict(np.ones((1, 6)))
    with pytest.raises(ConfigurationError, match="1 or more streams, got 0"):
        FalconDecoder(*decoder, batch_size=0)


def test_methods_are_those_that_the_benchmark_calls():
    interface = pytest.importorskip("falcon_challenge.interface").BCIDecoder
    for name in ("reset", "predict", "observe", "on_done", "set_batch_size"):
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (interface, FalconDecoder))
        assert list(ours.parameters) == list(theirs.parameters)


def write_falcon_file(path, seed):
    """A file of M2 as the evaluator of FALCON reads it."""
    rng = np.random.default_rng(seed)
    times = np.arange(0, 3.0 + 0.02 * (seed % 3), 0.02)  # not all files are equally long
    velocity = np.stack([np.sin(4 * times + seed), np.cos(3 * times)], axis=1)
    fingers = BehavioralTimeSeries(name="finger_vel")
    for name, values in zip(("index", "middle"), velocity.T, strict=True):
        fingers.add_timeseries(TimeSeries(name=name, data=values, timestamps=times, unit="au/s"))
    mask = TimeSeries(name="eval_mask", data=times % 1 > 0.2, timestamps=times, unit="bool")
    return write_nwb(
        path,
        [np.sort(rng.uniform(0, 3.0, rng.integers(20, 60))) for _ in range(96)],
        trials={"start_time": [0.0, 1.0, 2.0], "stop_time": [1.0, 2.0, 3.0]},
        obs_intervals=np.array([[0.0, times[-1]]]),
        acquisition=[fingers, mask],
    )


def test_the_evaluator_of_the_benchmark_gives_the_scores_of_the_streams(tmp_path, monkeypatch):
    """The real package on files of its layout: paths as tags, a last batch not full, labels that lag."""
    evaluator = pytest.importorskip("falcon_challenge.evaluator")
    config = importlib.import_module("falcon_challenge.config").FalconConfig
    folder = tmp_path / "data" / "m2" / "minival"
    folder.mkdir(parents=True)
    held = evaluator.DATASET_HELDINOUT_MAP["m2"]
    for seed, name in enumerate([*held["held_in"], *held["held_out"]]):
        run_name, date = name.split("_")
        session = f"{date[:4]}-{date[4:6]}-{date[6:]}-{run_name}"
        group = "in" if name in held["held_in"] else "out"
        stem = f"sub-MonkeyN-held-{group}-minival_ses-{session}_behavior+ecephys"
        write_falcon_file(folder / f"{stem}.nwb", seed)
    words = ["build", "nwb", "--nwb-dir", str(folder), "--out", str(tmp_path / "built"), "--bin-size", "0.02"]
    assert main([*words, "--behavior", "index", "middle", "--session-pattern", "ses-([^_]+)"]) == 0
    processor = RPNTProcessor.from_rows(view_rows(load_rows(str(tmp_path / "built"), split="train")))
    torch.manual_seed(0)
    lag = 2
    model = RPNTForMotorDecoding(
        RPNTConfig.preset("tiny", num_units=processor.num_units, attention_window=8, label_lag=lag)
    ).eval()
    monkeypatch.setenv("EVAL_DATA_PATH", str(tmp_path / "data"))
    monkeypatch.setenv("PREDICTION_PATH_LOCAL", str(tmp_path / "predictions.pkl"))
    monkeypatch.setenv("GT_PATH", str(tmp_path / "truth.pkl"))

    falcon = FalconDecoder(model, processor, batch_size=4)
    found = evaluator.FalconEvaluator(split="m2", dataloader_workers=0).evaluate(falcon, phase="minival")
    scores = found["result"][0]["minival_split_m2"]

    expected = {"held-in": {}, "held-out": {}}
    for path in sorted(folder.glob("*.nwb")):
        counts, targets, _, mask = evaluator.load_nwb(path, evaluator.FalconTask.m2)
        name = config(evaluator.FalconTask.m2).hash_dataset(path.stem)
        session = path.stem.split("ses-")[1].split("_")[0]
        stream = StreamingDecoder(model, processor, session)
        ahead = np.stack([stream.step(step).numpy() for step in counts])
        decoded = np.concatenate([np.zeros((lag, 2)), ahead[:-lag]])  # true `lag` bins later
        group = "held-in" if "held-in" in path.stem else "held-out"
        expected[group].setdefault(name.split("_")[1], []).append((targets[mask], decoded[mask]))
    for group, title in (("held-in", "Held In"), ("held-out", "Held Out")):
        days = [[np.concatenate(part) for part in zip(*day, strict=True)] for day in expected[group].values()]
        values = [r2_score(*day, multioutput="variance_weighted") for day in days]
        assert scores[f"{title} R2 Mean"] == pytest.approx(np.mean(values), abs=1e-5)
    assert scores["Normalized Latency"] > 0


def test_files_find_their_session_by_its_name_by_what_follows_ses_or_as_the_caller_says(corpus, decoder):
    rows = view_rows(load_rows(corpus, split="train"))
    named = [{**row, "session_id": f"sub-N-held-in-calib_ses-2020-{row['session_id']}"} for row in rows]
    falcon = FalconDecoder(decoder[0], RPNTProcessor.from_rows(named))
    first, second = sorted({row["session_id"] for row in named})
    assert falcon.find_session(first) == first
    assert falcon.find_session(Path("data") / f"{second}.nwb") == second
    assert falcon.find_session(Path("m2/sub-N-held-in-minival_ses-2020-b_behavior+ecephys.nwb")) == second
    assert falcon.find_session("2020-a") == first
    with pytest.raises(InputError, match=r"got '2020', which fits sub-N.*-a, sub-N.*-b of .* `session_of`"):
        falcon.find_session("2020")
    with pytest.raises(InputError, match=r"got 'data', which fits none of a, b"):
        FalconDecoder(*decoder).find_session("data")
    told = FalconDecoder(*decoder, session_of={"NRun1_20201019_eval": "b"}.__getitem__)
    assert told.find_session(Path("m2/NRun1_20201019_eval.nwb")) == "b"
    lost = FalconDecoder(*decoder, session_of=lambda stem: stem.upper())
    with pytest.raises(InputError, match=r"`session_of` must give a session of the decoder, got 'A' for 'a'"):
        lost.find_session("a")


def test_a_batch_that_is_not_full_decodes_as_many_rows_as_it_has(decoder):
    falcon = FalconDecoder(*decoder, batch_size=3)
    falcon.reset(["a", "b"])
    counts = np.random.default_rng(0).poisson(1.0, (2, 6)).astype(np.uint8)
    short = falcon.predict(counts)
    falcon.on_done(np.array([True, False]))
    falcon.reset(["a", "b"])
    whole = falcon.predict(np.concatenate([counts, np.zeros((1, 6), np.uint8)]))
    assert short.shape == (2, 2) and whole.shape == (3, 2)
    np.testing.assert_array_equal(whole[:2], short)
    with pytest.raises(InputError, match=r"shape \(rows, channels\) with 2 to 3 rows .* got \(1, 6\)"):
        falcon.predict(counts[:1])


@pytest.mark.parametrize("lag", [0, 2])
def test_local_sessions_are_scored_as_the_offline_pass_scores_them(corpus, checkpoint, tmp_path, lag):
    decoder = RPNTForMotorDecoding.from_pretrained(checkpoint), RPNTProcessor.from_pretrained(checkpoint)
    decoder[0].config.label_lag = lag
    for part in decoder:
        part.save_pretrained(tmp_path / "decoder")
    results = evaluate_falcon(tmp_path / "decoder", str(corpus), tmp_path / "out", held_out=["b"])
    rows = view_rows(load_rows(corpus, split="test"))
    for found in results["sessions"]:
        own = [row for row in rows if row["session_id"] == found["session"]]
        decoded = decode_rows(*decoder, own)
        masks = [scored_bins(row) & (np.arange(len(row_counts(row))) >= lag) for row in own]
        targets = np.concatenate([row_behavior(row)[mask] for row, mask in zip(own, masks, strict=True)])
        values = np.concatenate([part[mask] for part, mask in zip(decoded, masks, strict=True)])
        expected = r2_scores(targets, values)["r2_variance_weighted"]
        assert found["R2 (variance-weighted)"] == pytest.approx(expected, abs=1e-4)
        assert found["bins"] == len(targets) and found["normalised latency"] > 0
    assert {row["group"]: row["sessions"] for row in results["groups"]} == {"held in": 1, "held out": 1}
    assert "held out" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "sessions.png").read_bytes().startswith(b"\x89PNG")
    assert sum(len(row_counts(row)) for row in rows) > 0
    with pytest.raises(DatasetError, match="Held-out sessions must be in the dataset, got c"):
        evaluate_falcon(checkpoint, str(corpus), tmp_path / "other", held_out=["c"])


def test_the_command_needs_a_checkpoint_and_prints_the_sessions(corpus, checkpoint, tmp_path, capsys):
    words = ["evaluate", "falcon", "--data", str(corpus), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "must have the decoder as `--checkpoint`" in capsys.readouterr().err
    assert main([*words, "--checkpoint", str(checkpoint)]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert [row["session"] for row in json.loads(last)] == ["a", "b"]
