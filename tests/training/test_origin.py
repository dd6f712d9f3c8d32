"""What a run depends on besides its recipe, and who else is in its folder: resuming refuses other ones."""

import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import refused, small_vqvae
from tiny import image_folder, picture, var_recipe

from var.data.shard_index import write_index
from var.hub.checkpoint import load_tokenizer, save_model
from var.training.checkpointing import load_newest, save_checkpoint
from var.training.distributed import build_accelerator
from var.training.loop import train
from var.training.stages.var import VARRecipe
from var.training.trainer import Trainer
from var.utils.locks import locked


@pytest.fixture
def begun(tmp_path: Path) -> VARRecipe:
    """A run of stage 2 with a checkpoint of its first step."""
    save_model(tmp_path / "tokenizer", small_vqvae())
    recipe = var_recipe(tmp_path / "run", image_folder(tmp_path / "data"), tmp_path / "tokenizer", model={"depth": 1})
    trainer = open_run(recipe)
    trainer.step = 1
    trainer.save()
    return recipe


def open_run(recipe: VARRecipe) -> Trainer:
    return Trainer(recipe, build_accelerator(recipe))


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for split in ("train", "val"):
            (folder / "data" / split / old).rename(folder / "data" / split / new)

    return change


def swap(split: str, one: str = "bar", other: str = "cup") -> Callable[[Path], None]:
    """Exchange the contents of two folders, or two images, which keep their names."""

    def change(folder: Path) -> None:
        first, second, aside = (folder / "data" / split / name for name in (one, other, "aside"))
        first.rename(aside)
        second.rename(first)
        aside.rename(second)

    return change


def replace_images(folder: Path) -> None:
    for path in (folder / "data/train").glob("*/[0-2].png"):
        picture(2, int(path.stem)).save(path)


def replace_tokenizer(folder: Path) -> None:
    save_model(folder / "tokenizer", small_vqvae(seed=1))


def finetune_decoder(folder: Path) -> None:
    vqvae = load_tokenizer(folder / "tokenizer")
    vqvae.decoder.conv_out.bias.data += 1e-3
    save_model(folder / "tokenizer", vqvae)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another name": (rename("cup", "mug"), "label 1 was 'cup' and is now 'mug'"),
    "names that change places": (rename("bar", "zoo"), "label 0 was 'bar' and is now 'cup'"),
    "a class more": (
        lambda folder: shutil.copytree(folder / "data/train/cup", folder / "data/train/zoo"),
        "label 2 was without a name and is now 'zoo'",
    ),
    "an image less": (
        lambda folder: (folder / "data/train/cup/0.png").unlink(),
        "it had 8 training images, the data has 7 now",
    ),
    "a validation image more": (
        lambda folder: picture(0, 9).save(folder / "data/val/bar/9.png"),
        "it had 6 validation images, the data has 7 now",
    ),
    "an image of another class": (
        lambda folder: (folder / "data/train/bar/3.png").rename(folder / "data/train/cup/9.png"),
        "the training images had other labels",
    ),
    "another order": (
        lambda folder: (folder / "data/train/bar/0.png").rename(folder / "data/train/bar/z.png"),
        "the training images had other names",
    ),
    "classes that change places": (swap("train"), "data holds other training images under the same names"),
    "classes of validation": (swap("val"), "data holds other validation images under the same names"),
    "two images of two classes": (swap("train", "bar/0.png", "cup/0.png"), "other training images under the same"),
    "most of the images": (replace_images, "other training images under the same names"),
    "another tokenizer": (replace_tokenizer, "the tokenizer had other weights"),
    "another decoder": (finetune_decoder, "the tokenizer had other weights"),
}


@pytest.mark.parametrize("which", CHANGES)
def test_a_change_under_a_run_is_refused_and_named(which: str, begun: VARRecipe, tmp_path: Path) -> None:
    change, words = CHANGES[which]
    change(tmp_path)
    with refused(f"checkpoints in {begun.output} do not go with this data", words, "give another output"):
        open_run(begun).resume()


def test_a_finished_run_exports_no_other_pair(begun: VARRecipe, tmp_path: Path) -> None:
    trainer = open_run(begun)
    trainer.step = trainer.stage.steps
    trainer.save()
    train(begun)  # complete: exported again
    before = (begun.output / "model/tokenizer/model.safetensors").read_bytes()
    replace_tokenizer(tmp_path)
    with refused("the tokenizer had other weights"):
        train(begun)
    assert (begun.output / "model/tokenizer/model.safetensors").read_bytes() == before


def test_images_may_move_and_be_repaired_but_not_become_others(
    begun: VARRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resumed(source: Path) -> int:
        trainer = open_run(begun.model_copy(update={"data": begun.data.model_copy(update={"source": str(source)})}))
        trainer.resume()
        return trainer.step

    moved = (tmp_path / "data").rename(tmp_path / "moved")
    assert resumed(moved) == 1
    shutil.copytree(moved, tmp_path / "data")
    picture(1, 7).save(tmp_path / "data/train/bar/0.png")  # one that could not be read, for instance
    assert "have changed" not in caplog.text
    assert resumed(tmp_path / "data") == 1
    assert "1 of 8 training images that were compared have changed: taken for repaired" in caplog.text
    with refused("data.source was ", f"{tmp_path / 'others'} holds other images"):
        resumed((tmp_path / "data").rename(tmp_path / "others"))


def test_labels_in_shards_are_compared(begun: VARRecipe, tmp_path: Path) -> None:
    def write(labels: str) -> VARRecipe:
        for split, seed in (("train", 0), ("val", 1)):
            with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
                for i, label in enumerate(labels):
                    picture(seed, i).save(tmp_path / "x.png")
                    (tmp_path / "x.cls").write_text(label)
                    for suffix in ("png", "cls"):
                        tar.add(tmp_path / f"x.{suffix}", f"{i}.{suffix}")
        data = begun.data.model_copy(update={"source": str(write_index(tmp_path))})
        return begun.model_copy(update={"data": data, "output": tmp_path / "of shards"})

    trainer = open_run(write("01010101"))
    trainer.step = 1
    trainer.save()
    open_run(write("01010101")).resume()
    flipped = open_run(write("01010110"))
    with refused("the training images had other labels"):
        flipped.resume()
    state = load_newest(tmp_path / "of shards/checkpoints")
    assert state is not None
    for split in ("training", "validation"):  # as a version before wrote it
        state["origin"][split]["content"] = None
        del state["origin"][split]["sampled_labels"]
    save_checkpoint(tmp_path / "of shards/checkpoints", 1, state, keep_last=1)
    flipped.resume()


def test_a_run_that_goes_on_has_its_own_weights(begun: VARRecipe, caplog: pytest.LogCaptureFixture) -> None:
    own = "going on from step 1: the model has the weights of that step, not those of init"
    for init, ending in ((None, "going on from step 1"), (begun.output, own)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            open_run(begun.model_copy(update={"init": init})).resume()
        assert caplog.messages[-1] == ending


@pytest.mark.parametrize("part", ["model/tokenizer", "best/transformer", "model/transformer/config.json"])
def test_an_output_that_an_export_cannot_replace_is_refused_before_training(begun: VARRecipe, part: str) -> None:
    path, steps = begun.output / part, len(list((begun.output / "checkpoints").iterdir()))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.mkdir()
    else:
        path.write_text("mine")
    with refused(f"cannot write {path}", "it is a folder" if path.suffix else "is a file"):
        train(begun)
    assert len(list((begun.output / "checkpoints").iterdir())) == steps


def test_an_error_while_saving_hides_no_other_and_the_loss_is_counted(
    begun: VARRecipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = open_run(begun)
    trainer.resume()
    trainer.step = 3
    monkeypatch.setattr("var.training.trainer.save_checkpoint", Mock(side_effect=MemoryError("no more")))
    with pytest.raises(ValueError, match="out of something") as raised, trainer.saved_if_it_fails():
        raise ValueError("out of something")
    assert raised.value.__context__ is None
    assert "step 3 cannot be saved: no more" in caplog.messages
    assert "lost: 2 steps since step 1, the last that was saved; the same command goes on from there" in caplog.messages


def test_a_token_cache_in_place_of_the_same_images_is_no_change(begun: VARRecipe, tmp_path: Path) -> None:
    cached = begun.model_copy(update={"token_cache": tmp_path / "tokens", "steps": 2})
    train(cached)
    rename("cup", "mug")(tmp_path)
    shutil.rmtree(tmp_path / "tokens")
    with refused("label 1 was 'cup' and is now 'mug'"):
        train(cached)


@pytest.mark.parametrize("change", ["images", "batch_size"])
def test_an_output_of_another_run_is_refused_before_images_are_encoded(
    change: str, begun: VARRecipe, tmp_path: Path
) -> None:
    other = begun.model_copy(update={"token_cache": tmp_path / "tokens"})
    if change == "images":
        replace_images(tmp_path)
    else:
        other = other.model_copy(update={"batch_size": 5})
    with refused(f"the checkpoints in {begun.output}", "give another output"):
        train(other)
    assert not (tmp_path / "tokens").exists()


def test_a_checkpoint_from_before_resumes_with_a_warning(begun: VARRecipe, caplog: pytest.LogCaptureFixture) -> None:
    folder = begun.output / "checkpoints"
    state = load_newest(folder)
    assert state is not None
    del state["origin"]
    save_checkpoint(folder, 1, state, keep_last=1)
    with caplog.at_level(logging.WARNING):
        open_run(begun).resume()
    assert len([record for record in caplog.records if "did not record" in record.getMessage()]) == 1


def test_a_second_run_in_one_output_is_refused_and_leaves_it_as_it_is(begun: VARRecipe) -> None:
    before = sorted(begun.output.rglob("*"))
    with locked(begun.output):
        with refused(f"{begun.output} is in use by process "):
            train(begun)
        assert sorted(path for path in begun.output.rglob("*") if path.name != ".lock") == before


def test_files_of_others_beside_the_model_end_no_run(begun: VARRecipe) -> None:
    others = [begun.output / name for name in ("model/.DS_Store", "best/README.md", "best/tokenizer/._config.json")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    train(begun)
    assert [path.read_text() for path in others] == ["mine"] * 3
    assert (begun.output / "best/transformer/model.safetensors").exists()
