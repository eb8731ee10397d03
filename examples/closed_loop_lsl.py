"""Decodes counts from an LSL stream and sends the decoded velocity as another one.

    pip install 'rpnt_hf[lsl]'
    python examples/closed_loop_lsl.py CHECKPOINT SESSION --name counts

The stream `counts` has one channel for each unit, in the order of `processor.sessions[SESSION]`, and one
sample for each bin. Samples are stamped with the time of their bin: a step of more than one and a half bins
between two stamps means missing bins. Decoded values go out as the stream `counts_decoded`, with the stamps
of their bins. The loop ends where no sample comes for `--timeout` seconds.
"""

import argparse
import logging
import sys

import numpy as np
import pylsl

from rpnt_hf.closed_loop import ClosedLoop
from rpnt_hf.errors import InputError, RPNTError

logger = logging.getLogger("closed_loop_lsl")


def open_inlet(loop: ClosedLoop, name: str, timeout: float) -> pylsl.StreamInlet:
    """Finds the stream by its name and checks that it carries the counts of these units at this rate."""
    found = pylsl.resolve_byprop("name", name, timeout=timeout)
    if not found:
        raise InputError(
            f"An LSL stream '{name}' must be there, got none within {timeout} s. Start it first."
        )
    info, num_units = found[0], len(loop.unit_ids)
    if info.channel_count() != num_units:
        raise InputError(
            f"LSL stream '{name}' must have {num_units} channels, one for each unit, got "
            f"{info.channel_count()}. Send the units in the order of `processor.sessions`."
        )
    rate = info.nominal_srate()
    if rate and abs(rate * loop.bin_size - 1) > 1e-3:
        raise InputError(
            f"LSL stream '{name}' must have a sample for each bin of {loop.bin_size} s, got {rate} samples a "
            "second. Count spikes in such bins."
        )
    inlet = pylsl.StreamInlet(info)
    inlet.open_stream(timeout=timeout)
    return inlet


def pull(loop: ClosedLoop, inlet: pylsl.StreamInlet, timeout: float) -> tuple[list[float] | None, float]:
    """Waits for a sample, and warms the decoder up shortly before it is due."""
    wait = loop.idle()
    if wait is not None:
        sample, stamp = inlet.pull_sample(timeout=wait)
        if sample is not None:
            return sample, stamp
        loop.idle()
    return inlet.pull_sample(timeout=timeout)


def main() -> None:
    """Reads the options and runs the loop until the stream ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a decoder")
    parser.add_argument("session_id", metavar="session", help="session of the checkpoint whose units come in")
    parser.add_argument("--name", default="counts", help="name of the LSL stream of counts")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for stream and samples")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loop = ClosedLoop(options.checkpoint, options.session_id)
    inlet = open_inlet(loop, options.name, options.timeout)
    outlet = pylsl.StreamOutlet(
        pylsl.StreamInfo(
            f"{options.name}_decoded", "Velocity", loop.num_targets, 1 / loop.bin_size, pylsl.cf_float32
        )
    )
    logger.info("ready: lsl %s", options.name)
    number, last = -1, None
    while True:
        sample, stamp = pull(loop, inlet, options.timeout)
        if sample is None:
            break
        # Counted from the bin before, not from the first one: clocks drift.
        number += 1 if last is None else max(round((stamp - last) / loop.bin_size), 1)
        last = stamp
        velocity = loop.step(number, np.asarray(sample))
        if velocity is not None:
            outlet.push_sample(velocity.tolist(), stamp)
    logger.info(loop.summary())


if __name__ == "__main__":
    try:
        main()
    except RPNTError as error:
        sys.exit(f"error: {error}")
