"""The words of the page: explanations, notes, and results as tiles; HTML, escaped.

Not for what a visitor chooses from: that stands where the components are made, in `page.py`.
"""

import html
from typing import Any

from .session import Session

HEAD = """\
<div class="rpnt-head"><h1>RPNT</h1><p>Spikes in, movement out: a recording decoded bin by bin.</p></div>
"""
EXPLAIN = {
    "attention": "Each column is one bin of the recording, each row an earlier one that it looks back to; "
    "bright is much. Anchors are learned keys that stand outside of time: through them metadata act.",
    "sites": "What the spikes of two sites have in common beyond shuffled trials of the same target, "
    "and, where the decoder has spatial layers, how much each site attends to each. It is about prediction, "
    "not anatomy.",
    "metadata": "MRoPE rotates queries and keys by what is known of a recording: place of the site, subject, "
    "day, task. Move a slider and see what the attention and the decoded movement make of it. A coordinate "
    "that is unknown does not rotate; it drops out.",
    "finetune": "Trains on 70 % of the trials, chooses on 10 %, and scores once on the 20 % that are left. "
    "The new decoder is used above at once. It and the recording stay on this page and go when you close it.",
}


def text(content: str) -> dict[str, str]:
    """Makes the message of a view "text".

    Args:
        content (`str`): HTML.

    Returns:
        `dict[str, str]`: The message.
    """
    return {"html": content}


def note(paragraph: str | None, kind: str = "") -> dict[str, str]:
    """Writes a paragraph for the visitor.

    Args:
        paragraph (`str`, *optional*): Plain text; nothing is shown where there is none.
        kind (`str`, *optional*, defaults to `""`): "error", "good", or "" for a mere note.

    Returns:
        `dict[str, str]`: The message of a view "text".
    """
    if not paragraph:
        return text("")
    role = ' role="alert"' if kind == "error" else ""
    return text(f'<div class="rpnt-note {kind}"{role}>{html.escape(paragraph)}</div>')


def advise(session: Session, obstacle: str | None) -> str | None:
    """Says what was done to a recording, and what to do about one that the decoder cannot decode.

    Args:
        session ([`Session`]): With recording and decoder.
        obstacle (`str`, *optional*): From `Session.obstacle`.

    Returns:
        `str` or `None`: One paragraph; None where there is nothing to say.
    """
    recording, _, processor = session.loaded()
    if obstacle is not None and recording.session_id not in processor.sessions:
        obstacle = (
            f"This decoder has not learned the units of session '{recording.session_id}'. Train a decoder of "
            "it in the tab Finetune, or choose another one above; all other views work."
        )
    return " ".join(filter(None, [session.remark, obstacle])) or None


def describe_progress(progress: dict[str, Any]) -> str:
    """Says how far a training is.

    Args:
        progress (`dict`): From `Training.progress`.

    Returns:
        `str`: One sentence with rate and time left.
    """
    if not progress["passes"]:
        return f"Starting: {progress['seconds']:.0f} s."
    words = f"Pass {progress['passes']} of {progress['num_passes']} over the training trials"
    if progress["seconds_per_pass"]:
        words += f", {progress['seconds_per_pass']:.2f} s each, about {progress['seconds_left']:.0f} s left"
    return words + "."


def describe_outcome(results: dict[str, Any]) -> str:
    """Says what a training came to.

    Args:
        results (`dict`): What `results.json` holds.

    Returns:
        `str`: HTML, tiles.
    """
    test = results["test"]
    r2, interval = test["r2"], (test.get("intervals") or {}).get("r2")
    between = f", 95 % {interval[0]:.2f} to {interval[1]:.2f}" if interval else ""
    validation, steps = results["validation"]["r2"], results["training"]["steps"]
    return tiles(
        ("R2 on test trials", _score(r2), f"{test['trials']} trials it never saw{between}", "main"),
        ("R2 on validation trials", _score(validation), "it was chosen on these: no test", "minor"),
        ("trained on", f"{results['training_trials']} trials", f"{steps} steps", ""),
    )


def _score(r2: float | None) -> str:
    return "-" if r2 is None else f"{r2:.3f}"


def tiles(*cells: tuple[str, str, str, str]) -> str:
    """Writes tiles.

    Args:
        *cells (`tuple[str, str, str, str]`): Name, value, explanation and kind ("main", "minor", "") of each.

    Returns:
        `str`: HTML, escaped.
    """
    cells_html = "".join(
        f'<div class="rpnt-tile {kind}"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note, kind in cells
    )
    return f'<div class="rpnt-tiles">{cells_html}</div>'


def training_view(progress: dict[str, Any], state: str, message: str) -> dict[str, Any]:
    """Makes the message of the view "training".

    Args:
        progress (`dict`): From `Training.progress`.
        state (`str`): "starting", "running" or "done".
        message (`str`): What stands below the bar.

    Returns:
        `dict`: The message.
    """
    return {**progress, "state": state, "message": message}
