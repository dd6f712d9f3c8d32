"""The command that draws pictures: `python sample.py --class 207 --class "king penguin"`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizer.errors import InputError
from var.cli.run import run

if TYPE_CHECKING:
    from PIL import Image

    from var.pipeline import PipelineOutput

MIX = 8  # classes drawn when none is asked for
COLUMNS = 8  # of the grid, at most
GRID_TILE = 128  # smaller pictures are enlarged on the grid and in the GIF, to be seen on a screen


def main() -> None:
    """Entry point of sample.py."""
    run(sample)


def sample(
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Index or name of a class, such as 207 or 'golden retriever'; repeat for several. "
            "Default: a mix of those the model knows.",
        ),
    ] = None,
    num: Annotated[int, typer.Option(help="Pictures of each class.", max=1000)] = 4,
    seed: Annotated[int, typer.Option(help="With class and index it fixes a picture.")] = 0,
    cfg: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 0 switches it off. Default: the model's, else 4."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Keep that many of the best tokens; 0 keeps all. Default: the model's, else 900."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Keep the best tokens up to that probability; 0 keeps all. Default: the model's, else 0.96."),
    ] = None,
    smooth: Annotated[bool, typer.Option("--smooth", help="Smoother pictures; not for metrics.")] = False,
    model: Annotated[str, typer.Option(help="var-mini, var-d16 ... var-d36, or a model folder.")] = "var-mini",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("samples"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    scales: Annotated[
        bool, typer.Option("--scales", help="Also save the picture after every scale, and a GIF of its growth.")
    ] = False,
) -> None:
    """Draw pictures scale by scale, coarse to fine, and save them as PNG with a grid of all."""
    began = time.perf_counter()
    from var.pipeline import VARPipeline
    from var.utils.classes import spread
    from var.utils.files import check_writable

    check_writable(out)
    pipe = VARPipeline.from_pretrained(model, device=device, dtype=dtype)
    vocab_size = pipe.model.config.vocab_size
    if top_k is not None and not 0 <= top_k <= vocab_size:
        raise InputError(f"--top-k {top_k} must be in 0..{vocab_size}, the tokens of this model; 0 keeps all")
    labels: list[int | str] = list(classes) if classes else list(spread(pipe.known_labels(), MIX))
    loaded = time.perf_counter()
    mixed = True if smooth else None  # None: the model's default
    drawn = pipe(labels, num, cfg=cfg, top_k=top_k, top_p=top_p, seed=seed, smooth=mixed, intermediates=scales)
    seconds = time.perf_counter() - loaded
    for path in save(drawn, out, columns=min(num, COLUMNS)):
        typer.echo(path)
    typer.echo(f"{len(drawn.images)} pictures in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


def save(drawn: "PipelineOutput", folder: Path, columns: int) -> list[Path]:
    """Write CLASS_INDEX.png for each picture, grid.png, and what was kept of the scales; all paths, the grid last."""
    from var.utils.images import enlarge, image_grid, save_image

    paths = []
    for i, (label, index, image) in enumerate(zip(drawn.labels, drawn.indices, drawn.images, strict=True)):
        name = f"{label}_{index}"
        save_image(folder / f"{name}.png", image)
        paths.append(folder / f"{name}.png")
        if drawn.intermediates is not None:
            for k, stage in enumerate(drawn.intermediates[i]):
                save_image(folder / f"{name}_scale{k}.png", stage)
                paths.append(folder / f"{name}_scale{k}.png")
    if drawn.intermediates is not None:
        frames = [growing(list(stages), columns) for stages in zip(*drawn.intermediates, strict=True)]
        save_image(folder / "growth.gif", frames[0], [*frames[1:], *[frames[-1]] * 3], milliseconds=350)
        paths.append(folder / "growth.gif")
    save_image(folder / "grid.png", image_grid([enlarge(image, GRID_TILE) for image in drawn.images], columns))
    return [*paths, folder / "grid.png"]


def growing(images: "list[Image.Image]", columns: int) -> "Image.Image":
    """One frame of the GIF: all pictures after one scale."""
    from var.utils.images import enlarge, image_grid

    return image_grid([enlarge(image, GRID_TILE) for image in images], columns)
