"""Decodes counts from a ring in shared memory and writes the decoded velocity into another one.

    python examples/closed_loop_shared_memory.py CHECKPOINT SESSION --name counts

The acquisition process creates the ring `counts` of uint16 counts, one record for each bin, units in the
order of `processor.sessions[SESSION]`; `shared_ring.py` is all it needs. Decoded values come in the ring
`counts_decoded`: the number of the bin, then float64 values. A bin that was overwritten before it was read
is reported as missing, never passed over in silence.
"""

import argparse
import logging
import sys
import time

import numpy as np
from shared_ring import SharedRing

from rpnt_hf.closed_loop import ClosedLoop
from rpnt_hf.errors import RPNTError

logger = logging.getLogger("closed_loop_shared_memory")

POLL_SECONDS = 2e-4


def attach(name: str, num_units: int, timeout: float) -> SharedRing:
    """Waits for the ring of the acquisition process."""
    give_up = time.monotonic() + timeout
    while True:
        try:
            return SharedRing(name, num_units, "<u2")
        except FileNotFoundError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def main() -> None:
    """Reads the options and runs the loop until the writer ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a decoder")
    parser.add_argument("session_id", metavar="session", help="session of the checkpoint whose units come in")
    parser.add_argument("--name", default="counts", help="name of the ring of counts")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for that ring")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loop = ClosedLoop(options.checkpoint, options.session_id)
    counts = attach(options.name, len(loop.unit_ids), options.timeout)
    # What is written from here on is to be decoded: a bin that is lost before the first read counts, too.
    loop.next_number = counts.next_number = int(counts.header["written"])
    decoded = SharedRing(f"{options.name}_decoded", 1 + loop.num_targets, "<f8", slots=len(counts.slots))
    logger.info("ready: shared memory %s", options.name)
    try:
        while True:
            ended = counts.is_closed  # asked first: what was written before the end is still read
            record = counts.read()
            if record is not None:
                velocity = loop.step(*record)
                if velocity is not None:
                    decoded.write(np.array([record[0], *velocity]))
            elif ended:
                break
            else:
                loop.idle()  # warms the decoder up shortly before the next bin is due
                time.sleep(POLL_SECONDS)
        decoded.end()
        logger.info(loop.summary())
    finally:
        decoded.close()
        counts.close()


if __name__ == "__main__":
    try:
        main()
    except (RPNTError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
