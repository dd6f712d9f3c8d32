"""VAR, raster order and MAR at equal budgets: `python benchmarks/generators.py --data FOLDER`.

Three tokenizers differ in how they hold an image: token maps of several scales (VAR), a single map (raster), continuous
tokens (MAR). Encoder, decoder, losses, data and steps are the same. On each of them transformers of the same depth and
width are trained until the products of their steps, counted, have taken the given FLOPs, and their images measured. A
result is a file: the same command goes on where it was ended. Seconds are measured anew, of a size's models in turns.
"""

import json
import math
import statistics
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from aim_claims import LOGGED, read_curve
from encoder_objectives import CONFIGS, NEVER, fast_precision, measure_once, steps_for
from generators_figures import Results, best_cfg, draw_curves, draw_samples
from held_out_inpainting import CHUNK, directions, read_split, recognition

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var import VARPipeline
from var.bench.timing import take_turns
from var.cli.run import in_columns, run
from var.data.config import DataConfig
from var.data.listing import Split
from var.evaluation.data import image_batches, open_images
from var.evaluation.metrics.extractors import Extractor, open_extractor
from var.evaluation.metrics.reference import open_reference, write_reference
from var.evaluation.metrics.score import score
from var.evaluation.reconstruction import reconstruction
from var.evaluation.samples.generate import generate_samples
from var.evaluation.samples.image_sets import open_image_set
from var.evaluation.samples.rejection import IMAGENET_CLASSES
from var.evaluation.samples.sample_folder import IMAGES, list_samples
from var.evaluation.samples.sample_set import Settings, sample_settings
from var.hub.checkpoint import save_model
from var.sampling.generate import generate
from var.sampling.params import FOR_METRICS, SamplingParams
from var.training.estimate.cost import estimate
from var.training.loop import train
from var.training.recipe import load_recipe
from var.training.tokenizers import open_tokenizer
from var.utils.files import atomic_write
from var.utils.images import open_image


class Generator(NamedTuple):
    """A way to draw images: its stage, its tokenizer, and what its recipe has more."""

    stage: str
    tokenizer: str
    changes: tuple[str, ...] = ()


GENERATORS = {
    "VAR": Generator("var", "multi-scale"),
    "raster": Generator("raster", "single-scale"),
    "MAR": Generator("mar", "KL"),
    "spiral": Generator("raster", "single-scale", ("order=spiral",)),
    "z-curve": Generator("raster", "single-scale", ("order=z-curve",)),
    "RAR": Generator("raster", "single-scale", ("random_order={}",)),
}
DEFAULT = ("VAR", "raster", "MAR")
BATCHES = (1, 16)  # whose seconds are measured
SCORES = {"frechet_distance": "Frechet distance", "precision": "precision", "recall": "recall"}
HEADER = (
    *("generator", "size", "parameters", "steps", "GFLOP a step", "images", "PSNR", "rFD", "validation loss"),
    *("cfg", *SCORES.values(), "recognized", "draws", *(f"s/image, batch {batch}" for batch in BATCHES)),
)


class Judging(NamedTuple):
    """How samples are measured."""

    num_per_class: int
    cfg: tuple[float, ...]
    against: Split
    extractor: str


def generators(
    data: Annotated[str, typer.Option(help="Images with labels, as data.source of a recipe.")],
    tokenizer_recipe: Annotated[
        Path, typer.Option(help="Of the multi-scale tokenizer; the others differ in scales and regularization.")
    ] = CONFIGS / "mini_tokenizer.yaml",
    recipe: Annotated[Path, typer.Option(help="Of VAR; the others differ in the stage.")] = CONFIGS / "mini_var.yaml",
    tokenizer_steps: Annotated[int, typer.Option(help="Of each tokenizer's training.", min=1)] = 2000,
    init: Annotated[
        str | None, typer.Option(help="Model whose tokenizer's encoder and decoder all tokenizers begin with.")
    ] = None,
    kl_channels: Annotated[int, typer.Option(help="Numbers of a continuous token.", min=1, max=2**16)] = 16,
    tflop: Annotated[float, typer.Option(help="Products of each transformer's training.", min=0)] = 500.0,
    size: Annotated[list[str] | None, typer.Option(help="DEPTHxWIDTHxHEADS. The recipe's if none.")] = None,
    classes: Annotated[str | None, typer.Option(help="Labels for the transformers, as 1,145. The recipe's.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(GENERATORS)}. {', '.join(DEFAULT)} if none.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of the transformers. 0 if none.")] = None,
    change: Annotated[list[str] | None, typer.Option(help="key=value for the transformers' recipe.")] = None,
    tokenizer_change: Annotated[list[str] | None, typer.Option(help="key=value for the tokenizers' recipe.")] = None,
    cfg: Annotated[
        list[float] | None, typer.Option(help="Guidance; the lowest distance of several counts. 1.5 if none.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Of sampling by MAR.", min=1)] = 16,
    diffusion_steps: Annotated[int, typer.Option(help="Of its head.", min=2)] = 25,
    num_per_class: Annotated[int, typer.Option(help="Samples of each class.", min=1)] = 50,
    against: Annotated[Split, typer.Option(help="Real images to compare with.")] = "validation",
    extractor: Annotated[str, typer.Option(help="Network that scores.")] = "efficientnet-lite0",
    points: Annotated[int, typer.Option(help="Validations during a run.", min=1)] = 10,
    rounds: Annotated[int, typer.Option(help="Of timing, after one to warm up; 0 for none.", min=0)] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/generators"),
    figure: Annotated[Path | None, typer.Option(help="PNG of loss curves and distances.")] = None,
    samples: Annotated[Path | None, typer.Option(help="PNG of samples of the last size, a row a generator.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Curves and scores, a line of JSON for each size of each generator.")
    ] = None,
) -> None:
    """Print a table of what each generator's images are worth at equal budgets, and what they cost."""
    if unknown := set(only or ()) - GENERATORS.keys():
        raise InputError(f"--only {min(unknown)!r} is no generator: take one of {', '.join(GENERATORS)}")
    chosen = {name: GENERATORS[name] for name in only or DEFAULT}
    judging = Judging(num_per_class, tuple(SamplingParams(cfg=each).cfg for each in cfg or [1.5]), against, extractor)
    common = [f"data.source={data}", *([] if classes is None else [f"data.classes=[{classes}]"])]
    common += ["compile=false", fast_precision(), "sampling=null", *(change or [])]
    evaluated = load_recipe(recipe, common).data
    open_images(evaluated, "validation", side=1)  # this and what follows raises before hours of training
    open_extractor(extractor)
    steps_for(tflop, flops=1e9)
    runs = {}
    for of_size, number, name in product(size or [_size_of(load_recipe(recipe, common))], seed or [0], chosen):
        generator, tokens = chosen[name], out / "tokenizers" / chosen[name].tokenizer
        given = [*common, f"stage={generator.stage}", *_size_keys(of_size, recipe, common), f"seed={number}"]
        given += [f"tokenizer={tokens / 'run' / 'model'}", f"token_cache={tokens / f'tokens-{number}'}"]
        given += [f"sampling.cfg={judging.cfg[0]}", *generator.changes]
        if generator.stage == "mar":
            given += [f"sampling.steps={steps}", f"sampling.diffusion_steps={diffusion_steps}"]
        load_recipe(recipe, given)
        runs[name, of_size, number] = given

    tokenizers = {}
    for name in dict.fromkeys(each.tokenizer for each in chosen.values()):
        folder, start = out / "tokenizers" / name, out / "tokenizers" / "start"
        given = [f"data.source={data}", "compile=false", fast_precision(), *(tokenizer_change or [])]
        given += ["init=null" if init is None else f"init={start}"]
        given += _tokenizer_keys(name, tokenizer_recipe, given, kl_channels)
        way = [str(tokenizer_recipe), *given, f"steps={tokenizer_steps}", f"init={init}", extractor, *common]
        given_steps = [*given, *_rhythm(tokenizer_steps, points)]
        work = partial(_train_tokenizer, tokenizer_recipe, given_steps, folder, init, evaluated, extractor)
        tokenizers[name] = measure_once(folder, way, work)

    results: Results = {}
    for (name, of_size, number), given in runs.items():
        folder = _folder(out, name, of_size, number)
        way = [str(recipe), *given, f"tflop={tflop}", *map(str, judging)]
        work = partial(_train_and_judge, recipe, given, folder, tflop, points, judging)
        found = measure_once(folder, way, work) | tokenizers[chosen[name].tokenizer]
        results.setdefault((name, of_size), []).append(found)

    seconds = _time_sampling(out, results, (seed or [0])[0], judging.cfg[0], rounds) if rounds else {}
    typer.echo("\n".join(in_columns([HEADER, *(_row(key, found, seconds) for key, found in results.items())])))
    if json_file is not None:
        lines = [
            json.dumps({"generator": name, "size": size, "seeds": found, "seconds": seconds.get((name, size))})
            for (name, size), found in results.items()
        ]
        with atomic_write(json_file) as beside:
            beside.write_text("".join(f"{line}\n" for line in lines))
    if figure is not None:
        draw_curves(figure, results, {name: each.tokenizer for name, each in GENERATORS.items()})
    if samples is not None:
        last = [key for key in results if key[1] == list(results)[-1][1]]
        draw_samples(samples, [_samples(_folder(out, *key, (seed or [0])[0]), best_cfg(results[key])) for key in last])


def _folder(out: Path, name: str, size: str, seed: int) -> Path:
    return out / f"{name}-{size}-{seed}"


def _samples(folder: Path, cfg: str) -> Path:
    return folder / f"samples-cfg-{cfg}"


def _tokenizer_keys(name: str, recipe: Path, given: list[str], kl_channels: int) -> list[str]:
    """What differs from the recipe of the multi-scale tokenizer."""
    if name == "multi-scale":
        return []
    last = load_recipe(recipe, given).model.scales[-1]  # type: ignore[attr-defined]  # a TokenizerRecipe
    keys = [f"model.scales=[{last}]", "quantizer_dropout=0"]
    if name == "single-scale":
        return keys
    without_codebook = ["restart_dead_codes=null", "loss.entropy=0"]
    return [*keys, "model.regularization=kl", f"model.latent_dim={kl_channels}", *without_codebook]


def _size_of(recipe: Any) -> str:
    sizes = recipe.model.config(None, 1)
    return f"{sizes.depth}x{sizes.width}x{sizes.heads}"


def _size_keys(text: str, recipe: Path, common: list[str]) -> list[str]:
    """Keys of a size; the learning rate is in inverse proportion to the width (muP, arXiv 2203.03466)."""
    try:
        depth, width, heads = map(int, text.split("x"))
    except ValueError as error:
        raise InputError(f"--size {text!r} is no DEPTHxWIDTHxHEADS, such as 6x192x3") from error
    base: Any = load_recipe(recipe, common)
    rate = base.optimizer.lr * base.model.config(None, 1).width / max(width, 1)
    return [f"model.depth={depth}", f"model.width={width}", f"model.heads={heads}", f"optimizer.lr={rate:.8g}"]


def _rhythm(steps: int, points: int) -> list[str]:
    every = math.ceil(steps / points)
    keys = [f"validate_every={every}", f"checkpoint_every={every}", f"log_every={math.ceil(every / LOGGED)}"]
    return [*keys, f"sample_every={NEVER}", f"steps={steps}"]


def _train_tokenizer(
    recipe: Path, given: list[str], folder: Path, init: str | None, evaluated: DataConfig, extractor: str
) -> dict[str, Any]:
    """Train, and compare the validation images of the transformers' classes with their reconstructions."""
    if init is not None:
        _write_start(Path(init), folder.with_name("start"))
    loaded = load_recipe(recipe, [*given, f"output={folder / 'run'}"])
    vqvae = open_tokenizer(train(loaded), loaded.model.regularization)  # type: ignore[attr-defined]  # a TokenizerRecipe
    batches = image_batches(open_images(evaluated, "validation", vqvae.config.image_side), CHUNK)
    found = reconstruction(vqvae, batches, extractor=open_extractor(extractor))
    return {"psnr": found.psnr.mean, "reconstruction distance": found.fid}


def _write_start(given: Path, folder: Path) -> None:
    """Write a trained tokenizer with a new quantizer: its own was trained for its own scales."""
    trained = open_tokenizer(given)
    torch.manual_seed(0)
    start = VQVAE(trained.config)
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith("quantizer.")}
    start.load_state_dict(kept, strict=False)
    save_model(folder, start)


def _train_and_judge(
    recipe: Path, given: list[str], folder: Path, tflop: float, points: int, judging: Judging
) -> dict[str, Any]:
    """Train at that cost, and measure samples."""
    given = [*given, f"output={folder / 'run'}"]
    flops = estimate(load_recipe(recipe, [*given, "steps=1"])).flops
    steps = steps_for(tflop, flops)
    loaded = load_recipe(recipe, [*given, *_rhythm(steps, points)])
    model = train(loaded)
    cost = {"steps": steps, "gflop a step": flops / 1e9, "images": steps * loaded.batch_size}
    return cost | {"curve": read_curve(loaded.output)} | _judge(model, loaded.data, folder, judging)


def _judge(model: Path, data: DataConfig, folder: Path, judging: Judging) -> dict[str, Any]:
    """Return what samples are worth, by the strength of guidance, and how many draws an image takes."""
    pipe, network = VARPipeline.from_pretrained(str(model), dtype="float32"), open_extractor(judging.extractor)
    parameters = sum(weight.numel() for weight in pipe.model.parameters())
    pipe.pack()  # after which weights are no parameters
    side, reference = pipe.vqvae.config.image_side, folder / "reference.npz"
    write_reference(image_batches(open_images(data, judging.against, side), CHUNK), side, reference)
    scores = {}
    for cfg in judging.cfg:
        samples = _samples(folder, f"{cfg:g}")
        settings = sample_settings(pipe, str(model), None, judging.num_per_class, cfg=cfg)
        generate_samples(pipe, settings, samples)
        numbers = score(open_image_set(samples / IMAGES), open_reference(reference, network), network).numbers
        found = {title: numbers[name].value if name in numbers else math.nan for name, title in SCORES.items()}
        if network.class_logits and pipe.model.config.num_classes == IMAGENET_CLASSES:
            recognized = numbers["accuracy_among_present_top1"].value
        else:
            recognized = _recognized(pipe, data, samples, settings, network)
        scores[f"{cfg:g}"] = found | {"recognized": recognized}
    draws: list[object] = []
    generate(pipe.model, pipe.vqvae, pipe.known_labels()[:1], settings.sampling, on_step=draws.append)
    return {"parameters": parameters, "draws": len(draws), "scores": scores}


def _recognized(pipe: VARPipeline, data: DataConfig, folder: Path, settings: Settings, network: Extractor) -> float:
    """Share of the samples whose nearest training image is of their class."""
    samples = list_samples(folder, settings)
    images = [open_image(folder / IMAGES / sample.file) for sample in samples]
    labels = torch.tensor([sample.label for sample in samples])
    known, known_labels = read_split(pipe, data, "train")
    return recognition(directions(images, network), labels, directions(known, network), known_labels)


def _time_sampling(
    out: Path, results: Results, seed: int, cfg: float, rounds: int
) -> dict[tuple[str, str], dict[int, float]]:
    """Return seconds an image by generator, size and batch: medians of rounds in which a size's models take turns."""
    seconds: dict[tuple[str, str], dict[int, float]] = {key: {} for key in results}
    for size in dict.fromkeys(size for _, size in results):
        keys = [key for key in results if key[1] == size]
        models = [_folder(out, *key, seed) / "run" / "model" for key in keys]
        pipes = [VARPipeline.from_pretrained(str(model), dtype="float32") for model in models]
        for pipe in pipes:
            pipe.pack()
        for batch in BATCHES:
            labels = list(islice(cycle(pipes[0].known_labels()), batch))
            actions = [
                partial(generate, pipe.model, pipe.vqvae, labels, pipe.choose_sampling({"cfg": cfg}, FOR_METRICS))
                for pipe in pipes
            ]
            device = pipes[0].model.position.device
            take_turns(actions, 1, device)
            for key, times in zip(keys, take_turns(actions, rounds, device), strict=True):
                seconds[key][batch] = statistics.median(times) / batch
    return seconds


def _row(
    key: tuple[str, str], results: list[dict[str, Any]], seconds: dict[tuple[str, str], dict[int, float]]
) -> tuple[str, ...]:
    """Losses are means over the seeds; scores are those of each seed, at the best guidance."""
    first, cfg = results[0], best_cfg(results)
    cost = [f"{first['parameters'] / 1e6:.2f} M", *(f"{first[name]:.4g}" for name in ("steps", "gflop a step"))]
    tokenizer = [f"{first['psnr']:.2f}", f"{first['reconstruction distance']:.2f}"]
    loss = statistics.mean(result["curve"][-1][2] for result in results)
    scores = [result["scores"][cfg] for result in results]
    distances = " / ".join(f"{each['Frechet distance']:.2f}" for each in scores)
    shares = [" / ".join(f"{each[name]:.1%}" for each in scores) for name in ("precision", "recall", "recognized")]
    times = [f"{seconds[key][batch]:.4f}" if seconds else "" for batch in BATCHES]
    measured = [f"{first['images']:,}", *tokenizer, f"{loss:.4f}", cfg, distances, *shares, str(first["draws"])]
    return (*key, *cost, *measured, *times)


if __name__ == "__main__":
    run(generators)
