"""VARPipeline: what users import."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers import CLASSES, SIDES, VOCAB, mask_of, noise, normal, refused, small_var, small_vqvae
from PIL import Image
from tiny import NAMES, tiny_pipeline

import var
from tokenizer.scales import SCALES_256, SCALES_512
from tokenizer.vqvae import VQVAE
from var.editing.edit import inpaint_windows, upscale
from var.editing.params import BlendParams
from var.editing.windows import bounding_square, slide_windows, window_around
from var.hub.checkpoint import load_tokenizer, save_model
from var.hub.load import find_folder
from var.hub.presets import SHIPPED
from var.pipeline import EditOutput, PipelineOutput, VARPipeline
from var.sampling.generate import generate
from var.sampling.params import SamplingParams, apply_options
from var.sampling.steps import ScaleOutput
from var.utils.images import to_pil, to_rgb


def same_images(a: PipelineOutput, b: PipelineOutput) -> bool:
    return a.labels == b.labels and a.indices == b.indices and torch.equal(a.tokens, b.tokens)


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


# --- drawing


def test_the_public_name() -> None:
    assert var.VARPipeline is VARPipeline
    with pytest.raises(AttributeError, match="Pipeline"):
        var.Pipeline  # noqa: B018


def test_images_come_in_the_order_asked_for(pipe: VARPipeline) -> None:
    out = pipe([3, "red fox", 3], num=2, top_k=0, cfg=1.0)
    assert out.labels == [3, 3, 0, 0, 3, 3]
    assert out.indices == [0, 1, 0, 1, 2, 3]
    assert [(image.mode, image.size) for image in out.images] == [("RGB", (8, 8))] * 6
    assert (out.tokens.dtype, tuple(out.tokens.shape)) == (torch.int64, (6, 21))
    assert len({tuple(row) for row in out.tokens.tolist()}) == 6  # each its own
    assert out.intermediates is None


def test_one_class_without_a_list(pipe: VARPipeline) -> None:
    assert pixels(pipe(3).images) == pixels(pipe([3]).images) == pixels(pipe(["3"]).images) == pixels(pipe("3").images)
    assert same_images(pipe("red fox"), pipe(0))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_images_are_the_same_whatever_the_batch_size(pipe: VARPipeline, batch_size: int) -> None:
    whole, parts = pipe([3, 0, 1], num=3, seed=7), pipe([3, 0, 1], num=3, seed=7, batch_size=batch_size)
    assert same_images(whole, parts)


def test_an_image_does_not_depend_on_what_else_is_asked_for(pipe: VARPipeline) -> None:
    alone, among = pipe(3, num=2), pipe([0, 3, 1], num=4)
    assert torch.equal(alone.tokens, among.tokens[4:6])


def test_the_seed_makes_the_image(pipe: VARPipeline) -> None:
    torch.manual_seed(1)
    first = pipe(3, num=2, seed=5)
    torch.manual_seed(2)
    assert same_images(first, pipe(3, num=2, seed=5))
    assert not torch.equal(first.tokens, pipe(3, num=2, seed=6).tokens)


def test_options_reach_the_sampler(pipe: VARPipeline) -> None:
    sampling = SamplingParams(cfg=2.5, top_k=9, top_p=0.5, smooth=True)
    expected = generate(pipe.model, pipe.vqvae, [3, 3], sampling, seed=3)
    out = pipe(3, num=2, seed=3, **sampling.to_dict())
    assert torch.equal(out.tokens, expected.tokens)
    assert pixels(out.images) == pixels(to_pil(expected.images))


def test_what_is_not_asked_for_is_the_models_own_default(pipe: VARPipeline, tmp_path: Path) -> None:
    params = SamplingParams(cfg=2.5, top_k=9, top_p=0.5, smooth=True)
    VARPipeline(pipe.model, pipe.vqvae, pipe.classes, params).save_pretrained(tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "transformer" / "config.json").read_text())["sampling"]
    assert stored == {"cfg": 2.5, "top_k": 9, "top_p": 0.5, "smooth": True}
    loaded = VARPipeline.from_pretrained(tmp_path / "model", dtype="float32")
    assert loaded.sampling == params
    assert same_images(loaded(3, num=2), pipe(3, num=2, **params.to_dict()))
    asked = params.to_dict() | {"cfg": 0.0, "smooth": False}
    assert same_images(loaded(3, num=2, cfg=0.0, smooth=False), pipe(3, num=2, **asked))
    assert same_images(pipe(3), pipe(3, **SamplingParams(top_k=0).to_dict()))  # it has fewer tokens than 900
    image, box = to_pil(normal(1, 3, 8, 8).clamp(-1, 1))[0], (2, 2, 6, 6)
    edits = [each.inpaint(image, box, **more).images for each, more in ((loaded, {}), (pipe, params.to_dict()))]
    assert pixels(edits[0]) == pixels(edits[1])


def test_a_models_own_window_and_temperature(pipe: VARPipeline, tmp_path: Path) -> None:
    params = SamplingParams(top_k=9, cfg_scales=(1, 1), temperature=(1.0, 0.5, 0.7))
    VARPipeline(pipe.model, pipe.vqvae, pipe.classes, params).save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", dtype="float32")
    assert loaded.sampling == params
    for out, sampling in ((loaded(3), params), (loaded(3, temperature=1), replace(params, temperature=1.0))):
        assert torch.equal(out.tokens, generate(pipe.model, pipe.vqvae, [3], sampling).tokens)


def test_edits_take_a_window_and_temperatures(pipe: VARPipeline) -> None:
    image, box = to_pil(normal(1, 3, 8, 8).clamp(-1, 1))[0], (2, 2, 6, 6)
    plain = pipe.inpaint(image, box, 3, top_k=0)
    assert pixels(pipe.inpaint(image, box, 3, top_k=0, cfg_scales=(0, 2), temperature=1).images) == pixels(plain.images)
    assert pixels(pipe.inpaint(image, box, 3, top_k=0, temperature=(9, 9, 9)).images) != pixels(plain.images)
    with refused("cfg_scales=[0, 3] must be in 0..2"):
        pipe.inpaint(image, box, 3, cfg_scales=(0, 3))


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"cfg": -1}, "cfg=-1"),
        ({"top_k": "5"}, "top_k='5'"),
        ({"cfg_scales": [2, 1]}, "sampling: cfg_scales=[2, 1]"),
        ({"cfg_scales": [0, 9]}, "transformer: sampling: cfg_scales=[0, 9] must be in 0..2"),
        ({"temperature": [1, 1]}, "transformer: sampling: temperature=[1, 1]"),
        ({"use_scales": [1, 4]}, "transformer: sampling: use_scales=[1, 4] leaves scales out"),
        ({"temperature": {"0": 1}}, "sampling: temperature={'0': 1}"),
        ({"heat": 1.0}, "must map cfg, top_k, top_p, smooth, cfg_scales, temperature, use_scales"),
        ([1], "must map"),
    ],
)
def test_sampling_of_a_folder_that_cannot_work(pipe: VARPipeline, tmp_path: Path, entry: object, part: str) -> None:
    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling": entry}))
    with refused(part):
        VARPipeline.from_pretrained(tmp_path / "model")


def test_sampling_that_does_not_fit_the_model_makes_no_pipeline(pipe: VARPipeline) -> None:
    with refused("cfg_scales=[0, 9] must be in 0..2"):
        VARPipeline(pipe.model, pipe.vqvae, sampling=SamplingParams(cfg_scales=(0, 9)))


def test_edits_draw_all_scales_whatever_the_models_own_default() -> None:
    model, vqvae = small_var(scale_drop=0.5), small_vqvae()
    pipe = VARPipeline(model, vqvae, sampling=SamplingParams(top_k=9, use_scales=(1, 4)))
    plain = VARPipeline(model, vqvae, sampling=SamplingParams(top_k=9))
    assert pipe(3).tokens.shape == (1, 17)
    image, box = noise(20, 12), (2, 2, 6, 6)
    assert pixels(pipe.inpaint(image, box, 3).images) == pixels(plain.inpaint(image, box, 3).images)
    assert pixels(pipe.outpaint(image, left=4).images) == pixels(plain.outpaint(image, left=4).images)
    small = noise(4, 4)
    assert pixels(pipe.upscale(small).images) == pixels(plain.upscale(small).images)
    for edit in (lambda **given: pipe.inpaint(image, box, 3, **given), lambda **given: pipe.upscale(small, **given)):
        with refused("use_scales", "an edit keeps"):
            edit(use_scales=(1, 4))


def test_the_image_after_every_scale(pipe: VARPipeline) -> None:
    out = pipe([3, 0], num=2, intermediates=True, batch_size=3)
    assert out.intermediates is not None
    assert [len(stages) for stages in out.intermediates] == [len(SIDES)] * 4
    assert pixels([stages[-1] for stages in out.intermediates]) == pixels(out.images)
    for k in range(len(SIDES)):
        decoded = to_pil(pipe.vqvae.decode(out.tokens, num_scales=k + 1))
        assert pixels([stages[k] for stages in out.intermediates]) == pixels(decoded)


def test_the_images_of_every_scale_are_shown_while_they_are_drawn(pipe: VARPipeline) -> None:
    seen: list[ScaleOutput] = []
    out = pipe([3, 0], num=2, intermediates=True, batch_size=3, on_scale=seen.append)
    assert out.intermediates is not None
    plain = pipe([3, 0], num=2, batch_size=3)
    assert same_images(out, plain)
    assert [(each.start, each.scale, each.num_scales) for each in seen] == [(b, k, 3) for b in (0, 3) for k in range(3)]
    assert [each.labels for each in seen] == [[3, 3, 0]] * 3 + [[0]] * 3
    assert [each.indices for each in seen] == [[0, 1, 0]] * 3 + [[1]] * 3
    for each in seen:
        kept = out.intermediates[each.start : each.start + len(each.labels)]
        assert pixels(each.images) == pixels([stages[each.scale] for stages in kept])


def test_images_are_decoded_only_where_they_are_read(pipe: VARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    pixels_of = VQVAE.pixels
    monkeypatch.setattr(VQVAE, "pixels", lambda self, f_hat: decoded.append(len(f_hat)) or pixels_of(self, f_hat))
    pipe(3, on_scale=lambda shown: shown.images[0] if shown.scale == 1 else None)
    assert decoded == [1, 1]  # that scale, and the result


@pytest.mark.parametrize("batch_size", [2, 3])
def test_progress_counts_images(pipe: VARPipeline, batch_size: int) -> None:
    seen: list[tuple[float, int]] = []
    pipe([3, 0], num=2, batch_size=batch_size, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {4}
    done = [each for each, _ in seen]
    assert done == sorted(done)
    assert {float(batch_size), 4.0} <= set(done)
    assert len(done) == 2 * len(SIDES)
    assert done[0] == batch_size / 21


def test_progress_of_edits(pipe: VARPipeline) -> None:
    image, seen = noise(20, 12), []

    def count(done: float, total: int) -> None:
        seen.append((done, total))

    pipe.inpaint(image, (2, 2, 6, 6), num=2, progress=count)
    assert (len(seen), seen[-1]) == (3, (2, 2))
    seen.clear()
    pipe.outpaint(image, left=30, num=2, method="slide", batch_size=1, progress=count)
    assert seen == sorted(seen)
    assert len(set(seen)) == len(seen) > 12
    assert seen[-1] == (2, 2)
    seen.clear()
    pipe.upscale(noise(4, 4), num=3, batch_size=2, progress=count)
    assert seen[2::3] == [(2, 3), (3, 3)]


def test_batches_are_what_a_call_draws(pipe: VARPipeline) -> None:
    options: dict[str, Any] = {"seed": 3, "cfg": 2.0, "batch_size": 3, "intermediates": True}
    whole, parts = pipe([3, 0], num=2, **options), list(pipe.batches([3, 0], num=2, **options))
    assert [len(part.images) for part in parts] == [3, 1]
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert pixels([image for part in parts for image in part.images]) == pixels(whole.images)
    assert [label for part in parts for label in part.labels] == whole.labels
    assert [index for part in parts for index in part.indices] == whole.indices
    with pytest.raises(TypeError, match="sed"):
        pipe.batches(3, sed=1)  # type: ignore[call-arg]
    with refused("class 'zebra'"):
        pipe.batches("zebra")  # at once, not with the first batch


def test_an_output_shows_and_saves_itself(pipe: VARPipeline, tmp_path: Path) -> None:
    out = pipe([3, 0], num=2, intermediates=True)
    assert repr(out) == "PipelineOutput(4 images of 8x8 px: 2 of 3 crane, 2 of 0 red fox)"
    assert out.grid().size == (2 * 130 - 2, 2 * 130 - 2)
    with Image.open(BytesIO(out._repr_png_())) as shown:
        assert shown.size == (2 * 130 - 2, 2 * 146 - 2)  # with captions
    paths = out.save(tmp_path / "o")
    names = [
        f"{label}_{i}{part}" for label in (3, 0) for i in (0, 1) for part in ("", *(f"_scale{k}" for k in range(3)))
    ]
    assert [path.name for path in paths] == [*(f"{name}.png" for name in names), "growth.gif", "grid.png"]
    for i, label in enumerate((3, 3, 0, 0)):
        with Image.open(tmp_path / "o" / f"{label}_{i % 2}.png") as saved:
            assert saved.tobytes() == out.images[i].tobytes()
    with Image.open(tmp_path / "o" / "grid.png") as saved:
        assert saved.tobytes() == out.grid().tobytes()
    with refused("folder='' is empty"):
        out.save("")


def test_names_of_imagenet_are_read_when_they_are_shown() -> None:
    pipe = VARPipeline(small_var(num_classes=1000), small_vqvae())
    assert repr(pipe(207, cfg=0)) == "PipelineOutput(1 image of 8x8 px: 1 of 207 golden retriever)"
    assert repr(VARPipeline(small_var(), small_vqvae())(2)) == "PipelineOutput(1 image of 8x8 px: 1 of 2)"


def test_a_pipeline_shows_itself(pipe: VARPipeline) -> None:
    assert repr(pipe) == "VARPipeline(VAR of depth 2, 8x8 px, 4 classes, cpu, float32)"
    shown = VARPipeline(pipe.model, pipe.vqvae, {0: "<b>"}, SamplingParams(cfg=2.0))._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "cfg 2.0" in shown


def test_an_edit_shows_and_saves_itself(pipe: VARPipeline, tmp_path: Path) -> None:
    edit = pipe.inpaint(noise(24, 16), (8, 4, 14, 10), num=2)
    assert repr(edit) == "EditOutput(2 results of 24x16 px, 9% of it inpainted)"
    assert [path.name for path in edit.save(tmp_path)] == [f"edit_{part}.png" for part in ("0", "1", "mask", "sheet")]
    assert [path.name for path in edit.save(tmp_path)][-1] == "edit-2_sheet.png"
    with Image.open(BytesIO(edit._repr_png_())) as shown:
        assert (shown.width, shown.height) == (edit.grid().width, edit.grid().height + 16)
    small = pipe.upscale(noise(4, 3))
    assert repr(small) == "EditOutput(1 result of 8x6 px of an image of 4x3 px)"
    assert [path.name for path in small.save(tmp_path, "small")] == ["small_0.png", "small_sheet.png"]


def test_what_is_called_may_end_the_drawing(pipe: VARPipeline) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("enough")

    for options in ({"on_scale": stop}, {"progress": stop}):
        with pytest.raises(RuntimeError, match="enough"):
            pipe(3, **options)
    assert same_images(pipe(3), pipe(3))


# --- classes


def test_labels_by_index_and_name(pipe: VARPipeline) -> None:
    assert [pipe.label(given) for given in (1, "1", " 1 ", "tabby cat", "Tabby_Cat", "RED FOX")] == [1, 1, 1, 1, 1, 0]
    with refused("'crane'", "[3, 4]"):
        pipe.label("crane")


@pytest.mark.parametrize("given", [2, "2"])
def test_a_class_not_trained_on_is_refused_with_those_known(pipe: VARPipeline, given: int | str) -> None:
    with refused("class 2", "0 red fox, 1 tabby_cat, 3 crane, 4 crane"):
        pipe([0, given])


@pytest.mark.parametrize("given", [-1, 5, "-1", "5", "1000000"])
def test_an_index_out_of_range(pipe: VARPipeline, given: int | str) -> None:
    with refused(f"class {given} is not one that this model was trained on; it knows 0 red fox, 1 tabby_cat"):
        pipe(given)
    with refused(f"class {given} must be in 0..4"):
        tiny_pipeline()(given)


@pytest.mark.parametrize("given", ["zebra", "--5", "1.5", "²", ""])
def test_an_unknown_name(pipe: VARPipeline, given: str) -> None:
    with refused(f"class {given!r} is unknown"):
        pipe(given)


def test_without_a_list_of_classes_all_are_known() -> None:
    pipe = tiny_pipeline()
    assert dict(pipe.known_classes()) == {label: str(label) for label in range(5)}
    assert pipe.label("4") == 4
    thousand = VARPipeline(small_var(num_classes=1000), small_vqvae())
    assert thousand.label("golden retriever") == 207
    with refused("class 1000 must be in 0..999"):
        thousand.label("1000")
    assert not any(name.strip().isdecimal() for name in thousand.known_classes().values())  # "207" needs no names


NUMBERS = ("num", "seed", "batch_size")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"num": 0}, ("num=0", "1..16777216")),
        ({"batch_size": 0}, ("batch_size=0",)),
        ({"cfg": -1.0}, ("cfg=-1.0", "0 (no guidance) or more")),
        ({"cfg": float("nan")}, ("cfg=nan",)),
        ({"top_k": -1}, ("top_k=-1",)),
        ({"top_k": 10**6}, ("top_k=1000000", "0 keeps all")),
        ({"top_p": 1.5}, ("top_p=1.5", "[0, 1]")),
        ({"seed": -1}, ("seed=-1",)),
        *[({name: value}, (f"{name}={value!r} must be",)) for name in NUMBERS for value in (1.5, True, "1", None)],
    ],
)
def test_options_out_of_range(pipe: VARPipeline, options: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        pipe(3, **options)


@pytest.mark.parametrize("name", NUMBERS)
def test_whole_numbers_of_other_libraries_are_taken(pipe: VARPipeline, name: str) -> None:
    image = noise(4, 4)
    for value in (np.int64(2), torch.tensor(2)):
        options: dict[str, Any] = {name: value}
        assert same_images(pipe(3, **options), pipe(3, **{name: 2}))  # type: ignore[arg-type]
        assert pipe.upscale(image, **options).images == pipe.upscale(image, **{name: 2}).images  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [1.5, None, [1.5], [3, None]])
def test_what_is_no_class(pipe: VARPipeline, given: Any) -> None:
    with refused("must be the index of a class or its name"):
        pipe(given)


def test_no_classes_at_all(pipe: VARPipeline) -> None:
    with refused("no labels given"):
        pipe([])


# --- reconstruction


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (31, 7), (1, 1), (3, 500)])
def test_images_of_any_size_are_reconstructed(pipe: VARPipeline, size: tuple[int, int]) -> None:
    out = pipe.reconstruct(Image.effect_noise(size, 80).convert("RGB"))
    assert (out.mode, out.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F", "HSV"])
def test_and_of_any_mode(pipe: VARPipeline, mode: str) -> None:
    image = Image.new("I;16", (9, 9), 30000) if mode == "I;16" else Image.effect_noise((9, 9), 80).convert(mode)
    assert pipe.reconstruct(image).size == (8, 8)


def test_reconstruction_is_encode_and_decode_and_leaves_the_image_alone(pipe: VARPipeline) -> None:
    file, turned = BytesIO(), Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.effect_noise((8, 8), 80).convert("RGB").save(file, "PNG", exif=turned)
    image = Image.open(file)
    before = (image.tobytes(), dict(image.getexif()))
    tensor = torch.tensor(list(image.rotate(-90).tobytes())).reshape(1, 8, 8, 3).permute(0, 3, 1, 2) / 127.5 - 1
    expected = to_pil(pipe.vqvae.decode(pipe.vqvae.encode(tensor)))
    assert pipe.reconstruct(image).tobytes() == expected[0].tobytes()
    assert (image.tobytes(), dict(image.getexif())) == before


# --- editing


def in_mode(mode: str, size: tuple[int, int] = (20, 14)) -> Image.Image:
    """Noise in a mode; what may be transparent is so in places."""
    values = np.random.default_rng(1).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 256)
    if mode == "turned":  # a quarter turn, as cameras note it
        exif, file = Image.Exif(), BytesIO()
        exif[0x0112] = 6
        Image.fromarray(values[..., :3]).save(file, "PNG", exif=exif)
        return Image.open(file)
    return Image.fromarray(values, "RGBA") if mode == "RGBA" else Image.fromarray(values[..., :3]).convert(mode)


MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "turned")

BOX = (5, 4, 12, 9)


def beyond(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Where no pixel of the mask is so near, along rows, columns or both."""
    near = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        near[max(y - pixels, 0) : y + pixels + 1, max(x - pixels, 0) : x + pixels + 1] = True
    return ~near


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["inpaint", "edit"])
def test_what_is_kept_of_an_image_of_any_mode_stays_bit_for_bit(pipe: VARPipeline, mode: str, way: str) -> None:
    image = in_mode(mode)
    rgb = to_rgb(image)
    before = image.tobytes(), dict(image.getexif())
    out = pipe.inpaint(image, BOX, num=2) if way == "inpaint" else pipe.edit(image, BOX, "red fox", num=2)
    assert (image.tobytes(), dict(image.getexif())) == before
    assert rgb.size == ((14, 20) if mode == "turned" else (20, 14))
    assert np.array_equal(np.asarray(out.image), np.asarray(rgb))
    assert np.array_equal(out.mask, mask_of(*rgb.size, BOX))
    assert len(out.images) == 2
    for result in out.images:
        assert (result.mode, result.size) == ("RGB", rgb.size)
        changed = (np.asarray(result) != np.asarray(rgb)).any(axis=-1)
        assert changed[out.mask].mean() > 0.5
        assert not changed[beyond(out.mask, 2)].any()  # 14 px show 4 tokens, and the feather is half of one


@pytest.mark.parametrize("mode", MODES)
def test_room_and_fine_detail_for_images_of_any_mode(pipe: VARPipeline, mode: str) -> None:
    image = in_mode(mode)
    out = pipe.outpaint(image, left=3, bottom=4, feather=0.0)
    rgb = to_rgb(image)
    assert out.images[0].size == (rgb.width + 3, rgb.height + 4)
    assert out.images[0].crop((3, 0, rgb.width + 3, rgb.height)).tobytes() == rgb.tobytes()
    small = pipe.upscale(in_mode(mode, (6, 3)))
    assert small.images[0].size == ((4, 8) if mode == "turned" else (8, 4))
    assert np.array_equal(np.asarray(small.image), np.asarray(to_rgb(in_mode(mode, (6, 3)))))
    assert small.mask.all()


def test_masks_of_every_kind_say_the_same(pipe: VARPipeline) -> None:
    image, mask = noise(20, 14), mask_of(20, 14, BOX)
    cut = Image.new("RGBA", (20, 14), (255, 255, 255, 0))
    cut.paste("white", BOX)
    masks = (BOX, [BOX], [BOX, (5, 4, 6, 5)], mask, Image.fromarray(mask), Image.fromarray(mask).convert("RGB"), cut)
    assert len({pipe.inpaint(image, each).images[0].tobytes() for each in masks}) == 1


@pytest.mark.parametrize("size", [(8, 8), (20, 14), (9, 31)])
@pytest.mark.parametrize("label", [None, 3])
def test_what_is_in_the_mask_does_not_leak(pipe: VARPipeline, size: tuple[int, int], label: int | None) -> None:
    image, box = noise(*size), (1, 2, 7, 7)
    other = image.copy()
    other.paste(noise(6, 5, seed=1), box[:2])
    for options in ({}, {"composite": False}, {"context": 1.2, "dilate": 0, "feather": 3.0}):
        one, same = (pipe.inpaint(each, box, label, num=2, **options) for each in (image, other))
        assert pixels(one.images) == pixels(same.images)
    leaks = [pipe.inpaint(each, box, label, hide_masked=False, dilate=0, context=1.0) for each in (image, other)]
    assert pixels(leaks[0].images) != pixels(leaks[1].images)


@pytest.mark.parametrize("mask", [[], Image.new("L", (20, 14)), np.zeros((14, 20), dtype=bool)])
def test_an_empty_mask(pipe: VARPipeline, mask: Any) -> None:
    image = noise(20, 14)
    out = pipe.inpaint(image, mask, num=2)
    assert pixels(out.images) == [image.tobytes()] * 2
    assert not out.mask.any()


@pytest.mark.parametrize("side", [8, 5, 23])
def test_an_empty_mask_without_composite_is_the_reconstruction(pipe: VARPipeline, side: int) -> None:
    image = noise(side, side)
    (result,) = pipe.inpaint(image, [], composite=False).images
    expected = pipe.reconstruct(image).resize((side, side), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    "options", [{}, {"cfg": 1.0, "top_k": 5, "top_p": 0.5, "seed": 9}, {"smooth": True, "seed": 2}]
)
def test_a_mask_all_over_is_what_the_model_draws(pipe: VARPipeline, options: dict[str, Any]) -> None:
    image, everywhere = noise(8, 8), (0, 0, 8, 8)
    assert pixels(pipe.inpaint(image, everywhere, 3, num=3, **options).images) == pixels(pipe(3, 3, **options).images)
    assert pixels(pipe.edit(image, everywhere, "3", num=3, **options).images) == pixels(pipe(3, 3, **options).images)
    sampling = apply_options(SamplingParams(), options)
    plain = generate(pipe.model, pipe.vqvae, [CLASSES] * 2, sampling, options.get("seed", 0))
    assert pixels(pipe.inpaint(image, everywhere, num=2, **options).images) == pixels(to_pil(plain.images))


def test_edits_are_redraw_through_their_windows(pipe: VARPipeline) -> None:
    """What each passes on."""
    image, mask = noise(20, 14), mask_of(20, 14, BOX)
    options: dict[str, Any] = {"cfg": 1.0, "seed": 4, "top_k": 3, "dilate": 0, "color_match": False, "feather": 0.5}
    params = SamplingParams(cfg=1.0, top_k=3), BlendParams(dilate=0, color_match=False, feather=0.5)

    def expected(mask: np.ndarray, windows: Any, labels: list[int], canvas: Image.Image = image) -> list[bytes]:
        return pixels(inpaint_windows(pipe.model, pipe.vqvae, canvas, mask, windows, labels, *params, seed=4))

    none = [CLASSES] * 2
    assert pixels(pipe.inpaint(image, BOX, num=2, **options).images) == expected(mask, [window_around(mask)], none)
    close = expected(mask, [window_around(mask, 1.5)], [0])
    assert pixels(pipe.inpaint(image, BOX, 0, context=1.5, **options).images) == close
    assert pixels(pipe.edit(image, BOX, "red fox", context=1.5, **options).images) == close
    out = pipe.outpaint(image, right=6, label=3, num=2, method="shrink", **options)
    assert pixels(out.images) == expected(out.mask, [bounding_square((26, 14))], [3, 3], out.image)
    out = pipe.outpaint(image, right=6, num=2, method="slide", **options)
    assert pixels(out.images) == expected(out.mask, slide_windows(out.mask, 14), none, out.image)
    small, few = noise(5, 3), {"cfg": 1.0, "seed": 4, "top_k": 3}
    out = pipe.upscale(small, 3, num=2, num_scales=1, consistent=False, **few)
    assert pixels(out.images) == pixels(upscale(pipe.model, pipe.vqvae, small, [3, 3], 1, False, params[0], 4))


def test_options_that_no_edit_has(pipe: VARPipeline) -> None:
    with pytest.raises(TypeError, match="'fether'"):
        pipe.edit(noise(20, 14), BOX, 3, fether=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'dilate'"):
        pipe.upscale(noise(5, 3), dilate=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("way", ["inpaint", "shrink", "slide", "upscale"])
def test_class_seed_and_number_make_the_result(pipe: VARPipeline, way: str) -> None:
    with torch.no_grad():
        pipe.model.head.weight.mul_(0.3)  # less sure of its tokens

    def results(**options: Any) -> list[bytes]:
        image = noise(7, 6)
        options = {"top_k": 0, "top_p": 0.0, "cfg": 6.0} | options
        if way == "inpaint":
            out: EditOutput = pipe.inpaint(image, (1, 0, 6, 5), **options)
        elif way == "upscale":
            out = pipe.upscale(image, num_scales=1, **options)
        else:
            out = pipe.outpaint(image, right=5, top=4, method=way, **options)
        return pixels(out.images)

    three = results(num=3, label=3)
    assert len(set(three)) == 3
    assert results(num=1, label="3") == three[:1]
    assert results(num=2, label=3, seed=0) == three[:2]
    others = [results(label=3, seed=1), results(label=0), results()]
    assert len({*three, *(other[0] for other in others)}) == 6


@pytest.mark.parametrize("method", ["auto", "shrink", "slide"])
@pytest.mark.parametrize("room", [(4, 0, 0, 0), (0, 3, 0, 5), (20, 0, 9, 1)])
def test_outpainting_leaves_the_image_where_it_is(
    pipe: VARPipeline, method: str, room: tuple[int, int, int, int]
) -> None:
    image, (left, right, top, bottom) = noise(13, 9), room
    out = pipe.outpaint(image, *room, method=method, feather=1.0)
    size = (13 + left + right, 9 + top + bottom)
    assert out.image.size == size
    assert out.mask.sum() == size[0] * size[1] - 13 * 9
    assert not out.mask[top : top + 9, left : left + 13].any()
    (result,) = out.images
    assert result.size == size
    changed = (np.asarray(result) != np.asarray(out.image)).any(axis=-1)
    assert not changed[beyond(out.mask, 1)].any()
    assert changed[out.mask].mean() > 0.9
    kept = beyond(out.mask, 1)
    assert np.array_equal(np.asarray(result)[kept], np.asarray(out.image)[kept])
    assert np.asarray(image)[5, 6].tolist() == np.asarray(result)[top + 5, left + 6].tolist()


@pytest.mark.parametrize(
    ("room", "method"),
    [((0, 8, 0, 0), "shrink"), ((0, 9, 0, 0), "slide"), ((0, 0, 9, 0), "shrink"), ((0, 0, 6, 6), "slide")],
)
def test_large_extensions_slide(pipe: VARPipeline, room: tuple[int, int, int, int], method: str) -> None:
    """10x9 px: until 18, twice the shorter side, it shrinks."""
    image = noise(10, 9)
    results = {way: pixels(pipe.outpaint(image, *room, method=way).images) for way in ("auto", "shrink", "slide")}
    assert results["shrink"] != results["slide"]
    assert results["auto"] == results[method]


@pytest.mark.parametrize("scales", [SCALES_256, SCALES_512])
def test_every_way_of_editing_works_on_the_presets_ladders(scales: Any) -> None:
    common: dict[str, Any] = {"scales": scales.sides, "vocab_size": VOCAB, "latent_dim": 4}
    vqvae = small_vqvae(**common, base_width=4, norm_groups=2, multipliers=(1, 1, 1, 1, 1))
    pipe = VARPipeline(small_var(**common, depth=1, width=16, heads=2), vqvae)
    image = noise(60, 40)
    out = pipe.edit(image, (10, 5, 30, 30), 2)
    changed = (np.asarray(out.images[0]) != np.asarray(image)).any(axis=-1)
    assert changed[out.mask].mean() > 0.5
    assert not changed[beyond(out.mask, 2)].any()  # 40 px show 16 or 32 tokens
    assert pipe.outpaint(image, left=20).images[0].size == (80, 40)
    side = vqvae.config.image_side
    assert side in (256, 512)
    assert pipe.upscale(image).images[0].size == (side, round(side * 40 / 60))


REFUSED: dict[str, tuple[Callable[[VARPipeline], object], tuple[str, ...]]] = {
    "mask of another size": (
        lambda pipe: pipe.inpaint(noise(9, 7), Image.new("L", (7, 9))),
        ("mask has 7x9 px", "image 9x7 px"),
    ),
    "box outside": (lambda pipe: pipe.edit(noise(9, 7), (0, 0, 10, 7), 3), ("box 0,0,10,7", "9x7 px")),
    "unknown class": (lambda pipe: pipe.edit(noise(20, 14), BOX, "zebra"), ("'zebra' is unknown",)),
    "class not trained on": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, 2), ("class 2", "knows")),
    "no results": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, num=0), ("num=0", "1..16777216")),
    "context": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, context=0.5), ("context=0.5",)),
    "no room": (lambda pipe: pipe.outpaint(noise(20, 14)), ("no extension",)),
    "room below 0": (lambda pipe: pipe.outpaint(noise(20, 14), left=-1, right=5), ("left=-1",)),
    "absurd room": (lambda pipe: pipe.outpaint(noise(20, 14), top=10**6), ("20x1000014 px", "too large")),
    "method": (lambda pipe: pipe.outpaint(noise(20, 14), 5, method="grow"), ("'grow'", "auto, shrink, slide")),
    "outpaint, class": (lambda pipe: pipe.outpaint(noise(20, 14), 5, label=9), ("class 9 is not one that this model",)),
    "outpaint, feather": (lambda pipe: pipe.outpaint(noise(20, 14), 5, feather=-1.0), ("feather=-1.0",)),
    "upscale, too large": (lambda pipe: pipe.upscale(noise(8, 3)), ("8x3 px", "8x8 px")),
    "upscale, scales": (lambda pipe: pipe.upscale(noise(4, 3), num_scales=4), ("num_scales=4", "1..3")),
    "upscale, class": (lambda pipe: pipe.upscale(noise(4, 3), -1), ("class -1",)),
    "upscale, batch": (lambda pipe: pipe.upscale(noise(4, 3), batch_size=0), ("batch_size=0",)),
    "seed, type": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, seed=bad(1.5)), ("seed=1.5",)),
    "batch, type": (lambda pipe: pipe.edit(noise(20, 14), BOX, 3, batch_size=bad("a")), ("batch_size='a'",)),
    "context, type": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, context=bad("a")), ("context='a'",)),
    "class, type": (lambda pipe: pipe.inpaint(noise(20, 14), BOX, bad(1.5)), ("class 1.5",)),
    "room, type": (lambda pipe: pipe.outpaint(noise(20, 14), left=bad(1.5)), ("left=1.5",)),
    "scales, type": (lambda pipe: pipe.upscale(noise(4, 3), num_scales=bad(1.5)), ("num_scales=1.5",)),
    "top_k": (lambda pipe: pipe.upscale(noise(4, 3), top_k=10**6), ("top_k=1000000", "0 keeps all")),
    "damaged image": (lambda pipe: pipe.inpaint(damaged(), BOX), ("cannot read the image",)),
    "damaged image, outpaint": (lambda pipe: pipe.outpaint(damaged(), 5), ("cannot read the image",)),
    "damaged image, upscale": (lambda pipe: pipe.upscale(damaged()), ("cannot read the image",)),
    "damaged mask": (lambda pipe: pipe.inpaint(noise(20, 14), damaged()), ("cannot read the mask",)),
}


def bad(value: object) -> Any:
    """A value that no annotation allows."""
    return value


def damaged() -> Image.Image:
    """An image of 20x14 px that Pillow opens, since its header is whole."""
    file = BytesIO()
    noise(20, 14).save(file, "PNG")
    return Image.open(BytesIO(file.getvalue()[:200]))


@pytest.mark.parametrize("what", REFUSED)
def test_edits_that_cannot_work(pipe: VARPipeline, what: str) -> None:
    call, parts = REFUSED[what]
    with refused(*parts):
        call(pipe)


# --- folders


def test_round_trip(pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "deep" / "model")
    files = sorted(str(path.relative_to(tmp_path / "deep")) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        f"model/{p}/{f}" for p in ("tokenizer", "transformer") for f in ("config.json", "model.safetensors")
    ]
    loaded = VARPipeline.from_pretrained(tmp_path / "deep" / "model", device="cpu", dtype="float32")
    assert loaded.classes == NAMES
    assert not loaded.model.training
    assert not loaded.vqvae.training
    assert same_images(loaded([3, 0], num=2), pipe([3, 0], num=2))
    assert pixels(loaded(3).images) == pixels(pipe(3).images)
    tiny_pipeline().save_pretrained(tmp_path / "deep" / "model")  # over the old one
    assert VARPipeline.from_pretrained(str(tmp_path / "deep" / "model")).classes is None


def test_saved_in_bfloat16_it_takes_half_the_room(pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "full")
    pipe.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    file = Path("transformer", "model.safetensors")
    assert (tmp_path / "half" / file).stat().st_size < 0.6 * (tmp_path / "full" / file).stat().st_size
    stored = safetensors.torch.load_file(tmp_path / "half" / file)
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    loaded = VARPipeline.from_pretrained(tmp_path / "half", dtype="float32")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, pipe.model.state_dict()[name].bfloat16().float())
    assert all(value.dtype == torch.float32 for value in pipe.model.state_dict().values())  # the original is as it was


def test_a_transformer_beside_another_tokenizer_is_refused(pipe: VARPipeline, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("full", "half", "other")]
    own, half, other = (folder / "tokenizer" for folder in folders)
    pipe.save_pretrained(folders[0])
    pipe.save_pretrained(folders[1], dtype=torch.bfloat16)
    VARPipeline(pipe.model, small_vqvae(seed=1)).save_pretrained(folders[2])

    def beside(tokenizer: Path, transformer: Path) -> VARPipeline:
        pair = tmp_path / "pair"
        for part, given in (("tokenizer", tokenizer), ("transformer", transformer)):
            shutil.copytree(given, pair / part, dirs_exist_ok=True)
        return VARPipeline.from_pretrained(pair)

    beside(own, half.parent / "transformer")
    beside(half, own.parent / "transformer")
    with refused("was trained on the tokens of another tokenizer", "saved together"):
        beside(other, own.parent / "transformer")
    tuned = load_tokenizer(own)
    tuned.decoder.conv_out.bias.data += 1
    save_model(tmp_path / "tuned", tuned)
    beside(tmp_path / "tuned", own.parent / "transformer")
    config = json.loads((own.parent / "transformer/config.json").read_text())
    del config["quantizer_sha256"]  # as written before
    (own.parent / "transformer/config.json").write_text(json.dumps(config))
    beside(other, own.parent / "transformer")


def test_bfloat16_keeps_head_and_quantiser_in_float32(pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert loaded.model.blocks[0].mlp.up.weight.dtype == loaded.vqvae.dtype == torch.bfloat16
    assert loaded.model.head.weight.dtype == loaded.vqvae.quantizer.codebook.weight.dtype == torch.float32
    out = loaded([3, 0], intermediates=True)
    assert [image.size for image in out.images] == [(8, 8)] * 2
    assert loaded.reconstruct(out.images[0]).size == (8, 8)


def test_a_pipeline_is_moved_and_cast() -> None:
    pipe = tiny_pipeline()
    assert pipe.to("cpu") is pipe
    assert pipe.model.position.dtype == torch.float32
    assert pipe.to(torch.device("cpu"), torch.bfloat16) is pipe
    assert pipe.model.position.dtype == pipe.vqvae.dtype == torch.bfloat16
    assert pipe.model.head.weight.dtype == pipe.vqvae.quantizer.codebook.weight.dtype == torch.float32
    assert pipe.to("cpu", "float32").vqvae.dtype == torch.float32
    with refused("dtype 'float16' is unknown"):
        pipe.to("cpu", torch.float16)


def test_names_lead_to_folders(tmp_path: Path, pipe: VARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.save_pretrained(tmp_path / "stand-in")
    monkeypatch.setitem(SHIPPED, "var-mini", tmp_path / "stand-in")
    assert find_folder("var-mini") == tmp_path / "stand-in"
    assert VARPipeline.from_pretrained("var-mini").classes == NAMES
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_folder("~/stand-in") == tmp_path / "stand-in"


# --- what cannot be loaded


def test_models_that_do_not_fit_each_other() -> None:
    with refused("vocab_size=64", "vocab_size=32"):
        VARPipeline(small_var(vocab_size=64), small_vqvae())


def test_no_such_folder_or_name(tmp_path: Path) -> None:
    with refused(str(tmp_path / "none"), "var-mini, var-emoji, var-d16"):
        VARPipeline.from_pretrained(tmp_path / "none")


def test_files_go_with_released_names_only(tmp_path: Path) -> None:
    with refused("vae_file and var_file go with a released name", "'var-mini'"):
        VARPipeline.from_pretrained("var-mini", var_file=tmp_path / "var_d16.pth")


def test_an_impossible_device_or_type_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with refused("device 'gpu'"):
        VARPipeline.from_pretrained(tmp_path / "none", device="gpu")
    with refused("dtype 'half'"):
        VARPipeline.from_pretrained(tmp_path / "none", dtype="half")


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "transformer" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def swap(folder: Path) -> None:
    (folder / "tokenizer").rename(folder / "other")
    (folder / "transformer").rename(folder / "tokenizer")
    (folder / "other").rename(folder / "transformer")


FAULTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "empty": (
        lambda f: [(f / p).rename(f / f"no-{p}") for p in ("tokenizer", "transformer")],
        ("no folder tokenizer",),
    ),  # type: ignore[dict-item]
    "no transformer": (lambda f: (f / "transformer").rename(f / "x"), ("no folder transformer",)),  # type: ignore[dict-item]
    "no weights": (lambda f: (f / "tokenizer" / "model.safetensors").unlink(), ("no model.safetensors",)),
    "truncated": (
        lambda f: (f / "transformer" / "model.safetensors").write_bytes(
            (f / "transformer" / "model.safetensors").read_bytes()[:5000]
        ),
        ("model.safetensors is damaged", "download it again"),
    ),  # type: ignore[dict-item]
    "torn config": (lambda f: (f / "transformer" / "config.json").write_text('{"model": "VAR'), ("config.json",)),  # type: ignore[dict-item]
    "swapped": (swap, ("'VQVAE'", "'VAR'")),
    "other sizes": (edit_config(config={"depth": 3}), ("does not fit config.json",)),
    "unknown size": (edit_config(config={"deepness": 3}), ("deepness",)),
    "classes": (edit_config(classes={"x": "y"}), ("classes must map labels to names",)),
    "list of classes": (edit_config(classes=["a"]), ("classes must map labels to names",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_and_foreign_folders(fault: str, pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    break_it, parts = FAULTS[fault]
    break_it(tmp_path / "model")
    with refused(str(tmp_path / "model"), *parts):
        VARPipeline.from_pretrained(tmp_path / "model")


def test_a_place_that_cannot_be_written(pipe: VARPipeline, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with refused("cannot write", "file"):
        pipe.save_pretrained(tmp_path / "file" / "model")


def test_the_output_of_a_training_stands_for_the_model_in_it(pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "run" / "model")
    found = VARPipeline.from_pretrained(tmp_path / "run", device="cpu", dtype="float32")
    assert torch.equal(found.model.head.weight, pipe.model.head.weight)
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with refused("has no folder tokenizer: its run has not exported a model yet; run its command again"):
        VARPipeline.from_pretrained(tmp_path / "new")
    with refused(f"has no folder tokenizer: it is a part of {tmp_path / 'run' / 'model'}; give that folder"):
        VARPipeline.from_pretrained(tmp_path / "run" / "model" / "tokenizer")
    shutil.copytree(tmp_path / "run" / "model" / "tokenizer", tmp_path / "vqvae")
    with refused("has no folder tokenizer: it holds a VQVAE alone; give a model that draws"):
        VARPipeline.from_pretrained(tmp_path / "vqvae")
    (tmp_path / "run" / "transformer").mkdir()  # a damaged model is not passed over
    with refused("has no folder tokenizer"):
        VARPipeline.from_pretrained(tmp_path / "run")


def test_arguments_of_a_tokenizer_file_need_one() -> None:
    with refused("phi_ratio and cosine say how to read a vae_file"):
        VARPipeline.from_pretrained("var-mini", cosine=True)
