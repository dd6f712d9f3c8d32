"""Mistakes in a recipe, told in one line: the key, the value given, what is allowed, the key that may be meant."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tokenizer.errors import InputError


def refuse(path: Path, recipe: type[BaseModel], error: ValidationError) -> NoReturn:
    """Raise InputError that tells of the first value that a recipe cannot have."""
    # A misspelt key is also a missing one: the unknown key says more.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    others = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InputError(f"recipe {path}: {' '.join(_explain(recipe, details[0]).split())}{others}") from error


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _explain(recipe: type[BaseModel], detail: ErrorDetails) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location)
    value = detail["input"]
    if detail["type"] in _UNKNOWN:
        return f"{key}={show(value)} is not a known key{_remedy_for_unknown(recipe, location)}"
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        return f"{'.'.join(location[:-1])}={show(value)} has too few values"
    if detail["type"] == "missing":
        return f"{key} is missing: add it to the recipe or as {key}=VALUE"
    if detail["type"] == "value_error":  # from our own checks, which name the field first
        message = str(detail["ctx"]["error"])
        if not key:
            return message
        named = re.match(r"\w+", message)
        fields = {*fields_of(type_at(recipe, location)), "preset"}
        return f"{key}.{message}" if named and named[0] in fields else f"{key}: {message}"
    expected = re.sub(r"^\w+ should", "must", detail["msg"]).split(" after validation")[0]
    if detail["type"] in ("model_type", "dataclass_type"):
        expected = f"must be a group of keys: {', '.join(fields_of(type_at(recipe, location)))}"
    elif detail["type"] in ("path_type", "string_type"):
        expected = "must be text: " + ("give it a value" if value is None else "put it in quotes")
    return f"{key}={show(value)} {expected}"


def _remedy_for_unknown(recipe: type[BaseModel], location: list[str]) -> str:
    *parents, name = location
    known = fields_of(type_at(recipe, parents))
    places = [*(".".join([*parents, field]) for field in known), *_dotted(recipe)]
    elsewhere = [place for place in places if place.rsplit(".", 1)[-1] == name]
    near = [".".join([*parents, match]) for match in difflib.get_close_matches(name, known, n=1)]
    hint = f", did you mean {(elsewhere + near)[0]}?" if elsewhere or near else ""
    return f"{hint}; known {'in ' + '.'.join(parents) if parents else 'there'}: {', '.join(known)}"


def fields_of(place: type | None) -> dict[str, Any]:
    """Names and types of the keys at a place of the recipe; {} where a plain value stands."""
    if place is not None and issubclass(place, BaseModel):
        return {name: field.annotation for name, field in place.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(place)} if dataclasses.is_dataclass(place) else {}


def type_at(recipe: type, location: Sequence[str]) -> type | None:
    """The model at a place of the recipe; None where a plain value stands."""
    place: type | None = recipe
    for name in location:
        annotation = fields_of(place).get(name)
        options = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
        place = next((option for option in options if fields_of(option)), None)
    return place


def _dotted(place: type, prefix: str = "") -> list[str]:
    keys = []
    for name in fields_of(place):
        inner = type_at(place, [name])
        keys += _dotted(inner, f"{prefix}{name}.") if inner is not None else [prefix + name]
    return keys


def show(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, Mapping):
        text = "{" + ", ".join(map(str, value)) + "}"
    return text if len(text) <= 80 else text[:77] + "..."
