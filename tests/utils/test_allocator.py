"""Freed memory that stays in the process, seen by the pages that the system has to clear."""

import subprocess
import sys

import pytest

COUNT_CLEARED_PAGES = """
import resource, sys
from var.utils.allocator import keep_freed_memory

def cleared():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
bytearray(2**26)
before = cleared()
for _ in range(10):
    bytearray(2**26)
print((cleared() - before) * resource.getpagesize())
"""


def cleared_bytes(way: str) -> int:
    found = subprocess.run([sys.executable, "-c", COUNT_CLEARED_PAGES, way], capture_output=True, text=True)
    if found.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


def test_large_pieces_are_taken_again_without_being_cleared_by_the_system() -> None:
    kept, returned = cleared_bytes("keep"), cleared_bytes("return")
    assert kept < 2**24 < 9 * 2**26 < returned
