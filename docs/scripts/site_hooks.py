"""Hooks of mkdocs: pages that stand at the root of the repository, and links that leave the documentation."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
_LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")

_NOT_RUN = re.compile(r' title="Not run: [^"]*"')


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that stand at the root of the repository."""
    for name, source in ROOT_PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points links into the repository at its page on the web, or leaves their text where there is none.

    Titles that tell the tests why they do not run a block are left out: readers run it.
    """
    source = ROOT_PAGES.get(page.file.src_uri)
    folder = posixpath.dirname(source if source else posixpath.join("docs", page.file.src_uri))
    pages = {source: name for name, source in ROOT_PAGES.items()}

    def point(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"[a-z]+:|#|/", target):
            return found[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(folder, path))
        inside = pages.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is not None:
            relative = posixpath.relpath(inside, posixpath.dirname(page.file.src_uri) or ".")
            return f"[{text}]({relative}{'#' + anchor if anchor else ''})"
        if not (ROOT / path).exists():
            return found[0]  # mkdocs reports it
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    return _LINK.sub(point, _NOT_RUN.sub("", markdown))
