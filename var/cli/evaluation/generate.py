"""The command that draws a set of pictures to be measured: `var evaluate generate --out FOLDER`."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from tokenizer.errors import InputError
from var.cli.edit import AUTO, Device, Dtype
from var.cli.progress import LONGEST_WAIT, progress_bar, stopping


def generate(
    out: Annotated[Path, typer.Option(help="Folder: images/LABEL_INDEX.png, settings.json, samples.npz.")],
    model: Annotated[str, typer.Option(help="var-mini, var-d16 ... var-d36, or a model folder.")] = "var-mini",
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Index or name of a class, such as 207 or 'golden retriever'; repeat for several. "
            "Default: all that the model knows.",
        ),
    ] = None,
    num_per_class: Annotated[int, typer.Option(help="Pictures of each class.")] = 50,
    cfg: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; 0 switches it off. Default: the model's, else 1.5."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Keep that many of the best tokens; 0 keeps all. Default: the model's, else 900."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Keep the best tokens up to that probability; 0 keeps all. Default: the model's, else 0.96."),
    ] = None,
    seed: Annotated[int, typer.Option(help="With class and index it fixes a picture.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures drawn at once by a process.")] = 32,
    reject: Annotated[
        float | None,
        typer.Option(
            help="Rejection sampling: the part of the drawn pictures that is kept, those that a classifier is surest "
            "of, class by class; 0.5 draws twice as many. For models with ImageNet's 1000 classes.",
        ),
    ] = None,
    reject_by: Annotated[
        str | None,
        typer.Option(
            help="The extractor that classifies them; never score with the same one. Default: efficientnet-lite1."
        ),
    ] = None,
    npz: Annotated[bool, typer.Option("--npz/--no-npz", help="Write samples.npz, as ADM's evaluator takes it.")] = True,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
) -> None:
    """Draw pictures of each class, to be scored. Run it again to go on where it stopped.

    Over several processes: torchrun --nproc_per_node 8 -m var evaluate generate ...
    """
    from accelerate import PartialState

    from var.evaluation.samples.generate import generate_samples
    from var.evaluation.samples.rejection import REJECT_BY, ClassProbability, check_labels_are_imagenets
    from var.evaluation.samples.sample_folder import NPZ, PICTURES, has_samples_npz, write_samples_npz
    from var.evaluation.samples.sample_set import sample_settings
    from var.pipeline import VARPipeline
    from var.training.distributed import destroy_process_group
    from var.utils.device import choose_device
    from var.utils.files import check_writable
    from var.utils.ranks import Ranks

    check_writable(out)
    if reject is None and reject_by is not None:
        raise InputError(f"--reject-by {reject_by} rejects nothing without --reject, the part that is kept")
    state = PartialState(cpu=choose_device(device).type == "cpu", timeout=LONGEST_WAIT)
    is_main_process = state.is_main_process
    ranks = Ranks.of(state)
    with ranks.in_step():
        target = device if ranks.world_size == 1 else str(state.device)
        pipe = VARPipeline.from_pretrained(model, device=target, dtype=dtype)
        judge = None
        if reject is not None:
            check_labels_are_imagenets(pipe.model.config.num_classes)
            judge = ClassProbability(reject_by or REJECT_BY, target)
        settings = sample_settings(
            pipe,
            model,
            classes or None,
            num_per_class,
            cfg,
            top_k,
            top_p,
            seed,
            batch,
            reject,
            None if judge is None else judge.description,
        )
    cores = os.cpu_count() or 1
    if is_main_process and pipe.model.position.device.type == "cpu" and ranks.world_size < cores:
        typer.echo(
            f"on a CPU a process draws in one thread, so that the set is the same on any number of them: "
            f"torchrun --nproc_per_node {cores} -m var evaluate generate ... uses all cores",
            err=True,
        )
    began = time.perf_counter()
    with stopping(is_main_process), progress_bar("drawn", "pictures", is_main_process) as progress:
        drawn = generate_samples(pipe, settings, out, judge, ranks, progress)
    rate = drawn / (time.perf_counter() - began)
    with ranks.in_step():
        if is_main_process and npz and not (drawn == 0 and has_samples_npz(out, settings)):
            typer.echo(f"writing {out / NPZ}", err=True)
            write_samples_npz(out, settings)
    if is_main_process:
        count = len(settings.labels) * settings.num_per_class
        now = f"{drawn} drawn now, {rate:.1f} pictures/s" if drawn else "all of them there already"
        chosen = "" if judge is None else f", the best of {settings.candidates} each by {judge.extractor.name}"
        written = f"; {out / NPZ} too" if npz else ""
        typer.echo(
            f"generate: {out / PICTURES} holds {count} pictures of {len(settings.labels)} classes{chosen}{written}; "
            f"{now}"
        )
    destroy_process_group()
