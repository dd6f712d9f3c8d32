"""Training with `compile: true`. The compiler's front end does its work; what it hands over is run as it is."""

from pathlib import Path

from tiny import Graphs, assert_same_weights, image_folder, metrics, tokenizer_recipe, var_recipe

from var.training.loop import train


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output, "train")]


def test_blocks_are_compiled_once_for_all_and_train_the_same(tmp_path: Path, graphs: Graphs) -> None:
    source = image_folder(tmp_path / "images")
    train(tokenizer_recipe(tmp_path / "tokenizer", source, steps=1))
    tokenizer = tmp_path / "tokenizer" / "model"
    counts = []
    for depth in (2, 3):
        given = {"model": {"depth": depth}, "steps": 3, "validate_every": 3}
        for way, compiled in (("eager", False), ("compiled", True)):
            train(var_recipe(tmp_path / f"{way}-{depth}", source, tokenizer, compile=compiled, **given))
        counts.append(len(graphs))
        graphs.clear()
        assert losses(tmp_path / f"compiled-{depth}") == losses(tmp_path / f"eager-{depth}")
        assert_same_weights(*(tmp_path / f"{way}-{depth}" / "model" / "transformer" for way in ("compiled", "eager")))
    assert counts[0] > 0 == counts[1]  # what was compiled for one block serves all others of that size


def test_a_tokenizer_is_compiled_as_a_whole(tmp_path: Path, graphs: Graphs) -> None:
    source = image_folder(tmp_path / "images")
    for way, compiled in (("eager", False), ("compiled", True)):
        train(tokenizer_recipe(tmp_path / way, source, steps=2, compile=compiled))
    assert graphs
    assert losses(tmp_path / "compiled") == losses(tmp_path / "eager")
