"""The commands of frozen features: `var features extract|classify`."""

import json
import time
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from tokenizer.errors import InputError, abbreviate
from var.cli import options
from var.cli.progress import progress_bar, stopping
from var.cli.run import Group

if TYPE_CHECKING:
    from var.features.classifiers import Accuracy, Regression
    from var.features.feature_file import FeatureTable
    from var.models.aim import EncoderConfig


def extract(
    source: options.ImageSource,
    model: options.FeatureModel,
    out: options.FeaturesFile,
    sizes: options.Sizes = None,
    layers: options.Layers = None,
    pool: options.Pool = "mean",
    split: options.FeatureSplit = None,
    batch: options.Batch = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Write the features of all images of FOLDER. Run the same command again to resume.

    Examples:
      var features extract photos --model var-mini --out photos.parquet
      var features extract imagenet --split validation --model aim-600M --layers best --out validation.parquet
    """
    blocks: str | list[int] | None = layers
    if layers not in (None, "best", "last"):
        refusal = f"--layers {abbreviate(layers)} must be last, best, or blocks such as 0,3,5"
        blocks = options.whole_numbers(layers, refusal)
    from var.features.extract import EXAMPLE, open_source, write_features
    from var.features.images import list_folder, list_split
    from var.utils.paths import check_target, is_stream
    from var.utils.text import plural

    check_target(out, EXAMPLE)
    if out.suffix.lower() not in ("", ".parquet") and not is_stream(out):
        raise InputError(
            f"--out {abbreviate(str(out))}: features are written as Parquet: give a name such as {EXAMPLE}"
        )
    images = list_folder(source) if split is None else list_split(source, split)
    found = open_source(model, None if sizes is None else read_sizes(sizes), device, dtype)
    report = partial(typer.echo, err=True)
    began = time.perf_counter()
    with stopping(), progress_bar("encoded") as progress:
        done = write_features(found, images, out, model, blocks, pool, batch, progress, report)
    rate = done.computed / (time.perf_counter() - began)
    now = f"{done.computed} images now, {rate:.1f} images/s" if done.computed else "all of them there already"
    unreadable = f"; {plural(done.unreadable, 'image')} could not be read" if done.unreadable else ""
    labels = plural(done.classes, "class", "es") if done.classes else "no labels"
    typer.echo(
        f"features: {out} holds {done.features} features, {done.length} numbers each, {labels}, {now}{unreadable}"
    )


def read_sizes(given: str) -> "EncoderConfig":
    """`aim-tiny`, `image_size=48,patch_size=8`, or a name and then single sizes -> sizes of an encoder."""
    from var.hub.presets import encoder_sizes
    from var.models.aim import EncoderConfig

    values: dict[str, str | float] = {}
    for i, part in enumerate(given.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals and i > 0:
            raise InputError(f"--sizes {abbreviate(given)}: {abbreviate(part)} must be a size, such as image_size=48")
        try:
            values[name if equals else "preset"] = (float if "." in value else int)(value) if equals else name
        except ValueError as error:
            raise InputError(
                f"--sizes {abbreviate(given)}: {abbreviate(part)} must give a number, such as image_size=48"
            ) from error
    try:
        return EncoderConfig(**encoder_sizes(values))  # type: ignore[arg-type]  # it checks their types
    except TypeError as error:  # a name that it does not know
        known = ", ".join(field.name for field in fields(EncoderConfig))
        raise InputError(f"--sizes {abbreviate(given)} holds a size that there is not: known are {known}") from error
    except InputError as error:
        raise InputError(f"--sizes {abbreviate(given)}: {error}") from error


def classify(
    train: options.TrainFeatures,
    validation: options.ValidationFeatures,
    k: options.Neighbors = 20,
    json_file: options.JsonFile = None,
) -> None:
    """Classify by nearest neighbors and by logistic regression; the files are what `var features extract` wrote.

    Examples:
      var features classify train.parquet validation.parquet
      var features classify train.parquet validation.parquet --k 10 --json accuracy.json
    """
    from var.features.classifiers import check_comparable, linear, nearest_neighbors
    from var.features.feature_file import read_features
    from var.utils.files import atomic_write
    from var.utils.paths import check_target

    if json_file is not None:
        check_target(json_file, "accuracy.json", [train, validation])
    known, asked = read_features(train), read_features(validation)
    check_comparable(known, asked)
    neighbors = nearest_neighbors(known, asked, k)
    typer.echo(heading(known, asked))
    typer.echo(line("k nearest neighbors", neighbors, f"k={k}, cosine"))
    regression = linear(known, asked)
    stopped = "" if regression.converged else ", not converged"
    typer.echo(line("logistic regression", regression.accuracy, f"C={regression.strength:g}{stopped}"))
    if json_file is not None:
        with atomic_write(json_file) as beside:
            beside.write_text(json.dumps(results(known, asked, k, neighbors, regression), indent=2) + "\n")


def results(
    train: "FeatureTable", validation: "FeatureTable", k: int, neighbors: "Accuracy", regression: "Regression"
) -> dict[str, Any]:
    """Return the content of the JSON file."""
    settings, chosen = train.settings, regression._asdict()
    del chosen["accuracy"]
    return {
        **{name: getattr(settings, name) for name in ("model", "layers", "pool", "length")},
        "classes": len(set(train.labels.tolist())),
        "train": len(train.labels),
        "validation": len(validation.labels),
        "nearest_neighbours": {"k": k, **neighbors._asdict()},
        "linear": {**regression.accuracy._asdict(), **chosen},
    }


def heading(train: "FeatureTable", validation: "FeatureTable") -> str:
    """Return the line that says which features were compared."""
    settings, classes = train.settings, len(set(train.labels.tolist()))
    layers = ", ".join(map(str, settings.layers))
    return (
        f"{settings.model}, layers {layers}, {settings.length} numbers an image: {len(train.labels)} images of "
        f"{classes} classes in training, {len(validation.labels)} in validation"
    )


def line(name: str, accuracy: "Accuracy", how: str) -> str:
    """One row of the results."""
    return f"{name:<22} top-1 {accuracy.top1:7.2%}   top-5 {accuracy.top5:7.2%}   ({how})"


FEATURES = Group(
    "features",
    """Extract features of images with a frozen model, and classify by them.

    Examples:
      var features extract photos --model var-mini --out photos.parquet
      var features classify train.parquet validation.parquet
    """,
    {"extract": extract, "classify": classify},
)
