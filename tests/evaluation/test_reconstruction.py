"""Measures of the tokenizer: against torchmetrics, NumPy and SciPy, on tokenizers whose reconstructions are known."""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import VOCAB, normal, refused, small_var, small_vqvae
from scipy import linalg, stats
from tiny import Run, image_folder, refusal, tiny_pipeline
from torch import Tensor, nn

from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.evaluation.reconstruction import psnr_of_scales, reconstruction, usages
from var.hub.checkpoint import save_model
from var.hub.load import find_tokenizer
from var.utils.images import to_pil
from var.utils.torchvision_compat import import_torchvision

N = 6
PIXELS = torch.randint(256, (N, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
IMAGES = PIXELS.float() / 127.5 - 1


class Seen(NamedTuple):
    pool: Tensor


class Colors:
    """An extractor whose features are the means of the channels."""

    name, library, weights, side, resize, dimension = "colors", "none", "none", 8, "none", 3

    def __call__(self, images: Tensor) -> Seen:
        assert images.dtype == torch.uint8
        return Seen(images.float().mean(dim=(2, 3)))


class Known(VQVAE):
    """Its reconstructions are the images, a constant brighter."""

    def __init__(self, brighter: float) -> None:
        super().__init__(TokenizerConfig(scales=(1, 2), vocab_size=4, latent_dim=3, base_width=4, multipliers=(1,) * 3,
                                         blocks=1, norm_groups=2))  # fmt: skip
        self.brighter = nn.Parameter(torch.tensor(brighter))
        self.seen: list[Tensor] = []

    def encode(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return torch.tensor([[0, 1, 2, 3, 3]]).expand(len(images), -1)

    def decode(self, tokens: Tensor, num_scales: int | None = None) -> Tensor:
        return self.seen[-1] + self.brighter


def batches(batch_size: int = 4, images: Tensor = IMAGES) -> Iterator[tuple[Tensor, list[int]]]:
    for part in images.split(batch_size):
        yield part, [0] * len(part)


def rounded(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [0, 1], of what a PNG would hold."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in to_pil(images)]).double() / 255


# --- pixels


@torch.no_grad()
def test_psnr_ssim_and_l1_are_those_of_8_bit_images() -> None:
    vqvae = small_vqvae()
    found = reconstruction(vqvae, batches())
    ours, theirs = rounded(vqvae.decode(vqvae.encode(IMAGES))), rounded(IMAGES)
    import_torchvision()  # which torchmetrics imports
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    psnr = [peak_signal_noise_ratio(a[None], b[None], data_range=1.0).item() for a, b in zip(ours, theirs, strict=True)]
    options: dict[str, Any] = {"sigma": 1.5, "data_range": 1.0, "reduction": "none"}
    ssim = structural_similarity_index_measure(ours, theirs, **options).numpy()
    l1 = (ours - theirs).abs().mean(dim=(1, 2, 3)).numpy()
    assert found.num_images == N
    assert found.psnr == pytest.approx((np.mean(psnr), stats.sem(psnr)), rel=1e-6)
    assert found.ssim == pytest.approx((ssim.mean(), stats.sem(ssim)), rel=1e-6)
    assert found.l1 == pytest.approx((l1.mean(), stats.sem(l1)), rel=1e-6)
    assert found.perceptual is None
    assert found.fid is None


def test_known_reconstructions_have_known_measures() -> None:
    dark = torch.full((5, 3, 8, 8), 100 / 127.5 - 1)
    found = reconstruction(Known(10 / 127.5), batches(2, dark))
    assert found.psnr == pytest.approx((20 * math.log10(255 / 10), 0), abs=1e-5)
    assert found.l1 == pytest.approx((10 / 255, 0), abs=1e-7)


def test_less_than_half_a_step_is_no_difference() -> None:
    found = reconstruction(Known(0.4 / 127.5), batches(images=IMAGES))
    assert found.l1.mean == 0
    assert found.ssim.mean == pytest.approx(1, abs=1e-12)
    assert found.psnr.mean == pytest.approx(106.02, abs=0.01)
    assert reconstruction(Known(0.6 / 127.5), batches(images=IMAGES)).l1.mean > 0.9 / 255


def test_a_perceptual_distance_sees_8_bit_images() -> None:
    def distance(ours: Tensor, theirs: Tensor) -> Tensor:
        assert ours.dtype == theirs.dtype == torch.float32
        steps = (ours + 1) * 127.5
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        return (ours - theirs).square().mean(dim=(1, 2, 3))

    vqvae = small_vqvae()
    found = reconstruction(vqvae, batches(), perceptual=distance)
    with torch.no_grad():
        of_images = (rounded(vqvae.decode(vqvae.encode(IMAGES))) - rounded(IMAGES)).square().mean(dim=(1, 2, 3)) * 4
    assert found.perceptual == pytest.approx((of_images.mean().item(), stats.sem(of_images.numpy())), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_any_batch_size_gives_the_same_numbers(batch_size: int) -> None:
    vqvae, extractor = small_vqvae(), Colors()
    ours = reconstruction(vqvae, batches(batch_size), extractor=extractor)
    theirs = reconstruction(vqvae, batches(4), extractor=extractor)
    for name in ("psnr", "ssim", "l1"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-6)
    assert ours.fid == pytest.approx(theirs.fid, rel=1e-6)
    assert (ours.of_scales, ours.overall) == (theirs.of_scales, theirs.overall)


# --- features


@torch.no_grad()
def test_rfid_is_the_distance_between_originals_and_reconstructions() -> None:
    vqvae = small_vqvae()
    found = reconstruction(vqvae, batches(), extractor=Colors())
    ours, theirs = (255 * rounded(x).mean(dim=(2, 3)).numpy() for x in (vqvae.decode(vqvae.encode(IMAGES)), IMAGES))
    step = ours.mean(axis=0) - theirs.mean(axis=0)
    a, b = np.cov(ours.T), np.cov(theirs.T)
    expected = step @ step + np.trace(a + b) - 2 * np.trace(linalg.sqrtm(a @ b)).real
    assert found.fid == pytest.approx(expected, rel=1e-6)


def test_rfid_of_a_shift_is_its_square() -> None:
    middle = IMAGES * 0.5
    shifted = reconstruction(Known(3 / 127.5), batches(images=rounded(middle).float() * 2 - 1), extractor=Colors())
    assert shifted.fid == pytest.approx(3 * 3**2, rel=1e-5)
    same = reconstruction(Known(0.0), batches(), extractor=Colors())
    assert same.fid == pytest.approx(0, abs=1e-6)


# --- codebook


def test_uniform_codewords_have_as_many_for_perplexity() -> None:
    counts = [[7] * 8, [1, 1, 0, 0, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0, 0, 0], [4, 2, 2, 0, 0, 0, 0, 0]]
    uniform, few, one, skewed = usages(torch.tensor(counts))
    assert uniform == pytest.approx((56, 8, 8, 8), rel=1e-12)
    assert (uniform.used_fraction, uniform.perplexity_fraction) == pytest.approx((1, 1))
    assert few == pytest.approx((2, 2, 2, 2), rel=1e-12)
    assert one == pytest.approx((9, 1, 1, 8), rel=1e-12)
    assert (one.used_fraction, one.perplexity_fraction) == pytest.approx((1 / 8, 1 / 8))
    assert skewed == pytest.approx((8, 3, 2**1.5, 8), rel=1e-12)  # 1.5 bits


def test_usage_is_numpys() -> None:
    vqvae = small_vqvae()
    found = reconstruction(vqvae, batches())
    with torch.no_grad():
        tokens = vqvae.encode(IMAGES).numpy()
    parts = [tokens[:, :1], tokens[:, 1:5], tokens[:, 5:], tokens]
    for usage, part in zip([*found.of_scales, found.overall], parts, strict=True):
        frequencies = np.bincount(part.ravel(), minlength=VOCAB) / part.size
        assert usage.tokens == part.size
        assert usage.used == len(np.unique(part))
        assert usage.perplexity == pytest.approx(math.exp(stats.entropy(frequencies)), rel=1e-9)
        assert usage.reachable == min(part.size, VOCAB)
    assert found.of_scales[2].used > 3


# --- coarse to fine


@torch.no_grad()
def test_psnr_after_each_scale_is_that_of_its_image() -> None:
    vqvae = small_vqvae()
    found = psnr_of_scales(vqvae, batches())
    for k, of in enumerate(found):
        ours = rounded(vqvae.decode(vqvae.encode(IMAGES), num_scales=k + 1))
        error = (ours - rounded(IMAGES)).square().mean(dim=(1, 2, 3)).numpy()
        assert of == pytest.approx((-10 * np.log10(error).mean(), stats.sem(-10 * np.log10(error))), rel=1e-6)
    assert len(found) == 3
    assert found[-1] == pytest.approx(reconstruction(vqvae, batches()).psnr, rel=1e-9)


# --- mistakes


def test_what_cannot_be_measured_is_refused() -> None:
    for measure in (reconstruction, psnr_of_scales):
        with refused("no images"):
            measure(small_vqvae(), [])
        with refused("(2, 3, 16, 16)"):
            measure(small_vqvae(), batches(2, normal(2, 3, 16, 16)))
        with refused("bfloat16", "float32"):
            measure(small_vqvae().cast(torch.bfloat16), batches())
    with refused("at least 2"):
        reconstruction(small_vqvae(), batches(1, IMAGES[:1]), extractor=Colors())


def test_a_tokenizer_is_found_alone_and_in_a_model(tmp_path: Path) -> None:
    save_model(tmp_path / "alone", small_vqvae())
    tiny_pipeline().save_pretrained(tmp_path / "model")
    ours, theirs = find_tokenizer(tmp_path / "alone"), find_tokenizer(str(tmp_path / "model"))
    assert torch.equal(ours.encode(IMAGES), theirs.encode(IMAGES))
    save_model(tmp_path / "var", small_var())
    with refused("'VAR'", "'VQVAE'"):
        find_tokenizer(tmp_path / "var")
    (tmp_path / "empty").mkdir()
    with refused("tokenizer does not exist"):
        find_tokenizer(tmp_path / "empty")


# --- the command


@pytest.fixture
def evaluate(var: Run, tmp_path: Path) -> Run:
    """`var evaluate tokenizer` on validation images with one that cannot be read, and a model."""
    folder = image_folder(tmp_path / "images")
    (folder / "val" / "cup" / "4.png").write_bytes(b"no image")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return partial(var, "evaluate", "tokenizer", "--data", "images", "--model", "model")


def test_the_command_prints_and_writes(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.evaluation.metrics.extractors.open_extractor", lambda *_: Colors())
    monkeypatch.setattr("var.networks.perceptual.load_perceptual", lambda *_: Distance())
    code, out, err = evaluate("--extractor", "colors", "--lpips", "lpips-alex", "--per-scale", "--json", "r.json")
    assert code == 0
    assert "5 images of 6; 1 could not be read" in out
    for part in ("rFID", "PSNR", "SSIM", "LPIPS ", "L1", "PSNR after it"):
        assert part in out
    assert "covariance" not in err
    assert "rFID: with fewer than 50,000 images (5) no number is comparable with published ones" in err
    written = json.loads((tmp_path / "r.json").read_text())
    assert (written["data"]["images"], written["data"]["unreadable"]) == (5, 1)
    assert written["rfid"]["extractor"] == "colors"
    assert written["perceptual"] == {"network": "lpips-alex", "mean": 0.5, "error": 0.0}
    assert list(written["codebook"]["scales"]) == ["1x1", "2x2", "4x4"]
    assert written["codebook"]["scales"]["4x4"]["tokens"] == 80
    assert written["psnr_after_scale"]["4x4"] == pytest.approx(written["psnr"])
    assert len(written["warnings"]) == 2


class Distance(nn.Module):
    def forward(self, ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.full((len(ours),), 0.5)


def test_the_command_needs_no_weights_without_the_rfid(evaluate: Run, tmp_path: Path) -> None:
    code, out, err = evaluate("--no-fid", "--classes", "0", "--num", 2, "--json", "r.json")
    assert (code, err) == (0, "")
    assert "2 images of 3" in out
    assert "rFID" not in out
    assert json.loads((tmp_path / "r.json").read_text())["rfid"] is None


def test_the_command_tells_mistakes_in_one_line(evaluate: Run) -> None:
    for arguments, parts in {
        ("--extractor", "vgg17"): ["vgg17", "unknown"],
        ("--no-fid", "--lpips", "lpips-vgg17"): ["lpips-vgg17", "unknown"],
        ("--no-fid", "--model", "nothing"): ["nothing"],
        ("--no-fid", "--num", "0"): ["num=0"],
        ("--no-fid", "--classes", "9"): ["no validation images"],
        ("--no-fid", "--json", "images"): ["images", "tokenizer.json"],
        ("--no-fid", "--json", "images/val/cup/0.png"): ["images/val/cup/0.png is inside images"],
        ("--no-fid", "--weights", "w.pth"): ["--weights w.pth", "--no-fid"],
        ("--no-fid", "--lpips-weights", "w.pth"): ["--lpips-weights w.pth needs --lpips"],
        ("--no-fid", "--data", "nowhere"): ["nowhere"],
    }.items():
        refusal(evaluate(*arguments), *parts)
