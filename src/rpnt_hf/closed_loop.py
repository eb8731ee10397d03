"""A decoder for numbered bins, as they come from acquisition systems: some get lost, some arrive late.

For labs and the scripts of `examples/`. The decoder itself is in `streaming.py`; transports are not here.
"""

import logging
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .hub import load_decoder
from .streaming import StreamingDecoder

logger = logging.getLogger(__name__)

__all__ = ["ClosedLoop", "take_first_steps"]

# The first steps of a process are slow: they are taken before the first bin comes.
WARM_UP_BINS = 20


def take_first_steps(decoder: StreamingDecoder, bin_size: float) -> float:
    """Takes the slow first steps of a process, then forgets them: the next bin is the first of the stream.

    Args:
        decoder ([`StreamingDecoder`]): The decoder; it is reset.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `float`: How long before a bin `decoder.warm_up` should begin, in s; 0 where steps take so much of a
        bin that there is no time for it.
    """
    nothing = np.zeros((decoder.batch_size, *decoder.unit_index.shape), dtype=np.uint8)
    seconds = []
    for _ in range(WARM_UP_BINS):
        began = time.perf_counter()
        decoder.step(nothing)
        seconds.append(time.perf_counter() - began)
    decoder.reset()
    # With cold caches a step takes about three times as long as here.
    lead = 1e-3 + 4 * statistics.median(seconds)
    return lead if lead <= bin_size / 2 else 0.0


class ClosedLoop:
    """Decodes numbered bins and keeps time where some are missing.

    A bin that never came is taken as one in which nothing was recorded, so that later bins stand where they
    belong. A bin whose number has passed is too late and is not decoded.

    Args:
        checkpoint (`str`): Folder, name of a reference checkpoint, or Hub id of a decoder with its processor.
        session_id (`str`): Session of the checkpoint whose units come in.
        max_missing (`int`, *optional*, defaults to 100):
            Bins that may be missing in a row. After more the decoder starts afresh, which takes less time.
        **decoder_options: Further arguments of [`StreamingDecoder`].

    Raises:
        CheckpointError: There is no such checkpoint, it is broken, or it holds no decoder.
        InputError: The session is not known.
        ConfigurationError: The decoder cannot run on a stream.
    """

    def __init__(
        self, checkpoint: str, session_id: str, max_missing: int = 100, **decoder_options: Any
    ) -> None:
        model, self.processor = load_decoder(checkpoint)
        self.decoder = StreamingDecoder(model, self.processor, session_id, **decoder_options)
        self.unit_ids = self.processor.sessions[session_id]
        self.target_names = list(model.config.target_names or ())
        self.num_targets = int(model.config.num_targets)
        self.max_missing = max_missing
        self.num_decoded = self.num_missing = self.num_late = 0
        self.next_number: int | None = None
        self._nothing = np.zeros(len(self.unit_ids), dtype=np.uint16)
        self._no_site = np.zeros(self.decoder.num_sites, dtype=bool)
        self._lead = take_first_steps(self.decoder, self.bin_size)
        self._warm_up_at: float | None = None

    @property
    def bin_size(self) -> float:
        """`float`: width of a bin in s that the weights were trained at."""
        return self.processor.bin_size

    def step(self, number: int, counts: NDArray[Any]) -> NDArray[np.float32] | None:
        """Decodes the bin of a number.

        Args:
            number (`int`): Number of the bin; counts up by one. The first may be any.
            counts (`np.ndarray` of shape `(units,)`): Spikes in the bin, in the order of `unit_ids`.

        Returns:
            `np.ndarray` of shape `(K,)`, float32: Decoded behaviour; None where the bin came too late.

        Raises:
            InputError: Counts of another number of units, negative or not finite; the stream stays as it was.
        """
        arrived = time.perf_counter()
        counts = np.asarray(counts)
        if counts.shape != self._nothing.shape:
            raise InputError(
                f"A bin must hold the counts of {len(self.unit_ids)} units, got shape {counts.shape} in bin "
                f"{number}. Send the units in the order of `processor.sessions[session_id]`."
            )
        missing = 0 if self.next_number is None else number - self.next_number
        if missing < 0:
            self.num_late += 1
            logger.warning("Bin %d came too late, after %d.", number, number - missing - 1)
            return None
        if missing:
            self.num_missing += missing
            logger.warning("%d bins before bin %d are missing.", missing, number)
        if missing > self.max_missing:
            self.decoder.reset()
            missing = 0
        for _ in range(missing):
            self.decoder.step(self._nothing, site_mask=self._no_site)
        prediction = self.decoder.step(counts).float().cpu().numpy()
        self.next_number = number + 1
        self.num_decoded += 1
        self._warm_up_at = arrived + self.bin_size - self._lead if self._lead else None
        return prediction

    def idle(self) -> float | None:
        """Does what is due while no bin is there: it warms the decoder up shortly before the next one.

        In a loop that never calls it, steps find the weights outside of the caches and take longer. It
        changes nothing else. A bin that comes while it runs waits for one step.

        Returns:
            `float` or `None`: Seconds to wait for a bin before calling this again; None where nothing is left
            to do before the next bin.
        """
        if self._warm_up_at is None:
            return None
        wait = self._warm_up_at - time.perf_counter()
        if wait > 0:
            return wait
        self._warm_up_at = None
        if wait > -self._lead / 2:  # later it would be in the way of the bin
            self.decoder.warm_up()
        return None

    def summary(self) -> str:
        """`str`: What happened to the bins so far, in one line."""
        return f"{self.num_decoded} bins decoded, {self.num_missing} missing, {self.num_late} too late"
