"""Makes the notebooks of the tutorials out of their pages, so that there is one text of each.

    python docs/scripts/make_notebooks.py              # after a change of a tutorial
    python docs/scripts/make_notebooks.py --pictures   # runs them, and keeps the pictures that the pages show

Python blocks become cells, shell blocks `%%bash` cells, pictures the file that the cell above wrote. Expected
outputs are left out: a notebook shows its own.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

DOCS = Path(__file__).resolve().parents[1]
TUTORIALS = ("neuroscientist", "engineer")
SCRIPT_FOLDERS = ("training", "dataset_builders", "examples")
PICTURE = re.compile(r"^!\[[^\]]*\]\(\.\./images/tutorial_(\w+\.png)\)$", re.MULTILINE)
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```\n?', re.MULTILINE | re.DOTALL)
INTRODUCTION = """\
%cd -q ../..
# The folder of the clone, where training/ is; what is made here goes there too."""


def make_notebook(page: str) -> nbformat.NotebookNode:
    """Turns a page into a notebook.

    Args:
        page (`str`): Markdown of the tutorial.

    Returns:
        `nbformat.NotebookNode`: without outputs.
    """
    cells: list[tuple[str, str]] = []
    parts = BLOCK.split(page)
    for text, language, title, code in zip(
        parts[::4], [*parts[1::4], ""], [*parts[2::4], ""], [*parts[3::4], ""], strict=True
    ):
        for index, piece in enumerate(PICTURE.split(text)):
            if index % 2:
                cells.append(("code", f'from IPython.display import Image\n\nImage("{piece}")'))
            elif piece.strip():
                cells.append(
                    (
                        "markdown",
                        re.sub(
                            r"^Everything below is also a \[notebook\].*?\n", "", piece, flags=re.MULTILINE
                        ).strip(),
                    )
                )
        if language in ("python", "bash") and not title:
            cells.append(("code", code.rstrip() if language == "python" else f"%%bash\n{code.rstrip()}"))
    cells.insert(1, ("code", INTRODUCTION))
    notebook = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
    for index, (kind, source) in enumerate(cells):
        make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        notebook.cells.append(make(source, id=f"cell-{index}"))
    return notebook


def execute(notebook: nbformat.NotebookNode, clone: Path, timeout: int = 600) -> None:
    """Runs a notebook in its place inside a clone; raises where a cell fails.

    Args:
        notebook (`nbformat.NotebookNode`): The notebook; outputs are put into it.
        clone (`Path`): Folder that stands for the clone, with links to the scripts.
        timeout (`int`, *optional*, defaults to 600): Seconds that a cell may take.
    """
    folder = clone / "docs" / "notebooks"
    folder.mkdir(parents=True)
    for name in SCRIPT_FOLDERS:
        (clone / name).symlink_to(DOCS.parent / name)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the notebooks, and with `--pictures` the pictures of the pages.

    Args:
        argv (`Sequence[str]`, *optional*): Options; those of the process where absent.
    """
    parser = argparse.ArgumentParser(description="Make the notebooks of the tutorials.")
    parser.add_argument("--pictures", action="store_true", help="run them and keep their pictures")
    pictures = parser.parse_args(argv).pictures
    for name in TUTORIALS:
        text = (DOCS / "tutorials" / f"{name}.md").read_text()
        notebook = make_notebook(text)
        (DOCS / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, DOCS / "notebooks" / f"{name}.ipynb")
        if pictures and PICTURE.search(text):
            with tempfile.TemporaryDirectory() as clone:
                execute(notebook, Path(clone))
                for picture in PICTURE.findall(text):
                    with Image.open(Path(clone) / picture) as image:
                        small = image.convert("RGB").resize(
                            (1000, round(1000 * image.height / image.width)), Image.Resampling.LANCZOS
                        )
                        small.quantize(64).save(DOCS / "images" / f"tutorial_{picture}", optimize=True)


if __name__ == "__main__":
    main()
