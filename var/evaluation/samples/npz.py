"""Sets of pictures in one .npz, as ADM's evaluator takes and gives them, written and read a few pictures at a time.

Such a file is a zip of arrays, and `arr_0` in it, (N, H, W, 3) uint8, the pictures: 10 GB for 50,000 of 256 px.
"""

import math
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
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
SKIPPED_AT_ONCE = 1 << 20  # bytes

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: signature, and the lengths of two fields that follow


def write_images(
    path: Path, images: Iterable[NDArray[np.uint8]], count: int, shape: tuple[int, int], **arrays: NDArray[Any]
) -> None:
    """Write pictures as `arr_0` of a file that np.load reads, uncompressed; the same input gives the same bytes.

    Args:
        path: of the file, which is replaced when all is written.
        images: `count` pictures (H, W, 3), each read when it is written.
        count: N, at least 1.
        shape: (H, W) of every picture.
        arrays: what else the file holds, by name, such as arr_1 for labels, mu, sigma.

    Raises:
        InputError: a picture of another shape or type, more or fewer pictures than count, a place that cannot be
            written.
    """
    if count < 1:
        raise InputError(f"{path}: {count} pictures given, at least 1 needed")
    expected = (*shape, 3)
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as file:
        with _new_member(file, IMAGES, np.dtype(np.uint8), (count, *expected)) as member:
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
            with _new_member(file, name, array.dtype, array.shape) as member:
                member.write(array.tobytes())


@contextmanager
def _new_member(file: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Write an array's header; its numbers, row by row, are left to the caller."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the time is no part of what is kept
    with file.open(entry, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, described)
        yield member


@dataclass(frozen=True)
class Npz:
    """An .npz file, of which nothing but the table of contents is read yet."""

    path: Path
    names: tuple[str, ...]  # of the arrays in it

    def array(self, name: str) -> NDArray[Any]:
        """A small array, such as mu or arr_1, whole.

        Raises:
            InputError: no such array; not one of numbers; more than MAX_SMALL bytes; damaged.
        """
        with _reading(self.path), zipfile.ZipFile(self.path) as file:
            entry = _entry(file, self, name)
            with file.open(entry) as member:
                header = _header(member, entry, self.path, name)
                if header.bytes > MAX_SMALL:
                    raise InputError(f"{self.path}: {name} has {header.bytes:,} bytes: at most {MAX_SMALL:,} are read")
                content = np.frombuffer(_exactly(member, header.bytes), header.dtype)
                _check_end(member)
        return content.reshape(header.shape, order="F" if header.fortran_order else "C").copy()

    def images(self) -> "Images":
        """The pictures, arr_0.

        Raises:
            InputError: no arr_0; not pictures (N, H, W, 3) of uint8, row by row; damaged.
        """
        with _reading(self.path), zipfile.ZipFile(self.path) as file:
            entry = _entry(file, self, IMAGES)
            with file.open(entry) as member:
                header = _header(member, entry, self.path, IMAGES)
                offset = member.tell()
            _check_images(self.path, header)
            if entry.compress_type != zipfile.ZIP_STORED:
                return StreamedImages(self.path, header.image_shape, offset)
            return StoredImages(self.path, header.image_shape, _start(self.path, entry), offset, entry.CRC)


class Images(ABC):
    """Pictures in a file: `shape` (N, H, W, 3), and `rows(start, stop)`, uint8 (stop - start, H, W, 3).

    Whoever reads all rows from the first to the last in turn has the file's checksum compared.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = path
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Pictures start, start + 1, ... up to, not including, stop, as an array of the caller's own.

        Raises:
            InputError: rows that there are not; damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"{self.path}: rows {start}..{stop} asked for, there are {len(self)}")
        with _reading(self.path):
            return self._read(start, stop)

    @abstractmethod
    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """The rows, which are there."""


class StoredImages(Images):
    """Uncompressed ones, as np.savez writes them: any rows at once."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int], start: int, offset: int, checksum: int) -> None:
        super().__init__(path, shape)
        content = np.memmap(path, np.uint8, "r", start, (offset + math.prod(shape),))
        self.pixels = content[offset:].reshape(shape)
        self.expected = checksum
        self.checksum = zlib.crc32(content[:offset].data)
        self.checked = 0  # rows that are in the checksum

    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        rows = np.array(self.pixels[start:stop])
        if start == self.checked:
            self.checksum, self.checked = zlib.crc32(rows.data, self.checksum), stop
            if stop == len(self) and self.checksum != self.expected:
                raise zipfile.BadZipFile("its checksum differs")
        return rows


class StreamedImages(Images):
    """Compressed ones, as np.savez_compressed writes them: to go back is to read from the first again."""

    def __init__(self, path: Path, shape: tuple[int, int, int, int], offset: int) -> None:
        super().__init__(path, shape)
        self.offset = offset
        self._rewind()

    def _rewind(self) -> None:
        with zipfile.ZipFile(self.path) as file:  # the member keeps the file open as long as it is there
            self.member = file.open(f"{IMAGES}.npy")
        _skip(self.member, self.offset)
        self.at = 0

    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        size = math.prod(self.shape[1:])
        if start < self.at:
            self._rewind()
        _skip(self.member, (start - self.at) * size)
        content = _exactly(self.member, (stop - start) * size)
        self.at = stop
        if stop == len(self):
            _check_end(self.member)
        return np.frombuffer(bytearray(content), np.uint8).reshape(stop - start, *self.shape[1:])


def open_npz(path: Path) -> Npz:
    """Open a file that np.savez, np.savez_compressed or `write_images` wrote.

    Raises:
        InputError: no such file, or not an .npz.
    """
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

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        count, height, width, channels = self.shape
        return count, height, width, channels


def _entry(file: zipfile.ZipFile, npz: Npz, name: str) -> zipfile.ZipInfo:
    if name not in npz.names:
        raise InputError(f"{npz.path} holds no {name}: there are {', '.join(npz.names)}")
    return file.getinfo(f"{name}.npy")


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


def _start(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin in the file."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        signature, name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    start = entry.header_offset + LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or start + entry.file_size > path.stat().st_size:
        raise zipfile.BadZipFile("it is cut off")
    return int(start)


def _exactly(member: IO[bytes], size: int) -> bytes:
    content = member.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content)} bytes where there should be {size}")
    return content


def _check_end(member: IO[bytes]) -> None:
    """Nothing must be left; to look for it has the checksum compared."""
    if member.read(1):
        raise EOFError("there is more than its header tells")


def _skip(member: IO[bytes], size: int) -> None:
    for done in range(0, size, SKIPPED_AT_ONCE):
        _exactly(member, min(SKIPPED_AT_ONCE, size - done))


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
