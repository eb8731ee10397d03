"""The simulator: seeded, independent sessions, realistic reaches and rates, and faithful NWB files."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.data.reaches import ReachStyle, simulate_reaches
from rpnt_hf.data.simulate import SimulationConfig, simulate, simulate_session, write_nwb
from rpnt_hf.errors import ConfigurationError, RecordingError

SMALL = SimulationConfig(num_subjects=2, sessions_per_subject=2, num_units=8, num_trials=4, seed=3)


def assert_same_recording(first, second):
    assert first.session_id == second.session_id
    assert first.unit_ids == second.unit_ids
    np.testing.assert_array_equal(first.unit_sites, second.unit_sites)
    assert first.site_ids == second.site_ids
    np.testing.assert_array_equal(first.site_positions, second.site_positions)
    np.testing.assert_array_equal(first.obs_intervals, second.obs_intervals)
    for spikes, other_spikes in zip(first.spike_times, second.spike_times, strict=True):
        np.testing.assert_array_equal(spikes, other_spikes)
    assert first.behavior.keys() == second.behavior.keys()
    for name, series in first.behavior.items():
        np.testing.assert_array_equal(series.values, second.behavior[name].values)
        np.testing.assert_array_equal(series.timestamps, second.behavior[name].timestamps)
        assert series.unit == second.behavior[name].unit
    assert list(first.trials.columns) == list(second.trials.columns)
    for column in first.trials.columns:
        for value, other in zip(first.trials[column], second.trials[column], strict=True):
            np.testing.assert_array_equal(value, other)


@pytest.fixture(scope="module")
def session():
    return simulate_session(SimulationConfig(num_trials=100, num_units=50), 0, 0)


def test_the_same_seed_gives_the_same_recordings_and_another_seed_others():
    for first, second in zip(simulate(SMALL), simulate(SMALL), strict=True):
        assert_same_recording(first, second)
    other = simulate(SMALL, seed=4)[0]
    assert not np.array_equal(other.spike_times[0], simulate(SMALL)[0].spike_times[0])


def test_a_session_does_not_depend_on_how_many_others_are_simulated():
    recordings = simulate(SMALL, num_subjects=3, sessions_per_subject=3)
    for first, second in zip(simulate(SMALL), [recordings[i] for i in (0, 1, 3, 4)], strict=True):
        assert_same_recording(first, second)


def test_sessions_have_ids_of_their_own_and_later_sessions_later_days():
    recordings = simulate(SMALL, sessions_per_subject=4)
    assert len({recording.session_id for recording in recordings}) == 8
    days = [recording.recording_date for recording in recordings]
    assert days[:4] == sorted(set(days[:4])) and days[4:] == sorted(set(days[4:]))


def test_units_come_and_go_between_sessions_but_most_stay():
    first, second = simulate(SMALL, num_subjects=1, num_units=40)
    shared = set(first.unit_ids) & set(second.unit_ids)
    assert 20 <= len(shared) < 40


def test_every_site_has_its_units_and_a_position():
    recording = simulate_session(SimulationConfig(num_sites=3, num_units=5, num_trials=2), 0, 0)
    assert recording.unit_sites.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert recording.site_ids == ["M1", "PMd", "S1"]
    assert np.isfinite(recording.site_positions).all()
    assert len(set(recording.unit_ids)) == 15


def test_spikes_are_sorted_inside_the_session_and_never_in_the_refractory_period(session):
    for spikes in session.spike_times:
        assert np.diff(spikes).min() >= 0.0015 - 1e-9
        assert spikes[0] >= 0 and spikes[-1] <= session.obs_intervals[0, 1]


def test_rates_are_those_of_cortex(session):
    rates = np.array([spikes.size for spikes in session.spike_times]) / session.obs_intervals[0, 1]
    assert 5 < np.median(rates) < 15
    assert rates.min() > 0.5 and rates.max() < 60


def test_reaches_take_the_time_and_have_the_speed_of_reaches(session):
    trials = session.trials
    reaction_times = trials["move_onset_time"] - trials["go_cue_time"]
    assert reaction_times.between(0.2, 0.55).all() and 0.25 < reaction_times.mean() < 0.45
    series = session.behavior["cursor_vel"]
    speed = np.hypot(*series.values.T)
    starts = np.searchsorted(series.timestamps, trials["move_onset_time"])
    peaks = [speed[start : start + 60].max() for start in starts]
    assert np.percentile(peaks, 5) > 15 and np.percentile(peaks, 95) < 50
    assert np.allclose(trials["target_dir"], trials["target_id"] * np.pi / 4)


def test_rewarded_reaches_end_in_their_target(session):
    series = session.behavior["cursor_pos"]
    trials = session.trials[session.trials["result"] == "R"]
    ends = series.values[np.searchsorted(series.timestamps, trials["end_time"])]
    targets = 8.0 * np.stack([np.cos(trials["target_dir"]), np.sin(trials["target_dir"])], axis=-1)
    assert np.hypot(*(ends - targets).T).max() < 2.0


def test_velocity_is_the_derivative_of_position():
    behavior = simulate_reaches("center_out", 5, ReachStyle(), 0.0, 100.0, np.random.default_rng(0))
    derivative = np.gradient(behavior.position, 0.01, axis=0)
    assert np.abs(derivative - behavior.velocity).max() < 1.0


def test_random_target_trials_have_four_go_cues():
    recording = simulate_session(SimulationConfig(tasks=("random_target",), num_units=3, num_trials=10), 0, 0)
    cues = np.stack(list(recording.trials["go_cue_time_array"]))
    rewarded = (recording.trials["result"] == "R").to_numpy()
    assert cues.shape == (10, 4)
    assert (np.diff(cues[rewarded], axis=1) > 0).all()
    assert recording.task == "random_target" and "_ses-RT-" in recording.session_id


def test_failed_trials_are_marked_and_their_reaches_stop_short():
    recording = simulate_session(SimulationConfig(failure_rate=1.0, num_units=3, num_trials=6), 0, 0)
    assert set(recording.trials["result"]) == {"F"}
    series = recording.behavior["cursor_pos"]
    ends = series.values[np.searchsorted(series.timestamps, recording.trials["end_time"])]
    assert np.hypot(*ends.T).max() < 7.0


def test_a_ridge_decoder_with_lags_is_neither_blind_nor_perfect(session):
    size, num_lags = 0.05, 10
    edges = np.arange(int(session.obs_intervals[0, 1] / size) + 1) * size
    counts = np.stack([np.histogram(spikes, edges)[0] for spikes in session.spike_times], axis=1)
    velocity = (
        session.behavior["cursor_vel"].values[: 5 * len(counts)].reshape(len(counts), 5, 2).mean(axis=1)
    )
    lagged = np.concatenate([np.roll(counts, lag, axis=0) for lag in range(num_lags)], axis=1)
    trial = np.full(len(counts), -1)
    for index, (start, stop) in enumerate(session.trials[["target_on_time", "end_time"]].to_numpy()):
        trial[int(start / size) : int(stop / size)] = index
    train, test = (trial >= 0) & (trial < 75), trial >= 75
    decoder = Ridge(300.0).fit(lagged[train], velocity[train])
    assert 0.5 < r2_score(velocity[test], decoder.predict(lagged[test])) < 0.85


def test_more_depth_makes_rates_follow_the_movement_more():
    def spread(depth):
        recording = simulate_session(
            SimulationConfig(depth=depth, noise=0.0, num_units=10, num_trials=20), 0, 0
        )
        edges = np.arange(0, recording.obs_intervals[0, 1], 0.1)
        counts = np.stack([np.histogram(spikes, edges)[0] for spikes in recording.spike_times])
        return (counts.var(axis=1) / counts.mean(axis=1)).mean()

    assert spread(0.0) < 1.1 < spread(1.5)


@pytest.mark.parametrize("task", ["center_out", "random_target"])
def test_an_nwb_file_reads_back_as_the_same_recording(tmp_path, task):
    recording = simulate_session(
        SimulationConfig(tasks=(task,), num_sites=2, num_units=6, num_trials=5), 1, 0
    )
    path = write_nwb(recording, tmp_path / "sub-B" / f"{recording.session_id}_behavior+ecephys.nwb")
    again = read_nwb(path)
    assert_same_recording(recording, again)
    assert (again.subject_id, again.task, again.recording_date) == ("B", task, recording.recording_date)
    assert again.source["file_name"] == path.name


def test_a_file_has_the_layout_of_dandi_000688(tmp_path):
    import pynwb

    path = write_nwb(simulate(SMALL, num_subjects=1, sessions_per_subject=1)[0], tmp_path / "a.nwb")
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        file = io.read()
        behavior = file.processing["behavior"]
        assert behavior["Position"]["cursor_pos"].unit == "cm"
        assert behavior["Velocity"]["cursor_vel"].unit == "cm/s"
        assert {
            "start_time",
            "stop_time",
            "target_on_time",
            "go_cue_time",
            "move_onset_time",
            "end_time",
            "target_id",
            "target_dir",
            "result",
        } <= set(file.trials.colnames)
        assert {"x", "y", "z", "location", "group"} <= set(file.electrodes.colnames)
        assert file.subject.subject_id == "A"
        assert pynwb.validate(io=io) == []


def test_writing_over_a_file_or_without_a_date_is_refused(tmp_path):
    recording = simulate(SMALL, num_subjects=1, sessions_per_subject=1)[0]
    path = write_nwb(recording, tmp_path / "a.nwb")
    with pytest.raises(RecordingError, match=r"`path` must not exist yet, got '.*a\.nwb'"):
        write_nwb(recording, path)
    recording.recording_date = None
    with pytest.raises(RecordingError, match="must have a `recording_date`"):
        write_nwb(recording, tmp_path / "b.nwb")
    assert [file.name for file in tmp_path.iterdir()] == ["a.nwb"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_units", 0, "`num_units` must be at least 1, got 0"),
        ("tasks", ("walking",), "`tasks` must be one or more of center_out, random_target"),
        ("failure_rate", 1.5, r"`failure_rate` must be in \[0, 1\]"),
        ("seed", -1, "`seed` must be not negative"),
        ("num_sites", 7, "`num_sites` must be at most 6"),
    ],
)
def test_a_field_out_of_range_is_refused(field, value, message):
    with pytest.raises(ConfigurationError, match=message):
        simulate(**{field: value})


def test_an_unknown_field_is_refused_with_the_closest_name():
    with pytest.raises(ConfigurationError, match="Did you mean `num_trials`"):
        simulate(num_trails=3)


@pytest.mark.parametrize(
    "change", [{"drift": 0.0}, {"noise": 0.5}, {"median_rate": 12.0}, {"sample_rate": 200.0}]
)
def test_every_field_changes_the_spikes(change):
    plain, changed = simulate(SMALL, num_subjects=1)[1], simulate(SMALL, num_subjects=1, **change)[1]
    assert not np.array_equal(plain.spike_times[0], changed.spike_times[0])
