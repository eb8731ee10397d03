"""Replaying a recording bin by bin: the same predictions as offline, honest timing, and `rpnt stream`."""

import dataclasses
import io
import json
import time

import numpy as np
import pytest
import torch
from nwb_files import reach_file
from small_corpus import BIN_SIZE, make_recording

import rpnt_hf.replay
from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, StreamingDecoder, read_nwb
from rpnt_hf.analysis.terminal import TerminalPlot
from rpnt_hf.cli import main
from rpnt_hf.decoding import decode_recording
from rpnt_hf.errors import ConfigurationError, InputError
from rpnt_hf.replay import ReplayedBin, replay_recording, shown_in_terminal

TARGETS = ["cursor_vel_x", "cursor_vel_y"]


def make_decoder(unit_ids, session_id="a", num_slots=None, **fields):
    """A decoder with random weights, strong enough that metadata and units matter."""
    torch.manual_seed(0)
    fields = {
        "target_names": TARGETS,
        "num_attention_heads": 1,
        "hidden_size": 32,
        "attention_window": 8,
        **fields,
    }
    mode = {"unit_embedding": "slots", "num_units": num_slots} if num_slots else {"num_units": len(unit_ids)}
    config = RPNTConfig.preset("tiny", initializer_range=0.2, **mode, **fields)
    processor = RPNTProcessor(
        bin_size=BIN_SIZE, sessions={session_id: unit_ids}, subjects=["A", "B"], corpus_start="2019-01-01",
        metadata_axes=config.metadata_axes, window_bins=20, num_slots=num_slots,
        unit_embedding="slots" if num_slots else "vocabulary",
    )  # fmt: skip
    return RPNTForMotorDecoding(config).eval(), processor


def assert_tables_agree(live, offline):
    names = [f"{name}_predicted" for name in TARGETS]
    np.testing.assert_allclose(live[names], offline[names], atol=2e-5)
    others = [name for name in offline.columns if name not in names]
    assert live[others].equals(offline[others])


def test_predictions_equal_those_of_the_whole_recording():
    """Two intervals, a lag, units in another order, and metadata that only the recording knows."""
    recording = make_recording("a")
    recording = dataclasses.replace(recording, obs_intervals=np.array([[0.0, 2.0], [3.0, 4.5]]))
    model, processor = make_decoder(recording.unit_ids[::-1], label_lag=2)
    replay = replay_recording(model, processor, recording)
    assert_tables_agree(replay.table, decode_recording(model, processor, recording))
    assert len(replay.table) == 70 and replay.table["cursor_vel_x_predicted"].isna().sum() == 4
    other = dataclasses.replace(recording, subject_id="B")
    changed = replay_recording(model, processor, other).table["cursor_vel_x_predicted"]
    assert not np.allclose(changed.dropna(), replay.table["cursor_vel_x_predicted"].dropna(), atol=1e-3)
    assert not processor.session_facts["a"]


def test_slots_take_the_units_that_offline_decoding_takes():
    recording = make_recording("unseen")
    model, processor = make_decoder(["other"], num_slots=2)
    replay = replay_recording(model, processor, recording, max_seconds=2.0)
    offline = decode_recording(model, processor, recording)
    assert len(replay.table) == 40
    assert_tables_agree(replay.table, offline.iloc[:40])


def test_the_length_is_cut_where_asked_and_needed_without_a_window():
    recording = make_recording("a")
    recording = dataclasses.replace(recording, obs_intervals=np.array([[0.0, 1.0], [3.0, 4.0], [5.0, 6.0]]))
    model, processor = make_decoder(recording.unit_ids)
    replay = replay_recording(model, processor, recording, max_seconds=1.5)
    assert replay.table.groupby("interval").size().to_dict() == {0: 20, 1: 10}
    with pytest.raises(ConfigurationError, match="`max_seconds` must be at least one bin of"):
        replay_recording(model, processor, recording, max_seconds=0.01)
    model, processor = make_decoder(recording.unit_ids, attention_window=None)
    with pytest.raises(ConfigurationError, match=r"without `attention_window`.*`--max-seconds`"):
        replay_recording(model, processor, recording)
    replay = replay_recording(model, processor, recording, max_seconds=1.0)
    assert_tables_agree(replay.table, decode_recording(model, processor, recording).iloc[:20])


def test_units_that_do_not_fit_are_refused():
    recording = make_recording("a")
    model, processor = make_decoder(["x", *recording.unit_ids[1:]])
    with pytest.raises(InputError, match="must have the units that the weights were trained with"):
        replay_recording(model, processor, recording)
    with pytest.raises(InputError, match=r"`session_id` must be a session of the vocabulary"):
        replay_recording(model, processor, dataclasses.replace(recording, session_id="b"))


def slow_at(monkeypatch, bins, seconds):
    """Makes the steps of some bins slow; warm-up steps come first and are not counted."""
    step, count = StreamingDecoder.step, iter(range(-rpnt_hf.replay.WARM_UP_BINS, 10**6))

    def slow_step(self, counts, site_mask=None):
        if next(count) in bins:
            time.sleep(seconds)
        return step(self, counts, site_mask)

    monkeypatch.setattr(StreamingDecoder, "step", slow_step)


def test_real_time_keeps_an_absolute_clock_and_counts_late_bins(monkeypatch):
    recording = make_recording("a")
    model, processor = make_decoder(recording.unit_ids, num_hidden_layers=1)
    slow_at(monkeypatch, {3}, 3.5 * BIN_SIZE)
    began = time.perf_counter()
    replay = replay_recording(model, processor, recording, realtime=True, max_seconds=1.0)
    seconds = time.perf_counter() - began
    table, report = replay.table, replay.report()
    assert len(table) == report["num_bins"] == 20  # none was dropped
    # Bin 3 ends 3.5 bins after it was there, 4 at 2.5 and 5 at 1.5; 6 starts half a bin late, and in time.
    assert table["is_late"].to_numpy()[3:6].all() and report["missed_deadlines"] >= 3
    assert (table["wakeup_lateness"].to_numpy()[4:7] > np.array([2, 1, 0]) * BIN_SIZE).all()
    assert table["wakeup_lateness"].min() >= 0 and table["wakeup_lateness"].iloc[10:].min() < BIN_SIZE / 2
    assert 1.0 <= seconds < 3.0
    assert report["latency_ms"]["max"] >= 3.5 * BIN_SIZE * 1000 > report["latency_ms"]["p50"]


def test_real_time_warms_the_decoder_up_before_each_bin_that_leaves_time(monkeypatch):
    recording = make_recording("a")
    model, processor = make_decoder(recording.unit_ids, num_hidden_layers=1)
    warmed = []
    monkeypatch.setattr(StreamingDecoder, "warm_up", lambda decoder: warmed.append(decoder._bin))
    slow_at(monkeypatch, {3}, 3.5 * BIN_SIZE)
    replay_recording(model, processor, recording, realtime=True, max_seconds=1.0)
    assert warmed and len(set(warmed)) == len(warmed)
    assert not {4, 5, 6} & set(warmed)  # the loop was late
    warmed.clear()
    replay_recording(model, processor, recording, max_seconds=1.0)
    assert not warmed


def test_without_real_time_a_step_longer_than_a_bin_is_a_missed_deadline(monkeypatch):
    recording = make_recording("a")
    model, processor = make_decoder(recording.unit_ids, num_hidden_layers=1)
    slow_at(monkeypatch, {2, 7}, 1.2 * BIN_SIZE)
    replay = replay_recording(model, processor, recording, max_seconds=0.5)
    assert replay.table["is_late"].to_numpy()[[2, 7]].all()
    assert replay.report()["missed_deadlines"] >= 2
    assert replay.report()["wakeup_lateness_ms"] is None


def test_an_interrupted_replay_keeps_what_ran():
    recording = make_recording("a")
    model, processor = make_decoder(recording.unit_ids)
    seen = []

    def show(bin_):
        seen.append(bin_)
        if len(seen) == 13:
            raise KeyboardInterrupt

    replay = replay_recording(model, processor, recording, show=show)
    assert replay.interrupted and replay.report()["num_bins"] == 13
    assert_tables_agree(replay.table, decode_recording(model, processor, recording).iloc[:13])
    np.testing.assert_allclose([bin_.truth for bin_ in seen], replay.table[TARGETS].to_numpy()[:13])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint and a recording that it decodes."""
    folder = tmp_path_factory.mktemp("stream")
    path = reach_file(folder / "monday.nwb")
    model, processor = make_decoder(read_nwb(path).unit_ids, session_id="monday")
    model.save_pretrained(folder / "decoder")
    processor.save_pretrained(folder / "decoder")
    return [str(folder / "decoder"), str(path)]


def test_stream_scores_as_decode_does(files, tmp_path, capsys):
    outputs = [str(tmp_path / "out.parquet"), str(tmp_path / "trace.png")]
    assert main(["stream", *files, "--out", outputs[0], "--plot", outputs[1]]) == 0
    printed = capsys.readouterr().out.splitlines()
    live = json.loads(printed[-1])
    assert printed[:-1] == outputs and (tmp_path / "trace.png").stat().st_size > 1000
    assert main(["decode", *files]) == 0
    offline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert live["num_scored_bins"] == offline["num_scored_bins"] > 0
    assert live["r2"] == pytest.approx(offline["r2"], abs=1e-4)
    assert set(offline) < set(live)
    assert live["latency_ms"]["p50"] <= live["latency_ms"]["p95"] <= live["latency_ms"]["p99"]


def test_stream_prints_what_ran_and_ends_with_130_when_interrupted(files, monkeypatch, capsys):
    def shown(*_):
        bins = []

        def show(bin_):
            bins.append(bin_)
            if len(bins) == 5:
                raise KeyboardInterrupt

        return show

    monkeypatch.setattr(rpnt_hf.replay, "shown_in_terminal", shown)
    assert main(["stream", *files, "--realtime"]) == 130
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["interrupted"] and printed["num_bins"] == 5


def test_help_of_stream_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["stream", "--help"])
    assert "\n  rpnt stream" in capsys.readouterr().out


def test_without_a_terminal_there_is_a_line_in_the_log_every_ten_seconds(files, capsys):
    assert main(["stream", *files]) == 0
    assert [
        line.split(" bins")[0] for line in capsys.readouterr().err.splitlines() if " bins, time " in line
    ] == [
        "200",
        "400",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_decoded_and_true_movement(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    recording = make_recording("a")
    model, processor = make_decoder(recording.unit_ids, label_mean=[0.0, 0.0], label_std=[1.0, 1.0])
    terminal = Terminal()
    plot = shown_in_terminal(model, processor, terminal)
    assert isinstance(plot, TerminalPlot)
    for t in range(plot.columns):
        # Decoded x rises from the lowest to the highest line; true x stays in the middle; y agree.
        level = 6 * t / (plot.columns - 1) - 3
        plot(ReplayedBin(t * BIN_SIZE, np.array([level, 3.0]), np.array([0.0, 3.0]), 0.002, t == 0))
    lines = plot.frame()
    strip = [line[: plot.columns] for line in lines[1:8]]
    assert strip[6].startswith("o") and strip[0].endswith("o")
    assert strip[3].count(".") + strip[3].count("@") == plot.columns and "o" not in strip[3]
    assert lines[9][: plot.columns] == "@" * plot.columns
    assert lines[-1].endswith("step 2.00 ms (p95 2.00)  missed deadlines 1")
    assert all(len(line) < 80 and line.isascii() for line in lines)
    plot.draw()
    assert terminal.getvalue().count("\n") % len(lines) == 0


def test_a_terminal_shows_recordings_without_behaviour(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    plot = TerminalPlot(["force"], [0.0], [1.0], BIN_SIZE, Terminal())
    plot(ReplayedBin(0.0, np.array([0.5]), np.array([np.nan]), 0.001, False))
    assert sum(line.count("o") for line in plot.frame()[1:8]) == 1
