"""The loop over the tokens of a single map: draw a token, feed its code back for the next one.

B batch, L tokens, C latent channels, V codebook size.
"""

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.models.raster import Raster, RasterConfig
from var.sampling.drawing import Drawn, ForcedTokens, guided_rows
from var.sampling.logits import (
    RandomStreams,
    cfg_at_scale,
    classifier_free_guidance,
    filter_logits,
    sample_tokens,
)
from var.sampling.params import SamplingParams
from var.sampling.steps import OnStep, Step


def check_sampling(sampling: SamplingParams, config: RasterConfig) -> None:
    """Raise InputError for options that a model without scales has no use for."""
    sampling.check_codebook()
    given = {
        "smooth": sampling.smooth,
        "cfg_scales": sampling.cfg_scales is not None,
        "use_scales": sampling.use_scales is not None,
        "temperature": isinstance(sampling.temperature, tuple),
    }
    for name in (name for name, is_given in given.items() if is_given):
        remedy = "give one number" if name == "temperature" else "leave it out"
        raise InputError(
            f"{name}={getattr(sampling, name)} is for the scales of a VAR, and this model draws a single map of "
            f"{config.scales[0]}x{config.scales[0]} tokens: {remedy}"
        )


def draw_raster(
    model: Raster,
    vqvae: VQVAE,
    labels: list[int],
    sampling: SamplingParams,
    streams: RandomStreams,
    forced: ForcedTokens | None,
    refiner: None,
    on_step: OnStep | None = None,
) -> Drawn:
    """Draw tokens one by one in the model's order; the arguments are those of `draw_tokens`, checked.

    Guidance rises linearly from 0 at the first token to cfg at the last, as it does over the scales of a VAR. A forced
    token is kept; the model sees it from its turn in the order on, so that earlier ones are drawn without it.
    """
    codebook, length = vqvae.quantizer.codebook.weight, model.scales.total  # (V, C)
    rows = guided_rows(model, labels, sampling.cfg)  # (2B,), or (B,)
    copies = len(rows) // len(labels)
    noise = streams.uniform(length).to(rows.device)  # (B, L)
    tokens = torch.zeros(len(labels), length, dtype=torch.int64, device=rows.device)
    code = None
    with torch.inference_mode():
        condition, cache = model.condition(rows), model.new_cache(len(rows))
        for i, cell in enumerate(model.order.tolist()):
            here = slice(cell, cell + 1)
            logits = model.step(i, code, condition, cache)  # (2B, 1, V), or (B, 1, V)
            if copies == 2:
                conditional, unconditional = logits.chunk(2)
                logits = classifier_free_guidance(conditional, unconditional, cfg_at_scale(sampling.cfg, i, length))
            logits = filter_logits(logits / sampling.temperature_at(0), sampling.top_k, sampling.top_p)
            token = sample_tokens(logits, noise[:, i : i + 1])  # (B, 1)
            if forced is not None:
                token = torch.where(forced.forced[:, here], forced.tokens[:, here], token)
            tokens[:, here] = token
            code = codebook[token].repeat(copies, 1, 1)  # (2B, 1, C), or (B, 1, C)
            if on_step is not None and i + 1 < length:
                on_step(Step((i + 1) / length))
        f_hat = vqvae.quantizer.decode(tokens)
        if on_step is not None:
            on_step(Step(1.0, f_hat=f_hat))
    # Made outside the block, the results are ordinary tensors, which other modules take with gradients on too.
    return Drawn(tokens, [f_hat.clone()])
