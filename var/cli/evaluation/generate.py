"""Command that generates a set of images for metrics: `var evaluate generate --out FOLDER`."""

import os
import time

import typer

from tokenizer.errors import InputError
from var.cli.evaluation import options
from var.cli.options import (
    Batch,
    Classes,
    MetricsSamplingOptions,
    ModelOptions,
    ScaleOptions,
    collect_options,
    read_classes,
)
from var.cli.progress import LONGEST_WAIT, progress_bar, stopping


def generate(
    out: options.SampleSetFolder,
    classes: Classes = None,
    num_per_class: options.NumInSet = 50,
    batch: Batch = 32,
    reject: options.Reject = None,
    reject_by: options.RejectBy = None,
    npz: options.Npz = True,
    compile: options.Compile = False,
    *,
    sampling: MetricsSamplingOptions,
    drawn: ScaleOptions,
    model: ModelOptions,
) -> None:
    """Generate images of each class for metrics. Run the same command again to resume.

    Examples:
      var evaluate generate --model var-mini --num-per-class 50 --out samples
      torchrun --nproc_per_node 8 -m var evaluate generate --model var-d30 --reject 0.5 --out samples/d30-best
      var evaluate generate --model var-d16 --refiner var-d30 --refine-from 8 --out samples/d16-d30
    """
    from accelerate import PartialState

    from var.evaluation.samples.generate import generate_samples
    from var.evaluation.samples.rejection import (
        REJECT_BY,
        ClassProbability,
        check_fraction,
        check_judge,
        check_labels_are_imagenets,
    )
    from var.evaluation.samples.sample_folder import IMAGES, NPZ, has_samples_npz, write_samples_npz
    from var.evaluation.samples.sample_set import sample_settings
    from var.hub.refiner import check_refiner_options
    from var.pipeline import VARPipeline
    from var.sampling.compiled import compile_transformer
    from var.training.distributed import destroy_process_group
    from var.utils.device import choose_device
    from var.utils.paths import check_writable
    from var.utils.ranks import Ranks

    check_writable(out)
    if reject is None and reject_by is not None:
        raise InputError(f"--reject-by {reject_by} needs --reject FRACTION, such as --reject 0.5")
    if reject is not None:
        check_fraction(reject)
        check_judge(reject_by or REJECT_BY)
    state = PartialState(cpu=choose_device(model.device).type == "cpu", timeout=LONGEST_WAIT)
    is_main_process = state.is_main_process
    ranks = Ranks.of(state)
    with ranks.in_step():
        check_refiner_options(drawn.refiner, drawn.refine_from)
        target = model.device if ranks.world_size == 1 else str(state.device)
        pipe = VARPipeline.from_pretrained(model.model, device=target, dtype=model.dtype)
        if compile:
            pipe.compile()
        else:
            pipe.pack()
        finer = pipe.choose_refiner(drawn.refiner, drawn.refine_from)
        if compile and finer is not None:
            compile_transformer(finer.model)
        scorer = None
        if reject is not None:
            check_labels_are_imagenets(pipe.model.config.num_classes, pipe.known_classes())
            scorer = ClassProbability(reject_by or REJECT_BY, target)
        chosen = read_classes(classes or [], pipe)
        description = None if scorer is None else scorer.description
        more = {"compiled": compile, "use_scales": drawn.use_scales, "refiner": finer, "refiner_name": drawn.refiner}
        options_given = collect_options(sampling, batch=batch, reject=reject, judge=description, **more)
        settings = sample_settings(pipe, model.model, chosen or None, num_per_class, **options_given)
    cores = os.cpu_count() or 1
    if is_main_process and pipe.model.position.device.type == "cpu" and ranks.world_size < cores:
        typer.echo(
            f"on a CPU each process uses one thread, so that any number of processes generates the same images: "
            f"torchrun --nproc_per_node {cores} -m var evaluate generate ... uses all cores",
            err=True,
        )
    began = ended = time.perf_counter()

    def write_npz(generated: int) -> None:
        nonlocal ended
        ended = time.perf_counter()
        if npz and not (generated == 0 and has_samples_npz(out, settings)):
            typer.echo(f"writing {out / NPZ}", err=True)
            write_samples_npz(out, settings)

    with stopping(is_main_process=is_main_process), progress_bar("generated", is_main_process) as progress:
        generated = generate_samples(pipe, settings, out, scorer, ranks, progress, write_npz, finer)
    if is_main_process:
        count = len(settings.labels) * settings.num_per_class
        rate = generated / (ended - began)
        now = f"{generated} generated now, {rate:.1f} images/s" if generated else "all existed already"
        best = f", the best of {settings.candidates} per class by {scorer.extractor.name}" if scorer else ""
        written = f"; also {out / NPZ}" if npz else ""
        typer.echo(
            f"generate: {out / IMAGES} holds {count} images of {len(settings.labels)} classes{best}{written}; {now}"
        )
    destroy_process_group()
