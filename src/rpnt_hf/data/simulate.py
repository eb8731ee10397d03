"""Simulated recordings of several subjects, sessions and sites, as `Recording`s and as NWB files.

For the demo, the tests and comparisons where the truth must be known. Not a model of cortex: what carries
over between subjects is put in on purpose (common latent dynamics, a map of preferred directions over the
cortex, slow drift).
"""

import dataclasses
import datetime
import string
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.data.reaches import TASKS, Behavior, ReachStyle, simulate_reaches
from rpnt_hf.errors import ConfigurationError, closest_names

__all__ = [
    "SimulationConfig",
    "poisson_spikes",
    "random_stream",
    "reach_latents",
    "simulate",
    "simulate_session",
    "stationary_noise",
    "write_nwb",
]

FIRST_DAY = datetime.date(2024, 1, 8)
SITE_NAMES = ("M1", "PMd", "S1", "SMA", "PMv", "PRR")
SITE_CENTERS = np.array(
    [[0, 0, 1.5], [-1, 6, 1.5], [1, -5, 1.5], [-7, 7, 2.5], [6, 5, 1.5], [2, -12, 1.5]], dtype=float
)
ELECTRODE_PITCH = 0.4  # mm
REFRACTORY_PERIOD = 0.0015  # s
MAX_RATE = 150.0  # Hz
SUBJECT, SITE, SCHEDULE, SESSION = range(4)  # independent random streams


@dataclass(frozen=True)
class SimulationConfig:
    """Size and difficulty of a simulated corpus.

    Args:
        num_subjects (`int`, *optional*, defaults to 3): Subjects, at least 1.
        sessions_per_subject (`int`, *optional*, defaults to 2): Sessions of each subject, each on a day of
            its own.
        num_units (`int`, *optional*, defaults to 56): Units of each site in each session.
        num_sites (`int`, *optional*, defaults to 1): Recording sites of each subject, at most 6.
        num_trials (`int`, *optional*, defaults to 120): Trials of each session.
        tasks (`tuple[str, ...]`, *optional*, defaults to `("center_out",)`):
            Tasks taken in turn by the sessions of a subject: "center_out", "random_target".
        median_rate (`float`, *optional*, defaults to 9.0): Median firing rate over units, Hz.
        depth (`float`, *optional*, defaults to 1.0): Scale of the tuning; larger is easier to decode.
        noise (`float`, *optional*, defaults to 1.0): Scale of shared and private fluctuations of the rates.
        drift (`float`, *optional*, defaults to 0.5): Standard deviation over weeks of a subject's preferred
            directions, rad.
        failure_rate (`float`, *optional*, defaults to 0.04): Probability that a trial fails (result "F"), in
            [0, 1].
        sample_rate (`float`, *optional*, defaults to 100.0): Behaviour samples per second.
        seed (`int`, *optional*, defaults to 0): Seed of the corpus, not negative.

    Raises:
        ConfigurationError: If a field is out of range.
    """

    num_subjects: int = 3
    sessions_per_subject: int = 2
    num_units: int = 56
    num_sites: int = 1
    num_trials: int = 120
    tasks: tuple[str, ...] = ("center_out",)
    median_rate: float = 9.0
    depth: float = 1.0
    noise: float = 1.0
    drift: float = 0.5
    failure_rate: float = 0.04
    sample_rate: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_subjects", "sessions_per_subject", "num_units", "num_sites", "num_trials"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("num_subjects", self.num_subjects <= len(string.ascii_uppercase), "at most 26")
        self._require("num_sites", self.num_sites <= len(SITE_NAMES), f"at most {len(SITE_NAMES)}")
        self._require("median_rate", 0 < self.median_rate <= MAX_RATE, f"above 0 and at most {MAX_RATE:g} Hz")
        self._require("sample_rate", self.sample_rate >= 50, "at least 50 samples per second")
        self._require("failure_rate", 0 <= self.failure_rate <= 1, "in [0, 1]")
        for name in ("depth", "noise", "drift", "seed"):
            self._require(name, getattr(self, name) >= 0, "not negative")
        known = bool(self.tasks) and not set(self.tasks) - set(TASKS)
        self._require("tasks", known, f"one or more of {', '.join(TASKS)}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigurationError(
                f"`{name}` must be {rule}, got {getattr(self, name)!r} in SimulationConfig. Choose another "
                "value."
            )


@dataclass(frozen=True)
class _Tuning:
    """What the units of one session follow. Complex numbers stand for directions in the plane of the hand."""

    planar: NDArray[np.complex128]  # (planar latents, units)
    scalar: NDArray[np.float64]  # (scalar latents, units)
    leads: NDArray[np.int64]  # samples by which a unit is ahead of the movement
    delays: NDArray[np.int64]  # samples by which it is behind the target
    mean_rates: NDArray[np.float64]  # Hz
    nonlinearity: NDArray[np.int64]  # 0 exponential, 1 softplus, 2 saturating
    shared_loadings: NDArray[np.float64]  # (shared noises, units)
    slow_loadings: NDArray[np.float64]  # (slow signals, units)
    unit_ids: list[str]
    unit_sites: NDArray[np.int64]


def simulate(config: SimulationConfig | None = None, **overrides: object) -> list[Recording]:
    """Simulates recordings of reaching subjects.

    Spike trains are Poisson with a refractory period. Rates follow velocity, speed, position, the planned
    reach and damped rotations common to all subjects, through exponential, softplus and saturating
    non-linearities, with leads of 0 to 150 ms, shared and private noise, slow gain within a session and
    drift over days. A session depends only on the seed, its subject and its number, not on how many others
    are simulated.

    Args:
        config (`SimulationConfig`, *optional*): Size and difficulty of the corpus; the defaults where absent.
        **overrides: Fields of `SimulationConfig` to replace.

    Returns:
        `list[Recording]`: Sessions of the first subject, then those of the next one.

    Raises:
        ConfigurationError: If a field is unknown or out of range.

    Example:
        ```python
        >>> recordings = simulate(num_subjects=2, sessions_per_subject=1, num_units=5, num_trials=2)
        >>> [recording.subject_id for recording in recordings]
        ['A', 'B']

        ```
    """
    fields = [field.name for field in dataclasses.fields(SimulationConfig)]
    for name in overrides:
        if name not in fields:
            raise ConfigurationError(
                f"`simulate` must get fields of SimulationConfig, got `{name}`.{closest_names(name, fields)} "
                f"The fields are {', '.join(fields)}."
            )
    config = dataclasses.replace(config or SimulationConfig(), **overrides)  # type: ignore[arg-type]
    subjects, sessions = range(config.num_subjects), range(config.sessions_per_subject)
    return [simulate_session(config, subject, session) for subject in subjects for session in sessions]


def simulate_session(config: SimulationConfig, subject: int, session: int) -> Recording:
    """Simulates one session of one subject.

    Args:
        config (`SimulationConfig`): Size and difficulty of the corpus.
        subject (`int`): Number of the subject, from 0.
        session (`int`): Number of the session within the subject, from 0.

    Returns:
        `Recording`: The session; its `source` is None.
    """
    day = _day(config.seed, subject, session)
    task = config.tasks[session % len(config.tasks)]
    subject_rng = random_stream(config.seed, SUBJECT, subject)
    style = ReachStyle(
        reaction_time=float(subject_rng.uniform(0.29, 0.36)),
        duration=float(subject_rng.uniform(0.43, 0.55)),
        curvature=float(subject_rng.normal(0, 0.04)),
    )
    site_positions = _site_positions(config, subject_rng)
    rng = random_stream(config.seed, SESSION, subject, session)
    behavior = simulate_reaches(task, config.num_trials, style, config.failure_rate, config.sample_rate, rng)
    tuning = _tuning(config, subject, day, site_positions)
    spike_times = poisson_spikes(_rates(behavior, tuning, config, rng), config.sample_rate, rng)
    subject_id = string.ascii_uppercase[subject]
    date = FIRST_DAY + datetime.timedelta(days=day)

    def series(name: str, values: NDArray[np.float64], unit: str) -> BehaviorSeries:
        return BehaviorSeries(name, behavior.times, values.astype(np.float32), ["x", "y"], unit)

    return Recording(
        session_id=f"sub-{subject_id}_ses-{TASKS[task][0]}-{date:%Y%m%d}",
        subject_id=subject_id,
        task=task,
        recording_date=date,
        unit_ids=tuning.unit_ids,
        unit_sites=tuning.unit_sites,
        site_ids=list(SITE_NAMES[: config.num_sites]),
        site_positions=site_positions,
        spike_times=spike_times,
        obs_intervals=np.array([[0.0, behavior.times.size / config.sample_rate]]),
        behavior={
            "cursor_pos": series("cursor_pos", behavior.position, "cm"),
            "cursor_vel": series("cursor_vel", behavior.velocity, "cm/s"),
        },
        trials=behavior.trials,
        source=None,
    )


def random_stream(*key: int) -> np.random.Generator:
    """Gives the generator of one independent random stream.

    Args:
        *key (`int`): What it is for, not negative; different keys give independent streams.

    Returns:
        `np.random.Generator`: Always the same numbers for one key.
    """
    return np.random.default_rng((len(key), *key))  # the length, because numpy ignores trailing zeros


def _day(seed: int, subject: int, session: int) -> int:
    """Says on which day of the corpus a session takes place: 3 to 20 days after the one before it."""
    start = int(random_stream(seed, SCHEDULE, subject).integers(0, 20))
    return start + sum(
        int(random_stream(seed, SCHEDULE, subject, index).integers(3, 21)) for index in range(1, session + 1)
    )


def _site_positions(config: SimulationConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Places the sites of a subject: common cortical layout, up to about a millimetre off."""
    offsets = np.round(rng.normal(0, 0.6, SITE_CENTERS.shape), 2) * [1, 1, 0]
    return (SITE_CENTERS + offsets)[: config.num_sites]


def _smooth(rng: np.random.Generator, day: float, size: int) -> NDArray[np.float64]:
    """Evaluates random functions of the day with unit variance that change over weeks."""
    periods = rng.uniform(60, 240, (3, size))
    phases = rng.uniform(0, 2 * np.pi, (3, size))
    return np.sqrt(2 / 3) * np.cos(2 * np.pi * day / periods + phases).sum(axis=0)


def _tuning(config: SimulationConfig, subject: int, day: int, site_positions: NDArray[np.float64]) -> _Tuning:
    """Draws the tuning of all units of a subject, and takes those that are there on this day."""
    rotation = config.drift * _smooth(random_stream(config.seed, SUBJECT, subject, 1), day, 1)[0]
    sites = [
        _site_tuning(config, subject, site, day, rotation, center)
        for site, center in enumerate(site_positions)
    ]
    names = [field.name for field in dataclasses.fields(_Tuning) if field.name != "unit_ids"]
    return _Tuning(
        **{name: np.concatenate([getattr(site, name) for site in sites], axis=-1) for name in names},
        unit_ids=[unit_id for site in sites for unit_id in site.unit_ids],
    )


def _site_tuning(
    config: SimulationConfig, subject: int, site: int, day: int, rotation: float, center: NDArray[np.float64]
) -> _Tuning:
    """Draws the units of one site.

    The preferred direction of a unit is a smooth map of its place on the cortex, turned by the subject's
    drift, plus a deviation of its own. Sites further forward plan more, move less and are further ahead of
    the movement.
    """
    rng = random_stream(config.seed, SITE, subject, site)
    pool = int(np.ceil(1.4 * config.num_units))
    side = int(np.ceil(np.sqrt(pool)))
    columns, rows = np.arange(pool) % side, np.arange(pool) // side
    x, y = center[:2, None] + ELECTRODE_PITCH * (np.stack([columns, rows]) - (side - 1) / 2)
    forward = np.clip(center[1] / 6.0, -1.0, 1.0)

    preferred = 2 * np.pi * (x + 0.6 * y) / 3.5 + 0.8 * np.sin(0.9 * y)
    preferred += rotation + 0.35 * rng.standard_normal(pool) + 0.25 * _smooth(rng, day, pool)
    direction = np.exp(1j * preferred)

    def depths(mean: float, spread: float) -> NDArray[np.float64]:
        drifting = 0.75 * rng.standard_normal(pool) + 0.65 * _smooth(rng, day, pool)
        return config.depth * mean * np.exp(spread * drifting - spread**2 / 2)

    planar = np.stack([
        depths(0.40 - 0.13 * forward, 0.5) * direction,  # velocity
        depths(0.40 + 0.16 * forward, 0.6) * direction * np.exp(1j * rng.normal(0, 1.1, pool)),  # plan
        depths(0.20, 0.6) * direction * np.exp(1j * rng.normal(0, 1.6, pool)),  # position
        depths(0.22, 0.5) * direction * np.exp(1j * rng.normal(0, 1.2, pool)),  # slow rotation
        depths(0.18, 0.5) * direction * np.exp(1j * rng.normal(0, 1.2, pool)),  # fast rotation
    ])  # fmt: skip
    speed, trigger = rng.normal(0.16, 0.23, pool), rng.normal(0.23, 0.36, pool)
    leads = rng.normal(0.075 + 0.025 * forward, 0.035, pool).clip(0, 0.15)
    log_rates = np.log(config.median_rate) + 0.65 * rng.standard_normal(pool) + 0.15 * _smooth(rng, day, pool)
    tuning = _Tuning(
        planar=planar,
        scalar=config.depth * np.stack([speed, trigger]),
        leads=np.round(leads * config.sample_rate).astype(int),
        delays=np.round(rng.uniform(0.05, 0.12, pool) * config.sample_rate).astype(int),
        mean_rates=np.exp(log_rates).clip(1.0, 45.0),
        nonlinearity=rng.choice(3, size=pool, p=[0.4, 0.3, 0.3]),
        shared_loadings=np.concatenate([rng.normal(0, 0.16, (3, pool)), rng.normal(0.22, 0.12, (1, pool))]),
        slow_loadings=np.stack([rng.normal(0.10, 0.12, pool), rng.normal(0, 0.10, pool)]),
        unit_ids=[f"{SITE_NAMES[site]}-{electrode:03d}" for electrode in range(pool)],
        unit_sites=np.full(pool, site),
    )
    presence = _smooth(rng, day, pool) + 0.3 * rng.standard_normal(pool)
    present = np.sort(np.argsort(-presence, kind="stable")[: config.num_units])
    return _Tuning(
        **{
            field.name: getattr(tuning, field.name)[..., present]
            for field in dataclasses.fields(_Tuning)
            if field.name != "unit_ids"
        },
        unit_ids=[tuning.unit_ids[index] for index in present],
    )


def _smoothed(
    signal: NDArray[np.generic], time_constant: float, sample_rate: float, frequency: float = 0.0
) -> NDArray:
    """Passes a signal through a causal leaky integrator that rotates at `frequency` (Hz), or not at 0."""
    pole = np.exp((-1 / time_constant + 2j * np.pi * frequency) / sample_rate)
    pole = pole if frequency else pole.real
    return lfilter([1 - abs(pole)], [1, -pole], signal, axis=0)


def reach_latents(
    behavior: Behavior, sample_rate: float
) -> tuple[NDArray[np.complex128], NDArray[np.float64]]:
    """Turns behaviour into the population latents that all subjects have in common.

    Args:
        behavior (`Behavior`): Behaviour of one session.
        sample_rate (`float`): Samples per second.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: planar latents of shape `(samples, 5)`, complex: velocity, plan,
        position, two damped rotations that the plan sets off when movement begins; and scalar latents of
        shape `(samples, 2)`: speed, and a trigger that does not depend on the direction.
    """
    times = behavior.times
    plan = np.zeros(times.size, dtype=complex)
    trigger = np.zeros(times.size)
    launch = np.zeros(times.size)
    for start, onset, stop, dx, dy in behavior.plans:
        first, middle, last = np.searchsorted(times, [start, onset, stop])
        plan[first:middle] = (dx + 1j * dy) / 8.0
        trigger[middle:last] = 1.0
        launch[middle : middle + int(0.08 * sample_rate)] = 1.0
    plan = _smoothed(plan, 0.08, sample_rate)
    velocity = (behavior.velocity @ [1, 1j]) / 15.0
    rotations = [_smoothed(plan * launch, 0.25, sample_rate, frequency) for frequency in (1.2, 2.4)]
    rotations = [rotation * (0.25 / rotation.std()) for rotation in rotations]
    planar = np.stack([velocity, plan, (behavior.position @ [1, 1j]) / 8.0, *rotations], axis=1)
    scalar = np.stack([np.abs(velocity), _smoothed(trigger, 0.05, sample_rate)], axis=1)
    return planar, scalar


def _rates(
    behavior: Behavior, tuning: _Tuning, config: SimulationConfig, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Computes the firing rate of every unit at every sample, `(samples, units)`, Hz."""
    planar, scalar = reach_latents(behavior, config.sample_rate)
    num_samples, num_units = len(planar), len(tuning.mean_rates)
    moving = [0, 2, 3, 4]
    movement = (planar[:, moving] @ tuning.planar[moving].conj()).real + scalar @ tuning.scalar
    plan = (planar[:, [1]] @ tuning.planar[[1]].conj()).real
    samples, units = np.arange(num_samples)[:, None], np.arange(num_units)
    drive = movement[np.minimum(samples + tuning.leads, num_samples - 1), units]
    drive += plan[np.maximum(samples - tuning.delays, 0), units]

    shared = stationary_noise(rng, (num_samples, 4), config.sample_rate, np.array([0.15, 0.3, 0.6, 4.0]))
    private = stationary_noise(rng, (num_samples, num_units), config.sample_rate, np.full(num_units, 0.25))
    phase = 2 * np.pi * np.arange(num_samples) / num_samples
    slow = np.stack(
        [np.sin(0.5 * phase + rng.uniform(0, 6.3)), np.sin(1.3 * phase + rng.uniform(0, 6.3))], axis=1
    )
    drive += config.noise * (shared @ tuning.shared_loadings + 0.20 * private)
    drive += 1.4 * slow @ tuning.slow_loadings

    shapes = (
        np.exp(np.minimum(drive, 3.0)),
        np.logaddexp(0.0, 2.0 * drive),
        1 / (1 + np.exp(1.0 - 2.0 * drive)),
    )
    rates = np.choose(tuning.nonlinearity, shapes)
    return np.minimum(rates * (tuning.mean_rates / rates.mean(axis=0)), MAX_RATE)


def stationary_noise(
    rng: np.random.Generator, shape: tuple[int, int], sample_rate: float, time_constants: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Draws stationary Gaussian noise of unit variance.

    Args:
        rng (`np.random.Generator`): Source of everything random.
        shape (`tuple[int, int]`): Samples and columns.
        sample_rate (`float`): Samples per second.
        time_constants (`np.ndarray` of shape `(columns,)`): Time constant of each column in s.

    Returns:
        `np.ndarray` of shape `(samples, columns)`, float64.
    """
    noise = rng.standard_normal(shape)
    for time_constant in np.unique(time_constants):
        columns = time_constants == time_constant
        decay = np.exp(-1 / (time_constant * sample_rate))
        noise[1:, columns] *= np.sqrt(1 - decay**2)
        noise[:, columns] = lfilter([1.0], [1.0, -decay], noise[:, columns], axis=0)
    return noise


def poisson_spikes(
    rates: NDArray[np.float64], sample_rate: float, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Draws Poisson spikes by time rescaling, less those in the refractory period of the spike before.

    Args:
        rates (`np.ndarray` of shape `(samples, units)`): Firing rates in Hz.
        sample_rate (`float`): Samples per second.
        rng (`np.random.Generator`): Source of everything random.

    Returns:
        `list[np.ndarray]`: Spike times of each unit in s, from 0.
    """
    edges = np.arange(len(rates) + 1) / sample_rate
    expected = np.concatenate([np.zeros((1, rates.shape[1])), np.cumsum(rates, axis=0) / sample_rate])
    spike_times = []
    for column in expected.T:
        scaled = np.sort(rng.uniform(0, column[-1], rng.poisson(column[-1])))
        times = np.interp(scaled, column, edges)
        spike_times.append(times[np.diff(times, prepend=-np.inf) >= REFRACTORY_PERIOD])
    return spike_times
