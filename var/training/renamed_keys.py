"""Keys of recipes that were called otherwise in the version before: read for one release, with a warning."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from tokenizer.errors import InputError

log = logging.getLogger(__name__)

RENAMED = {  # the key as it was, and what its last part is now
    "keep": "keep_last",
    "wandb": "wandb_project",
    "tokens": "token_cache",
    "optimizer.clip": "grad_clip",
    "loss.adversarial.optimizer.clip": "grad_clip",
    "loss.crowding": "entropy",
    "schedule.flat": "hold",
    "schedule.final": "final_lr_factor",
}
RENAMED_VALUES = {"targets": {"normalised": "normalized"}}


def rename_keys(values: Any, where: str) -> Any:
    """Values of a recipe, or of a part from its top on, under the names of now; what is no mapping comes back.

    `where` is what is told of, such as its file.

    Raises InputError: a key is there under both names.
    """
    if not isinstance(values, Mapping):
        return values
    found = deepcopy(dict(values))
    for old, new in RENAMED.items():
        *parents, name = old.split(".")
        place: Any = found
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict) and name in place:
            now = ".".join([*parents, new])
            if new in place:
                raise InputError(f"{where}: {old} is the former name of {now}, and both are given: leave out {old}")
            place[new] = place.pop(name)
            _warn(where, old, now)
    for key, words in RENAMED_VALUES.items():
        if isinstance(word := found.get(key), str) and word in words:
            found[key] = words[word]
            _warn(where, f"{key}={word}", f"{key}={found[key]}")
    return found


@cache  # once
def _warn(where: str, old: str, now: str) -> None:
    log.warning("%s: %s is called %s now; the former name is read in this release only", where, old, now)
