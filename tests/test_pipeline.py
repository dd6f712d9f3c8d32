"""VARPipeline: what users import."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import SIDES, refused, small_var, small_vqvae
from PIL import Image
from tiny import NAMES, tiny_pipeline

import var
from var.generate import generate
from var.images import to_pil
from var.pipeline import PipelineOutput, VARPipeline, find_folder
from var.presets import SHIPPED


@pytest.fixture
def pipe() -> VARPipeline:
    return tiny_pipeline(NAMES)


def same_pictures(a: PipelineOutput, b: PipelineOutput) -> bool:
    return a.labels == b.labels and a.indices == b.indices and torch.equal(a.tokens, b.tokens)


def pixels(images: list[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


# --- drawing


def test_the_public_name() -> None:
    assert var.VARPipeline is VARPipeline
    with pytest.raises(AttributeError, match="Pipeline"):
        var.Pipeline  # noqa: B018


def test_pictures_come_in_the_order_asked_for(pipe: VARPipeline) -> None:
    out = pipe([3, "red fox", 3], num=2, top_k=0, cfg=1.0)
    assert out.labels == [3, 3, 0, 0, 3, 3]
    assert out.indices == [0, 1, 0, 1, 2, 3]
    assert [(image.mode, image.size) for image in out.images] == [("RGB", (8, 8))] * 6
    assert (out.tokens.dtype, tuple(out.tokens.shape)) == (torch.int64, (6, 21))
    assert len({tuple(row) for row in out.tokens.tolist()}) == 6  # each its own
    assert out.per_scale is None


def test_one_class_without_a_list(pipe: VARPipeline) -> None:
    assert pixels(pipe(3).images) == pixels(pipe([3]).images) == pixels(pipe(["3"]).images) == pixels(pipe("3").images)
    assert same_pictures(pipe("red fox"), pipe(0))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_pictures_are_the_same_whatever_the_batch_size(pipe: VARPipeline, batch_size: int) -> None:
    whole, parts = pipe([3, 0, 1], num=3, seed=7), pipe([3, 0, 1], num=3, seed=7, batch_size=batch_size)
    assert same_pictures(whole, parts)


def test_a_picture_does_not_depend_on_what_else_is_asked_for(pipe: VARPipeline) -> None:
    alone, among = pipe(3, num=2), pipe([0, 3, 1], num=4)
    assert torch.equal(alone.tokens, among.tokens[4:6])


def test_the_seed_makes_the_picture(pipe: VARPipeline) -> None:
    torch.manual_seed(1)
    first = pipe(3, num=2, seed=5)
    torch.manual_seed(2)
    assert same_pictures(first, pipe(3, num=2, seed=5))
    assert not torch.equal(first.tokens, pipe(3, num=2, seed=6).tokens)


def test_options_reach_the_sampler(pipe: VARPipeline) -> None:
    options = {"cfg": 2.5, "top_k": 9, "top_p": 0.5, "seed": 3, "smooth": True}
    expected = generate(pipe.model, pipe.vqvae, [3, 3], **options)  # type: ignore[arg-type]
    out = pipe(3, num=2, **options)  # type: ignore[arg-type]
    assert torch.equal(out.tokens, expected.tokens)
    assert pixels(out.images) == pixels(to_pil(expected.images))


def test_the_picture_after_every_scale(pipe: VARPipeline) -> None:
    out = pipe([3, 0], num=2, per_scale=True, batch_size=3)
    assert out.per_scale is not None
    assert [len(stages) for stages in out.per_scale] == [len(SIDES)] * 4
    assert pixels([stages[-1] for stages in out.per_scale]) == pixels(out.images)
    for k in range(len(SIDES)):
        decoded = to_pil(pipe.vqvae.decode(out.tokens, num_scales=k + 1))
        assert pixels([stages[k] for stages in out.per_scale]) == pixels(decoded)


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
    with refused(f"class {given} must be in 0..4"):
        pipe(given)


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


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"num": 0}, ("num=0", "at least 1")),
        ({"batch_size": 0}, ("batch_size=0",)),
        ({"cfg": -1.0}, ("cfg=-1.0", "0 (no guidance) or more")),
        ({"cfg": float("nan")}, ("cfg=nan",)),
        ({"top_k": -1}, ("top_k=-1",)),
        ({"top_p": 1.5}, ("top_p=1.5", "[0, 1]")),
        ({"seed": -1}, ("seed=-1",)),
    ],
)
def test_options_out_of_range(pipe: VARPipeline, options: dict[str, float], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        pipe(3, **options)  # type: ignore[arg-type]


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
    assert same_pictures(loaded([3, 0], num=2), pipe([3, 0], num=2))
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


def test_bfloat16_keeps_head_and_quantiser_in_float32(pipe: VARPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", dtype="bfloat16")
    assert loaded.model.blocks[0].mlp.up.weight.dtype == loaded.vqvae.dtype == torch.bfloat16
    assert loaded.model.head.weight.dtype == loaded.vqvae.quantizer.codebook.weight.dtype == torch.float32
    out = loaded([3, 0], per_scale=True)
    assert [image.size for image in out.images] == [(8, 8)] * 2
    assert loaded.reconstruct(out.images[0]).size == (8, 8)


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
    with refused(str(tmp_path / "none"), "var-mini, var-d16"):
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
