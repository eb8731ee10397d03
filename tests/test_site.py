"""The documentation site builds without a warning and works without a network; the notebooks of it run."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from docs_blocks import ROOT

NOTEBOOKS = ("neuroscientist", "engineer")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def load(name: str) -> ModuleType:
    """A script of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does; a warning fails it."""
    folder = tmp_path_factory.mktemp("site")
    # Without --quiet, which would keep --strict from counting warnings.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Page(HTMLParser):
    """Anchors of a page, what it links to, and what it loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        target = values.get("href") or values.get("src")
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif target and values.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.loads.add(target)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.mark.slow
def test_every_link_and_anchor_of_the_site_is_there(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for target in page.links | page.loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            other = other / "index.html" if other.is_dir() else other
            if not other.exists() or (parts.fragment and unquote(parts.fragment) not in pages[other].anchors):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert len(pages) > 15 and not broken


@pytest.mark.slow
def test_the_site_loads_nothing_from_the_network(site: Path, pages: dict[Path, Page]) -> None:
    outside = {target for page in pages.values() for target in page.loads if urlsplit(target).netloc}
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not outside and not re.search(r"url\([\"']?https?:", styles)


@pytest.mark.slow
def test_readers_are_not_told_why_a_test_leaves_out_a_block(site: Path) -> None:
    texts = {str(path.relative_to(site)): path.read_text() for path in site.rglob("*.html")}
    assert not [name for name, text in texts.items() if re.search(r"<span[^>]*>Not run: ", text)]
    assert "make demo" in re.sub(r"<[^>]+>", "", texts["index.html"])


@pytest.mark.slow
def test_types_of_docstrings_are_shown_without_markup(site: Path) -> None:
    text = (site / "api" / "data.html").read_text()
    assert "FloatTensor of shape" in (site / "api" / "model.html").read_text()
    assert not re.findall(r"<code>[^<]*`[^<]*</code>", text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_search_finds_a_page_without_a_network(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_context(offline=True).new_page()
        page.goto((site / "index.html").as_uri())  # as from a folder: no server either
        page.click("input[name=query]", force=True)
        page.keyboard.type("StreamingDecoder")
        page.wait_for_selector(".md-search-result__item a", state="attached", timeout=30_000)
        found = page.locator(".md-search-result__item a").all_text_contents()
        browser.close()
    assert any("Streaming" in text for text in found)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_that_of_its_page(name: str) -> None:
    page = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text()
    stored = (ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text()
    made = nbformat.writes(load("make_notebooks").make_notebook(page))
    assert json.loads(stored) == json.loads(made), "run `python docs/scripts/make_notebooks.py`"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    load("make_notebooks").execute(notebook, tmp_path)
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_figures_of_the_model_are_drawn_from_its_modules(tmp_path: Path) -> None:
    drawn = load("draw_model").main(["--out", str(tmp_path)])
    stored = {path.name for path in (ROOT / "docs" / "images").glob("model_*.png")}
    assert stored == {path.name for path in drawn}
