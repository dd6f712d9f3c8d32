"""Memory that a process frees and takes again, without the system in between."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
LARGEST = 2**31 - 1  # that a C int holds


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed in the process; return whether it was told so.

    Otherwise it returns every large tensor that is freed to the system, which clears the pages of the next one: a
    quarter of the time of decoding an image. So the process stays as large as it was at its peak. Other libraries than
    glibc are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # of musl, macOS, Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
