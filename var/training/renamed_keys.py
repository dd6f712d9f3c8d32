"""Keys of recipes that were called otherwise in the version before: read for one release, with a warning."""

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
    """Values of a recipe of that type, under the names of now; what is no mapping comes back.

    Args:
        values: whole, or a part from the top on, such as one override.
        recipe: its type, whose `renamed` and `renamed_values` say what was called otherwise.
        where: where they stand, such as their file, for messages.

    Raises InputError: a key is there under both names.
    """
    if not isinstance(values, Mapping):
        return values
    found = deepcopy(dict(values))
    for old, new in recipe.renamed.items():
        if old in recipe.model_fields:  # a stage's own key, whatever another recipe once called so
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
