"""Networks compiled for sampling, each part once for every shape that it meets.

The compiled code is kept on disk by PyTorch, in TORCHINDUCTOR_CACHE_DIR.
"""

import inspect

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.models.conditional import ConditionalTransformer
from var.models.var import require_var

# Compilations of one part: with and without guidance, and for the last, smaller batch of a set too.
SHAPES_PER_SCALE = 4


def compile_transformer(model: ConditionalTransformer) -> None:
    """Compile the blocks in place, for sampling: once for every scale, since static shapes make the fastest code.

    All blocks share the compiled code. Nothing is compiled before the first call.

    Raises InputError: a model in int8, whose products the compiler does not take; one that draws token by token, with
    as many shapes.
    """
    require_var(model, "compile")
    if model.dtype == torch.int8:
        raise InputError("a model in int8 is not compiled: leave out compile, or take float32 or bfloat16")
    limit = SHAPES_PER_SCALE * len(model.scales)
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options = {"recompile_limit": limit}
    else:  # an older PyTorch has one limit for all that is compiled
        options = {}
        torch._dynamo.config.cache_size_limit = max(limit, torch._dynamo.config.cache_size_limit)
    for block in model.blocks:
        block.compile(dynamic=False, **options)


def compile_tokenizer(vqvae: VQVAE) -> None:
    """Compile encoder and decoder in place, once for every number of images; nothing before the first call."""
    for part in (vqvae.encoder, vqvae.decoder):
        part.compile(dynamic=False)
