"""Drawing token by token: generate, the pipeline and the commands with a raster model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, SIDES, VOCAB, noise, random_tokens, refused, small_raster, small_var, small_vqvae
from tiny import NAMES, Run, image_folder, refusal
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.hub.refiner import open_refiner
from var.models.raster import Raster
from var.pipeline import VARPipeline
from var.sampling.compiled import compile_transformer
from var.sampling.generate import ForcedTokens, Generated, generate
from var.sampling.logits import cfg_at_scale, classifier_free_guidance
from var.sampling.params import SamplingParams

LABELS = [0, CLASSES, 2]
SIDE = SIDES[-1]
LENGTH = SIDE**2


def tokenizer() -> VQVAE:
    return small_vqvae(seed=2, scales=(SIDE,))


def model(order: str = "raster") -> Raster:
    return small_raster(seed=1, order=order)


def pipeline() -> VARPipeline:
    return VARPipeline(model("z-curve"), tokenizer(), NAMES)


def sample(drawn_by: Raster, labels: list[int] = LABELS, forced: ForcedTokens | None = None, **more: Any) -> Generated:
    sampling = replace(SamplingParams(cfg=1.5, top_k=20, top_p=0.95), **more)
    return generate(drawn_by, tokenizer(), labels, sampling, seed=3, forced=forced)


@torch.inference_mode()
def teacher_forced(model: Raster, tokens: Tensor, cfg: float) -> Tensor:
    """Guided logits of every token, (B, L, V), row by row."""
    ordered = tokens[:, model.order]
    codes = tokenizer().quantizer.codebook(ordered[:, :-1])
    conditional = model(torch.tensor(LABELS), codes)
    unconditional = model(torch.full((len(LABELS),), CLASSES), codes)
    strengths = [cfg_at_scale(cfg, i, LENGTH) for i in range(LENGTH)]
    guided = [
        classifier_free_guidance(conditional[:, i], unconditional[:, i], strength)
        for i, strength in enumerate(strengths)
    ]
    return torch.stack(guided, dim=1)[:, model.order.argsort()]


@pytest.mark.parametrize("order", ["raster", "spiral", "z-curve"])
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_the_best_token_alone_is_the_argmax_of_the_masked_pass(order: str, cfg: float) -> None:
    drawn_by = model(order)
    tokens = sample(drawn_by, cfg=cfg, top_k=1).tokens
    assert torch.equal(tokens, teacher_forced(drawn_by, tokens, cfg).argmax(dim=-1))


def test_the_least_temperature_draws_the_best_token() -> None:
    drawn_by = model()
    drawn_by.head.weight.data.mul_(100)  # the best token is ahead of the others by more than the temperature
    cold = sample(drawn_by, temperature=0.01, top_k=0, top_p=0.0).tokens
    assert torch.equal(cold, sample(drawn_by, top_k=1).tokens)


def test_an_image_follows_from_seed_label_and_index_alone() -> None:
    drawn_by = model()
    together = sample(drawn_by)
    assert torch.equal(sample(drawn_by).tokens, together.tokens)
    for i, label in enumerate(LABELS):
        assert torch.equal(sample(drawn_by, [label]).tokens[0], together.tokens[i])
    assert not torch.equal(*sample(drawn_by, [2, 2]).tokens)
    shown = tokenizer().decode(together.tokens)
    assert torch.allclose(together.images, shown, atol=1e-5)


def test_forced_tokens_are_kept_and_change_only_what_comes_later() -> None:
    drawn_by = model("spiral")
    free = sample(drawn_by).tokens
    forced = torch.zeros(3, LENGTH, dtype=torch.bool)
    forced[:, drawn_by.order[5:8]] = True
    given = random_tokens(3, LENGTH)
    kept = sample(drawn_by, forced=ForcedTokens(given, forced)).tokens
    assert torch.equal(kept[forced], given[forced])
    assert torch.equal(kept[:, drawn_by.order[:5]], free[:, drawn_by.order[:5]])
    assert not torch.equal(kept[:, drawn_by.order[8:]], free[:, drawn_by.order[8:]])


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ({"cfg_scales": (0, 0)}, ("cfg_scales=(0, 0)", "single map of 4x4 tokens", "leave it out")),
        ({"use_scales": (4,)}, ("use_scales=(4,)", "leave it out")),
        ({"smooth": True}, ("smooth=True", "leave it out")),
        ({"temperature": (0.9,)}, ("temperature=(0.9,)", "give one number")),
    ],
)
def test_options_for_scales_are_refused(option: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        sample(model(), **option)
    with refused(*parts):
        pipeline()(0, **option)


def test_a_refiner_and_compiling_are_refused() -> None:
    raster, var = pipeline().parts, VARPipeline(small_var(), small_vqvae()).parts
    with refused("a refiner needs a VAR, and the model is a Raster"):
        open_refiner(var, 1, raster)
    with refused("the refiner needs a VAR, and the model is a Raster"):
        open_refiner(raster, 1, var)
    with refused("compile needs a VAR"):
        compile_transformer(model())


def test_a_tokenizer_of_several_scales_is_refused() -> None:
    with refused("the transformer has scales=(4,), the tokenizer scales=(1, 2, 4)"):
        VARPipeline(model(), small_vqvae())


def test_a_saved_pipeline_draws_the_same(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.save_pretrained(tmp_path / "model")
    loaded = VARPipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    assert loaded.model.config == pipe.model.config
    ours, theirs = (each([0, 3], num=2, cfg=2, top_k=VOCAB, intermediates=True) for each in (pipe, loaded))
    assert torch.equal(ours.tokens, theirs.tokens)
    assert theirs.intermediates is not None
    assert [list(growth) for growth in theirs.intermediates] == [[image] for image in theirs.images]
    assert "next-token prediction" in pipe.card().summary


def test_progress_is_that_of_tokens_and_images_are_shown_once() -> None:
    pipe, seen, shown = pipeline(), [], []
    drawn = pipe([0, 3], progress=lambda done, total: seen.append((done, total)), on_scale=shown.append)
    assert seen == [(2 * (i + 1) / LENGTH, 2) for i in range(LENGTH)]
    assert [(each.scale, each.num_scales, each.labels) for each in shown] == [(0, 1, [0, 3])]
    assert [image.tobytes() for image in shown[0].images] == [image.tobytes() for image in drawn.images]


def test_a_mask_is_filled_and_what_needs_scales_is_refused() -> None:
    pipe, image = pipeline(), noise(16, 16)
    filled = pipe.inpaint(image, (4, 4, 12, 12), label=0, seed=1)
    assert len(filled.images) == 1
    with refused("upscaling needs a VAR"):
        pipe.upscale(noise(4, 4))
    with refused("classification needs a VAR"):
        pipe.classify(image)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 16, 8), ["8 of 16 tokens"]),
        ((0, 0, 4, 4), ["1 of 16 tokens"]),
        ((4, 4, 12, 12), []),
        ((0, 8, 16, 16), []),
    ],
)
def test_what_comes_before_all_that_is_known_is_said(
    box: tuple[int, ...], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline().inpaint(noise(8, 8), tuple(side // 2 for side in box), label=0, dilate=0)
    told = [line for line in caplog.messages if "without a look" in line]
    assert [line.partition(": ")[2].partition(",")[0] for line in told] == expected


def test_int8_draws() -> None:
    pipe = pipeline()
    pipe.model.cast(torch.int8)
    assert pipe(0, cfg=1, top_k=4).tokens.shape == (1, LENGTH)


def test_the_commands_draw_from_its_folder(var: Run, tmp_path: Path) -> None:
    pipeline().save_pretrained(tmp_path / "model")
    given = ("--model", tmp_path / "model", "--device", "cpu", "--dtype", "float32", "--top-k", 8)
    code, _, err = var("sample", *given, "--class", 0, "--num", 2, "--out", "images")
    assert code == 0, err
    assert (tmp_path / "images" / "0_1.png").is_file()
    code, out, err = var("evaluate", "generate", *given, "--num-per-class", 2, "--out", "set")
    assert code == 0, err
    assert "holds 8 images of 4 classes" in out
    refusal(var("sample", *given, "--cfg-scales", "0:0", "--out", "none"), "cfg_scales=(0, 0)", "leave it out")
    images = image_folder(tmp_path / "data")
    for command in ("likelihood", "classification"):
        refusal(var("evaluate", command, "--data", images, "--model", tmp_path / "model"), f"{command} needs a VAR")
    extract = ("features", "extract", images / "val", "--out", "f.parquet")
    refusal(var(*extract, "--model", tmp_path / "model"), "feature extraction needs a VAR")
    refusal(var("bench", "sample", "--model", tmp_path / "model"), "holds a 'Raster'")
