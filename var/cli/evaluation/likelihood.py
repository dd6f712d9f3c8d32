"""Command that measures how well a transformer predicts tokens: `var evaluate likelihood --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from var.cli.evaluation.options import DataOptions
from var.cli.evaluation.results import (
    data_entry,
    finish,
    format_mean,
    format_size,
    heading,
    parse_classes,
    read_batches,
)
from var.cli.options import ModelOptions
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.data.dataset import ImageDataset
    from var.evaluation.likelihood import LabeledLikelihood, Likelihood, TokenLikelihood
    from var.pipeline import VARPipeline


def likelihood(data: DataOptions, model: ModelOptions) -> None:
    """Print loss and error of token prediction with teacher forcing: over all scales, each scale, the last one.

    Examples:
      var evaluate likelihood --data imagenet --model var-d16 --num 5000
      var evaluate likelihood --data configs/mini_var.yaml data.source=imagenet --json likelihood.json
    """
    chosen_classes = parse_classes(data.classes)
    from var.evaluation.data import open_images, read_source, restrict_to_labels
    from var.evaluation.likelihood import likelihood as measure
    from var.pipeline import VARPipeline
    from var.utils.device import choose_device, choose_dtype
    from var.utils.paths import check_target
    from var.utils.provenance import device_name, fingerprint, versions

    source = read_source(data.data, data.overrides or [])
    if data.json_file is not None:
        check_target(data.json_file, "likelihood.json", [data.data, source.source, model.model])
    chosen = choose_dtype(model.dtype, choose_device(model.device))
    pipe = VARPipeline.from_pretrained(model.model, device=model.device, dtype="float32")
    pipe.model.cast(chosen)  # the tokenizer stays in float32, so that the tokens are training's
    side = pipe.vqvae.config.image_side
    whole = open_images(source, data.split, side, chosen_classes)
    if chosen_classes and whole.labels is not None:
        for label in sorted(set(whole.labels.tolist())):
            pipe.label(label)
    dataset = restrict_to_labels(whole, pipe.known_labels())
    found = measure(pipe, read_batches(dataset, data, "measured"))
    choice = f"labels {data.classes}" if chosen_classes else describe_known_labels(whole, dataset)
    results = {
        "command": "likelihood",
        "model": {
            "name": model.model,
            "parts": f"transformer of {format_size(pipe.model)}, tokenizer of {format_size(pipe.vqvae)}",
            "weights": fingerprint(pipe.model, pipe.vqvae),
            "dtype": f"transformer in {str(chosen).removeprefix('torch.')}, tokenizer in float32",
            "device": device_name(pipe.model.position.device),
        },
        "data": data_entry(dataset, data, found.num_images, choice),
        "versions": versions(),
        **to_dict(found, side),
    }
    lines = [*heading(results), "", *format_table(found), "", *format_summary(found, side)]
    finish(lines, find_renamed_labels(dataset, pipe), results, data.json_file)


def describe_known_labels(whole: "ImageDataset", dataset: "ImageDataset") -> str:
    """Describe the choice of classes without --classes."""
    if whole.labels is None or dataset.labels is None:
        return "labels as stored in the shards, all known to the model"
    kept, left_out = set(dataset.labels.tolist()), set(whole.labels.tolist()) - set(dataset.labels.tolist())
    others = f"; others left out: {len(left_out)} (images: {len(whole) - len(dataset)})" if left_out else ""
    return f"classes that the model knows: {len(kept)}{others}"


def find_renamed_labels(dataset: "ImageDataset", pipe: "VARPipeline") -> list[str]:
    """Return a warning if labels have different class names in data and model: they may be different classes."""
    from var.utils.classes import plain_name

    ours, theirs = pipe.classes or {}, dataset.class_names
    present = ours.keys() & theirs.keys() & set([] if dataset.labels is None else dataset.labels.tolist())
    different = sorted(label for label in present if plain_name(ours[label]) != plain_name(theirs[label]))
    if not different:
        return []
    first = different[0]
    return [
        f"the class names of data and model differ for {len(different)} of {len(present)} labels, such as {first}: "
        f"{theirs[first]!r} and {ours[first]!r}; if the classes differ too, the numbers are meaningless"
    ]


def to_dict(found: "LabeledLikelihood", side: int) -> dict[str, Any]:
    """Return the results for the JSON file; losses in nats per token unless the key says otherwise."""
    return {
        "with_label": likelihood_to_dict(found.given, side),
        "null_class": likelihood_to_dict(found.null, side),
        "label_saves_nats_per_image": found.gain._asdict(),
        "standard_errors": "over images",
    }


def likelihood_to_dict(found: "Likelihood", side: int) -> dict[str, Any]:
    """Return the entries of all tokens, of the last scale and of each scale."""

    def entries(of: "TokenLikelihood") -> dict[str, Any]:
        values = {name: getattr(of, name) for name in ("loss", "error", "bits", "perplexity")}
        values |= {"nats_per_image": of.nats_per_image, "bits_per_pixel": of.bits_per_pixel(side)}
        return {"tokens": of.tokens, **{name: value._asdict() for name, value in values.items()}}

    return {
        "all": entries(found.whole),
        "last": entries(found.last),
        "scales": {format_scale(of): entries(of) for of in found.of_scales},
    }


def format_scale(of: "TokenLikelihood") -> str:
    """Return the scale's name, such as `4x4`."""
    side = round(of.tokens**0.5)
    return f"{side}x{side}"


def format_table(found: "LabeledLikelihood") -> list[str]:
    """Return a row for all scales and one for each: with the label; in the last two columns, with the null class."""
    last = format_scale(found.given.last)
    rows = [("scale", "tokens", "nats/token", "error", "bits", "perplexity", "null class: nats/token", "error")]
    given = [("all", found.given.whole), *((format_scale(of), of) for of in found.given.of_scales)]
    for (name, of), without in zip(given, [found.null.whole, *found.null.of_scales], strict=True):
        name = f"{name}, last" if name == last else name
        labeled, null = ((format_mean(x.loss, ".4f"), format_mean(x.error, ".2f", 100) + " %") for x in (of, without))
        rows.append((name, str(of.tokens), *labeled, f"{of.bits.mean:.4f}", f"{of.perplexity.mean:.1f}", *null))
    return in_columns(rows)


def format_summary(found: "LabeledLikelihood", side: int) -> list[str]:
    """Return the total of an image's tokens in nats and bits per pixel, in lines."""
    lines = []
    for name, column in (("with its label", found.given), ("null class", found.null)):
        whole = column.whole
        lines.append(
            f"an image, {name:<17}{format_mean(whole.nats_per_image, '.2f')} nats, "
            f"{format_mean(whole.bits_per_pixel(side), '.4f')} bits/pixel (of its tokens, no bound on its pixels)"
        )
    lines.append(f"the label saves            {format_mean(found.gain, '.2f')} nats")
    lines.append("± is the standard error over images; error is 1 - top-1 accuracy")
    return lines
