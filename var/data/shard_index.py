"""The index of WebDataset shards, tar files of which only a few need to be on the local disk at a time.

It lists the shards and the number of samples of each, so that every sample has a number before any shard is read:

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
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.errors import InputError, one_line
from var.data.shards import MAX_CLASSES, OpenShard
from var.data.transfer import ALLOWED, RETRIES, check_url, copy, is_remote, scheme_of
from var.utils.classes import labels_fit
from var.utils.contents import HEAD, find_substitute
from var.utils.files import atomic_write
from var.utils.json_text import parse_json
from var.utils.paths import check_regular, to_path
from var.utils.text import plural

MAX_INDEX = 1 << 26  # bytes of an index
MAX_SHARDS = 10**5
MAX_PER_SHARD = 10**7  # samples; a tar file of more would have over 20 GB
MAX_SAMPLES = 10**8  # of a split, whose order is held in memory
INDEX_RETRIES = 3  # of RETRIES, for an index: somebody waits for the run to start
FORM = '{"train": [{"url": "train-0000.tar", "nsamples": 1281}], "validation": [...], "num_classes": 1000}'

log = logging.getLogger(__name__)


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
    unlabeled = passed_over = 0
    for split, pattern in (("train", "train*.tar"), ("validation", "val*.tar")):
        for path in sorted(folder.glob(pattern)):
            try:
                check_regular(path)
                with path.open("rb") as file:
                    shard = OpenShard(file)
                    labeled = [i for i, has in enumerate(shard.samples) if {"cls", "json"} & has.keys()]
                    labels |= {shard.label(i, "label") for i in labeled}
                    unlabeled += len(shard) - len(labeled)
                    passed_over += shard.passed_over
                entry = {"url": path.name, "nsamples": _whole_number(len(shard), "nsamples", 1, MAX_PER_SHARD)}
            except (OSError, ValueError, tarfile.TarError) as error:
                raise InputError(f"{path} cannot be read as a shard: {one_line(error)}") from error
            content.setdefault(split, []).append(entry)
    if "train" not in content:
        raise InputError(f"{folder} holds no train*.tar: name the shards so, and validation shards val*.tar")
    if passed_over:
        log.warning("%s: passed over: %s", folder, plural(passed_over, "hidden member"))
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
        raise ValueError(f"{url!r} would run a command, which an index may not: {ALLOWED}")
    if not is_remote(url):
        url = f"{index.rpartition('/')[0]}/{url}" if is_remote(index) else str(Path(index).parent / url)
    elif is_remote(index) and scheme_of(url) == "file" != scheme_of(index):
        raise ValueError(f"{url!r} is a file of this machine, which an index from elsewhere may not name")
    check_url(url)
    return Shard(url, _whole_number(entry["nsamples"], "nsamples", 1, MAX_PER_SHARD))


def _whole_number(value: object, name: str, at_least: int, at_most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
        raise ValueError(f"{name} is {value!r}: it must be a whole number in {at_least}..{at_most}")
    return value
