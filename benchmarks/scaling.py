"""Cost of a corpus against its number of sessions: building in parallel, opening, streaming, training steps.

    python benchmarks/scaling.py --out results [--sessions 25 50 100 200] [--num-proc 2]

Sessions of a million Poisson spikes each (100 units, 500 s) are made as NWB once; for each size the first
of them are built into a dataset and some steps of pretraining are run on it, on mapped rows and on streamed
ones, in fresh processes that a watcher looks at twenty times a second. Time should be linear and memory flat.
Private memory is what a process holds; mapped pages of files, which the system takes back when it needs
them, are not in it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from build import write_recording
from measure import make_parser, print_table, save_results

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.remote import RemoteDataset
from rpnt_hf.data.streamed import StreamedWindows, StreamSampler, stream_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.processing_rpnt import RPNTProcessor

NUM_UNITS = 100
BUILD = """
import sys, time
import rpnt_hf.data.builder as builder
if __name__ == "__main__":
    out, num_proc, *files = sys.argv[1:]
    began = time.perf_counter()
    builder.build_dataset(files, out, builder.BuilderConfig(0.02), num_proc=int(num_proc))
    print(time.perf_counter() - began)
"""
TRAIN = """
import itertools, json, sys, time
import numpy as np, torch
from torch.utils.data import DataLoader
from rpnt_hf.data.loading import load_rows, unit_means, view_rows
from rpnt_hf.data.streamed import StreamedWindows, StreamSampler, recorded_unit_means, stream_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.initialization import from_scratch
from rpnt_hf.modeling_rpnt import RPNTForPreTraining
import datasets
data, streaming, steps = sys.argv[1], sys.argv[2] == "streamed", int(sys.argv[3])
torch.set_num_threads(1)
datasets.disable_progress_bars()
began = time.perf_counter()
found = {}
if not streaming:
    load_rows(data)
    found["into the cache, s"], began = time.perf_counter() - began, time.perf_counter()
rows = stream_rows(data) if streaming else view_rows(load_rows(data))
found["open, s"], began = time.perf_counter() - began, time.perf_counter()
recorded_unit_means(data, rows) if streaming else unit_means(rows)
found["null model, s"], began = time.perf_counter() - began, time.perf_counter()
options = {"num_slots": 50}
model, processor = from_scratch(
    RPNTForPreTraining, "tiny", {"unit_embedding": "slots"}, rows, window_bins=100, **options
)
sampler = StreamSampler(rows, 100, 32) if streaming else WindowSampler(rows, 100, 32, pairs=True)
windows = StreamedWindows(rows, sampler) if streaming else WindowDataset(rows)
collator = WindowCollator(rows, processor, masking=MaskingConfig())
loader = DataLoader(windows, batch_sampler=sampler, collate_fn=collator)
optimizer = torch.optim.AdamW(model.parameters())
batches = iter(loader)
next(batches)
found["first batch, s"], began = time.perf_counter() - began, time.perf_counter()
waited = 0.0
for _ in range(steps):
    before = time.perf_counter()
    batch = next(batches)
    waited += time.perf_counter() - before
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
found["step, ms"] = 1000 * (time.perf_counter() - began) / steps
found["of it waiting for data, ms"] = 1000 * waited / steps
found["windows of an epoch"] = len(sampler.windows(0))
print(json.dumps(found))
"""


def write_session(template: Path, path: Path, seed: int) -> None:
    """Copies a recording and gives it spikes and a name of its own, which takes a tenth of writing it."""
    import h5py

    shutil.copyfile(template, path)
    rng = np.random.default_rng(seed)
    with h5py.File(path, "r+") as file:
        units = file["units"]
        ends = units["spike_times_index"][:].astype(np.int64)
        seconds = float(units["obs_intervals"][:].max())
        spike_times = np.empty(ends[-1])
        for start, stop in pairwise([0, *ends.tolist()]):
            spike_times[start:stop] = np.sort(rng.uniform(0, seconds, stop - start))
        units["spike_times"][:] = spike_times
        del file["general/session_id"]
        file["general/session_id"] = path.stem


class Watcher:
    """Watches the memory of a process and its children: the most that one of them held."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.processor_s = 0.0
        self.private_mib = 0.0
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        """Looks until the process ends."""
        while self.process.poll() is None:
            for pid in [self.process.pid, *children(self.process.pid)]:
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    private = int(status.split("RssAnon:")[1].split()[0]) / 1024
                except (OSError, IndexError):  # it has ended meanwhile
                    continue
                self.private_mib = max(self.private_mib, private)
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Lists the children of a process, and theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            direct = [int(text) for text in path.read_text().split()]
        except OSError:
            continue
        found += direct + [one for child in direct for one in children(child)]
    return found


def run_watched(code: str, *arguments: object) -> tuple[str, Watcher]:
    """Runs code in a fresh process; its output and what it held."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        before = os.times()
        command = [sys.executable, file.name, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watcher = Watcher(process)
        output, errors = process.communicate()
        watcher.thread.join()
    after = os.times()
    watcher.processor_s = sum(after[2:4]) - sum(before[2:4])
    if process.returncode:
        raise RuntimeError(errors)
    return output, watcher


def sweep_sessions(options: argparse.Namespace) -> None:
    """Builds and trains at each number of sessions."""
    numbers = [2, 4] if options.quick else sorted(options.sessions)
    seconds = 300.0 if options.quick else 500.0
    steps = 2 if options.quick else 30
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        paths = [folder / "nwb" / f"day{i:04d}.nwb" for i in range(max(numbers))]
        paths[0].parent.mkdir()
        began = time.perf_counter()
        template = write_recording(folder / "template.nwb", NUM_UNITS, seconds)
        by_pynwb = time.perf_counter() - began
        for i, path in enumerate(paths):
            write_session(template, path, seed=i + 1)
        writing = time.perf_counter() - began - by_pynwb
        print(
            f"one recording written by pynwb in {by_pynwb:.1f} s, {len(paths)} made of it in {writing:.0f} s"
        )
        for number in numbers:
            out = folder / f"built{number}"
            text, builder = run_watched(BUILD, out, options.num_proc, *paths[:number])
            built = json.loads((out / "rpnt_build.json").read_text())
            row: dict[str, Any] = {
                "sessions": number,
                "million spikes": sum(one["num_spikes"] for one in built["sessions"]) / 1e6,
                "build, s": float(text.split()[-1]),
                "build, processor s": builder.processor_s,
                "build, private MiB": builder.private_mib,
                "Parquet, MB": sum(shard["bytes"] for shard in built["shards"]) / 1e6,
            }
            for kind in ("mapped", "streamed"):
                text, watcher = run_watched(TRAIN, out, kind, steps)
                facts = json.loads(text.splitlines()[-1])
                row |= {f"{kind}: {name}": value for name, value in facts.items()}
                row[f"{kind}: processor s"] = watcher.processor_s
                row[f"{kind}: private MiB"] = watcher.private_mib
            rows.append(row)
            print(json.dumps(row), flush=True)
            shutil.rmtree(out)
    names = list(rows[0])
    table = [{"": name, **{str(row["sessions"]): row[name] for row in rows}} for name in names[1:]]
    print_table(f"By sessions ({options.num_proc} processes build; batches of 32 windows of 2 s)", table)
    save_results(
        options.out, "scaling", {"rows": rows, "writing_nwb_s": writing, "num_proc": options.num_proc}
    )
    draw(options.out / "scaling.png", rows)


PLAN = """
import json, sys, time
from rpnt_hf.data.sampling import WindowSampler
number = int(sys.argv[1])
row = {"num_bins": 126_000, "num_context_bins": 0}  # 70 % of an hour at 20 ms
rows = [{**row, "session_id": f"session {i}"} for i in range(number)]
sampler = WindowSampler(rows, 100, 2048, pairs=True)
began = time.process_time()
batches = sampler.batches(0)
print(json.dumps([time.process_time() - began, sum(map(len, batches))]))
"""


def measure_plans(options: argparse.Namespace) -> None:
    """Time and memory of the plan of an epoch, which every process makes of the whole corpus."""
    rows = []
    for number in (10, 100) if options.quick else (100, 1000, 10_000):
        text, watcher = run_watched(PLAN, number)
        seconds, windows = json.loads(text)
        facts = {"million windows": windows / 1e6, "processor s": seconds}
        rows.append({"sessions of an hour": number, **facts, "private MiB": watcher.private_mib})
    print_table("The plan of an epoch: windows of 2 s, batches of 2048", rows)
    save_results(options.out, "scaling_plans", rows)


def measure_rates(options: argparse.Namespace) -> None:
    """Rate at which windows come from mapped and from streamed rows of one process, without a model."""
    seconds, epochs = (100.0, 1) if options.quick else (500.0, 3)
    with tempfile.TemporaryDirectory(dir=options.scratch) as temporary:
        folder = Path(temporary)
        template = write_recording(folder / "template.nwb", NUM_UNITS, seconds)
        paths = [folder / f"day{i}.nwb" for i in range(2 if options.quick else 10)]
        for i, path in enumerate(paths):
            write_session(template, path, seed=i)
        out = build_dataset(paths, folder / "built", BuilderConfig(0.02))
        shards = RemoteDataset.open(out).build["shards"]
        size = sum(shard["bytes"] for shard in shards if "/train-" in shard["name"])
        mapped, streamed = view_rows(load_rows(out)), stream_rows(out)
        counts = sum(len(row["counts"]) for row in mapped)
        order = StreamSampler(streamed, 100, 256, groups_in_memory=1)
        ways: dict[str, Any] = {
            "mapped": (WindowDataset(mapped), WindowSampler(mapped, 100, 256, pairs=True), mapped),
            "streamed": (StreamedWindows(streamed, order), order, streamed),
        }
        rows = []
        for name, (windows, sampler, of) in ways.items():
            collator = WindowCollator(of, RPNTProcessor.from_rows(of), masking=MaskingConfig())
            number, began, wall = 0, time.process_time(), time.perf_counter()
            for epoch in range(epochs):
                sampler.set_epoch(epoch)
                for batch in sampler:
                    number += len(collator(windows.__getitems__(batch))["spike_counts"])
            spent, wall = time.process_time() - began, time.perf_counter() - wall
            row = {"rows": name, "windows / processor s": number / spent, "windows / s": number / wall}
            rows.append({**row, "counts, MB / s": epochs * counts / wall / 1e6})
    title = (
        f"Windows of 100 bins, 100 units; {counts / 1e6:.1f} MB of counts in {size / 1e6:.1f} MB of Parquet"
    )
    print_table(title, rows)
    save_results(options.out, "scaling_rates", rows)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draws time and memory against the number of sessions."""
    import matplotlib.pyplot as plt

    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sessions = [row["sessions"] for row in rows]
    for name in ("build, processor s", "build, s", "mapped: into the cache, s", "streamed: open, s"):
        times.plot(sessions, [row[name] for row in rows], marker="o", label=name.removesuffix(", s"))
    times.set(xlabel="sessions of a million spikes", ylabel="s", xlim=(0, None), ylim=(0, None))
    for name in ("build, private MiB", "mapped: private MiB", "streamed: private MiB"):
        label = name.replace("mapped:", "training, mapped,").replace("streamed:", "training, streamed,")
        memory.plot(
            sessions,
            [row[name] for row in rows],
            marker="o",
            label=label.removesuffix(" private MiB").rstrip(","),
        )
    memory.set(
        xlabel="sessions of a million spikes", ylabel="MiB of one process", xlim=(0, None), ylim=(0, None)
    )
    for axes in (times, memory):
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


PARTS = {"sessions": sweep_sessions, "rates": measure_rates, "plans": measure_plans}


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--sessions", nargs="+", type=int, default=[25, 50, 100, 200], metavar="N")
    parser.add_argument("--num-proc", type=int, default=2, metavar="N", help="processes that build")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="folder for recordings and datasets")
    options = parser.parse_args()
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
