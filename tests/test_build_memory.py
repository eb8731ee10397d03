"""A build holds one recording at a time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nwb_files import series, write_nwb

CODE = """
import sys
from pathlib import Path
from rpnt_hf.data.builder import BuilderConfig, build_dataset
build_dataset(sys.argv[2:], Path(sys.argv[1]), BuilderConfig(0.05))
# Not `ru_maxrss`: a child inherits that of its parent.
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the peak memory of Linux")
def test_peak_memory_does_not_grow_with_the_number_of_recordings(tmp_path):
    """Each recording holds 12 MiB of spike times; three more would add 36 if they stayed."""
    duration = 400.0
    spike_times = [np.linspace(0.001 * unit, duration, 80_000) for unit in range(20)]
    paths = [
        write_nwb(
            tmp_path / f"day{day}.nwb",
            spike_times,
            behavior=[series(duration=duration)],
            obs_intervals=np.array([[0.0, duration]]),
        )
        for day in range(4)
    ]
    assert all(path.stat().st_size > 12 * 2**20 for path in paths)

    def peak(number):
        command = [sys.executable, "-c", CODE, str(tmp_path / f"built{number}"), *map(str, paths[:number])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return float(done.stdout.split()[-1])

    assert peak(4) - peak(1) < 24
