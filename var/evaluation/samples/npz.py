"""Sets of images in one .npz, in the format of ADM's evaluator, written and read a few images at a time.

An .npz is a zip of arrays; `arr_0`, (N, H, W, 3) uint8, has the images: 10 GB for 50,000 of 256 px.
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

IMAGES, LABELS = "arr_0", "arr_1"  # np.savez's names of its first and second array

MAX_SMALL = 2**30  # most bytes of an array that is read whole
MAX_INFLATION = 1032  # largest compression ratio of deflate; a header that claims more is damaged


def write_images(
    path: Path, images: Iterable[NDArray[np.uint8]], count: int, shape: tuple[int, int], **arrays: NDArray[Any]
) -> None:
    """Write images as `arr_0` of a file that np.load reads, uncompressed; the same input gives the same bytes.

    Args:
        path: the file, replaced once all is written.
        images: iterable of `count` arrays (H, W, 3), consumed one at a time.
        count: N, at least 1.
        shape: (H, W) of every image.
        arrays: further arrays by name, such as arr_1 for labels, mu, sigma.

    Raises:
        InputError: an image of another shape or type, more or fewer than count, a file that cannot be written.
    """
    if count < 1:
        raise InputError(f"{path}: the number of images is {count}: give at least 1")
    expected = (*shape, 3)
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as file:
        with file.open(_make_entry(IMAGES), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *expected)}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for image in images:
                if image.shape != expected or image.dtype != np.uint8:
                    raise InputError(
                        f"{path}: image {written} is {image.dtype} of shape {image.shape}: uint8 {expected} is needed"
                    )
                if written < count:
                    member.write(np.ascontiguousarray(image).data)
                written += 1
        if written != count:
            raise InputError(f"{path}: the number of images is {written}, not {count} as given by count")
        for name, array in arrays.items():
            with file.open(_make_entry(name), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _make_entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{name}.npy")  # dated 1980, so that the bytes do not depend on the time


@dataclass(frozen=True)
class Npz:
    """An .npz file of which only the table of contents is read."""

    path: Path
    names: tuple[str, ...]  # of its arrays

    def array(self, name: str) -> NDArray[Any]:
        """Read a small array whole, such as mu or arr_1.

        Raises InputError: no such array; not numeric; more than MAX_SMALL bytes; damaged.
        """
        with _as_input_error(self.path):
            member, header = self.open(name)
            with member:
                if header.bytes > MAX_SMALL:
                    raise InputError(f"{self.path}: {name} has {header.bytes:,} bytes: at most {MAX_SMALL:,} are read")
                content = np.frombuffer(_read_exactly(member, header.bytes), header.dtype)
                _check_end(member)
        return content.reshape(header.shape, order="F" if header.fortran_order else "C").copy()

    def images(self) -> "Images":
        """Open the images, arr_0.

        Raises InputError: no arr_0; not (N, H, W, 3) uint8 in C order; damaged.
        """
        return Images(self)

    def open(self, name: str) -> tuple[IO[bytes], "_Header"]:
        """Open an array for reading, and read its header; call inside `_as_input_error`."""
        if name not in self.names:
            raise InputError(f"{self.path} holds no {name}: choose one of {', '.join(self.names)}")
        with zipfile.ZipFile(self.path) as file:  # the open member keeps the file open
            entry = file.getinfo(f"{name}.npy")
            member = file.open(entry)
        try:
            return member, _read_header(member, entry, self.path, name)
        except BaseException:
            member.close()
            raise


class Images:
    """Images in a file: `shape` (N, H, W, 3), and `rows(start, stop)`; seeking backward reads from the start again.

    Reading all rows in order also verifies the file's checksum.
    """

    def __init__(self, npz: Npz) -> None:
        self.npz = npz
        with _as_input_error(npz.path):
            self.member, header = npz.open(IMAGES)
            self.member.close()
        _check_images(npz.path, header)
        self.shape = header.shape
        self.at = 0

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read images start to stop - 1 as a new array, uint8 (stop - start, H, W, 3).

        Raises InputError: rows out of range; damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"{self.npz.path}: rows {start}..{stop} are out of range: give rows in 0..{len(self)}")
        size = math.prod(self.shape[1:])
        with _as_input_error(self.npz.path):
            if start < self.at or self.member.closed:
                self.member, _ = self.npz.open(IMAGES)
                self.at = 0
            if start > self.at:  # after a seek zipfile may not verify the checksum
                self.member.seek((start - self.at) * size, os.SEEK_CUR)
            content = _read_exactly(self.member, (stop - start) * size)
            self.at = stop
            if stop == len(self):
                _check_end(self.member)
                self.member.close()
        return np.frombuffer(content, np.uint8).reshape(-1, *self.shape[1:]).copy()


def open_npz(path: Path) -> Npz:
    """Open a file written by np.savez, np.savez_compressed or `write_images`. Raises InputError for any other."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file: give a folder of images or an .npz")
    with _as_input_error(path), zipfile.ZipFile(path) as file:
        names = [entry.filename.removesuffix(".npy") for entry in file.infolist() if entry.filename.endswith(".npy")]
    if not names:
        raise InputError(f"{path} is a zip without arrays: give an .npz as np.savez writes it")
    return Npz(path, tuple(dict.fromkeys(names)))


class _Header(NamedTuple):
    """Header of an array in the .npy format."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(member: IO[bytes], entry: zipfile.ZipInfo, path: Path, name: str) -> _Header:
    """Read the header of an array, and check that the file holds exactly its size."""
    version = np.lib.format.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has version {version} of the .npy format, which is not for numeric arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        header = _Header(*read(member))
    except Exception as error:  # numpy parses it as a Python literal, which may raise nearly anything
        raise ValueError(f"{name}: {one_line(error)}") from error
    if header.dtype.kind not in "biuf":
        raise InputError(f"{path}: {name} is of type {header.dtype}: only numeric arrays are read, no pickled objects")
    stored = entry.compress_type == zipfile.ZIP_STORED
    largest = entry.compress_size * (1 if stored else MAX_INFLATION)
    held = min(entry.file_size, largest, path.stat().st_size * MAX_INFLATION) - member.tell()
    if min(header.shape, default=0) < 0 or header.bytes != held:
        raise ValueError(f"{name} has shape {header.shape} in its header, which does not match its size")
    return header


def _check_images(path: Path, header: _Header) -> None:
    shape = header.shape
    if header.dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise InputError(
            f"{path}: {IMAGES} is {header.dtype} of shape {shape}: images must be uint8 (N, H, W, 3), N at least 1"
        )
    if header.fortran_order and math.prod(shape) > 1:
        raise InputError(f"{path}: {IMAGES} is stored in Fortran order: save np.ascontiguousarray of it")


def _read_exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} bytes instead of {size}")
    return content


def _check_end(member: IO[bytes]) -> None:
    """Check that nothing is left; reading at the end also verifies the checksum."""
    if member.read(1):
        raise EOFError("more data than its header says")


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Turn the errors that damage causes into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as .npz ({one_line(error)}): make or download it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted; unknown compression
        raise InputError(f"{path} cannot be read as .npz ({one_line(error)}): save it with np.savez") from error
