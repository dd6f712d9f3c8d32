"""Files and folders that appear whole or not at all, and that one process at a time writes."""

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import refused
from tiny import ROOT

from var.utils.files import atomic_folder, atomic_write
from var.utils.locks import LOCK, locked
from var.utils.paths import (
    check_no_other_files,
    check_target,
    check_writable,
    is_hidden,
    is_stream,
    subfolders,
)
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


def test_hidden_files_are_no_foreign_files(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    check_no_other_files(tmp_path, ("a.json",))
    check_no_other_files(tmp_path / "none", ())
    (tmp_path / "letter.txt").touch()
    with refused("holds other files, such as letter.txt: give another --out"):
        check_no_other_files(tmp_path, ("a.json",), "give another --out")


def test_what_systems_add_is_passed_over_as_hidden_files_are() -> None:
    for name in (".x", "._a.png", "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found"):
        assert is_hidden(name)
    assert not any(map(is_hidden, ("cup", "@home", "recycle", "lost and found", "a.b")))


def test_subfolders(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert subfolders(tmp_path) == ["a", "b"]


def test_a_checksum_is_that_of_all_parts_and_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "file") == sha256([b"a", b"bc"]) == known


# --- devices, pipes and links


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    target, link, loose = tmp_path / "disk" / "a.json", tmp_path / "a.json", tmp_path / "loose.json"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    loose.symlink_to(tmp_path / "disk" / "none.json")
    for file in (link, loose):
        check_target(file, "r.json")
        with atomic_write(file) as beside:
            beside.write_text("new")
        assert file.is_symlink()
        assert file.read_text() == "new"
    assert sorted(path.name for path in target.parent.iterdir()) == ["a.json", "none.json"]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert not is_stream(tmp_path / "a")
    for block in (atomic_write(tmp_path / "a"), atomic_folder(tmp_path / "a"), locked(tmp_path / "a")):
        with refused(f"{tmp_path / 'a'} is a link that leads in a circle"), block:
            pass
    assert (tmp_path / "a").is_symlink()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_target(pipe, "r.json")
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with atomic_write(pipe) as beside:
        beside.write_text("all of it")
    reader.join(30)
    assert read == ["all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_pipe_that_nobody_reads_is_waited_for_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hours of work are not to be lost for a reader that comes late."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)

    def read_late() -> None:
        while not caplog.messages:
            time.sleep(0.01)
        read.append(pipe.read_text())

    reader = threading.Thread(target=read_late, daemon=True)
    reader.start()
    with atomic_write(pipe) as beside:
        beside.write_text("all of it")
    reader.join(30)
    assert read == ["all of it"]
    assert caplog.messages == [f"{pipe} is a pipe that nobody reads: waiting for a reader"]


def test_a_device_is_written_into_through_links(tmp_path: Path) -> None:
    """/dev/tty would need a terminal; a pseudo-terminal is a device that nothing depends on."""
    controller, terminal = os.openpty()
    (tmp_path / "link").symlink_to(os.ttyname(terminal))
    with atomic_write(tmp_path / "link") as beside:
        beside.write_text("text")
    assert os.read(controller, 100) == b"text"
    assert stat.S_ISCHR(Path(os.ttyname(terminal)).stat().st_mode)
    os.close(terminal)
    os.close(controller)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "link"])
@pytest.mark.parametrize("piped", [True, False])
def test_standard_output_is_written_in_turn(name: str, piped: bool, tmp_path: Path) -> None:
    """As a pipe, and as a file, whose earlier and later lines stay."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    script = (
        "import sys; from pathlib import Path\n"
        "from var.utils.files import atomic_write; from var.utils.paths import check_target\n"
        "file = Path(sys.argv[1]); check_target(file, 'r.json'); print('before')\n"
        "with atomic_write(file) as beside:\n    beside.write_text('inside\\n')\n"
        "print('after')"
    )
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", script, name], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE if piped else out, check=True, timeout=60,
        )  # fmt: skip
    printed = done.stdout if piped else (tmp_path / "out").read_bytes()
    assert printed.split() == [b"before", b"inside", b"after"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


# --- one process at a time


@contextmanager
def another(code: str) -> Iterator[int]:
    """A process that has run the code, prints a line then, and is killed at the end of the block; its number."""
    imports = "from pathlib import Path\nfrom var.utils.files import *\nfrom var.utils.locks import *"
    code = f"{imports}\n{code}\n    print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        yield process.pid
        process.kill()


def test_a_folder_is_locked_until_its_process_ends_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with another(f"with locked(Path({str(folder)!r})):") as number:
        told = (f"{folder} is in use by process {number} on {os.uname().nodename}", "give another output")
        with refused(*told), locked(folder, remedy="give another output"):
            pass
        with locked(folder, name=".other"):
            pass
    assert (folder / LOCK).exists()  # the process was killed
    with locked(folder):
        (tmp_path / "link").symlink_to(folder)
        with refused(f"process {os.getpid()} on"), locked(tmp_path / "link"):
            pass
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Such as a reader of data, which may outlive its killed parent."""
    code = (
        f"import os, time\nback, forth = os.pipe()\nwith locked(Path({str(tmp_path)!r})):\n"
        "    os.read(back, 1) if os.fork() else (os.write(forth, b'1'), time.sleep(2), os._exit(0))"
    )
    with another(code):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("block", ["atomic_write", "atomic_folder"])
def test_what_a_killed_process_left_is_removed_and_of_a_living_one_nothing(tmp_path: Path, block: str) -> None:
    target = tmp_path / "below" / "target"
    code = f"with {block}(Path({str(target)!r})) as beside:"

    def left() -> list[Path]:
        return [path for path in (tmp_path / "below").iterdir() if path.name.endswith(".new")]

    with another(code), another(code):
        living = left()
        assert len(living) == 2
        with locked(tmp_path):
            assert sorted(left()) == sorted(living)
        with {"atomic_write": atomic_write, "atomic_folder": atomic_folder}[block](target) as beside:
            assert {*living, beside} == {*left()}
            if block == "atomic_write":
                beside.touch()
    assert sorted(left()) == sorted(living)
    with locked(tmp_path):
        assert left() == []


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    file, whole = tmp_path / "a.txt", {str(i) * 10_000 for i in range(8)}

    def write(text: str) -> None:
        for _ in range(5):
            with atomic_write(file) as beside:
                beside.write_text(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in whole
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_as_long_as_can_be_is_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{GRINNING FACE}" * 63):
        with atomic_write(tmp_path / name) as beside:
            beside.write_text(name)
        assert (tmp_path / name).read_text() == name


@pytest.mark.parametrize("moves", range(5))
def test_a_move_that_a_kill_cut_short_is_finished_by_the_next_writer(moves: int, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    with atomic_folder(folder) as new:
        for name in ("a", "b"):
            (new / name).write_text("old")
    child = os.fork()
    if child == 0:
        done, rename = 0, Path.rename

        def rename_or_end(path: Path, target: Path) -> Path:
            nonlocal done
            if done == moves:
                os._exit(0)
            done += 1
            return rename(path, target)

        Path.rename = rename_or_end  # type: ignore[method-assign]
        with atomic_folder(folder) as new:
            for name in ("a", "b"):
                (new / name).write_text("new")
        os._exit(1)
    assert os.waitpid(child, 0)[1] == (256 if moves == 4 else 0)  # four moves are all
    with locked(tmp_path):
        assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "new", "b": "new"}
