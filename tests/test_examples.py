"""Closed loops between processes: the decoder's values come back, and lost bins are never silent."""

import contextlib
import logging
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import time
import uuid
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
import torch

import rpnt_hf.closed_loop
from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, StreamingDecoder
from rpnt_hf.closed_loop import ClosedLoop
from rpnt_hf.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
UNITS, BINS = 5, 40
SPAWNED = multiprocessing.get_context("fork")  # torch is loaded already, so a child starts at once


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = RPNTConfig.preset("tiny", num_units=UNITS, attention_window=6, initializer_range=0.2)
    folder = tmp_path_factory.mktemp("checkpoint")
    RPNTForMotorDecoding(config).eval().save_pretrained(folder)
    units = [f"unit {n}" for n in range(UNITS)]
    RPNTProcessor(bin_size=0.05, sessions={"monday": units}, window_bins=20).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "counts.npy"
    np.save(path, np.random.default_rng(0).poisson(1.0, (BINS, UNITS)).astype(np.uint8))
    return path


def decoded_directly(checkpoint, counts, missing=()):
    """What the decoder gives; a missing bin is one in which no site was recorded, and gives nothing."""
    model = RPNTForMotorDecoding.from_pretrained(checkpoint)
    decoder = StreamingDecoder(model, RPNTProcessor.from_pretrained(checkpoint), "monday")
    values = np.full((BINS, 2), np.nan)
    for t, row in enumerate(np.load(counts)):
        if t in missing:
            decoder.step(np.zeros(UNITS), site_mask=[False])
        else:
            values[t] = decoder.step(row).numpy()
    return values


def run_example(name, arguments, log):
    """Runs a script as `python examples/NAME ARGUMENTS` does, in this process, which is a child."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv, sys.path = [name, *arguments], [str(EXAMPLES), *sys.path]
    logging.getLogger().handlers.clear()
    sys.stderr = os.fdopen(2, "w", buffering=1)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@contextlib.contextmanager
def decoding(name, checkpoint, log, *options):
    """The example as a process of its own, and a function that waits for a line in its log."""
    process = SPAWNED.Process(target=run_example, args=(name, [str(checkpoint), "monday", *options], log))
    process.start()

    def wait_for(pattern):
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            found = re.search(pattern, log.read_text()) if log.exists() else None
            if found:
                return found
            if not process.is_alive():
                break
            time.sleep(0.02)
        found = re.search(pattern, log.read_text())
        assert found, log.read_text()
        return found

    try:
        yield process, wait_for
        process.join(20)
        assert process.exitcode is not None, "the example did not end"
    finally:
        if process.is_alive():
            process.terminate()
            process.join()


def play(counts, out, *options, check=True):
    """The producer, as a process of its own; it needs no torch."""
    command = [sys.executable, EXAMPLES / "play_counts.py", counts, "--out", out, "--timeout", "20", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return np.load(out) if done.returncode == 0 else None


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_socket_gets_what_the_decoder_gives(transport, checkpoint, counts, tmp_path):
    tcp = ["--tcp"] if transport == "tcp" else []
    log = tmp_path / "log"
    with decoding("closed_loop_socket.py", checkpoint, log, "--port", "0", *tcp) as (_, wait_for):
        port = wait_for(r"ready: \w+ port (\d+)").group(1)
        played = play(
            counts, tmp_path / "out.npy", f"--{transport}", port, "--speed", "50", "--skip", 7, 8, 20
        )
    expected = decoded_directly(checkpoint, counts, missing=(7, 8, 20))
    np.testing.assert_allclose(played, expected, atol=1e-6)
    lines = log.read_text()
    assert "2 bins before bin 9 are missing" in lines and "1 bins before bin 21 are missing" in lines
    assert "37 bins decoded, 3 missing, 0 too late" in lines


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_packet_of_another_size_ends_in_one_clear_error(transport, checkpoint, tmp_path):
    counts, log = tmp_path / "counts.npy", tmp_path / "log"
    np.save(counts, np.zeros((3, UNITS + 1), np.uint8))
    tcp = ["--tcp"] if transport == "tcp" else []
    with decoding("closed_loop_socket.py", checkpoint, log, "--port", "0", *tcp) as (process, wait_for):
        port = wait_for(r"ready: \w+ port (\d+)").group(1)
        play(counts, tmp_path / "out.npy", f"--{transport}", port, "--timeout", "1", check=False)
        process.join(20)
    assert process.exitcode == 1
    error = log.read_text().splitlines()[-1]
    assert re.match(r"error: A packet must hold 14 bytes.*got 16 bytes", error)
    assert "Traceback" not in log.read_text()


def test_shared_memory_carries_what_the_decoder_gives(checkpoint, counts, tmp_path):
    name, log = f"rpnt-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    with decoding("closed_loop_shared_memory.py", checkpoint, log, "--name", name) as (_, wait_for):
        played = play(counts, tmp_path / "out.npy", "--shared-memory", name, "--speed", "10")
        wait_for("40 bins decoded, 0 missing, 0 too late")
    np.testing.assert_allclose(played, decoded_directly(checkpoint, counts), atol=1e-6)


def test_a_ring_that_is_not_ready_is_not_taken_for_another(monkeypatch):
    """A reader may come between the making of the block and its first words."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from shared_ring import HEADER, SharedRing

    name = f"rpnt-{uuid.uuid4().hex[:8]}"
    bare = shared_memory.SharedMemory(name, create=True, size=HEADER.itemsize + 1000)
    try:
        with pytest.raises(FileNotFoundError, match="is not ready"):
            SharedRing(name, UNITS, "<u2")
    finally:
        bare.close()
        bare.unlink()
    ring = SharedRing(name, UNITS, "<u2", slots=4)
    reader = SharedRing(name, UNITS, "<u2")
    for number in range(6):
        ring.write(np.full(UNITS, number))
    read = [reader.read() for _ in range(5)]
    assert [record and (record[0], int(record[1][0])) for record in read] == [
        (2, 2),
        (3, 3),
        (4, 4),
        (5, 5),
        None,
    ]
    with pytest.raises(ValueError, match="must hold 6 values, got 5"):
        SharedRing(name, UNITS + 1, "<u2")
    reader.close()
    ring.close()


def test_an_overrun_of_shared_memory_is_told_and_keeps_time(checkpoint, counts, tmp_path):
    """A ring of four bins, filled faster than any decoder runs."""
    name, log = f"rpnt-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    with decoding("closed_loop_shared_memory.py", checkpoint, log, "--name", name) as (_, wait_for):
        options = ["--shared-memory", name, "--speed", "1e9", "--slots", "4"]
        played = play(counts, tmp_path / "out.npy", *options)
        found = wait_for(r"(\d+) bins decoded, (\d+) missing, 0 too late")
    num_decoded, num_missing = int(found.group(1)), int(found.group(2))
    assert num_missing > 0 and num_decoded + num_missing == BINS
    got = np.isfinite(played).all(axis=1)
    assert got[-1] and got.sum() <= num_decoded  # the answers pass through a ring of four, too
    numbers = [int(number) for number in re.findall(r"before bin (\d+) are missing", log.read_text())]
    sizes = [int(size) for size in re.findall(r"(\d+) bins before", log.read_text())]
    missing = {n for stop, size in zip(numbers, sizes, strict=True) for n in range(stop - size, stop)}
    assert len(missing) == num_missing
    np.testing.assert_allclose(played[got], decoded_directly(checkpoint, counts, missing)[got], atol=1e-6)


def test_shared_memory_of_other_units_ends_in_one_clear_error(checkpoint, tmp_path):
    name, log, counts = f"rpnt-{uuid.uuid4().hex[:8]}", tmp_path / "log", tmp_path / "counts.npy"
    np.save(counts, np.zeros((3, UNITS + 1), np.uint8))
    with decoding("closed_loop_shared_memory.py", checkpoint, log, "--name", name) as (process, _):
        play(counts, tmp_path / "out.npy", "--shared-memory", name, "--timeout", "3", check=False)
        process.join(20)
    assert process.exitcode == 1 and log.read_text().splitlines()[-1].startswith("error: Records of")


def probe_lsl():
    """Says why LSL does not work on this machine; None where it does."""
    code = (
        "import pylsl; o = pylsl.StreamOutlet(pylsl.StreamInfo('rpnt-probe', 'x', 1, 0, 1, 'p')); "
        "assert pylsl.resolve_byprop('name', 'rpnt-probe', timeout=3), 'no stream can be found'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_an_lsl_stream_gets_what_the_decoder_gives(checkpoint, counts, tmp_path):
    if reason := probe_lsl():
        pytest.skip(f"LSL does not work here: {reason}")
    name, log = f"rpnt-{uuid.uuid4().hex[:8]}", tmp_path / "log"
    options = ["--name", name, "--timeout", "3"]
    with decoding("closed_loop_lsl.py", checkpoint, log, *options) as (_, wait_for):
        played = play(counts, tmp_path / "out.npy", "--lsl", name, "--speed", "50", "--skip", 5, 6)
        wait_for("38 bins decoded, 2 missing, 0 too late")
    np.testing.assert_allclose(played, decoded_directly(checkpoint, counts, missing=(5, 6)), atol=1e-6)
    wide = tmp_path / "wide.npy"
    np.save(wide, np.zeros((3, UNITS + 1), np.uint8))
    with decoding("closed_loop_lsl.py", checkpoint, log, *options) as (process, _):
        play(wide, tmp_path / "none.npy", "--lsl", name, "--timeout", "1", check=False)
        process.join(20)
    assert process.exitcode == 1 and re.search("must have 5 channels.* got 6", log.read_text())


@pytest.mark.slow
def test_the_example_runs_as_a_command(checkpoint, counts, tmp_path):
    command = [
        sys.executable,
        str(EXAMPLES / "closed_loop_socket.py"),
        str(checkpoint),
        "monday",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = next(line for line in process.stderr if "ready" in line).split()[-1]
        played = play(counts, tmp_path / "out.npy", "--udp", port, "--speed", "50")
        assert "40 bins decoded" in process.stderr.read()
    np.testing.assert_allclose(played, decoded_directly(checkpoint, counts), atol=1e-6)


def test_bins_that_come_late_or_do_not_fit_leave_the_stream_as_it_was(checkpoint, counts):
    loop, rows = ClosedLoop(checkpoint, "monday"), np.load(counts)
    expected = decoded_directly(checkpoint, counts)
    np.testing.assert_allclose(loop.step(100, rows[0]), expected[0], atol=1e-6)  # warming up left no trace
    assert loop.step(100, rows[1]) is None and loop.step(99, rows[1]) is None
    with pytest.raises(InputError, match="counts of 5 units"):
        loop.step(101, rows[1][:4])
    with pytest.raises(InputError, match="must be 0 or more"):
        loop.step(101, -rows[1].astype(int))
    np.testing.assert_allclose(loop.step(101, rows[1]), expected[1], atol=1e-6)
    assert loop.summary() == "2 bins decoded, 0 missing, 2 too late"
    # After a gap too long to step through, the stream starts afresh.
    np.testing.assert_allclose(loop.step(100_000_000, rows[0]), expected[0], atol=1e-6)


def test_a_waiting_loop_warms_up_once_before_each_bin_and_never_late(checkpoint, counts, monkeypatch):
    loop, rows = ClosedLoop(checkpoint, "monday"), np.load(counts)
    assert 0 < loop._lead <= loop.bin_size / 2
    now, warmed = [100.0], []
    monkeypatch.setattr(rpnt_hf.closed_loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop.decoder, "warm_up", lambda: warmed.append(now[0]))
    loop._lead = 0.01
    assert loop.idle() is None  # nothing is known about the first bin
    loop.step(0, rows[0])
    assert loop.idle() == pytest.approx(0.04) and not warmed
    now[0] = 100.041
    assert loop.idle() is None and warmed == [100.041]
    assert loop.idle() is None and len(warmed) == 1
    loop.step(1, rows[1])
    now[0] = 100.09  # the bin was due: a step of nothing would be in its way
    assert loop.idle() is None and len(warmed) == 1
    loop._lead = 0.0
    loop.step(2, rows[2])
    assert loop.idle() is None and len(warmed) == 1


def documented_examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "closed_loop.md").read_text(), flags=re.DOTALL)


def test_examples_of_the_page_on_closed_loops_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = documented_examples()
    assert len(examples) >= 4
    exec(compile("\n".join(examples), "closed_loop.md", "exec"), {})
