"""Most tests import torchvision in a fresh process: a process can only import it for the first time once."""

import subprocess
import sys
from pathlib import Path

import pytest

from var.utils.classes import imagenet_names
from var.utils.torchvision_compat import import_torchvision

ROOT = Path(__file__).parents[2]


def run(code: str, *search_path: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(path) for path in (*search_path, ROOT)]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def fake_torchvision(tmp_path: Path) -> Path:
    """The folder of a package that stands in for torchvision; a test writes its source."""
    package = tmp_path / "torchvision"
    package.mkdir()
    return package


def test_transforms_work_and_repeated_calls_return_the_same_module() -> None:
    done = run("""
import gc
from var.utils.torchvision_compat import import_torchvision

torchvision = import_torchvision()
gc.collect()
assert import_torchvision() is torchvision is sys.modules["torchvision"]

from PIL import Image
from torchvision.transforms import v2

image = v2.Compose([v2.Resize(48), v2.RandomCrop(32)])(Image.new("RGB", (96, 64), "red"))
assert image.size == (32, 32) and image.getpixel((0, 0)) == (255, 0, 0)

import torch
from torchvision import datasets, models, utils
assert hasattr(torch.ops.torchvision, "nms")
""")
    assert done.returncode == 0, done.stderr


def test_failed_import_before_the_call_does_no_harm() -> None:
    done = run("""
try:
    import torchvision
except RuntimeError:
    pass  # expected only where the compiled operators are missing
from var.utils.torchvision_compat import import_torchvision

import_torchvision().transforms.CenterCrop(8)
""")
    assert done.returncode == 0, done.stderr


def test_module_itself_does_not_import_torchvision() -> None:
    done = run("import var.utils.torchvision_compat; assert 'torchvision' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_torchvision_imports(fake_torchvision: Path) -> None:
    (fake_torchvision / "__init__.py").write_text("working = True\n")
    done = run(
        """
import torch
from var.utils.torchvision_compat import import_torchvision

assert import_torchvision().working
assert not hasattr(torch.ops.torchvision, "nms")
""",
        fake_torchvision.parent,
    )
    assert done.returncode == 0, done.stderr


def test_other_errors_pass_through(fake_torchvision: Path) -> None:
    (fake_torchvision / "__init__.py").write_text("raise RuntimeError('not about operators')\n")
    done = run(
        "from var.utils.torchvision_compat import import_torchvision; import_torchvision()", fake_torchvision.parent
    )
    assert done.returncode == 1
    assert "RuntimeError: not about operators" in done.stderr


def test_without_it_classes_have_their_names_and_what_needs_it_says_so() -> None:
    done = run("""
sys.modules["torchvision"] = None
from tokenizer.errors import InputError
from var.utils.classes import imagenet_names
from var.utils.torchvision_compat import import_torchvision

assert imagenet_names()[207] == "golden retriever"
try:
    import_torchvision()
except InputError as error:
    assert "torchvision is not installed: make develop" in str(error)
else:
    raise AssertionError
""")
    assert done.returncode == 0, done.stderr


def test_classes_have_the_names_that_it_lists() -> None:
    categories = import_torchvision().models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert list(imagenet_names().values()) == categories
