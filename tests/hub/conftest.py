"""The hub that the tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny_hub import TOKEN, Hub, serve, use


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of the test's own, to which the client is logged in, with an empty cache."""
    with serve() as hub:
        use(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
