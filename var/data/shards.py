"""WebDataset shards: tar files, local or remote, of which only a few need to be on the local disk at a time.

A sample is a group of members that share the name up to its first dot: `a/0017.jpg` with `a/0017.cls` (its label as
text) or `a/0017.json` (an object with the label). An index lists the shards and the number of samples of each, so that
every sample has a number before any shard is read:

    {"train": [{"url": "train-0000.tar", "nsamples": 1281}, ...], "validation": [...],
     "num_classes": 1000, "class_names": {"207": "golden retriever"}}

All keys but "train" are optional. URLs are http, https, or of another scheme that fsspec supports (s3, gs, hf, ...);
without a scheme they are relative to the index. A remote shard is fetched whole, once for all processes of a machine,
into a folder of bounded size.

webdataset's `wids`, which uses the same kind of index, is no alternative: webdataset 1.0 no longer has it, and that of
0.2 bounds its cache by shards of one process rather than bytes, fetches by `curl` in a shell without retrying or
comparing lengths, runs `pipe:` commands of an index, and decodes some members by pickle.
"""

import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from weakref import finalize

import fsspec
from filelock import FileLock, Timeout

from tokenizer.errors import InputError, one_line
from var.utils.files import atomic_write
from var.utils.provenance import sha256

RETRIES = (1, 2, 4, 8, 16)  # seconds before each new attempt after a temporary error
TIMEOUT = 60  # seconds without a byte
CHUNK = 1 << 20  # bytes
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
    location = location if is_remote(location) else str(Path(location).expanduser())
    file = BytesIO()
    try:
        if is_remote(location):
            copy(location, file)
        content = json.loads(file.getvalue() if is_remote(location) else Path(location).read_bytes())
        found = [split for split in ("train", "validation") if split in content]
        splits = {split: [_shard(location, entry) for entry in content[split]] for split in found}
        names = {int(label): str(name) for label, name in content.get("class_names", {}).items()}
        counts = [_at_least_one(content["num_classes"])] if "num_classes" in content else []
    except OSError as error:
        raise InputError(
            f"data.source={location!r} cannot be read ({one_line(error)}): give the path or URL of an index of shards"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"data.source={location!r} is not of the form {FORM}: {one_line(error)}") from error
    # A name may belong to a label beyond the given number of classes.
    return Index(splits, max(counts + [label + 1 for label in names], default=None), names)


def write_index(folder: Path) -> Path:
    """Write index.json for the shards in a folder, train*.tar and val*.tar, which may be uploaded with it afterwards.

    All labels are read, so num_classes is known. Returns the path of the index.

    Raises InputError: no shards; one that cannot be read, or that holds no samples.
    """
    content: dict[str, Any] = {}
    labels: set[int] = set()
    for split, pattern in (("train", "train*.tar"), ("validation", "val*.tar")):
        for path in sorted(folder.glob(pattern)):
            try:
                with path.open("rb") as file:
                    shard = OpenShard(file)
                    labels |= {
                        shard.label(i, "label") for i, has in enumerate(shard.samples) if {"cls", "json"} & has.keys()
                    }
                entry = {"url": path.name, "nsamples": _at_least_one(len(shard))}
            except (OSError, ValueError, tarfile.TarError) as error:
                raise InputError(f"{path} cannot be read as a shard: {one_line(error)}") from error
            content.setdefault(split, []).append(entry)
    if "train" not in content:
        raise InputError(f"{folder} holds no train*.tar: name the shards so, and validation shards val*.tar")
    if labels:
        content["num_classes"] = max(labels) + 1
    path = folder / "index.json"
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _shard(index: str, entry: Mapping[str, Any]) -> Shard:
    url = str(entry["url"])
    if url.startswith("pipe:"):
        raise ValueError(f"{url!r} would run a command, which an index may not: give a URL that fsspec knows")
    if not is_remote(url):
        url = f"{index.rpartition('/')[0]}/{url}" if is_remote(index) else str(Path(index).parent / url)
    return Shard(url, _at_least_one(entry["nsamples"]))


def _at_least_one(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} must be a whole number, at least 1")
    return value


def is_remote(url: str) -> bool:
    """Return whether a location is a URL, not a local path."""
    return "://" in url


def copy(url: str, file: BinaryIO) -> None:
    """Copy the whole content of a URL to an empty file; temporary errors are retried for half a minute.

    Raises OSError: it failed.
    """
    for wait in (*RETRIES, None):
        try:
            _copy_once(url, file)
            file.flush()
            file.seek(0)
            return
        except Exception as error:  # every kind of storage raises its own
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # the error is also the open response
            if wait is None or _is_final(error):
                raise OSError(f"{url}: {one_line(error)}") from error
            time.sleep(wait)
            file.seek(0)
            file.truncate()


def _copy_once(url: str, file: BinaryIO) -> None:
    if not url.startswith(("http://", "https://")):
        with fsspec.open(url, "rb") as remote:
            shutil.copyfileobj(remote, file, CHUNK)
        return
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        shutil.copyfileobj(response, file, CHUNK)
        expected = response.headers.get("Content-Length")
    if expected is not None and file.tell() != int(expected):  # urllib itself does not notice a lost connection
        raise EOFError(f"the connection ended after {file.tell()} of {expected} bytes")


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # request timeout, too many requests
    return isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError)


class ShardCache:
    """Shards fetched into a folder, the same for all processes of a machine.

    A shard is fetched under a lock of its own, so only once, and gets its name when it is complete. Then the least
    recently opened ones are removed until the folder is within its bound; processes that have one open can still read
    it, for a file exists until it is closed.

    Args:
        folder: created if it is missing.
        limit: largest number of bytes of complete shards.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit

    def open(self, url: str) -> BinaryIO:
        """Open a shard for reading, after fetching it if necessary. Raises OSError: that failed."""
        if not is_remote(url):
            return Path(url).open("rb")
        path = self.folder / f"{sha256([url.encode()])[:16]}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return self._fetch(url, path)
            os.utime(path)  # the time of the last opening, by which shards are removed
            return file

    def _fetch(self, url: str, path: Path) -> BinaryIO:
        part = path.with_suffix(".part")
        file = part.open("w+b")
        try:
            copy(url, file)
            part.rename(path)
        except BaseException:
            file.close()
            part.unlink(missing_ok=True)
            raise
        with FileLock(self.folder / "removal.lock"):
            self._remove_oldest(keep=path)
        return file

    def _remove_oldest(self, keep: Path) -> None:
        for part in self.folder.glob("*.part"):  # of a killed process, unless locked
            with suppress(Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
                part.unlink(missing_ok=True)
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.tar"))
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total > self.limit and path != keep:
                path.unlink()
                total -= size


class OpenShard:
    """A tar file whose samples are read by number, in file order; it is closed when this object is collected.

    Raises tarfile.TarError: it is no tar file, or a compressed one. A truncated one has fewer samples.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        finalize(self, file.close)
        samples: dict[str, dict[str, tuple[int, int]]] = {}  # name up to its first dot -> suffix -> offset, size
        with tarfile.open(fileobj=file, mode="r:") as tar:
            try:
                for member in tar:
                    folder, slash, file_name = member.name.rpartition("/")
                    name, _, suffix = file_name.partition(".")
                    if member.isfile() and name and suffix:
                        members = samples.setdefault(folder + slash + name, {})
                        members[suffix.lower()] = (member.offset_data, member.size)
            except tarfile.TarError:
                if not samples:
                    raise
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
            content = json.loads(self._read(number, "json"))
            value = content.get(key) if isinstance(content, Mapping) else None
        else:
            raise ValueError("it has neither .cls nor .json, so no label")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"its label is {value!r}: labels must be integers, 0 and up")
        return value

    def _read(self, number: int, suffix: str) -> bytes:
        offset, size = self.samples[number][suffix]
        # pread, for forked processes share the file's offset.
        return os.pread(self.file.fileno(), size, offset)
