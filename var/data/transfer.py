"""Copying a remote file in bounded time: allowed schemes, retries, servers that are dead, slow or cut short."""

import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import fsspec

from tokenizer.errors import one_line

WEB = frozenset(("http", "https"))  # read by urllib, all others by fsspec
SCHEMES = WEB | {"file", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oci", "oss", "hdfs", "webhdfs"}
RETRIES = (1, 2, 4, 8, 16, 32, 60)  # seconds before each new attempt after a temporary error
TIMEOUT = 30  # seconds in which MIN_BYTES must arrive, or all that there is
MIN_BYTES = 1 << 14
PATIENCE = 120  # seconds without a shard from a server, after which no new attempt begins
CHUNK = 1 << 20  # bytes
ALLOWED = f"give a path, or a URL that begins with one of {', '.join(sorted(SCHEMES))}"


class UnreachableError(OSError):
    """A server that is dead or sends next to nothing."""


def is_remote(url: str) -> bool:
    """Return whether a location is a URL, not a local path."""
    return "://" in url


def scheme_of(url: str) -> str:
    return url.partition("://")[0].lower()


def check_url(url: str) -> None:
    """Raise ValueError for a URL of another scheme than SCHEMES, a chain of several, or no host; any path is fine."""
    if not is_remote(url):
        return
    if scheme_of(url) not in SCHEMES:
        raise ValueError(f"{url!r} has another scheme: {ALLOWED}")
    if "::" in url and scheme_of(url) not in WEB:  # in these it is part of an address, and fsspec is not asked
        raise ValueError(f"{url!r} is a chain of protocols: {ALLOWED}")
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port  # both are checked when they are read
    except ValueError as error:
        raise ValueError(f"{url!r} is no URL ({error}): give SCHEME://HOST/FILE") from error
    local = scheme_of(url) in ("file", "hdfs") and parts.path.strip("/")  # HDFS knows a host by its settings
    if not (host or local) or any(map(str.isspace, parts.netloc)):
        raise ValueError(f"{url!r} has no host or one with blanks: give SCHEME://HOST/FILE")


def copy(url: str, file: BinaryIO, reserve: Callable[[int], None], retries: Sequence[float] | None = None) -> None:
    """Copy the whole content of a URL to an empty file; temporary errors are retried.

    Args:
        reserve: called with the number of bytes that the file will have, before so many are written: first with all of
            them, where the server says how many; it may wait, and raises ValueError for too many.
        retries: seconds before each new attempt; None: RETRIES.

    Raises OSError: it failed; UnreachableError if the server is dead or sends next to nothing.
    """
    began = time.monotonic()
    for wait in (*(RETRIES if retries is None else retries), None):
        transfer = _Transfer(url, file, reserve)
        try:
            transfer.run()
            file.flush()
            file.seek(0)
            return
        except Exception as error:  # every kind of storage raises its own
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # the error is also the open response
            if _is_final(error):
                raise OSError(f"{url}: {one_line(error)}") from error
            if transfer.received >= MIN_BYTES:
                began = time.monotonic()
            if wait is None or time.monotonic() - began > PATIENCE:
                silent = not transfer.received or isinstance(error, TimeoutError)
                raise (UnreachableError if silent else OSError)(f"{url}: {one_line(error)}") from error
            time.sleep(wait)
            file.seek(0)
            file.truncate()


class _Transfer:
    """One attempt to copy a URL to a file, in a thread that is left alone when nothing arrives any more.

    A thread, as no time-out of a library covers all: a server may send a byte now and then, in its header or after.
    """

    def __init__(self, url: str, file: BinaryIO, reserve: Callable[[int], None]) -> None:
        self.url, self.file, self.reserve = url, file, reserve
        self.received = 0  # bytes
        self.waiting = False  # for room, which takes as long as it takes
        self.error: Exception | None = None
        self.lock = threading.Lock()  # held while writing
        self.abandoned = False

    def run(self) -> None:
        thread = threading.Thread(target=self._copy_quietly, daemon=True)
        thread.start()
        try:
            while True:
                before = self.received
                thread.join(TIMEOUT)
                if not thread.is_alive():
                    break
                if self.received - before < MIN_BYTES and not self.waiting:
                    raise TimeoutError(f"only {self.received - before} bytes came in {TIMEOUT:g} seconds")
        finally:
            with self.lock:
                self.abandoned = True  # nothing is written from now on
        if self.error is not None:
            raise self.error

    def _copy_quietly(self) -> None:
        try:
            self._copy()
        except Exception as error:
            self.error = error

    def _copy(self) -> None:
        if scheme_of(self.url) not in WEB:
            with fsspec.open(self.url, "rb") as remote:
                self._write(remote.read, getattr(remote, "size", None))
            return
        with urllib.request.build_opener(_Redirects).open(self.url, timeout=TIMEOUT) as response:
            if response.headers.get_content_type() == "text/html":
                raise ValueError("it answers with a web page: is a login needed, or another URL?")
            self._write(response.read1, response.length)

    def _write(self, read: Callable[[int], bytes], expected: int | None) -> None:
        self._reserve(expected or 0)
        while chunk := read(CHUNK):
            self._reserve(self.received + len(chunk))
            with self.lock:
                if self.abandoned:
                    return
                self.file.write(chunk)
            self.received += len(chunk)
        if expected is not None and self.received != expected:  # urllib itself does not notice a lost connection
            raise EOFError(f"the connection ended after {self.received} of {expected} bytes")

    def _reserve(self, size: int) -> None:
        self.waiting = True
        self.reserve(size)
        self.waiting = False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects within the web alone: urllib itself would go on by FTP."""

    def redirect_request(self, *request: Any) -> urllib.request.Request | None:
        target = request[-1]
        if scheme_of(target) not in WEB:
            raise ValueError(f"it redirects to {target!r}: only redirects to http and https are followed")
        return super().redirect_request(*request)


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # request timeout, too many requests
    return isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError)
