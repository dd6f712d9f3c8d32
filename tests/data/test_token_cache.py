"""Which token caches are refused, and what may change under one."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import refused, small_vqvae
from tiny import picture
from tiny_tokens import TRAIN, VIEWS, changed, file, identities, write

from tokenizer.vqvae import VQVAE
from var.data.dataset import Sample
from var.data.token_dataset import TokenDataset
from var.training.stages.var import VARRecipe

# What is refused


def test_a_cache_of_something_else_is_refused(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    before = identities(recipe)
    remedy = "give another token_cache, and another output where a run began on this one, or remove it"
    others: list[tuple[VARRecipe, VQVAE, str]] = [
        (changed(recipe, seed=1), vqvae, "with seed=0, not 1"),
        (recipe, small_vqvae(seed=1), "by another tokenizer"),
        (recipe, small_vqvae(beta=0.5), "by another tokenizer"),
    ]
    changes: dict[str, object] = {"flip": False, "crop": "center", "resize": 1.0, "classes": (0,), "source": "."}
    for name, value in changes.items():
        data = recipe.data.model_copy(update={name: value})
        others.append((changed(recipe, data=data), vqvae, f"data.{name}="))
    for other, theirs, difference in others:
        with refused(str(recipe.token_cache), difference, remedy):
            write(other, theirs)
        with refused(str(recipe.token_cache), difference, remedy):
            TokenDataset(other, theirs, "train")
    assert identities(recipe) == before


def test_a_missing_source_is_named_and_not_only_the_cache_of_another(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    other = changed(recipe, data=recipe.data.model_copy(update={"source": "no/where"}))
    with refused("data.source='no/where' is no folder here", repr(str(recipe.token_cache)), "correct data.source"):
        write(other, vqvae)


def test_the_decoder_and_how_images_are_read_may_change(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    with torch.no_grad():
        vqvae.decoder.conv_out.weight.zero_()
    data = recipe.data.model_copy(update={"workers": 1, "max_unreadable": 0.5, "validation_images": 2})
    assert write(changed(recipe, data=data, batch_size=2), vqvae).encoded == 0


def test_views_can_be_added_and_left_unused(recipe: VARRecipe, vqvae: VQVAE) -> None:
    fewer = changed(recipe, token_views=1)
    write(fewer, vqvae)
    before = identities(fewer)
    with refused("8 of the 12 train shards", "missing or cut off", "train-v1-00000.bin", "run var data tokenize"):
        TokenDataset(recipe, vqvae, "train")
    assert write(recipe, vqvae).encoded == 2 * TRAIN
    assert before.items() <= identities(recipe).items()
    one, all_views = TokenDataset(fewer, vqvae, "train"), TokenDataset(recipe, vqvae, "train")
    for index in range(TRAIN):
        first, same, other = one[0, index], one[1, index], all_views[VIEWS, index]
        assert isinstance(first, Sample)
        assert isinstance(same, Sample)
        assert isinstance(other, Sample)
        assert torch.equal(first.content, same.content)
        assert torch.equal(first.content, other.content)


def test_images_that_came_or_went_in_between(recipe: VARRecipe, vqvae: VQVAE) -> None:
    write(recipe, vqvae)
    file(recipe, "train-v0-00001.json").unlink()
    picture(0, 99).save(Path(recipe.data.source) / "train" / "bar" / "99.png")
    with refused("the train images of data.source=", "21 now, 20 then", "give another folder"):
        write(recipe, vqvae)


def renamed(images: Path, *names: tuple[str, str]) -> None:
    for split in ("train", "val"):
        for old, new in names:
            (images / split / old).rename(images / split / new)


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda images: renamed(images, ("bar", "dog")), "label 0 was 'bar' and is now 'cup'"),
        (lambda images: renamed(images, ("bar", "x"), ("cup", "bar"), ("x", "cup")), "other images under the same"),
        (lambda images: (images / "train/bar/0.png").rename(images / "train/cup/99.png"), "with other labels"),
        (lambda images: (images / "train/cup/0.png").unlink(), "19 now, 20 then"),
    ],
)
def test_images_that_changed_under_a_cache(
    recipe: VARRecipe, vqvae: VQVAE, complete: bool, change: Callable[[Path], object], difference: str
) -> None:
    write(recipe, vqvae)
    if not complete:
        file(recipe, "validation-v0-00000.json").unlink()
    before = identities(recipe)
    change(Path(recipe.data.source))
    with refused("the train images of data.source=", difference, "give another folder, or restore the images"):
        write(recipe, vqvae)
    assert {name: is_now for name, is_now in identities(recipe).items() if name in before} == before


def test_a_complete_cache_goes_without_images_or_with_a_few_repaired(
    recipe: VARRecipe, vqvae: VQVAE, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "var")
    write(recipe, vqvae)
    images = Path(recipe.data.source)
    picture(2, 0).save(images / "train/bar/0.png")
    assert write(recipe, vqvae).encoded == 0
    assert not caplog.records
    shutil.rmtree(images)
    images.mkdir()  # where a disk is not mounted, for instance
    assert write(recipe, vqvae).encoded == 0
    (record,) = caplog.records
    assert "it is not checked that token_cache=" in record.getMessage()


def test_folders_that_cannot_be_used(recipe: VARRecipe, vqvae: VQVAE, tmp_path: Path) -> None:
    for function in (write, lambda *given: TokenDataset(*given, "train")):
        with refused("the recipe has no token_cache", "token_cache=FOLDER"):
            function(changed(recipe, token_cache=None), vqvae)
    with refused("holds no token cache", "run var data tokenize"):
        TokenDataset(recipe, vqvae, "train")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with refused("holds other files, such as letter.txt", "give a new folder"):
        write(changed(recipe, token_cache=tmp_path / "mine"), vqvae)
    with refused("letter.txt is a file", "give another folder"):
        write(changed(recipe, token_cache=tmp_path / "mine" / "letter.txt"), vqvae)
    assert not (recipe.token_cache or tmp_path).exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"settings": 1}', "\x00\x01"])
def test_a_manifest_that_is_damaged(recipe: VARRecipe, vqvae: VQVAE, content: str) -> None:
    write(recipe, vqvae)
    file(recipe, "manifest.json").write_text(content)
    for function in (write, lambda *given: TokenDataset(*given, "train")):
        with refused("manifest.json cannot be read", "remove this one to encode anew"):
            function(recipe, vqvae)
    with refused("manifest.json cannot be read"):
        TokenDataset(recipe, vqvae, "validation")


@pytest.mark.parametrize("name", ["train-v2-00003.bin", "train-v2-00003.json"])
def test_a_shard_that_is_missing(recipe: VARRecipe, vqvae: VQVAE, name: str) -> None:
    write(recipe, vqvae)
    file(recipe, name).unlink()
    with refused("train-v2-00003", "run var data tokenize"):
        TokenDataset(recipe, vqvae, "train")
    TokenDataset(recipe, vqvae, "validation")
