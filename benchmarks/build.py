"""Speed and memory of building a dataset: spikes a second against a loop over spikes, memory by recordings.

    python benchmarks/build.py --out results [--parts speed memory]

Recordings are simulated (Poisson spikes, one velocity, trials of 4 s) and written as NWB; `build_dataset`
then reads, bins, cuts and writes them. The slow oracle puts spikes into bins one by one, in Python, and must
give the same counts. Processor time is counted, so that a busy machine changes little. Peak memory is that of
fresh processes that build 2 to 24 recordings.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measure import make_parser, print_table, save_plot, save_results

from rpnt_hf.data.binning import bin_spikes
from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.data.nwb_writer import write_nwb

BIN_SIZE = 0.02
RATE = 20.0  # spikes a second and unit
MEMORY = """
import sys
from pathlib import Path
from rpnt_hf.data.builder import BuilderConfig, build_dataset
build_dataset(sys.argv[2:], Path(sys.argv[1]), BuilderConfig({bin_size}))
sys.path.insert(0, {folder!r})
from measure import peak_memory_mib
print(peak_memory_mib())
"""


def write_recording(path: Path, num_units: int, seconds: float, seed: int = 0) -> Path:
    """Simulates a recording and writes it as NWB."""
    rng = np.random.default_rng(seed)
    spike_times = [
        np.unique(rng.uniform(0, seconds, rng.poisson(seconds * RATE)).round(5)) for _ in range(num_units)
    ]
    times = np.arange(0, seconds, 0.01)
    velocity = np.stack([np.sin(times), np.cos(times)], axis=1)
    starts = np.arange(0, seconds - 4, 4.0)
    recording = Recording.from_arrays(
        path.stem,
        spike_times,
        behavior={"cursor_vel": BehaviorSeries("cursor_vel", times, velocity, ["x", "y"], "cm/s")},
        trials=pd.DataFrame({"start_time": starts, "stop_time": starts + 3}),
        obs_intervals=np.array([[0.0, seconds]]),
        subject_id="A",
        task="center_out",
        recording_date=datetime.date(2020, 1, 1),
    )
    return write_nwb(recording, path)


def seconds_of(run: Callable[[], Any]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    run()
    return time.process_time() - began


def count_in_a_loop(recording: Recording, seconds: float) -> np.ndarray:
    """Counts the spikes of the first seconds one by one: the oracle."""
    num_bins = round(seconds / BIN_SIZE)
    counts = np.zeros((num_bins, recording.num_units), dtype=np.uint8)
    for unit, times in enumerate(recording.spike_times):
        for spike_time in times:
            position = int((spike_time - recording.obs_intervals[0, 0]) / BIN_SIZE + 1e-6)
            if position < num_bins:
                counts[position, unit] += 1
    return counts


def measure_speed(folder: Path, num_units: int, seconds: float, turns: int) -> dict[str, float]:
    """Builds one recording; the best of some turns."""
    path = write_recording(folder / f"units{num_units}.nwb", num_units, seconds)
    recording = read_nwb(path)
    outputs = iter(folder / f"built{num_units}-{turn}" for turn in range(turns))
    build = min(
        seconds_of(lambda: build_dataset([path], next(outputs), BuilderConfig(BIN_SIZE)))
        for _ in range(turns)
    )
    read = min(seconds_of(lambda: read_nwb(path)) for _ in range(turns))
    binned = min(seconds_of(lambda: bin_spikes(recording, BIN_SIZE)) for _ in range(turns))
    # The loop is slow: it sees a tenth of the spikes, and its rate is compared.
    part = Recording.from_arrays(
        "part",
        [times[times < seconds / 10] for times in recording.spike_times],
        obs_intervals=np.array([[0.0, seconds / 10]]),
    )
    began = time.process_time()
    expected = count_in_a_loop(part, seconds / 10)
    loop = (time.process_time() - began) / part.num_spikes
    assert np.array_equal(bin_spikes(part, BIN_SIZE)[0].counts, expected)
    return {
        "units": num_units,
        "million spikes": recording.num_spikes / 1e6,
        "build, million spikes/s": recording.num_spikes / build / 1e6,
        "reading alone": recording.num_spikes / read / 1e6,
        "binning alone": recording.num_spikes / binned / 1e6,
        "loop over spikes alone": 1e-6 / loop,
        "binning / loop": loop * recording.num_spikes / binned,
    }


def peak_memory(folder: Path, paths: list[Path]) -> float:
    """Peak resident memory in MiB of a process that builds these recordings."""
    code = MEMORY.format(bin_size=BIN_SIZE, folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(folder / f"memory{len(paths)}"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def sweep_units(options: argparse.Namespace) -> None:
    """Speed against the number of units."""
    sizes = [16, 64] if options.quick else [16, 64, 100, 250, 1000]
    spikes_of_a_file = 4e5 if options.quick else 1e7
    turns = 1 if options.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure_speed(Path(folder), size, spikes_of_a_file / RATE / size, turns=turns) for size in sizes
        ]
    print_table("Building a dataset (processor time of one core)", rows)
    save_results(options.out, "build_speed", rows)
    names = ["build, million spikes/s", "binning alone", "loop over spikes alone"]
    curves = {name: [row[name] for row in rows] for name in names}
    save_plot(
        options.out / "build_speed.png",
        [float(size) for size in sizes],
        curves,
        "units",
        "million spikes / s",
    )


def sweep_recordings(options: argparse.Namespace) -> None:
    """Peak memory against the number of recordings."""
    length, numbers = (60.0, (2, 4)) if options.quick else (600.0, (1, 2, 4, 8, 16, 24))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = [write_recording(folder / f"memory{i}.nwb", 100, length, seed=i) for i in range(max(numbers))]
        spikes_mib = read_nwb(paths[0]).num_spikes * 8 / 2**20
        rows: list[dict[str, Any]] = [
            {"recordings": number, "peak, MiB": peak_memory(folder, paths[:number])} for number in numbers
        ]
    print_table(f"Peak memory; spike times of one recording hold {spikes_mib:.1f} MiB", rows)
    print("\nUp to 8 MiB of each split wait for a row group, so the first recordings add to the peak.")
    save_results(options.out, "build_memory", rows)


PARTS = {"speed": sweep_units, "memory": sweep_recordings}


def main() -> None:
    """Runs the benchmark."""
    options = make_parser(__doc__, PARTS).parse_args()
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
