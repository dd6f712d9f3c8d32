"""Contact sheets: a bounded choice of many images, captions."""

import itertools

import pytest
from PIL import Image

from var.utils.sheets import caption_tile, choose_tiles


@pytest.mark.parametrize(
    ("classes", "num", "shown", "columns"),
    [
        (1, 1, 1, 8),
        (8, 1, 8, 8),  # a row, not a column
        (2, 2, 4, 2),  # a row a class
        (8, 4, 32, 4),
        (1, 64, 64, 8),
        (8, 200, 64, 8),
        (3, 200, 48, 8),  # whole rows of each
        (10, 50, 60, 6),
        (30, 3, 60, 8),  # four classes a row
        (64, 2, 64, 8),
        (1000, 50, 63, 8),
    ],
)
def test_a_sheet_shows_all_or_as_many_of_each_class(classes: int, num: int, shown: int, columns: int) -> None:
    labels = [label for label in range(classes) for _ in range(num)]
    chosen, found = choose_tiles(labels)
    assert (len(chosen), found) == (shown, columns)
    assert chosen == sorted(set(chosen))
    seen = [labels[place] for place in chosen]
    assert len({seen.count(label) for label in seen}) == 1
    assert max(seen) - min(seen) >= classes - max(classes // 32, 1)  # from all over the classes


def test_label_and_name_of_a_caption_are_apart() -> None:
    captioned = caption_tile(Image.new("RGB", (128, 8)), "1024 red").crop((0, 8, 128, 24)).convert("L")
    dark = [x for x in range(128) if captioned.crop((x, 0, x + 1, 16)).getextrema()[0] < 200]
    assert max(b - a for a, b in itertools.pairwise(dark)) > 4  # pixels


def test_a_caption_that_is_too_long_is_cut() -> None:
    image = Image.new("RGB", (128, 128), "red")
    for text in ("207 golden retriever", "a" * 300, ""):
        captioned = caption_tile(image, text)
        assert captioned.size == (128, 144)
        assert captioned.crop((0, 0, 128, 128)).tobytes() == image.tobytes()
        below = captioned.crop((0, 128, 128, 144)).convert("L")
        assert (below.getextrema()[0] < 100) == bool(text)
        assert below.crop((126, 0, 128, 16)).getextrema() == (255, 255)
