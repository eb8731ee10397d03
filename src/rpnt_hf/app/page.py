"""The layout of the page and what its controls do, in Gradio.

What happens behind a control is in the modules beside this one; here are only components and the wiring
between them. Nothing is fetched from elsewhere: no telemetry, no fonts, no scripts.
"""

import functools
import inspect
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from rpnt_hf.configuration_rpnt import AXIS_UNITS, SITE_AXES
from rpnt_hf.data.nwb import Recording
from rpnt_hf.decoding import target_names, target_unit
from rpnt_hf.errors import CheckpointError, InputError, RPNTError
from rpnt_hf.processing_rpnt import METADATA_AXES

from .finetuning import SCRATCH, init_for_training, pack_decoder, start_training
from .live import SPEEDS, decode_live
from .probe import (
    INDEX_AXES,
    UNKNOWN,
    active_axes,
    attention_view,
    axis_range,
    changed_metadata,
    known_values,
    metadata_view,
    probe_window,
    recorded_metadata,
    shown_value,
    unknown_name,
)
from .session import SIMULATED, Session
from .sites import connectivity_maps, sites_view
from .views import (
    default_series,
    describe_scores,
    facts_html,
    observed_span,
    recording_facts,
    recording_window,
)
from .words import (
    EXPLAIN,
    HEAD,
    advise,
    describe_outcome,
    describe_progress,
    note,
    text,
    tiles,
    training_view,
)

__all__ = ["DEFAULT_MAX_UPLOAD", "launch", "make_page"]

DEFAULT_MAX_UPLOAD = "500mb"
FROM_DECODER, FROM_SCRATCH = "the decoder above", "scratch"
MEAN = "mean of heads"

# What a view gets where it is to stay as it is: `gr.skip` would be taken for one of its properties.
KEEP = {"keep": True}

Updates = dict[Any, Any]


def _view(kind: str, elem_id: str | None = None) -> gr.HTML:
    """Makes a view that `canvas.js` draws; its value is a message, or KEEP to leave it as it is."""
    return gr.HTML(
        value=None,
        html_template=f'<div class="rpnt-view" data-kind="{kind}"></div>',
        js_on_load="window.rpnt.attach(element, props, watch)",
        apply_default_css=False,
        elem_id=elem_id or f"view-{kind}",
    )


def _moment_slider(label: str, elem_id: str, scale: int) -> gr.Slider:
    return gr.Slider(0, 1, 0, step=0.5, label=label, scale=scale, elem_id=elem_id)


class _Page:
    """The components of one page, and their handlers; whatever belongs to a visitor is in their session."""

    def __init__(
        self, blocks: gr.Blocks, checkpoints: Sequence[str], allow_folders: bool, max_steps: int
    ) -> None:
        self.blocks = blocks
        self.max_steps = max_steps
        visitor = Session(allow_folders, checkpoints)
        self.session = gr.State(visitor, delete_callback=Session.close)  # each visitor gets a new one
        gr.HTML(HEAD, apply_default_css=False)
        self._lay_out_choice(visitor)
        with gr.Tabs():
            with gr.Tab("Decode", id="decode", render_children=True):
                self._lay_out_decoding()
            with gr.Tab("Recording", id="recording", render_children=True):
                self._lay_out_recording()
            with gr.Tab("Attention", id="attention", render_children=True):
                self._lay_out_attention()
            with gr.Tab("Sites", id="sites", render_children=True) as self.sites_tab:
                gr.Markdown(EXPLAIN["sites"], elem_classes="rpnt-explain")
                self.sites = _view("sites")
            with gr.Tab("Metadata", id="metadata", render_children=True):
                self._lay_out_metadata()
            with gr.Tab("Finetune", id="finetune", render_children=True):
                self._lay_out_finetuning()
        self._wire()

    # Layout

    def _lay_out_choice(self, visitor: Session) -> None:
        with gr.Row(equal_height=True):
            self.recording = gr.Dropdown(
                list(SIMULATED),
                value=next(iter(SIMULATED)),
                label="Recording",
                scale=5,
                min_width=300,
                elem_id="recording",
            )
            self.upload = gr.UploadButton("Upload NWB file", scale=2, min_width=150, elem_id="upload")
            self.checkpoint = gr.Dropdown(
                visitor.checkpoints(),
                value=visitor.checkpoints()[0],
                label="Decoder, or OWNER/NAME on the Hub"
                + (", or a folder" if visitor.allow_folders else ""),
                allow_custom_value=True,
                scale=5,
                min_width=300,
                elem_id="checkpoint",
            )
        self.message = _view("text", "message")
        self.facts = _view("text", "facts")

    def _lay_out_decoding(self) -> None:
        with gr.Row(equal_height=True):
            self.speed = gr.Radio(
                list(SPEEDS), value="Real time", label="Speed", scale=3, min_width=300, elem_id="speed"
            )
            self.start = gr.Slider(0, 1, 0, step=1, label="From (s)", scale=2, elem_id="start")
            self.seconds = gr.Slider(5, 300, 60, step=5, label="For (s)", scale=2, elem_id="seconds")
        with gr.Row():
            self.decode = gr.Button("Decode", variant="primary", elem_id="decode-button")
            self.stop = gr.Button("Stop", elem_id="stop-button")
            self.score = gr.Button("Score the whole recording", elem_id="score-button")
        self.scores = _view("text", "scores")
        self.live = _view("live")

    def _lay_out_recording(self) -> None:
        with gr.Row(equal_height=True):
            self.window_start = gr.Slider(
                0, 1, 0, step=0.5, label="From (s)", scale=4, elem_id="window-start"
            )
            self.window_seconds = gr.Radio(
                [5, 10, 20, 60], value=10, label="Seconds shown", scale=2, elem_id="window-seconds"
            )
            self.series = gr.Dropdown([], label="Behaviour", scale=2, elem_id="series")
        self.raster = _view("recording")

    def _lay_out_attention(self) -> None:
        gr.Markdown(EXPLAIN["attention"], elem_classes="rpnt-explain")
        with gr.Row(equal_height=True):
            self.attention_start = gr.Slider(
                0, 1, 0, step=0.5, label="From (s)", scale=3, elem_id="att-start"
            )
            self.layer = gr.Dropdown([], label="Layer", scale=1, elem_id="layer", min_width=110)
            self.head = gr.Dropdown([MEAN], value=MEAN, label="Head", scale=1, elem_id="head", min_width=110)
            self.site = gr.Dropdown([], label="Site", scale=1, elem_id="site", min_width=110)
        self.attention = _view("attention")

    def _lay_out_metadata(self) -> None:
        gr.Markdown(EXPLAIN["metadata"], elem_classes="rpnt-explain")
        self.axes: dict[str, Any] = {}
        with gr.Row(equal_height=True):
            for axis in METADATA_AXES:
                label = f"{axis.removeprefix('site_')} ({AXIS_UNITS[axis]})"
                if axis in INDEX_AXES:
                    self.axes[axis] = gr.Dropdown(
                        [UNKNOWN], value=UNKNOWN, label=axis, min_width=130, elem_id=f"axis-{axis}"
                    )
                else:
                    self.axes[axis] = gr.Slider(
                        -10, 10, 0, step=0.5, label=label, min_width=150, elem_id=f"axis-{axis}"
                    )
        with gr.Row(equal_height=True):
            self.metadata_start = _moment_slider("Window from (s)", "meta-start", scale=1)
            self.metadata_site = gr.Dropdown([], label="Site whose place is moved", elem_id="meta-site")
            self.unknown = gr.CheckboxGroup(
                ["site position", "day"], label="Treat as unknown", elem_id="unknown"
            )
            self.reset = gr.Button("As recorded", elem_id="reset-button")
        self.metadata = _view("metadata")

    def _lay_out_finetuning(self) -> None:
        gr.Markdown(EXPLAIN["finetune"], elem_classes="rpnt-explain")
        with gr.Row(equal_height=True):
            self.init = gr.Radio(
                [FROM_DECODER, FROM_SCRATCH], value=FROM_DECODER, label="Start from", elem_id="init"
            )
            self.steps = gr.Slider(
                20, self.max_steps, 300, step=20, label="Training steps, about", elem_id="steps"
            )
            self.target = gr.Dropdown([], label="Behaviour to decode (from scratch)", elem_id="target")
            self.bin_size = gr.Dropdown(
                [0.02, 0.05, 0.1], value=0.05, label="Bin size in s (from scratch)", elem_id="bin-size"
            )
        with gr.Row():
            self.train = gr.Button("Train", variant="primary", elem_id="train-button")
            self.cancel = gr.Button("Cancel", elem_id="cancel-button")
            self.download = gr.DownloadButton("Download the decoder", interactive=False, elem_id="download")
        self.outcome = _view("text", "outcome")
        self.training = _view("training")

    # Wiring

    def _wire(self) -> None:
        everything = [*self._shown(), self.recording, self.checkpoint]
        latest = {"trigger_mode": "always_last"}
        on = self._on
        on(self.blocks.load, self._open, [self.recording, self.checkpoint], everything)
        on(self.recording.input, self._choose_recording, [self.recording], everything)
        on(self.upload.upload, self._upload, [self.upload], everything)
        on(self.checkpoint.input, self._choose_checkpoint, [self.checkpoint], everything)

        stretch = [self.start, self.seconds, self.speed]
        on(self.decode.click, self._decode, stretch, [self.live, self.message], concurrency_limit=8)
        on(self.stop.click, self._stop, [], [])
        on(self.score.click, self._score, [], [self.scores, self.message])

        window: list[Any] = [self.window_start, self.window_seconds, self.series]
        on([one.input for one in window], self._draw_recording, window, [self.raster, self.message], **latest)
        chosen: list[Any] = [self.attention_start, self.layer, self.head, self.site]
        shown = [self.attention, self.message]
        on([one.input for one in chosen], self._draw_attention, chosen, shown, **latest)
        drawn = [self.sites_tab.select, self.facts.change]
        on(drawn, self._draw_sites, [self.attention_start], [self.sites, self.message])
        controls = [*self.axes.values(), self.metadata_start, self.metadata_site, self.unknown]
        moved = [one.input for one in controls if one is not self.metadata_site]
        shown = [self.metadata, self.message]
        on(moved, self._draw_metadata, controls, shown, **latest)
        where = [self.metadata_start, self.metadata_site]
        on([self.reset.click, self.metadata_site.input], self._reset_metadata, where, [*controls, *shown])

        options = [self.init, self.steps, self.target, self.bin_size]
        results = [*everything, self.training, self.outcome, self.download]
        on(self.train.click, self._train, options, results, concurrency_limit=2)
        on(self.cancel.click, self._cancel, [], [])

    def _on(
        self,
        triggers: Any,
        handler: Callable[..., Any],
        inputs: list[Any],
        outputs: list[Any],
        **options: Any,
    ) -> None:
        """Calls a handler with the visitor's session; the paragraph of an error goes to the page.

        A handler gives what it changes; all else stays as it was. One that yields runs in the queue, the
        others at once.
        """

        def filled(updates: Updates) -> list[Any] | None:
            if not outputs:
                return None
            return [updates.get(one, KEEP if isinstance(one, gr.HTML) else gr.skip()) for one in outputs]

        @functools.wraps(handler)
        def answer(*arguments: Any) -> list[Any] | None:
            try:
                updates = handler(*arguments)
            except RPNTError as error:
                return filled({self.message: note(str(error), "error")})
            return filled({self.message: note(None), **updates} if updates else {})

        @functools.wraps(handler)
        def answers(*arguments: Any) -> Iterator[list[Any] | None]:
            try:
                for updates in handler(*arguments):
                    yield filled(updates)
            except RPNTError as error:
                yield filled({self.message: note(str(error), "error")})

        yields = inspect.isgeneratorfunction(handler)
        gr.on(
            triggers,
            answers if yields else answer,
            [self.session, *inputs],
            outputs or None,
            queue=yields,
            show_progress="hidden",
            api_visibility="private",
            **options,
        )

    def _shown(self) -> list[Any]:
        """Everything that changes with the recording or the decoder."""
        return [
            self.message, self.facts, self.scores, self.start, self.window_start, self.series, self.raster,
            self.live, self.attention_start, self.layer, self.head, self.site, self.attention, self.sites,
            *self.axes.values(), self.metadata_start, self.metadata_site, self.unknown, self.metadata,
            self.target, self.init,
        ]  # fmt: skip

    # Recording and decoder

    def _open(self, session: Session, recording: str, checkpoint: str) -> Updates:
        session.open_recording(recording)
        session.open_checkpoint(checkpoint)
        return self._refresh(session)

    def _choose_recording(self, session: Session, name: str) -> Updates:
        session.open_recording(name)
        return self._refresh(session)

    def _upload(self, session: Session, path: str) -> Updates:
        name = session.open_upload(path)
        choices = [*SIMULATED, name]
        return {**self._refresh(session), self.recording: gr.update(choices=choices, value=name)}

    def _choose_checkpoint(self, session: Session, name: str) -> Updates:
        if (name or "").strip() == session.checkpoint:
            return {}
        session.open_checkpoint(name)
        return self._refresh(session)

    def _refresh(self, session: Session) -> Updates:
        """Everything that changes with the recording or the decoder."""
        recording, model, _ = session.loaded()
        low, high = observed_span(recording)
        obstacle = session.obstacle()
        moment = {"minimum": math.floor(low), "maximum": max(math.floor(high - 1), math.floor(low) + 1)}
        at: dict[str, Any] = {**moment, "value": math.floor(low)}
        names = list(recording.behavior)
        series = default_series(recording)
        num_layers, num_heads = model.config.num_hidden_layers, model.config.num_attention_heads
        sites = [(name, index) for index, name in enumerate(recording.site_ids)]
        several = len(sites) > 1
        updates: Updates = {
            self.message: note(advise(session, obstacle)),
            self.facts: text(facts_html(recording_facts(recording))),
            self.scores: text(""),
            self.live: None,
            self.sites: None,
            self.start: gr.update(**at),
            self.window_start: gr.update(**at),
            self.series: gr.update(choices=names, value=series),
            self.raster: recording_window(recording, low, 10.0, series),
            self.attention_start: gr.update(**at),
            self.metadata_start: gr.update(**at),
            self.layer: gr.update(choices=[(str(i + 1), i) for i in range(num_layers)], value=num_layers - 1),
            self.head: gr.update(choices=[MEAN, *(str(i + 1) for i in range(num_heads))], value=MEAN),
            self.site: gr.update(choices=sites, value=0, visible=several),
            self.metadata_site: gr.update(choices=sites, value=0, visible=several),
            self.target: gr.update(choices=names, value=series),
            self.init: gr.update(value=FROM_DECODER if not several else FROM_SCRATCH),
            self.attention: None,
            self.metadata: None,
        }
        updates |= self._metadata_controls(session, 0)
        if obstacle is None:
            updates |= self._draw_attention(session, low, num_layers - 1, MEAN, 0)
            updates[self.metadata] = self._metadata_message(session, low, {}, 0)
        return updates

    # Decode

    def _decode(self, session: Session, start: float, seconds: float, speed: str) -> Iterator[Updates]:
        recording, model, processor = self._able(session)
        session.live_run += 1
        run_id = session.live_run
        messages = decode_live(
            model,
            processor,
            recording,
            float(start),
            float(seconds),
            SPEEDS[speed],
            lambda: session.live_run == run_id,
            run_id,
        )
        for message in messages:
            yield {self.live: message, self.message: note(None)}

    @staticmethod
    def _able(session: Session) -> tuple[Recording, Any, Any]:
        """Gives recording, model and processor; an error in the words of the page where they do not fit."""
        obstacle = session.obstacle()
        if obstacle is not None:
            raise InputError(advise(session, obstacle) or obstacle)
        return session.loaded()

    def _stop(self, session: Session) -> None:
        session.live_run += 1

    def _score(self, session: Session) -> Updates:
        self._able(session)
        scores = session.scores()
        named = zip(describe_scores(scores), ("main", "minor"), strict=True)
        cells = [(f"{name}, whole recording", value, note, kind) for (name, value, note), kind in named]
        return {self.scores: text(tiles(*cells))}

    # Views

    def _draw_recording(self, session: Session, start: float, seconds: float, series: str | None) -> Updates:
        recording, _, _ = session.loaded()
        return {self.raster: recording_window(recording, float(start), float(seconds), series)}

    def _probe(self, session: Session, start: float) -> Any:
        """One window with attention weights; the last one is kept."""
        recording, model, processor = self._able(session)
        with session.lock:
            if session.attention is None or session.attention[0] != start:
                session.attention = (start, probe_window(model, processor, recording, start))
            return session.attention[1]

    def _draw_attention(self, session: Session, start: float, layer: int, head: str, site: int) -> Updates:
        recording, model, _ = session.loaded()
        probe = self._probe(session, float(start))
        number = None if head == MEAN else int(head) - 1
        names = recording.site_ids
        view = attention_view(probe, names, int(layer or 0), number, int(site or 0))
        words = {"site": view["site"] if len(names) > 1 else "", "unit": target_unit(model)}
        return {self.attention: {**view, **words}}

    def _draw_sites(self, session: Session, start: float) -> Iterator[Updates]:
        recording, _, processor = session.loaded()
        if len(recording.site_ids) > 1:
            yield {self.sites: {"maps": None, "message": "Comparing with shuffled trials."}}
        probe = None if session.obstacle() else self._probe(session, float(start))
        maps = connectivity_maps(recording, processor.bin_size)
        yield {self.sites: sites_view(maps, probe, recording.site_ids)}

    # Metadata

    def _metadata_controls(self, session: Session, site: int) -> Updates:
        """Sets the controls to what the recording says, and shows those that the decoder looks at."""
        recording, model, processor = session.loaded()
        active = active_axes(model, processor)
        recorded = recorded_metadata(processor, recording)[site]
        updates: Updates = {}
        unknown = set()
        for axis, control in self.axes.items():
            if axis not in active:
                updates[control] = gr.update(visible=False)
                continue
            value = float(recorded[processor.metadata_axes.index(axis)])
            at = shown_value(processor, axis, value)
            if axis in INDEX_AXES:
                choices = [*known_values(processor, axis), UNKNOWN]
                updates[control] = gr.update(choices=choices, value=at, visible=True)
            else:
                low, high = axis_range(axis, value)
                if math.isnan(value):
                    unknown.add(unknown_name(axis))
                step = 0.1 if axis in SITE_AXES else 1
                updates[control] = gr.update(minimum=low, maximum=high, value=at, step=step, visible=True)
        updates[self.unknown] = gr.update(value=sorted(unknown), visible=bool(active))
        return updates

    def _metadata_message(
        self, session: Session, start: float, changed: dict[tuple[int, str], float], site: int
    ) -> dict[str, Any]:
        recording, model, processor = session.loaded()
        recorded = self._probe(session, float(start))
        with session.lock:
            other = probe_window(model, processor, recording, float(start), changed) if changed else recorded
        view = metadata_view(
            recorded, other, processor.metadata_axes, model.config.num_hidden_layers - 1, site
        )
        names = [name.replace("_", " ") for name in target_names(model)]
        return {**view, "names": names, "unit": target_unit(model)}

    def _draw_metadata(self, session: Session, *values: Any) -> Updates:
        recording, model, processor = session.loaded()
        of_axes, (start, site, unknown) = values[: len(self.axes)], values[len(self.axes) :]
        active, site = active_axes(model, processor), int(site or 0)
        stated = {
            axis: UNKNOWN if unknown_name(axis) in unknown else value
            for axis, value in zip(self.axes, of_axes, strict=True)
            if axis in active
        }
        changed = changed_metadata(processor, recording, stated, site)
        return {self.metadata: self._metadata_message(session, start, changed, site)}

    def _reset_metadata(self, session: Session, start: float, site: int) -> Updates:
        site = int(site or 0)
        message = self._metadata_message(session, start, {}, site)
        return {**self._metadata_controls(session, site), self.metadata: message}

    # Finetune

    def _train(
        self, session: Session, init: str, steps: float, behavior: str, bin_size: float
    ) -> Iterator[Updates]:
        recording, _, processor = session.loaded()
        if session.training is not None and session.training.is_running:
            raise CheckpointError("One training at a time: this page has one under way. Cancel it, or wait.")
        if not recording.behavior:
            raise CheckpointError(
                f"A recording must have behaviour to train on, got none in session '{recording.session_id}'. "
                "Upload a file with a series such as `cursor_vel`."
            )
        number = len(session.trained) + 1
        folder = Path(tempfile.mkdtemp(prefix="training-", dir=session.folder))
        nothing = {"passes": 0, "num_passes": 0, "curve": []}
        yield {
            self.training: training_view(nothing, "starting", "Building the dataset."),
            self.message: note(None),
            self.outcome: text(""),
            self.download: gr.update(interactive=False),
        }
        start = SCRATCH if init == FROM_SCRATCH else init_for_training(session.checkpoint, session.trained)
        run = start_training(
            recording,
            folder,
            start,
            int(steps),
            processor=processor,
            behavior=behavior,
            bin_size=float(bin_size),
        )
        session.training = run
        try:
            while run.is_running:
                run.wait(0.25)
                progress = run.progress()
                yield {self.training: training_view(progress, "running", describe_progress(progress))}
        finally:  # also where the visitor left
            if run.is_running:
                run.cancel()
        try:
            results = run.finish()
        except CheckpointError:
            yield {self.training: None}
            shutil.rmtree(folder, ignore_errors=True)
            raise
        name = f"trained here {number}: {recording.session_id}"
        session.trained[name] = run.output
        packed = pack_decoder(run.output, session.folder / f"decoder-{number}.zip")
        session.open_checkpoint(name)
        progress = run.progress()
        progress["passes"] = progress["num_passes"]
        done = training_view(progress, "done", f"Done in {progress['seconds']:.0f} s.")
        yield {
            **self._refresh(session),
            self.message: note(f"'{name}' is used on this page now. Press Decode to see it.", "good"),
            self.checkpoint: gr.update(choices=session.checkpoints(), value=name),
            self.training: done,
            self.outcome: text(describe_outcome(results)),
            self.download: gr.update(value=str(packed), interactive=True),
        }

    def _cancel(self, session: Session) -> None:
        if session.training is not None:
            session.training.cancel()


def _theme() -> gr.themes.Base:
    # Gradio's own copy, served by the page; of its semi-bold half of the letters are missing.
    plex = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.gray,
        radius_size="md",
        text_size="md",
        font=[plex, "ui-sans-serif", "system-ui", "sans-serif"],
    )


def make_page(
    checkpoints: Sequence[str] = (), allow_folders: bool = True, max_steps: int = 2000
) -> gr.Blocks:
    """Makes the page.

    Args:
        checkpoints (`Sequence[str]`, *optional*, defaults to `()`): Decoders to offer beside the bundled one;
            the first is chosen.
        allow_folders (`bool`, *optional*, defaults to `True`): Whether visitors may name folders of this
            machine as checkpoints.
        max_steps (`int`, *optional*, defaults to 2000): Longest training that visitors may ask for.

    Returns:
        `gr.Blocks`: The page, for `launch`.
    """
    with gr.Blocks(title="RPNT", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        _Page(blocks, checkpoints, allow_folders, max_steps)
    return blocks


def launch(
    blocks: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    max_upload: str = DEFAULT_MAX_UPLOAD,
    **options: Any,
) -> tuple[Any, str, Any]:
    """Serves a page.

    Args:
        blocks (`gr.Blocks`): From `make_page`.
        host (`str`, *optional*, defaults to `"127.0.0.1"`): Address to listen on; "0.0.0.0" lets others in.
        port (`int`, *optional*): Port; a free one from 7860 on where left out.
        max_upload (`str`, *optional*, defaults to `"500mb"`): Largest upload.
        **options: Further arguments of `gr.Blocks.launch`.

    Returns:
        `tuple`: The server, its address on this machine, and its public address (none).
    """
    folder = Path(__file__).parent
    script = "".join((folder / name).read_text(encoding="utf-8") for name in ("drawing.js", "canvas.js"))
    served: tuple[Any, str, Any] = blocks.queue(default_concurrency_limit=8).launch(
        server_name=host,
        server_port=port,
        max_file_size=max_upload,
        theme=_theme(),
        css=(folder / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{script}</script>",
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        share=False,
        **options,
    )
    return served
