"""A ring of numbered records in shared memory: one process writes, one reads, and neither waits.

Needs numpy alone, so that an acquisition process can use it without torch. A record is one bin: counts, or
decoded values. A writer that is a whole ring ahead overwrites what was not read; the reader notices, because
every slot carries the number of its record, before and after it was copied.

Written for one writer and one reader on a machine that keeps the order of stores (x86-64).
"""

import sys
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = np.dtype([("length", "<i8"), ("slots", "<i8"), ("written", "<i8"), ("closed", "<i8")])


class SharedRing:
    """A ring in a block of shared memory that one process creates and another attaches to.

    Args:
        name (`str`): Name of the block, the same in both processes.
        length (`int`): Values in a record; both sides must agree.
        dtype (`str`): Their type, such as "<u2".
        slots (`int`, *optional*): Records that the ring holds. Given, the block is created (and removed by
            `close`); None attaches to one.

    Raises:
        FileNotFoundError: There is no block of that name to attach to, or it is not ready yet.
        ValueError: The block holds records of another length.
    """

    def __init__(self, name: str, length: int, dtype: str, slots: int | None = None) -> None:
        record = np.dtype([("number", "<i8"), ("values", dtype, (length,))])
        self.is_owner = slots is not None
        if slots is not None:
            size = HEADER.itemsize + slots * record.itemsize
            self.memory = shared_memory.SharedMemory(name, create=True, size=size)
        else:
            self.memory = _attached(name)
        self.header = np.ndarray((), HEADER, self.memory.buf)
        if slots is not None:
            self.header[()] = (0, slots, 0, 0)  # a length of 0: not ready
        elif not self.header["length"]:
            self.close()
            raise FileNotFoundError(f"The ring '{name}' is not ready.")
        elif self.header["length"] != length:
            found = int(self.header["length"])
            self.close()
            raise ValueError(
                f"Records of '{name}' must hold {length} values, got {found}. Both sides must count the same "
                "units."
            )
        num_slots = int(self.header["slots"])
        self.slots = np.ndarray((num_slots,), record, self.memory.buf, HEADER.itemsize)
        if self.is_owner:
            self.slots["number"] = -1
            self.header["length"] = length
        self.next_number = 0

    def write(self, values: NDArray[Any]) -> None:
        """Writes the next record; never waits."""
        number = int(self.header["written"])
        slot = self.slots[number % len(self.slots)]
        slot["number"] = -1  # a reader that copies the slot now sees that it changes
        slot["values"] = values
        slot["number"] = number
        self.header["written"] = number + 1

    def read(self) -> tuple[int, NDArray[Any]] | None:
        """Reads the oldest record that was not read and is still there.

        Returns:
            `tuple[int, np.ndarray]`: Its number and a copy of its values; None where there is nothing new. A
            number that jumps says how many records were overwritten before they were read.
        """
        while self.next_number < (written := int(self.header["written"])):
            number = max(self.next_number, written - len(self.slots))
            slot = self.slots[number % len(self.slots)]
            values = slot["values"].copy()
            self.next_number = number + 1
            if slot["number"] == number:
                return number, values
        return None

    @property
    def is_closed(self) -> bool:
        """`bool`: True where the writer has ended; what it wrote before may still be read."""
        return bool(self.header["closed"])

    def end(self) -> None:
        """Says that no more records come."""
        self.header["closed"] = 1

    def close(self) -> None:
        """Lets go of the block; its owner removes it."""
        self.header = self.slots = None  # type: ignore[assignment]
        self.memory.close()
        if self.is_owner:
            self.memory.unlink()


def _attached(name: str) -> shared_memory.SharedMemory:
    """Attaches to a block that another process owns."""
    try:
        if sys.version_info >= (3, 13):
            return shared_memory.SharedMemory(name, track=False)
        memory = shared_memory.SharedMemory(name)
    except ValueError as error:  # made, but still empty
        raise FileNotFoundError(f"The ring '{name}' is not ready.") from error
    # Before 3.13 a process that only attached would remove the block when it ends.
    resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
    return memory
