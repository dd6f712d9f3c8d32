"""Fine-tuning against training from scratch, at equal seconds: `python benchmarks/finetuning.py --data FOLDER`.

The same recipe is trained in several ways on the same tokens. The speed of each is measured first, over a few steps;
then it gets the steps that take the given seconds, with its learning rate scheduled over them. Validation, sheets and
the token cache do not count. Loss and accuracy are those of the held-out images: the average over all scales' tokens.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from var.cli.run import in_columns, run
from var.training.curves import METRICS
from var.training.loop import train
from var.training.recipe import load_recipe

ONE_RATE = "optimizer.lr_factors.class_embedding=1"  # in place of the recipe's larger one
WAYS = {
    "from scratch": ["init=null", ONE_RATE, "optimizer.lr=1e-3"],
    "all weights": [],
    "adapters (LoRA)": ["lora={rank: 8}", "optimizer.lr=1e-3"],
    "table of classes": ["train_only=[class_embedding]", "optimizer.lr=1e-2", ONE_RATE],
}


def finetuning(
    data: Annotated[str, typer.Option(help="Images, as data.source of a recipe.")],
    seconds: Annotated[float, typer.Option(help="Of training steps, for each way.", min=0)] = 600,
    recipe: Annotated[Path, typer.Option(help="Recipe that starts from a model.")] = Path("configs/finetune_mini.yaml"),
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/finetuning"),
    speed_steps: Annotated[int, typer.Option(help="Steps over which the speed is measured.", min=2)] = 20,
    validations: Annotated[int, typer.Option(help="Validations of each run.", min=1)] = 10,
) -> None:
    """Print a table of the held-out losses of several ways to train, at equal seconds."""
    common = [f"data.source={data}", f"token_cache={out / 'tokens'}", "sample_every=1000000000"]
    rows = [("way", "steps", "s/step", "lowest loss", "at step", "last loss", "last accuracy")]
    for number, (way, changes) in enumerate(WAYS.items()):
        given = [*common, *changes]
        pace = _seconds_a_step(recipe, [*given, f"output={out / f'speed-{number}'}"], speed_steps)
        steps = max(1, round(seconds / pace))
        every = f"validate_every={max(1, steps // validations)}"
        lines = _train(recipe, [*given, f"output={out / f'run-{number}'}", f"steps={steps}", every])
        held_out = [line for line in lines if line["split"] == "validation"]
        best, last = min(held_out, key=lambda line: line["loss"]), held_out[-1]
        numbers = (f"{best['loss']:.4f}", str(best["step"]), f"{last['loss']:.4f}", f"{last['accuracy']:.2%}")
        rows.append((way, str(steps), f"{pace:.3f}", *numbers))
    typer.echo("\n".join(in_columns(rows)))


def _seconds_a_step(recipe: Path, given: list[str], steps: int) -> float:
    """Return the seconds of a step, over the second half of a short run without validation but at its end."""
    half = steps // 2
    lines = _train(recipe, [*given, f"steps={2 * half}", f"log_every={half}", "validate_every=1000000000"])
    batch = load_recipe(recipe, given).batch_size
    return float(batch / [line for line in lines if line["split"] == "train"][-1]["images_per_second"])


def _train(recipe: Path, given: list[str]) -> list[dict[str, Any]]:
    """Train, or go on with a run that is there already; return its lines of numbers."""
    loaded = load_recipe(recipe, given)
    train(loaded)
    return [json.loads(line) for line in (loaded.output / METRICS).read_text().splitlines()]


if __name__ == "__main__":
    run(finetuning)
