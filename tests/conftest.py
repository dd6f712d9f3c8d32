"""One thread: the models here are so small that threads only wait for one another, above all on a busy machine."""

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="how often tests/training/test_kill.py kills its run")
