"""The files of a folder that are images: one rule for training, features, evaluation and editing."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from PIL import features

from tokenizer.errors import InputError
from var.utils.paths import is_hidden, subfolders
from var.utils.ranks import is_first_process
from var.utils.text import plural

log = logging.getLogger(__name__)

_AVIF = "avif" in features.get_supported()  # Pillow can be built without it

# Pillow tries all its forty formats one by one otherwise (a third of the time of a small WebP), Ghostscript among them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", *(("AVIF",) if _AVIF else ()))
IMAGE_SUFFIXES = frozenset(  # of these formats
    f".{suffix}"
    for suffix in (
        *("apng", "bmp", "gif", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg", "jpf", "jpg", "jpx", "mpo"),
        *("pbm", "pfm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
        *(("avif", "avifs") if _AVIF else ()),
    )
)

# Beside images that our commands name so lie sheets of them, the scales of each and masks.
_GENERATED = re.compile(r"\d+_\d+\.png|.+_(inpaint|outpaint|class|upscale)_\d+\.png")

_SHEETS = re.compile(
    r"grid\.png|growth\.gif|\d+_\d+_scale\d+\.png|.+_(inpaint|outpaint|class|upscale)_(mask|sheet)\.png"
)


def find_images(folder: Path) -> list[str]:
    """List the image files below a folder by their paths in it ("b/1.png"), sorted; links to folders are followed.

    Passed over are hidden files and folders (the `._1.png` that some systems leave are no images), files whose suffix
    is not in IMAGE_SUFFIXES, links that lead back to a folder above or to no file, what is no regular file (reading a
    pipe would wait for whoever writes into it), and the sheets that our commands write beside the images they make:
    grid.png, growth.gif and images of single scales where there are images named LABEL_INDEX.png, sheet and mask of an
    edit. The log says how many images were found and what was passed over.

    Raises InputError: a folder that cannot be read.
    """
    found: list[str] = []
    passed_over: Counter[str] = Counter()
    folders = [folder]
    while folders:
        parent = folders.pop()
        entries = list(_scan(parent))
        own_sheets = any(_GENERATED.fullmatch(entry.name) for entry in entries)
        for entry in entries:
            reason = _reason_to_pass_over(entry, own_sheets)
            if reason is not None:
                passed_over[reason] += 1
            elif _is_kind(entry, folder=True):
                folders.append(Path(entry))
            else:
                found.append((parent.relative_to(folder) / entry.name).as_posix())
    report_found(folder, len(found), passed_over)
    return sorted(found)


def holds_images(folder: Path) -> bool:
    """Return whether `find_images` finds any in a folder; nothing is listed beyond the first.

    Raises InputError: a folder that cannot be read.
    """
    below = []
    for entry in _scan(folder):
        if _reason_to_pass_over(entry, own_sheets=False) is None:  # sheets are beside images
            if not _is_kind(entry, folder=True):
                return True
            below.append(Path(entry))
    return any(map(holds_images, below))


def class_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder that hold images, sorted; the log names the others, once a process.

    Raises InputError: a folder that cannot be read.
    """
    names = subfolders(folder)
    found = [name for name in names if holds_images(folder / name)]
    if empty := [name for name in names if name not in set(found)]:
        some = ", ".join(empty[:8]) + (f" and {len(empty) - 8} others" if len(empty) > 8 else "")
        log_once(logging.WARNING, f"{folder}: folders without images are no classes: {some}")
    return found


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _is_kind(entry: os.DirEntry[str], folder: bool) -> bool:
    """Return whether an entry, or what a link leads to, is a folder or else a regular file."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:  # a link that leads in a circle, or to where nobody may look
        return False


def _reason_to_pass_over(entry: os.DirEntry[str], own_sheets: bool) -> str | None:
    name = entry.name
    if is_hidden(name):
        return "hidden"
    if _is_kind(entry, folder=True):
        return "linked to a folder above" if _leads_back(Path(entry)) else None
    suffix = Path(name).suffix
    if suffix.lower() not in IMAGE_SUFFIXES:
        return suffix.lower() or "without a suffix"
    if not _is_kind(entry, folder=False):
        return "linked to no file" if entry.is_symlink() else "no regular file"
    if own_sheets and _SHEETS.fullmatch(name):
        return "of a single scale" if "_scale" in name else f"{name} (made of the images beside it)"
    return None


def report_found(origin: object, count: int, passed_over: Mapping[str, int]) -> None:
    """Log how many images were found, and what was passed over as `{reason: number}`; each line once a process."""
    reasons = [reason for reason in sorted(passed_over) if passed_over[reason]]
    line = f"{origin}: {plural(count, 'image')} found"
    if reasons:
        line += f"; passed over: {', '.join(_shorten_reasons(reasons, passed_over))}"
    log_once(logging.WARNING if reasons else logging.INFO, line)


def log_once(level: int, line: str) -> None:
    """Log a line once a process, and on the first one of several alone."""
    if is_first_process():
        _log_new(level, line)


@cache
def _log_new(level: int, line: str) -> None:
    log.log(level, "%s", line)


def _shorten_reasons(reasons: Sequence[str], passed_over: Mapping[str, int], most: int = 8) -> Iterable[str]:
    yield from (f"{passed_over[reason]} {reason}" for reason in reasons[:most])
    if len(reasons) > most:
        yield f"{sum(passed_over[reason] for reason in reasons[most:])} others"
