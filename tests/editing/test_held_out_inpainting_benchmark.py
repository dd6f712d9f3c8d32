"""`python benchmarks/held_out_inpainting.py`: what is hidden, and what every way to fill leaves as it is."""

import runpy
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT
from tiny_sampling import models

from var import VARPipeline


def test_every_fill_keeps_the_half_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "held_out_inpainting.py"))
    mask = script["right_half"](8)
    assert mask.sum(axis=0).tolist() == [0] * 4 + [8] * 4
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    fills = script["ways_to_fill"](VARPipeline(*models()), mask)
    if find_spec("cv2") is None:  # not among the packages that the tests install
        del fills["Telea (OpenCV)"]
    results = {name: np.asarray(fill(image, 1, 0)) for name, fill in fills.items()}
    for filled in results.values():
        np.testing.assert_array_equal(filled[:, :4], pixels[:, :4])
    assert len({filled.tobytes() for filled in results.values()}) == len(results)
