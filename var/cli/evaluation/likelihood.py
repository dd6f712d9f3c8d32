"""The command that measures how well a transformer predicts tokens: `var evaluate likelihood --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from var.cli import options
from var.cli.bundles import ModelOptions
from var.cli.evaluation.results import data_entry, finish, heading, labels_of, millions, spread, with_progress

if TYPE_CHECKING:
    from var.data.dataset import ImageDataset
    from var.evaluation.likelihood import LabeledLikelihood, Likelihood, TokenLikelihood
    from var.evaluation.metrics.stats import MeanStderr
    from var.pipeline import VARPipeline


def likelihood(
    data: options.Data,
    overrides: options.DataOverrides = None,
    split: options.Split = "validation",
    classes: options.Labels = None,
    num: options.MaxImages = None,
    batch: options.Batch = 32,
    json_file: options.JsonFile = None,
    *,
    model: ModelOptions,
) -> None:
    """Print loss and error of the tokens of images, given the coarser scales: all, each scale, the last one.

    Examples:
      var evaluate likelihood --data imagenet --model var-d16 --num 5000
      var evaluate likelihood --data configs/mini_var.yaml data.source=imagenet --json likelihood.json
    """
    labels = None if classes is None else labels_of(classes)
    from var.evaluation.data import count_requested, image_batches, open_images, read_source, restrict_to_labels
    from var.evaluation.likelihood import likelihood as measure
    from var.pipeline import VARPipeline
    from var.utils.device import choose_device, choose_dtype
    from var.utils.files import check_target
    from var.utils.provenance import device_name, fingerprint, versions

    source = read_source(data, overrides or [])
    if json_file is not None:
        check_target(json_file, "likelihood.json", [data, source.source, model.model])
    chosen = choose_dtype(model.dtype, choose_device(model.device))
    pipe = VARPipeline.from_pretrained(
        model.model, device=model.device, dtype="float32"
    )  # so that the tokens are training's
    pipe.model.cast(chosen)
    for label in labels or []:
        pipe.label(label)
    whole = open_images(source, split, pipe.vqvae.config.image_side, labels)
    dataset = restrict_to_labels(whole, pipe.known_labels())
    asked = count_requested(dataset, num)
    found = measure(pipe, with_progress(image_batches(dataset, batch, num), asked, "measured"))
    choice = f"labels {classes}" if labels else known_only(whole, dataset)
    results = {
        "command": "likelihood",
        "model": {
            "name": model.model,
            "parts": f"transformer of {millions(pipe.model)}, tokenizer of {millions(pipe.vqvae)}",
            "weights": fingerprint(pipe.model, pipe.vqvae),
            "dtype": f"transformer in {str(chosen).removeprefix('torch.')}, tokenizer in float32",
            "device": device_name(pipe.model.position.device),
        },
        "data": data_entry(dataset, split, asked, found.pictures, choice),
        "versions": versions(),
        **as_json(found, pipe.vqvae.config.image_side),
    }
    lines = [*heading(results), "", *table(found), "", *summary(found, pipe.vqvae.config.image_side)]
    finish(lines, renamed(dataset, pipe), results, json_file)


def known_only(whole: "ImageDataset", dataset: "ImageDataset") -> str:
    """How the classes were chosen where nobody said how."""
    if whole.labels is None or dataset.labels is None:
        return "labels as the shards tell them, all known to the model"
    kept, left_out = set(dataset.labels.tolist()), set(whole.labels.tolist()) - set(dataset.labels.tolist())
    others = f", not the {len(whole) - len(dataset)} pictures of {len(left_out)} others" if left_out else ""
    return f"the {len(kept)} classes that the model knows{others}"


def renamed(dataset: "ImageDataset", pipe: "VARPipeline") -> list[str]:
    """A warning if data and model call a label by different names: they may count their classes differently."""

    def plain(name: str) -> str:
        return " ".join(name.lower().replace("_", " ").split())

    ours, theirs = pipe.classes or {}, dataset.class_names
    present = ours.keys() & theirs.keys() & set([] if dataset.labels is None else dataset.labels.tolist())
    different = sorted(label for label in present if plain(ours[label]) != plain(theirs[label]))
    if not different:
        return []
    first = different[0]
    return [
        f"{len(different)} labels have other names in the data than in the model, such as {first}: {theirs[first]!r} "
        f"and {ours[first]!r}; if they are other classes, the numbers mean nothing"
    ]


def as_json(found: "LabeledLikelihood", side: int) -> dict[str, Any]:
    """What is written; nats and bits a token unless the name says otherwise."""
    return {
        "with_label": column_json(found.given, side),
        "null_class": column_json(found.null, side),
        "label_saves_nats_per_picture": found.gain._asdict(),
        "standard_errors": "over pictures",
    }


def column_json(found: "Likelihood", side: int) -> dict[str, Any]:
    """All tokens, those of the last scale, those of each."""

    def entries(of: "TokenLikelihood") -> dict[str, Any]:
        values: dict[str, MeanStderr] = {
            "loss": of.loss,
            "error": of.error,
            "bits": of.bits,
            "perplexity": of.perplexity,
            "nats_per_picture": of.nats_per_picture,
            "bits_per_pixel": of.bits_per_pixel(side),
        }
        return {"tokens": of.tokens, **{name: value._asdict() for name, value in values.items()}}

    return {
        "all": entries(found.whole),
        "last": entries(found.last),
        "scales": {scale_name(of): entries(of) for of in found.of_scales},
    }


def scale_name(of: "TokenLikelihood") -> str:
    """`4x4`."""
    side = round(of.tokens**0.5)
    return f"{side}x{side}"


def table(found: "LabeledLikelihood") -> list[str]:
    """A line for all scales and for each."""
    width = 62
    lines = [
        f"{'':<20}{'with its label':<{width}}null class",
        f"{'scale':<13}{'tokens':<7}"
        + f"{'nats a token':<19}{'error':<18}{'bits':<10}{'perplexity':<15}"
        + f"{'nats a token':<19}error",
    ]
    given = [("all", found.given.whole), *((scale_name(of), of) for of in found.given.of_scales)]
    null = [found.null.whole, *found.null.of_scales]
    last = scale_name(found.given.last)
    for (name, of), without in zip(given, null, strict=True):
        name = f"{name}, last" if name == last else name
        lines.append(
            f"{name:<13}{of.tokens:<7}"
            f"{spread(of.loss, '.4f'):<19}{spread(of.error, '.2f', 100) + ' %':<18}{of.bits.mean:<10.4f}"
            f"{of.perplexity.mean:<15.1f}"
            f"{spread(without.loss, '.4f'):<19}{spread(without.error, '.2f', 100)} %"
        )
    return lines


def summary(found: "LabeledLikelihood", side: int) -> list[str]:
    """What all tokens of a picture cost."""
    lines = []
    for name, column in (("with its label", found.given), ("null class", found.null)):
        whole = column.whole
        lines.append(
            f"a picture, {name:<16}{spread(whole.nats_per_picture, '.2f')} nats, "
            f"{spread(whole.bits_per_pixel(side), '.4f')} bits a pixel (of its tokens, which tell less than the pixels)"
        )
    lines.append(f"the label saves            {spread(found.gain, '.2f')} nats a picture")
    lines.append("± is the standard error over pictures; error is 1 - top-1 accuracy")
    return lines
