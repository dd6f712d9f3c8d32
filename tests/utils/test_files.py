"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest
from helpers import refused

from var.utils.files import atomic_write, check_no_other_files, check_writable, subfolders
from var.utils.provenance import file_sha256, sha256


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "deep" / "new")
    assert list(tmp_path.iterdir()) == []
    for folder in (Path("/proc/new"), tmp_path / ("a" * 300)):
        with refused(f"cannot write {folder}", "give another folder"):
            check_writable(folder)


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    with atomic_write(file) as beside:
        beside.write_text("first")
        assert not file.exists()

    def fail() -> None:
        with atomic_write(file) as beside:
            beside.write_text("second")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "first"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


def test_what_a_killed_write_left_is_no_foreign_file(tmp_path: Path) -> None:
    (tmp_path / ".a.json.new").touch()
    check_no_other_files(tmp_path, ("a.json",))
    check_no_other_files(tmp_path / "none", ())
    (tmp_path / "letter.txt").touch()
    with refused("holds other files, such as letter.txt: give another --out"):
        check_no_other_files(tmp_path, ("a.json",), "give another --out")


def test_subfolders(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert subfolders(tmp_path) == ["a", "b"]


def test_a_checksum_is_that_of_all_parts_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "file") == sha256([b"a", b"bc"]) == known
