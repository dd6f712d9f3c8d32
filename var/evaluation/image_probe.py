"""Classes of images by the probe of an encoder, and the choice between that and the likelihood of a VAR.

M classes, S side of the images in pixels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from var.aim import AIM
from var.features.sources import ProbeClassifier, load_classifier
from var.hub.checkpoint import CONFIG, find_exported, read_class_names, read_config
from var.hub.presets import RELEASED, SHIPPED, own_name
from var.models.aim import Encoder, Probe, val_transforms
from var.sampling.output import ClassScore
from var.utils.classes import imagenet_names
from var.utils.images import resize_and_center_crop
from var.utils.paths import to_path

By = Literal["likelihood", "probe"]

SINGLE = (AIM.__name__, Encoder.__name__, Probe.__name__)  # models that are a folder of their own, not a pipeline's


def choose_by(model: str, by: By | None = None) -> By:
    """Return how a model classifies; None is what it can do.

    Args:
        model: a name or a folder; what is neither is taken to be what `by` says.

    Raises:
        InputError: the model cannot do that; a damaged folder.
    """
    folder, able = find_exported(to_path(model, "model")), by or "likelihood"
    if own_name(model) in (*SHIPPED, *RELEASED):
        able = "likelihood"
    elif folder.is_dir():
        single = (folder / CONFIG).is_file() and read_config(folder).get("model") in SINGLE
        able = "probe" if single else "likelihood"
    elif Path(model).name.lower().startswith("aim"):
        able = "probe"
    if by not in (None, able):
        other = "a VAR classifies by likelihood" if able == "likelihood" else "an encoder classifies by its probe"
        raise InputError(f"{model} cannot classify by {by}: {other}; take that, or give another model")
    return able


@dataclass(frozen=True)
class ImageProbe:
    """An encoder with its probe.

    Attributes:
        network: (B, 3, S, S) -> logits and features.
        transform: an image of any size and mode -> (3, S, S), as the network takes it.
        names: label -> name of the classes.
    """

    network: AIM | ProbeClassifier
    transform: Callable[[Image.Image], Tensor]
    names: Mapping[int, str]


def load_image_probe(model: str, device: str = "auto", dtype: str = "auto") -> ImageProbe:
    """Load an AIM with its probe, or a probe alone with what it reads.

    Args:
        model: a released AIM's name, or a folder as the stage `probe` exports it.
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: of the networks: auto (bfloat16 where the device is fast at it), float32 or bfloat16.

    Raises:
        InputError: an unknown name, missing or damaged files, an encoder without a probe.
    """
    folder = find_exported(to_path(model, "model"))
    config = read_config(folder) if folder.is_dir() else {}
    given = read_class_names(folder, config) or {}
    if config.get("model") == Probe.__name__:
        alone = load_classifier(folder, device=device, dtype=dtype)
        side = alone.source.image_size
        names = _name_classes(given, alone.probe.config.num_classes)
        return ImageProbe(alone, lambda image: resize_and_center_crop(image, side), names)
    aim = AIM.from_pretrained(model, device=device, dtype=dtype)
    return ImageProbe(aim, val_transforms(aim.config.image_size), _name_classes(given, aim.config.num_classes))


def _name_classes(given: Mapping[int, str], num_classes: int) -> Mapping[int, str]:
    """Return the names of a probe's classes, or the labels where there are no names."""
    if named := {label: name for label, name in given.items() if label < num_classes}:
        return named
    return imagenet_names() if num_classes == 1000 else {label: str(label) for label in range(num_classes)}


@torch.inference_mode()
def classify_by_probe(probe: ImageProbe, images: Iterable[Image.Image]) -> list[list[ClassScore]]:
    """Rank the classes of a probe by their logits; returns M classes for each image, the best first.

    Raises:
        InputError: images that cannot be read.
    """
    labels = sorted(probe.names)
    ranked = []
    for image in images:
        logits = probe.network(probe.transform(image)[None]).logits[0, labels].double().cpu()  # (M,)
        scores = zip(labels, logits.softmax(dim=0).tolist(), logits.tolist(), strict=True)
        classes = [ClassScore(label, probe.names[label], posterior, logit) for label, posterior, logit in scores]
        ranked.append(sorted(classes, key=lambda found: found.score or 0.0, reverse=True))
    return ranked
