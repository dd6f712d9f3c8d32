"""Recipes: a YAML file and `key=value` overrides become one checked, frozen object before anything is loaded."""

import json
import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from tokenizer.errors import InputError, one_line
from var.training.config import Recipe
from var.training.recipe_errors import refuse, show
from var.training.renamed_keys import rename_keys
from var.training.stages.base import find_stage, stage_names


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides such as "optimizer.lr=1e-4" to it, and check every value.

    A recipe may name another one as its `base`, by a path relative to its own folder, and say only what differs: nested
    keys are merged, lists replaced. Types are strict (a quoted "16" is no number), so a slip in the YAML does not pass
    as something else. Where sizes of an encoder stand, the name of one of presets.AIM_SIZES may stand instead, or as
    `preset` beside single sizes. Keys of before are read under their names of now, with a warning.

    Raises InputError: in one line, the key, the value given and what is allowed; or the file that cannot be read.
    """
    values = _read(path, overrides)
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in stage_names():
        given = f"stage={show(stage)} is unknown" if "stage" in values else "stage is missing"
        raise InputError(f"recipe {path}: {given}: set it to one of {', '.join(stage_names())}")
    recipe = find_stage(stage).recipe_type
    try:
        # By way of JSON: strict mode then still reads lists as tuples and strings as paths.
        return recipe.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        refuse(path, recipe, error)


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values of a recipe and its bases, with the overrides."""
    merged = _read_file(path)
    for override in overrides:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=(?!\?\?\?$).*", override, flags=re.DOTALL):
            raise InputError(f"override {override!r} is not of the form key=value, such as optimizer.lr=1e-4")
        try:
            given = rename_keys(OmegaConf.to_container(OmegaConf.from_dotlist([override])), f"override {override!r}")
            merged = _merged(merged, given)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"override {override!r} cannot be read: {one_line(error)}") from error
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]  # the lines after it are OmegaConf's own
        raise InputError(f"recipe {path}: {cause}: give {error.full_key} a value") from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _read_file(path: Path, above: Sequence[Path] = ()) -> Any:
    """Values of a file, over those of its base; `above` are the files that it is the base of."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {one_line(error)}") from error
    try:
        found: Any = OmegaConf.load(StringIO(text))
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {one_line(error)}") from error
    except (OmegaConfBaseException, OSError) as error:
        raise InputError(f"recipe {path} cannot be used: {one_line(error)}") from error
    if not OmegaConf.is_dict(found):
        raise InputError(f"recipe {path} holds a list: it must hold key: value pairs")
    values: Any = rename_keys(OmegaConf.to_container(found, resolve=False), f"recipe {path}")
    if "base" not in values:
        return OmegaConf.create(values)
    base = values.pop("base")
    if not isinstance(base, str):
        raise InputError(f"recipe {path}: base={show(base)} must be text: the path of another recipe")
    below, files = path.parent / base, [*above, path]
    if not below.is_file():
        raise InputError(f"recipe {path}: base={base!r} does not exist: give a recipe's path, relative to this one's")
    if below.resolve() in [file.resolve() for file in files]:
        raise InputError(f"recipe {path}: base={base!r} leads back to itself: let one recipe have no base")
    return _merged(_read_file(below, files), values)


def _merged(base: Any, given: Any) -> Any:
    """Change the values of a base by those given: single sizes beside a preset's name leave it there."""
    for key, value in given.items():
        unknown = OmegaConf.is_missing(base, key) or OmegaConf.is_interpolation(base, key)
        if isinstance(value, dict) and not unknown and isinstance(base.get(key), str):
            base[key] = {"preset": base[key]}
    return OmegaConf.merge(base, given)
