"""Launches training runs and kills them at a chosen kind of moment, as seen from outside: log and folders."""

import contextlib
import os
import re
import subprocess
import time
from collections import Counter

import psutil
from training_runs import launch_command, launch_environment

IN_A_STEP, IN_A_WRITE, IN_AN_EPOCH_CHANGE = "in a step", "in a checkpoint write", "in an epoch change"
POLL = 0.001  # s; a checkpoint of the tiny model takes tens of milliseconds


class Victim:
    """A launched run and what can be seen of it.

    `epoch_ends` are the steps after which an epoch begins, `log` is a file that the runs of one chain share.
    """

    def __init__(self, script, corpus, output_dir, *arguments, log, epoch_ends, **launching):
        self.output_dir = output_dir
        self.epoch_ends = epoch_ends
        self.num_processes = launching.get("num_processes", 1)
        self.steps = []
        self.leftovers = self._unfinished()
        self.log = log.open("ab")
        self.reader = log.open("rb")
        self.reader.seek(0, os.SEEK_END)
        self.tail = b""
        command = launch_command(script, corpus, output_dir, *arguments, **launching)
        self.process = subprocess.Popen(
            command, env=launch_environment(), stdout=self.log, stderr=self.log, start_new_session=True
        )

    def _unfinished(self):
        folder = self.output_dir / "checkpoints"
        try:
            return {
                (entry.name, entry.inode()) for entry in os.scandir(folder) if "unfinished_" in entry.name
            }
        except FileNotFoundError:
            return set()

    def is_writing(self):
        return bool(self._unfinished() - self.leftovers)

    def read_log(self):
        *lines, self.tail = (self.tail + self.reader.read()).split(b"\n")
        for line in lines:
            if found := re.search(rb"(?:step|epoch) (\d+)  loss ", line):
                self.steps.append(int(found[1]))

    def wait(self, is_due, timeout=120):
        """Waits for a moment; False where the run ended before it came."""
        deadline = time.monotonic() + timeout
        while not is_due():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "the run stands still"
            time.sleep(POLL)
            self.read_log()
        return True

    def kill_when(self, kind, rng):
        """Waits for a moment of a kind, kills, and says at what kind of moment it died; None if it ended.

        With several processes, either all are killed with their launcher, as when a node dies, or one.
        """
        count, delay = int(rng.integers(1, 4)), rng.uniform(0, 0.03)
        if kind == IN_A_WRITE:
            due = all(
                self.wait(lambda: not self.is_writing()) and self.wait(self.is_writing)
                for _ in range(int(rng.integers(1, 3)))
            )
        elif kind == IN_AN_EPOCH_CHANGE:
            due, delay = self.wait(lambda: self.steps and self.steps[-1] in self.epoch_ends), delay / 10
        else:
            due = self.wait(lambda: len(self.steps) >= count and not self.is_writing())
        if not due:
            return None
        time.sleep(delay)
        if self.process.poll() is not None:
            return None
        everyone = [psutil.Process(self.process.pid)]
        everyone += everyone[0].children(recursive=True)
        if self.num_processes > 1 and rng.random() < 0.5:
            workers = [process for process in everyone[1:] if "RANK" in process.environ()]
            workers[int(rng.integers(len(workers)))].kill()
            self.process.wait(60)  # the launcher ends the others
        for process in everyone:  # a launcher's processes would live on without it
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, 60)
        self.process.wait(60)
        self.read_log()
        self.close()
        if self._unfinished() - self.leftovers:
            return IN_A_WRITE
        return IN_AN_EPOCH_CHANGE if self.steps and self.steps[-1] in self.epoch_ends else IN_A_STEP

    def finish(self):
        """Waits for the end of a run that is left alone."""
        code = self.process.wait(300)
        self.read_log()
        self.close()
        return code

    def close(self):
        self.log.close()
        self.reader.close()


def count_kinds(kinds):
    """Counts moments, all three kinds named."""
    return {kind: Counter(kinds)[kind] for kind in (IN_A_STEP, IN_A_WRITE, IN_AN_EPOCH_CHANGE)}
