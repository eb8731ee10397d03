"""Plays counts to one of the closed-loop examples and keeps the answers: an amplifier, for trying them out.

    python examples/play_counts.py counts.npy --udp 5005 --bin-size 0.05
    python examples/play_counts.py counts.npy --shared-memory counts --bin-size 0.05 --out decoded.npy

`counts.npy` holds an array of bins x units, such as `recording.bin_spikes(0.05)[0].counts`. Start the decoder
first (with shared memory: either). Answers are written as bins x targets, NaN where none came.
"""

import argparse
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bins = Iterator[tuple[int, NDArray[np.uint16]]]
Answers = dict[int, NDArray[np.float64]]


def paced(counts: NDArray[np.uint16], bin_size: float, skip: set[int]) -> Bins:
    """Yields the number and counts of each bin when it ends, but for those to skip."""
    began = time.perf_counter()
    for number, row in enumerate(counts):
        time.sleep(max(began + (number + 1) * bin_size - time.perf_counter(), 0))
        if number not in skip:
            yield number, row


def play_socket(bins: Bins, port: int, tcp: bool, timeout: float) -> Answers:
    """Sends packets and takes an answer to each."""
    answers: Answers = {}
    kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as link:
        link.settimeout(timeout)
        link.connect(("127.0.0.1", port))
        for number, counts in bins:
            packet = struct.pack("<I", number) + counts.astype("<u2").tobytes()
            if tcp:
                link.sendall(struct.pack("<I", len(packet)) + packet)
                reply = link.recv(
                    struct.unpack("<I", link.recv(4, socket.MSG_WAITALL))[0], socket.MSG_WAITALL
                )
            else:
                link.send(packet)
                reply = link.recv(65535)
            answers[struct.unpack_from("<I", reply)[0]] = np.frombuffer(reply, "<f4", offset=4).astype(float)
        if not tcp:
            link.send(b"")
    return answers


def play_shared_memory(
    bins: Bins, name: str, num_units: int, num_targets: int, slots: int, timeout: float
) -> Answers:
    """Writes a ring of counts and reads the ring of decoded values."""
    from shared_ring import SharedRing

    answers: Answers = {}
    counts = SharedRing(name, num_units, "<u2", slots=slots)
    decoded: SharedRing | None = None
    give_up = time.monotonic() + timeout
    try:
        while decoded is None:
            try:
                decoded = SharedRing(f"{name}_decoded", 1 + num_targets, "<f8")
            except FileNotFoundError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
        for _, row in bins:
            counts.write(row)
            while (record := decoded.read()) is not None:
                answers[int(record[1][0])] = record[1][1:]
        counts.end()
        while not decoded.is_closed and time.monotonic() < give_up:
            time.sleep(0.01)
        while (record := decoded.read()) is not None:
            answers[int(record[1][0])] = record[1][1:]
    finally:
        if decoded is not None:
            decoded.close()
        counts.close()
    return answers


def play_lsl(bins: Bins, name: str, num_units: int, bin_size: float, timeout: float) -> Answers:
    """Sends an LSL stream and takes the sample that answers each bin."""
    import pylsl

    answers: Answers = {}
    info = pylsl.StreamInfo(name, "Counts", num_units, 1 / bin_size, pylsl.cf_int32, name)
    outlet = pylsl.StreamOutlet(info)
    found = pylsl.resolve_byprop("name", f"{name}_decoded", timeout=timeout)
    if not found:
        sys.exit(f"error: an LSL stream '{name}_decoded' must be there, got none within {timeout} s.")
    inlet = pylsl.StreamInlet(found[0])
    inlet.open_stream(timeout=timeout)
    began = pylsl.local_clock()
    for number, row in bins:
        outlet.push_sample(row.tolist(), began + number * bin_size)
        sample, stamp = inlet.pull_sample(timeout=timeout)
        if sample is not None:
            answers[round((stamp - began) / bin_size)] = np.asarray(sample)
    return answers


def main() -> None:
    """Reads the options, plays and writes the answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("counts", type=Path, help=".npy file of bins x units")
    transport = parser.add_mutually_exclusive_group(required=True)
    transport.add_argument("--udp", type=int, metavar="PORT", help="send UDP packets")
    transport.add_argument("--tcp", type=int, metavar="PORT", help="send over a TCP connection")
    transport.add_argument("--shared-memory", metavar="NAME", help="write a ring in shared memory")
    transport.add_argument("--lsl", metavar="NAME", help="send an LSL stream")
    parser.add_argument("--bin-size", type=float, default=0.05, help="width of a bin in s")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than real time")
    parser.add_argument("--num-targets", type=int, default=2, help="decoded values per bin")
    parser.add_argument("--slots", type=int, default=256, help="bins that the ring in shared memory holds")
    parser.add_argument("--skip", type=int, nargs="*", default=(), metavar="BIN", help="bins to lose")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for the decoder")
    parser.add_argument("--out", type=Path, metavar="FILE.npy", help="where to write the answers")
    options = parser.parse_args()
    counts = np.load(options.counts).astype(np.uint16)
    bins = paced(counts, options.bin_size / options.speed, set(options.skip))
    if options.shared_memory:
        answers = play_shared_memory(
            bins, options.shared_memory, counts.shape[1], options.num_targets, options.slots, options.timeout
        )
    elif options.lsl:
        answers = play_lsl(bins, options.lsl, counts.shape[1], options.bin_size, options.timeout)
    else:
        port = options.udp if options.tcp is None else options.tcp
        answers = play_socket(bins, port, options.tcp is not None, options.timeout)
    decoded = np.full((len(counts), options.num_targets), np.nan)
    for number, values in answers.items():
        decoded[number] = values
    if options.out is not None:
        np.save(options.out, decoded)


if __name__ == "__main__":
    main()
