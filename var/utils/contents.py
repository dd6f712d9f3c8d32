"""What a file holds in place of its content: nothing, a web page, or a pointer of Git LFS."""

import re

HEAD = 1024  # bytes that `find_substitute` needs

_LFS = b"version https://git-lfs.github.com/spec/"
_BOM = b"\xef\xbb\xbf"  # of UTF-8, which some editors put first
_HTML = re.compile(
    rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|title|meta|script|div|p|\?xml|error)\b", re.I | re.S
)


def find_substitute(head: bytes) -> str | None:
    """Return what stands in place of a file's content, by its first HEAD bytes; None: nothing of these."""
    if not head:
        return "it is an empty file"
    head = head.removeprefix(_BOM)
    if not head.strip():
        return "it holds nothing but blanks"
    if head.startswith(_LFS):
        return "it is a pointer of Git LFS, in whose place git lfs pull puts the file itself"
    if _HTML.match(head):
        return "it is a web page (HTML or XML), as a server gives that wants a login or does not have the file"
    return None
