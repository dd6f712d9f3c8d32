"""One WebDataset shard: a tar file whose samples are read by number.

A sample is a group of members that share the name up to its first dot: `a/0017.jpg` with `a/0017.cls` (its label as
text) or `a/0017.json` (an object with the label); `_split_names` says what becomes of names with more dots. Members
that are hidden are passed over, as in folders.
"""

import os
import tarfile
from collections.abc import Collection, Mapping, Sequence
from typing import BinaryIO
from weakref import finalize

from tokenizer.errors import abbreviate
from var.utils.contents import HEAD, find_substitute
from var.utils.image_files import IMAGE_SUFFIXES
from var.utils.json_text import parse_json
from var.utils.paths import is_hidden

MAX_CLASSES = 10**6
LABEL_SUFFIXES = frozenset({".cls", ".json"})


class OpenShard:
    """A tar file whose samples are read by number, in file order; it is closed when this object is collected.

    Raises tarfile.TarError: it is no tar file, or a compressed one. A truncated one has fewer samples.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.passed_over = 0  # members, hidden ones
        finalize(self, file.close)
        if substitute := find_substitute(file.read(HEAD)):
            raise tarfile.ReadError(substitute)
        file.seek(0)
        found: dict[str, tuple[int, int]] = {}  # name -> offset, size
        with tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    if _is_passed_over(member.name):
                        self.passed_over += 1
                    elif member.isfile():
                        found[member.name] = (member.offset_data, member.size)
            except tarfile.TarError:
                if not found:
                    raise
        samples: dict[str, dict[str, tuple[int, int]]] = {}  # its name -> suffix -> offset, size
        for (name, suffix), at in zip(_split_names(list(found)), found.values(), strict=True):
            if name.rpartition("/")[2] and suffix:
                samples.setdefault(name, {})[suffix.lower()] = at
        self.samples = list(samples.values())

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, number: int, suffixes: Collection[str]) -> bytes:
        """Read a sample's first member with one of the suffixes. Raises ValueError: there is none."""
        members = self.samples[number]
        suffix = next((suffix for suffix in members if suffix in suffixes), None)
        if suffix is None:
            raise ValueError(f"none of its members ({', '.join(members)}) is an image")
        return self._read(number, suffix)

    def label(self, number: int, key: str) -> int:
        """Read a sample's label: its .cls, or the key of its .json. Raises ValueError: there is none."""
        members = self.samples[number]
        if "cls" in members:
            value: object = _parse_label(self._read(number, "cls"))
        elif "json" in members:
            content = parse_json(self._read(number, "json"))
            value = content.get(key) if isinstance(content, Mapping) else None
        else:
            raise ValueError("it has neither .cls nor .json, so no label")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"its label is {value!r}: labels must be integers, 0 and up")
        if value >= MAX_CLASSES:
            raise ValueError(f"its label is {value}: labels number the classes, and must be below {MAX_CLASSES:,}")
        return value

    def _read(self, number: int, suffix: str) -> bytes:
        offset, size = self.samples[number][suffix]
        # pread, for forked processes share the file's offset.
        return os.pread(self.file.fileno(), size, offset)


def _parse_label(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        given = abbreviate(content.decode(errors="replace").strip())
        raise ValueError(
            f"its .cls holds {given}: it must hold the number of its class, 0 and up; the index may name the numbers "
            "(class_names)"
        ) from None  # whose text is for programmers


def _is_passed_over(member: str) -> bool:
    """Return whether a member is hidden or in a hidden folder, as the `._0017.jpg` that a Mac adds to archives."""
    return any(is_hidden(part) for part in member.split("/") if part not in (".", ".."))


def _split_names(members: Sequence[str]) -> list[tuple[str, str]]:
    """Split the names of members into the sample's and the suffix.

    A sample's name ends at the first dot, as in WebDataset. But where an image and its label share a name with dots
    (`a.5.jpg`, `a.5.cls`), or nothing there is named as an image or label otherwise, it ends at the last dot.
    """

    def split(member: str, last: bool) -> tuple[str, str]:
        folder, slash, name = member.rpartition("/")
        start, _, suffix = name.rpartition(".") if last else name.partition(".")
        return folder + slash + start, suffix

    suffixes: dict[str, set[str]] = {}  # of each name up to its last dot
    for member in members:
        name, suffix = split(member, last=True)
        suffixes.setdefault(name, set()).add(f".{suffix.lower()}")
    whole = {name for name, found in suffixes.items() if found & IMAGE_SUFFIXES and found & LABEL_SUFFIXES}
    plain = {name for name, found in suffixes.items() if found & (IMAGE_SUFFIXES | LABEL_SUFFIXES)}
    return [
        split(member, last=split(member, last=True)[0] in whole or split(member, last=False)[0] not in plain)
        for member in members
    ]
