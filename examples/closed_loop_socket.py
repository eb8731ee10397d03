"""Decodes counts that arrive over UDP or TCP and sends the decoded velocity back.

    python examples/closed_loop_socket.py CHECKPOINT SESSION --port 5005
    python examples/closed_loop_socket.py CHECKPOINT SESSION --port 5005 --tcp

One packet is one bin: its number (uint32) and the count of each unit (uint16), little-endian, units in the
order of `processor.sessions[SESSION]`. The answer is the number of the bin and the decoded values (float32).
Over TCP, packets and answers follow their length in bytes (uint32). An empty packet, or the end of the
connection, ends the loop.
"""

import argparse
import logging
import select
import socket
import struct
import sys
from collections.abc import Callable

import numpy as np

from rpnt_hf.closed_loop import ClosedLoop
from rpnt_hf.errors import InputError, RPNTError

logger = logging.getLogger("closed_loop_socket")


def answer(loop: ClosedLoop, packet: bytes) -> bytes | None:
    """Decodes one packet; None where it came too late."""
    expected = 4 + 2 * len(loop.unit_ids)
    if len(packet) != expected:
        raise InputError(
            f"A packet must hold {expected} bytes, a uint32 number and a uint16 count for each of "
            f"{len(loop.unit_ids)} units, got {len(packet)} bytes. Check the units that the sender counts."
        )
    (number,) = struct.unpack_from("<I", packet)
    velocity = loop.step(number, np.frombuffer(packet, "<u2", offset=4))
    return None if velocity is None else struct.pack("<I", number) + velocity.astype("<f4").tobytes()


def wait_for_packet(loop: ClosedLoop, connection: socket.socket) -> None:
    """Waits, and warms the decoder up shortly before the next bin is due."""
    while not select.select([connection], [], [], loop.idle())[0]:
        pass


def serve_udp(loop: ClosedLoop, port: int) -> None:
    """Answers every packet to where it came from."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        logger.info("ready: udp port %d", server.getsockname()[1])
        while True:
            wait_for_packet(loop, server)
            packet, sender = server.recvfrom(65535)
            if not packet:
                return
            reply = answer(loop, packet)
            if reply is not None:
                server.sendto(reply, sender)


def serve_tcp(loop: ClosedLoop, port: int) -> None:
    """Answers the packets of one connection."""
    with socket.create_server(("127.0.0.1", port)) as server:
        logger.info("ready: tcp port %d", server.getsockname()[1])
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # send answers at once
        wait_for_packet(loop, connection)
        while len(head := connection.recv(4, socket.MSG_WAITALL)) == 4:
            (length,) = struct.unpack("<I", head)
            reply = answer(loop, connection.recv(length, socket.MSG_WAITALL)) if length else None
            if not length:
                return
            if reply is not None:
                connection.sendall(struct.pack("<I", len(reply)) + reply)
            wait_for_packet(loop, connection)


def main() -> None:
    """Reads the options and runs the loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or Hub id of a decoder")
    parser.add_argument("session_id", metavar="session", help="session of the checkpoint whose units come in")
    parser.add_argument("--port", type=int, default=5005, help="port to listen on; 0 takes a free one")
    parser.add_argument("--tcp", action="store_true", help="TCP in place of UDP")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    loop = ClosedLoop(options.checkpoint, options.session_id)
    serve: Callable[[ClosedLoop, int], None] = serve_tcp if options.tcp else serve_udp
    serve(loop, options.port)
    logger.info(loop.summary())


if __name__ == "__main__":
    try:
        main()
    except RPNTError as error:
        sys.exit(f"error: {error}")
