"""Lets mkdocstrings read docstrings with Hugging Face types.

``rates (`torch.FloatTensor` of shape `(batch, units)`, *optional*, defaults to 1.0):`` would be shown with
its backticks and asterisks inside a code span. They are taken off before the docstring is parsed; nothing
else is.
"""

import re
from typing import Any

from griffe import Docstring, Extension, Object

# A line of an "Args" section, or the first of "Returns", up to the colon that ends the type.
_ARGUMENT = re.compile(r"^(\s+\*{0,2}[\w, ]+) \((.*)\):(?=\s|$)", re.MULTILINE)
_RETURNED = re.compile(r"^(\s+)(\[?`[^:\n]*(?:\n\s+[^:\n]*)?):(?=\s|$)")
_SECTION = re.compile(r"^(Returns|Yields):\n", re.MULTILINE)


def _plain(text: str) -> str:
    text = re.sub(r",? *(\*optional\*|defaults to\s.*)", "", text, flags=re.DOTALL)  # the signature has it
    return text.replace("`", "")


def plain_types(text: str) -> str:
    """Takes the markup off the types of a docstring.

    Args:
        text (`str`): The docstring.

    Returns:
        `str`: The same with types in plain text.
    """
    text = re.sub(r"\[(`\w+`)\](?![\[(])", r"\1", text)  # a reference, as transformers writes it
    text = _ARGUMENT.sub(lambda found: f"{found[1]} ({_plain(found[2])}):", text)
    parts = _SECTION.split(text)
    for index in range(2, len(parts), 2):
        parts[index] = _RETURNED.sub(lambda found: f"{found[1]}{_plain(found[2])}:", parts[index])
    heads = [f"{part}:\n" if index % 2 else part for index, part in enumerate(parts)]
    return "".join(heads)


class PlainTypes(Extension):
    """Rewrites every docstring once it has been loaded."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring is not None and not obj.is_alias:
            found = obj.docstring
            obj.docstring = Docstring(
                plain_types(found.value), lineno=found.lineno, endlineno=found.endlineno, parent=obj,
                parser=found.parser, parser_options=found.parser_options,
            )  # fmt: skip
