"""Messages for mistakes in a recipe: the key, the value given, the allowed ones, the key that may be meant."""

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
    """Raise InputError for the first of a recipe's mistakes; its message gives the number of the others."""
    # A misspelt key is also a missing one: the message for the unknown key helps more.
    details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] not in _UNKNOWN)
    others = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise InputError(f"recipe {path}: {' '.join(_explain(recipe, details[0]).split())}{others}") from error


_INFINITE = re.compile(r"[-+]?(inf|infinity|nan)", re.IGNORECASE)  # which Python reads as numbers, and YAML does not
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
        first_word = re.match(r"\w+", message)
        fields = {*fields_of(type_at(recipe, location)), "preset"}
        if first_word and first_word[0] == location[-1]:
            return ".".join([*location[:-1], message])
        return f"{key}.{message}" if first_word and first_word[0] in fields else f"{key}: {message}"
    expected = re.sub(r"^\w+ should", "must", detail["msg"]).split(" after validation")[0]
    if detail["type"] in ("model_type", "dataclass_type"):
        expected = f"must be a group of keys: {', '.join(fields_of(type_at(recipe, location)))}"
    elif detail["type"] in ("path_type", "string_type"):
        expected = "must be text: " + ("give it a value" if value is None else "put it in quotes")
    elif detail["type"] in ("list_type", "tuple_type"):
        expected = "must be a list, such as [a, b]"
    elif detail["type"] == "dict_type":
        expected = "must be a mapping, such as {a: b}"
    elif detail["type"].startswith("float") and isinstance(value, str) and _INFINITE.fullmatch(value):
        expected = "must be a finite number"
    return f"{key}={show(value)} {expected}"


def _remedy_for_unknown(recipe: type[BaseModel], location: list[str]) -> str:
    *parents, name = location
    known = fields_of(type_at(recipe, parents))
    keys = [*(".".join([*parents, field]) for field in known), *_list_keys(recipe)]
    elsewhere = [key for key in keys if key.rsplit(".", 1)[-1] == name]
    near = [".".join([*parents, match]) for match in difflib.get_close_matches(name, known, n=1)]
    hint = f", did you mean {(elsewhere + near)[0]}?" if elsewhere or near else ""
    return f"{hint}; known {'in ' + '.'.join(parents) if parents else 'there'}: {', '.join(known)}"


def fields_of(section: type | None) -> dict[str, Any]:
    """Return names and types of the keys in a section of a recipe; {} for the type of a plain value."""
    if section is not None and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
    return {field.name: field.type for field in fields}


def type_at(recipe: type, location: Sequence[str]) -> type | None:
    """Return the type of the section at a key's path in the recipe; None for a plain value."""
    section: type | None = recipe
    for name in location:
        annotation = fields_of(section).get(name)
        options = [option for option in (annotation, *get_args(annotation)) if isinstance(option, type)]
        section = next((option for option in options if fields_of(option)), None)
    return section


def _list_keys(section: type, prefix: str = "") -> list[str]:
    keys = []
    for name in fields_of(section):
        inner = type_at(section, [name])
        keys += _list_keys(inner, f"{prefix}{name}.") if inner is not None else [prefix + name]
    return keys


def show(value: object) -> str:
    """Format a value of a recipe for a message, in at most 80 characters; of a mapping only the keys."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, Mapping):
        text = "{" + ", ".join(map(str, value)) + "}"
    return text if len(text) <= 80 else text[:77] + "..."
