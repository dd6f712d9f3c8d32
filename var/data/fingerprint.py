"""Fingerprints of a few images of a split, and the comparison of data with what it was before."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from var.utils.provenance import sha256

SPREAD = 16  # images at even distances that are read
MOST = 1024  # images that are read at all, the first of each class among them

UNREADABLE = ""  # fingerprint of an image that cannot be read


def choose_images(count: int, labels: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Choose from `count` images those to read: some at even distances and, with labels (count,), one of each class.

    Returns:
        Their indices, rising; at most MOST.
    """
    chosen = np.linspace(0, count - 1, min(SPREAD, count)).astype(np.int64)
    if labels is not None:
        chosen = np.union1d(chosen, np.unique(labels, return_index=True)[1])
    return chosen[np.linspace(0, len(chosen) - 1, min(MOST, len(chosen))).astype(np.int64)]


def fingerprint_of(content: bytes) -> str:
    """Return the fingerprint of an image's file; UNREADABLE where it is empty."""
    return sha256([content])[:16] if content else UNREADABLE


def find_renamed_class(before: Mapping[int, str], now: Mapping[int, str]) -> str | None:
    """Return in words the first label that has another name, or None."""
    for label in sorted(before.keys() | now.keys()):
        if before.get(label) != now.get(label):
            was, is_now = (f"{names[label]!r}" if label in names else "without a name" for names in (before, now))
            return f"label {label} was {was} and is now {is_now}"
    return None


def find_changed_images(before: Sequence[str] | None, now: Sequence[str] | None) -> list[int]:
    """Return which fingerprints of two lists differ; [] where one of the lists is unknown or an image is unreadable."""
    if before is None or now is None:
        return []
    if len(before) != len(now):
        return list(range(len(now)))
    pairs = enumerate(zip(before, now, strict=True))
    return [i for i, (theirs, ours) in pairs if theirs != ours and UNREADABLE not in (theirs, ours)]


def are_other_images(before: Sequence[str] | None, now: Sequence[str] | None) -> bool:
    """Return whether images under the same names are others: most of them, or some that changed places.

    A few that have changed may have been repaired: these are the same images.
    """
    if before is None or now is None:
        return False
    changed = find_changed_images(before, now)
    return 2 * len(changed) > len(now) or any(now[i] in before for i in changed)
