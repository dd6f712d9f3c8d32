"""A model by name or as a pipeline's parts, made ready to draw the fine scales of what another has begun."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.load import PipelineParts, find_folder, load_pipeline
from var.models.packed import is_packed, pack
from var.models.var import require_var
from var.sampling.refiner import Refiner, check_refiner


def check_refiner_options(refiner: str | Path | None, first_scale: int | None) -> None:
    """Raise InputError for what `open_refiner` would refuse of any model: to be called before one is loaded.

    That is one option without the other, and a name that is unknown or whose files cannot be had.
    """
    _check_both(refiner, first_scale)
    if refiner is not None:
        with _named():
            find_folder(refiner)


def open_refiner(
    refiner: str | Path | PipelineParts | None, first_scale: int | None, draws: PipelineParts
) -> Refiner | None:
    """Return the refiner of a model, checked; one given by name is loaded in its type, to its device, packed if it is.

    Args:
        refiner: name, folder, or parts of a pipeline.
        first_scale: first scale that it draws, in 1..K - 1, counted from 0. None with no refiner: there is none.
        draws: the model that draws the coarser scales.

    Raises:
        InputError: one without the other; a model that cannot be loaded; another tokenizer, other classes, a scale out
            of range.
    """
    _check_both(refiner, first_scale)
    if refiner is None or first_scale is None:
        return None
    require_var(draws.model, "a refiner")
    if isinstance(refiner, PipelineParts):
        parts = refiner
    else:
        with _named():
            parts = load_pipeline(refiner)
        parts.model.cast(draws.model.dtype).eval().to(draws.model.position.device)
        parts.vqvae.cast(draws.vqvae.dtype).eval()
        if is_packed(draws.model.blocks):
            pack(parts.model.blocks)
    found = Refiner(require_var(parts.model, "the refiner"), first_scale)
    check_refiner(found, draws.model)
    if not is_same_tokenizer(parts.vqvae, draws.vqvae):
        raise InputError("the refiner has another tokenizer than the model: give one that was trained on the same")
    for label, name in (draws.classes or {}).items():
        if parts.classes is not None and parts.classes.get(label) != name:
            raise InputError(
                f"class {label} is {name!r} to the model and {parts.classes.get(label, 'unknown')!r} to the refiner: "
                "give one with the same classes"
            )
    return found


def is_same_tokenizer(a: VQVAE, b: VQVAE) -> bool:
    """Return whether two tokenizers have the same config and weights, compared in the narrower of their types."""
    ours, theirs = a.state_dict(), b.state_dict()
    if a.config != b.config or ours.keys() != theirs.keys():
        return False

    def equal(x: torch.Tensor, y: torch.Tensor) -> bool:
        narrower = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
        return torch.equal(x.to(narrower).cpu(), y.to(narrower).cpu())

    return all(equal(ours[name], theirs[name]) for name in ours)


def _check_both(refiner: object, first_scale: int | None) -> None:
    if (refiner is None) != (first_scale is None):
        raise InputError("refiner and refine_from go together: a model, and the first scale that it draws")


@contextmanager
def _named() -> Iterator[None]:
    """Say of an error in loading that it is the refiner's."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"refiner: {error}") from error
