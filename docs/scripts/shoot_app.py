"""Takes the pictures of the page in docs/app.md: `python docs/scripts/shoot_app.py` (needs Chromium)."""

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from rpnt_hf.app.page import launch, make_page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
IMAGES = Path(__file__).resolve().parents[1] / "images"


def save(page: Any, name: str, height: int | None = None) -> None:
    """Saves what the page shows, from the top, as a PNG of 256 colours."""
    page.wait_for_timeout(400)
    image = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image = image.crop((0, 0, image.width, height or image.height))
    image.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """Opens the page and waits for the first recording."""
    page = browser.new_page(**options)
    page.goto(address)
    page.wait_for_selector("#facts dl", timeout=60_000)
    return page


def main() -> None:
    """Takes all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    options = parser.parse_args()
    blocks = make_page()
    _, address, _ = launch(blocks, prevent_thread_lock=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=FLAGS)
        page = open_page(browser, address, viewport={"width": 1280, "height": 900})
        page.get_by_label("4 x real time").check()
        page.click("#decode-button")
        page.wait_for_function("Number(document.querySelector('#view-live .rpnt-view').dataset.head) > 535")
        save(page, "app_decode")
        page.click("#stop-button")
        for tab, view, control in (
            ("Attention", "attention", "#att-start"),
            ("Metadata", "metadata", "#meta-start"),
        ):
            page.get_by_role("tab", name=tab).click()
            page.fill(f"{control} input[type=number]", "22")
            page.press(f"{control} input[type=number]", "Tab")
            if view == "metadata":
                page.wait_for_timeout(800)
                page.locator("#unknown").get_by_label("day").check()
                page.locator("#unknown").get_by_label("site position").check()
            page.wait_for_timeout(800)
            save(page, f"app_{view}")
        page.click("#recording input")
        page.get_by_role("option", name="three sites").click()
        page.wait_for_function("document.querySelector('#facts').innerText.includes('PMd')")
        page.get_by_role("tab", name="Finetune").click()
        page.click("#train-button")
        page.wait_for_selector('#view-training [data-state="done"]', timeout=600_000)
        save(page, "app_finetune")
        page.get_by_role("tab", name="Sites").click()
        page.wait_for_function(
            "Number(document.querySelector('#view-sites canvas').style.height.slice(0, -2)) > 300"
        )
        save(page, "app_sites")
        phone = open_page(browser, address, viewport={"width": 390, "height": 800}, color_scheme="dark")
        phone.get_by_label("As fast as it goes").check()
        phone.click("#decode-button")
        phone.wait_for_selector('#view-live [data-finished="true"]')
        save(phone, "app_phone")
        browser.close()
    blocks.close(verbose=False)


if __name__ == "__main__":
    main()
