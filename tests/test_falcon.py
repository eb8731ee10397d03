"""The interface of FALCON: streams of a batch are those of StreamingDecoder, each with its own session."""

import inspect
import json

import numpy as np
import pytest
import torch
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
    with pytest.raises(InputError, match=r"must have shape \(batch_size=2, channels\), got \(1, 6\)"):
        falcon.predict(np.ones((1, 6)))
    with pytest.raises(InputError, match="`reset` must be called"):
        FalconDecoder(*decoder).predict(np.ones((1, 6)))
    with pytest.raises(ConfigurationError, match="1 or more streams, got 0"):
        FalconDecoder(*decoder, batch_size=0)


def test_methods_are_those_that_the_benchmark_calls():
    interface = pytest.importorskip("falcon_challenge.interface").BCIDecoder
    for name in ("reset", "predict", "observe", "on_done", "set_batch_size"):
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (interface, FalconDecoder))
        assert list(ours.parameters) == list(theirs.parameters)


def test_local_sessions_are_scored_as_the_offline_pass_scores_them(corpus, checkpoint, decoder, tmp_path):
    results = evaluate_falcon(checkpoint, str(corpus), tmp_path / "out", held_out=["b"])
    rows = view_rows(load_rows(corpus, split="test"))
    for found in results["sessions"]:
        own = [row for row in rows if row["session_id"] == found["session"]]
        decoded = decode_rows(*decoder, own)
        masks = [scored_bins(row) for row in own]
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
