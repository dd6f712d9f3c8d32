"""Images that come from a browser: opened within bounds; and files that go there."""

import tempfile
import time
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tokenizer.errors import InputError
from var.utils.images import open_image, to_rgb

MAX_BYTES = 20 * 2**20  # of an upload
MAX_PIXELS = 2**24  # of an upload, 4096 x 4096
KEPT_SECONDS = 1800  # for which a file can be downloaded
HELD_UPLOADS = 8  # drawings of all visitors that are held in memory until they are sent


def open_upload(given: str | Path | bytes | None, keep_alpha: bool = False) -> Image.Image:
    """Read an uploaded image, a file or its content: RGB, upright; with keep_alpha as it is stored.

    Raises InputError: none, not an image, damaged, too many bytes or pixels; messages have the file's name alone.
    """
    if given is None:
        raise InputError("no image given: upload one first")
    if isinstance(given, bytes):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "the drawing"
            file.write_bytes(given)
            return open_upload(file, keep_alpha)
    path = Path(given)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: at most {MAX_BYTES:,} are read")
        image = open_image(path, MAX_PIXELS)
        return image if keep_alpha else to_rgb(image)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from error


class _HeldUploads(dict[str, Any]):
    """The drawings that editors sent ahead of an event; the oldest are dropped, so that memory is bounded."""

    def __setitem__(self, key: str, value: Any) -> None:
        sizes = [len(part) for part in (value.background, value.composite, *value.layers) if part is not None]
        if sum(sizes) > 3 * MAX_BYTES:
            self.pop(key, None)
            raise InputError("the drawing is too large: give a smaller image")
        super().__setitem__(key, value)
        for oldest in list(self)[:-HELD_UPLOADS]:
            del self[oldest]


def image_upload(elem_id: str) -> gr.Image:
    """Add a place for an image; an event gets the path of the upload, which gradio would decode without a bound."""
    component = gr.Image(type="filepath", label="Image", sources=["upload", "clipboard"], height=260, elem_id=elem_id)
    component.preprocess = lambda payload: payload and payload.path
    return component


def take_drawing(editor: gr.ImageEditor) -> gr.ImageEditor:
    """Have an event get the encoded background and layers of an editor as they came: paths or bytes."""
    editor.blob_storage = _HeldUploads()

    def pass_on(payload: Any) -> dict[str, Any] | None:
        if payload is None:
            return None
        if payload.id is not None:
            payload = editor.blob_storage.pop(payload.id, None)
        if payload is None:
            return None
        return {"background": _encoded(payload.background), "layers": [_encoded(each) for each in payload.layers]}

    editor.preprocess = pass_on
    return editor


def _encoded(part: Any) -> str | bytes | None:
    return part if part is None or isinstance(part, bytes) else part.path


def save_zip(folder: Path, name: str, files: Mapping[str, Image.Image]) -> str:
    """Write images as PNG into an archive in the page's folder, from where older ones are removed; its path."""
    for old in folder.glob("*/*.zip"):
        if old.stat().st_mtime < time.time() - KEPT_SECONDS:
            old.unlink(missing_ok=True)
            old.parent.rmdir()
    path = Path(tempfile.mkdtemp(dir=folder)) / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file, image in files.items():
            encoded = BytesIO()
            image.save(encoded, format="PNG")
            archive.writestr(f"{file}.png", encoded.getvalue())
    return str(path)
