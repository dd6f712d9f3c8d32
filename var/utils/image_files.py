"""The files of a folder that are images: one rule for training, features, evaluation and editing."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

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
    is not in IMAGE_SUFFIXES, links that lead back to a folder above, and the sheets that our commands write beside the
    images they make: grid.png, growth.gif and images of single scales where there are images named LABEL_INDEX.png,
    sheet and mask of an edit. The log says how many images were found and what was passed over.

    Raises InputError: a folder that cannot be read.
    """

    def refuse(error: OSError) -> NoReturn:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error

    found: list[str] = []
    passed_over: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        entered = [name for name in folders if not is_hidden(name)]
        passed_over["hidden"] += len(folders) - len(entered)
        folders[:] = [name for name in entered if not _leads_back(Path(parent, name))]
        passed_over["linked to a folder above"] += len(entered) - len(folders)
        own_sheets = any(map(_GENERATED.fullmatch, files))
        for name in files:
            reason = _reason_to_pass_over(name, own_sheets)
            if reason is None:
                found.append((Path(parent).relative_to(folder) / name).as_posix())
            else:
                passed_over[reason] += 1
    report_found(folder, len(found), passed_over)
    return sorted(found)


def holds_images(folder: Path) -> bool:
    """Return whether `find_images` finds any in a folder; nothing is listed beyond the first.

    Raises InputError: a folder that cannot be read.
    """
    below = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not is_hidden(entry.name) and not _leads_back(Path(entry)):
                        below.append(Path(entry))
                elif _reason_to_pass_over(entry.name, own_sheets=False) is None:  # sheets are beside images
                    return True
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return any(map(holds_images, below))


def class_folders(folder: Path) -> list[str]:
    """List the names of the folders in a folder that hold images, sorted; the log names the others, once a process.

    Raises InputError: a folder that cannot be read.
    """
    names = subfolders(folder)
    found = [name for name in names if holds_images(folder / name)]
    if empty := [name for name in names if name not in set(found)]:
        some = ", ".join(empty[:8]) + (f" and {len(empty) - 8} others" if len(empty) > 8 else "")
        log_once(logging.WARNING, f"{folder}: no class, as without images: {some}")
    return found


def _leads_back(folder: Path) -> bool:
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def _reason_to_pass_over(name: str, own_sheets: bool) -> str | None:
    if is_hidden(name):
        return "hidden"
    suffix = Path(name).suffix
    if suffix.lower() not in IMAGE_SUFFIXES:
        return suffix.lower() or "without a suffix"
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
