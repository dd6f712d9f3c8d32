"""Functions behind the tabs that generate and edit, without a server."""

import os
import random
import shlex
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image
from tiny import Run, picture

from tokenizer.errors import InputError
from var.app import edit, generate
from var.app.commands import command_line, python_call
from var.app.errors import UNEXPECTED, in_sentences
from var.app.state import AppState, as_they_come
from var.app.uploads import MAX_PIXELS, open_upload, save_zip
from var.pipeline import PipelineOutput, VARPipeline
from var.sampling.params import SamplingParams

SAMPLING = SamplingParams(top_k=0)


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return [image.tobytes() for image in a] == [image.tobytes() for image in b]


def png(image: Image.Image, **options: Any) -> bytes:
    encoded = BytesIO()
    image.save(encoded, format="PNG", **options)
    return encoded.getvalue()


def drawing(image: Image.Image, box: tuple[int, int, int, int] | None) -> dict[str, Any]:
    """What the editor sends of an image that is painted in a box."""
    layer = Image.new("RGBA", image.size)
    if box:
        layer.paste((255, 255, 255, 255), box)
    return {"background": png(image), "layers": [png(layer)]}


def wanted(**changes: Any) -> edit.Edit:
    image, mask = edit.read_drawing(drawing(picture(1, 2), (4, 4, 12, 12)))
    request = edit.Edit("inpaint", image, mask, None, 2, 7, SAMPLING, None, dict.fromkeys(edit.SIDES, 0))
    return replace(request, **changes)


def test_the_images_are_the_pipelines_and_come_once_a_scale(state: AppState) -> None:
    *growth, output = generate.generate(state, [0, 3], 2, 5, SAMPLING)
    assert isinstance(output, PipelineOutput)
    assert same(output.images, state.pipe([0, 3], num=2, seed=5, top_k=0).images)
    assert [len(images) for images in growth] == [4] * len(state.pipe.vqvae.scales)
    assert same(growth[-1], output.images)


@pytest.mark.parametrize(
    ("labels", "num", "message"),
    [([], 1, "no class"), ([0, 1, 3], 6, "18: the page draws 16"), ([0], 0, "at least 1"), ([2], 1, "not one that")],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    state: AppState, labels: list[int], num: int, message: str
) -> None:
    with pytest.raises(gr.Error, match=message):
        list(in_sentences(generate.generate)(state, labels, num, 0, SAMPLING))


def test_the_command_and_the_script_draw_the_same(var: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = VARPipeline.from_pretrained("var-mini").pack()
    state = AppState(pipe, "var-mini", tmp_path, tmp_path)
    chosen = replace(pipe.choose_sampling({}), cfg=2.5, smooth=True)
    command, script = generate.show_settings(state, [1, 207], 1, 3, chosen)
    *_, output = generate.generate(state, [1, 207], 1, 3, chosen)
    assert isinstance(output, PipelineOutput)
    assert var(*shlex.split(command)[1:])[0] == 0
    assert same([Image.open(f"samples/{label}_0.png") for label in (1, 207)], output.images)
    names: dict[str, Any] = {}
    exec(script, names)
    assert same(names["out"].images, output.images)


def test_options_become_words() -> None:
    options = {"class": ["a b", 2], "cfg": 2.0, "smooth": True, "color_match": False, "context": None}
    assert command_line(["var"], options) == "var --class 'a b' --class 2 --cfg 2 --smooth --no-color-match"


def test_a_script_saves_all_images() -> None:
    one, several = 'out.images[0].save("image.png")', 'out.save("samples")'
    for labels, num, expected in (([1], 1, one), ([1, 2], 1, several), ([1], 2, several)):
        assert python_call("var-mini", "", [labels], {"num": num}).endswith(f"\n{expected}")
    assert python_call("var-mini", ".upscale", ["image"], {"num": 4}).endswith('\nout.save("edits")')


def test_painted_pixels_of_any_layer_are_the_mask() -> None:
    both = drawing(picture(0, 1), (0, 0, 4, 4))
    both["layers"] += [None, *drawing(picture(0, 1), (8, 8, 16, 16))["layers"]]
    image, mask = edit.read_drawing(both)
    assert same([image], [picture(0, 1)])
    assert mask.sum() == 4 * 4 + 8 * 8
    assert mask[:4, :4].all()


@pytest.mark.parametrize(
    ("changes", "call"),
    [
        ({}, lambda pipe, e: pipe.inpaint(e.image, e.mask, num=2, seed=7, top_k=0)),
        ({"context": 1.5}, lambda pipe, e: pipe.inpaint(e.image, e.mask, num=2, seed=7, top_k=0, context=1.5)),
        ({"verb": "class", "label": 3}, lambda pipe, e: pipe.edit(e.image, e.mask, 3, num=2, seed=7, top_k=0)),
        (
            {"verb": "outpaint", "room": {"left": 4, "right": 0, "top": 0, "bottom": 0}},
            lambda pipe, e: pipe.outpaint(e.image, left=4, num=2, seed=7, top_k=0),
        ),
        (
            {"verb": "upscale", "image": picture(0, 1, 5)},
            lambda pipe, e: pipe.upscale(e.image, num=2, seed=7, top_k=0),
        ),
    ],
)
def test_an_edit_is_the_pipelines(
    state: AppState, changes: dict[str, Any], call: Callable[[VARPipeline, edit.Edit], Any]
) -> None:
    request = wanted(**changes)
    *_, output = edit.run_edit(state, request)
    assert same(output.images, call(state.pipe, request).images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((16, 16), dtype=bool)}, "nothing is painted"),
        ({"verb": "class"}, "no class chosen"),
        ({"verb": "erase"}, "unknown"),
        ({"num": 9}, "must be in 1..8"),
        ({"seed": -1}, "must be in 0.."),
        ({"seed": None}, "the seed is empty: give a whole number"),
    ],
)
def test_an_edit_that_lacks_something_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wanted(**changes)


def test_the_commands_of_an_edit_do_the_same(var: Run, tmp_path: Path) -> None:
    pipe = VARPipeline.from_pretrained("var-mini").pack()
    state = AppState(pipe, "var-mini", tmp_path, tmp_path)
    request = wanted(sampling=pipe.choose_sampling({}), num=1, label=207, verb="class", context=1.5)
    *_, output = edit.run_edit(state, request)
    request.image.save("image.png")
    Image.fromarray(request.mask).save("mask.png")
    command, script = edit.show_settings(state, request)
    code, printed, err = var(*shlex.split(command)[1:])
    assert code == 0, err
    assert same([Image.open(printed.splitlines()[0])], output.images)
    names: dict[str, Any] = {}
    exec(script, names)
    assert same(names["out"].images, output.images)


def test_a_model_too_small_for_the_hole_is_said(state: AppState) -> None:
    large = picture(1, 1).resize((64, 64))
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:30, 10:20] = True
    warning = edit.find_warning(state, wanted(image=large, mask=mask))
    assert warning is not None
    assert "1x2 of the model's 8x8 pixels and is enlarged 8.0 times" in warning
    assert edit.find_warning(state, wanted()) is None  # 16 px, twice the model's
    room = {"left": 64, "right": 0, "top": 0, "bottom": 0}
    assert "enlarged 16.0 times" in str(edit.find_warning(state, wanted(verb="outpaint", image=large, room=room)))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bad_uploads() -> list[tuple[str, bytes]]:
    """Fifty files that are no images, by their names."""
    rng = random.Random(0)
    whole = png(picture(1, 1))
    jpeg = BytesIO()
    picture(1, 1, 64).save(jpeg, format="JPEG")
    signature = b"\x89PNG\r\n\x1a\n"
    side = int(MAX_PIXELS**0.5) + 1
    bomb = signature + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + whole[33:]
    huge = signature + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 2, 0, 0, 0)) + whole[33:]
    nan = BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(nan, format="TIFF")
    deep = BytesIO()
    Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(deep, format="TIFF")
    texts = [
        b"",
        b"\0",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html></html>",
        b"%PDF-1.4",
        b"PK\3\4",
    ]
    texts += [b"GIF89a", b"BM", b"RIFF....WEBP", b"II*\0", b"\xff\xd8\xff", signature, b"version https://git-lfs"]
    cut = [whole[: len(whole) * part // 12] for part in range(1, 9)]
    noise = [rng.randbytes(200) for _ in range(10)] + [signature + rng.randbytes(100) for _ in range(8)]
    damaged = [whole[:40] + rng.randbytes(30) + whole[70:] for _ in range(6)]
    found = [*texts, *cut, *noise, *damaged, bomb, huge, nan.getvalue(), deep.getvalue()]
    return [(f"upload {n}.png", content) for n, content in enumerate(found)]


def test_bad_uploads_give_sentences(tmp_path: Path) -> None:
    uploads = bad_uploads()
    assert len(uploads) >= 50
    read = in_sentences(edit.read_drawing)
    for name, content in uploads:
        path = tmp_path / name
        path.write_bytes(content)
        for given in (str(path), content):
            with pytest.raises(gr.Error) as caught:
                read({"background": given, "layers": []})
            message = caught.value.message
            assert UNEXPECTED not in message, (name, content[:20])
            assert str(tmp_path) not in message
            assert "\n" not in message


@pytest.mark.parametrize("given", [None, {"background": None, "layers": []}])
def test_no_upload_gives_a_sentence(given: dict[str, Any] | None) -> None:
    with pytest.raises(InputError, match="upload one first"):
        edit.read_drawing(given)


def test_what_is_given_is_no_html() -> None:
    def fail() -> None:
        raise InputError("class '<img src=x onerror=alert(1)>' is unknown")

    with pytest.raises(gr.Error) as caught:
        in_sentences(fail)()
    assert "<" not in caught.value.message


def test_an_unexpected_error_is_logged_and_said_plainly(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("secret")

    with pytest.raises(gr.Error) as caught:
        in_sentences(fail)()
    assert caught.value.message == UNEXPECTED
    assert "secret" in caplog.text


def test_work_ends_when_nobody_waits_for_it() -> None:
    given: list[int] = []

    def work(give: Callable[[int], None]) -> int:
        for number in range(10**9):
            give(number)
            given.append(number)
        return 0

    numbers = as_they_come(work)
    assert next(numbers) == 0
    numbers.close()  # type: ignore[attr-defined]
    before = len(given)
    while len(given) > before:
        before = len(given)
    assert len(given) < 10**9


def test_archives_that_are_old_are_removed(tmp_path: Path) -> None:

    old = Path(save_zip(tmp_path, "old", {}))
    os.utime(old, (0, 0))
    new = Path(save_zip(tmp_path, "new", {"a": picture(0, 0)}))
    assert not old.exists()
    assert new.exists()
    with pytest.raises(InputError):
        open_upload(new)
