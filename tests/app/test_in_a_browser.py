"""The page in a browser."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from var.app.state import AppState

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = playwright.expect
Page = Any
TIMEOUT = 120_000  # milliseconds: with room for a busy machine
expect.set_options(timeout=TIMEOUT)


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """Addresses that the browser has asked for something."""
    return []


@pytest.fixture(scope="module")
def page(browser: Any, address: str, asked: list[str]) -> Any:
    page = browser.new_page(viewport={"width": 900, "height": 700})  # a larger editor takes longer without a GPU
    page.on("request", lambda request: asked.append(request.url))
    yield open_page(page, address)
    page.close()


def open_page(page: Page, address: str) -> Page:
    page.set_default_timeout(TIMEOUT)
    page.goto(address)
    page.locator("#generate-button").wait_for()
    return page


def click_generate(page: Page, num: int) -> None:
    page.get_by_label("Images of each").fill(str(num))
    page.locator("#generate-button").click()


def test_an_image_appears_scale_by_scale(page: Page) -> None:
    page.evaluate(
        """() => {
            window.seen = [];
            const line = document.querySelector('#generate-scale');
            new MutationObserver(() => window.seen.push(line.innerText))
                .observe(line, {childList: true, subtree: true, characterData: true});
        }"""
    )
    click_generate(page, 1)
    expect(page.locator("#generate-scale")).to_contain_text("1 image")
    scales = {int(number) for text in page.evaluate("window.seen") for number in re.findall(r"scale (\d) of 7", text)}
    assert len(scales) > 2
    expect(page.locator("#generate-images img")).to_have_count(1)
    expect(page.locator("#generate-settings")).to_contain_text("var sample --model var-mini --class 1 --num 1")
    with page.expect_download() as download:
        page.locator("#generate-zip").click()
    assert download.value.suggested_filename == "images.zip"


def test_a_painted_part_is_filled(page: Page, photo: Path) -> None:
    page.get_by_role("tab", name="Edit").click()
    canvas = page.locator("#edit-image canvas").first
    canvas.wait_for(state="attached")  # a file that comes before is lost: the editor is not there yet
    page.locator("#edit-image input[type=file]").first.set_input_files(photo)
    canvas.wait_for()
    page.locator("#edit-image").get_by_label("Brush", exact=True).wait_for()
    page.get_by_label("Results").first.fill("1")
    results = page.locator("#edit-results img")
    for _ in range(3):  # on a busy machine the editor may not yet see a stroke
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 30, y)
        page.mouse.down()
        page.mouse.move(x + 30, y, steps=4)
        page.mouse.up()
        page.locator("#edit-button").click()
        with suppress(playwright.TimeoutError):
            results.first.wait_for(timeout=20_000)
            break
    expect(results).to_have_count(1)


def test_a_bad_upload_gives_a_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no image")
    page.get_by_role("tab", name="Look inside").click()
    page.locator("#inside-image input[type=file]").first.set_input_files(tmp_path / "note.png")
    page.locator("#inside-image img").wait_for(state="attached")
    page.locator("#inside-button").click()
    expect(page.get_by_text("note.png is not an image in one of the formats")).to_be_visible()


def test_a_refused_edit_leaves_earlier_results_as_they_are(browser: Any, address: str) -> None:
    page = open_page(browser.new_page(), address)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#edit-button").click()
    expect(page.get_by_text("no image given: upload one first")).to_be_visible()
    expect(page.locator("#edit-results").get_by_text("Error")).to_have_count(0)
    page.close()


def upload(page: Page, tab: str, photo: Path) -> None:
    page.get_by_role("tab", name=tab).click()
    page.locator(f"#{tab.split()[-1].lower()}-image input[type=file]").first.set_input_files(photo)
    page.locator(f"#{tab.split()[-1].lower()}-image img").wait_for(state="attached")


def test_an_image_is_looked_into(browser: Any, address: str, photo: Path) -> None:
    page = open_page(browser.new_page(), address)
    upload(page, "Look inside", photo)
    page.locator("#inside-button").click()
    for name in ("reconstructions", "tokens", "probabilities"):
        expect(page.locator(f"#inside-{name} img")).to_have_count(7)  # scales of var-mini
    expect(page.locator("#inside-probabilities")).to_contain_text("bits")
    page.close()


def test_neighbors_are_found(browser: Any, address: str, photo: Path) -> None:
    page = open_page(browser.new_page(), address)
    upload(page, "Features", photo)
    page.locator("#features-button").click()
    for name in ("neighbors", "maps"):
        expect(page.locator(f"#features-{name} img")).to_have_count(4)  # the image itself and three others
    expect(page.locator("#features-neighbors")).to_contain_text("this image")
    page.close()


def test_a_run_is_shown_and_followed(browser: Any, mini: AppState, address: str) -> None:
    page = open_page(browser.new_page(), address)
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-run input").click()
    page.get_by_role("option", name="first").click()
    expect(page.locator("#train-status")).to_contain_text("10")
    expect(page.locator("#train-sheets img")).to_have_count(1)
    with (mini.runs / "first" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 11, "split": "train", "loss": 3.75}\n')
    expect(page.locator("#train-status")).to_contain_text("3.75")  # by itself
    page.close()


def test_two_tabs_draw_at_once(browser: Any, page: Page, address: str) -> None:
    page.get_by_role("tab", name="Generate").click()
    other = open_page(browser.new_page(), address)
    for each in (page, other):
        click_generate(each, 2)
    for each in (page, other):
        expect(each.locator("#generate-scale")).to_contain_text("2 images")
    other.close()


def test_no_other_machine_was_asked(page: Page, asked: list[str], address: str) -> None:
    assert page.url.startswith(address)
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
