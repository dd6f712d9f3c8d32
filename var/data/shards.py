"""WebDataset shards: tar files, local or remote, of which only a few need to be on the local disk at a time.

A sample is a group of members that share the name up to its first dot: `a/0017.jpg` with `a/0017.cls` (its label as
text) or `a/0017.json` (an object with the label); `_split_names` says what becomes of names with more dots. An index
lists the shards and the number of samples of each, so that every sample has a number before any shard is read:

    {"train": [{"url": "train-0000.tar", "nsamples": 1281}, ...], "validation": [...],
     "num_classes": 1000, "class_names": {"207": "golden retriever"}}

All keys but "train" are optional. URLs have one of the SCHEMES; without a scheme they are relative to the index. An
index may come from anywhere: no other of fsspec's protocols is opened, some of which run code, nor a chain of them
("simplecache::..."), and its numbers are bounded before anything is allocated. A remote shard is fetched whole, once
for all processes of a machine, into a folder of bounded size.

webdataset's `wids`, which uses the same kind of index, is no alternative: webdataset 1.0 no longer has it, and that of
0.2 bounds its cache by shards of one process rather than bytes, fetches by `curl` in a shell without retrying or
comparing lengths, runs `pipe:` commands of an index, and decodes some members by pickle.
"""

import json
import logging
import os
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from weakref import finalize

import fsspec
from filelock import FileLock, Timeout

from tokenizer.errors import InputError, one_line
from var.utils.classes import labels_fit
from var.utils.contents import HEAD, find_substitute
from var.utils.files import atomic_write, to_path
from var.utils.images import IMAGE_SUFFIXES
from var.utils.json_text import parse_json
from var.utils.provenance import sha256
from var.utils.text import plural

WEB = frozenset(("http", "https"))  # read by urllib, all others by fsspec
SCHEMES = WEB | {"file", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "oci", "oss", "hdfs", "webhdfs"}

MAX_INDEX = 1 << 26  # bytes of an index
MAX_SHARDS = 10**6
MAX_PER_SHARD = 10**7  # samples; a tar file of more would have over 20 GB
MAX_SAMPLES = 10**9  # of a split
MAX_CLASSES = 10**6
LABEL_SUFFIXES = frozenset({".cls", ".json"})

log = logging.getLogger(__name__)

RETRIES = (1, 2, 4, 8, 16, 32, 60)  # seconds before each new attempt after a temporary error
INDEX_RETRIES = 3  # of these, for an index: somebody waits for the run to start
TIMEOUT = 30  # seconds in which MIN_BYTES must arrive, or all that there is
MIN_BYTES = 1 << 14
PATIENCE = 120  # seconds without a shard from a server, after which no new attempt begins
CHUNK = 1 << 20  # bytes
POLL = 0.1  # seconds between looks for room in the cache
FORM = '{"train": [{"url": "train-0000.tar", "nsamples": 1281}], "validation": [...], "num_classes": 1000}'


class Shard(NamedTuple):
    """A tar file."""

    url: str  # or a path
    samples: int


class Index(NamedTuple):
    """The content of an index file."""

    splits: dict[str, list[Shard]]  # "train", "validation"
    num_classes: int | None
    class_names: dict[int, str]


def read_index(location: str) -> Index:
    """Read an index from a path or URL. Raises InputError: it cannot be read or is not of the form above."""
    location = location if is_remote(location) else str(to_path(location, "data.source"))
    try:
        check_url(location)
    except ValueError as error:
        raise InputError(f"data.source={error}") from error
    try:
        text = _read_index_file(location)
        if text[:1] not in (b"{", b"[") and (substitute := find_substitute(text[:HEAD])):
            raise OSError(substitute)
        content = parse_json(text)
        found = [split for split in ("train", "validation") if split in content]
        splits = {split: _shards(location, content[split]) for split in found}
        names = {
            _whole_number(int(label), "a label", 0, MAX_CLASSES - 1): str(name)
            for label, name in content.get("class_names", {}).items()
        }
        given = [content["num_classes"]] if "num_classes" in content else []
        counts = [_whole_number(count, "num_classes", 1, MAX_CLASSES) for count in given]
    except OSError as error:
        raise InputError(
            f"data.source={location!r} cannot be read ({one_line(error)}): give the path or URL of an index of shards"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"data.source={location!r} is not of the form {FORM}: {one_line(error)}") from error
    # A name may belong to a label beyond the given number of classes.
    return Index(splits, max(counts + [label + 1 for label in names], default=None), names)


def _read_index_file(location: str) -> bytes:
    if is_remote(location):
        file = BytesIO()
        copy(location, file, _check_index_size, RETRIES[:INDEX_RETRIES])
        return file.getvalue()
    with Path(location).open("rb") as local:
        text = local.read(MAX_INDEX + 1)
    _check_index_size(len(text))
    return text


def _check_index_size(size: int) -> None:
    if size > MAX_INDEX:
        raise ValueError(f"it has more than the {MAX_INDEX:,} bytes that an index may have")


def write_index(folder: Path) -> Path:
    """Write index.json for the shards in a folder, train*.tar and val*.tar, which may be uploaded with it afterwards.

    All labels are read, so num_classes is known. Returns the path of the index.

    Raises InputError: no shards; one that cannot be read, or that holds no samples.
    """
    content: dict[str, Any] = {}
    labels: set[int] = set()
    unlabeled = 0
    for split, pattern in (("train", "train*.tar"), ("validation", "val*.tar")):
        for path in sorted(folder.glob(pattern)):
            try:
                with path.open("rb") as file:
                    shard = OpenShard(file)
                    labeled = [i for i, has in enumerate(shard.samples) if {"cls", "json"} & has.keys()]
                    labels |= {shard.label(i, "label") for i in labeled}
                    unlabeled += len(shard) - len(labeled)
                entry = {"url": path.name, "nsamples": _whole_number(len(shard), "nsamples", 1, MAX_PER_SHARD)}
            except (OSError, ValueError, tarfile.TarError) as error:
                raise InputError(f"{path} cannot be read as a shard: {one_line(error)}") from error
            content.setdefault(split, []).append(entry)
    if "train" not in content:
        raise InputError(f"{folder} holds no train*.tar: name the shards so, and validation shards val*.tar")
    if unlabeled:
        log.warning("%s: %s without a label (.cls or .json)", folder, plural(unlabeled, "sample"))
    if labels:
        if not labels_fit(max(labels), len(labels)):
            raise InputError(
                f"{folder} has label {max(labels)} for {plural(len(labels), 'class', 'es')}: labels number the classes "
                "from 0, so replace ids by such numbers"
            )
        content["num_classes"] = max(labels) + 1
    path = folder / "index.json"
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _shards(index: str, entries: Sequence[Mapping[str, Any]]) -> list[Shard]:
    _whole_number(len(entries), "the number of shards of a split", 0, MAX_SHARDS)
    shards = [_shard(index, entry) for entry in entries]
    _whole_number(sum(shard.samples for shard in shards), "the number of samples of a split", 0, MAX_SAMPLES)
    return shards


def _shard(index: str, entry: Mapping[str, Any]) -> Shard:
    url = entry["url"]
    if not isinstance(url, str) or not url or not url.isprintable():
        raise ValueError(f"{url!r} must be the URL or path of a shard")
    if url.startswith("pipe:"):
        raise ValueError(f"{url!r} would run a command, which an index may not: {_ALLOWED}")
    if not is_remote(url):
        url = f"{index.rpartition('/')[0]}/{url}" if is_remote(index) else str(Path(index).parent / url)
    elif is_remote(index) and _scheme(url) == "file" != _scheme(index):
        raise ValueError(f"{url!r} is a file of this machine, which an index from elsewhere may not name")
    check_url(url)
    return Shard(url, _whole_number(entry["nsamples"], "nsamples", 1, MAX_PER_SHARD))


def _whole_number(value: object, name: str, at_least: int, at_most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
        raise ValueError(f"{name} is {value!r}: it must be a whole number in {at_least}..{at_most}")
    return value


def is_remote(url: str) -> bool:
    """Return whether a location is a URL, not a local path."""
    return "://" in url


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


_ALLOWED = f"give a path, or a URL that begins with one of {', '.join(sorted(SCHEMES))}"


def check_url(url: str) -> None:
    """Raise ValueError for a URL of another scheme than SCHEMES, or a chain of several; any path is fine."""
    if not is_remote(url):
        return
    if _scheme(url) not in SCHEMES:
        raise ValueError(f"{url!r} has another scheme: {_ALLOWED}")
    if "::" in url and _scheme(url) not in WEB:  # in these it is part of an address, and fsspec is not asked
        raise ValueError(f"{url!r} is a chain of protocols: {_ALLOWED}")


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


class UnreachableError(OSError):
    """A server that is dead or sends next to nothing."""


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
        if _scheme(self.url) not in WEB:
            with fsspec.open(self.url, "rb") as remote:
                self._write(remote.read, getattr(remote, "size", None))
            return
        with urllib.request.urlopen(self.url, timeout=TIMEOUT) as response:
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


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # request timeout, too many requests
    return isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError)


class ShardCache:
    """Shards fetched into a folder, the same for all processes of a machine.

    A shard is fetched under a lock of its own, so only once, and gets its name when it is complete. Before it is
    written, the least recently opened ones are removed, so that all files together, those that are being fetched
    included, are within the bound; processes that have one open can still read it, for a file exists until it is
    closed.

    Args:
        folder: created if it is missing.
        limit: largest number of bytes of the folder's shards.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self.unreachable: dict[str, float] = {}  # servers that were given up on, and when

    def open(self, url: str) -> BinaryIO:
        """Open a shard for reading, after fetching it if necessary. Raises OSError: that failed."""
        if not is_remote(url):
            return Path(url).open("rb")
        path = self._path(url)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return self._fetch(url, path)
            os.utime(path)  # the time of the last opening, by which shards are removed
            return file

    def remove(self, url: str, inode: int) -> None:
        """Remove a remote shard, so that `open` fetches it again, unless it has another inode: then that was done."""
        path = self._path(url)
        with FileLock(path.with_suffix(".lock")), suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()

    def _path(self, url: str) -> Path:
        return self.folder / f"{sha256([url.encode()])[:16]}.tar"

    def _fetch(self, url: str, path: Path) -> BinaryIO:
        server, part = "/".join(url.split("/")[:3]), path.with_suffix(".part")
        if time.monotonic() - self.unreachable.get(server, -PATIENCE) < PATIENCE:
            raise UnreachableError(f"{url}: {server} was given up on just now")  # else each shard waits anew
        file = part.open("w+b")
        try:
            copy(url, file, lambda size: self._reserve(part, size))
            part.rename(path)
        except BaseException as error:
            if isinstance(error, UnreachableError):
                self.unreachable[server] = time.monotonic()
            file.close()
            part.unlink(missing_ok=True)
            raise
        return file

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for a file of that size, and give it to the file; wait while others are fetched that need it.

        Raises ValueError: it is larger than the cache. OSError: others are being fetched, and this one has begun.
        """
        if size > self.limit:
            raise ValueError(
                f"it has {size:,} bytes or more, the cache is bounded to {int(self.limit):,}: "
                "raise data.cache_gigabytes, or make smaller shards"
            )
        while (reserved := part.stat().st_size) < size:
            with FileLock(self.folder / "removal.lock"):
                if self._remove_oldest(self.limit - size, but=part):
                    os.truncate(part, size)  # takes no space yet, and shows to others how much it will take
                    return
            if reserved:  # two that wait for one another with half a file each would wait forever
                raise OSError("there is no room for it while other shards are fetched: raise data.cache_gigabytes")
            time.sleep(POLL)

    def _remove_oldest(self, limit: float, but: Path) -> bool:
        """Remove the least recently opened shards until all but one file are within the limit; return whether they are.

        Parts of shards that are being fetched stay.
        """
        parts = 0
        for part in set(self.folder.glob("*.part")) - {but}:
            try:
                with FileLock(part.with_suffix(".lock"), timeout=0):  # nobody fetches it: left by a killed process
                    part.unlink(missing_ok=True)
            except Timeout:
                with suppress(FileNotFoundError):
                    parts += part.stat().st_size
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.tar"))
        total = parts + sum(size for _, size, _ in found)
        for _, size, path in found:
            if total > limit:
                path.unlink()
                total -= size
        return total <= limit


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


class OpenShard:
    """A tar file whose samples are read by number, in file order; it is closed when this object is collected.

    Raises tarfile.TarError: it is no tar file, or a compressed one. A truncated one has fewer samples.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        finalize(self, file.close)
        if substitute := find_substitute(file.read(HEAD)):
            raise tarfile.ReadError(substitute)
        file.seek(0)
        found: dict[str, tuple[int, int]] = {}  # name -> offset, size
        with tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    if member.isfile():
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
            value: object = int(self._read(number, "cls"))
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
