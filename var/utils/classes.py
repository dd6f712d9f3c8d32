"""Names of classes <-> labels."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from tokenizer.errors import InputError, one_line
from var.utils.json_text import parse_json
from var.utils.text import as_unicode

Item = TypeVar("Item")

log = logging.getLogger(__name__)

IMAGENET_NAMES = Path(__file__).with_name("imagenet_classes.txt")  # a line a class


@cache
def imagenet_names() -> Mapping[int, str]:
    """Names of the 1000 ImageNet classes, as torchvision lists them."""
    return dict(enumerate(IMAGENET_NAMES.read_text(encoding="utf-8").splitlines()))


def names_are_imagenets(names: Mapping[int, str]) -> bool:
    """Return whether nine in ten labels have ImageNet's name, in a list of synonyms too, or all are WordNet's ids.

    A name that is the label itself says nothing, and is taken as ImageNet's.
    """
    known = imagenet_names()
    if len(names) == len(known) and all(re.fullmatch(r"n\d{8}", name) for name in names.values()):
        return [names[label] for label in sorted(names)] == sorted(names.values())

    def fits(label: int, name: str) -> bool:
        synonyms = map(plain_name, [name, *name.split(",")])
        return label in known and (name == str(label) or plain_name(known[label]) in synonyms)

    return sum(fits(label, name) for label, name in names.items()) >= 0.9 * len(names)


# A class has a row in tables of weights, trained or not. Labels below this are taken however few classes there are:
# ImageNet-21k has 21,841.
SPARSE_LABELS = 2**15


def labels_fit(largest: int, number: int) -> bool:
    """Return whether the largest label suits so many classes: it is below SPARSE_LABELS or four times their number."""
    return largest < max(SPARSE_LABELS, 4 * number)


def class_labels(names: Iterable[str]) -> dict[str, int]:
    """Labels of class folders: indices of the sorted names; where all names are numbers, these.

    Numbers too large for so few classes, such as dates and other ids, are names like any others.

    Raises InputError: numbers that are the same, such as 1 and 01.
    """
    ordered = sorted(names)
    numbered = all(name.isdecimal() for name in ordered)
    if not numbered or not labels_fit(max(map(int, ordered), default=0), len(ordered)):
        return {name: label for label, name in enumerate(ordered)}
    labels = {name: int(name) for name in ordered}
    if len(set(labels.values())) < len(labels):
        raise InputError("class folders have the same number, such as 1 and 01: rename one of them")
    return labels


def folder_names(labels: Mapping[str, int]) -> dict[int, str]:
    """Label -> name of class folders, by what `class_labels` gives; {} where the names are the labels themselves.

    The names are valid Unicode, which a model's config needs and names of files need not be.
    """
    if all(name.isdecimal() and int(name) == label for name, label in labels.items()):
        return {}
    return {label: as_unicode(name) for name, label in labels.items()}


def named_classes(folder: Path) -> dict[int, str]:
    """Names of labels by the classes.json in a folder; {} where there is none. Raises InputError on another form."""
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    try:
        names = {int(label): str(entry["name"]) for label, entry in parse_json(path.read_bytes()).items()}
        if min(names, default=0) < 0:
            raise ValueError(f"label {min(names)} is below 0")
        return names
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        form = '{"207": {"name": "golden retriever"}}'
        raise InputError(f"{path} is not of the form {form}: correct or remove it ({one_line(error)})") from error


def read_number(text: str) -> int | None:
    """Return the whole number that a text is, of at most 18 digits; None: it is none."""
    return int(text) if re.fullmatch(r"\s*[-+]?\d{1,18}\s*", text) else None


def label_of_text(text: str, classes: Mapping[int, str]) -> int | None:
    """The label of the class that has this name, else, of a whole number, that number; None: it is neither.

    A name that is a number, and the label of another class too, is taken as the name, with a warning. One also
    comes with a label where, by names that are numbers, another class is meant: 01 is not the name 1.

    Raises InputError: a name of several classes.
    """
    number = read_number(text)
    if plain_name(text) not in map(plain_name, classes.values()):
        named = {label: int(name) for label, name in classes.items() if re.fullmatch(r"\d{1,18}", name)}
        ambiguous = any((label == number) != (value == number) for label, value in named.items())
        if number is not None and number in classes and ambiguous:
            log.warning("class %r is taken as label %d, which is the class %r", text, number, classes[number])
        return number
    label = find_label(text, classes)
    if number is not None and number != label and number in classes:
        log.warning(
            "class %r is taken as the name of the class with label %d; label %d is the class %r",
            text,
            label,
            number,
            classes[number],
        )
    return label


def find_label(name: str, classes: Mapping[int, str]) -> int:
    """The label of a name among the classes, whatever its case, with blanks or underscores.

    Raises InputError: no class of that name, or several; with the nearest ones.
    """
    wanted = plain_name(name)
    lowered = {label: plain_name(known) for label, known in classes.items()}
    found = [label for label, known in lowered.items() if known == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"class {name!r} is the name of {len(found)} classes: give the index, one of {found}")
    near = difflib.get_close_matches(wanted, lowered.values(), n=3) or [n for n in lowered.values() if wanted in n][:3]
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"this model knows {listing(classes)}"
    raise InputError(f"class {name!r} is unknown: {hint}")


def split_classes(text: str, classes: Mapping[int, str]) -> list[str]:
    """`207,970` -> ["207", "970"]; a name that has commas in it stays whole.

    Args:
        text: indices and names with commas between them.
        classes: label -> name of those that are known.
    """
    names, parts = set(map(plain_name, classes.values())), text.split(",")
    found: list[str] = []
    while parts:
        lengths = (n for n in range(len(parts), 1, -1) if plain_name(",".join(parts[:n])) in names)
        length = next(lengths, 1)
        found.append(",".join(parts[:length]).strip())
        parts = parts[length:]
    return found


def plain_name(name: str) -> str:
    """In lower case, words parted by one blank."""
    return " ".join(name.lower().replace("_", " ").split())


def spread(given: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` of what is given, at even distances, the first among them."""
    number = min(most, len(given))
    return [given[i * len(given) // number] for i in range(number)]


def listing(classes: Mapping[int, str], most: int = 40) -> str:
    """`1 goldfish, 207 golden retriever, ...`, or with numbers among the names `0 (1), 1 (none)`; cut after `most`."""
    named = {label: name for label, name in sorted(classes.items()) if name != str(label)}
    numbered = any(name.isdecimal() for name in named.values())
    entries = [
        str(label) if label not in named else f"{label} ({named[label]})" if numbered else f"{label} {named[label]}"
        for label in sorted(classes)
    ]
    return ", ".join(entries[:most]) + (f", and {len(entries) - most} more" if len(entries) > most else "")
