"""Simulated sites: the truth is in the spikes, smooth over place, the same for a seed, and whole in NWB."""

import numpy as np
import pytest

from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.data.simulate_sites import SiteSimulationConfig, simulate_sites
from rpnt_hf.errors import ConfigurationError

SMALL = SiteSimulationConfig(num_sites=4, num_controls=1, num_units=5, num_trials=4, density=1.0, seed=2)


def counts(recording, bin_size=0.02):
    return np.concatenate([one.counts for one in recording.bin_spikes(bin_size)]).astype(float)


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    first, second, other = simulate_sites(SMALL), simulate_sites(SMALL), simulate_sites(SMALL, seed=3)
    for one, two in zip(first.recordings[0].spike_times, second.recordings[0].spike_times, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first.gains, second.gains)
    assert not np.array_equal(first.recordings[0].site_positions, other.recordings[0].site_positions)
    assert not np.array_equal(first.recordings[0].spike_times[0], other.recordings[0].spike_times[0])


def test_the_truth_does_not_depend_on_the_number_of_trials():
    short, long = simulate_sites(SMALL), simulate_sites(SMALL, num_trials=6)
    np.testing.assert_array_equal(short.gains, long.gains)
    np.testing.assert_array_equal(short.lags, long.lags)
    np.testing.assert_array_equal(short.electrode_positions[0], long.electrode_positions[0])


def test_couplings_go_one_way_and_spare_controls():
    simulated = simulate_sites(SMALL)
    coupled = simulated.couplings
    assert coupled.sum() == 3 and not (coupled & coupled.T).any()  # three sites, all pairs
    assert simulated.is_control.tolist() == [False, False, False, True]
    assert not coupled[3].any() and not coupled[:, 3].any()
    assert np.isfinite(simulated.lags[coupled]).all() and np.isnan(simulated.lags[~coupled]).all()
    assert (simulated.lags[coupled] >= 0.02).all() and (simulated.lags[coupled] <= 0.1).all()


def test_a_loop_of_couplings_is_weakened_until_it_fades():
    gains = [simulate_sites(SMALL, num_sites=8, coupling=3.0, seed=seed).gains for seed in range(5)]
    assert max(np.abs(np.linalg.eigvals(one)).max() for one in gains) <= 0.9 + 1e-9


def test_the_activity_of_a_source_comes_back_in_its_target_after_the_delay():
    simulated = simulate_sites(
        num_sites=2, num_controls=0, num_units=40, num_trials=60, density=1.0, coupling=1.0,
        delays=(0.06, 0.06), common=0.0, depth=0.0, seed=1,
    )  # fmt: skip
    target, source = np.argwhere(simulated.couplings)[0]
    binned = counts(simulated.recordings[0]).reshape(-1, 2, 40)
    modes = []
    for site in (target, source):
        centred = np.sqrt(binned[:, site]) - np.sqrt(binned[:, site]).mean(axis=0)
        modes.append(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)

    def follows(lag):
        ahead, behind = modes[1][20:-20], np.roll(modes[0], -lag, axis=0)[20:-20]
        return np.linalg.norm(np.corrcoef(ahead.T, behind.T)[:2, 2:])

    strengths = {lag: follows(lag) for lag in range(-8, 9)}
    assert max(strengths, key=strengths.get) in (2, 3, 4)  # bins of 0.02 s
    assert strengths[3] > 2 * strengths[-3]


def test_controls_share_nothing_with_other_sites():
    simulated = simulate_sites(num_sites=3, num_controls=1, num_units=20, num_trials=60, density=1.0, seed=0)
    rates = counts(simulated.recordings[0], 0.1)
    correlation = np.corrcoef(rates.T).reshape(3, 20, 3, 20)
    strength = np.sqrt((correlation**2).mean(axis=(1, 3)))
    assert strength[0, 1] > 1.5 * max(strength[0, 2], strength[1, 2])


def test_tuning_is_alike_at_places_close_by_and_not_far_away():
    simulated = simulate_sites(
        num_sites=25, num_controls=0, num_units=12, num_trials=40, simultaneous=False, local=0.0, depth=0.8,
        private=0.0, smoothness=2.5, spread=8.0, median_rate=40.0, seed=5,
    )  # fmt: skip
    assert len(simulated.recordings) == 25
    fields = []
    for recording in simulated.recordings:
        spikes = counts(recording, 0.1)
        velocity = recording.behavior["cursor_vel"].values[: 10 * len(spikes)]
        velocity = velocity.reshape(-1, 10, 2).mean(axis=1)
        fields.append(np.linalg.lstsq(velocity, spikes - spikes.mean(axis=0), rcond=None)[0].ravel())
    places = np.array([recording.site_positions[0] for recording in simulated.recordings])
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    alike = np.corrcoef(fields)
    near, far = (distance > 0) & (distance < 1.8), distance > 5
    assert alike[near].mean() > 0.4 and abs(alike[far].mean()) < 0.2


def test_sites_of_one_day_each_have_sessions_of_their_own_and_no_couplings():
    simulated = simulate_sites(SMALL, simultaneous=False)
    assert not simulated.couplings.any()
    assert [recording.site_ids for recording in simulated.recordings] == [["S00"], ["S01"], ["S02"], ["S03"]]
    days = [recording.recording_date for recording in simulated.recordings]
    assert days == sorted(set(days))
    assert len({recording.session_id for recording in simulated.recordings}) == 4


def test_files_hold_the_place_of_every_electrode_and_a_device_for_every_site(tmp_path):
    import pynwb

    simulated = simulate_sites(SMALL)
    (path,) = simulated.write(tmp_path)
    recording = simulated.recordings[0]
    found = read_nwb(path)
    assert found.site_ids == recording.site_ids and found.unit_ids == recording.unit_ids
    np.testing.assert_allclose(found.site_positions, recording.site_positions, atol=1e-9)
    np.testing.assert_array_equal(found.spike_times[3], recording.spike_times[3])
    with pynwb.NWBHDF5IO(str(path), "r") as io:
        nwbfile = io.read()
        electrodes = nwbfile.electrodes.to_dataframe()
        places = electrodes[["x", "y", "z"]].to_numpy(float) / 1000
        np.testing.assert_allclose(places, simulated.electrode_positions[0], atol=1e-9)
        assert len(nwbfile.devices) == 4
    with pytest.raises(ValueError, match="must not exist yet"):
        simulated.write(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_controls": 4}, r"`num_controls` must be in \[0, num_sites\), got 4"),
        ({"density": 1.2}, r"`density` must be in \[0, 1\], got 1.2"),
        ({"delays": (0.1, 0.05)}, "`delays` must be two delays from 0.01 s, in order"),
        ({"smoothness": 0.0}, "`smoothness` must be above 0 mm"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(ConfigurationError, match=message):
        simulate_sites(SMALL, **fields)
