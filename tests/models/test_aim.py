"""AIM: equality with the reference implementation, its parts against naive computations, and what users call."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    FIXTURES,
    GOLDEN,
    Tensors,
    largest_difference,
    needs_golden,
    normal,
    read_tensors,
    refused,
    small_var,
    under,
)
from PIL import Image
from tiny_aim import SIZES, small_aim
from torch import Tensor, nn

import var
from var.aim import AIM
from var.hub.checkpoint import CONFIG, save_model
from var.hub.convert_aim import load_official_aim
from var.models.aim import (
    AIMConfig,
    AttentiveProbe,
    Encoder,
    EncoderConfig,
    ProbeConfig,
    sincos_2d_pos_embed,
    val_transforms,
)

TOLERANCE = 1e-4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAR_CACHE", str(tmp_path / "cache"))


def images(batch: int = 2, seed: int = 0) -> Tensor:
    return normal(batch, 3, 8, 8, seed=seed)


# --- equality with the reference implementation


def from_fixture() -> tuple[AIM, Tensors]:
    """The first block with the head, and what goes in and out of all blocks."""
    tensors = read_tensors(FIXTURES / "golden_aim.safetensors.xz")
    return load_official_aim(under(tensors, "aim."), img_size=56, num_heads=4, probe_layers=[0]), under(tensors, "io.")


@torch.no_grad()
def test_golden_tokens_and_first_block() -> None:
    model, io = from_fixture()
    assert largest_difference(model.encoder.embed(io["image"]), io["tokens_with_position"][:1]) < TOLERANCE
    (first,) = model.extract_features(io["image"])
    assert largest_difference(first, io["features"][0, :1]) < TOLERANCE
    block = model.encoder.blocks[0]
    assert largest_difference(block(io["tokens_with_position"]), io["features"][0]) < TOLERANCE


@torch.no_grad()
def test_golden_head() -> None:
    model, io = from_fixture()
    assert largest_difference(model.probe(io["features"][[1, 3]].mean(dim=0)), io["logits"]) < TOLERANCE


@needs_golden
@torch.no_grad()
def test_golden_every_block_and_logits() -> None:
    tensors = read_tensors(GOLDEN / "aim_small.safetensors.xz")
    model = load_official_aim(under(tensors, "aim."), img_size=56, num_heads=4, probe_layers=[1, 3])
    io = under(tensors, "io.")
    assert largest_difference(model.encoder.embed(io["image"]), io["tokens_with_position"]) < TOLERANCE
    features = model.extract_features(io["image"])
    assert len(features) == len(io["features"]) == 4
    for ours, theirs in zip(features, io["features"], strict=True):
        assert largest_difference(ours, theirs) < TOLERANCE
    logits, mean = model(io["image"])
    assert largest_difference(logits, io["logits"]) < TOLERANCE
    assert largest_difference(mean, (io["features"][1] + io["features"][3]) / 2) < TOLERANCE


# --- the parts


@pytest.mark.parametrize(("side", "width"), [(3, 8), (5, 12), (1, 4)])
def test_positions_equal_a_slow_loop(side: int, width: int) -> None:
    table, quarter = sincos_2d_pos_embed(side, width), width // 4
    assert table.shape == (side * side, width)
    assert table.dtype == torch.float32
    for row in range(side):
        for column in range(side):
            expected = []
            for coordinate in (column, row):
                angles = [coordinate / 10000 ** (i / quarter) for i in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert table[row * side + column].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_attentive_probe_equals_a_naive_one() -> None:
    """Patch by patch and head by head, in float64."""
    probe, heads = small_aim().probe, 2
    features = normal(3, 4, 16, seed=1)
    norm = probe.norm
    assert (norm.eps, norm.affine) == (1e-6, False)
    for row, x in enumerate(features.double()):
        x = (x - norm.running_mean) / (norm.running_var.double() + 1e-6).sqrt()
        keys, values = x @ probe.key.weight.double().T, x @ probe.value.weight.double().T
        gathered = torch.zeros(16, dtype=torch.float64)
        for h in range(heads):
            part = slice(h * 8, (h + 1) * 8)
            scores = [(probe.query[0, 0, part].double() @ key[part]).item() / math.sqrt(8) for key in keys]
            weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
            gathered[part] = sum(w * value[part] for w, value in zip(weights, values, strict=True))
        assert largest_difference(probe(features)[row], probe.classify.weight.double() @ gathered) < 1e-5


def test_a_probe_begins_with_small_weights() -> None:
    """Normal ones of standard deviation 0.02, cut off at 2, which is far outside."""
    torch.manual_seed(0)
    probe = AttentiveProbe(256, 4, 100)
    for name, weight in probe.named_parameters():
        assert weight.std().item() == pytest.approx(0.02, rel=0.15 if name == "query" else 0.02), name
        assert abs(weight.mean().item()) < 0.004, name


def test_the_probe_has_a_query_and_no_biases() -> None:
    probe = AttentiveProbe(16, 2, 5)
    assert {name: tuple(p.shape) for name, p in probe.named_parameters()} == {
        "query": (1, 1, 16),
        "key.weight": (16, 16),
        "value.weight": (16, 16),
        "classify.weight": (5, 16),
    }


@torch.no_grad()
def test_the_probes_norm_uses_its_own_statistics_in_evaluation() -> None:
    model = small_aim()
    before = {name: value.clone() for name, value in model.probe.norm.named_buffers()}
    together = model(images(3)).logits
    alone = torch.cat([model(image[None]).logits for image in images(3)])
    assert largest_difference(together, alone) < 1e-5  # other images of the batch do not matter
    assert all(torch.equal(value, before[name]) for name, value in model.probe.norm.named_buffers())
    model.probe.norm.running_mean.add_(1)
    assert largest_difference(model(images(3)).logits, together) > 1e-2
    assert not list(model.probe.norm.parameters())


def calls(blocks: nn.Module) -> list[int]:
    """Fills up with the numbers of the blocks that run."""
    ran: list[int] = []
    for i, block in enumerate(blocks.children()):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    return ran


@torch.no_grad()
def test_features_come_in_the_order_asked_for() -> None:
    model = small_aim()
    every = model.extract_features(images())
    assert [tuple(features.shape) for features in every] == [(2, 4, 16)] * 3
    some = model.extract_features(images(), layers=[2, 0])
    assert [torch.equal(ours, every[i]) for ours, i in zip(some, (2, 0), strict=True)] == [True, True]
    assert largest_difference(every[0], every[2]) > 0.1


@pytest.mark.parametrize(("layers", "ran"), [([0], [0]), ([1, 0], [0, 1]), ([2], [0, 1, 2]), (None, [0, 1, 2])])
@torch.no_grad()
def test_no_block_runs_after_the_last_one_asked_for(layers: list[int] | None, ran: list[int]) -> None:
    model = small_aim()
    seen = calls(model.encoder.blocks)
    model.extract_features(images(), layers)
    assert seen == ran


@torch.no_grad()
def test_output_is_logits_and_the_mean_over_the_probe_layers() -> None:
    model = small_aim(probe_layers=(0, 1))
    seen = calls(model.encoder.blocks)
    logits, features = model(images())
    assert seen == [0, 1]
    first, second = model.extract_features(images(), [0, 1])
    assert largest_difference(features, (first + second) / 2) < 1e-6
    assert torch.equal(logits, model.probe(features))
    assert logits.shape == (2, 5)


@torch.no_grad()
def test_every_patch_sees_every_other() -> None:
    model, changed = small_aim(), images()
    changed[:, :, 4:, 4:] += 1  # the last patch
    assert (model(images()).features[:, 0] != model(changed).features[:, 0]).any()


@torch.no_grad()
def test_cast_keeps_the_statistics() -> None:
    model = small_aim()
    expected = model(images())
    assert model.cast(torch.bfloat16) is model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, value in small_aim().probe.norm.named_buffers():
        assert torch.equal(model.probe.norm.get_buffer(name), value)
    output = model(images())
    assert output.logits.dtype == torch.bfloat16
    assert largest_difference(output.logits, expected.logits) < 0.05 * expected.logits.abs().max()


def test_a_model_on_the_meta_device_has_its_positions_all_the_same() -> None:
    with torch.device("meta"):
        model = AIM(AIMConfig(**SIZES, probe_layers=(0,)))
    assert torch.equal(model.encoder.position, sincos_2d_pos_embed(2, 16))


def test_the_probes_encoder_has_the_encoders_configuration() -> None:
    config = small_aim().config
    assert type(config.encoder) is EncoderConfig
    assert small_aim().encoder.config == config.encoder == EncoderConfig(**SIZES)


# --- what is refused


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 3, 16, 16), (2, 1, 8, 8), (2, 4, 8, 8), (3, 8, 8)])
def test_images_of_another_size_or_kind_are_refused(shape: tuple[int, ...]) -> None:
    for call in (small_aim(), small_aim().extract_features):
        with refused(str(shape), "(B, 3, 8, 8)"):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "torch.bool"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.complex64), "torch.complex64"),
        (np.zeros((2, 3, 8, 8), np.float32), "ndarray"),
        ([[0.0]], "list"),
        (Image.new("RGB", (8, 8)), "Image"),
        (None, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_are_no_floating_point_tensors_are_refused(given: object, what: str) -> None:
    for call in (small_aim(), small_aim().extract_features):
        with refused("images are of type", what, "val_transforms"):
            call(given)


def test_images_of_any_device_and_number_type_are_taken() -> None:
    """The meta device stands for a GPU: products of tensors on two devices fail there too."""
    model = small_aim().to("meta")
    assert model(images()).features.device.type == "meta"
    logits = small_aim()(images()).logits
    assert largest_difference(small_aim()(images().double()).logits.float(), logits) < 1e-5


@pytest.mark.parametrize("layers", [1, "last", [1.0], [True], {1: 2}, torch.tensor([1])], ids=str)
def test_layers_that_are_no_list_of_blocks_are_refused(layers: object) -> None:
    with refused(f"layers={layers!r} must be a list of blocks"):
        small_aim().extract_features(images(), layers)  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [(), (-1, 0), (2, 2)])
def test_a_probes_layers_are_different_blocks(layers: tuple[int, ...]) -> None:
    with refused(f"layers={list(layers)} must be different blocks"):
        ProbeConfig(width=8, heads=2, num_classes=3, layers=layers)
    assert ProbeConfig(width=8, heads=2, num_classes=3, layers=(2, 0)).layers == (2, 0)


@pytest.mark.parametrize("layers", [[3], [-1], [0, 0], []])
def test_layers_that_there_are_not_are_refused(layers: list[int]) -> None:
    with refused(str(layers), "0..2"):
        small_aim().extract_features(images(), layers)
    with refused(str(layers), "0..2"):
        small_aim(probe_layers=layers)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 9), ("width", 18), ("heads", 3), ("depth", 0), ("mlp_ratio", 0.0), ("num_classes", 0)],
)
def test_sizes_that_cannot_work_are_refused(name: str, value: float) -> None:
    with refused(f"{name}={value}"):
        small_aim(**{name: value})


# --- model folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", small_aim())
    return tmp_path / "model"


@torch.no_grad()
def test_a_folder(folder: Path) -> None:
    model = var.AIM.from_pretrained(folder, dtype="float32", device="cpu")
    assert model.config == small_aim().config
    assert not model.training
    assert torch.equal(model(images()).logits, small_aim()(images()).logits)
    assert var.AIM.from_pretrained(str(folder), dtype="bfloat16").probe.query.dtype == torch.bfloat16


def test_a_folder_keeps_its_probe_layers(folder: Path) -> None:
    assert AIM.from_pretrained(folder, probe_layers=[2, 0]).config.probe_layers == (0, 2)
    for layers in ([0, 1], "last"):
        with refused(str(folder), "reads layers [0, 2]", "leave probe_layers out"):
            AIM.from_pretrained(folder, probe_layers=layers)
    with refused("[3]", "0..2"):
        AIM.from_pretrained(folder, probe_layers=[3])


@pytest.mark.parametrize(("reads", "last"), [((1, 2), True), ((0, 1), False)])
def test_best_and_last_of_a_folder_are_those_of_its_probe(tmp_path: Path, reads: tuple[int, ...], last: bool) -> None:
    save_model(tmp_path / "model", small_aim(probe_layers=reads))
    for layers in (None, "best"):
        assert AIM.from_pretrained(tmp_path / "model", probe_layers=layers).config.probe_layers == reads
    if last:
        assert AIM.from_pretrained(tmp_path / "model", probe_layers="last").config.probe_layers == reads
        return
    with refused(f"reads layers {list(reads)}, not [1, 2]", "leave probe_layers out"):
        AIM.from_pretrained(tmp_path / "model", probe_layers="last")


def test_an_encoder_without_a_probe_is_not_an_aim(tmp_path: Path) -> None:
    save_model(tmp_path / "encoder", Encoder(EncoderConfig(**SIZES)))
    with refused(str(tmp_path / "encoder"), "no probe", "stage probe"):
        AIM.from_pretrained(tmp_path / "encoder")


def test_foreign_folders(tmp_path: Path, folder: Path) -> None:
    save_model(tmp_path / "var", small_var())
    with refused("'VAR'", "'AIM' is needed"):
        AIM.from_pretrained(tmp_path / "var")
    (tmp_path / "empty").mkdir()
    with refused(str(tmp_path / "empty"), "has no config.json"):
        AIM.from_pretrained(tmp_path / "empty")
    entries = json.loads((folder / CONFIG).read_text())
    entries["config"]["probe_layers"] = [0, 7]
    (folder / CONFIG).write_text(json.dumps(entries))
    with refused(str(folder / CONFIG), "[0, 7]", "0..2"):
        AIM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["aim-600x", "aim-2B", "var-d16", "no/such/folder"])
def test_unknown_names(name: str) -> None:
    with refused(repr(name), "aim-600M, aim-1B, aim-3B, aim-7B", "model folder"):
        AIM.from_pretrained(name)


@pytest.mark.parametrize("name", [None, 600, ["aim-600M"]], ids=str)
def test_what_is_no_name_is_refused(name: object) -> None:
    with refused(f"model={name!r} must be a path or a name"):
        AIM.from_pretrained(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["aim-tiny", "aim-small", "aim-base"])
def test_small_ones_are_to_be_trained(name: str) -> None:
    with refused(name, "no released weights", "train it", "recipe"):
        AIM.from_pretrained(name)


def test_device_and_dtype_are_checked_first(folder: Path) -> None:
    with refused("'tpu'", "or auto"):
        AIM.from_pretrained("aim-7B", device="tpu")
    with refused("'float16'"):
        AIM.from_pretrained("aim-7B", dtype="float16")
    for files in ({"backbone_file": "a.pth"}, {"head_file": "b.pth"}):
        with refused("released name", str(folder)):
            AIM.from_pretrained(folder, **files)


def test_var_offers_both_and_nothing_else() -> None:
    assert var.AIM is AIM
    with pytest.raises(AttributeError, match="'AIMs'"):
        _ = var.AIMs


# --- pictures


def halves(width: int, height: int) -> Image.Image:
    """Black at the left, white at the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def extremes() -> Iterator[tuple[int, list[float]]]:
    for value in (0, 255):
        yield value, [(value / 255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]


def test_pictures_are_standardised() -> None:
    for value, expected in extremes():
        result = val_transforms(8)(Image.new("RGB", (30, 20), (value, value, value)))
        assert result.shape == (3, 8, 8)
        assert result.dtype == torch.float32
        for channel, number in zip(result, expected, strict=True):
            assert channel.flatten().tolist() == pytest.approx([number] * 64, abs=1e-5)
    color = val_transforms(8)(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert [round(float(c), 2) for c in color[:, 0, 0]] == [2.25, -2.04, -1.80]


def test_the_middle_of_the_picture_is_kept() -> None:
    """With the short side at 256 / 224, 224 px show 224 / 256 of it, so 56 of 64 px: 4 px less on either side."""
    (_, dark), (_, bright) = extremes()
    wide = val_transforms(224)(halves(512, 256))
    assert wide[0, :, :100].mean().item() == pytest.approx(dark[0], abs=1e-4)
    assert wide[0, :, 124:].mean().item() == pytest.approx(bright[0], abs=1e-4)
    picture = np.zeros((256, 256, 3), np.uint8)
    picture[16:240, 16:240] = 255  # just what is kept, so nothing is resized
    assert val_transforms(224)(Image.fromarray(picture)).amin(dim=(1, 2)).tolist() == pytest.approx(bright, abs=1e-4)
    picture[16] = 0
    assert val_transforms(224)(Image.fromarray(picture))[0, 0].mean().item() == pytest.approx(dark[0], abs=1e-4)


def test_pictures_of_any_mode_and_size() -> None:
    transform = val_transforms(8)
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        assert transform(Image.new(mode, (5, 300))).shape == (3, 8, 8)
    assert transform == val_transforms(8)
    assert val_transforms().size == 224
    for size in (0, -3, 48.5, "48", True, None):
        with refused(f"size={size!r} must be a whole number"):
            val_transforms(size)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_picture_through_the_model() -> None:
    batch = torch.stack([val_transforms(8)(halves(20, 16)) for _ in range(2)])
    assert small_aim()(batch).logits.shape == (2, 5)
