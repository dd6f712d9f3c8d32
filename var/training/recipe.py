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
from var.hub.presets import encoder_sizes
from var.models.aim import EncoderConfig
from var.training.config import Recipe
from var.training.recipe_errors import refuse, show, type_at
from var.training.renamed import rename_keys
from var.training.stages.base import find_stage, stage_names


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides such as "optimizer.lr=1e-4" to it, and check every value.

    A recipe may name another one as its `base`, by a path relative to its own folder, and say only what differs: nested
    keys are merged, lists replaced. Types are strict (a quoted "16" is no number), so a slip in the YAML does not pass
    as something else. Where sizes of an encoder stand, the name of one of presets.AIM_SIZES may stand instead, or as
    `preset` beside single sizes. Keys of before are read under their names of now, with a warning.

    Raises:
        InputError: in one line, the key, the value given and what is allowed; or the file that cannot be read.
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
    """What a recipe and its bases say, with the overrides, as plain values."""
    merged = _read_file(path)
    for override in overrides:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=(?!\?\?\?$).*", override, flags=re.DOTALL):
            raise InputError(f"override {override!r} is not of the form key=value, such as optimizer.lr=1e-4")
        try:
            given = rename_keys(OmegaConf.to_container(OmegaConf.from_dotlist([override])), f"override {override!r}")
            merged = _with_preset(OmegaConf.merge(merged, given))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"override {override!r} cannot be read: {one_line(error)}") from error
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]  # the lines after it are OmegaConf's own
        raise InputError(f"recipe {path}: {cause}: give {error.full_key} a value") from error
    return _with_sizes(path, {str(key): value for key, value in values.items()} if isinstance(values, dict) else {})


def _read_file(path: Path, above: Sequence[Path] = ()) -> Any:
    """What a file says, over what its base says; `above` are the files that it is the base of."""
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
        return _with_preset(OmegaConf.create(values))
    base = values.pop("base")
    if not isinstance(base, str):
        raise InputError(f"recipe {path}: base={show(base)} must be text: the path of another recipe")
    below, files = path.parent / base, [*above, path]
    if not below.is_file():
        raise InputError(f"recipe {path}: base={base!r} does not exist: give a recipe's path, relative to this one's")
    if below.resolve() in [file.resolve() for file in files]:
        raise InputError(f"recipe {path}: base={base!r} leads back to itself: let one recipe have no base")
    return _with_preset(OmegaConf.merge(_read_file(below, files), values))


def _with_preset(base: Any) -> Any:
    """The recipe with the name of a preset as a group of keys, to which an override can add single sizes."""
    values: Any = OmegaConf.to_container(base, resolve=False)
    for key in _encoder_keys(values):
        text = isinstance(values.get(key), str)
        if text and not OmegaConf.is_interpolation(base, key) and not OmegaConf.is_missing(base, key):
            base[key] = {"preset": values[key]}
    return base


def _with_sizes(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says with a preset replaced by its sizes."""
    for key in _encoder_keys(values):
        if isinstance(values.get(key), str | dict):
            try:
                values = values | {key: encoder_sizes(values[key])}
            except InputError as error:
                raise InputError(f"recipe {path}: {key}.{error}") from error
    return values


def _encoder_keys(values: Any) -> list[str]:
    """The keys where the recipe's stage wants the sizes of an encoder, which may be those of a preset."""
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in stage_names():
        return []
    recipe = find_stage(stage).recipe_type
    return [name for name in recipe.model_fields if type_at(recipe, [name]) is EncoderConfig]
