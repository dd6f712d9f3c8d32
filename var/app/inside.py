"""The tab that looks inside: an image as the tokenizer and the transformer see it."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import torch
from PIL import Image

from tokenizer.losses import psnr
from var.app.colors import as_map, fit_colors, heat
from var.app.controls import NO_CLASS, class_dropdown, image_gallery, run_on_model
from var.app.state import AppState
from var.app.uploads import image_upload, open_upload
from var.models.token_losses import TokenLosses, head_losses
from var.models.var import require_var
from var.pipeline import VARPipeline
from var.utils.images import resize_and_crop, to_pil, to_rgb, to_tensor


@dataclass(frozen=True)
class Inside:
    """An image of which a model sees the center square; lists have an item for each of the K scales.

    Attributes:
        square: that the model sees, in its size.
        reconstructions: from the tokens of this scale and all coarser ones.
        psnr: of the reconstructions, in dB.
        token_maps: similar codewords have similar colors.
        probability_maps: bright where the model gives the image's token a high probability; dark: chance, or less.
        bits: mean code length of the tokens of a scale under the model.
    """

    square: Image.Image
    reconstructions: list[Image.Image]
    psnr: list[float]
    token_maps: list[Image.Image]
    probability_maps: list[Image.Image]
    bits: list[float]


@torch.inference_mode()
def look_inside(pipe: VARPipeline, image: Image.Image, label: int | None = None) -> Inside:
    """Encode the center square of an image, decode it scale by scale, and predict its tokens by teacher forcing.

    Args:
        label: class that the model is told; None: no class.

    Raises:
        InputError: an image that cannot be read, an unknown class, a model of another kind than VAR.
    """
    model, vqvae = require_var(pipe.model, "the probability of tokens"), pipe.vqvae
    if vqvae.dtype != torch.float32:  # on a processor fast at bfloat16, in which some tokens would be others
        vqvae = copy.deepcopy(vqvae).cast(torch.float32)
    side, scales, device = vqvae.config.image_side, vqvae.scales, model.position.device
    square = resize_and_crop(to_rgb(image), side, side)
    pixels = to_tensor(square)[None].to(device)
    tokens = vqvae.encode(pixels)  # (1, L)
    shown = vqvae.reconstruct(pixels)  # K times (1, 3, S, S)
    condition = torch.tensor([model.config.num_classes if label is None else pipe.label(label)], device=device)
    inputs = vqvae.quantizer.teacher_forcing_input(tokens)
    losses: TokenLosses = model(condition, inputs, read=partial(head_losses, tokens=tokens))
    nats = losses.loss.float().cpu()[0]  # (L,)
    codebook = vqvae.quantizer.codebook.weight.cpu()
    color = fit_colors(codebook)
    return Inside(
        square,
        [to_pil(each)[0] for each in shown],
        [psnr(each.double(), pixels.double()).item() for each in shown],
        [as_map(color(codebook[part[0]])) for part in scales.split(tokens.cpu())],
        [as_map(heat(1 - part[0] / math.log(len(codebook)))) for part in scales.split(nats[None])],
        [part.mean().item() / math.log(2) for part in scales.split(nats[None])],
    )


def build(state: AppState) -> None:
    """Lay out the tab and connect it."""
    sides = state.pipe.vqvae.scales.sides
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = image_upload("inside-image")
            label = class_dropdown(state, "Class that the model is told")
            with gr.Row():
                button = gr.Button("Look inside", variant="primary", elem_id="inside-button")
                stop = gr.Button("Stop")
        with gr.Column(scale=3, min_width=400):
            gr.Markdown("Reconstruction from the tokens so far, scale by scale")
            reconstructions = image_gallery("Reconstruction", "inside-reconstructions", len(sides), 180)
            gr.Markdown("Tokens: similar codewords have similar colors")
            tokens = image_gallery("Tokens", "inside-tokens", len(sides), 180)
            gr.Markdown(
                "Probability that the model gives to these tokens, knowing the coarser scales: bright is certain, "
                "dark is chance; bits per token below"
            )
            probabilities = image_gallery("Probability", "inside-probabilities", len(sides), 180)

    def look(file: str | None, chosen: int) -> Any:
        opened = open_upload(file)
        with state.lock:
            found = look_inside(state.pipe, opened, None if chosen == NO_CLASS else chosen)
        names = [f"{side}x{side}" for side in sides]
        yield (
            list(zip(found.reconstructions, [f"{value:.1f} dB" for value in found.psnr], strict=True)),
            list(zip(found.token_maps, names, strict=True)),
            list(zip(found.probability_maps, [f"{value:.1f} bits" for value in found.bits], strict=True)),
        )

    run_on_model(button, look, [image, label], [reconstructions, tokens, probabilities], stop, reconstructions)
