"""Neural comparators learn, are causal, give the same again, and read their settings from a file."""

import dataclasses

import numpy as np
import pytest
from small_corpus import build_small_corpus

from rpnt_hf.data.loading import load_rows, select_sessions, view_rows
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.errors import ConfigurationError, InputError
from rpnt_hf.evaluation.neural_comparators import NeuralDecoder, NeuralSettings, read_settings
from rpnt_hf.metrics import r2_scores
from rpnt_hf.optimization import OptimizerConfig
from rpnt_hf.scripts import find_script

KINDS = ("mlp", "gru", "lstm")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def rows(corpus):
    return {
        split: select_sessions(view_rows(load_rows(corpus, split=split)), ["a"])
        for split in ("train", "validation", "test")
    }


def settings(kind, **fields):
    optimizer = OptimizerConfig(learning_rate=5e-3, averaging_decay=0.9)
    small = {"hidden_size": 24, "epochs": 40, "batch_size": 8, "window_bins": 20, "num_lags": 5}
    return NeuralSettings(kind=kind, **{**small, **fields}, optimizer=optimizer)


@pytest.mark.parametrize("lead_bins", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_comparator_learns_and_is_causal(rows, kind, lead_bins):
    decoder = NeuralDecoder(settings(kind, lead_bins=lead_bins)).fit(rows["train"], rows["validation"])
    assert decoder.num_parameters > 100
    row = rows["test"][0]
    predictions = decoder.predict(row)
    scored = scored_bins(row)
    assert predictions.shape == row_behavior(row).shape and predictions.dtype == np.float32
    assert r2_scores(row_behavior(row)[scored], predictions[scored])["r2"] > 0.2
    counts = row_counts(row).copy()
    middle = len(counts) // 2
    counts[middle:] += 3
    changed = decoder.predict({**row, "counts": counts.tobytes()})
    np.testing.assert_allclose(changed[:middle], predictions[:middle], atol=1e-5)
    assert np.abs(changed[middle:] - predictions[middle:]).max() > 0.1


def test_the_same_seed_gives_the_same_decoder_and_another_seed_another(rows):
    short = settings("gru", epochs=2)
    first, again, other = (
        NeuralDecoder(short, seed).fit(rows["train"], rows["validation"]).predict(rows["test"][0])
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_validation_chooses_the_weights(rows):
    decoder = NeuralDecoder(settings("mlp", epochs=6, validate_every=1)).fit(
        rows["train"], rows["validation"]
    )
    targets = np.concatenate([row_behavior(row)[scored_bins(row)] for row in rows["validation"]])
    decoded = np.concatenate([decoder.predict(row)[scored_bins(row)] for row in rows["validation"]])
    assert r2_scores(targets, decoded)["r2"] == pytest.approx(decoder.validation_r2, abs=1e-6)


def test_several_sessions_other_units_and_an_unfitted_comparator_are_refused(corpus, rows):
    everything = view_rows(load_rows(corpus, split="train"))
    decoder = NeuralDecoder(settings("mlp", epochs=1))
    with pytest.raises(InputError, match="must be fitted before"):
        decoder.predict(rows["test"][0])
    with pytest.raises(InputError, match="must be fitted to one session, got a, b"):
        decoder.fit(everything, rows["validation"])
    decoder.fit(rows["train"], rows["validation"])
    with pytest.raises(InputError, match="must have the 6 units that were fitted, got 5"):
        decoder.predict(select_sessions(everything, ["b"])[0])


@pytest.mark.parametrize("path", sorted(find_script("training/configs").glob("*_comparators.yaml")))
def test_stored_settings_can_be_read(path):
    found = read_settings(path)
    assert tuple(found) == KINDS
    assert all(found[kind].kind == kind for kind in KINDS)


def test_settings_that_are_unknown_are_refused(tmp_path):
    path = tmp_path / "x_comparators.yaml"
    path.write_text("mlp: {hidden_sise: 3}\n")
    with pytest.raises(ConfigurationError, match=r"got `hidden_sise` for 'mlp'.*Did you mean `hidden_size`"):
        read_settings(path)
    path.write_text("rnn: {}\n")
    with pytest.raises(ConfigurationError, match="must be 'mlp', 'gru' or 'lstm', got 'rnn'"):
        read_settings(path)


def test_settings_hold_everything_that_training_uses():
    names = {field.name for field in dataclasses.fields(NeuralSettings)}
    assert {"spike_dropout", "unit_dropout", "optimizer", "epochs"} <= names
