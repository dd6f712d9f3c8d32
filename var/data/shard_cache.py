"""Remote shards on the local disk: fetched whole, once for all processes of a machine, into a bounded folder."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from var.data.transfer import PATIENCE, UnreachableError, copy, is_remote
from var.utils.paths import check_regular
from var.utils.provenance import sha256

POLL = 0.1  # seconds between looks for room in the cache


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
        """Open a shard for reading, after fetching it if necessary.

        Raises OSError: that failed. InputError: a pipe or device.
        """
        if not is_remote(url):
            check_regular(Path(url))
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
