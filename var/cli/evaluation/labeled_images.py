"""Shared parts of the commands that measure a pipeline on labeled images: what is loaded, and its description."""

from typing import TYPE_CHECKING, Any, NamedTuple

from var.cli.evaluation.options import DataOptions
from var.cli.evaluation.results import data_entry, format_size, parse_classes
from var.cli.options import ModelOptions

if TYPE_CHECKING:
    from var.data.dataset import ImageDataset
    from var.pipeline import VARPipeline


class LabeledImages(NamedTuple):
    """A pipeline, its tokenizer in float32, and images of the classes that it knows."""

    pipe: "VARPipeline"
    dataset: "ImageDataset"
    choice: str  # of the classes, in words


def open_labeled_images(data: DataOptions, model: ModelOptions, example: str) -> LabeledImages:
    """Load a pipeline and find the images of the classes that it knows.

    Args:
        example: a name for the JSON file.

    Raises:
        InputError: options that cannot work, a class that the model does not know, no images.
    """
    classes = parse_classes(data.classes)
    from var.evaluation.data import open_images, read_source, restrict_to_labels
    from var.evaluation.likelihood import load_pipeline
    from var.utils.paths import check_target

    source = read_source(data.data, data.overrides or [])
    if data.json_file is not None:
        check_target(data.json_file, example, [data.data, source.source, model.model])
    pipe = load_pipeline(model.model, model.device, model.dtype)
    whole = open_images(source, data.split, pipe.vqvae.config.image_side, classes)
    if classes and whole.labels is not None:
        for label in sorted(set(whole.labels.tolist())):
            pipe.label(label)
    dataset = restrict_to_labels(whole, pipe.known_labels())
    choice = f"labels {data.classes}" if classes else describe_known_labels(whole, dataset)
    return LabeledImages(pipe, dataset, choice)


def describe(opened: LabeledImages, data: DataOptions, model: ModelOptions, read: int) -> dict[str, Any]:
    """Return the JSON entries of model, data and versions: `read` is the number of images read."""
    from var.utils.provenance import device_name, fingerprint, versions

    pipe, dtype = opened.pipe, str(opened.pipe.model.dtype).removeprefix("torch.")
    return {
        "model": {
            "name": model.model,
            "parts": f"transformer of {format_size(pipe.model)}, tokenizer of {format_size(pipe.vqvae)}",
            "weights": fingerprint(pipe.model, pipe.vqvae),
            "dtype": f"transformer in {dtype}, tokenizer in float32",
            "device": device_name(pipe.model.position.device),
        },
        "data": data_entry(opened.dataset, data, read, opened.choice),
        "versions": versions(),
    }


def describe_known_labels(whole: "ImageDataset", dataset: "ImageDataset") -> str:
    """Describe the choice of classes without --classes."""
    if whole.labels is None or dataset.labels is None:
        return "labels as stored in the shards, all known to the model"
    kept, left_out = set(dataset.labels.tolist()), set(whole.labels.tolist()) - set(dataset.labels.tolist())
    others = f"; others left out: {len(left_out)} (images: {len(whole) - len(dataset)})" if left_out else ""
    return f"classes that the model knows: {len(kept)}{others}"


def find_renamed_labels(pipe: "VARPipeline", dataset: "ImageDataset") -> list[str]:
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
