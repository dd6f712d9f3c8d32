"""`var evaluate generate`: what it prints, the same files from two processes and after a kill, mistakes."""

import hashlib
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import refused, small_var, small_vqvae
from tiny import NAMES, TIMEOUT, Ended, Run, environment, refusal, run, tiny_pipeline

from tokenizer.errors import InputError
from var.evaluation.samples import rejection, sample_folder
from var.pipeline import VARPipeline
from var.utils.locks import locked

# A classifier of 1000 classes that needs no weights: a fixed projection of the pixels.
CLASSIFIER = """
from types import SimpleNamespace
import torch
from var.evaluation.samples import rejection
from var.evaluation.metrics.extractors import ExtractedFeatures

class Classifier(SimpleNamespace):
    def __call__(self, images):
        weight = torch.randn(192, 1000, generator=torch.Generator().manual_seed(0))
        pixels = images.double().flatten(1) / 255
        return ExtractedFeatures(pixels, (pixels @ weight.double()).float(), None)

def opened(name, weights=None, device="auto"):
    return Classifier(name=name, version="1")

rejection.open_extractor = opened
"""
COMMAND = """
from var.cli.evaluation.generate import generate
from var.cli.run import run
run(generate)
"""
# Three times in one process, which start slowly: two that are refused, then what is asked for.
AFTER_REFUSALS = """
import sys
from var.cli.evaluation.generate import generate
from var.cli.run import run
asked = sys.argv
for refused in (["--class", "dragon"], ["--out", "foreign"]):
    sys.argv = [*asked, *refused]
    try:
        run(generate)
    except SystemExit as end:
        sys.stdout.write(f"left with {end.code}\\n")  # in one piece, as two processes write here
sys.argv = asked
run(generate)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four classes, and one of three of ImageNet's 1000."""
    folder = tmp_path_factory.mktemp("work")
    tiny_pipeline(NAMES).save_pretrained(folder / "model")
    imagenet = {1: "goldfish", 207: "golden retriever", 999: "toilet tissue"}
    VARPipeline(small_var(num_classes=1000), small_vqvae(), imagenet).save_pretrained(folder / "large")
    (folder / "command.py").write_text(COMMAND)
    (folder / "classifier.py").write_text(CLASSIFIER)
    (folder / "rejecting.py").write_text("import classifier\n" + AFTER_REFUSALS)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "x.txt").write_text("")
    slowed = "import time\nfrom var.evaluation.samples import generate as samples\ndraw = samples.generate\n"
    slowed += "def slowly(*given, **options):\n    time.sleep(0.2)\n    return draw(*given, **options)\n"
    (folder / "slow.py").write_text(slowed + "samples.generate = slowly\n" + COMMAND)
    return folder


@pytest.fixture
def draw(var: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in the folder of the models."""
    monkeypatch.chdir(work)
    monkeypatch.setattr("os.cpu_count", lambda: 1)

    def call(*options: object, model: str = "model") -> Ended:
        common = ("--model", model, "--device", "cpu", "--dtype", "float32")
        return var("evaluate", "generate", *common, *options)

    return call


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_it_tells_what_was_drawn_and_then_that_nothing_is_left_to_do(draw: Run, work: Path) -> None:
    options = ("--num-per-class", 5, "--batch", 4, "--out", "told")
    code, out, err = draw(*options, "--no-npz")
    assert (code, err) == (0, "")
    *progress, last = out.splitlines()
    assert [line.split("  ")[0] for line in progress] == [f"generated {done} of 20" for done in (4, 8, 12, 16, 20)]
    assert progress[-1].endswith(" images/s  0:00:00 left")
    assert last.startswith("generate: told/images holds 20 images of 4 classes; 20 generated now, ")
    assert last.endswith(" images/s")
    assert not (work / "told" / "samples.npz").exists()
    told = "generate: told/images holds 20 images of 4 classes; also told/samples.npz; all existed already\n"
    assert draw(*options) == (0, told, "writing told/samples.npz\n")
    assert draw(*options) == (0, told, "")
    (work / "told" / "samples.npz").write_bytes(b"junk")
    assert draw(*options) == (0, told, "writing told/samples.npz\n")
    with np.load(work / "told" / "samples.npz") as npz:
        assert (npz["arr_0"].shape, npz["arr_1"].tolist()) == ((20, 8, 8, 3), [0, 1, 3, 4] * 5)


def test_the_folder_is_locked_until_samples_npz_is_written(draw: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, _: object) -> None:
        with refused("is in use by process"), locked(folder):
            pass
        raise InputError("came here")

    monkeypatch.setattr(sample_folder, "write_samples_npz", write)
    code, _, err = draw("--num-per-class", 1, "--out", "locked")
    assert (code, err) == (2, "writing locked/samples.npz\nerror: came here\n")


def test_two_processes_write_the_same_files(draw: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the candidates kept, which is all that there is; of every file, settings and scores too.

    Before that they are refused: by all processes and by the first one alone, in one line each time.
    """
    options = ("--num-per-class", 4, "--batch", 5, "--reject", 0.5)
    monkeypatch.setattr(rejection, "open_extractor", rejection.open_extractor)  # to be put back
    runpy.run_path(str(work / "classifier.py"))
    code, out, _ = draw(*options, "--out", "one", model="large")
    assert code == 0
    assert "12 images of 3 classes, the best of 8 per class by efficientnet-lite1; also one/samples.npz; 24 " in out
    common = ("--model", "large", "--device", "cpu", "--dtype", "float32", "--out", "two")
    launched = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "rejecting.py")
    done = run(*launched, *common, *options, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("left with 2") == 4
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert ["dragon" in told[0], "foreign holds other files, such as x.txt" in told[1], len(told)] == [True, True, 2]
    assert "Traceback" not in done.stderr
    assert done.stdout.count("generate: ") == 1
    assert "24 generated now" in done.stdout
    assert len(hashes(work / "one" / "images")) == 12
    assert hashes(work / "two") == hashes(work / "one")


def test_killed_and_told_again(draw: Run, work: Path) -> None:
    """SIGKILL after a few images: the same command completes the same set."""
    options = ["--num-per-class", "6", "--batch", "2"]
    common = ["--model", "model", "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "slow.py", *common, *options, "--out", "killed"]
    images = work / "killed" / "images"
    with subprocess.Popen(command, cwd=work, env=environment(), stdout=subprocess.PIPE) as process:
        end = time.monotonic() + TIMEOUT
        while len(list(images.glob("0*.png"))) < 5 and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
    there = len(list(images.glob("0*.png")))
    assert 5 <= there < 24
    assert not (work / "killed" / "samples.npz").exists()
    code, out, _ = draw(*options, "--out", "killed")
    assert code == 0
    assert any(f"; {24 - part} generated now" in out for part in (there - there % 2, there - there % 2 - 2))
    assert draw(*options, "--out", "whole")[0] == 0
    assert hashes(work / "killed") == hashes(work / "whole")


def test_mistakes(draw: Run, work: Path) -> None:
    refusal(draw(), "--out", "--help lists the options")
    refusal(draw("--out", "x", model="nowhere"), "'nowhere' is neither a folder nor a known name")
    refusal(draw("--out", "x", "--class", "dragon"), "dragon")
    refusal(draw("--out", "x", "--num-per-class", 0, model="nowhere"), "num_per_class=0")
    refusal(draw("--out", "x", "--reject-by", "efficientnet-lite2"), "--reject-by efficientnet-lite2 needs --reject")
    refusal(draw("--out", "x", "--reject", 0.5), "the model has 5 classes", "ImageNet's 1000")
    refusal(draw("--out", "x", "--reject", 0.5, "--reject-by", "nothing", model="nowhere"), "nothing is no classifier")
    refusal(draw("--out", "x", "--batch", 0, model="nowhere"), "batch=0")
    refusal(draw("--out", "x", "--reject", 3, model="nowhere"), "reject=3.0 must be in (0, 1]")
    refusal(draw("--out", "model/model.txt/x", "--device", "tpu"), "device 'tpu'")
    refusal(draw("--out", "command.py"), "command.py is a file")
    refusal(draw("--out", "model"), "model holds other files, such as tokenizer")
    assert not (work / "x").exists()
    assert draw("--out", "x", "--num-per-class", 1)[0] == 0
    refusal(draw("--out", "x", "--num-per-class", 1, "--seed", 1), "x was begun with seed=0, not 1")
