"""Parts of a model, by name or kind: which are trained, and with which share of the learning rate."""

import logging
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain

from torch import nn

from tokenizer.errors import InputError, abbreviate
from var.utils.text import plural

log = logging.getLogger(__name__)


def match_part(part: str, name: str) -> bool:
    """Return whether a part, such as `blocks.0`, `mlp` or `*bias`, has the parameter of that name.

    A part is a pattern for one or more consecutive components of the name, with * and ? inside a component.
    """
    patterns, components = part.split("."), name.split(".")
    windows = (components[i : i + len(patterns)] for i in range(len(components) - len(patterns) + 1))
    return any(all(map(fnmatchcase, window, patterns)) for window in windows)


def find_parameters(model: nn.Module, parts: Iterable[str], key: str) -> set[str]:
    """Return the names of the parameters that belong to any of the parts.

    `key` is the recipe's, for messages. Raises InputError: a part that has no parameter.
    """
    names, found = [name for name, _ in model.named_parameters()], set()
    for part in parts:
        matching = {name for name in names if match_part(part, name)}
        if not matching:
            components = dict.fromkeys(chain.from_iterable(name.split(".") for name in names))
            known = ", ".join(component for component in components if not component.isdecimal())
            raise InputError(f"{key} has {abbreviate(part)}, which is no part of the model: its parts are {known}")
        found |= matching
    return found


def freeze(model: nn.Module, frozen: Iterable[str], train_only: Iterable[str] = ()) -> None:
    """Take parameters out of training, in place: those of the frozen parts; or all but those of `train_only`.

    Raises InputError: a part that has no parameter; nothing would be left to train.
    """
    only = find_parameters(model, train_only, "train_only")
    frozen_names = find_parameters(model, frozen, "freeze")
    for name, parameter in model.named_parameters():
        if name in frozen_names or (only and name not in only):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("freeze and train_only leave nothing to train: freeze fewer parts")


def check_random_is_trained(model: nn.Module, random: Collection[str]) -> None:
    """Raise InputError if a parameter that has no trained value is frozen: it would stay random for good."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    lost = [name for name in map(plain_name, frozen) if name in random]
    if lost:
        raise InputError(
            f"{lost[0]} would stay random ({plural(len(lost), 'tensor')}): it is not, or not all of it, in init, and "
            "freeze, train_only or lora keep it from training: let it be trained, or give an init that has it"
        )


def plain_name(name: str) -> str:
    """Return a parameter's name in the model without adapters."""
    return name.replace(".base_layer.", ".")


def log_trained(model: nn.Module) -> None:
    """Log how many of a model's parameters are trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)
    share = f"{trained / total:.0%}" if trained >= 0.01 * total else "under 1%"
    log.info("trained: %s of %s parameters (%s)", f"{trained:,}", f"{total:,}", share)


def find_lr_factors(model: nn.Module, factors: Mapping[str, float]) -> dict[str, float]:
    """Return each parameter's factor on the learning rate: that of the last part that has it, else 1.

    Raises InputError: a part that has no parameter.
    """
    found = {name: 1.0 for name, _ in model.named_parameters()}
    for part, factor in factors.items():
        found |= dict.fromkeys(find_parameters(model, [part], "optimizer.lr_factors"), factor)
    return found
