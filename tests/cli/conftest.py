"""What the commands are tried on."""

from pathlib import Path

import pytest
from tiny import NAMES, tiny_pipeline


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline with random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline(NAMES).save_pretrained(folder)
    return folder
