"""`var edit VERB IMAGE`: the files that it writes, and that every mistake is one line and exit code 2."""

import inspect
import re
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from helpers import noise
from PIL import Image, ImageChops
from scipy import ndimage
from tiny import Ended, Run, refusal, run

from var.cli import edit_options
from var.cli.edit import EDIT
from var.cli.edit_options import MaskOptions
from var.cli.options import SamplingOptions
from var.editing import windows
from var.editing.edit import upscale as library_upscale
from var.editing.image_masks import overlay
from var.editing.output import EditFolder
from var.editing.params import BlendParams
from var.pipeline import VARPipeline
from var.sampling.generate import generate
from var.sampling.params import SamplingParams

VERBS = list(EDIT.commands)
WIDTH, HEIGHT = 24, 16  # of the image; the model's is 8x8, with 4x4 tokens
BOX = (8, 4, 14, 10)
HALF_A_TOKEN = HEIGHT / 4 / 2  # of a window as large as the image's shorter side, in pixels


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.fixture
def edit(var: Run, model: Path) -> Run:
    """The command in a folder with images and masks, on the tiny model."""
    noise(WIDTH, HEIGHT).save("p.png")
    noise(6, 5).save("small.png")
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, BOX)
    mask.save("mask.png")
    Image.new("L", (WIDTH, HEIGHT)).save("empty.png")
    Image.new("L", (HEIGHT, WIDTH), 255).save("turned.png")
    Path("text.png").write_text("a mask")
    Path("cut.png").write_bytes(Path("p.png").read_bytes()[:300])
    Path("bomb.png").write_bytes(png_that_claims(30000, 30000))

    def call(*arguments: object) -> Ended:
        usual = [] if "--model" in arguments else ["--model", model, "--dtype", "float32"]
        ended = var("edit", *arguments, *(usual if arguments[1:] else []))
        assert all(len(line) < 300 for line in ended[2].splitlines())
        return ended

    return call


def box(corners: tuple[int, ...] = BOX) -> str:
    return ",".join(map(str, corners))


def read(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


def saved(result: tuple[int, str, str], stem: str) -> list[Image.Image]:
    """The numbered images that a successful call says it has written."""
    code, out, err = result
    assert (code, err) == (0, "")
    *paths, _ = out.splitlines()
    found = [re.fullmatch(rf"{stem[:-1]}(-\d+)?_\d+\.png", path) for path in paths]  # -2: of a second edit
    names = [match[0] for match in found if match]
    assert [Path(name).stem.rpartition("_")[2] for name in names] == [str(i) for i in range(len(names))]
    return [read(name) for name in names]


def same(images: list[Image.Image], others: list[Image.Image]) -> bool:
    assert [image.mode for image in images] == ["RGB"] * len(others)
    return [(i.size, i.tobytes()) for i in images] == [(i.size, i.tobytes()) for i in others]


# --- images


def test_files_and_what_is_printed(edit: Run, pipe: VARPipeline) -> None:
    code, out, err = edit("inpaint", "p.png", "--box", box(), "--num", 2, "--out", "deep/folder")
    assert (code, err) == (0, "")
    names = [f"p_inpaint_{name}.png" for name in ("0", "1", "mask", "sheet")]
    *paths, summary = out.splitlines()
    assert paths == [f"deep/folder/{name}" for name in names]
    assert "2 images in" in summary
    assert "model loaded in" in summary
    assert sorted(path.name for path in Path("deep/folder").iterdir()) == sorted(names)
    drawn = pipe.inpaint(read("p.png"), BOX, num=2)
    assert same([read(path) for path in paths[:2]], drawn.images)
    assert not same(drawn.images[:1], drawn.images[1:])
    assert same([read(paths[2])], [overlay(read("p.png"), drawn.mask)])


@pytest.mark.parametrize("verb", ["inpaint", "upscale"])
def test_what_is_finished_stays_when_it_is_stopped(
    edit: Run, pipe: VARPipeline, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def interrupted(self: EditFolder, images: list[Image.Image]) -> None:
        add(self, images)
        signal.raise_signal(signal.SIGINT)

    add = EditFolder.add
    monkeypatch.setattr(EditFolder, "add", interrupted)
    words = ("inpaint", "p.png", "--box", box()) if verb == "inpaint" else ("upscale", "small.png")
    assert edit(*words, "--num", 20) == (130, "", "stopped: 16 of 20 images are in edits\n")
    drawn = pipe.inpaint(read("p.png"), BOX, num=16) if verb == "inpaint" else pipe.upscale(read("small.png"), num=16)
    stem = f"edits/{words[1][:-4]}_{verb}"
    assert same([read(f"{stem}_{i}.png") for i in range(16)], drawn.images)
    assert len(list(Path("edits").iterdir())) == 16
    monkeypatch.undo()


def test_a_second_edit_replaces_nothing(edit: Run, tmp_path: Path) -> None:
    command = ("inpaint", "p.png", "--box", box(), "--num", 1)
    for name, seed in (("p_inpaint", 0), ("p_inpaint-2", 1), ("p_inpaint-3", 2)):
        before = {path: path.read_bytes() for path in Path("edits").glob("*")}
        code, out, _ = edit(*command, "--seed", seed)
        assert code == 0
        assert out.splitlines()[-1].startswith("1 image in ")
        assert out.splitlines()[:-1] == [f"edits/{name}_{part}.png" for part in ("0", "mask", "sheet")]
        assert all(path.read_bytes() == content for path, content in before.items())


def test_by_default_four_results_in_the_folder_edits(edit: Run, pipe: VARPipeline) -> None:
    images = saved(edit("inpaint", "p.png", "--mask", "mask.png"), "edits/p_inpaint_")
    assert same(images, pipe.inpaint(read("p.png"), BOX, num=4).images)


def test_several_boxes(edit: Run, pipe: VARPipeline) -> None:
    boxes = [BOX, (0, 12, 5, 16)]
    given = [word for corners in boxes for word in ("--box", box(corners))]
    (image,) = saved(edit("inpaint", "p.png", *given, "--num", 1), "edits/p_inpaint_")
    assert same([image], pipe.inpaint(read("p.png"), boxes).images)
    assert not same([image], pipe.inpaint(read("p.png"), BOX).images)


@pytest.mark.parametrize("feather", [None, 0, 1.5, 4])
def test_outside_mask_and_feather_the_image_stays_bit_for_bit(edit: Run, feather: float | None) -> None:
    options = () if feather is None else ("--feather", feather)
    changed = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for image in saved(edit("inpaint", "p.png", "--mask", "mask.png", *options), "edits/p_inpaint_"):
        changed |= np.asarray(ImageChops.difference(image, read("p.png"))).any(axis=-1)
    distance = ndimage.distance_transform_edt(np.asarray(read("mask.png")) == 0)
    reach = HALF_A_TOKEN if feather is None else feather
    assert not changed[distance >= reach + 1].any()
    for ring in (distance == 0, (distance > 0) & (distance <= reach)):
        assert not ring.any() or changed[ring].mean() > 0.5


CHANGES: list[tuple[tuple[object, ...], dict[str, Any]]] = [
    (("--seed", 1), {"seed": 1}),
    (("--class", 3), {"label": 3}),
    (("--class", "red fox"), {"label": 0}),
    (("--class", 3, "--cfg", 0), {"label": 3, "cfg": 0.0}),
    (("--top-k", 1), {"top_k": 1}),
    (("--top-p", 0.01), {"top_p": 0.01}),
    (("--smooth",), {"smooth": True}),
    (("--dilate", 0), {"dilate": 0}),
    (("--feather", 0), {"feather": 0.0}),
    (("--no-hide-masked",), {"hide_masked": False}),
    (("--no-composite",), {"composite": False}),
    (("--no-color-match",), {"color_match": False}),
    (("--context", 1.5), {"context": 1.5}),
]


@pytest.mark.parametrize(("options", "changes"), CHANGES, ids=lambda value: " ".join(map(str, value)))
def test_options_are_the_librarys(
    edit: Run, pipe: VARPipeline, options: tuple[object, ...], changes: dict[str, Any]
) -> None:
    images = saved(edit("inpaint", "p.png", "--box", box(), *options), "edits/p_inpaint_")
    image = read("p.png")
    assert same(images, pipe.inpaint(image, BOX, num=4, **changes).images)
    assert not same(images, pipe.inpaint(image, BOX, num=4).images)


def test_switched_on_is_the_default(edit: Run, pipe: VARPipeline) -> None:
    on = ("--hide-masked", "--composite", "--color-match", "--seed", 0, "--top-k", 0, "--top-p", 0.96, "--dilate", 1)
    images = saved(edit("inpaint", "p.png", "--box", box(), *on), "edits/p_inpaint_")
    assert same(images, pipe.inpaint(read("p.png"), BOX, num=4).images)


def rgba(path: Path) -> None:
    noise(WIDTH, HEIGHT, bands=4).save(path)


def palette(path: Path) -> None:
    image = noise(WIDTH, HEIGHT).quantize(16)
    image.save(path, transparency=3)


def turned_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown upright after a quarter turn
    noise(HEIGHT, WIDTH).save(path, exif=exif)


@pytest.mark.parametrize(("make", "name"), [(rgba, "q.png"), (palette, "q.png"), (turned_jpeg, "q.jpg")])
def test_images_of_other_modes(edit: Run, pipe: VARPipeline, make: Callable[[Path], None], name: str) -> None:
    make(Path(name))
    image = read(name)
    assert image.mode != "RGB" or image.size == (HEIGHT, WIDTH)
    images = saved(edit("inpaint", name, "--mask", "mask.png", "--num", 2), "edits/q_inpaint_")
    drawn = pipe.inpaint(image, BOX, num=2)
    assert same(images, drawn.images)
    assert images[0].size == (WIDTH, HEIGHT)
    assert not np.asarray(ImageChops.difference(images[0], drawn.image))[12:].any()
    assert "exif" not in read("edits/q_inpaint_0.png").info  # nothing that would turn it once more


@pytest.mark.parametrize("method", [None, "auto", "shrink", "slide"])
def test_outpaint(edit: Run, pipe: VARPipeline, method: str | None) -> None:
    options = () if method is None else ("--method", method)
    room = {"left": 2, "right": 10, "top": 3, "bottom": 1}
    given = [word for side, pixels in room.items() for word in (f"--{side}", pixels)]
    images = saved(edit("outpaint", "p.png", *given, "--num", 2, "--class", 3, *options), "edits/p_outpaint_")
    drawn = pipe.outpaint(read("p.png"), **room, label=3, num=2, method=method or "auto")
    assert same(images, drawn.images)
    assert images[0].size == (WIDTH + 12, HEIGHT + 4)
    assert same([read("edits/p_outpaint_mask.png")], [overlay(drawn.image, drawn.mask)])
    assert Path("edits/p_outpaint_sheet.png").is_file()


def test_methods_of_outpainting_differ(edit: Run) -> None:
    shrink, slide, auto = (
        saved(edit("outpaint", "p.png", "--right", 30, "--method", method), "edits/p_outpaint_")
        for method in ("shrink", "slide", "auto")
    )
    assert not same(shrink, slide)
    assert same(slide, auto)


@pytest.mark.parametrize("method", ["shrink", "slide"])
def test_outpaint_keeps_the_image_bit_for_bit(edit: Run, method: str) -> None:
    """Also along the edges that are not extended."""
    (image,) = saved(
        edit("outpaint", "p.png", "--right", 8, "--num", 1, "--feather", 2, "--method", method), "edits/p_outpaint_"
    )
    changed = np.asarray(ImageChops.difference(image.crop((0, 0, WIDTH, HEIGHT)), read("p.png"))).any(axis=-1)
    assert not changed[:, : WIDTH - 2].any()


def test_class(edit: Run, pipe: VARPipeline) -> None:
    images = saved(
        edit("class", "p.png", "--class", "tabby cat", "--mask", "mask.png", "--context", 2), "edits/p_class_"
    )
    assert same(images, pipe.edit(read("p.png"), BOX, 1, num=4, context=2.0).images)
    assert not same(images, pipe.edit(read("p.png"), BOX, 0, num=4, context=2.0).images)
    assert sorted(path.name for path in Path("edits").iterdir()) == [
        f"p_class_{name}.png" for name in ("0", "1", "2", "3", "mask", "sheet")
    ]


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ((), {}),
        (("--class", 3, "--seed", 2), {"label": 3, "seed": 2}),
        (("--scales", 1), {"num_scales": 1}),
        (("--no-consistent",), {"consistent": False}),
    ],
)
def test_upscale(edit: Run, pipe: VARPipeline, options: tuple[object, ...], changes: dict[str, Any]) -> None:
    images = saved(edit("upscale", "small.png", *options), "edits/small_upscale_")
    assert same(images, pipe.upscale(read("small.png"), num=4, **changes).images)
    assert not changes or not same(images, pipe.upscale(read("small.png"), num=4).images)
    assert images[0].size == (8, 7)
    assert sorted(path.name for path in Path("edits").iterdir()) == [
        f"small_upscale_{name}.png" for name in ("0", "1", "2", "3", "sheet")
    ]


# --- the sheet


def tiles(sheet: Image.Image, size: tuple[int, int], columns: int) -> list[Image.Image]:
    """The tiles of a sheet of one row."""
    assert sheet.size == (columns * (size[0] + 2) - 2, size[1])
    return [sheet.crop((x, 0, x + size[0], size[1])) for x in range(0, sheet.width, size[0] + 2)]


def test_the_sheet_shows_input_mask_and_results(edit: Run) -> None:
    images = saved(edit("inpaint", "p.png", "--mask", "mask.png", "--num", 2), "edits/p_inpaint_")
    size = (WIDTH * 8, HEIGHT * 8)  # enlarged to be seen
    shown = tiles(read("edits/p_inpaint_sheet.png"), size, columns=4)
    expected = [read("p.png"), read("edits/p_inpaint_mask.png"), *images]
    assert same(shown, [image.resize(size, Image.Resampling.BICUBIC) for image in expected])


def test_the_sheet_of_upscale_shows_the_input_as_it_is_and_enlarged(edit: Run) -> None:
    images = saved(edit("upscale", "small.png", "--num", 1), "edits/small_upscale_")
    size = (8 * 19, 7 * 19)
    shown = tiles(read("edits/small_upscale_sheet.png"), size, columns=3)
    small = read("small.png")
    bicubic = small.resize((8, 7), Image.Resampling.BICUBIC)
    assert same(shown[:1], [small.resize(size, Image.Resampling.NEAREST)])
    assert same(shown[1:], [image.resize(size, Image.Resampling.BICUBIC) for image in (bicubic, *images)])


@pytest.mark.parametrize(
    ("size", "tile"), [((1300, 650), (512, 256)), ((200, 150), (200, 150)), ((1000, 1), (512, 1)), ((2, 90), (11, 512))]
)
def test_tiles_of_images_of_any_size(edit: Run, size: tuple[int, int], tile: tuple[int, int]) -> None:
    noise(*size).save("q.png")
    (image,) = saved(edit("inpaint", "q.png", "--box", "0,0,1,1", "--num", 1), "edits/q_inpaint_")
    assert image.size == size
    assert len(tiles(read("edits/q_inpaint_sheet.png"), tile, columns=3)) == 3


def test_many_results_take_several_rows(edit: Run) -> None:
    saved(edit("inpaint", "p.png", "--mask", "mask.png", "--num", 9), "edits/p_inpaint_")
    assert read("edits/p_inpaint_sheet.png").size == (8 * (WIDTH * 8 + 2) - 2, 2 * (HEIGHT * 8 + 2) - 2)


# --- names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a b.png", "a b"),
        (".png", "png"),
        ("sub/a.b.png", "a.b"),
        ("ö%s{}.png", "ö%s{}"),
        ("x" * 250 + ".png", "x" * 50),
    ],
)
def test_names_of_images(edit: Run, name: str, stem: str) -> None:
    Path("sub").mkdir()
    noise(WIDTH, HEIGHT).save(name, format="PNG")
    assert len(saved(edit("inpaint", name, "--box", box()), f"edits/{stem}_inpaint_")) == 4
    assert sorted(path.name for path in Path("edits").iterdir()) == [
        f"{stem}_inpaint_{part}.png" for part in ("0", "1", "2", "3", "mask", "sheet")
    ]


# --- mistakes


MASK = ("--box", box())
NOWHERE = ("--model", "no/such/folder")  # named where the mistake must be told before a model is looked for


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("inpaint", "p.png"), ("either by --mask FILE or by --box",)),
        (("inpaint", "p.png", "--mask", "mask.png", *MASK), ("either by --mask FILE or by --box",)),
        (("class", "p.png", "--class", 3), ("either by --mask FILE or by --box",)),
        (("inpaint", "p.png", "--box", "1,2,3"), ("--box '1,2,3'", "four whole numbers")),
        (("inpaint", "p.png", "--box", "a,b,c,d"), ("--box 'a,b,c,d'", "four whole numbers")),
        (("inpaint", "p.png", "--box", "1,2,3.5,4"), ("--box '1,2,3.5,4'", "four whole numbers")),
        (("inpaint", "p.png", *MASK, "--box", ""), ("--box ''", "four whole numbers")),
        (("inpaint", "p.png", "--box", "0,0,25,4"), ("box 0,0,25,4", "24x16 px")),
        (("inpaint", "p.png", "--box=-1,0,2,4"), ("box -1,0,2,4", "24x16 px")),
        (("inpaint", "p.png", "--box", f"0,0,{10**30},4"), (f"box 0,0,{10**30},4", "24x16 px")),
        (("inpaint", "p.png", "--box", "4,4,4,8"), ("box 4,4,4,8", "left < right")),
        (("inpaint", "p.png", *MASK, "--box", "8,8,4,4"), ("box 8,8,4,4", "left < right")),
        (("inpaint", "p.png", "--mask", "turned.png"), ("16x24 px", "24x16 px", "the image's size")),
        (("inpaint", "p.png", "--mask", "empty.png"), ("mask empty.png is empty", "white marks what is filled")),
        (("class", "p.png", "--class", 3, "--mask", "empty.png"), ("mask empty.png is empty",)),
        (("inpaint", "p.png", "--mask", "none.png"), ("cannot read none.png", "No such file")),
        (("inpaint", "p.png", "--mask", "."), ("cannot read .", "folder")),
        (("inpaint", "p.png", "--mask", "text.png"), ("text.png is not an image",)),
        (("inpaint", "p.png", "--mask", "cut.png"), ("cannot read cut.png",)),
        (("inpaint", "p.png", "--mask", "bomb.png"), ("bomb.png", "900000000 pixels")),
        (("inpaint", "none.png", *MASK), ("cannot read none.png: No such file or directory: give another image",)),
        (("inpaint", "text.png", *MASK), ("text.png is not an image",)),
        (("inpaint", "cut.png", *MASK), ("cannot read cut.png",)),
        (("inpaint", "bomb.png", *MASK), ("bomb.png", "900000000 pixels")),
        (("outpaint", "bomb.png", "--left", 3), ("bomb.png", "900000000 pixels")),
        (("upscale", "text.png"), ("text.png is not an image",)),
        (("outpaint", "p.png"), ("no extension given",)),
        (("outpaint", "p.png", "--left", 0), ("no extension given",)),
        (("outpaint", "p.png", "--left", 3, "--top=-1"), ("top=-1", "at least 0")),
        (("outpaint", "p.png", "--right", 10**6), ("24x16 px", "1000024x16 px", "too large")),
        (("outpaint", "p.png", "--right", 10**30), ("too large",)),
        (("outpaint", "p.png", "--left", 3, "--method", "stretch"), ("--method", "stretch", "auto", "shrink", "slide")),
        (("outpaint", "p.png", "--left", 3, "--no-hide-masked"), ("No such option", "--no-hide-masked")),
        (("inpaint", "p.png", *MASK, "--num", 0), ("num=0", "1..100")),
        (("inpaint", "p.png", *MASK, "--num", 101), ("num=101", "1..100")),
        (("upscale", "small.png", "--num", "x"), ("--num", "integer")),
        (("inpaint", "p.png", *MASK, "--seed", -1), ("seed=-1", "in 0..")),
        (("inpaint", "p.png", *MASK, "--cfg", "nan"), ("cfg=nan",)),
        (("outpaint", "p.png", "--left", 3, "--cfg", -1), ("cfg=-1.0",)),
        (("upscale", "small.png", "--top-k", -3), ("top_k=-3", "0 (keeps all tokens)")),
        (("inpaint", "p.png", *MASK, "--top-p", 2), ("top_p=2.0", "[0, 1]")),
        (("inpaint", "p.png", *MASK, "--dilate", -1), ("dilate=-1", "0 or more")),
        (("outpaint", "p.png", "--left", 3, "--feather", -1), ("feather=-1", "0 (a hard edge)")),
        (("inpaint", "p.png", *MASK, "--feather", "nan"), ("feather=nan",)),
        (("inpaint", "p.png", *MASK, "--context", 0.5), ("context=0.5", "1 (the mask alone)")),
        (("inpaint", "p.png", *MASK, "--context", "nan"), ("context=nan",)),
        (("upscale", "small.png", "--scales", 0), ("num_scales=0", "in 1..")),
        (("inpaint", "p.png", *MASK, "--nmu", 3), ("No such option", "--nmu")),
        (("upscale", "small.png", "--mask", "mask.png"), ("No such option", "--mask")),
        (("class", "p.png", *MASK), ("Missing option", "--class")),
        (("inpaint", *MASK), ("Missing argument", "IMAGE")),
        (("inpiant", "p.png"), ("No such command 'inpiant'",)),
        (("inpaint", "p.png", *MASK, "--out", "p.png"), ("cannot write p.png", "another folder")),
        (("inpaint", "none.png", "--mask", "none.png", "--out", "p.png/deep"), ("cannot write p.png/deep",)),
        (("inpaint", "p.png", *MASK, "--out", "/proc/x"), ("cannot write /proc/x", "another folder")),
        (("inpaint", "p.png", *MASK), ("'no/such/folder'", "give a model folder")),
        (("inpaint", "p.png", *MASK, "--device", "gpu"), ("device 'gpu'", "take cpu")),
        (("inpaint", "p.png", *MASK, "--dtype", "half"), ("dtype 'half'",)),
    ],
)
def test_mistakes_that_no_model_is_needed_to_see(
    edit: Run, arguments: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    before = sorted(Path.cwd().iterdir())
    refusal(edit(*arguments, *(NOWHERE if arguments else ())), *parts)
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("inpaint", "p.png", *MASK, "--class", 5), ("class 5 is not one that this model was trained on", "0 red fox")),
        (("class", "p.png", *MASK, "--class", -1), ("class -1",)),
        (("class", "p.png", *MASK, "--class", 2), ("class 2 is not one that this model was trained on", "0 red fox")),
        (("class", "p.png", *MASK, "--class", "red foks"), ("'red foks'", "did you mean 'red fox'")),
        (("upscale", "small.png", "--class", "zebra"), ("'zebra'", "this model knows 0 red fox")),
        (("outpaint", "p.png", "--left", 3, "--class", ""), ("class ''",)),
        (("upscale", "p.png"), ("24x16 px", "smaller than the model's, 8x8 px")),
        (("upscale", "small.png", "--scales", 4), ("num_scales=4", "1..3")),
    ],
)
def test_mistakes_that_the_model_tells(edit: Run, arguments: tuple[object, ...], parts: tuple[str, ...]) -> None:
    before = sorted(Path.cwd().iterdir())
    refusal(edit(*arguments), *parts)
    assert sorted(Path.cwd().iterdir()) == before


def test_what_cannot_be_written_leaves_nothing_half_done(edit: Run) -> None:
    Path("edits").mkdir()
    Path("edits/p_inpaint_1.png").symlink_to("/proc/nothing/there.png")
    refusal(edit("inpaint", "p.png", *MASK), "cannot write edits/p_inpaint_1.png")
    assert sorted(path.name for path in Path("edits").iterdir()) == ["p_inpaint_0.png", "p_inpaint_1.png"]
    read("edits/p_inpaint_0.png")


# --- help


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(edit: Run, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = edit(verb, "--help")
    assert (code, err) == (0, "")
    assert f"var edit {verb} [OPTIONS]" in out
    holed, masked = verb != "upscale", verb in ("inpaint", "class")
    for option in ("--class", "--num", "--seed", "--cfg", "--top-k", "--top-p", "--smooth", "--model", "--out"):
        assert f"{option} " in out
    for option in ("--dilate", "--feather", "--no-composite", "--no-color-match"):
        assert (f"{option} " in out) == holed
    for option in ("--mask", "--box", "--context", "--no-hide-masked"):
        assert (f"{option} " in out) == masked


def test_help_of_outpaint_names_and_tells_both_methods(edit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = edit("outpaint", "--help")
    for part in ("auto|shrink|slide", "shrink-and-place", "slides outwards", "large extensions"):
        assert part in out


def test_help_tells_the_librarys_defaults() -> None:
    """They are not written twice in the code, but they are in the help."""

    asked = get_type_hints(SamplingOptions, include_extras=True) | get_type_hints(MaskOptions, include_extras=True)

    def told(alias: Any) -> str:
        return get_args(alias)[1].help.rpartition("Default: ")[2].rstrip(".")

    def told_of_models(alias: Any) -> str:
        return told(alias).removeprefix("the model's, else ")

    params = SamplingParams()
    drawn, redrawn = inspect.signature(generate).parameters, inspect.signature(BlendParams).parameters
    enlarged = inspect.signature(library_upscale).parameters
    words = {True: "on", False: "off"}
    assert SamplingOptions().seed == drawn["seed"].default
    assert told_of_models(asked["top_k"]) == str(params.top_k)
    assert told_of_models(asked["top_p"]) == str(params.top_p)
    assert told_of_models(asked["cfg"]) == f"{params.cfg:g}"
    assert told(asked["dilate"]) == str(redrawn["dilate"].default)
    for name in ("hide_masked", "composite", "color_match"):
        assert told(asked[name]) == words[redrawn[name].default]
    assert told(edit_options.Consistent) == words[enlarged["consistent"].default]
    assert redrawn["feather"].default is enlarged["num_scales"].default is None  # told in words
    methods = get_args(get_args(get_args(edit_options.Method)[0])[0])
    assert methods == windows.METHODS
    assert inspect.signature(VARPipeline.outpaint).parameters["method"].default == "auto"


# --- a process of its own


def test_the_module(edit: Run, model: Path, pipe: VARPipeline) -> None:
    shared = ("-m", "var", "edit", "inpaint", "p.png", "--model", model, "--dtype", "float32", "--num", 1)
    done = run(*shared, "--mask", "mask.png", cwd=Path.cwd())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:-1] == [f"edits/p_inpaint_{name}.png" for name in ("0", "mask", "sheet")]
    assert same([read("edits/p_inpaint_0.png")], pipe.inpaint(read("p.png"), BOX).images)
    failed = run(*shared, "--mask", "empty.png", cwd=Path.cwd())
    assert (failed.returncode, failed.stdout) == (2, "")
    assert len(failed.stderr.splitlines()) == 1
