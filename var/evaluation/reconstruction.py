"""What a tokenizer loses: pictures against their reconstructions from all their tokens.

All measures are of 8-bit pictures, as they would be read from files: the crop, and the reconstruction rounded to the
nearest of 256 values. Networks compute in float32, all means are taken in float64.

B batch, K scales, S side, V codebook size.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.losses import psnr
from tokenizer.vqvae import VQVAE
from var.evaluation.metrics.extractors import Extractor
from var.evaluation.metrics.metrics import Moments, frechet_distance
from var.evaluation.metrics.stats import MeanStderr, check_any, check_float32, mean_stderr
from var.hub.checkpoint import CONFIG, TOKENIZER, load_tokenizer
from var.hub.load import find_folder
from var.networks.perceptual import ssim
from var.training.codebook import count_tokens, describe
from var.utils.images import from_uint8, to_uint8

Batches = Iterable[tuple[Tensor, list[int]]]  # (B, 3, S, S) in [-1, 1] and labels, which play no part here
Distance = Callable[[Tensor, Tensor], Tensor]  # reconstructions and images -> (B,)


class Usage(NamedTuple):
    """How the tokens of some scales, or all, are spread over the codebook.

    Attributes:
        tokens: that were met.
        used: different codewords among them.
        perplexity: exponential of the entropy of the codewords' frequencies: so many, equally frequent, have the same.
        reachable: what neither could have surpassed, the lesser of tokens and V.
    """

    tokens: int
    used: int
    perplexity: float
    reachable: int

    @property
    def used_fraction(self) -> float:
        """Of what was reachable."""
        return self.used / self.reachable

    @property
    def perplexity_fraction(self) -> float:
        """Of what was reachable."""
        return self.perplexity / self.reachable


@dataclass(frozen=True)
class Reconstruction:
    """Means over pictures.

    Attributes:
        pictures: how many.
        psnr: dB, of pixels in [0, 1]: -10 log10 of a picture's mean squared difference; the mean is over the pictures'
            values. Equal pictures count as 106 dB.
        ssim: structural similarity of pixels in [0, 1], Gaussian window of 11 px and sigma 1.5, mean over channels.
        l1: mean absolute difference of pixels in [0, 1].
        perceptual: the distance that was given; None: none was.
        fid: Frechet distance between the features of the pictures and of their reconstructions (rFID); None: no
            extractor was given.
        of_scales: usage of the codebook by each scale, coarse to fine.
        overall: usage by all scales together.
    """

    pictures: int
    psnr: MeanStderr
    ssim: MeanStderr
    l1: MeanStderr
    perceptual: MeanStderr | None
    fid: float | None
    of_scales: tuple[Usage, ...]
    overall: Usage


def open_tokenizer(model: str | Path) -> VQVAE:
    """The tokenizer of a model, in float32 on the CPU.

    Args:
        model: as `VARPipeline.from_pretrained` takes it, or the folder of a tokenizer alone.

    Raises:
        InputError: an unknown name, missing or damaged files.
    """
    folder = find_folder(model)
    return load_tokenizer(folder if (folder / CONFIG).is_file() else folder / TOKENIZER)


@torch.inference_mode()
def reconstruction(
    vqvae: VQVAE, batches: Batches, perceptual: Distance | None = None, extractor: Extractor | None = None
) -> Reconstruction:
    """Measure a tokenizer.

    Args:
        vqvae: in float32.
        batches: the pictures.
        perceptual: of float32 images in [-1, 1], on the tokenizer's device.
        extractor: of uint8 pictures.

    Raises:
        InputError: no pictures, or of another size than the tokenizer's; fewer than two for the Frechet distance;
            measures that are not finite; a tokenizer in another type.
    """
    check_float32(vqvae)
    device = vqvae.quant_conv.weight.device
    parts: list[dict[str, Tensor]] = []
    counts = torch.zeros(len(vqvae.scales), vqvae.config.vocab_size, dtype=torch.int64)
    features = None if extractor is None else _FeaturePair(extractor)
    for images, _ in batches:
        tokens = vqvae.encode(images.to(device))
        counts += count_tokens(vqvae.quantizer, tokens).cpu()
        integers = [to_uint8(each).cpu() for each in (vqvae.decode(tokens), images)]
        shown, original = map(from_uint8, integers)
        parts.append(_differences(shown, original))
        if perceptual is not None:
            parts[-1]["perceptual"] = perceptual(shown.to(device), original.to(device)).cpu()
        if features is not None:
            features.add(*integers)
    check_any(parts)
    means = {name: mean_stderr(torch.cat([part[name] for part in parts]), name) for name in parts[0]}
    return Reconstruction(
        pictures=sum(len(part["psnr"]) for part in parts),
        psnr=means["psnr"],
        ssim=means["ssim"],
        l1=means["l1"],
        perceptual=means.get("perceptual"),
        fid=None if features is None else features.distance(),
        of_scales=usages(counts),
        overall=usages(counts.sum(dim=0, keepdim=True))[0],
    )


@torch.inference_mode()
def psnr_of_scales(vqvae: VQVAE, batches: Batches) -> tuple[MeanStderr, ...]:
    """PSNR of what the pictures look like after each scale, coarse to fine; K times the work of decoding.

    Raises:
        InputError: as `reconstruction`.
    """
    check_float32(vqvae)
    device = vqvae.quant_conv.weight.device
    parts = [list(_psnr_of_scales(vqvae, images, device)) for images, _ in batches]
    check_any(parts)
    return tuple(mean_stderr(torch.cat(column), "psnr") for column in zip(*parts, strict=True))


def _psnr_of_scales(vqvae: VQVAE, images: Tensor, device: torch.device) -> Iterator[Tensor]:
    for shown in vqvae.reconstruct(images.to(device)):
        yield psnr(from_uint8(to_uint8(shown).cpu()).double(), images.double())


def usages(counts: Tensor) -> tuple[Usage, ...]:
    """(n, V) int64, how often each of n sets of tokens has each codeword -> what that says of each."""
    tokens, used = counts.sum(dim=1), (counts > 0).sum(dim=1)
    reachable = tokens.clamp(max=counts.shape[1])
    perplexity = describe(counts.double())["perplexity"] * reachable
    rows = zip(tokens.tolist(), used.tolist(), perplexity.tolist(), reachable.tolist(), strict=True)
    return tuple(Usage(*row) for row in rows)


class _FeaturePair:
    """Statistics of what an extractor sees in reconstructions and in their originals."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.moments = (Moments(extractor.dimension), Moments(extractor.dimension))

    def add(self, *sets: Tensor) -> None:
        """Reconstructions and originals, (B, 3, S, S) uint8 each."""
        for moments, images in zip(self.moments, sets, strict=True):
            moments.add(self.extractor(images).pool)

    def distance(self) -> float:
        """The Frechet distance between the two. Raises InputError for fewer than two pictures."""
        shown, original = self.moments
        return frechet_distance(shown.statistics(), original.statistics())


def _differences(shown: Tensor, images: Tensor) -> dict[str, Tensor]:
    """By name, (B,) float64."""
    shown, images = shown.double(), images.double()
    l1 = (shown - images).abs().mean(dim=(1, 2, 3)) / 2
    return {"psnr": psnr(shown, images), "ssim": ssim(shown, images), "l1": l1}
