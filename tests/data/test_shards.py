"""Shards: their index, their samples, the folder they are fetched into, and the order that needs few at a time."""

import json
import multiprocessing
import os
import re
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import picture

from var.data import shard_cache, shard_index, transfer
from var.data.config import DataConfig
from var.data.dataset import ImageDataset, Sample, Unreadable, open_dataset
from var.data.loader import StepSampler, loader
from var.data.order import ShardOrder, epoch_order
from var.data.shard_cache import ShardCache
from var.data.shard_index import read_index, write_index
from var.data.shards import OpenShard
from var.data.transfer import check_url

SIDE = 16
PER_SHARD = 5


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transfer, shard_index):
        monkeypatch.setattr(module, "RETRIES", (0.01, 0.01))


def encoded(index: int) -> bytes:
    file = BytesIO()
    picture(index % 3, index).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def members(first: int, count: int = PER_SHARD) -> dict[str, bytes]:
    """Samples first, first + 1, ...: the label is the number."""
    found: dict[str, bytes] = {}
    for i in range(first, first + count):
        found |= {f"{i:04}.png": encoded(i), f"{i:04}.cls": str(i).encode()}
    return found


def write_shards(folder: Path, train: int = 4, validation: int = 1) -> Path:
    """Shards of five samples each, numbered through, and their index."""
    for shard in range(train + validation):
        name = f"train-{shard}.tar" if shard < train else f"val-{shard}.tar"
        write_tar(folder / name, members(PER_SHARD * shard))
    return write_index(folder)


class Server:
    """A folder on a local port; counts what was asked for and can cut off its answers."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.fails: dict[str, list[str]] = {}  # file -> how the next answers fail: "cut", "500", "page", "slow", ...
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                outer.asked[name] += 1
                failure = outer.fails[name].pop(0) if outer.fails.get(name) else None
                if failure == "500":
                    self.send_error(500)
                elif failure == "cut":
                    data = (folder / name).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                elif failure == "page":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html; charset=utf-8")
                    self.end_headers()
                    self.wfile.write(b"<!DOCTYPE html><html><title>Log in</title></html>")
                elif failure and failure.startswith("to "):
                    self.send_response(302)
                    self.send_header("Location", failure.removeprefix("to "))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif failure == "no length":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write((folder / name).read_bytes())
                elif failure == "slow":  # a byte of the header now and then, so that no time-out of a socket ends it
                    with suppress(OSError):
                        while not outer.closed.wait(0.02):
                            self.wfile.write(b"H")
                else:
                    super().do_GET()

            def log_message(self, *arguments: Any) -> None:
                """Nothing on the terminal."""

        self.closed = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Server]:
    write_shards(tmp_path / "remote")
    server = Server(tmp_path / "remote")
    yield server
    server.closed.set()
    server.http.shutdown()
    server.http.server_close()


def opened(source: object, split: Any = "train", seed: int = 0, **options: Any) -> ImageDataset:
    return open_dataset(DataConfig(source=str(source), crop="center", **options), split, SIDE, seed)


def sample(dataset: ImageDataset, index: int, epoch: int = 0) -> Sample:
    found = dataset[epoch, index]
    assert isinstance(found, Sample), found
    return found


def labels(dataset: ImageDataset) -> list[int]:
    return [sample(dataset, i).label for i in range(len(dataset))]


# --- the index


def test_index(tmp_path: Path) -> None:
    path = write_shards(tmp_path)
    content = json.loads(path.read_text())
    assert content["train"] == [{"url": f"train-{i}.tar", "nsamples": 5} for i in range(4)]
    assert content["validation"] == [{"url": "val-4.tar", "nsamples": 5}]
    assert content["num_classes"] == 25
    index = read_index(str(path))
    assert index.splits["train"][2] == (str(tmp_path / "train-2.tar"), 5)
    assert (index.num_classes, index.class_names) == (25, {})


def test_urls_of_an_index_are_relative_to_it(remote: Server, tmp_path: Path) -> None:
    assert read_index(f"{remote.url}/index.json").splits["validation"][0].url == f"{remote.url}/val-4.tar"
    entries = [{"url": url, "nsamples": 1} for url in ("s3://bucket/a.tar", "/there/b.tar", "c.tar")]
    (tmp_path / "own.json").write_text(json.dumps({"train": entries, "class_names": {"6": "owl"}}))
    index = read_index(str(tmp_path / "own.json"))
    assert [url for url, _ in index.splits["train"]] == ["s3://bucket/a.tar", "/there/b.tar", str(tmp_path / "c.tar")]
    assert (index.num_classes, index.class_names) == (7, {6: "owl"})


@pytest.mark.parametrize(
    "content",
    [
        "nothing",
        "[]",
        '{"train": [{"url": "a.tar"}]}',
        '{"train": [{"url": "a.tar", "nsamples": 0}]}',
        '{"train": [{"url": "a.tar", "nsamples": true}]}',
        '{"train": [], "num_classes": "10"}',
        '{"train": [], "class_names": ["owl"]}',
        '{"train": [{"url": "pipe:cat a.tar", "nsamples": 1}]}',
    ],
)
def test_index_of_another_form(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with refused("is not of the form", str(tmp_path / "index.json"), '"nsamples": 1281'):
        opened(tmp_path / "index.json")


CODE = ("simplecache::http://h/a.tar", "zip://a::s3://b/c.zip", "s3://b/a.tar::simplecache://", "HF://a::file://b")
OTHER = ("memory://a.tar", "reference://a.tar", "python://a.tar", "github://a:b@c/d.tar", "nowhere://host/a.tar")


@pytest.mark.parametrize("url", [*CODE, *OTHER])
def test_other_schemes_and_chains_are_refused_before_anything_is_opened(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsspec, "open", lambda *arguments: pytest.fail("opened"))
    (tmp_path / "index.json").write_text(json.dumps({"train": [{"url": url, "nsamples": 1}]}))
    for source in (tmp_path / "index.json", f"{url}/index.json"):
        with refused(url, "give a path, or a URL that begins with one of abfs"):
            opened(source)


@pytest.mark.parametrize(
    "url",
    ["s3://", "http://", "http:///a.tar", "http://[", "http://a b/c.tar", "http://:80/a", "http://h:x/a", "file://"],
)
def test_urls_without_a_host_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(repr(url))} .*SCHEME://HOST/FILE"):
        check_url(url)


def test_schemes_that_are_read(tmp_path: Path) -> None:
    urls = [
        "http://[::1]:80/a.tar",
        "HTTPS://h/a.tar",
        "gs://b/a.tar",
        "hf://datasets/u/n/a.tar",
        "file:///a.tar",
        "hdfs:///a.tar",
        "abfs://container@account.host/a b.tar",
        "a::b.tar",
        "a:b.tar",
    ]
    (tmp_path / "index.json").write_text(json.dumps({"train": [{"url": url, "nsamples": 1} for url in urls]}))
    found = [shard.url for shard in read_index(str(tmp_path / "index.json")).splits["train"]]
    assert found == [url if "://" in url else str(tmp_path / url) for url in urls]


def test_an_index_from_elsewhere_names_no_files_of_this_machine(remote: Server, tmp_path: Path) -> None:
    (tmp_path / "remote/own.json").write_text(json.dumps({"train": [{"url": "file:///etc/a.tar", "nsamples": 1}]}))
    with refused("file:///etc/a.tar", "a file of this machine"):
        opened(f"{remote.url}/own.json")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            {"train": [{"url": "a.tar", "nsamples": 10**12}]},
            "nsamples is 1000000000000: it must be a whole number in 1..",
        ),
        (
            {"train": [{"url": "a.tar", "nsamples": 10**7}] * 11},
            "the number of samples of a split is 110000000: it must",
        ),
        ({"train": [{"url": "a.tar", "nsamples": 1}] * 100_001}, "the number of shards of a split is 100001: it must"),
        ({"train": [], "num_classes": 10**12}, "num_classes is 1000000000000: it must"),
        ({"train": [], "class_names": {str(10**12): "owl"}}, "a label is 1000000000000: it must"),
        ({"train": [], "class_names": {"-1": "owl"}}, "a label is -1: it must"),
        ({"train": [{"url": 7, "nsamples": 1}]}, "7 must be the URL or path"),
        ({"train": [{"url": "a\0.tar", "nsamples": 1}]}, "must be the URL or path"),
    ],
)
def test_numbers_of_an_index_are_bounded(tmp_path: Path, content: Any, part: str) -> None:
    (tmp_path / "index.json").write_text(json.dumps(content))
    with refused("is not of the form", part):
        opened(tmp_path / "index.json")


def test_size_and_depth_of_an_index_are_bounded(
    remote: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with refused("deep.json", "is not of the form"):
        opened(tmp_path / "deep.json")
    monkeypatch.setattr(shard_index, "MAX_INDEX", 50)
    remote.fails["index.json"] = ["no length"]
    for source in (tmp_path / "remote/index.json", f"{remote.url}/index.json", f"{remote.url}/index.json"):
        with refused("index.json", "more than the 50 bytes"):
            opened(source)
    monkeypatch.setattr(shard_index, "MAX_SHARDS", 3)
    monkeypatch.setattr(shard_index, "MAX_INDEX", 5000)
    with refused("the number of shards of a split is 4"):
        opened(tmp_path / "remote/index.json")


def test_labels_that_are_ids_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"0.png": encoded(0), "0.cls": b"20240101"})
    with refused("train-0.tar", "its label is 20240101", "below 1,000,000"):
        write_index(tmp_path)


def test_index_that_cannot_be_read(remote: Server, tmp_path: Path) -> None:
    with refused("missing.json' cannot be read", "give the path or URL of an index"):
        opened(tmp_path / "missing.json")
    with refused("missing.json' cannot be read", "404"):
        opened(f"{remote.url}/missing.json")


def test_write_index_refuses_what_is_no_shard(tmp_path: Path) -> None:
    with refused("holds no train*.tar"):
        write_index(tmp_path)
    (tmp_path / "train-0.tar").write_bytes(b"nothing")
    with refused("train-0.tar cannot be read as a shard"):
        write_index(tmp_path)
    write_tar(tmp_path / "train-0.tar", {})
    with refused("train-0.tar cannot be read as a shard"):
        write_index(tmp_path)


# --- the dataset


def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    """Opening it would wait without end."""
    os.mkfifo(tmp_path / "train-0.tar")
    with refused("train-0.tar", "a pipe, socket or device"):
        write_index(tmp_path)
    (tmp_path / "index.json").write_text('{"train": [{"url": "train-0.tar", "nsamples": 1}]}')
    found = open_dataset(DataConfig(source=str(tmp_path / "index.json")), "train", SIDE, 0)
    assert len(found) == 1
    with refused("a pipe, socket or device"):
        ShardCache(tmp_path / "cache", 1e9).open(str(tmp_path / "train-0.tar"))


def test_local_shards(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    train, validation = opened(index), opened(index, "validation")
    assert (len(train), len(validation)) == (20, 5)
    assert train.labels is None
    assert train.num_classes == 25
    assert labels(train) == list(range(20))
    assert labels(validation) == list(range(20, 25))
    assert sample(train, 7).location == f"sample 2 of {tmp_path / 'train-1.tar'}"
    write_tar(tmp_path / "same/train-0.tar", members(7, 1))
    assert torch.equal(sample(train, 7).content, sample(opened(write_index(tmp_path / "same")), 0).content)
    assert not torch.equal(sample(train, 7).content, sample(train, 8).content)


def test_labels_in_json_and_members_in_any_order(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train.tar",
        {
            "a/x.json": b'{"label": 3, "kind": 5}',
            "b/x.json": b'{"label": 4, "kind": 6}',
            "b/x.seg.png": b"not this one",
            "b/x.PNG": encoded(1),
            "a/x.png": encoded(0),
            "notes": b"",
        },
    )
    index = write_index(tmp_path)
    assert labels(opened(index)) == [3, 4]
    assert labels(opened(write_shards(tmp_path / "other"), label_column="kind"))[:2] == [0, 1]  # .cls has no keys
    (tmp_path / "index.json").write_text(json.dumps(json.loads(index.read_text()) | {"num_classes": 10}))
    assert labels(opened(index, label_column="kind")) == [5, 6]


def test_unconditional_training_reads_no_labels(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"0.png": encoded(0), "1.png": encoded(1), "1.cls": b"7"})
    dataset = opened(write_index(tmp_path), label_column=None)
    assert dataset.num_classes == 1
    assert labels(dataset) == dataset.labels.tolist() == [0, 0]


def test_number_of_classes_that_nobody_tells(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    index.write_text(json.dumps({"train": json.loads(index.read_text())["train"]}))
    dataset = opened(index)
    assert labels(dataset) == list(range(20))
    with refused("has no num_classes"):
        _ = dataset.num_classes


def test_choice_of_classes_is_refused(tmp_path: Path) -> None:
    with refused("data.classes cannot choose from the shards"):
        opened(write_shards(tmp_path), classes=(1,))


def test_shards_held_out(tmp_path: Path) -> None:
    index = write_shards(tmp_path, train=6, validation=0)
    with refused('lists no shards under "validation"', "data.validation_fraction"):
        opened(index, "validation")
    train, validation = (opened(index, split, validation_fraction=0.3) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (20, 10)
    assert sorted(labels(train) + labels(validation)) == list(range(30))
    held_out = {label // PER_SHARD for label in labels(validation)}
    assert len(held_out) == 2  # whole shards
    assert sorted(train.order(0)) == list(range(20))


# --- what cannot be read


def reasons(folder: Path, **changes: bytes | None) -> dict[int, str]:
    """Why samples of a validation shard cannot be read, after changing or leaving out members of it."""
    named = members(0) | {name.replace("_", ".").removeprefix("n"): data for name, data in changes.items()}
    write_tar(folder / "val.tar", {name: data for name, data in named.items() if data is not None})
    entry = {"url": "val.tar", "nsamples": PER_SHARD}
    (folder / "index.json").write_text(json.dumps({"train": [entry], "validation": [entry], "num_classes": 5}))
    dataset = opened(folder / "index.json", "validation")
    found = {i: dataset[0, i] for i in range(PER_SHARD)}
    for i, entry in found.items():
        assert isinstance(entry, Sample) or entry.location == f"sample {i} of {folder / 'val.tar'}"
    return {i: entry.reason for i, entry in found.items() if isinstance(entry, Unreadable)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n0002_png": b"torn"}, "not an image"),
        ({"n0002_png": None}, "none of its members (cls) is an image"),
        ({"n0002_cls": None}, "no label"),
        ({"n0002_cls": b"dog"}, "its .cls holds 'dog'"),
        ({"n0002_cls": b"-1"}, "its label is -1"),
        ({"n0002_cls": b"5"}, "its label is 5, but the index has num_classes=5"),
        ({"n0002_cls": None, "n0002_json": b"[]"}, "its label is None"),
        ({"n0002_cls": None, "n0002_json": b'{"label": "x"}'}, "its label is 'x'"),
        ({"n0002_cls": None, "n0002_json": b"{"}, "JSONDecodeError"),
    ],
)
def test_damaged_sample(tmp_path: Path, changes: dict[str, bytes | None], reason: str) -> None:
    found = reasons(tmp_path, **changes)
    assert list(found) == [2]
    assert reason in found[2]


def test_fewer_samples_than_the_index_tells(tmp_path: Path) -> None:
    found = reasons(tmp_path, n0004_png=None, n0004_cls=None)
    assert list(found) == [4]
    assert "it holds 4 samples" in found[4]


def test_shard_that_is_cut_off_gives_what_is_left(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    path = tmp_path / "val-4.tar"
    with path.open("rb") as file:
        cut = OpenShard(file).samples[3]["png"][0] + 10  # in the middle of the fourth image
    path.write_bytes(path.read_bytes()[:cut])
    found = [opened(index, "validation")[0, i] for i in range(5)]
    assert [isinstance(entry, Sample) for entry in found] == [True, True, True, False, False]


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty"])
def test_shard_that_cannot_be_read_is_replaced_in_training(tmp_path: Path, damage: str) -> None:
    index = write_shards(tmp_path)
    path = tmp_path / "train-1.tar"
    path.unlink() if damage == "missing" else path.write_bytes(b"garbage" * 200 if damage == "garbage" else b"")
    dataset = opened(index)
    for i in range(20):
        found = sample(dataset, i)
        assert bool(found.unreadable) == (5 <= i < 10)
        assert not 5 <= found.label < 10
        assert all(bad.location.endswith(f"of {path}") for bad in found.unreadable)


def test_substitutes_come_from_shards_that_are_here_or_come_next(tmp_path: Path) -> None:
    index = write_shards(tmp_path, train=9)
    torn = members(25)
    torn["0027.png"] = b"torn"
    write_tar(tmp_path / "train-5.tar", torn)
    dataset = opened(index, shuffle_shards=2)
    for epoch in range(4):
        found = sample(dataset, 27, epoch)
        assert found.unreadable[0].location == f"sample 2 of {tmp_path / 'train-5.tar'}"
        assert 25 <= found.label < 30
    (tmp_path / "train-5.tar").unlink()
    for epoch in range(4):
        entered = epoch_order(9, 0, epoch).tolist()
        following = entered[(entered.index(5) + 1) % 9]
        assert sample(opened(index, shuffle_shards=2), 27, epoch).label // PER_SHARD == following


# --- far away


def test_remote_shards_equal_local_ones(remote: Server, tmp_path: Path) -> None:
    far = opened(f"{remote.url}/index.json", cache=tmp_path / "cache")
    near = opened(tmp_path / "remote/index.json")
    for i in range(20):
        assert torch.equal(sample(far, i).content, sample(near, i).content)
        assert sample(far, i).label == i
    assert sample(far, 7).location == f"sample 2 of {remote.url}/train-1.tar"


def test_each_shard_is_fetched_once(remote: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert labels(opened(f"{remote.url}/index.json", cache=tmp_path / "cache")) == list(range(20))
    assert {name: count for name, count in remote.asked.items() if name.endswith(".tar")} == {
        f"train-{i}.tar": 1 for i in range(4)
    }


def _read_all(source: str, cache: Path, found: Any) -> None:
    found.put(labels(opened(source, cache=cache)))


def test_processes_fetch_a_shard_once_between_them(remote: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    found: Any = context.Queue()
    arguments = (f"{remote.url}/index.json", tmp_path / "cache", found)
    processes = [context.Process(target=_read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [list(range(20))] * 4
    for process in processes:
        process.join()
    assert {count for name, count in remote.asked.items() if name.endswith(".tar")} == {1}


def test_folder_is_bounded_and_what_is_open_stays_readable(remote: Server, tmp_path: Path) -> None:
    size = (tmp_path / "remote/train-0.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", 2.5 * size)
    files = []
    for i in (0, 1, 0, 2):
        files.append(cache.open(f"{remote.url}/train-{i}.tar"))
        time.sleep(0.01)
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 2.5 * size
    kept = {path.read_bytes() for path in cache.folder.glob("*.tar")}
    assert kept == {(tmp_path / f"remote/train-{i}.tar").read_bytes() for i in (0, 2)}  # 1 was opened longest ago
    assert files[1].read() == (tmp_path / "remote/train-1.tar").read_bytes()
    for file in files:
        file.close()


def test_dataset_reads_all_through_a_folder_for_one_shard(remote: Server, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in (tmp_path / "remote").glob("*.tar"))
    options = {"cache": tmp_path / "cache", "cache_gigabytes": largest / 1e9, "shuffle_shards": 1}
    dataset = opened(f"{remote.url}/index.json", **options)
    assert sorted(sample(dataset, int(i)).label for i in dataset.order(0)) == list(range(20))
    time.sleep(0.2)  # a shard that was fetched ahead
    assert len(list((tmp_path / "cache").glob("*.tar"))) <= 1
    assert not list((tmp_path / "cache").glob("*.part"))


def test_lost_connections_are_tried_again(remote: Server, tmp_path: Path) -> None:
    remote.fails["train-0.tar"] = ["cut", "500"]
    dataset = opened(f"{remote.url}/index.json", cache=tmp_path / "cache")
    assert sample(dataset, 0).unreadable == ()
    assert remote.asked["train-0.tar"] == 3


def test_fetching_gives_up_and_leaves_nothing_behind(remote: Server, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1e9)
    remote.fails["val-4.tar"] = ["cut"] * 3
    dataset = opened(f"{remote.url}/index.json", "validation", cache=cache.folder)
    found = dataset[0, 0]
    assert isinstance(found, Unreadable)
    assert f"{remote.url}/val-4.tar: the connection ended after" in found.reason
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]
    assert sample(dataset, 0).label == 20  # it came back
    remote.asked.clear()
    with pytest.raises(OSError, match="404"):
        cache.open(f"{remote.url}/none.tar")
    assert remote.asked["none.tar"] == 1  # a second time would be in vain


def test_a_shard_beyond_the_bound_is_not_downloaded(remote: Server, tmp_path: Path) -> None:
    size = (tmp_path / "remote/train-0.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", size - 1)
    remote.fails["train-1.tar"] = ["no length"]
    for name in ("train-0.tar", "train-1.tar"):
        with pytest.raises(OSError, match=f"{name}: it has .* bytes or more.*raise data.cache_gigabytes"):
            cache.open(f"{remote.url}/{name}")
    assert not [path for path in cache.folder.iterdir() if path.suffix != ".lock"]
    remote.fails["train-1.tar"] = ["no length"]
    cache.limit = size
    with cache.open(f"{remote.url}/train-1.tar") as file:
        assert file.read() == (tmp_path / "remote/train-1.tar").read_bytes()


def test_the_bound_holds_while_shards_are_fetched_at_the_same_time(
    remote: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tmp_path / "remote/train-0.tar").stat().st_size
    cache = ShardCache(tmp_path / "cache", 2.5 * size)
    monkeypatch.setattr(transfer, "CHUNK", 1000)
    monkeypatch.setattr(shard_cache, "POLL", 0.001)
    largest = [0]

    def reserve(part: Path, wanted: int) -> None:
        original(part, wanted)
        sizes = []
        with FileLock(cache.folder / "removal.lock"):  # else one is removed for another while they are added up
            for path in cache.folder.iterdir():
                with suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
        largest.append(sum(sizes))

    original = cache._reserve
    monkeypatch.setattr(cache, "_reserve", reserve)
    files: list[Any] = []
    threads = [
        threading.Thread(target=lambda i=i: files.append(cache.open(f"{remote.url}/train-{i}.tar"))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for file in files:
        file.close()
    assert len(files) == 4
    assert size <= max(largest) <= 2.5 * size


@pytest.mark.parametrize("damage", [b"", b"garbage" * 200, b"<html>Log in</html>", None])
def test_a_damaged_shard_in_the_cache_is_fetched_again_once(
    remote: Server, tmp_path: Path, damage: bytes | None
) -> None:
    source, cache = f"{remote.url}/index.json", tmp_path / "cache"
    sample(opened(source, "validation", cache=cache), 0)
    (path,) = cache.glob("*.tar")
    path.write_bytes(path.read_bytes()[:6000] if damage is None else damage)
    assert labels(opened(source, "validation", cache=cache)) == list(range(20, 25))
    assert remote.asked["val-4.tar"] == 2
    (tmp_path / "remote/val-4.tar").write_bytes(damage or b"")
    path.unlink()
    dataset = opened(source, "validation", cache=cache)
    assert all(isinstance(dataset[0, i], Unreadable) for i in range(5))
    assert remote.asked["val-4.tar"] <= 4 + 4  # once again, and not for every sample but for those of no shard at all


def test_a_login_page_is_told_at_once(remote: Server, tmp_path: Path) -> None:
    remote.fails = {"index.json": ["page"], "train-0.tar": ["page"]}
    with refused("index.json", "web page", "login"):
        opened(f"{remote.url}/index.json")
    cache = ShardCache(tmp_path / "cache", 1e9)
    with pytest.raises(OSError, match=r"train-0.tar: it answers with a web page"):
        cache.open(f"{remote.url}/train-0.tar")
    assert remote.asked == {"index.json": 1, "train-0.tar": 1}
    (tmp_path / "saved.json").write_text("<!DOCTYPE html>\n<html>Log in</html>")
    with refused("saved.json", "web page"):
        opened(tmp_path / "saved.json")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a.tar", "file:///etc/hostname"])
def test_redirects_stay_within_the_web(remote: Server, tmp_path: Path, target: str) -> None:
    remote.fails = {"train-0.tar": [f"to {target}"], "train-1.tar": [f"to {remote.url}/train-2.tar"]}
    cache = ShardCache(tmp_path / "cache", 1e9)
    with pytest.raises(OSError, match=rf"(?i)train-0.tar: .*redirect.*{target}"):
        cache.open(f"{remote.url}/train-0.tar")
    cache.open(f"{remote.url}/train-1.tar").close()
    assert remote.asked == {"train-0.tar": 1, "train-1.tar": 1, "train-2.tar": 1}


def test_shards_that_cannot_be_fetched_are_no_images_to_repair(remote: Server, tmp_path: Path) -> None:
    remote.fails = {"val-4.tar": ["page"] * 9}
    found = opened(f"{remote.url}/index.json", "validation", cache=tmp_path / "cache")[0, 0]
    assert isinstance(found, Unreadable)
    assert f"sample 0 of {remote.url}/val-4.tar (OSError: " in str(found)
    assert "URLs in the index" in found.remedy
    assert Unreadable(0, str(tmp_path / "a.png"), "damaged").remedy.startswith("repair or replace them")


def test_a_server_that_is_slow_or_dead_is_given_up_on(
    remote: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.2)
    remote.fails["index.json"] = ["slow"] * 9
    with refused("index.json", "bytes came in 0.2 seconds"):
        opened(f"{remote.url}/index.json")
    cache = ShardCache(tmp_path / "cache", 1e9)
    remote.fails["train-0.tar"] = ["slow"] * 9
    with pytest.raises(OSError, match=r"bytes came in 0.2 seconds"):
        cache.open(f"{remote.url}/train-0.tar")
    with pytest.raises(OSError, match=r"was given up on just now"):
        cache.open(f"{remote.url}/train-1.tar")
    assert remote.asked["train-1.tar"] == 0
    remote.http.shutdown()
    remote.http.server_close()
    with pytest.raises(OSError, match=r"Connection refused"):
        ShardCache(tmp_path / "cache", 1e9).open(f"{remote.url}/train-2.tar")


def test_part_left_by_a_killed_process_is_removed(remote: Server, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1e9)
    cache.folder.mkdir()
    (cache.folder / "0123.part").write_bytes(b"half")
    cache.open(f"{remote.url}/train-0.tar").close()
    assert not list(cache.folder.glob("*.part"))


def test_other_kinds_of_storage(tmp_path: Path) -> None:
    write_shards(tmp_path / "there")
    dataset = opened(f"file://{tmp_path / 'there/index.json'}", cache=tmp_path / "cache")  # by fsspec
    assert labels(dataset) == list(range(20))
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 4


def test_next_shard_is_fetched_ahead(remote: Server, tmp_path: Path) -> None:
    dataset = opened(f"{remote.url}/index.json", cache=tmp_path / "cache", shuffle_shards=1)
    first = int(dataset.order(0)[0])
    following = dataset.shards.samples_after(0, first, 1)[0] // PER_SHARD
    sample(dataset, first)
    for _ in range(500):
        if remote.asked[f"train-{following}.tar"]:
            break
        time.sleep(0.01)
    assert {name for name in remote.asked if name.endswith(".tar")} == {
        f"train-{first // PER_SHARD}.tar",
        f"train-{following}.tar",
    }


# --- the order


def shards_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=15),
    window=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 99),
)
def test_order_is_a_permutation_that_needs_few_shards_at_a_time(
    sizes: list[int], window: int, seed: int, epoch: int
) -> None:
    shards = shards_of(sizes)
    order = ShardOrder(shards, window, seed).order(epoch)
    assert sorted(order) == list(range(len(shards)))
    seen = shards[order]
    ends = {shard: (np.flatnonzero(seen == shard)[[0, -1]]).tolist() for shard in range(len(sizes))}
    in_use = [sum(first <= at <= last for first, last in ends.values()) for at in range(len(shards))]
    assert max(in_use) <= window


def test_order_mixes_and_depends_on_seed_and_epoch() -> None:
    shards = shards_of([50] * 20)
    orders = [ShardOrder(shards, 4, seed).order(epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(dict.fromkeys(shards[order])) for order in orders}) == 3  # the shards enter in another order
    for order in orders:
        stretches = shards[order].reshape(-1, 50)[2:-2]
        assert np.mean([len(set(stretch)) for stretch in stretches]) > 3
        assert (ShardOrder(shards, 4, 0).order(0) == orders[0]).all()


def test_few_shards_are_mixed_completely() -> None:
    shards = shards_of([200] * 4)
    start = shards[ShardOrder(shards, 4, 0).order(0)][:100]
    assert min(Counter(start.tolist()).values()) > 10


def test_two_processes_and_readers_see_what_one_sees(
    remote: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.data.loader._cpus", lambda: 2)
    torn = members(5)
    torn["0007.png"] = b"torn"
    write_tar(tmp_path / "remote/train-1.tar", torn)

    def batches(rank: int, world: int, workers: int) -> list[Any]:
        options = {"cache": tmp_path / f"cache{rank}{world}{workers}", "cache_gigabytes": 3e-5, "shuffle_shards": 2}
        dataset = opened(f"{remote.url}/index.json", flip=True, **options)
        return list(loader(dataset, StepSampler(dataset, 4, rank, world, 0, 10), workers))

    one, readers = batches(0, 1, 0), batches(0, 1, 2)
    parts = [batches(rank, 2, 0) for rank in range(2)]
    assert sum(len(batch.unreadable) for batch in one) >= 2
    for step, whole in enumerate(one):
        assert torch.equal(whole.content, readers[step].content)
        assert (whole.locations, whole.unreadable) == (readers[step].locations, readers[step].unreadable)
        assert whole.labels.tolist() == readers[step].labels.tolist()
        for rank in range(2):
            assert torch.equal(parts[rank][step].content, whole.content[rank::2])
            assert parts[rank][step].labels.tolist() == whole.labels[rank::2].tolist()
    first_epoch = [label for batch in one[:5] for label in batch.labels.tolist()]
    assert set(range(20)) - set(first_epoch) == {7}


def test_forked_readers_may_use_a_shard_opened_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.data.loader._cpus", lambda: 2)
    index = write_shards(tmp_path)
    dataset = opened(index)
    sample(dataset, 0)
    found = list(loader(dataset, [[(0, i % 5)] for i in range(100)], 2))
    assert [batch.labels.tolist() for batch in found] == [[i % 5] for i in range(100)]
    with (tmp_path / "train-0.tar").open("rb") as file:  # whose place the processes share
        shard = OpenShard(file)
        before = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        shard.image(3, ["png"])
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == before


def test_names_with_dots_keep_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = encoded(0)
    names = {"a/x.5.png": image, "a/x.5.cls": b"1", "a/x.6.PNG": image, "a/x.6.json": b'{"label": 2}'}
    names |= {"y.jpg": image, "y.seg.png": b"", "y.cls": b"3", "y.5.png": image, "y.5.cls": b"4", "z.1.png": image}
    write_tar(tmp_path / "train-0.tar", names)
    shard = OpenShard((tmp_path / "train-0.tar").open("rb"))
    assert [sorted(members) for members in shard.samples] == [
        ["cls", "png"],
        ["json", "png"],
        ["cls", "jpg", "seg.png"],
        ["cls", "png"],
        ["png"],
    ]
    assert [shard.label(i, "label") for i in range(4)] == [1, 2, 3, 4]
    content = json.loads(write_index(tmp_path).read_text())
    assert (content["train"][0]["nsamples"], content["num_classes"]) == (5, 5)
    assert caplog.messages == [f"{tmp_path}: 1 sample without a label (.cls or .json)"]


def test_what_a_mac_adds_to_an_archive_is_no_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"./a.png": encoded(1), "./a.cls": b"1", "./._a.png": b"no image", "./._a.cls": b"nothing"}
    members |= {"b.c/d.png": encoded(2), "b.c/d.cls": b"0", "__MACOSX/b.c/d.png": b"x", "@eaDir/d.png": b"y"}
    write_tar(tmp_path / "train-0.tar", members)
    index = json.loads(write_index(tmp_path).read_text())
    assert (index["train"][0]["nsamples"], index["num_classes"]) == (2, 2)
    assert f"{tmp_path}: passed over: 4 hidden members" in caplog.messages
    dataset = open_dataset(DataConfig(source=str(tmp_path / "index.json")), "train", SIDE, seed=0)
    found = [dataset[0, i] for i in range(len(dataset))]
    assert [sample.label for sample in found if isinstance(sample, Sample)] == [1, 0]


@pytest.mark.parametrize(("text", "shown"), [("cat", "'cat'"), ("", "''"), ("9" * 5000, "'9999")])
def test_a_cls_that_holds_no_number_is_explained(text: str, shown: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.png": encoded(1), "a.cls": text.encode()})
    with refused("train-0.tar", f"its .cls holds {shown}", "must hold the number of its class, 0 and up"):
        write_index(tmp_path)


def test_labels_of_shards_that_are_ids_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.png": encoded(0), "a.cls": b"123456"})
    with refused("has label 123456 for 1 class"):
        write_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


def test_labels_and_images_of_local_shards_are_fingerprinted(tmp_path: Path, remote: Server) -> None:
    source = write_shards(tmp_path)
    before = opened(source).describe()
    assert before == opened(source).describe()
    flipped = {name: b"7" if name.endswith(".cls") else data for name, data in members(10).items()}
    write_tar(tmp_path / "train-2.tar", flipped)
    after = opened(source).describe()
    assert {name for name in before if before[name] != after[name]} == {"sampled_labels"}
    write_tar(tmp_path / "train-2.tar", members(10) | {"0012.png": b"", "0012.cls": b"?"})
    assert opened(source).describe()["sampled_labels"] is None  # unknown, so a repair is no change
    assert opened(f"{remote.url}/index.json").describe()["content"] is None  # no download
    assert not remote.asked.keys() - {"index.json"}


def test_samples_that_the_index_does_not_count_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_shards(tmp_path)
    for shard in range(2):
        write_tar(tmp_path / f"train-{shard}.tar", members(PER_SHARD * shard, 7))
    dataset = opened(source)
    for index in range(10):
        sample(dataset, index)
    assert [message.partition(" ")[2] for message in caplog.messages if "correct its nsamples" in message] == [
        "holds 7 samples, but the index counts 5, so the others are not used: correct its nsamples"
    ]
