"""Recordings from NWB files and from arrays: what is read, and what is refused."""

import datetime
import logging

import numpy as np
import pandas as pd
import pynwb
import pytest
from nwb_files import reach_file, series, write_nwb
from pynwb.behavior import SpatialSeries

from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.errors import RecordingError

SPIKES = [[0.1, 0.2, 0.7], [], [0.4]]
OBSERVED = np.array([[0.0, 1.0]])


def test_a_file_is_read_in_full(tmp_path):
    path = reach_file(tmp_path / "sub-X_ses-CO-20200304_behavior+ecephys.nwb")
    recording = read_nwb(path)
    assert recording.session_id == "sub-X_ses-CO-20200304"
    assert (recording.subject_id, recording.task) == ("X", "center_out")
    assert recording.recording_date == datetime.date(2020, 3, 4)
    assert recording.unit_ids == ["0", "1", "2"] and recording.site_ids == ["M1"]
    assert recording.num_spikes == 150 and len(recording.trials) == 20
    assert recording.trials["result"][5] == "F"
    assert recording.behavior["cursor_vel"].unit == "cm/s"
    assert recording.source["file_name"] == path.name and len(recording.source["sha256"]) == 64


def test_a_unit_without_spikes_is_read_and_the_others_keep_theirs(tmp_path):
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED))
    assert [times.tolist() for times in recording.spike_times] == SPIKES


def test_a_single_unit_is_a_recording(tmp_path):
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", [[0.1, 0.9]], obs_intervals=OBSERVED))
    assert recording.bin_spikes(0.5)[0].counts.tolist() == [[1], [1]]


def test_rate_with_starting_time_equals_timestamps(tmp_path):
    times = 3.0 + np.arange(50) / 10
    data = np.arange(100.0).reshape(50, 2)
    explicit = series("a", data=data, timestamps=times)
    regular = pynwb.TimeSeries(name="b", data=data, unit="cm/s", rate=10.0, starting_time=3.0)
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, [explicit, regular]))
    np.testing.assert_allclose(
        recording.behavior["a"].timestamps, recording.behavior["b"].timestamps, atol=1e-12
    )


def test_conversion_and_offset_are_applied(tmp_path):
    one = series(
        data=np.array([[1.0, 2.0], [3.0, 4.0]]), timestamps=np.array([0.0, 1.0]), conversion=100.0, offset=5.0
    )
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, [one]))
    assert recording.behavior["cursor_vel"].values.tolist() == [[105.0, 205.0], [305.0, 405.0]]


def test_bare_series_and_acquisition_are_read_but_images_are_not(tmp_path):
    video = pynwb.image.ImageSeries(name="video", data=np.zeros((3, 2, 2)), unit="n/a", rate=1.0)
    path = write_nwb(
        tmp_path / "a.nwb",
        SPIKES,
        behavior=[series("cursor_pos", kind=SpatialSeries)],
        bare=[series("force", data=np.ones(2000))],
        acquisition=[series("lever"), video],
    )
    behavior = read_nwb(path).behavior
    assert sorted(behavior) == ["cursor_pos", "force", "lever"]
    assert behavior["force"].values.shape == (2000, 1) and behavior["force"].dimension_names == [""]


def test_two_series_of_one_name_are_told_apart_by_their_container(tmp_path):
    path = write_nwb(
        tmp_path / "a.nwb", SPIKES, behavior=[series("cursor_vel")], acquisition=[series("cursor_vel")]
    )
    assert sorted(read_nwb(path).behavior) == ["Container_cursor_vel/cursor_vel", "root/cursor_vel"]


def test_gaps_of_obs_intervals_are_respected(tmp_path):
    observed = np.array([[0.0, 0.3], [0.6, 1.0]])
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, obs_intervals=observed))
    np.testing.assert_array_equal(recording.obs_intervals, observed)
    assert sum(int(interval.counts.sum()) for interval in recording.bin_spikes(0.1)) == 3


def test_only_what_all_units_observed_is_kept(tmp_path):
    observed = [[[0.0, 1.0]], [[0.2, 0.5], [0.7, 2.0]], [[0.0, 0.9]]]
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, obs_intervals=observed))
    np.testing.assert_array_equal(recording.obs_intervals, [[0.2, 0.5], [0.7, 0.9]])


def test_invalid_times_are_taken_out(tmp_path):
    path = write_nwb(
        tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED, invalid_times=[(0.5, 0.6), (0.55, 0.8)]
    )
    np.testing.assert_array_equal(read_nwb(path).obs_intervals, [[0.0, 0.5], [0.8, 1.0]])


def test_units_that_never_overlap_are_refused(tmp_path):
    path = write_nwb(tmp_path / "a.nwb", [[0.1], [0.8]], obs_intervals=[[[0.0, 0.4]], [[0.6, 1.0]]])
    with pytest.raises(RecordingError, match="a time when all units are observed"):
        read_nwb(path)


def test_without_obs_intervals_the_recording_spans_everything(tmp_path):
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, [series(duration=2.0)]))
    np.testing.assert_allclose(recording.obs_intervals, [[0.0, 1.99]])


def test_unicode_names_survive(tmp_path):
    names = ["\u00e91", "\u7ec6\u80de", "u"]
    path = write_nwb(
        tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED, unit_names=names, session_id="T\u00e5g-1"
    )
    recording = read_nwb(path)
    assert recording.unit_ids == names and recording.session_id == "T\u00e5g-1"


def test_positions_are_converted_to_mm_and_averaged_per_site(tmp_path):
    positions = [(0.0, 1000.0, 0.0), (2000.0, 3000.0, 0.0), (0.0, 0.0, 500.0)]
    sites = {"groups": ("M1", "PMd"), "group_of_unit": [0, 0, 1], "positions": positions}
    path = write_nwb(tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED, **sites)
    recording = read_nwb(path)
    assert recording.site_ids == ["M1", "PMd"] and recording.unit_sites.tolist() == [0, 0, 1]
    np.testing.assert_allclose(recording.site_positions, [[1.0, 2.0, 0.0], [0.0, 0.0, 0.5]])


@pytest.mark.parametrize("positions", [None, [(0.0, 0.0, 0.0)] * 3, [(np.nan, 1.0, 1.0)] * 3])
def test_unknown_positions_are_nan(tmp_path, positions):
    path = write_nwb(tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED, positions=positions)
    assert np.isnan(read_nwb(path).site_positions).all()


def test_sites_of_one_location_are_named_by_their_groups(tmp_path):
    path = write_nwb(
        tmp_path / "a.nwb", SPIKES, obs_intervals=OBSERVED, groups=("M1", "M1"), group_of_unit=[0, 1, 1]
    )
    assert read_nwb(path).site_ids == ["group_0", "group_1"]


@pytest.mark.parametrize(
    ("name", "task"),
    [("sub-X_ses-RT-1", "random_target"), ("sub-X_task-maze_1", "maze"), ("sub-CORTEX_ses-1", None)],
)
def test_the_task_comes_from_tokens_of_the_file_name(tmp_path, name, task):
    assert read_nwb(write_nwb(tmp_path / f"{name}.nwb", SPIKES, obs_intervals=OBSERVED)).task == task


def test_go_cue_arrays_make_a_random_target_task(tmp_path):
    trials = {
        "start_time": [0.0, 0.5],
        "stop_time": [0.4, 0.9],
        "go_cue_time_array": [[0.1, 0.2], [0.6, np.nan]],
    }
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, trials=trials, obs_intervals=OBSERVED))
    assert recording.task == "random_target"
    np.testing.assert_array_equal(recording.trials["go_cue_time_array"][0], [0.1, 0.2])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"must be an NWB file, got .*nothing.nwb"):
        read_nwb(tmp_path / "nothing.nwb")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.95])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = reach_file(tmp_path / "a.nwb")
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(RecordingError, match=r"must be a whole NWB 2.x file"):
        read_nwb(path)


def test_hdf5_that_is_not_nwb_is_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "a.nwb", "w") as file:
        file["x"] = [1, 2]
    with pytest.raises(RecordingError, match=r"must be a whole NWB 2.x file"):
        read_nwb(tmp_path / "a.nwb")


def test_a_file_without_units_is_refused(tmp_path):
    with pytest.raises(RecordingError, match=r"must have units with spike times, got none in 'a.nwb'"):
        read_nwb(write_nwb(tmp_path / "a.nwb", []))


def test_a_bad_series_is_left_out_with_its_reason(tmp_path, caplog):
    times = np.arange(2000) / 100
    nan, repeated = times.copy(), times.copy()
    nan[7], repeated[7] = np.nan, repeated[6]
    path = write_nwb(
        tmp_path / "a.nwb",
        SPIKES,
        [series(timestamps=nan), series("hand_vel")],
        acquisition=[series("pupil", timestamps=repeated), series("words", data=np.array(["a"] * 2000))],
    )
    with caplog.at_level(logging.WARNING):
        recording = read_nwb(path)
    assert sorted(recording.behavior) == ["hand_vel"]
    assert sorted(recording.unusable_behavior) == ["cursor_vel", "pupil", "words"]
    assert "must be finite, got 1 NaN" in recording.unusable_behavior["cursor_vel"]
    assert "must increase strictly, got 1 steps" in recording.unusable_behavior["pupil"]
    assert "must hold real numbers" in recording.unusable_behavior["words"]
    assert caplog.text.count("of 'a.nwb' cannot be used") == 3


def test_nan_timestamps_are_refused():
    with pytest.raises(RecordingError, match=r"must be finite, got 1 NaN .* in series 'a'"):
        BehaviorSeries("a", np.array([0.0, np.nan, 1.0]), np.zeros(3), [""], "cm")


def test_behavior_of_every_processing_module_is_read(tmp_path):
    modules = {"eyes": [series("gaze"), series("force")], "arm": [series("elbow"), series("force")]}
    path = write_nwb(tmp_path / "a.nwb", SPIKES, [series("cursor_vel")], modules=modules)
    names = ["arm/force", "cursor_vel", "elbow", "eyes/force", "gaze"]
    assert sorted(read_nwb(path).behavior) == names


def test_series_of_one_name_in_containers_of_one_name_are_told_apart_by_their_module(tmp_path):
    raw = pynwb.behavior.BehavioralTimeSeries(name="Container_force", time_series=series("force"))
    path = write_nwb(tmp_path / "a.nwb", SPIKES, [series("force")], modules={"raw": [raw]})
    assert sorted(read_nwb(path).behavior) == ["behavior/Container_force/force", "raw/Container_force/force"]


def test_trials_without_a_start_or_stop_time_are_read(tmp_path):
    trials = {"start_time": [0.0, np.nan, 2.0], "stop_time": [np.nan, 1.8, 2.8]}
    recording = read_nwb(write_nwb(tmp_path / "a.nwb", SPIKES, trials=trials, obs_intervals=OBSERVED))
    np.testing.assert_array_equal(recording.trials["start_time"], trials["start_time"])
    np.testing.assert_array_equal(recording.trials["stop_time"], trials["stop_time"])


def test_repeated_timestamps_are_refused():
    with pytest.raises(RecordingError, match="must increase strictly, got 1 steps"):
        BehaviorSeries("a", np.array([0.0, 0.0, 1.0]), np.zeros(3), [""], "cm")


def test_fewer_values_than_timestamps_are_refused():
    with pytest.raises(RecordingError, match=r"same samples.*\(2, 1\) and \(3,\)"):
        BehaviorSeries("a", np.arange(3.0), np.zeros(2), [""], "cm")


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([0.3, 0.1, 0.2], "1 unsorted and 0 duplicate of 3"),
        ([0.1, 0.1, 0.1], "0 unsorted and 2 duplicate of 3"),
    ],
)
def test_unsorted_and_duplicate_spikes_are_refused_by_unit_and_number(tmp_path, times, found):
    path = write_nwb(tmp_path / "a.nwb", [[0.5], times], obs_intervals=OBSERVED)
    with pytest.raises(
        RecordingError, match=f"got {found} spikes for unit '1' in session 'a'.*repair_spikes=True"
    ):
        read_nwb(path)


def test_repair_sorts_and_drops_duplicates_and_says_so(tmp_path, caplog):
    path = write_nwb(tmp_path / "a.nwb", [[0.5], [0.3, 0.1, 0.1]], obs_intervals=OBSERVED)
    with caplog.at_level(logging.WARNING):
        recording = read_nwb(path, repair_spikes=True)
    assert recording.spike_times[1].tolist() == [0.1, 0.3]
    assert "sorted the spikes of 1 units and dropped 1 duplicate" in caplog.text


def test_nan_spike_times_are_refused():
    with pytest.raises(RecordingError, match="1 NaN or infinite times for unit '0'"):
        Recording.from_arrays("a", [np.array([0.1, np.nan])], obs_intervals=OBSERVED)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unit_ids": ["a", "a", "b"]}, "`unit_ids` must be unique, got 1 repeats"),
        ({"unit_ids": ["a"]}, "one entry per unit, got 1, 3 and 3"),
        ({"unit_sites": [0, 0, 1]}, "must index the 1 `site_ids`, got 0 to 1"),
        ({"site_positions": np.zeros((2, 3))}, r"must have shape \(1, 3\), got \(2, 3\)"),
        ({"obs_intervals": np.array([[0.0, 1.0], [0.5, 2.0]])}, "sorted, not overlap"),
        ({"obs_intervals": np.zeros((0, 2))}, r"must have shape \(intervals, 2\), got \(0, 2\)"),
        ({"trials": pd.DataFrame({"start_time": [0.0]})}, "got none of"),
        ({"trials": pd.DataFrame({"start_time": [0.0, 1.0], "stop_time": [0.5, 1.0]})}, "the first in row 1"),
    ],
)
def test_arrays_that_contradict_each_other_are_refused(overrides, message):
    arrays = {"obs_intervals": OBSERVED} | overrides
    with pytest.raises(RecordingError, match=message):
        Recording.from_arrays("a", [np.array(times) for times in SPIKES], **arrays)


def test_a_recording_without_any_extent_is_refused():
    with pytest.raises(RecordingError, match="must span some time, got 1 times"):
        Recording.from_arrays("a", [np.array([0.1])])


def test_real_recordings_are_read(shared_data):
    for path in sorted(shared_data.glob("*/*.nwb"))[::7]:
        recording = read_nwb(path)
        assert recording.session_id == path.stem.split("_behavior")[0].split("_ecephys")[0]
        assert recording.num_spikes > 10_000 and np.isnan(recording.site_positions).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-C_ses-CO-20131003_behavior+ecephys.nwb", "sub-C_ses-CO-20131003"),
        ("sub-M_ses-CO-20131003_ecephys.nwb", "sub-M_ses-CO-20131003"),
        ("sub-C_ses-RT-20131003_behavior+ecephys.nwb", "CO-20131003"),
        ("monday.nwb", "CO-20131003"),
    ],
)
def test_sessions_of_one_name_are_told_apart_by_the_subject_in_the_file_name(name, expected, tmp_path):
    path = reach_file(tmp_path / name, session_id="CO-20131003")
    assert read_nwb(path).session_id == expected
