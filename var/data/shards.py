"""WebDataset shards: tar files, here or far away, of which only a few need to lie on this disk at a time.

A sample is a group of members that share the name up to its first dot: `a/0017.jpg` with `a/0017.cls` (its label as
text) or `a/0017.json` (an object with the label). Which shards there are, and how many samples each holds, is told by
an index, so that every sample has a number before anything is read:

    {"train": [{"url": "train-0000.tar", "nsamples": 1281}, ...], "validation": [...],
     "num_classes": 1000, "class_names": {"207": "golden retriever"}}

All keys but "train" may be missing. URLs are http, https, or whatever fsspec knows (s3, gs, hf, ...); without a scheme
they are relative to the index. A remote shard is fetched whole, once for all processes of a machine, into a folder of
bounded size.

Why not webdataset's `wids`, which numbers samples by the same kind of index: webdataset 1.0 no longer has it, and that
of 0.2 bounds its cache by shards of one process rather than bytes, fetches by `curl` in a shell without trying again or
comparing lengths, runs `pipe:` commands that an index names, and decodes some members by pickle.
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

RETRIES = (1, 2, 4, 8, 16)  # seconds before trying again to fetch what may come back
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
        count = _at_least_one(content["num_classes"]) if "num_classes" in content else None
    except OSError as error:
        raise InputError(
            f"data.source={location!r} cannot be read ({one_line(error)}): give the path or URL of an index of shards"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"data.source={location!r} is not of the form {FORM}: {one_line(error)}") from error
    return Index(splits, max([count or 0, *(label + 1 for label in names)]) or None, names)


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
        raise InputError(f"{folder} holds no train*.tar: name the shards so, and those of validation val*.tar")
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
        raise ValueError(f"{value!r} stands where there should be a whole number, 1 and up")
    return value


def is_remote(url: str) -> bool:
    return "://" in url


def copy(url: str, file: BinaryIO) -> None:
    """Write to an empty file what a URL gives, all of it; what may come back is tried again for half a minute.

    Raises OSError: that failed.
    """
    for wait in (*RETRIES, None):
        try:
            _copy_once(url, file)
            file.flush()
            file.seek(0)
            return
        except Exception as error:  # every kind of storage has its own
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the server's answer as well
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
    if expected is not None and file.tell() != int(expected):  # urllib itself takes a lost connection for the end
        raise EOFError(f"the connection ended after {file.tell()} of {expected} bytes")


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 429)  # too slow, too often
    return isinstance(error, FileNotFoundError | PermissionError | ImportError | ValueError)


class ShardCache:
    """Shards fetched into a folder, the same for all processes of a machine.

    A shard is fetched under a lock of its own, so once, and gets its name when it is complete. Then those that were not
    opened for the longest time are removed until the folder is within its bound; whoever has one open keeps it, for a
    file lives until it is closed.

    Args:
        folder: made where it is missing.
        limit: bytes of complete shards.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit

    def open(self, url: str) -> BinaryIO:
        """The shard, open for reading, fetched first if need be. Raises OSError where that fails."""
        if not is_remote(url):
            return Path(url).open("rb")
        path = self.folder / f"{sha256([url.encode()])[:16]}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                return self._fetch(url, path)
            os.utime(path)  # "opened last", which the order of removal goes by
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
        for part in self.folder.glob("*.part"):  # of a process that was killed, if nobody has its lock
            with suppress(Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
                part.unlink(missing_ok=True)
        found = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in self.folder.glob("*.tar"))
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total > self.limit and path != keep:
                path.unlink()
                total -= size


class OpenShard:
    """A tar file whose samples are read by number, in their order in the file, which is closed with the last use.

    Raises tarfile.TarError: it is no tar file, or a compressed one. One that is cut off has fewer samples.
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
        """The first member of a sample that has one of the suffixes. Raises ValueError where there is none."""
        members = self.samples[number]
        suffix = next((suffix for suffix in members if suffix in suffixes), None)
        if suffix is None:
            raise ValueError(f"none of its members ({', '.join(members)}) is an image")
        return self._read(number, suffix)

    def label(self, number: int, key: str) -> int:
        """The label of a sample: its .cls, or the key of its .json. Raises ValueError where there is none."""
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
        # With its own offset: processes forked from one that opened the file share the file's.
        return os.pread(self.file.fileno(), size, offset)
