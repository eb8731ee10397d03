"""Simulated probes whose couplings and tuning are known, to prove what is said about many sites.

Sites have directed couplings with delays (the truth that a connectivity map is held against), tuning that
varies smoothly over the cortex (what coordinates can tell of a site never seen), and controls that follow
nothing but themselves. Not a model of cortex. Reaching and spikes are those of `simulate.py`.
"""

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.data.reaches import Behavior, ReachStyle, simulate_reaches
from rpnt_hf.data.simulate import (
    FIRST_DAY,
    MAX_RATE,
    poisson_spikes,
    random_stream,
    reach_latents,
    stationary_noise,
)
from rpnt_hf.errors import ConfigurationError

__all__ = ["SimulatedSites", "SiteSimulationConfig", "simulate_sites"]

SAMPLE_RATE = 100.0  # Hz
SUBJECT_ID = "N"
PROBE_LENGTH = 3.0  # mm between the first unit and the last
DEPTH_SCALE = 1.0  # mm over which tuning changes along a probe
NUM_WAVES = 32  # of a random field
LOCAL_TIME_CONSTANT, COMMON_TIME_CONSTANT = 0.12, 0.3  # s
PLACES, COUPLINGS, FIELD, UNITS, DAY = range(10, 15)  # independent random streams


@dataclass(frozen=True)
class SiteSimulationConfig:
    """Size of a simulated corpus of many sites, and what there is to be found in it.

    Args:
        num_sites (`int`, *optional*, defaults to 8): Sites, each with one probe; at least 1.
        num_controls (`int`, *optional*, defaults to 2): The last sites are controls: they have neither
            couplings nor tuning nor common input. In [0, num_sites).
        num_units (`int`, *optional*, defaults to 16): Units of each site, from one end of the probe to the
            other; at least 2.
        num_trials (`int`, *optional*, defaults to 120): Trials of each recording, at least 1.
        simultaneous (`bool`, *optional*, defaults to `True`): Whether all sites are recorded at once; else
            each on a day of its own, as with one probe a day, and then without couplings.
        density (`float`, *optional*, defaults to 0.25): Probability in [0, 1] that two sites are coupled, in
            one direction.
        coupling (`float`, *optional*, defaults to 0.8): Gain of a coupling, not negative: the s.d. that the
            target takes over per s.d. of the source.
        delays (`tuple[float, float]`, *optional*, defaults to `(0.02, 0.1)`): Shortest and longest delay of a
            coupling in s, from one sample (0.01 s) on.
        common (`float`, *optional*, defaults to 0.5): Weight of an input that all sites but controls share.
        local (`float`, *optional*, defaults to 0.7): How strongly units follow the activity of their site.
        depth (`float`, *optional*, defaults to 0.4): How strongly they follow the reach.
        smoothness (`float`, *optional*, defaults to 2.0): Distance in mm over which tuning changes along the
            cortex, above 0.
        private (`float`, *optional*, defaults to 0.3): Share of a unit's tuning that is its own, in [0, 1].
        spread (`float`, *optional*, defaults to 6.0): Side in mm of the square that holds the sites, above 0.
        median_rate (`float`, *optional*, defaults to 15.0): Median firing rate in Hz, above 0.
        seed (`int`, *optional*, defaults to 0): Seed of the corpus, not negative.

    Raises:
        ConfigurationError: If a field is out of range.
    """

    num_sites: int = 8
    num_controls: int = 2
    num_units: int = 16
    num_trials: int = 120
    simultaneous: bool = True
    density: float = 0.25
    coupling: float = 0.8
    delays: tuple[float, float] = (0.02, 0.1)
    common: float = 0.5
    local: float = 0.7
    depth: float = 0.4
    smoothness: float = 2.0
    private: float = 0.3
    spread: float = 6.0
    median_rate: float = 15.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._require("num_sites", self.num_sites >= 1, "at least 1")
        self._require("num_controls", 0 <= self.num_controls < self.num_sites, "in [0, num_sites)")
        self._require("num_units", self.num_units >= 2, "at least 2")
        self._require("num_trials", self.num_trials >= 1, "at least 1")
        for name in ("density", "private"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        for name in ("coupling", "common", "local", "depth", "seed"):
            self._require(name, getattr(self, name) >= 0, "not negative")
        shortest, longest = self.delays
        self._require("delays", 1 / SAMPLE_RATE <= shortest <= longest, "two delays from 0.01 s, in order")
        for name in ("smoothness", "spread"):
            self._require(name, getattr(self, name) > 0, "above 0 mm")
        self._require("median_rate", 0 < self.median_rate <= MAX_RATE, f"above 0 and at most {MAX_RATE:g} Hz")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigurationError(
                f"`{name}` must be {rule}, got {getattr(self, name)!r} in SiteSimulationConfig. Choose "
                "another value."
            )


@dataclass(frozen=True)
class SimulatedSites:
    """A simulated corpus and the truth about it.

    Args:
        recordings (`list[Recording]`): One with all sites, or one for each site and day.
        gains (`np.ndarray` of shape `(num_sites, num_sites)`): Gain of the coupling to each site (row) from
            each site (column), 0 where there is none.
        lags (`np.ndarray` of the same shape): Its delay in s, NaN where there is none.
        is_control (`np.ndarray` of shape `(num_sites,)`, bool): True for sites that follow only themselves.
        electrode_positions (`list[np.ndarray]` of shape `(units, 3)`): Per recording the place of each unit's
            electrode in mm.
    """

    recordings: list[Recording]
    gains: NDArray[np.float64]
    lags: NDArray[np.float64]
    is_control: NDArray[np.bool_]
    electrode_positions: list[NDArray[np.float64]]

    @property
    def couplings(self) -> NDArray[np.bool_]:
        """`np.ndarray` of shape `(num_sites, num_sites)`, bool: True where the row follows the column."""
        return self.gains > 0

    def write(self, folder: str | Path) -> list[Path]:
        """Writes the recordings as NWB files with the places of their electrodes, one device per site.

        Args:
            folder (`str` or `Path`): Where to; made where it is missing.

        Returns:
            `list[Path]`: The files, in the order of the recordings.

        Raises:
            RecordingError: If a file exists already.
        """
        return [
            write_nwb(
                recording,
                Path(folder) / f"{recording.session_id}_behavior+ecephys.nwb",
                electrode_positions=positions,
            )
            for recording, positions in zip(self.recordings, self.electrode_positions, strict=True)
        ]


@dataclass(frozen=True)
class _Truth:
    """What does not change from day to day."""

    places: NDArray[np.float64]  # (sites, 3), mm
    electrodes: NDArray[np.float64]  # (sites, units, 3), mm
    gains: NDArray[np.float64]
    delays: NDArray[np.int64]  # samples
    phases: NDArray[np.float64]
    planar: NDArray[np.complex128]  # (tuning channels, sites, units)
    local: NDArray[np.complex128]  # (sites, units)
    leads: NDArray[np.int64]  # samples by which units are ahead of the movement
    mean_rates: NDArray[np.float64]  # Hz


def simulate_sites(config: SiteSimulationConfig | None = None, **overrides: object) -> SimulatedSites:
    """Simulates one subject with many sites.

    The activity of a site is a complex process of its own (time constant 0.12 s), plus the delayed activity
    of the sites that it follows, plus an input that all share; the log rates of its units follow it and the
    reach. Tuning to the reach is a random field over the cortex and along the probe. Everything follows from
    the seed; sites, couplings and tuning do not depend on the number of trials.

    Args:
        config (`SiteSimulationConfig`, *optional*): Size and truth of the corpus; the defaults where absent.
        **overrides: Fields of `SiteSimulationConfig` to replace.

    Returns:
        `SimulatedSites`: Recordings and truth.

    Raises:
        ConfigurationError: If a field is out of range.

    Example:
        ```python
        >>> simulated = simulate_sites(num_sites=3, num_controls=1, num_units=4, num_trials=2)
        >>> simulated.recordings[0].site_ids, simulated.couplings.shape
        (['S00', 'S01', 'S02'], (3, 3))

        ```
    """
    config = dataclasses.replace(config or SiteSimulationConfig(), **overrides)  # type: ignore[arg-type]
    truth = _truth(config)
    every = np.arange(config.num_sites)
    days = [every] if config.simultaneous else [every[[site]] for site in every]
    recordings = [_recording(config, truth, day, sites) for day, sites in enumerate(days)]
    return SimulatedSites(
        recordings=recordings,
        gains=truth.gains,
        lags=np.where(truth.gains > 0, truth.delays / SAMPLE_RATE, np.nan),
        is_control=every >= config.num_sites - config.num_controls,
        electrode_positions=[truth.electrodes[sites].reshape(-1, 3) for sites in days],
    )


def _truth(config: SiteSimulationConfig) -> _Truth:
    S, N = config.num_sites, config.num_units
    places = _places(config)
    depths = np.linspace(-PROBE_LENGTH / 2, PROBE_LENGTH / 2, N)
    electrodes = np.repeat(places[:, None], N, axis=1)
    electrodes[..., 2] += depths

    rng = random_stream(config.seed, COUPLINGS)
    pairs = np.triu(rng.random((S, S)) < config.density, k=1)
    forward = rng.random((S, S)) < 0.5
    coupled = np.where(forward, pairs, False) | np.where(forward, False, pairs).T
    is_control = np.arange(S) >= S - config.num_controls
    coupled &= ~is_control & ~is_control[:, None] & config.simultaneous
    shortest, longest = (round(delay * SAMPLE_RATE) for delay in config.delays)
    gains = np.where(coupled, config.coupling, 0.0)
    loudest = np.abs(np.linalg.eigvals(gains)).max()
    if loudest > 0.9:  # a loop of couplings would never fade
        gains *= 0.9 / loudest

    tuned = ~is_control[:, None]
    rng = random_stream(config.seed, UNITS)
    own = _complex_normal(rng, (3, S, N))
    field = _random_field(random_stream(config.seed, FIELD), electrodes, config.smoothness, channels=3)
    planar = np.sqrt(1 - config.private**2) * field + config.private * own
    planar *= config.depth * np.array([1.0, 0.8, 0.5])[:, None, None] * tuned
    return _Truth(
        places=places,
        electrodes=electrodes,
        gains=gains,
        delays=random_stream(config.seed, COUPLINGS, 1).integers(shortest, longest + 1, (S, S)),
        phases=random_stream(config.seed, COUPLINGS, 2).uniform(0, 2 * np.pi, (S, S)),
        planar=planar,
        local=config.local * _complex_normal(rng, (S, N)),
        leads=np.round(rng.normal(0.075, 0.02, (S, N)).clip(0, 0.15) * SAMPLE_RATE).astype(int),
        mean_rates=(config.median_rate * np.exp(0.4 * rng.standard_normal((S, N)))).clip(1.0, 60.0),
    )


def _places(config: SiteSimulationConfig) -> NDArray[np.float64]:
    """Spreads sites over a square, each somewhat off a grid; depth is the middle of a probe."""
    rng = random_stream(config.seed, PLACES)
    side = int(np.ceil(np.sqrt(config.num_sites)))
    cells = rng.permutation(side**2)[: config.num_sites]
    pitch = config.spread / side
    grid = (np.stack([cells % side, cells // side], axis=1) - (side - 1) / 2) * pitch
    plane = grid + rng.uniform(-0.35, 0.35, grid.shape) * pitch
    return np.round(np.column_stack([plane, np.full(len(plane), PROBE_LENGTH / 2)]), 3)


def _complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Draws complex numbers of mean square 1."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def _random_field(
    rng: np.random.Generator, positions: NDArray[np.float64], smoothness: float, channels: int
) -> NDArray[np.complex128]:
    """Evaluates smooth random functions of place, (..., 3) to (channels, ...), of mean square 1."""
    waves = rng.standard_normal((channels, NUM_WAVES, 3)) / [smoothness, smoothness, DEPTH_SCALE]
    weights = _complex_normal(rng, (channels, NUM_WAVES)) / np.sqrt(NUM_WAVES)
    angles = np.einsum("...p,cwp->c...w", positions, waves)
    return np.einsum("c...w,cw->c...", np.exp(1j * angles), weights)


def _recording(config: SiteSimulationConfig, truth: _Truth, day: int, sites: NDArray[np.int64]) -> Recording:
    """Simulates one day, on which some sites are recorded."""
    rng = random_stream(config.seed, DAY, day)
    behavior = simulate_reaches("center_out", config.num_trials, ReachStyle(), 0.0, SAMPLE_RATE, rng)
    spike_times = poisson_spikes(_rates(config, truth, behavior, sites, rng), SAMPLE_RATE, rng)
    date = FIRST_DAY + datetime.timedelta(days=2 * day)
    names = [f"S{site:02d}" for site in sites]
    units = range(config.num_units)

    def series(name: str, values: NDArray[np.float64], unit: str) -> BehaviorSeries:
        return BehaviorSeries(name, behavior.times, values.astype(np.float32), ["x", "y"], unit)

    return Recording(
        session_id=f"sub-{SUBJECT_ID}_ses-CO-{date:%Y%m%d}",
        subject_id=SUBJECT_ID,
        task="center_out",
        recording_date=date,
        unit_ids=[f"{name}-{unit:03d}" for name in names for unit in units],
        unit_sites=np.repeat(np.arange(len(sites)), config.num_units),
        site_ids=names,
        site_positions=truth.electrodes[sites].mean(axis=1),
        spike_times=spike_times,
        obs_intervals=np.array([[0.0, behavior.times.size / SAMPLE_RATE]]),
        behavior={
            "cursor_pos": series("cursor_pos", behavior.position, "cm"),
            "cursor_vel": series("cursor_vel", behavior.velocity, "cm/s"),
        },
        trials=behavior.trials,
        source=None,
    )


def _rates(
    config: SiteSimulationConfig,
    truth: _Truth,
    behavior: Behavior,
    sites: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Firing rates of the units of some sites, (samples, sites * units), Hz."""
    num_samples = behavior.times.size
    activity = _site_activity(config, truth, num_samples, rng)[:, sites]
    planar = reach_latents(behavior, SAMPLE_RATE)[0][:, :3]  # velocity, plan, position
    tuning, leads = truth.planar[:, sites].reshape(3, -1), truth.leads[sites].ravel()
    samples = np.minimum(np.arange(num_samples)[:, None] + leads, num_samples - 1)
    drive = (planar @ tuning.conj()).real[samples, np.arange(leads.size)]
    local = truth.local[sites]
    drive += (activity[:, :, None] * local.conj()).real.reshape(num_samples, -1)
    rates = np.exp(np.minimum(drive, 3.0))
    return np.minimum(rates * (truth.mean_rates[sites].ravel() / rates.mean(axis=0)), MAX_RATE)


def _site_activity(
    config: SiteSimulationConfig, truth: _Truth, num_samples: int, rng: np.random.Generator
) -> NDArray[np.complex128]:
    """Activity of every site, complex of mean square 1, (samples, sites)."""
    S = config.num_sites

    def process(columns: int, time_constant: float) -> NDArray[np.complex128]:
        parts = stationary_noise(
            rng, (num_samples, 2 * columns), SAMPLE_RATE, np.full(2 * columns, time_constant)
        )
        return (parts[:, :columns] + 1j * parts[:, columns:]) / np.sqrt(2)

    activity = process(S, LOCAL_TIME_CONSTANT)
    is_control = np.arange(S) >= S - config.num_controls
    activity += config.common * process(1, COMMON_TIME_CONSTANT) * ~is_control
    targets, sources = np.nonzero(truth.gains)
    delays = truth.delays[targets, sources]
    weights = truth.gains[targets, sources] * np.exp(1j * truth.phases[targets, sources])
    step = int(delays.min(initial=num_samples))  # what arrives in so many samples is known already
    for first in range(step, num_samples, step):
        samples = np.arange(first, min(first + step, num_samples))
        past = samples[:, None] - delays
        arriving = activity[np.maximum(past, 0), sources] * (past >= 0) * weights
        np.add.at(activity, (samples[:, None], targets), arriving)
    return activity / np.sqrt((np.abs(activity) ** 2).mean(axis=0))
