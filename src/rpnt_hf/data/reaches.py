"""Reaching behaviour for the simulator: trial times, cursor position and velocity, and the plans behind them.

Reaches are sums of minimum-jerk submovements (Flash and Hogan 1985). Not for recordings: those are read by
`nwb.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.integrate import cumulative_trapezoid
from scipy.ndimage import gaussian_filter1d

__all__ = ["TASKS", "Behavior", "ReachStyle", "simulate_reaches"]

TARGET_DISTANCE = 8.0  # cm, centre to target
NUM_TARGETS = 8
WORKSPACE = 8.0  # cm, half the side of the square of random targets
TARGETS_PER_TRIAL = 4


@dataclass(frozen=True)
class ReachStyle:
    """How one subject moves.

    Args:
        reaction_time (`float`): Median time from the go cue to the onset of movement, s.
        duration (`float`): Median duration of an 8 cm reach, s.
        curvature (`float`): Mean sideways excursion of a reach, as a fraction of its length (signed).
    """

    reaction_time: float = 0.32
    duration: float = 0.48
    curvature: float = 0.03


@dataclass
class Behavior:
    """Behaviour of one session on a regular grid.

    Args:
        times (`np.ndarray` of shape `(num_samples,)`): Sample times, s, from 0.
        position (`np.ndarray` of shape `(num_samples, 2)`): Cursor position, cm.
        velocity (`np.ndarray` of shape `(num_samples, 2)`): Cursor velocity, cm/s.
        plans (`np.ndarray` of shape `(num_plans, 5)`): One row per intended movement: start of planning,
            onset, end (s), and displacement in x and y (cm).
        trials (`pd.DataFrame`): One row per trial, with the columns of DANDI:000688.
    """

    times: NDArray[np.float64]
    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    plans: NDArray[np.float64]
    trials: pd.DataFrame


@dataclass
class _Session:
    """What a task writes down while it unfolds: time, place, submovements, plans and trials."""

    rng: np.random.Generator
    style: ReachStyle
    time: float = 0.6
    place: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    submovements: list[tuple[float, ...]] = field(default_factory=list)
    plans: list[tuple[float, ...]] = field(default_factory=list)
    trials: list[dict[str, object]] = field(default_factory=list)

    def wait(self, low: float, high: float) -> float:
        """Lets a uniformly drawn time pass and returns the new time."""
        self.time += float(self.rng.uniform(low, high))
        return self.time

    def react(self) -> float:
        """Lets a reaction time pass and returns the onset of movement."""
        reaction_time = self.style.reaction_time * np.exp(0.13 * self.rng.standard_normal())
        self.time += float(np.clip(reaction_time, 0.22, 0.50))
        return self.time

    def move(self, target: NDArray[np.float64], plan_time: float, complete: bool = True) -> None:
        """Adds a reach that starts now: a main submovement that misses a little, and a correction."""
        rng, onset = self.rng, self.time
        wanted = target - self.place
        distance = float(np.hypot(*wanted))
        duration = self.style.duration * (0.5 + 0.5 * distance / TARGET_DISTANCE)
        duration = float(np.clip(duration * np.exp(0.16 * rng.standard_normal()), 0.25, 0.95))
        turn, gain = 0.07 * rng.standard_normal(), 0.95 + 0.07 * rng.standard_normal()
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        main = rotation @ wanted * gain * (1.0 if complete else 0.6)
        bend = distance * (self.style.curvature + 0.05 * rng.standard_normal())
        self.submovements.append((onset, duration, *main, bend))
        self.place = self.place + main
        stop = onset + duration
        if complete:
            correction_onset = onset + duration * rng.uniform(0.70, 0.90)
            correction_duration = rng.uniform(0.24, 0.38)
            residual = target - self.place + 0.25 * rng.standard_normal(2)
            self.submovements.append((correction_onset, correction_duration, *residual, 0.0))
            self.place = self.place + residual
            stop = max(stop, correction_onset + correction_duration)
        self.plans.append((plan_time, onset, stop, *wanted))
        self.time = float(stop)


def _center_out_trial(session: _Session, succeeds: bool) -> None:
    """Centre hold, instructed delay, reach to one of eight targets, hold, return."""
    rng = session.rng
    start_time = session.time
    target_id = int(rng.integers(NUM_TARGETS))
    target_dir = 2 * np.pi * target_id / NUM_TARGETS
    target_on_time = session.wait(0.25, 0.45)
    go_cue_time = session.wait(0.30, 0.65)
    move_onset_time = session.react()
    target = TARGET_DISTANCE * np.array([np.cos(target_dir), np.sin(target_dir)])
    session.move(target, target_on_time, complete=succeeds)
    end_time = session.wait(0.15, 0.30)
    return_time = session.wait(0.15, 0.30)
    session.move(0.3 * rng.standard_normal(2), return_time - 0.15)
    session.trials.append({
        "start_time": start_time, "stop_time": session.time, "target_on_time": target_on_time,
        "go_cue_time": go_cue_time, "move_onset_time": move_onset_time, "end_time": end_time,
        "target_id": float(target_id), "target_dir": target_dir, "result": "R" if succeeds else "F",
    })  # fmt: skip
    session.wait(0.05, 0.15)


def _random_target_trial(session: _Session, succeeds: bool) -> None:
    """Four reaches, one after another, to targets anywhere in the workspace."""
    rng = session.rng
    start_time = session.time
    go_cue_times = np.full(TARGETS_PER_TRIAL, np.nan)
    num_attempted = TARGETS_PER_TRIAL if succeeds else int(rng.integers(1, TARGETS_PER_TRIAL))
    session.wait(0.20, 0.40)
    for index in range(num_attempted):
        go_cue_times[index] = session.time
        target = _random_target(rng, session.place)
        session.react()
        session.move(target, float(go_cue_times[index]), complete=succeeds or index + 1 < num_attempted)
        session.wait(0.10, 0.20)
    session.trials.append({
        "start_time": start_time, "stop_time": session.time, "go_cue_time": go_cue_times[0],
        "go_cue_time_array": go_cue_times,
        "num_attempted": num_attempted, "result": "R" if succeeds else "F",
    })  # fmt: skip
    session.wait(0.20, 0.40)


def _random_target(rng: np.random.Generator, place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws a target 4 to 12 cm away from the cursor."""
    candidates = rng.uniform(-WORKSPACE, WORKSPACE, size=(32, 2))
    distances = np.hypot(*(candidates - place).T)
    return candidates[int(np.argmax((distances > 4.0) & (distances < 12.0)))]


TASKS: dict[str, tuple[str, Callable[[_Session, bool], None]]] = {
    "center_out": ("CO", _center_out_trial),
    "random_target": ("RT", _random_target_trial),
}
"""Tasks that can be simulated: name to the code in a session id, and what unfolds in one trial."""


def simulate_reaches(
    task: str,
    num_trials: int,
    style: ReachStyle,
    failure_rate: float,
    sample_rate: float,
    rng: np.random.Generator,
) -> Behavior:
    """Simulates the behaviour of one session.

    Args:
        task (`str`): A key of `TASKS`.
        num_trials (`int`): Trials, at least 1.
        style (`ReachStyle`): How the subject moves.
        failure_rate (`float`): Probability in [0, 1] that a trial fails (result "F": the last reach stops
            short).
        sample_rate (`float`): Samples per second.
        rng (`np.random.Generator`): Source of everything random.

    Returns:
        `Behavior`: Trials, plans, position and velocity until 0.5 s after the last movement.
    """
    session = _Session(rng=rng, style=style)
    run_trial = TASKS[task][1]
    for _ in range(num_trials):
        run_trial(session, bool(rng.random() >= failure_rate))
    times = np.arange(int((session.time + 0.5) * sample_rate)) / sample_rate
    velocity = _submovement_velocity(np.array(session.submovements), times, sample_rate)
    tremor = gaussian_filter1d(rng.standard_normal((times.size, 2)), 0.06 * sample_rate, axis=0)
    tremor *= 0.04 / tremor.std(axis=0)
    position = cumulative_trapezoid(velocity, dx=1 / sample_rate, axis=0, initial=0) + tremor
    velocity = velocity + np.gradient(tremor, 1 / sample_rate, axis=0)
    return Behavior(times, position, velocity, np.array(session.plans), pd.DataFrame(session.trials))


def _submovement_velocity(
    submovements: NDArray[np.float64], times: NDArray[np.float64], sample_rate: float
) -> NDArray[np.float64]:
    """Sums minimum-jerk submovements, each with a sideways bulge that ends where it began."""
    onset, duration, dx, dy, bend = submovements.T
    first = np.ceil(onset * sample_rate).astype(int)
    index = first[:, None] + np.arange(int(np.ceil(duration.max() * sample_rate)) + 1)
    phase = (index / sample_rate - onset[:, None]) / duration[:, None]
    inside = (phase > 0) & (phase < 1) & (index < times.size)
    along = 30 * phase**2 * (1 - phase) ** 2 / duration[:, None]
    across = 192 * phase**2 * (1 - phase) ** 2 * (1 - 2 * phase) * (bend / duration)[:, None]
    length = np.maximum(np.hypot(dx, dy), 1e-9)
    velocity = np.zeros((times.size, 2))
    for axis, displacement, normal in ((0, dx, -dy / length), (1, dy, dx / length)):
        values = along * displacement[:, None] + across * normal[:, None]
        np.add.at(velocity[:, axis], index[inside], values[inside])
    return velocity
