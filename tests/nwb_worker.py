"""Judges NWB files in a process of its own, so that a crash or a hang of a library ends nothing else.

As a program: paths on standard input, one verdict as JSON per line on standard output.
"""

import contextlib
import json
import logging
import os
import queue
import resource
import subprocess
import sys
import threading
import traceback
from pathlib import Path

from nwb_oracle import compare, read_plainly

from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.errors import RecordingError

BIN_SIZE = 0.05
MEMORY = 8 * 2**30


def judge(path):
    """Reads a file both ways; gives what happened in one word, and why.

    "read": read, and equal to the plain reading; "refused": by a `RecordingError`; "wrong": read, but the
    plain reading finds a contradiction or something else; "crashed": any other exception.
    """
    try:
        recording = read_nwb(path)
    except RecordingError as error:
        return "refused", str(error)
    except Exception:
        return "crashed", traceback.format_exc()
    try:
        compare(recording, read_plainly(path), BIN_SIZE)
    except Exception:
        return "wrong", traceback.format_exc()
    return "read", ""


class Worker:
    """A process that judges files, started again where it dies."""

    def __init__(self, seconds=30.0):
        self.seconds = seconds
        self.process = None

    def judge(self, path):
        """As `judge`; "died" where the process did, "hung" where it took longer than `seconds`."""
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=self.seconds)
        except queue.Empty:
            self.stop()
            return "hung", f"no answer in {self.seconds} s"
        except OSError:
            line = ""
        if not line:
            code = self.process.wait()
            self.stop()
            return "died", f"exit code {code}"
        return tuple(json.loads(line))

    def _start(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.lines = queue.Queue()
        threading.Thread(target=self._listen, args=(self.process.stdout, self.lines), daemon=True).start()
        assert self.lines.get(timeout=120) == "ready\n"

    @staticmethod
    def _listen(stream, lines):
        with contextlib.suppress(ValueError):  # closed by `stop`
            for line in stream:
                lines.put(line)
        lines.put("")

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def main():
    import pynwb  # noqa: F401 - before the clock of the first file starts

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(Path(line.rstrip("\n")))), file=answers, flush=True)


if __name__ == "__main__":
    main()
