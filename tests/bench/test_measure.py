"""The floor of a result, from speeds and operations that are given."""

import pytest
import torch

from var.bench.ceilings import CHANNELS_LAST, CONVOLUTION, COPY, INT8_PRODUCT, PRODUCT
from var.bench.counting import Operations
from var.bench.measure import Result, Speed
from var.bench.timing import Spread
from var.bench.works import Setting


def test_the_floor_is_products_and_convolutions_at_their_ceilings() -> None:
    speeds = {PRODUCT: 100.0, CONVOLUTION: 10.0, CHANNELS_LAST: 20.0, COPY: 1.0}
    ceilings = {name: Speed("", Spread.of([speed])) for name, speed in speeds.items()}
    setting = Setting(4, torch.float32, torch.device("cpu"), compiled=False)
    result = Result("decode", setting, Spread.of([7.0, 8.0, 50.0]), 0, Operations(300, 20), ceilings)
    assert result.floor == pytest.approx(300 / 100 + 20 / 20)
    assert result.time_over_floor == pytest.approx(8 / 4)
    assert result.images_per_second == pytest.approx(4 / 8)

    ceilings[INT8_PRODUCT] = Speed("", Spread.of([400.0]))
    in_int8 = Result("sample", setting, Spread.of([8.0]), 0, Operations(300, 20, 800), ceilings)
    assert in_int8.floor == pytest.approx(300 / 100 + 20 / 20 + 800 / 400)
