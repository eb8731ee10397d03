"""Fenced blocks of Markdown pages: which there are, which run, and how.

A block of `python` or `bash` runs, unless its title says why it does not:

    ```bash title="Not run: needs a GPU"

The Python blocks of a page share one namespace, all of its blocks one folder, in the order of the page. A
block of `text` with the title "Output" shows what the block before it printed, as a doctest does ("..."
stands for anything).
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpnt_hf.cli import main
from rpnt_hf.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
RUN_LANGUAGES = ("python", "bash")
SHOWN_LANGUAGES = ("text", "yaml", "json", "bibtex", "toml", "markdown")
NOT_RUN = "Not run: "
OUTPUT = "Output"

_FENCE = re.compile(r"^( *)(`{3,}|~{3,}) *([^`]*)$")
_OPENER = re.compile(r"^ *(?:[-*+] |\d+[.)] |!!! |\?\?\?\+? |=== )")
_TO_FILE = re.compile(r" > [\w./]+$", re.MULTILINE)
_SHELL = re.compile(r"[|&;<>$`(){}*?~]")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence, from 1."""

    page: str
    line: int
    language: str
    title: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language in RUN_LANGUAGES and not self.title.startswith(NOT_RUN)


def pages() -> list[str]:
    """Every page that readers see, by its path from the root."""
    inside = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return ["README.md", "CONTRIBUTING.md", *inside]


def read_blocks(page: str) -> list[Block]:
    """Lists the fenced blocks of a page."""
    return list(find_blocks((ROOT / page).read_text(), page))


def find_blocks(text: str, page: str = "page.md") -> Iterator[Block]:
    """Finds the fenced blocks of a text; a fence that nothing closes is an error."""
    start: tuple[int, str, str, str] | None = None
    code: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if start is None and fence:
            start, code = (number, fence[1], fence[2], fence[3]), []
        elif start is not None and fence and fence[2].startswith(start[2]) and not fence[3].strip():
            info = start[3].strip()
            title = re.search(r'title="([^"]*)"', info)
            language = re.split(r"[\s{]", info)[0] if info else ""
            yield Block(page, start[0], language, title[1] if title else "", "\n".join(code) + "\n")
            start = None
        elif start is not None:
            code.append(line.removeprefix(start[1]))
    assert start is None, f"{page}:{start and start[0]}: nothing closes this fence"


def indented_blocks(text: str) -> list[int]:
    """Finds lines of blocks that are indented instead of fenced: nothing says what language they are."""
    found, fence, inside_item, blank = [], "", False, True
    for number, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        if mark and (not fence or (mark[2].startswith(fence) and not mark[3].strip())):
            fence = "" if fence else mark[2]
        elif not fence and line.strip():
            if not line.startswith(" "):
                inside_item = bool(_OPENER.match(line))
            elif blank and line.startswith("    ") and not inside_item:
                found.append(number)
        blank = not line.strip()
    return found


class PageRun:
    """Runs the blocks of one page in the current folder; what they print is kept.

    Args:
        environment (`dict[str, str]`): Variables of the shells.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, **(environment or {}), "PATH": path}
        self.output = ""

    def run(self, block: Block) -> None:
        """Runs a block, or compares what the last one printed with it."""
        if block.language == "text" and block.title == OUTPUT:
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            if not doctest.OutputChecker().check_output(block.code, self.output, options):
                raise AssertionError(f"{block} shows\n{block.code}\nbut this was printed:\n{self.output}")
        elif block.runs:
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    if block.language == "python":
                        exec(compile(block.code, str(block), "exec"), self.namespace)
                    else:
                        self._run_shell(block)
            except BaseException as error:
                error.add_note(f"in {block}\n{block.code}")
                raise
            finally:
                self.output = printed.getvalue()

    def _run_shell(self, block: Block) -> None:
        """Runs plain commands of ours in this process, which has torch imported, and all else in a shell."""
        code = block.code.replace("\\\n", " ")
        commands = [shlex.split(line, comments=True) for line in code.splitlines()]
        commands = [words for words in commands if words]
        scripts = {"training/pretrain.py", "training/finetune.py"}
        ours = all(words[0] == "rpnt" or (words[0] == "python" and words[1] in scripts) for words in commands)
        if not ours or _SHELL.search(_TO_FILE.sub("", code)):
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
            sys.stdout.write(done.stdout)
            said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            assert done.returncode == 0, f"exit code {done.returncode}\n{said}"
            return
        for words in commands:
            with contextlib.ExitStack() as stack:
                if words[-2:-1] == [">"]:
                    *words, _, target = words
                    stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(target, "w"))))
                if words[0] == "rpnt":
                    assert main(words[1:]) == 0, f"`{shlex.join(words)}` failed"
                else:
                    load_script(words[1]).main(words[2:])
