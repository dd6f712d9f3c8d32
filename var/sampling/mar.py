"""The loop over steps of a MAR: draw some of the masked tokens by the diffusion head, see them in the next step.

B batch, L tokens, C latent channels, D width, N tokens that a step draws, of all images.
"""

import math
from itertools import pairwise, zip_longest

import torch
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.models.diffusion_head import sample_ancestral
from var.models.mar import MAR, MARConfig
from var.sampling.drawing import Drawn, ForcedTokens, guided_rows
from var.sampling.logits import RandomStreams, classifier_free_guidance
from var.sampling.params import SamplingParams
from var.sampling.steps import OnStep, Step

STEPS, DIFFUSION_STEPS = 64, 100  # of the paper


def check_sampling(sampling: SamplingParams, config: MARConfig) -> None:
    """Raise InputError for options that a model without scales and without a codebook has no use for."""
    default = SamplingParams()
    for name in ("top_k", "top_p", "smooth", "cfg_scales", "use_scales"):
        if getattr(sampling, name) not in (0, getattr(default, name)):
            raise InputError(
                f"{name}={getattr(sampling, name)} is for tokens of a codebook, or scales, and a MAR draws "
                "continuous tokens of a single map: leave it out"
            )
    if isinstance(sampling.temperature, tuple):
        raise InputError(f"temperature={sampling.temperature} is for the scales of a VAR: give one number")


def masked_after(length: int, steps: int) -> list[int]:
    """Number of tokens, of `length`, that are still masked after each step: a cosine, as in MaskGIT and MAR.

    Every step draws a token at least, so that there are at most as many steps as tokens, and the last draws the rest.
    """
    steps, left, masked = min(steps, length), length, []
    for step in range(1, steps + 1):
        left = min(left - 1, math.floor(length * math.cos(math.pi / 2 * step / steps)))
        masked.append(left)
    return [*masked[:-1], 0] if masked else []


def masked_counts(lengths: list[int], steps: int) -> list[tuple[int, ...]]:
    """Number of tokens that are masked at first and after each step, of each of several images, by step.

    Of `lengths` tokens to draw. An image that has fewer of them than there are steps is done before the others.
    """
    return list(zip_longest(*([length, *masked_after(length, steps)] for length in lengths), fillvalue=0))


def draw_mar(
    model: MAR,
    vqvae: VQVAE,
    labels: list[int],
    sampling: SamplingParams,
    streams: RandomStreams,
    forced: ForcedTokens | None,
    refiner: None,
    on_step: OnStep | None = None,
) -> Drawn:
    """Draw tokens in a random order of each image's own; the arguments are those of `draw_tokens`, checked.

    Guidance rises linearly with the share of the tokens that are known after the step. Forced tokens are known from the
    start.
    """
    batch, length = len(labels), model.scales.total
    steps, diffusion_steps = sampling.steps or STEPS, sampling.diffusion_steps or DIFFUSION_STEPS
    rows = guided_rows(model, labels, sampling.cfg)  # (2B,), or (B,)
    device, copies = rows.device, len(rows) // batch
    order = streams.uniform(length).to(device)  # (B, L)
    noise = streams.normal(length, diffusion_steps, model.config.latent_dim).to(device)  # (B, L, steps, C)
    tokens = torch.zeros(batch, length, model.config.latent_dim, device=device)
    if forced is not None:
        tokens = torch.where(forced.forced[..., None], forced.tokens, tokens)
        order = order - forced.forced.to(order)  # below 0, before all others
    rank = order.argsort(dim=1).argsort(dim=1)  # (B, L), of each token in the order
    known = [0] * batch if forced is None else forced.forced.sum(dim=1).tolist()
    counts = torch.tensor(masked_counts([length - each for each in known], steps), device=device)[..., None]
    with torch.inference_mode():
        condition = model.condition(rows)
        for masked, left in pairwise(counts):  # (B, 1) each: how many are masked before and after the step
            hidden = rank >= length - masked  # (B, L)
            drawn = hidden & (rank < length - left)
            z = model.predict(tokens.repeat(copies, 1, 1), hidden.repeat(copies, 1), condition)  # (2B, L, D)
            strength = (sampling.cfg * (length - left) / length).expand(batch, length)[drawn]  # (N,)
            conditions = [each[drawn] for each in z.chunk(copies)]  # (N, D) each
            tokens[drawn] = draw_step(model, conditions, strength[:, None], noise[drawn], sampling.temperature_at(0))
            if on_step is not None and left.any():
                on_step(Step(1 - float(left.float().mean()) / length))
        f_hat = vqvae.latents(tokens)
        if on_step is not None:
            on_step(Step(1.0, f_hat=f_hat))
    # Made outside the block, the result is an ordinary tensor, which other modules take with gradients on too.
    return Drawn(tokens, [f_hat.clone()])


def draw_step(model: MAR, conditions: list[Tensor], strength: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Draw tokens, (N, C), from their conditions.

    Args:
        conditions: (N, D), and with guidance that of the null class.
        strength: (N, 1) of guidance.
        noise: (N, steps, C), standard normal.
        temperature: factor on the noise that the steps add.
    """
    together = torch.cat(conditions)

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        parts = model.head(noisy.repeat(len(conditions), 1), timestep, together).chunk(len(conditions))
        if len(parts) == 1:
            return parts[0]
        conditional, unconditional = parts
        return classifier_free_guidance(conditional, unconditional, strength)

    return sample_ancestral(predict, noise, temperature)
