"""Standard output and error that do not end a command, though a reader has left or text cannot be encoded."""

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_READER_LEFT = (errno.EPIPE, errno.EIO)  # of a pipe, such as `| head -1`; of a terminal


class LossyFile(io.FileIO):
    """A file that drops what it cannot write; `error` is the last reason, unless the reader has left."""

    error: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        """Return the number of bytes that were written or dropped."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _READER_LEFT:
                self.error = error
            return memoryview(data).nbytes


def guard_streams() -> None:
    """Make standard output and error drop what cannot be written, and escape what their encoding lacks.

    The work behind is worth more than its progress. Streams that a notebook or a test has replaced stay as they are.
    """
    _occupy_standard_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guard(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guard(sys.stderr, 2)


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for those of 0, 1 and 2 that were closed, or the next files opened would get what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def check_printed() -> None:
    """Raise InputError if standard output dropped something that its reader waits for: the disk is full."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, LossyFile) and raw.error is not None:
        raise InputError(f"standard output is cut short ({raw.error.strerror}): make room there, and do it again")


def _guard(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # it was closed before the process began
        return Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(LossyFile(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or stream.isatty(),
    )
