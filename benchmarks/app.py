"""What the page of `rpnt app` costs: seconds to decode a minute in it, and milliseconds that a control takes.

    python benchmarks/app.py --out results

A headless Chromium opens the page on this machine and does what a visitor does. `decode`: 60 s of a recording
of 100 units, as fast as it goes, from the click to the last bin that is drawn; presets tiny and
rpnt-microelectrode with random weights, bins of 50 ms and 20 ms. `controls`: from the change of a control to
the new drawing, less the time that the model took, as the page tells it. The targets are 3 s (tiny, 50 ms)
and 200 ms on two quiet cores.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import make_parser, print_table, save_results

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor
from rpnt_hf.app.page import launch, make_page
from rpnt_hf.data.nwb import Recording
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.data.simulate import simulate

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
NUM_UNITS = 100
DECODE_TARGET, CONTROL_TARGET = 3.0, 200.0  # s, ms

# Clicks, and gives the milliseconds until the view has drawn the last bin.
DECODE = """async () => {
  const root = document.querySelector("#view-live .rpnt-view");
  root.dataset.finished = "false";
  const began = performance.now();
  document.querySelector("#decode-button").click();
  while (root.dataset.finished !== "true" || root.dataset.head !== Number(root.dataset.bins).toFixed(2)) {
    await new Promise(requestAnimationFrame);
  }
  return [performance.now() - began, Number(root.dataset.bins)];
}"""
# Changes a control, and gives the milliseconds until the view has drawn anew, and those that the model took.
CHANGE = """async ([selector, value, view]) => {
  const root = document.querySelector(`#view-${view} .rpnt-view`), before = root.dataset.drawn;
  const control = document.querySelector(selector);
  const began = performance.now();
  if (control.type === "radio" || control.type === "checkbox") control.click();
  else {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(control, value);
    control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  }
  while (root.dataset.drawn === before) {
    if (performance.now() - began > 20000) throw new Error(`${selector} = ${value} drew nothing`);
    await new Promise(requestAnimationFrame);
  }
  return [performance.now() - began, Number(root.dataset.modelMs)];
}"""


def make_decoder(folder: Path, preset: str, bin_size: float, recording: Recording) -> Path:
    """Saves a decoder of the recording with random weights."""
    torch.manual_seed(0)
    targets = {"target_names": ["cursor_vel_x", "cursor_vel_y"], "target_units": ["cm/s", "cm/s"]}
    model = RPNTForMotorDecoding(RPNTConfig.preset(preset, num_units=recording.num_units, **targets))
    processor = RPNTProcessor(
        bin_size=bin_size,
        metadata_axes=model.config.metadata_axes,
        window_bins=100,
        corpus_start=recording.recording_date,  # without one the page treats days as unknown
        behavior_names=targets["target_names"],
        behavior_units=targets["target_units"],
    )
    processor.add_session(recording.session_id, recording.unit_ids)
    place = folder / f"{preset}-{bin_size}"
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@contextmanager
def opened(checkpoint: Path, recording: Path) -> Iterator[Any]:
    """Opens the page with a decoder and an uploaded recording."""
    from playwright.sync_api import sync_playwright

    blocks = make_page([str(checkpoint)])
    _, address, _ = launch(blocks, prevent_thread_lock=True)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.wait_for_selector("#facts dl", timeout=60_000)
            with page.expect_file_chooser() as chosen:
                page.click("#upload")
            chosen.value.set_files(str(recording))
            page.wait_for_function(f"document.querySelector('#facts').innerText.includes('{NUM_UNITS}, ')")
            page.wait_for_function("document.querySelector('#message').innerText.trim() == ''")
            yield page
            browser.close()
    finally:
        blocks.close(verbose=False)


def simulated(folder: Path) -> tuple[Recording, Path]:
    """Simulates 100 units and a good minute, and writes it as NWB."""
    options: dict[str, Any] = {"num_units": NUM_UNITS, "num_trials": 30, "seed": 7}
    recording = simulate(num_subjects=1, sessions_per_subject=1, **options)[0]
    return recording, write_nwb(recording, folder / "units100.nwb")


def measure_decoding(options: argparse.Namespace) -> None:
    """Times the click on Decode to the last bin that is drawn."""
    cases = (
        [("tiny", 0.05)] if options.quick else [("tiny", 0.05), ("tiny", 0.02), ("rpnt-microelectrode", 0.05)]
    )
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        recording, path = simulated(Path(temporary))
        for preset, bin_size in cases:
            with opened(make_decoder(Path(temporary), preset, bin_size, recording), path) as page:
                page.get_by_label("As fast as it goes").check()
                turns = [page.evaluate(DECODE) for _ in range(1 if options.quick else 5)]
            seconds = [turn[0] / 1000 for turn in turns]
            rows.append(
                {
                    "preset": preset,
                    "bin (ms)": 1000 * bin_size,
                    "bins": turns[0][1],
                    "first (s)": seconds[0],
                    "median (s)": statistics.median(seconds),
                    "longest (s)": max(seconds),
                    "target (s)": DECODE_TARGET,
                }
            )
    print_table(f"60 s of {NUM_UNITS} units decoded in the page", rows)
    save_results(options.out, "app_decode", rows)


def measure_controls(options: argparse.Namespace) -> None:
    """Times controls, from their change to the new drawing."""
    number = "input[type=number]"
    cases: list[tuple[str, str, str, str, list[Any]]] = [
        ("raster, from", "Recording", f"#window-start {number}", "recording", [3, 7, 12, 20, 30]),
        ("raster, 60 s", "Recording", "#window-seconds label:nth-child(4) input", "recording", [None]),
        ("attention, from", "Attention", f"#att-start {number}", "attention", [3, 7, 12, 20, 30]),
        ("metadata, day", "Metadata", f"#axis-day {number}", "metadata", [5, 20, 40, 60, 80]),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        recording, path = simulated(Path(temporary))
        with opened(make_decoder(Path(temporary), "tiny", 0.05, recording), path) as page:
            for name, tab, selector, view, values in cases:
                page.get_by_role("tab", name=tab).click()
                page.wait_for_selector(f"#view-{view} canvas")
                page.wait_for_timeout(500)
                turns = [page.evaluate(CHANGE, [selector, value, view]) for value in values]
                own = [total - model for total, model in turns]
                rows.append(
                    {
                        "control": name,
                        "median (ms)": statistics.median(own),
                        "longest (ms)": max(own),
                        "model (ms)": statistics.median([turn[1] for turn in turns]),
                        "target (ms)": CONTROL_TARGET,
                    }
                )
    print_table("A control to the new drawing, without the model", rows)
    save_results(options.out, "app_controls", rows)


def main() -> None:
    """Runs the chosen parts."""
    parts = {"decode": measure_decoding, "controls": measure_controls}
    options = make_parser(__doc__, parts).parse_args()
    torch.set_num_threads(1)
    for name in options.parts:
        parts[name](options)


if __name__ == "__main__":
    main()
