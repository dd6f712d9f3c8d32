"""Collaborative decoding: a second transformer draws the fine scales (arXiv 2411.17787)."""

from typing import NamedTuple

from tokenizer.errors import InputError, check_whole_number
from var.models.conditional import ConditionalTransformer
from var.models.var import VAR, require_var


class Refiner(NamedTuple):
    """A transformer that draws from a scale on what another has begun; nothing is trained for it."""

    model: VAR  # in evaluation mode, on the same tokenizer and classes
    first_scale: int  # in 1..K - 1, counted from 0


def check_refiner(refiner: Refiner, model: ConditionalTransformer) -> None:
    """Raise InputError unless the refiner can continue what the model draws."""
    theirs = refiner.model
    require_var(model, "a refiner")
    for name in ("scales", "vocab_size", "latent_dim", "num_classes"):
        if getattr(theirs.config, name) != getattr(model.config, name):
            raise InputError(
                f"the refiner has {name}={getattr(theirs.config, name)}, the model {name}={getattr(model.config, name)}"
                ": give one on the same tokenizer with the same classes"
            )
    check_whole_number("refine_from", refiner.first_scale, 1, len(model.scales) - 1)
    if theirs.training:
        raise InputError("the refiner is in training mode: call refiner.model.eval() first")
    if theirs.position.device != model.position.device:
        raise InputError(f"the refiner is on {theirs.position.device}, the model on {model.position.device}: move one")
