"""`var features extract|classify`: what they print and write, a real kill, and mistakes in one line."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import randomize
from tiny import TIMEOUT, Run, environment, picture, refusal, run

from var.hub.checkpoint import save_model
from var.models.aim import Encoder, EncoderConfig


@pytest.fixture(autouse=True)
def work(tmp_path: Path) -> Path:
    """train/ and val/ of two classes, 24 and 6 images, and two encoders."""
    for split, first, count in (("train", 0, 12), ("val", 12, 3)):
        for label, name in enumerate(("bar", "cup")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(first, first + count):
                picture(label, index).save(tmp_path / split / name / f"{index:02d}.png")
    for seed, name in enumerate(("model", "other")):
        encoder = Encoder(EncoderConfig(image_size=16, patch_size=8, width=8, depth=3, heads=2))
        randomize(encoder, seed)
        save_model(tmp_path / name, encoder)
    return tmp_path


def test_features_tells_what_it_did_and_then_that_nothing_is_left_to_do(var: Run, work: Path) -> None:
    arguments = shlex.split("features extract train --model model --out f.parquet --layers 2,0 --batch 5")
    code, out, err = var(*arguments)
    assert (code, err) == (0, "")
    *progress, last = out.splitlines()
    assert progress[-1].startswith("encoded 24 of 24  ")
    assert last.startswith("features: f.parquet holds 24 features, 8 numbers each, 2 classes, 24 images now, ")
    assert last.endswith(" images/s")
    told = json.loads(pq.read_schema(work / "f.parquet").metadata[b"var.features"])
    assert (told["model"], told["layers"], told["pool"]) == ("model", [0, 2], "mean")
    assert var(*arguments) == (
        0,
        "features: f.parquet holds 24 features, 8 numbers each, 2 classes, all of them there already\n",
        "",
    )


def test_sizes_of_baselines_are_named_and_changed(var: Run, work: Path) -> None:
    for model, layers in (("untrained", [0, 1]), ("pixels", [0])):
        sizes = "aim-tiny,image_size=16, patch_size=8,depth=2,mlp_ratio=2.5"
        code, _, err = var("features", "extract", "val", "--model", model, "--sizes", sizes, "--out", model)
        assert (code, err) == (0, "")
        told = json.loads(pq.read_schema(work / model).metadata[b"var.features"])
        assert (told["width"], told["patches"], told["layers"]) == (192, 4, layers)  # 192: 3 * 8 * 8 as well


def test_tables_are_listed_without_a_word_before_the_error(work: Path) -> None:
    """In a process of its own: `datasets` shows its progress once for a file."""
    (work / "tables").mkdir()
    pq.write_table(pa.table({"picture": [b""]}), work / "tables" / "train.parquet")
    arguments = ("features", "extract", "tables", "--split", "train", "--model", "model", "--out", "f.parquet")
    done = run("-m", "var", *arguments, cwd=work, HF_HOME=work / "hub")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.image_column='image' is no column")
    assert done.returncode == 2


def test_images_found_are_said_on_standard_error(work: Path) -> None:
    """In a process of its own: here pytest has set up logging, and a command leaves that as it is."""
    arguments = ("features", "extract", "val", "--model", "model", "--out", "f.parquet")
    done = run("-m", "var", *arguments, cwd=work)
    assert (done.returncode, done.stderr.splitlines()) == (0, ["val: 6 images found"])


def test_a_split_that_is_not_there_has_a_remedy_of_this_command(var: Run, work: Path) -> None:
    """Not data.validation_fraction, which it cannot be given."""
    (work / "val").rename(work / "train" / "other")
    ended = var("features", "extract", ".", "--split", "validation", "--model", "model", "--out", "f.parquet")
    refusal(ended, "'.' has no validation images: take the other split, or give the folder of the images without")
    assert "validation_fraction" not in ended[2]


def test_unreadable_images_are_lines_on_standard_error(var: Run, work: Path) -> None:
    (work / "val" / "cup" / "13.png").write_bytes(b"no picture")
    code, out, err = var("features", "extract", "val", "--model", "model", "--out", "f.parquet", "--pool", "none")
    assert code == 0
    assert out.splitlines()[-1].startswith("features: f.parquet holds 5 features, 32 numbers each, 2 classes")
    assert out.splitlines()[-1].endswith("; 1 image could not be read")
    (line,) = err.splitlines()
    assert line.startswith("left out: val/cup/13.png is not an image")


def test_a_killed_run_goes_on_to_the_same_file(var: Run, work: Path) -> None:
    """SIGKILL after the second part, in a process of its own."""
    script = (
        "import time\nfrom var.features import extract\nfrom var.cli import app\n"
        "extract.PART_IMAGES, compute = 4, extract._features\n"
        "def slowly(*given):\n    time.sleep(0.2)\n    return compute(*given)\n"
        "extract._features = slowly\napp.main()\n"
    )
    arguments = shlex.split("features extract train --model model --batch 2 --device cpu --dtype float32")
    parts = work / "killed.parquet.parts"
    command = [sys.executable, "-c", script, *arguments, "--out", "killed.parquet"]
    with subprocess.Popen(command, cwd=work, env=environment(), stdout=subprocess.PIPE) as process:
        end = time.monotonic() + TIMEOUT
        while not (parts / "00001.parquet").exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
    assert not (work / "killed.parquet").exists()
    done = len(list(parts.glob("0*.parquet")))
    assert 2 <= done < 6
    code, out, _ = var(*arguments, "--out", "killed.parquet")
    assert (code, f"{24 - 4 * done} images now" in out) == (0, True)
    assert not parts.exists()
    assert var(*arguments, "--out", "whole.parquet")[0] == 0
    killed, whole = (pq.ParquetFile(work / f"{name}.parquet") for name in ("killed", "whole"))
    assert killed.read().equals(whole.read(), check_metadata=True)


def test_classify(var: Run, work: Path) -> None:
    for split in ("train", "val"):
        assert var("features", "extract", split, "--model", "model", "--out", f"{split}.parquet")[0] == 0
    code, out, err = var(
        "features", "classify", "train.parquet", "val.parquet", "--k", 3, "--json", "results/found.json"
    )
    assert (code, err) == (0, "")
    heading, neighbors, linear = out.splitlines()
    assert heading == "model, layers 0, 1, 2, 8 numbers an image: 24 images of 2 classes in training, 6 in validation"
    found = json.loads((work / "results" / "found.json").read_text())
    expected = {"model": "model", "layers": [0, 1, 2], "classes": 2, "train": 24, "validation": 6}
    assert {name: found[name] for name in expected} == expected
    assert neighbors.startswith("k nearest neighbors")
    assert f"top-1 {found['nearest_neighbours']['top1']:7.2%}   top-5 100.00%   (k=3, cosine)" in neighbors
    assert linear.startswith("logistic regression")
    assert f"top-1 {found['linear']['top1']:7.2%}   top-5 100.00%   (C={found['linear']['strength']:g})" in linear
    assert set(found["linear"]) == {"top1", "top5", "strength", "held_out", "converged"}
    # The classes differ in color, which even a random encoder passes on.
    assert found["nearest_neighbours"]["top1"] > 0.5


def test_mistakes_of_features(var: Run, work: Path) -> None:
    def features(*options: object, folder: str = "train", model: str = "model", out: str = "f.parquet") -> object:
        return var("features", "extract", folder, "--model", model, "--out", out, *options)

    refusal(var("features", "extract", "train"), "--model", "--help lists the options")
    refusal(features(folder="nowhere"), "nowhere does not exist")
    refusal(features(folder="model"), "model holds no image files")
    refusal(features(model="nowhere"), "'nowhere' is neither a folder nor a known name", "aim-600M")
    refusal(features(model="train"), "train has no config.json")
    refusal(features("--layers", "7"), "layers [7] must be different blocks in 0..2")
    refusal(features("--layers", "0,x"), "--layers '0,x' must be last, best, or blocks")
    refusal(features("--layers", "best"), "take last, or a list")
    refusal(features("--batch", 0), "batch=0 must be in 1..16777216")
    refusal(features("--pool", "max"), "--pool", "'max'")
    refusal(features("--device", "tpu"), "device 'tpu'")
    refusal(features("--split", "train", folder="nowhere"), "'nowhere' does not exist")
    refusal(features(out="model"), "model is a folder")
    (work / "other.parquet").write_text("no Parquet")
    refusal(features(out="other.parquet"), "other.parquet is not a features file: give another --out")
    for name in ("g.csv", "model/config.json"):
        refusal(features(out=name), f"--out '{name}': features are written as Parquet", "features.parquet")
    refusal(features("--layers", "0," * 5000), "--layers '0,0,", "...", "must be last, best, or blocks")
    refusal(features(model="pixels"), "model=pixels needs sizes")
    for sizes, message in {
        "aim-9": "preset='aim-9' is unknown (did you mean aim-7B?): take one of aim-tiny",
        "aim-tiny,depth": "'depth' must be a size, such as image_size=48",
        "aim-tiny,depth=x": "'depth=x' must give a number",
        "aim-tiny,dept=2": "known are image_size, patch_size, width, depth, heads, mlp_ratio",
        "aim-tiny,image_size=15": "image_size=15 must be a multiple of patch_size=14",
    }.items():
        refusal(features("--sizes", sizes, model="pixels"), f"--sizes {sizes!r}", message)
    refusal(features("--sizes", "aim-tiny", model="model"), "model='model' has image_size=16, not sizes.image_size=224")
    refusal(features(out="model/config.json/f.parquet"), "config.json is a file")
    assert not list(work.glob("f.parquet*"))
    assert var("features", "extract", "train", "--model", "model", "--out", "f.parquet")[0] == 0
    refusal(features(model="other"), "f.parquet was made by another model (model)", "give another --out")


def test_mistakes_of_classify(var: Run, work: Path) -> None:
    for name, folder, model in (("a", "train", "model"), ("b", "val", "model"), ("c", "val", "other")):
        assert var("features", "extract", folder, "--model", model, "--out", name)[0] == 0
    assert var("features", "extract", "train/bar", "--model", "model", "--out", "unlabelled")[0] == 0
    refusal(var("features", "classify", "a"), "VALIDATION", "--help lists the options")
    refusal(var("features", "classify", "a", "nowhere"), "nowhere does not exist")
    refusal(var("features", "classify", "a", "model/config.json"), "config.json is not a features file")
    refusal(var("features", "classify", "a", "unlabelled"), "unlabelled: 12 of 12 images have no label")
    refusal(var("features", "classify", "a", "c"), "others than the training features: of other, not model")
    refusal(var("features", "classify", "a", "b", "--k", 25), "k=25 must be in 1..24")
    refusal(var("features", "classify", "a", "b", "--json", "model"), "model is a folder")
