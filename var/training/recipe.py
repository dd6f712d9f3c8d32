"""Recipes: a YAML file and `key=value` overrides become one checked, frozen object before anything is loaded."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tokenizer.errors import InputError
from var.hub.presets import encoder_sizes
from var.training.config import AIMRecipe, AnyRecipe, ProbeRecipe, TokenizerRecipe, VARRecipe

STAGES: dict[str, type[AnyRecipe]] = {
    "tokenizer": TokenizerRecipe,
    "var": VARRecipe,
    "aim": AIMRecipe,
    "probe": ProbeRecipe,
}
ENCODER_SIZES = {"aim": "model", "probe": "sizes"}  # where the recipe of a stage has the sizes of an encoder


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe, apply overrides such as "optimizer.lr=1e-4" to it, and check every value.

    Types are strict (a quoted "16" is no number), so a slip in the YAML does not pass as something else. Where sizes of
    an encoder stand, the name of one of presets.AIM_SIZES may stand instead, or as `preset` beside single sizes.

    Raises:
        InputError: in one line, the key, the value given and what is allowed; or the file that cannot be read.
    """
    values = _read(path, overrides)
    stage = values.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        given = f"stage={_show(stage)} is unknown" if "stage" in values else "stage is missing"
        raise InputError(f"recipe {path}: {given}: set it to one of {', '.join(STAGES)}")
    recipe = STAGES[stage]
    try:
        # By way of JSON: strict mode then still reads lists as tuples and strings as paths.
        return recipe.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        _refuse(path, recipe, error)


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {_one_line(error)}") from error
    try:
        base: Any = OmegaConf.load(StringIO(text))
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {_one_line(error)}") from error
    except (OmegaConfBaseException, OSError) as error:
        raise InputError(f"recipe {path} cannot be used: {_one_line(error)}") from error
    if not OmegaConf.is_dict(base):
        raise InputError(f"recipe {path} holds a list: it must hold key: value pairs")
    base = _with_preset(base)
    for override in overrides:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=(?!\?\?\?$).*", override, flags=re.DOTALL):
            raise InputError(f"override {override!r} is not of the form key=value, such as optimizer.lr=1e-4")
        try:
            base = _with_preset(OmegaConf.merge(base, OmegaConf.from_dotlist([override])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    try:
        values = OmegaConf.to_container(base, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]  # the lines after it are OmegaConf's own
        raise InputError(f"recipe {path}: {cause}: give {error.full_key} a value") from error
    return _with_sizes(path, {str(key): value for key, value in values.items()} if isinstance(values, dict) else {})


def _with_preset(base: Any) -> Any:
    """The recipe with the name of a preset as a group of keys, to which an override can add single sizes."""
    given, key = _sizes_of(OmegaConf.to_container(base, resolve=False))
    if isinstance(given, str) and not OmegaConf.is_interpolation(base, key) and not OmegaConf.is_missing(base, key):
        base[key] = {"preset": given}
    return base


def _with_sizes(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What the recipe says with a preset replaced by its sizes."""
    given, key = _sizes_of(values)
    if not isinstance(given, str | dict):
        return values
    try:
        return values | {key: encoder_sizes(given)}
    except InputError as error:
        raise InputError(f"recipe {path}: {key}.{error}") from error


def _sizes_of(values: Any) -> tuple[Any, str]:
    """What stands where the recipe has the sizes of an encoder, and the key; None where its stage has none."""
    key = ENCODER_SIZES.get(str(values.get("stage")), "")
    return values.get(key), key


def _refuse(path: Path, recipe: type[BaseModel], error: ValidationError) -> NoReturn:
    # A misspelt key is also a missing one: the unknown key says more.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    others = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InputError(f"recipe {path}: {_one_line(_explain(recipe, details[0]))}{others}") from error


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _explain(recipe: type[BaseModel], detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    value = detail["input"]
    if detail["type"] in _UNKNOWN:
        return f"{key}={_show(value)} is not a known key{_remedy_for_unknown(recipe, location)}"
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        return f"{'.'.join(location[:-1])}={_show(value)} has too few values"
    if detail["type"] == "missing":
        return f"{key} is missing: add it to the recipe or as {key}=VALUE"
    if detail["type"] == "value_error":  # from our own checks, which name the field first
        message = str(detail["ctx"]["error"])
        if not key:
            return message
        named = re.match(r"\w+", message)
        fields = _fields(_at(recipe, location))
        return f"{key}.{message}" if named and named[0] in fields else f"{key}: {message}"
    expected = re.sub(r"^\w+ should", "must", detail["msg"]).split(" after validation")[0]
    if detail["type"] in ("model_type", "dataclass_type"):
        expected = f"must be a group of keys: {', '.join(_fields(_at(recipe, location)))}"
    elif detail["type"] in ("path_type", "string_type"):
        expected = "must be text: " + ("give it a value" if value is None else "put it in quotes")
    return f"{key}={_show(value)} {expected}"


def _remedy_for_unknown(recipe: type[BaseModel], location: list[str]) -> str:
    *parents, name = location
    known = _fields(_at(recipe, parents))
    places = [*(".".join([*parents, field]) for field in known), *_dotted(recipe)]
    elsewhere = [place for place in places if place.rsplit(".", 1)[-1] == name]
    near = [".".join([*parents, match]) for match in difflib.get_close_matches(name, known, n=1)]
    hint = f", did you mean {(elsewhere + near)[0]}?" if elsewhere or near else ""
    return f"{hint}; known {'in ' + '.'.join(parents) if parents else 'there'}: {', '.join(known)}"


def _fields(place: type | None) -> dict[str, Any]:
    """Names and types of the keys at a place of the recipe; {} where a plain value stands."""
    if place is None:
        return {}
    if issubclass(place, BaseModel):
        return {name: field.annotation for name, field in place.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(place)} if dataclasses.is_dataclass(place) else {}


def _at(recipe: type, location: Sequence[str]) -> type | None:
    """The model at a place of the recipe; None where a plain value stands."""
    place: type | None = recipe
    for name in location:
        annotation = _fields(place).get(name)
        options = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
        place = next((option for option in options if _fields(option)), None)
    return place


def _dotted(place: type, prefix: str = "") -> list[str]:
    keys = []
    for name in _fields(place):
        inner = _at(place, [name])
        keys += _dotted(inner, f"{prefix}{name}.") if inner is not None else [prefix + name]
    return keys


def _show(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, Mapping):
        text = "{" + ", ".join(map(str, value)) + "}"
    return text if len(text) <= 80 else text[:77] + "..."


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
