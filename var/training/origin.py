"""The origin of a run: classes, images and frozen networks, which its recipe only points to and which may change."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from var.data.config import DataConfig
from var.data.dataset import SampleDataset
from var.data.fingerprint import are_other_images, find_changed_images, find_renamed_class
from var.utils.provenance import fingerprint
from var.utils.text import plural

SPLITS = ("training", "validation")


def describe_origin(
    data: DataConfig, train_data: SampleDataset, validation_data: SampleDataset, frozen: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """Return names of the classes and fingerprints of images and frozen networks, for `find_change`."""
    described = (train_data.describe(), validation_data.describe())
    return {
        "source": os.path.realpath(data.source) if Path(data.source).exists() else data.source,
        "classes": {int(label): str(name) for label, name in train_data.class_names.items()},
        **dict(zip(SPLITS, described, strict=True)),
        "networks": {role: fingerprint(network) for role, network in frozen.items()},
    }


def find_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words the first difference of two origins, or None.

    Images may move, and some may be repaired where they are, but none may change places with those of another class.
    What one of the origins does not know, such as the names of images that a token cache replaces, is not compared.
    """
    for role, ours in now["networks"].items():
        if before["networks"].get(role, ours) != ours:
            return f"the {role} had other weights"
    if renamed := find_renamed_class(before["classes"], now["classes"]):
        return renamed
    for split in SPLITS:
        theirs, ours = before[split], now[split]
        if theirs["images"] != ours["images"]:
            return f"it had {theirs['images']} {split} images, the data has {ours['images']} now"
        for part in ("labels", "sampled_labels", "names"):
            known = {theirs.get(part), ours[part]}  # older checkpoints have no sampled_labels
            if None not in known and len(known) > 1:
                return f"the {split} images had other {part.removeprefix('sampled_')}"
        was, is_now = _contents(theirs, ours)
        if before["source"] != now["source"] and find_changed_images(was, is_now):
            return f"data.source was {before['source']}, and {now['source']} holds other images"
        if are_other_images(was, is_now):
            return f"{now['source']} holds other {split} images under the same names"
    return None


def describe_repairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words the number of images, of those compared, that have changed where they are; "" for none."""
    changed = []
    for split in SPLITS:
        was, is_now = _contents(before[split], now[split])
        if found := find_changed_images(was, is_now):
            changed.append(f"{len(found)} of {plural(len(is_now or ()), f'{split} image')}")
    return " and ".join(changed) + " that were compared have changed" if changed else ""


def _contents(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """Return the fingerprints of images of a split; None where they are not known one by one."""
    was, is_now = (None if isinstance(known["content"], str) else known["content"] for known in (before, now))
    return was, is_now
