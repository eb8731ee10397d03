"""What one visitor of the page has before them: a recording, a decoder, and files that go when they go.

Nothing here is shared between visitors, and nothing knows of Gradio. Not for drawing: that is `views.py`.
"""

import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rpnt_hf.data.nwb import Recording, read_nwb
from rpnt_hf.data.simulate import simulate
from rpnt_hf.decoding import decode_recording, score_table
from rpnt_hf.errors import CheckpointError, InputError, RecordingError, RPNTError
from rpnt_hf.hub import load_decoder
from rpnt_hf.replay import session_of_recording
from rpnt_hf.scripts import find_reference_checkpoint

__all__ = ["BUNDLED_DECODER", "SIMULATED", "Session"]

BUNDLED_DECODER = "rpnt-tiny-synthetic-decoder"


@dataclass(frozen=True)
class _Simulated:
    """A recording that the page simulates: arguments of `simulate`, and which of the sessions it is."""

    options: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0


SIMULATED = {
    "Center-out, one site (the bundled decoder's session)": _Simulated(),
    "Center-out, another day of the same subject": _Simulated({"sessions_per_subject": 2}, number=1),
    "Center-out, three sites (train a decoder of it)": _Simulated(
        {"num_sites": 3, "num_units": 32, "seed": 1}
    ),
}


class Session:
    """One visitor's recording and decoder.

    Args:
        allow_folders (`bool`, *optional*, defaults to `True`): Whether a checkpoint may be a folder of the
            machine that serves the page; otherwise only bundled ones and those of the Hub.
        offered (`Sequence[str]`, *optional*, defaults to `()`): Checkpoints that the page offers, which may
            be folders in any case.
    """

    def __init__(self, allow_folders: bool = True, offered: Sequence[str] = ()) -> None:
        self.allow_folders = allow_folders
        self.offered = list(offered)
        self.lock = threading.RLock()
        self.recording: Recording | None = None
        self.recording_name = ""
        self.remark: str | None = None
        self.uploaded: tuple[str, Recording] | None = None
        self.checkpoint = ""
        self.model: Any = None
        self.processor: Any = None
        self.trained: dict[str, Path] = {}
        self.training: Any = None
        self.attention: Any = None
        self.live_run = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._decoded: pd.DataFrame | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """Gives a visitor an empty session of their own: Gradio copies the initial one for each."""
        return Session(self.allow_folders, self.offered)

    @property
    def folder(self) -> Path:
        """`Path`: folder of this visitor's files, made when it is first needed."""
        if self._folder is None:  # goes with this object, at the latest when the server ends
            self._folder = tempfile.TemporaryDirectory(prefix="rpnt-app-", ignore_cleanup_errors=True)
        return Path(self._folder.name)

    def close(self) -> None:
        """Ends what runs and removes this visitor's files."""
        self.live_run += 1
        if self.training is not None:
            self.training.cancel()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def open_recording(self, name: str) -> None:
        """Takes one of the recordings that are offered: simulated, or uploaded before.

        Args:
            name (`str`): A key of `SIMULATED`, or the name under which a file was uploaded.

        Raises:
            RecordingError: There is none of that name.
        """
        if self.uploaded is not None and name == self.uploaded[0]:
            recording = self.uploaded[1]
        elif name in SIMULATED:
            chosen = SIMULATED[name]
            options = {"num_subjects": 1, "sessions_per_subject": 1, **chosen.options}
            recording = simulate(**options)[chosen.number]
        else:
            raise RecordingError(f"A recording must be one of {', '.join(SIMULATED)}, got '{name}'.")
        self._take(name, recording)

    def open_upload(self, path: str | Path) -> str:
        """Reads an uploaded NWB file and removes it; a file that cannot be read leaves all as it was.

        Spikes that are out of order or come twice are repaired, and `remark` says so.

        Args:
            path (`str` or `Path`): Where the upload lies.

        Returns:
            `str`: The name under which it is known from now on.

        Raises:
            RecordingError: It is not NWB, truncated, or breaks a rule of recordings.
        """
        path, remark = Path(path), None
        try:
            try:
                recording = read_nwb(path)
            except RecordingError as error:
                # The visitor knows the file by its name, not by where this machine put it.
                remark = str(error).replace(str(path), path.name)
                try:
                    recording = read_nwb(path, repair_spikes=True)
                except RecordingError:
                    raise RecordingError(remark) from error
                remark += " This page has done so."
        finally:
            path.unlink(missing_ok=True)
        name = f"Uploaded: {path.name}"
        self.uploaded = (name, recording)
        self._take(name, recording)
        self.remark = remark
        return name

    def _take(self, name: str, recording: Recording) -> None:
        with self.lock:
            self.live_run += 1
            self.recording_name, self.recording, self.remark = name, recording, None
            self._decoded = self.attention = None

    def open_checkpoint(self, name: str) -> None:
        """Loads a decoder; one that cannot be loaded leaves the present one.

        Args:
            name (`str`): Bundled name, id on the Hub, a decoder that was trained here, or a folder.

        Raises:
            CheckpointError: There is no such decoder, or folders are not allowed here.
            HubError: The Hub cannot be reached, or refuses.
        """
        name = (name or "").strip()
        if not name:
            raise CheckpointError(
                "CHECKPOINT must be a bundled decoder, a folder, or OWNER/NAME on the Hub, got nothing."
            )
        place: str | Path = self.trained.get(name, name)
        is_known = name in self.trained or name in self.offered or find_reference_checkpoint(name) is not None
        if not self.allow_folders and not is_known:
            repo_id = name.partition("@")[0]
            if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")) or Path(name).exists():
                raise CheckpointError(
                    f"CHECKPOINT must be {BUNDLED_DECODER} or OWNER/NAME of a decoder on the Hub, got "
                    f"'{name}'. Folders are for pages that you start yourself: rpnt app --checkpoint FOLDER"
                )
        model, processor = load_decoder(place)
        with self.lock:
            self.live_run += 1
            self.checkpoint, self.model, self.processor = name, model.eval(), processor
            self._decoded = self.attention = None

    def loaded(self) -> tuple[Recording, Any, Any]:
        """Gives recording, model and processor.

        Returns:
            `tuple`: All three.

        Raises:
            InputError: One of them has not been chosen yet.
        """
        if self.recording is None or self.model is None:
            missing = "a recording" if self.recording is None else "a decoder"
            raise InputError(f"The page must have {missing} first, got none. Choose one at the top.")
        return self.recording, self.model, self.processor

    def obstacle(self) -> str | None:
        """Says why the decoder cannot decode the recording.

        Returns:
            `str` or `None`: One paragraph; None where it can.
        """
        recording, _, processor = self.loaded()
        try:
            session_of_recording(processor, recording)
        except RPNTError as error:
            return str(error)
        return None

    def scores(self) -> dict[str, Any] | None:
        """Scores the decoder on the whole recording, fitted bins apart.

        Returns:
            `dict` or `None`: What `decoding.score_table` gives; None where it cannot decode the recording.
        """
        recording, model, processor = self.loaded()
        if self._decoded is None:
            if self.obstacle() is not None:
                return None
            with self.lock:
                self._decoded = decode_recording(model, processor, recording)
        return score_table(self._decoded)

    def checkpoints(self) -> list[str]:
        """Lists the decoders that this visitor can choose by name.

        Returns:
            `list[str]`: Those trained here, those that the page offers, and the bundled one.
        """
        return list(dict.fromkeys([*self.trained, *self.offered, BUNDLED_DECODER]))
