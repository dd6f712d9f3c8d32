"""Memory and time of the page over many requests, and its screenshots for the docs.

python benchmarks/page.py memory --requests 200
python benchmarks/page.py screenshots --out docs
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "app"))

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def served(model: str) -> Iterator[tuple[Any, str]]:
    """Serve the page on a free port; its state and address."""
    from var.app.page import own_folder, serving
    from var.app.state import AppState
    from var.pipeline import VARPipeline

    pipe = VARPipeline.from_pretrained(model).pack()
    with own_folder() as folder:
        state = AppState(pipe, model, folder, ROOT / "runs", ROOT / "data")
        with serving(state) as address:
            yield state, address


def measure_memory(model: str, requests: int) -> None:
    """Print the resident memory and the files of the page over requests, one after the other, then eight at once."""
    import psutil
    from page_client import Visitor

    process = psutil.Process()
    with served(model) as (state, address):
        visitor = Visitor(address)

        def draw(seed: int) -> None:
            last = visitor.click("generate-button", {1: 1, 2: seed})[-1]
            assert last["success"], last

        def report(done: int) -> None:
            files = [path for path in state.folder.rglob("*") if path.is_file()]
            print(
                f"{done:4} requests  {process.memory_info().rss / 2**20:7.1f} MiB  {len(files):5} files of "
                f"{sum(path.stat().st_size for path in files) / 2**20:.1f} MiB",
                flush=True,
            )

        began = time.perf_counter()
        for seed in range(requests):
            if seed % max(requests // 10, 1) == 0:
                report(seed)
            draw(seed)
        report(requests)
        print(f"{(time.perf_counter() - began) / requests:.2f} s a request")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(draw, range(requests, requests + 8)))
        report(requests + 8)


def take_screenshots(model: str, out: Path) -> None:
    """Write app_generate.png and app_edit.png."""
    import shutil

    from playwright.sync_api import expect, sync_playwright

    from var.utils.images import enlarge

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with served(model) as (state, address), tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        photo = Path(folder) / "photo.png"
        enlarge(state.pipe(970, seed=3).images[0], 128).save(photo)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.get_by_label("Images of each").fill("8")
        page.locator("#generate-button").click()
        expect(page.locator("#generate-scale")).to_contain_text("8 images", timeout=120_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=out / "app_generate.png")
        page.get_by_role("tab", name="Edit").click()
        page.locator("#edit-image canvas").first.wait_for(state="attached")  # the editor is there
        page.locator("#edit-image input[type=file]").first.set_input_files(photo)
        page.locator("#edit-image").get_by_label("Brush", exact=True).wait_for()
        page.wait_for_timeout(5000)
        paint(page)
        page.locator("#edit-button").click()
        expect(page.locator("#edit-results img")).to_have_count(2, timeout=120_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=out / "app_edit.png", full_page=True)
        browser.close()


def paint(page: Any) -> None:
    """Paint over the middle of the image in the editor."""
    canvas = page.locator("#edit-image canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    for step in range(9):
        page.mouse.move(x - 40 + 10 * step, y + (12 if step % 2 else -12))
    page.mouse.up()
    page.wait_for_timeout(1500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "screenshots"))
    parser.add_argument("--model", default="var-mini")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    given = parser.parse_args()
    if given.what == "memory":
        measure_memory(given.model, given.requests)
    else:
        take_screenshots(given.model, given.out)


if __name__ == "__main__":
    main()
