"""The page of `rpnt app` in a browser."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from nwb_files import series
from nwb_files import write_nwb as write_small_nwb

from rpnt_hf import simulate
from rpnt_hf.app.session import Session
from rpnt_hf.data.nwb_writer import write_nwb

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def address():
    pytest.importorskip("gradio", reason="gradio is not installed (extra `app`)")
    from rpnt_hf.app.page import launch, make_page

    blocks = make_page()
    _, address, _ = launch(blocks, prevent_thread_lock=True, max_upload="5mb")
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, loaded; at the end no request may have left this machine, and no script may have failed."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#facts dl", timeout=30_000)
    yield page
    page.close()
    outside = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert requests and not outside and not problems


def decode(page):
    page.get_by_label("As fast as it goes").check()
    page.click("#decode-button")
    page.wait_for_selector('#view-live [data-finished="true"]', timeout=60_000)
    return page.inner_text("#view-live .rpnt-tiles")


def canvas_of(page, view):
    """Pixels of the canvas of a view."""
    script = "(canvas) => canvas.toDataURL()"
    return page.eval_on_selector(f"#view-{view} canvas", script)


def test_the_page_decodes_the_bundled_recording_and_fetches_nothing_from_elsewhere(page):
    assert "sub-A_ses-CO-20240127" in page.inner_text("#facts")
    empty = canvas_of(page, "live")
    tiles = decode(page)
    assert "R2, new bins" in tiles and "bins not trained or chosen on" in tiles
    assert 0.6 < float(tiles.split("R2, new bins")[1].split()[0]) < 1
    assert canvas_of(page, "live") != empty


@pytest.mark.slow
def test_real_time_moves_and_stops(page):
    page.click("#decode-button")
    page.wait_for_function("Number(document.querySelector('#view-live .rpnt-view').dataset.head) > 10")
    first = canvas_of(page, "live")
    page.wait_for_function("Number(document.querySelector('#view-live .rpnt-view').dataset.head) > 20")
    assert canvas_of(page, "live") != first
    page.click("#stop-button")
    page.wait_for_selector('#view-live [data-finished="true"]', timeout=10_000)
    bins = int(page.get_attribute("#view-live .rpnt-view", "data-bins"))
    assert 20 <= bins < 400


@pytest.mark.slow
def test_an_upload_is_decoded_and_bad_files_leave_the_page_working(page, tmp_path):
    recording = simulate(num_subjects=1, sessions_per_subject=1)[0]
    whole = write_nwb(recording, tmp_path / "whole.nwb")
    bad = tmp_path / "bad.nwb"
    bad.write_bytes(whole.read_bytes()[:20_000])
    upload(page, bad)
    page.wait_for_selector('#message [role="alert"]')
    shown = page.inner_text("#message")
    assert "must be a whole NWB 2.x file, got 'bad.nwb'" in shown and "Traceback" not in shown
    upload(page, whole)
    page.wait_for_function("document.querySelector('#recording input').value == 'Uploaded: whole.nwb'")
    assert page.inner_text("#message").strip() == ""
    assert "R2, new bins" in decode(page)
    bare = write_small_nwb(tmp_path / "bare.nwb", [np.arange(1, 50) / 5.0], behavior=[series(duration=10.0)])
    upload(page, bare)
    page.wait_for_function("document.querySelector('#recording input').value == 'Uploaded: bare.nwb'")
    page.wait_for_selector("#message .rpnt-note")
    page.click("#decode-button")
    page.wait_for_selector('#message [role="alert"]')
    assert "session" in page.inner_text("#message").lower()


def upload(page, path):
    with page.expect_file_chooser() as chosen:
        page.click("#upload")
    chosen.value.set_files(str(path))


@pytest.mark.slow
def test_an_upload_that_is_too_large_is_refused_and_the_page_goes_on(page, tmp_path):
    large = tmp_path / "large.nwb"
    large.write_bytes(bytes(6_000_000))
    upload(page, large)
    page.wait_for_selector(".toast-body", timeout=20_000)
    assert "size" in page.inner_text(".toast-body").lower()
    assert "R2, new bins" in decode(page)


@pytest.mark.slow
def test_a_decoder_is_trained_used_and_taken_home(page, tmp_path):
    page.get_by_role("tab", name="Finetune").click()
    page.get_by_label("scratch", exact=True).check()
    page.fill("#steps input[type=number]", "20")
    page.press("#steps input[type=number]", "Tab")
    page.click("#train-button")
    page.wait_for_selector('#view-training [data-state="running"]', timeout=60_000)
    page.wait_for_selector('#view-training [data-state="done"]', timeout=150_000)
    assert "R2 on test trials" in page.inner_text("#outcome")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "decoder.zip")
    with zipfile.ZipFile(tmp_path / "decoder.zip") as archive:
        archive.extractall(tmp_path)
    folder = next(path.parent for path in tmp_path.rglob("model.safetensors"))
    session = Session()
    session.open_checkpoint(str(folder))
    page.get_by_role("tab", name="Decode").click()
    assert "R2, new bins" in decode(page)


@pytest.mark.slow
def test_every_view_draws_and_metadata_change_what_is_decoded(page):
    for tab, view in (("Recording", "recording"), ("Attention", "attention"), ("Metadata", "metadata")):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(f"#view-{view} canvas")
    page.wait_for_function("document.querySelector('#view-metadata b').innerText == '0.00 cm/s'")
    before = canvas_of(page, "metadata")
    page.locator("#unknown").get_by_label("day").check()
    page.wait_for_function("document.querySelector('#view-metadata b').innerText != '0.00 cm/s'")
    assert canvas_of(page, "metadata") != before


@pytest.mark.slow
def test_two_visitors_see_their_own_recordings(page, browser, address):
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#facts dl", timeout=30_000)
    page.click("#recording input")
    page.get_by_role("option", name="three sites").click()
    page.wait_for_function("document.querySelector('#facts').innerText.includes('PMd')")
    assert "PMd" not in other.inner_text("#facts")
    other.close()
