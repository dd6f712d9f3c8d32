"""Recipe keys renamed since the previous version: read under their former names for one release, with a warning."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError

if TYPE_CHECKING:
    from var.training.config import Recipe

log = logging.getLogger(__name__)


def rename_keys(values: Any, recipe: type["Recipe"], where: str) -> Any:
    """Return the values of a recipe under their current names; anything but a mapping is returned as it is.

    Args:
        values: a whole recipe, or a part of it from the top level on, such as one override.
        recipe: its type, whose `renamed` and `renamed_values` list the former names.
        where: their origin, such as a file, for messages.

    Raises InputError: a key is given under both names.
    """
    if not isinstance(values, Mapping):
        return values
    found = deepcopy(dict(values))
    for old, new in recipe.renamed.items():
        if old in recipe.model_fields:  # the stage's own key now has that name
            continue
        *parents, name = old.split(".")
        section: Any = found
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            now = ".".join([*parents, new])
            if new in section:
                raise InputError(f"{where}: {old} is the former name of {now}, and both are given: leave out {old}")
            section[new] = section.pop(name)
            _warn(where, old, now)
    for key, words in recipe.renamed_values.items():
        if isinstance(word := found.get(key), str) and word in words:
            found[key] = words[word]
            _warn(where, f"{key}={word}", f"{key}={found[key]}")
    return found


@cache  # each warning is given once
def _warn(where: str, old: str, now: str) -> None:
    log.warning("%s: %s is called %s now; the former name is read in this release only", where, old, now)
