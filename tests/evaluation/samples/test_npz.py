"""Images in .npz: written as np.load reads them, read as np.savez wrote them, and every damage told in one line."""

import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenizer.errors import InputError
from var.evaluation.samples.npz import open_npz, write_images

Save = Callable[..., None]

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
IN_ONE_FOLDER = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_images(count: int = 5, height: int = 4, width: int = 6, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@IN_ONE_FOLDER
@given(SHAPES, st.integers(0, 2**32 - 1))
def test_what_is_written_is_what_numpy_reads(tmp_path: Path, shape: tuple[int, int, int], seed: int) -> None:
    images = random_images(*shape, seed=seed)
    labels, mean = np.arange(shape[0], dtype=np.int64), np.full((2, 3), 1 / 3)
    write_images(tmp_path / "a.npz", iter(images), shape[0], shape[1:], arr_1=labels, mu=mean)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert read.files == ["arr_0", "arr_1", "mu"]
        for name, array in (("arr_0", images), ("arr_1", labels), ("mu", mean)):
            np.testing.assert_array_equal(read[name], array, strict=True)


@IN_ONE_FOLDER
@given(SHAPES, st.sampled_from([np.savez, np.savez_compressed]), st.data())
def test_any_rows_of_what_numpy_writes(
    tmp_path: Path, shape: tuple[int, int, int], save: Save, data: st.DataObject
) -> None:
    """In any order, and again after those that come later."""
    images = random_images(*shape)
    save(tmp_path / "a.npz", images, np.arange(shape[0]), mu=np.eye(2))
    opened = open_npz(tmp_path / "a.npz")
    assert set(opened.names) == {"arr_0", "arr_1", "mu"}
    read = opened.images()
    assert (read.shape, len(read)) == (images.shape, shape[0])
    for _ in range(3):
        start = data.draw(st.integers(0, shape[0]))
        stop = data.draw(st.integers(start, shape[0]))
        rows = read.rows(start, stop)
        np.testing.assert_array_equal(rows, images[start:stop], strict=True)
        rows[...] = 0  # they are the caller's own
    np.testing.assert_array_equal(read.rows(0, shape[0]), images)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(3),
        np.float64(0.5),
        np.eye(3, dtype=">f4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.ones(0),
    ],
)
def test_small_arrays(tmp_path: Path, save: Save, array: NDArray[Any]) -> None:
    save(tmp_path / "a.npz", mu=array)
    np.testing.assert_array_equal(open_npz(tmp_path / "a.npz").array("mu"), array, strict=True)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_images(tmp_path / name, iter(random_images()), 5, (4, 6), arr_1=np.arange(5))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_holds_a_few_images(tmp_path: Path, compressed: bool) -> None:
    """Of 40 MB, written and read."""
    one = np.zeros((100, 100, 3), np.uint8)

    def many() -> Iterator[NDArray[np.uint8]]:
        for i in range(1300):
            yield one + np.uint8(i % 256)

    tracemalloc.start()
    write_images(tmp_path / "a.npz", many(), 1300, (100, 100))
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    if compressed:
        with np.load(tmp_path / "a.npz") as read:
            np.savez_compressed(tmp_path / "a.npz", read["arr_0"])
    tracemalloc.start()
    images = open_npz(tmp_path / "a.npz").images()
    for first in range(0, 1300, 13):
        assert images.rows(first, first + 13)[12, 0, 0, 0] == (first + 12) % 256
    assert tracemalloc.get_traced_memory()[1] < 6e6
    tracemalloc.stop()


def test_what_cannot_be_written(tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    with refused("the number of images is 4, not 5"):
        write_images(out, iter(random_images(4)), 5, (4, 6))
    with refused("the number of images is 6, not 5"):
        write_images(out, iter(random_images(6)), 5, (4, 6))
    with refused("the number of images is 0: give at least 1"):
        write_images(out, iter(()), 0, (4, 6))
    with refused("image 0 is uint8 of shape (4, 6, 3): uint8 (6, 4, 3) is needed"):
        write_images(out, iter(random_images()), 5, (6, 4))
    with refused("image 0 is int64"):
        write_images(out, iter(random_images().astype(np.int64)), 5, (4, 6))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with refused("cannot write"):
        write_images(tmp_path / "file" / "a.npz", iter(random_images()), 5, (4, 6))


def test_a_file_that_is_replaced_stays_until_then(tmp_path: Path) -> None:
    write_images(tmp_path / "a.npz", iter(random_images()), 5, (4, 6))
    before = (tmp_path / "a.npz").read_bytes()
    with refused("the number of images is 1, not 5"):
        write_images(tmp_path / "a.npz", iter(random_images(1)), 5, (4, 6))
    assert (tmp_path / "a.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"mu": np.eye(2)}, ("holds no arr_0: choose one of mu",)),
        ({"arr_0": random_images().astype(np.float32)}, ("arr_0 is float32", "uint8 (N, H, W, 3)")),
        ({"arr_0": random_images()[..., :1]}, ("shape (5, 4, 6, 1)",)),
        ({"arr_0": random_images()[0]}, ("shape (4, 6, 3)",)),
        ({"arr_0": random_images()[:0]}, ("shape (0, 4, 6, 3)", "N at least 1")),
        ({"arr_0": np.asfortranarray(random_images())}, ("Fortran order", "ascontiguousarray")),
        ({"arr_0": np.array([object()])}, ("arr_0 is of type object", "no pickled")),
        ({"arr_0": np.array(["text"])}, ("only numeric",)),
    ],
)
def test_what_are_no_images(tmp_path: Path, arrays: dict[str, NDArray[Any]], parts: tuple[str, ...]) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with refused("a.npz", *parts):
        open_npz(tmp_path / "a.npz").images()


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.array([{}]))
    with refused("mu is of type object", "no pickled objects"):
        open_npz(tmp_path / "a.npz").array("mu")


def test_what_is_no_npz(tmp_path: Path) -> None:
    with refused("nowhere.npz does not exist"):
        open_npz(tmp_path / "nowhere.npz")
    with refused("is no file"):
        open_npz(tmp_path)
    for content in (b"", b"PK", b"no zip at all" * 100):
        (tmp_path / "a.npz").write_bytes(content)
        with refused("a.npz cannot be read as .npz", "make or download it again"):
            open_npz(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("readme.txt", "text")
    with refused("a zip without arrays"):
        open_npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", random_images())
    with refused("holds no sigma: choose one of arr_0"):
        open_npz(tmp_path / "a.npz").array("sigma")
    with refused("rows 3..6 are out of range: give rows in 0..5"):
        open_npz(tmp_path / "a.npz").images().rows(3, 6)


@pytest.mark.parametrize("shape", [(10**12, 4, 6, 3), (-5, 4, 6, -3), (2**62, 2**62, 6, 3), (4, 4, 6, 3)])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_shape_that_is_not_what_the_file_holds(tmp_path: Path, shape: tuple[int, ...], compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as file, file.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        member.write(random_images().tobytes())
    for read in (lambda npz: npz.images(), lambda npz: npz.array("arr_0")):
        with refused("a.npz", "arr_0", f"has shape {shape}"):
            read(open_npz(tmp_path / "a.npz"))


def test_a_large_array_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.evaluation.samples.npz.MAX_SMALL", 100)
    np.savez(tmp_path / "a.npz", random_images())
    with refused("arr_0 has 360 bytes: at most 100"):
        open_npz(tmp_path / "a.npz").array("arr_0")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("count", [50, 500])  # zipfile compares the checksum of what is no longer than it reads ahead
def test_changed_images_are_noticed_by_who_reads_them_all(tmp_path: Path, save: Save, count: int) -> None:
    save(tmp_path / "a.npz", random_images(count))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with refused("a.npz cannot be read"):
        read = open_npz(tmp_path / "a.npz").images()
        for first in range(0, count, 10):
            read.rows(first, first + 10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([np.savez, np.savez_compressed]), st.data())
def test_damage_of_any_kind_is_told_in_one_line(tmp_path: Path, save: Save, data: st.DataObject) -> None:
    """Bytes changed anywhere, or the end cut off: an InputError or the right images, nothing else."""
    images, mean = random_images(3, 2, 2), np.eye(2)
    path = tmp_path / "a.npz"
    save(path, images, mu=mean)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        opened = open_npz(path)
        np.testing.assert_array_equal(opened.images().rows(0, 3), images)
        np.testing.assert_array_equal(opened.array("mu"), mean)
    except InputError as error:
        told = str(error)
    else:
        told = str(path)
    assert "\n" not in told
    assert str(path) in told
