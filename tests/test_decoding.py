"""Decoding of whole rows and recordings: which windows are used, and which bins are scored."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from small_corpus import BIN_SIZE, make_recording

from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.decoding import decode_recording, decode_rows, target_unit
from rpnt_hf.errors import CheckpointError
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding
from rpnt_hf.processing_rpnt import RPNTProcessor

FIELDS = {"num_units": 6, "hidden_size": 32, "num_attention_heads": 1, "intermediate_size": 16}
TARGETS = ["cursor_vel_x", "cursor_vel_y"]


def make_decoder(window_bins=10, **fields):
    """A decoder of session "a" with random weights."""
    torch.manual_seed(0)
    model = RPNTForMotorDecoding(RPNTConfig.preset("tiny", **FIELDS, target_names=TARGETS, **fields)).eval()
    units = make_recording("a").unit_ids
    return model, RPNTProcessor(bin_size=BIN_SIZE, sessions={"a": units}, window_bins=window_bins)


def scored_seconds(trials, **changes):
    """The seconds (trials of the small corpus start at whole ones) with scored bins, and the bins of each."""
    recording = dataclasses.replace(make_recording("a"), trials=trials, **changes)
    table = decode_recording(*make_decoder(), recording)
    times = table["time"][table["scored"]]
    return np.floor(times + 1e-6).astype(int).value_counts().sort_index().to_dict()


def make_trials(**columns):
    starts = np.arange(4.0)
    return pd.DataFrame({"start_time": starts, "stop_time": starts + 1.0} | columns)


def test_trials_of_random_targets_are_scored_from_their_first_go_cue():
    cues = [np.array([np.nan, second + 0.25, second + 0.5]) for second in range(3)] + [np.full(3, np.nan)]
    assert scored_seconds(make_trials(go_cue_time_array=cues)) == {0: 15, 1: 15, 2: 15, 3: 20}


def test_failed_trials_are_not_scored_where_others_were_rewarded():
    assert scored_seconds(make_trials(result=["R", "F", "R", "A"])) == {0: 20, 2: 20}
    assert scored_seconds(make_trials(result=["hit", "miss", "hit", "hit"])) == {0: 20, 1: 20, 2: 20, 3: 20}


@pytest.mark.parametrize("encoding", ["learned", "sinusoidal"])
def test_positions_beyond_the_training_windows_are_never_used(encoding):
    fields = {"position_encoding": encoding, "attention_window": 4}
    fields |= {"max_bins": 10} if encoding == "learned" else {}
    model, processor = make_decoder(**fields)
    recording = make_recording("a")
    counts = recording.bin_spikes(BIN_SIZE)[0].counts[:40]
    row = {
        "session_id": "a", "subject_id": None, "task": None, "recording_date": None, "bin_size": BIN_SIZE,
        "num_bins": 40, "unit_ids": recording.unit_ids, "unit_sites": recording.unit_sites,
        "site_ids": recording.site_ids, "site_positions": recording.site_positions, "counts": counts,
        "observed": np.ones(40, np.uint8),
    }  # fmt: skip
    decoded = decode_rows(model, processor, [row])[0]
    later = {**row, "num_bins": 10, "counts": counts[20:30], "observed": np.ones(10, np.uint8)}
    np.testing.assert_allclose(decoded[25:30], decode_rows(model, processor, [later])[0][5:], atol=1e-5)
    processor.window_bins = None
    with pytest.raises(CheckpointError, match=f"`position_encoding` '{encoding}' .* training windows"):
        decode_rows(model, processor, [row])


def test_intervals_are_numbered_as_observed():
    observed = np.array([[0.0, 1.0], [2.0, 2.01], [3.0, 4.0]])
    recording = dataclasses.replace(make_recording("a"), obs_intervals=observed)
    table = decode_recording(*make_decoder(), recording)
    assert table.groupby("interval")["time"].first().to_dict() == {0: 0.0, 2: 3.0}


def test_trials_without_a_start_or_stop_time_are_not_scored():
    starts, stops = np.arange(4.0), np.arange(1.0, 5.0)
    starts[1], stops[2] = np.nan, np.nan
    assert scored_seconds(make_trials(start_time=starts, stop_time=stops)) == {0: 20, 3: 20}


def test_the_unit_of_an_axis_is_the_one_that_all_targets_share():
    def unit(**fields):
        return target_unit(make_decoder(**fields)[0])

    assert unit(target_units=["cm/s", "cm/s"]) == "cm/s"
    assert unit(target_units=["cm", "cm/s"]) == "each in its unit"
    assert unit() == "unit not stated"
