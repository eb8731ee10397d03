"""The page of `rpnt app`: what its views are made of, and how it is served."""

import base64
import contextlib
import copy
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from nwb_files import reach_file
from nwb_files import write_nwb as write_small_nwb
from packaging.requirements import Requirement
from small_corpus import BIN_SIZE, make_recording

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, simulate
from rpnt_hf.app.finetuning import SCRATCH, Training, pack_decoder, start_training
from rpnt_hf.app.live import REPEATED_MESSAGES, cut_recording, decode_live
from rpnt_hf.app.probe import (
    UNKNOWN,
    Probe,
    active_axes,
    attention_view,
    changed_metadata,
    lag_map,
    metadata_view,
    probe_window,
    recorded_metadata,
    shown_value,
)
from rpnt_hf.app.session import BUNDLED_DECODER, SIMULATED, Session
from rpnt_hf.app.sites import connectivity_maps, cut_trials, sites_view
from rpnt_hf.app.views import describe_scores, recording_facts, recording_window, restarts
from rpnt_hf.app.words import advise
from rpnt_hf.cli import main
from rpnt_hf.data.nwb import Recording
from rpnt_hf.decoding import decode_recording
from rpnt_hf.errors import CheckpointError, ConfigurationError, InputError, RecordingError
from rpnt_hf.scripts import find_reference_checkpoint


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


@pytest.fixture(scope="module")
def recording():
    return make_recording("a")


@pytest.fixture(scope="module")
def decoder(recording):
    """An untrained decoder of a recording with two sites, with a spatial stage."""
    import torch

    torch.manual_seed(0)
    config = RPNTConfig.preset("tiny", num_units=6, num_spatial_layers=1, attention_window=10)
    config.target_names, config.target_units = ["cursor_vel_x", "cursor_vel_y"], ["cm/s", "cm/s"]
    model = RPNTForMotorDecoding(config).eval()
    with torch.no_grad():  # anchors that matter
        for name, parameter in model.named_parameters():
            if "anchor_values" in name:
                parameter.normal_(std=1.0)
    processor = RPNTProcessor(
        bin_size=BIN_SIZE,
        subjects=["A", "B"],
        tasks=["center_out"],
        corpus_start="2020-01-01",
        window_bins=40,
        behavior_names=config.target_names,
        behavior_units=config.target_units,
    )
    facts = {"unit_sites": recording.unit_sites, "site_positions": recording.site_positions}
    processor.add_session("a", recording.unit_ids, **facts, subject_id="A", recording_date="2020-01-01")
    return model, processor


# Views


def test_a_window_holds_the_spikes_of_each_row_where_they_were():
    spikes = [np.array([0.5, 1.0, 3.0]), np.array([1.5]), np.array([])]
    recording = Recording.from_arrays(
        "s", spikes, obs_intervals=[[0.0, 4.0]], unit_sites=np.array([1, 0, 1]), site_ids=["M1", "PMd"]
    )
    view = recording_window(recording, 1.0, 2.0)
    assert view["sites"] == [{"name": "M1", "units": 1}, {"name": "PMd", "units": 2}]
    assert unpacked(view["spikes_per_row"], "<u4").tolist() == [1, 1, 0]  # unit 1 of M1 comes first
    np.testing.assert_allclose(unpacked(view["spikes"], "<u2") / 65535, [0.25, 0.0], atol=1e-4)
    assert view["behavior"] is None and view["observed"] == [(0.0, 4.0)]


def test_a_window_shows_trials_and_behaviour_of_its_own_time(recording):
    view = recording_window(recording, 2.5, 1.0)
    assert [trial[0] for trial in view["trials"]] == [2.0, 3.0]
    times = unpacked(view["behavior"]["times"], "<f4")
    values = unpacked(view["behavior"]["values"], "<f4").reshape(-1, 2)
    shown = recording.behavior["cursor_vel"]
    index = np.searchsorted(shown.timestamps, 2.5)
    assert len(times) == 100 and 0 <= times[0] < 0.011
    np.testing.assert_array_equal(values[0], shown.values[index])
    with pytest.raises(InputError, match="longer than 0 s"):
        recording_window(recording, 0.0, 0.0)


def test_a_crowded_window_is_cut_short_and_says_so(monkeypatch):
    monkeypatch.setattr("rpnt_hf.app.views.MAX_SPIKES", 100)
    recording = Recording.from_arrays("s", [np.arange(400) / 100.0], obs_intervals=[[0.0, 4.0]])
    view = recording_window(recording, 0.0, 4.0)
    assert view["stop"] == pytest.approx(1.0)
    assert len(unpacked(view["spikes"], "<u2")) == 100


def test_facts_name_units_sites_trials_duration_and_what_is_missing(recording):
    facts = dict(recording_facts(recording))
    assert facts["units"].startswith("6, median ")
    assert facts["sites"] == "M1 (3), PMd (3)"
    assert facts["trials"] == "20" and facts["observed"] == "20 s"
    bare = dataclasses.replace(recording, behavior={}, trials=recording.trials.iloc[:0])
    facts = dict(recording_facts(bare))
    assert facts["behaviour"].startswith("none") and facts["trials"].startswith("none")


def test_a_path_begins_anew_at_trials_and_after_gaps():
    times = np.array([0.0, 0.1, 0.2, 0.3, 1.0, 1.1])
    assert restarts(times, [0.2, 9.0], 0.1).tolist() == [True, False, True, False, True, False]
    assert restarts(np.arange(50) * 0.1, [], 0.1).nonzero()[0].tolist() == [0, 20, 40]


def test_scores_say_which_bins_were_fitted_to():
    scores = {"r2": 0.81234, "num_scored_bins": 1200, "r2_fitted": None, "num_scored_bins_fitted": 0}
    new, fitted = describe_scores(scores)
    assert new == ("R2, new bins", "0.812", "1,200 bins not trained or chosen on")
    assert fitted == ("R2, fitted bins", "-", "no such bins here")


# Attention and metadata


def test_a_lag_map_moves_weights_from_keys_to_how_long_ago_they_were():
    num_bins, anchors = 4, 2
    weights = np.zeros((1, 1, 1, num_bins, anchors + num_bins), np.float32)
    for query in range(num_bins):
        weights[0, 0, 0, query, 0] = 0.1
        for key in range(query + 1):
            weights[0, 0, 0, query, anchors + key] = 10 * query + key
    nothing = np.zeros((num_bins, 2), np.float32)
    probe = Probe(0.0, 0.1, weights, None, anchors, 3, nothing, nothing, np.zeros((1, 0)), 0.0)
    lags, at_anchors = lag_map(probe, 0, None, 0)
    assert lags.tolist() == [[0, 11, 22, 33], [0, 10, 21, 32], [0, 0, 20, 31]]
    np.testing.assert_allclose(at_anchors, [[0.1] * 4, [0.0] * 4], atol=1e-7)


def test_a_probe_decodes_as_the_model_does_and_leaves_it_as_it_was(recording, decoder):
    model, processor = decoder
    before = model.config._attn_implementation
    probe = probe_window(model, processor, recording, 5.0)
    stretch = cut_recording(recording, 5.0, 40 * BIN_SIZE)
    table = decode_recording(model, processor, stretch)
    np.testing.assert_allclose(
        probe.predicted, table[["cursor_vel_x_predicted", "cursor_vel_y_predicted"]], atol=1e-4
    )
    assert model.config._attn_implementation == before
    np.testing.assert_allclose(probe.attention.sum(axis=-1), 1.0, atol=1e-4)
    assert probe.attention.shape == (2, 2, 2, 40, 4 + 40) and probe.spatial.shape == (1, 2, 2, 4 + 2)
    view = attention_view(probe, ["M1", "PMd"], layer=1, head=0, site=1)
    assert view["site"] == "PMd" and len(unpacked(view["weights"], "u1")) == 40 * 10


def test_metadata_that_are_as_recorded_move_nothing_and_others_do(recording, decoder):
    model, processor = decoder
    assert active_axes(model, processor) == processor.metadata_axes
    recorded = probe_window(model, processor, recording, 0.0)
    same = probe_window(model, processor, recording, 0.0, {(0, "subject"): 0.0, (1, "subject"): 0.0})
    other = probe_window(model, processor, recording, 0.0, {(0, "day"): 60.0, (1, "day"): np.nan})
    assert metadata_view(recorded, same, processor.metadata_axes)["moved"] == 0.0
    view = metadata_view(recorded, other, processor.metadata_axes, site=1)
    assert view["moved"] > 1e-4
    assert np.abs(unpacked(view["difference"], "i1")).max() == 127
    day = next(value for value in view["values"] if value["axis"] == "day")
    assert day == {"axis": "day", "unit": "days", "recorded": 0.0, "changed": None}


def test_a_control_that_shows_what_was_recorded_changes_nothing(recording, decoder):
    _, processor = decoder
    places = np.array([[1.23456, 0.0, 2.0], [np.nan] * 3], dtype=np.float32)
    recording = dataclasses.replace(recording, site_positions=places)
    recorded = recorded_metadata(processor, recording)
    for site in range(2):
        stated = {
            axis: shown_value(processor, axis, recorded[site, column])
            for column, axis in enumerate(processor.metadata_axes)
        }
        if site == 1:
            stated |= dict.fromkeys(("site_x", "site_y", "site_z"), UNKNOWN)
        assert changed_metadata(processor, recording, stated, site) == {}
    assert stated["subject"] == "A" and stated["day"] == 0.0
    assert changed_metadata(processor, recording, {"site_x": 1.3, "day": 5}, 0) == {
        (0, "site_x"): 1.3, (0, "day"): 5.0, (1, "day"): 5.0,
    }  # fmt: skip
    assert changed_metadata(processor, recording, {"site_x": 0.0}, 1) == {(1, "site_x"): 0.0}
    (gone,) = changed_metadata(processor, recording, {"site_x": UNKNOWN}, 0).items()
    assert gone[0] == (0, "site_x") and np.isnan(gone[1])


def test_a_decoder_without_metadata_has_no_axes(decoder):
    _, processor = decoder
    plain = RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=6, position_encoding="rope"))
    assert active_axes(plain, processor) == []


# Sites


def test_sites_that_share_a_signal_stand_out_from_shuffles():
    rng = np.random.default_rng(0)
    starts = np.arange(60) * 1.0
    common, own = rng.gamma(1.0, 1.0, 60), rng.gamma(1.0, 1.0, 60)

    def unit(strength):
        counts = rng.poisson(12 * strength)
        return np.sort(
            np.concatenate([at + rng.uniform(0, 0.9, n) for at, n in zip(starts, counts, strict=True)])
        )

    recording = Recording.from_arrays(
        "s",
        [unit(common), unit(common), unit(common), unit(common), unit(own), unit(own)],
        unit_sites=np.repeat([0, 1, 2], 2),
        site_ids=["M1", "PMd", "S1"],
        obs_intervals=[[0.0, 60.0]],
        trials=pd.DataFrame({"start_time": starts, "stop_time": starts + 1.0}),
    )
    windows = cut_trials(recording, 0.05)
    assert windows.spike_counts.shape == (60, 3, 20, 2) and windows.bin_mask.sum() == 60 * 3 * 20
    correlation, _ = connectivity_maps(recording, 0.05)
    weights = np.array(correlation["weights"], dtype=float)
    assert weights[0, 1] > 3 * max(abs(weights[0, 2]), abs(weights[1, 2]))
    assert np.array(correlation["significant"])[0, 1]
    view = sites_view([correlation], None, recording.site_ids)
    assert view["maps"][0]["sites"] == ["M1", "PMd", "S1"]


def test_of_many_units_the_most_active_of_each_site_are_compared():
    rng = np.random.default_rng(1)
    counts = rng.permutation(np.arange(60, 120))
    recording = Recording.from_arrays(
        "s",
        [np.sort(rng.uniform(0, 30, count)) for count in counts],
        unit_sites=np.arange(60) % 2,
        site_ids=["M1", "PMd"],
        obs_intervals=[[0.0, 30.0]],
    )
    windows = cut_trials(recording, 0.05)
    assert windows.unit_mask.shape == (2, 24) and windows.unit_mask.all()
    for site in range(2):
        most = np.sort(counts[site::2])[-24:].sum()
        assert windows.spike_counts[:, site].sum() == most
    assert "24 most active units a site" in connectivity_maps(recording, 0.05)[0]["note"]


def test_one_site_gives_a_sentence_instead_of_a_map():
    recording = simulate(num_subjects=1, sessions_per_subject=1, num_units=4, num_trials=3)[0]
    assert connectivity_maps(recording, 0.05) == []
    assert sites_view([], None, ["M1"])["message"].startswith("One site")


# Live


def messages_of(decoder, recording, **options):
    arguments = {"start": 3.0, "seconds": 10.0, "speed": 0.0, "is_wanted": lambda: True} | options
    return list(decode_live(*decoder, recording, **arguments))


def test_the_last_message_has_what_decoding_at_once_gives(recording, decoder):
    last = messages_of(decoder, recording)[-1]
    table = decode_recording(*decoder, cut_recording(recording, 3.0, 10.0))
    predicted = unpacked(last["tail"]["predicted"], "<f4").reshape(-1, 2)
    assert last["finished"] and last["tail"]["first"] == 0 and last["setup"]["bins"] == len(table) == 200
    np.testing.assert_allclose(
        predicted, table[["cursor_vel_x_predicted", "cursor_vel_y_predicted"]], atol=1e-3
    )
    np.testing.assert_allclose(
        unpacked(last["tail"]["true"], "<f4").reshape(-1, 2),
        table[["cursor_vel_x", "cursor_vel_y"]],
        atol=1e-4,
    )
    assert last["status"]["latency_ms"]["p50"] > 0 and last["status"]["scores"][0][0] == "R2, new bins"


def test_messages_overlap_so_that_one_may_be_lost(recording, decoder):
    messages = messages_of(decoder, recording, speed=4.0, seconds=4.0)
    assert len(messages) > REPEATED_MESSAGES + 2
    ends = [message["tail"]["bins"] for message in messages]
    for skipped in range(1, len(messages) - 1):
        assert messages[skipped + 1]["tail"]["first"] <= ends[skipped - 1]


def test_four_times_real_time_takes_a_quarter_of_the_time(recording, decoder):
    messages_of(decoder, recording, seconds=1.0)
    began = time.perf_counter()
    messages_of(decoder, recording, speed=4.0, seconds=4.0)
    assert 0.9 < time.perf_counter() - began < 3.0


def test_a_live_run_stops_when_nobody_wants_it_any_more(recording, decoder):
    wanted = True
    run = decode_live(*decoder, recording, 0.0, 20.0, 1.0, lambda: wanted)
    while next(run)["tail"]["bins"] < 5:
        pass
    wanted = False
    last = list(run)[-1]
    assert last["finished"] and 5 <= last["tail"]["bins"] < 100


def test_a_stretch_that_was_not_observed_is_refused(recording, decoder):
    with pytest.raises(ConfigurationError, match=r"must overlap what was observed, 0\.0 s to 20\.0 s"):
        messages_of(decoder, recording, start=30.0)
    stranger = dataclasses.replace(recording, session_id="other")
    with pytest.raises(InputError, match="'other'"):
        messages_of(decoder, stranger)


# Session


def test_visitors_get_sessions_of_their_own_whose_files_go_with_them():
    first = Session(allow_folders=False)
    first.open_recording(next(iter(SIMULATED)))
    second = copy.deepcopy(first)
    assert second.recording is None and second.allow_folders is False
    assert first.folder != second.folder and first.folder.is_dir()
    kept = first.folder
    (kept / "file").write_text("mine")
    first.close()
    folders = [kept, second.folder]
    assert [folder.is_dir() for folder in folders] == [False, True]
    del second
    assert not folders[1].is_dir()


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_a_file_that_is_not_nwb_leaves_the_recording_and_no_file(kind, tmp_path):
    session = Session()
    session.open_recording(next(iter(SIMULATED)))
    before = session.recording
    path = tmp_path / "deep" / "mine.nwb"
    path.parent.mkdir()
    if kind == "text":
        path.write_text("no NWB")
    else:
        whole = reach_file(tmp_path / "whole.nwb")
        path.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(RecordingError, match=r"got 'mine\.nwb', which cannot be read") as refused:
        session.open_upload(path)
    assert str(tmp_path) not in str(refused.value)
    assert session.recording is before and not path.exists()


def test_spikes_out_of_order_are_repaired_and_the_visitor_is_told(tmp_path):
    path = write_small_nwb(tmp_path / "mixed.nwb", [[0.5, 0.2, 0.2, 3.0], [1.0, 2.0]])
    session = Session()
    session.open_checkpoint(BUNDLED_DECODER)
    session.open_upload(path)
    assert session.recording.spike_times[0].tolist() == [0.2, 0.5, 3.0]
    shown = advise(session, session.obstacle())
    assert (
        "got 1 unsorted and 1 duplicate of 4 spikes" in shown and "This page has done so. This dec" in shown
    )
    session.open_recording(next(iter(SIMULATED)))
    assert advise(session, session.obstacle()) is None


def test_a_file_without_behaviour_is_taken_and_cannot_be_trained_on(tmp_path):
    path = write_small_nwb(tmp_path / "bare.nwb", [np.arange(1, 50) / 5.0])
    session = Session()
    assert session.open_upload(path) == "Uploaded: bare.nwb"
    with pytest.raises(RecordingError, match="cursor_vel"):
        start_training(session.recording, tmp_path / "run", SCRATCH, 10)


def test_wrong_units_are_told_before_anything_is_decoded(tmp_path):
    session = Session()
    session.open_checkpoint(BUNDLED_DECODER)
    known = next(iter(session.processor.sessions))
    path = reach_file(tmp_path / "three_units.nwb", session_id=known)
    session.open_upload(path)
    assert f"Session '{known}' must have the 56 units" in session.obstacle()
    assert "got 3" in session.obstacle()
    assert session.scores() is None


def test_a_page_for_strangers_takes_no_folder(tmp_path):
    folder = find_reference_checkpoint(BUNDLED_DECODER)
    Session().open_checkpoint(str(folder))
    for name in (str(folder), "../reference", "~/x", "no-owner"):
        with pytest.raises(CheckpointError, match="Folders are for pages that you start yourself"):
            Session(allow_folders=False).open_checkpoint(name)
    session = Session(allow_folders=False, offered=[str(folder)])
    session.open_checkpoint(str(folder))  # but one that the page itself offers
    session.open_checkpoint(BUNDLED_DECODER)
    with pytest.raises(CheckpointError, match="got nothing"):
        session.open_checkpoint(" ")
    assert session.checkpoint == BUNDLED_DECODER


def test_the_bundled_decoder_knows_the_first_recording_that_is_offered():
    session = Session()
    session.open_recording(next(iter(SIMULATED)))
    session.open_checkpoint(BUNDLED_DECODER)
    assert session.obstacle() is None
    scores = session.scores()
    assert scores["r2"] > 0.8 and scores["num_scored_bins"] > 500


# Finetuning


def test_a_cancelled_training_ends_at_once_and_keeps_nothing(tmp_path, recording):
    run = start_training(recording, tmp_path, SCRATCH, 20_000)
    assert isinstance(run, Training) and run.is_running
    run.cancel()
    assert not run.is_running
    with pytest.raises(CheckpointError, match="was cancelled"):
        run.finish()


def test_a_training_that_fails_gives_its_paragraph_without_paths(tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
        "import sys; print('a warning', file=sys.stderr)\n"
        f"sys.exit('error: `init` must fit, got {tmp_path}/decoder. Choose another.')"
    )
    run = Training([sys.executable, str(script)], tmp_path, "decoder", 10)
    run.wait(20)
    with pytest.raises(CheckpointError, match=r"^`init` must fit, got decoder\. Choose another\.$"):
        run.finish()


def test_progress_is_read_from_the_log(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "for i in (2, 4):\n"
        "    sys.stderr.write(f'[RANK 0] epoch {i}  loss 0.4321  R2 0.765{i}  learning rate 1e-3\\n')\n"
    )
    run = Training([sys.executable, str(script)], tmp_path, "decoder", 10)
    run.wait(20)
    run._reader.join(5)
    progress = run.progress()
    assert (progress["passes"], progress["num_passes"]) == (4, 10)
    assert progress["curve"] == [[2, 0.4321, 0.7652], [4, 0.4321, 0.7654]]
    assert progress["seconds_left"] == pytest.approx(6 * progress["seconds_per_pass"])


def test_the_download_holds_what_a_push_sends(tmp_path):
    path = pack_decoder(find_reference_checkpoint(BUNDLED_DECODER), tmp_path / "decoder.zip")
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix("decoder/") for name in archive.namelist()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert not list(tmp_path.glob("*.unfinished"))


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert main(["app", "--no-browser"]) == 2
    assert "pip install 'rpnt_hf[app]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "argument --port: the port must be a number from 1 to 65535, got '99999'"),
        (["--max-upload", "many"], "argument --max-upload: the size must be a number with kb, mb or gb"),
    ],
)
def test_options_of_the_page_are_checked_before_anything_is_loaded(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["app", *words])
    assert said in capsys.readouterr().err


def test_the_space_names_what_is_there_and_a_gradio_that_the_extra_allows(repository):
    head = yaml.safe_load((repository / "space" / "README.md").read_text().split("---")[1])
    assert head["sdk"] == "gradio" and (repository / "space" / head["app_file"]).is_file()
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    (gradio,) = project["optional-dependencies"]["app"]
    assert Requirement(gradio).specifier.contains(head["sdk_version"])
    requirement = Requirement((repository / "space" / "requirements.txt").read_text().splitlines()[-1])
    assert requirement.name == project["name"] and "app" in requirement.extras
    assert len(head["short_description"]) <= 60  # the Hub refuses longer ones


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["command", "space"])
def test_it_is_served_until_it_is_interrupted(kind, repository):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "rpnt_hf.cli", "app", "--no-browser", "--json", "--port", str(port)]
    if kind == "space":
        command = [str(repository / "space" / "app.py")]
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PORT": str(port), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        if kind == "command":
            assert json.loads(process.stdout.readline()) == {"address": address}
        for _ in range(600):
            time.sleep(0.1)
            with contextlib.suppress(OSError), urllib.request.urlopen(address) as answer:
                assert "rpntDrawing" in answer.read().decode()
                break
        else:
            pytest.fail("the page did not answer")
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    finally:
        process.kill()
    assert kind == "space" or process.returncode == 130
