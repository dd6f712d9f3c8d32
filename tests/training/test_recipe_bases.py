"""Recipes that say only what differs from another one."""

from pathlib import Path

import pytest
from helpers import refused
from tiny import TOKENIZER_YAML

from tokenizer.vqvae import TokenizerConfig
from var.training.logger import write_recipe
from var.training.recipe import load_recipe
from var.training.stages.aim import AIMRecipe
from var.training.stages.tokenizer import TokenizerRecipe


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_mappings_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    written(tmp_path / "first.yaml", TOKENIZER_YAML)
    between = "base: ../first.yaml\nmodel: {scales: [1, 2]}\nema: 0.9\n"
    written(tmp_path / "more" / "second.yaml", between)
    path = written(tmp_path / "third.yaml", "base: more/second.yaml\nema: null\noptimizer: {weight_decay: 0.5}\n")
    recipe = load_recipe(path, ["batch_size=3"])
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.model == TokenizerConfig(scales=(1, 2), base_width=64)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (1e-4, 0.5)
    assert (recipe.ema, recipe.batch_size, recipe.epochs) == (None, 3, 3)
    assert load_recipe(tmp_path / "more" / "second.yaml").ema == 0.9
    write_recipe(recipe, tmp_path / "kept.yaml")
    assert "base:" not in (tmp_path / "kept.yaml").read_text()
    assert load_recipe(tmp_path / "kept.yaml") == recipe


def test_former_names_and_presets_are_those_of_each_file(tmp_path: Path) -> None:
    sizes = "stage: aim\noutput: a\ndata: {source: x}\nbatch_size: 4\nsteps: 2\noptimizer: {lr: 1e-3}\nkeep: 5\n"
    written(tmp_path / "first.yaml", sizes + "model: aim-tiny\n")
    path = written(tmp_path / "second.yaml", "base: first.yaml\nkeep_last: 7\nmodel: {image_size: 28}\n")
    recipe = load_recipe(path)
    assert isinstance(recipe, AIMRecipe)
    assert (recipe.keep_last, recipe.model.image_size, recipe.model.width) == (7, 28, 192)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: nowhere.yaml\n", ("base='nowhere.yaml' does not exist", "relative to this one's")),
        ("base: .\n", ("base='.' does not exist",)),
        ("base: 3\n", ("base=3 must be text",)),
        ("base: first.yaml\n", ("base='first.yaml' leads back to itself",)),
        ("base: second.yaml\n", ("second.yaml: base='first.yaml' leads back to itself",)),
        ("base: torn.yaml\n", ("torn.yaml is not valid YAML",)),
    ],
)
def test_bases_that_cannot_be(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    written(tmp_path / "second.yaml", "base: first.yaml\n")
    written(tmp_path / "torn.yaml", "a: [1")
    path = written(tmp_path / "first.yaml", text)
    with refused("recipe ", *parts):
        load_recipe(path)


def test_an_override_is_no_base(tmp_path: Path) -> None:
    with refused("override 'base=other.yaml'", "only a recipe file can have a base"):
        load_recipe(written(tmp_path / "first.yaml", TOKENIZER_YAML), ["base=other.yaml"])
