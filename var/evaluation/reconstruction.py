"""Reconstruction metrics of a tokenizer: images against their reconstructions from all their tokens.

All metrics are of 8-bit images, as they would be read from files: the crop, and the reconstruction rounded to the
nearest of 256 values. Networks compute in float32, all means are taken in float64.

B batch, K scales, S side, V codebook size.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tokenizer.losses import psnr
from tokenizer.vqvae import VQVAE
from var.evaluation.metrics.extractors import Extractor
from var.evaluation.metrics.feature_metrics import Moments, frechet_distance
from var.evaluation.metrics.stats import MeanStderr, concatenate, mean_stderr
from var.networks.perceptual import ssim
from var.training.codebook import count_tokens, describe
from var.utils.device import check_float32
from var.utils.images import from_uint8, to_uint8

Batches = Iterable[tuple[Tensor, list[int]]]  # (B, 3, S, S) in [-1, 1] and labels, which are not used here
Distance = Callable[[Tensor, Tensor], Tensor]  # reconstructions and images -> (B,)


class Usage(NamedTuple):
    """Codebook usage by the tokens of one scale or of all."""

    tokens: int
    used: int  # different codewords among the tokens
    perplexity: float  # exponential of the entropy of the codewords' frequencies
    reachable: int  # upper bound of both, the smaller of tokens and V

    @property
    def used_fraction(self) -> float:
        """Used codewords as a fraction of the reachable."""
        return self.used / self.reachable

    @property
    def perplexity_fraction(self) -> float:
        """Perplexity as a fraction of the reachable."""
        return self.perplexity / self.reachable


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction metrics, means over images of pixels in [0, 1].

    PSNR is -10 log10 of an image's mean squared error, averaged over images; identical images count as 106 dB.
    """

    num_images: int
    psnr: MeanStderr  # dB
    ssim: MeanStderr  # structural similarity, Gaussian window of 11 px and sigma 1.5, mean over channels
    l1: MeanStderr  # mean absolute difference
    perceptual: MeanStderr | None  # the given distance, such as LPIPS
    fid: float | None  # rFID, between the features of the images and of their reconstructions
    of_scales: tuple[Usage, ...]  # usage of the codebook by each scale, coarse to fine; empty if there is none
    overall: Usage | None  # by all scales together


@torch.inference_mode()
def reconstruction(
    vqvae: VQVAE, batches: Batches, perceptual: Distance | None = None, extractor: Extractor | None = None
) -> Reconstruction:
    """Compute PSNR, SSIM, L1, usage of a codebook and, if given, perceptual distance and rFID of a tokenizer.

    Args:
        vqvae: in float32.
        perceptual: distance of float32 images in [-1, 1], on the tokenizer's device.
        extractor: for rFID, on uint8 images.

    Raises:
        InputError: no images, or of another size than the tokenizer's; fewer than two for rFID; metrics that are not
            finite; a tokenizer that is not in float32.
    """
    check_float32(vqvae)
    device = vqvae.quant_conv.weight.device
    parts: list[dict[str, Tensor]] = []
    has_codebook = not vqvae.is_continuous
    counts = torch.zeros(len(vqvae.scales) if has_codebook else 0, vqvae.config.vocab_size, dtype=torch.int64)
    moments = [] if extractor is None else [Moments(extractor.dimension) for _ in range(2)]
    for images, _ in batches:
        tokens = vqvae.encode(images.to(device))
        if has_codebook:
            counts += count_tokens(vqvae.quantizer, tokens).cpu()
        integers = [to_uint8(each).cpu() for each in (vqvae.decode(tokens), images)]
        shown, original = map(from_uint8, integers)
        parts.append(_measure_differences(shown, original))
        if perceptual is not None:
            parts[-1]["perceptual"] = perceptual(shown.to(device), original.to(device)).cpu()
        if extractor is not None:
            for each, pixels in zip(moments, integers, strict=True):
                each.add(extractor(pixels).pool)
    values = concatenate(parts)
    means = {name: mean_stderr(each, name) for name, each in values.items()}
    return Reconstruction(
        num_images=len(values["psnr"]),
        psnr=means["psnr"],
        ssim=means["ssim"],
        l1=means["l1"],
        perceptual=means.get("perceptual"),
        fid=frechet_distance(*(each.statistics() for each in moments)) if moments else None,
        of_scales=usages(counts),
        overall=usages(counts.sum(dim=0, keepdim=True))[0] if has_codebook else None,
    )


@torch.inference_mode()
def psnr_of_scales(vqvae: VQVAE, batches: Batches) -> tuple[MeanStderr, ...]:
    """Return the PSNR of the reconstruction after each scale, coarse to fine; decodes K times.

    Raises InputError: as `reconstruction`.
    """
    check_float32(vqvae)
    device = vqvae.quant_conv.weight.device
    parts = []
    for images, _ in batches:
        shown = [from_uint8(to_uint8(each).cpu()).double() for each in vqvae.reconstruct(images.to(device))]
        parts.append({str(k): psnr(each, images.double()) for k, each in enumerate(shown)})
    return tuple(mean_stderr(values, "psnr") for values in concatenate(parts).values())


def usages(counts: Tensor) -> tuple[Usage, ...]:
    """Return the codebook usage of n sets of tokens from their codeword counts, (n, V) int64."""
    tokens, used = counts.sum(dim=1), (counts > 0).sum(dim=1)
    reachable = tokens.clamp(max=counts.shape[1])
    perplexity = describe(counts.double())["perplexity"] * reachable
    rows = zip(tokens.tolist(), used.tolist(), perplexity.tolist(), reachable.tolist(), strict=True)
    return tuple(Usage(*row) for row in rows)


def _measure_differences(shown: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Return PSNR, SSIM and L1 by name, (B,) float64 each."""
    shown, images = shown.double(), images.double()
    l1 = (shown - images).abs().mean(dim=(1, 2, 3)) / 2
    return {"psnr": psnr(shown, images), "ssim": ssim(shown, images), "l1": l1}
