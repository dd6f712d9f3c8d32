"""Sets of images in one .npz, as ADM's evaluator takes and gives them, written and read a few images at a time.

Such a file is a zip of arrays, and `arr_0` in it, (N, H, W, 3) uint8, the images: 10 GB for 50,000 of 256 px.
"""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import InputError, one_line
from var.utils.files import atomic_write

IMAGES, LABELS = "arr_0", "arr_1"  # as np.savez calls what it is given first and second

MAX_SMALL = 2**30  # bytes of an array that is read whole
MAX_INFLATION = 1032  # times a deflated part's size: deflate can do no more, so a larger claim is damage


def write_images(
    path: Path, images: Iterable[NDArray[np.uint8]], count: int, shape: tuple[int, int], **arrays: NDArray[Any]
) -> None:
    """Write images as `arr_0` of a file that np.load reads, uncompressed; the same input gives the same bytes.

    Args:
        path: of the file, which is replaced when all is written.
        images: `count` arrays (H, W, 3), each read when it is written.
        count: N, at least 1.
        shape: (H, W) of every image.
        arrays: what else the file holds, by name, such as arr_1 for labels, mu, sigma.

    Raises:
        InputError: an image of another shape or type, more or fewer than count, a file that cannot be written.
    """
    if count < 1:
        raise InputError(f"{path}: {count} pictures given, at least 1 needed")
    expected = (*shape, 3)
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as file:
        with file.open(_entry(IMAGES), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *expected)}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for image in images:
                if image.shape != expected or image.dtype != np.uint8:
                    raise InputError(
                        f"{path}: picture {written} is {image.dtype} of shape {image.shape}, uint8 {expected} needed"
                    )
                if written < count:
                    member.write(np.ascontiguousarray(image).data)
                written += 1
        if written != count:
            raise InputError(f"{path}: {written} pictures given, {count} announced")
        for name, array in arrays.items():
            with file.open(_entry(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy")  # of 1980: the time is no part of what is kept


@dataclass(frozen=True)
class Npz:
    """An .npz file, of which nothing but the table of contents is read yet."""

    path: Path
    names: tuple[str, ...]  # of the arrays in it

    def array(self, name: str) -> NDArray[Any]:
        """A small array, such as mu or arr_1, whole.

        Raises InputError: no such array; not one of numbers; more than MAX_SMALL bytes; damaged.
        """
        with _reading(self.path):
            member, header = self.open(name)
            with member:
                if header.bytes > MAX_SMALL:
                    raise InputError(f"{self.path}: {name} has {header.bytes:,} bytes: at most {MAX_SMALL:,} are read")
                content = np.frombuffer(_exactly(member, header.bytes), header.dtype)
                _check_end(member)
        return content.reshape(header.shape, order="F" if header.fortran_order else "C").copy()

    def images(self) -> "Images":
        """The images, arr_0.

        Raises InputError: no arr_0; not images (N, H, W, 3) of uint8, row by row; damaged.
        """
        return Images(self)

    def open(self, name: str) -> tuple[IO[bytes], "_Header"]:
        """The numbers of an array, to be read, and what they are; inside `_reading`."""
        if name not in self.names:
            raise InputError(f"{self.path} holds no {name}: there are {', '.join(self.names)}")
        with zipfile.ZipFile(self.path) as file:  # the member keeps the file open as long as it is there
            entry = file.getinfo(f"{name}.npy")
            member = file.open(entry)
        try:
            return member, _header(member, entry, self.path, name)
        except BaseException:
            member.close()
            raise


class Images:
    """Images in a file: `shape` (N, H, W, 3), and `rows(start, stop)`. To go back is to read from the first again.

    Whoever reads all rows from the first to the last in turn has the file's checksum compared.
    """

    def __init__(self, npz: Npz) -> None:
        self.npz = npz
        with _reading(npz.path):
            self.member, header = npz.open(IMAGES)
            self.member.close()
        _check_images(npz.path, header)
        self.shape = header.shape
        self.at = 0

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Images start, start + 1, ... up to, not including, stop: uint8 (stop - start, H, W, 3), the caller's own.

        Raises InputError: rows that there are not; damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"{self.npz.path}: rows {start}..{stop} asked for, there are {len(self)}")
        size = math.prod(self.shape[1:])
        with _reading(self.npz.path):
            if start < self.at or self.member.closed:
                self.member, _ = self.npz.open(IMAGES)
                self.at = 0
            if start > self.at:  # from then on zipfile may compare no checksum
                self.member.seek((start - self.at) * size, os.SEEK_CUR)
            content = _exactly(self.member, (stop - start) * size)
            self.at = stop
            if stop == len(self):
                _check_end(self.member)
                self.member.close()
        return np.frombuffer(content, np.uint8).reshape(-1, *self.shape[1:]).copy()


def open_npz(path: Path) -> Npz:
    """Open a file of np.savez, np.savez_compressed or `write_images`. Raises InputError if it is none."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file: give an .npz")
    with _reading(path), zipfile.ZipFile(path) as file:
        names = [entry.filename.removesuffix(".npy") for entry in file.infolist() if entry.filename.endswith(".npy")]
    if not names:
        raise InputError(f"{path} is a zip without arrays: give an .npz as np.savez writes it")
    return Npz(path, tuple(dict.fromkeys(names)))


class _Header(NamedTuple):
    """What an array says of itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(member: IO[bytes], entry: zipfile.ZipInfo, path: Path, name: str) -> _Header:
    """Read up to the numbers, and refuse what is not exactly as many of them as the file can hold."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has version {version} of the format, which is not for numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        header = _Header(*read(member))
    except Exception as error:  # it is read as Python's own notation, whose parts raise nearly anything
        raise ValueError(f"{name}: {one_line(error)}") from error
    if header.dtype.kind not in "biuf":
        raise InputError(f"{path}: {name} is of type {header.dtype}: only numbers are read, never pickled objects")
    stored = entry.compress_type == zipfile.ZIP_STORED
    largest = entry.compress_size * (1 if stored else MAX_INFLATION)
    held = min(entry.file_size, largest, path.stat().st_size * MAX_INFLATION) - member.tell()
    if min(header.shape, default=0) < 0 or header.bytes != held:
        raise ValueError(f"{name} is said to have shape {header.shape}, for which there is not the room")
    return header


def _check_images(path: Path, header: _Header) -> None:
    shape = header.shape
    if header.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(
            f"{path}: {IMAGES} is {header.dtype} of shape {shape}: pictures are uint8 (N, H, W, 3), at least one"
        )
    if header.fortran_order and math.prod(shape) > 1:
        raise InputError(f"{path}: {IMAGES} is stored column by column: save np.ascontiguousarray of it")


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} bytes where there should be {size}")
    return content


def _check_end(member: IO[bytes]) -> None:
    """Nothing must be left; to look for it has the checksum compared."""
    if member.read(1):
        raise EOFError("there is more than its header tells")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Inside, all that damage brings about becomes one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({one_line(error)}): make or download it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted; an unknown way of compressing
        raise InputError(f"{path} cannot be read as .npz ({one_line(error)}): save it with np.savez") from error
