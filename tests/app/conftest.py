"""The page served in this process, and a browser without a window."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_client import Visitor
from PIL import Image
from tiny import picture

from var.pipeline import VARPipeline

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'var-next-scale[app]'")

from var.app.page import own_folder, serving  # noqa: E402
from var.app.state import AppState  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppState]:
    """The state of a page with var-mini, and folders for it."""
    root = tmp_path_factory.mktemp("page")
    for folder in ("images/birds", "images/cups", "runs/first/pictures"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        picture(0, i).save(root / "images" / "birds" / f"{i}.png")
    lines = [{"step": step, "split": "train", "loss": 5 - step / 10} for step in range(1, 11)]
    (root / "runs" / "first" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture(0, 0).save(root / "runs" / "first" / "pictures" / "step-00000010.png")
    with own_folder() as folder:
        pipe = VARPipeline.from_pretrained("var-mini").pack()
        yield AppState(pipe, "var-mini", folder, root / "runs", root / "images")


@pytest.fixture
def state(pipe: VARPipeline, tmp_path: Path) -> AppState:
    """The state of a page with random weights."""
    return AppState(pipe, "tiny", tmp_path, tmp_path / "runs")


@pytest.fixture(scope="module")
def address(mini: AppState) -> Iterator[str]:
    with serving(mini) as address:
        yield address


@pytest.fixture
def visitor(address: str) -> Visitor:
    """Somebody who asks the server without a browser."""
    return Visitor(address)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        if path is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A file of 64 x 64 px."""
    path = tmp_path / "photo.png"
    picture(1, 5, 64).resize((64, 64), Image.Resampling.NEAREST).save(path)
    return path
