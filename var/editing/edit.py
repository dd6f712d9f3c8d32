"""Zero-shot editing: known tokens stay, the model generates the others (VAR paper, section 4.4).

An image is seen through square windows. What is known of a window becomes tokens, without a look under the mask;
the model generates the others to fit them; the result is pasted over the image, which stays as it was elsewhere.

B results, L tokens of all scales, S side of the model's images, m side of a small one.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import count, cycle

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError, check_whole_number
from tokenizer.vqvae import VQVAE
from var.editing.image_masks import Mask, feathered_alpha, mask_at_scales, masked_downscale, pull_push_fill, token_mask
from var.editing.params import BlendParams, OnImages
from var.editing.windows import Window, bounding_square, crop_mask, paste, remove_window, warn_if_blurred
from var.models.conditional import ConditionalTransformer
from var.models.var import VAR
from var.sampling.drawing import ForcedTokens
from var.sampling.generate import generate_batches
from var.sampling.logits import derive_seed
from var.sampling.params import SamplingParams
from var.sampling.steps import OnStep, count_images
from var.utils.image_files import log_once
from var.utils.images import to_pil, to_tensor
from var.utils.progress import Progress

log = logging.getLogger(__name__)

BACK_PROJECTIONS = 10
DEFAULT_SAMPLING, DEFAULT_BLEND = SamplingParams(), BlendParams()


def inpaint_windows(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    image: Image.Image,
    mask: Mask,
    windows: Iterable[Window],
    labels: list[int],
    sampling: SamplingParams = DEFAULT_SAMPLING,
    blend: BlendParams = DEFAULT_BLEND,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    on_images: OnImages | None = None,
) -> list[Image.Image]:
    """Inpaint an image, one result a label; the log warns where the model is too small for it, or cannot see it.

    Args:
        image: RGB, of any size.
        mask: of the image.
        windows: looked through one after the other; each fills what is left of the mask in it.
        labels: B labels; model.config.num_classes for no class.
        sampling: how tokens are drawn.
        blend: how results are blended into the image around the mask.
        seed: of the first window; those of the others follow from it.
        batch_size: results generated at once.
        progress: called with the results so far, those at work in part, and their number.
        on_images: called with each batch of finished results.

    Returns:
        B images of the same size.

    Raises:
        InputError: an unknown label, a batch_size below 1, a negative seed.
    """
    if blend.composite and not mask.any():
        return [image.copy() for _ in labels]
    images, windows = [image], list(windows)
    if warning := warn_if_blurred(mask, windows, vqvae.config.image_side):
        log.warning("%s", warning)
    for n, window in enumerate(windows):
        on_step = count_images(progress, len(labels), len(windows), n)
        square_mask, outside = ~crop_mask(~mask, window), ~crop_mask(np.ones_like(mask), window)
        hidden = square_mask if blend.hide_masked else outside
        seen = torch.stack([encoder_view(i.crop(window.box), hidden, vqvae.config.image_side) for i in images])
        forced = mask_at_scales(token_mask(square_mask, vqvae.scales.sides[-1]), vqvae.scales, blend.dilate)
        if blind := model.count_blind(forced):
            told = f"drawn without a look at the image: {blind} of {len(forced)} tokens, first in this model's order"
            log_once(logging.WARNING, f"{told}; a VAR or a MAR sees all that is known")
        part_seed = derive_seed(seed, n)
        half_token = window.side / vqvae.scales.sides[-1] / 2
        pasted = crop_mask(mask, window) if blend.composite else np.ones_like(square_mask)
        alpha = feathered_alpha(pasted, half_token if blend.feather is None else blend.feather)
        pasted_images: list[Image.Image] = []
        batches = masked_batches(model, vqvae, seen, forced, labels, sampling, part_seed, batch_size, on_step)
        for shown, generated in batches:
            if blend.composite and blend.color_match:
                generated = match_colors(generated, shown, square_mask)
            squares = [square.resize((window.side,) * 2, Image.Resampling.LANCZOS) for square in to_pil(generated)]
            before = images[len(pasted_images) :] if len(images) > 1 else images
            batch = [paste(i, square, alpha, window) for i, square in zip(cycle(before), squares, strict=False)]
            pasted_images += batch
            if on_images is not None and n == len(windows) - 1:
                on_images(batch)
        images, mask = pasted_images, remove_window(mask, window)
    return images


def upscale(
    model: VAR,
    vqvae: VQVAE,
    image: Image.Image,
    labels: list[int],
    num_scales: int | None = None,
    consistent: bool = True,
    sampling: SamplingParams = DEFAULT_SAMPLING,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
    on_images: OnImages | None = None,
) -> list[Image.Image]:
    """Generate the fine scales of a small image, one result a label.

    The image is enlarged to the model's side (Lanczos) and encoded as any other. Averaged over large cells, the
    features of an enlarged image are close to those of the sharp one, as both show the same at that size. So the
    tokens of coarse maps are kept; the finer ones would describe the image's blur and are generated.
    Encoded at its own size, it would show the encoder objects smaller and sharper than those it was trained on.

    Args:
        image: RGB, smaller than the model's side; its longer side becomes the model's.
        labels: B labels; model.config.num_classes for no class.
        num_scales: scales whose tokens are kept; None: those whose cells are at least as large as when the image is in
            full size and its last token map is used.
        consistent: the result, reduced to the small image's size, is the small image.
        sampling, seed, batch_size, progress, on_images: as in `inpaint_windows`.

    Returns:
        B images.

    Raises:
        InputError: the image is not smaller than the model's, num_scales not in 1..K, an option out of range.
    """
    side, sides = vqvae.config.image_side, vqvae.scales.sides
    window = bounding_square(image.size)
    if window.side >= side:
        raise InputError(
            f"the image has {image.width}x{image.height} px: upscale takes images smaller than the model's, "
            f"{side}x{side} px"
        )
    if num_scales is not None:
        check_whole_number("num_scales", num_scales, 1, len(sides))
    num_forced = num_scales or max(sum(s * side <= sides[-1] * window.side for s in sides), 1)
    outside = ~crop_mask(np.ones(image.size[::-1], dtype=bool), window)
    square = image.crop(window.box)
    forced = vqvae.scales.levels() < num_forced  # beside the image too: its continuation there is cropped away
    seen = encoder_view(square, outside, side)[None]
    on_step = count_images(progress, len(labels))
    left, top = (round(-edge * side / window.side) for edge in (window.left, window.top))
    width, height = (max(round(length * side / window.side), 1) for length in image.size)
    results: list[Image.Image] = []
    for _, generated in masked_batches(model, vqvae, seen, forced, labels, sampling, seed, batch_size, on_step):
        if consistent:
            generated = back_project(generated, encoder_view(square, outside, window.side)[None])
        batch = [result.crop((left, top, left + width, top + height)) for result in to_pil(generated)]
        for result in batch:
            result.info = image.info  # with its color profile
        results += batch
        if on_images is not None:
            on_images(batch)
    return results


def encoder_view(square: Image.Image, hidden: Mask, side: int) -> Tensor:
    """Return a square as the encoder is shown it: (3, side, side) in [-1, 1], hidden pixels continued from the others.

    They are hidden before the square is resized, which would mix them with their neighbors. A square four times as
    large or more is first reduced by a whole factor, to twice the side or more, a cell the mean of its known pixels.
    """
    factor = 1
    if hidden.any():
        pixels, mask = to_tensor(square)[None], torch.from_numpy(hidden)
        if square.width >= 4 * side:
            factor = square.width // (2 * side)
            pixels, mask = masked_downscale(pixels, mask, factor)
        square = to_pil(pull_push_fill(pixels, mask))[0]
    length = hidden.shape[0] / factor  # the last cells may reach over the edge
    return to_tensor(square.resize((side, side), Image.Resampling.LANCZOS, box=(0, 0, length, length)))


def generate_masked(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    seen: Tensor,
    forced: Tensor,
    labels: list[int],
    sampling: SamplingParams,
    seed: int = 0,
    batch_size: int = 16,
    on_step: OnStep | None = None,
) -> Tensor:
    """Encode what is seen, force some of its tokens, generate the others.

    Args:
        seen: (B, 3, S, S) in [-1, 1], or (1, 3, S, S) for all.
        forced: (L,) bool, True where the token of what is seen stays.
        labels: B labels.
        on_step: as `generate` takes it.

    Returns:
        (B, 3, S, S) in [-1, 1], on the CPU.
    """
    batches = masked_batches(model, vqvae, seen, forced, labels, sampling, seed, batch_size, on_step)
    return torch.cat([generated for _, generated in batches])


@torch.inference_mode()
def masked_batches(
    model: ConditionalTransformer,
    vqvae: VQVAE,
    seen: Tensor,
    forced: Tensor,
    labels: list[int],
    sampling: SamplingParams = DEFAULT_SAMPLING,
    seed: int = 0,
    batch_size: int = 16,
    on_step: OnStep | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give what `generate_masked` returns batch by batch, each with what is seen of it, or (1, 3, S, S) for all."""
    batch_size = check_whole_number("batch_size", batch_size, 1)
    device = model.position.device
    tokens = torch.cat([vqvae.encode(part.to(device)) for part in seen.split(batch_size)])
    given = ForcedTokens(tokens.expand(len(labels), *tokens.shape[1:]), forced.to(device).expand(len(labels), -1))
    batches = generate_batches(model, vqvae, labels, batch_size, sampling, seed, given, on_step=on_step)
    for first, batch in zip(count(0, batch_size), batches, strict=False):
        yield seen[first : first + batch_size] if len(seen) > 1 else seen, batch.images.cpu()


def match_colors(generated: Tensor, seen: Tensor, mask: Mask) -> Tensor:
    """Shift the colors of what was generated in a mask so that they meet the known ones around it.

    The difference between what is known and what was generated there is continued smoothly into the mask and added, as
    Poisson image editing does it by a membrane (Perez et al., 2003, equation 5).

    Args:
        generated: (B, 3, S, S).
        seen: (B, 3, S, S) or (1, 3, S, S); without influence in the mask.
        mask: (m, m), of the same square at any resolution.

    Returns:
        (B, 3, S, S): what is seen outside the mask.
    """
    touched = F.adaptive_max_pool2d(torch.from_numpy(mask)[None, None].float(), generated.shape[-1])[0, 0] > 0
    return generated + pull_push_fill(seen - generated, touched)


def back_project(generated: Tensor, small: Tensor) -> Tensor:
    """Change images (B, 3, S, S) so that they become the small one (1, 3, m, m) when they are reduced.

    What is missing after reduction is enlarged and added, again and again (Irani and Peleg, 1991).
    """
    for _ in range(BACK_PROJECTIONS):
        reduced = F.interpolate(generated, size=small.shape[-2:], mode="bicubic", antialias=True)
        missing = F.interpolate(small - reduced, size=generated.shape[-2:], mode="bicubic")
        generated = (generated + missing).clamp(-1, 1)
    return generated
