"""The command that measures how well a transformer predicts tokens: `var evaluate likelihood --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from var.cli.evaluation.options import DataOptions
from var.cli.evaluation.results import data_entry, finish, heading, labels_of, millions, read_batches, spread
from var.cli.options import ModelOptions
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.data.dataset import ImageDataset
    from var.evaluation.likelihood import LabeledLikelihood, Likelihood, TokenLikelihood
    from var.pipeline import VARPipeline


def likelihood(data: DataOptions, model: ModelOptions) -> None:
    """Print loss and error of the tokens of images, given the coarser scales: all, each scale, the last one.

    Examples:
      var evaluate likelihood --data imagenet --model var-d16 --num 5000
      var evaluate likelihood --data configs/mini_var.yaml data.source=imagenet --json likelihood.json
    """
    labels = labels_of(data.classes)
    from var.evaluation.data import open_images, read_source, restrict_to_labels
    from var.evaluation.likelihood import likelihood as measure
    from var.pipeline import VARPipeline
    from var.utils.device import choose_device, choose_dtype
    from var.utils.files import check_target
    from var.utils.provenance import device_name, fingerprint, versions

    source = read_source(data.data, data.overrides or [])
    if data.json_file is not None:
        check_target(data.json_file, "likelihood.json", [data.data, source.source, model.model])
    chosen = choose_dtype(model.dtype, choose_device(model.device))
    pipe = VARPipeline.from_pretrained(model.model, device=model.device, dtype="float32")
    pipe.model.cast(chosen)  # the tokenizer stays in float32, so that the tokens are training's
    for label in labels or []:
        pipe.label(label)
    whole = open_images(source, data.split, pipe.vqvae.config.image_side, labels)
    dataset = restrict_to_labels(whole, pipe.known_labels())
    found = measure(pipe, read_batches(dataset, data, "measured"))
    choice = f"labels {data.classes}" if labels else known_only(whole, dataset)
    results = {
        "command": "likelihood",
        "model": {
            "name": model.model,
            "parts": f"transformer of {millions(pipe.model)}, tokenizer of {millions(pipe.vqvae)}",
            "weights": fingerprint(pipe.model, pipe.vqvae),
            "dtype": f"transformer in {str(chosen).removeprefix('torch.')}, tokenizer in float32",
            "device": device_name(pipe.model.position.device),
        },
        "data": data_entry(dataset, data, found.pictures, choice),
        "versions": versions(),
        **as_json(found, pipe.vqvae.config.image_side),
    }
    lines = [*heading(results), "", *table(found), "", *summary(found, pipe.vqvae.config.image_side)]
    finish(lines, renamed(dataset, pipe), results, data.json_file)


def known_only(whole: "ImageDataset", dataset: "ImageDataset") -> str:
    """How the classes were chosen where nobody said how."""
    if whole.labels is None or dataset.labels is None:
        return "labels as the shards tell them, all known to the model"
    kept, left_out = set(dataset.labels.tolist()), set(whole.labels.tolist()) - set(dataset.labels.tolist())
    others = f", not the {len(whole) - len(dataset)} images of {len(left_out)} others" if left_out else ""
    return f"the {len(kept)} classes that the model knows{others}"


def renamed(dataset: "ImageDataset", pipe: "VARPipeline") -> list[str]:
    """A warning if data and model call a label by different names: they may count their classes differently."""

    from var.utils.classes import plain_name

    ours, theirs = pipe.classes or {}, dataset.class_names
    present = ours.keys() & theirs.keys() & set([] if dataset.labels is None else dataset.labels.tolist())
    different = sorted(label for label in present if plain_name(ours[label]) != plain_name(theirs[label]))
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
        "label_saves_nats_per_image": found.gain._asdict(),
        "standard_errors": "over images",
    }


def column_json(found: "Likelihood", side: int) -> dict[str, Any]:
    """All tokens, those of the last scale, those of each."""

    def entries(of: "TokenLikelihood") -> dict[str, Any]:
        values = {name: getattr(of, name) for name in ("loss", "error", "bits", "perplexity")}
        values |= {"nats_per_image": of.nats_per_picture, "bits_per_pixel": of.bits_per_pixel(side)}
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
    """A line for all scales and for each: with its label and, in the last two columns, without."""
    last = scale_name(found.given.last)
    rows = [("scale", "tokens", "nats a token", "error", "bits", "perplexity", "null class: nats a token", "error")]
    given = [("all", found.given.whole), *((scale_name(of), of) for of in found.given.of_scales)]
    for (name, of), without in zip(given, [found.null.whole, *found.null.of_scales], strict=True):
        name = f"{name}, last" if name == last else name
        labeled, unlabeled = ((spread(x.loss, ".4f"), spread(x.error, ".2f", 100) + " %") for x in (of, without))
        rows.append((name, str(of.tokens), *labeled, f"{of.bits.mean:.4f}", f"{of.perplexity.mean:.1f}", *unlabeled))
    return in_columns(rows)


def summary(found: "LabeledLikelihood", side: int) -> list[str]:
    """What all tokens of an image cost."""
    lines = []
    for name, column in (("with its label", found.given), ("null class", found.null)):
        whole = column.whole
        lines.append(
            f"an image, {name:<17}{spread(whole.nats_per_picture, '.2f')} nats, "
            f"{spread(whole.bits_per_pixel(side), '.4f')} bits a pixel (of its tokens, which tell less than the pixels)"
        )
    lines.append(f"the label saves            {spread(found.gain, '.2f')} nats an image")
    lines.append("± is the standard error over images; error is 1 - top-1 accuracy")
    return lines
