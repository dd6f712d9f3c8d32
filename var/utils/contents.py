"""What a file holds in place of its content: nothing, a web page, or a pointer of Git LFS."""

import re

HEAD = 1024  # bytes that `find_substitute` needs

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|title)\b", re.I | re.S)


def find_substitute(head: bytes) -> str | None:
    """Return what stands in place of a binary file's content and what to do, by its first HEAD bytes; None: nothing."""
    if not head:
        return "is an empty file: copy or download it again"
    if head.startswith(_LFS):
        return "is a pointer of Git LFS, not the file that it stands for: fetch that with git lfs pull, or download it"
    if _HTML.match(head):
        return (
            "is a web page (HTML), as a server gives that wants a login or does not have the file: "
            "download it again, from a URL that gives the file itself"
        )
    return None
