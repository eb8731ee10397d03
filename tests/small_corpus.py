"""A tiny corpus for tests of training: two sessions, two sites, short trials."""

import datetime

import numpy as np
import pandas as pd

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.nwb import BehaviorSeries, Recording

BIN_SIZE = 0.05
NUM_TRIALS = 20
TRIAL_LENGTH = 1.0  # s, 20 bins


def make_recording(session_id, num_units=6, seed=0, subject_id="A", unit_sites=None):
    """Velocity is a random smooth walk; each unit follows one direction of it."""
    rng = np.random.default_rng(seed)
    stop = NUM_TRIALS * TRIAL_LENGTH
    times = np.arange(0, stop, 0.01)
    phases = rng.uniform(0, 2 * np.pi, size=2)
    velocity = 10 * np.stack([np.sin(4 * times + phases[0]), np.cos(3 * times + phases[1])], axis=1)
    angles = rng.uniform(0, 2 * np.pi, num_units)
    rates = 20 * np.exp(velocity @ np.stack([np.cos(angles), np.sin(angles)]) / 10)
    spikes = rng.random(rates.shape) < rates * 0.01
    starts = np.arange(NUM_TRIALS) * TRIAL_LENGTH
    sites = np.arange(num_units) % 2 if unit_sites is None else np.asarray(unit_sites)
    return Recording.from_arrays(
        session_id,
        [times[spikes[:, n]] + 0.003 for n in range(num_units)],
        behavior={"cursor_vel": BehaviorSeries("cursor_vel", times, velocity, ["x", "y"], "cm/s")},
        trials=pd.DataFrame({"start_time": starts, "stop_time": starts + TRIAL_LENGTH}),
        obs_intervals=np.array([[0.0, stop]]),
        unit_sites=sites,
        site_ids=["M1", "PMd"],
        site_positions=np.array([[0.0, 0.0, 0.0], [1.0, np.nan, 0.5]]),
        subject_id=subject_id,
        task="center_out",
        recording_date=datetime.date(2020, 1, 1 + seed),
    )


def build_small_corpus(folder):
    """Builds sessions "a" (6 units, subject A) and "b" (5 units, subject B)."""
    recordings = [make_recording("a"), make_recording("b", num_units=5, seed=1, subject_id="B")]
    return build_dataset(recordings, folder, BuilderConfig(BIN_SIZE, context_length=0.25))
