"""`python train.py RECIPE key=value`: what it prints, and that every mistake is one line and exit code 2."""

from pathlib import Path

import pytest
from tiny import ROOT, TOKENIZER, VAR, Run, image_folder, merged, refusal, run, write_recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", merged(TOKENIZER, {"data": {"source": str(images)}}))


def test_both_stages_one_after_the_other(var: Run, recipe: Path, images: Path, tmp_path: Path) -> None:
    code, out, err = var("train", recipe, "steps=2", "output=first")
    assert code == 0, err
    assert "step 2/2" in out
    assert "images/s" in out
    assert "left" in out
    assert "step 2  validation  psnr" in out
    assert out.splitlines()[-1] == "model: first/model"
    base = merged(VAR, {"data": {"source": str(images)}, "tokenizer": "first/model"})
    code, out, err = var("train", write_recipe(tmp_path / "var.yaml", base, steps=2), "output=second")
    assert code == 0, err
    assert out.splitlines()[-1] == "model: second/model"
    assert (tmp_path / "second" / "model" / "transformer" / "config.json").is_file()


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lrr=1", ("optimizer.lrr=1 is not a known key", "did you mean optimizer.lr?")),
        ("batch_size=0", ("batch_size=0",)),
        ("batch_size=many", ('batch_size="many"', "valid integer")),
        ("model.scales=[1,3,2]", ("scales [1, 3, 2]", "increasing order")),
        ("model.base_width=10", ("base_width 10", "norm_groups=4")),
        ("stage=both", ('stage="both" is unknown', "tokenizer, var")),
        ("epochs=-1", ("epochs=-1", "greater than 0")),
        ("data.source=nowhere/at/all", ("data.source='nowhere/at/all'", "does not exist")),
        ("data.classes=[0,7]", ("data.classes", "[7]", "only of 0, 1")),
        ("nonsense", ("'nonsense'", "key=value")),
    ],
)
def test_recipes_that_cannot_work(
    var: Run, recipe: Path, override: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    refusal(var("train", recipe, override), *parts)
    assert not (tmp_path / "recipe").exists()  # stopped before anything was written


def test_files_that_are_not_there(var: Run, tmp_path: Path, images: Path) -> None:
    refusal(var("train"), "RECIPE", "--help lists the options")
    refusal(var("train", tmp_path / "none.yaml"), "none.yaml does not exist")
    (tmp_path / "empty").mkdir()
    base = merged(TOKENIZER, {"data": {"source": str(tmp_path / "empty")}})
    refusal(
        var("train", write_recipe(tmp_path / "r.yaml", base)),
        str(tmp_path / "empty"),
        "holds neither a train folder nor train*.parquet",
    )
    base = merged(VAR, {"data": {"source": str(images)}, "tokenizer": "no/such/tokenizer"})
    refusal(var("train", write_recipe(tmp_path / "v.yaml", base)), "tokenizer='no/such/tokenizer' does not exist")


def test_a_model_without_a_start_for_its_scales(var: Run, recipe: Path, images: Path, tmp_path: Path) -> None:
    """The transformer needs a first scale of one token, whatever the tokenizer was trained with."""
    assert var("train", recipe, "steps=1", "model.scales=[2,4]", "output=first")[0] == 0
    base = merged(VAR, {"data": {"source": str(images)}, "tokenizer": "first/model"})
    refusal(var("train", write_recipe(tmp_path / "v.yaml", base)), "scales [2, 4] must begin with 1")


def test_an_output_that_cannot_be_made(var: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refusal(var("train", recipe, "output=file"), "cannot write file", "is a file", "give another folder")
    refusal(var("train", recipe, "output=file/run"), "cannot write file/run", "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_too_many_truncated_images(var: Run, recipe: Path, images: Path) -> None:
    for path in sorted(images.glob("train/*/*.png"))[:6]:
        path.write_bytes(path.read_bytes()[:60])
    code, out, err = var("train", recipe, "data.max_unreadable=0.001", "batch_size=8")
    assert (code, "model: " in out) == (2, False)
    line = err.splitlines()[-1]
    for part in ("of 8 images wanted could not be read", "data.max_unreadable=0.001", ".png", "repair or replace"):
        assert part in line


def test_checkpoints_of_another_recipe(var: Run, recipe: Path) -> None:
    assert var("train", recipe, "steps=1")[0] == 0
    refusal(
        var("train", recipe, "steps=2", "model.latent_dim=8"),
        "belong to another recipe",
        "with model=",
        "another output",
    )


def test_the_script_in_a_process_of_its_own(recipe: Path, tmp_path: Path) -> None:
    done = run(ROOT / "train.py", recipe, "data.source=/nowhere", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data.source='/nowhere' does not exist")
