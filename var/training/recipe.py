"""Recipes: a YAML file and `key=value` overrides become one checked, frozen object before anything else is read."""

import json
import re
from collections.abc import Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from tokenizer.errors import InputError, abbreviate, did_you_mean, one_line
from var.training.config import Recipe
from var.training.recipe_errors import fields_of, refuse, show, type_at
from var.training.renamed_keys import rename_keys
from var.training.stages.base import find_stage, stage_names
from var.utils.paths import to_path
from var.utils.recipes import find_recipe, suggest_recipe

LENGTHS = {"epochs", "steps"}  # of a run; a recipe has one of them
DEEPEST, MOST_NODES, MOST_CHARACTERS = 20, 100_000, 2**20  # bounds on a recipe, far above those in use

# What yaml raises, besides its own errors, on text that a tag says is of another type: `!!bool zz`.
MISTAGGED = (AttributeError, LookupError, TypeError)
MISTAGGED_CAUSE = "a value is not of the type that its tag, such as !!bool, says: leave out the tag"


class Layer(NamedTuple):
    """Values of one file or override, which replace those of the layers before it."""

    where: str  # their origin, for messages
    values: dict[str, Any]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides such as "optimizer.lr=1e-4" to it, and check every value.

    A recipe may name another one as its `base`, by a path relative to its own folder, and hold only what differs:
    nested keys are merged, lists replaced; where it or the overrides give one of epochs and steps, the other one below
    no longer counts. Types are strict: a quoted "16" is no number. In place of an encoder's sizes a recipe may have a
    name in presets.ENCODER_SIZES, alone or as `preset` beside single sizes. Former names of keys are read too, with a
    warning.

    The value of an override is YAML, but that of a key whose type is text (output, data.source, tokenizer, ...) is the
    text itself: "output=runs/a #1" is that folder, and "data.label_column=on" that column. Exceptions: null and nothing
    are no value, '' is empty text, and ${model.depth} stands for the value of another key of the recipe.

    A path may be the name of a recipe that comes with the package, see `find_recipe`.

    Raises InputError: a file that cannot be read; a key or value that is not allowed.
    """
    path = find_recipe(path)
    layers = _read_file(path)
    recipe = _recipe_type(
        path, [*layers, *(_read_override(given) for given in overrides if given.startswith("stage="))]
    )
    layers += _replace_length([_read_override(given, recipe) for given in overrides])
    merged: Any = OmegaConf.create({})
    for where, values in layers:
        _check_text(values, where)
        try:
            merged = _merge(merged, rename_keys(values, recipe, where))
        except (yaml.YAMLError, OmegaConfBaseException, TypeError) as error:  # TypeError: a list for a group of keys
            raise InputError(f"{where} cannot be read: {one_line(error)}") from error
    try:
        resolved: Any = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]  # the lines after it are OmegaConf's own
        raise InputError(f"recipe {path}: {cause}: give {error.full_key} a value") from error
    try:
        # By way of JSON: strict mode then still reads lists as tuples and strings as paths.
        return recipe.model_validate_json(json.dumps(resolved, default=str), strict=True)
    except ValidationError as error:
        refuse(path, recipe, error)


def _recipe_type(path: Path, layers: Sequence[Layer]) -> type[Recipe]:
    """Return the recipe type of the last stage that the layers name."""
    merged = {key: value for _, values in layers for key, value in values.items()}
    stage = merged.get("stage")
    if not isinstance(stage, str) or stage not in stage_names():
        missing = f"stage is missing among {', '.join(map(str, merged))}" if merged else "the file is empty"
        near = did_you_mean(str(stage), stage_names())
        given = f"stage={show(stage)} is unknown{near}" if "stage" in merged else missing
        raise InputError(f"recipe {path}: {given}: a recipe needs the key stage, one of {', '.join(stage_names())}")
    return find_stage(stage).recipe_type


def _read_override(override: str, recipe: type[Recipe] | None = None) -> Layer:
    """Read `key=value`: as YAML, or literally where the recipe's key is text."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=(?!\?\?\?$).*", override, flags=re.DOTALL):
        raise InputError(f"override {abbreviate(override)} is not of the form key=value, such as optimizer.lr=1e-4")
    key, _, text = override.partition("=")
    parts = key.split(".")
    if len(parts) > DEEPEST:
        raise InputError(f"override {abbreviate(override)} is nested too deeply: no key of a recipe has so many parts")
    if recipe is not None and not text and _is_text(kind := _type_of(recipe, key)) and not _may_be_none(kind):
        raise InputError(f"override {key}= is empty: give a value after the =")
    empty = text in ("", "null", "''", '""')
    if recipe is not None and key != "stage" and not empty and _is_text(_type_of(recipe, key)):
        values: Any = _escape(text, recipe)
        for part in reversed(parts):
            values = {part: values}
        return Layer(f"override {abbreviate(override)}", values)
    _compose(text, f"override {abbreviate(override)}")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise InputError(f"override {abbreviate(override)} cannot be read: {one_line(error)}") from error
    except MISTAGGED as error:
        raise InputError(f"override {abbreviate(override)} cannot be read: {MISTAGGED_CAUSE}") from error
    if "base" in values:
        raise InputError(f"override {abbreviate(override)}: only a recipe file can have a base, write it there")
    return Layer(f"override {abbreviate(override)}", values)


def _type_of(recipe: type[Recipe], key: str) -> Any:
    """Return the type of a key's values; None: the recipe has no such key. Former names count."""
    *parents, name = key.split(".")
    fields = fields_of(type_at(recipe, parents))
    return fields.get(name, fields.get(recipe.renamed.get(key, "")))


def _is_text(kind: Any) -> bool:
    """Return whether all values of a type are text or a path; besides, perhaps, None."""
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    if get_origin(kind) is Annotated:
        return _is_text(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return all(option is NoneType or _is_text(option) for option in get_args(kind))
    return kind in (str, Path)


def _may_be_none(kind: Any) -> bool:
    return NoneType in get_args(get_args(kind)[0] if get_origin(kind) is Annotated else kind)


def _escape(text: str, recipe: type[Recipe]) -> str:
    """Escape what OmegaConf would take for an interpolation, unless it names a key of the recipe."""

    def escape(found: re.Match[str]) -> str:
        backslashes, key = found[1], found[2]
        if not backslashes and key is not None and _type_of(recipe, key) is not None:
            return found[0]
        return 2 * backslashes + "\\" + found[0].removeprefix(backslashes)

    return re.sub(r"(\\*)\$\{(?:([A-Za-z_][\w.]*)\})?", escape, text)


def _read_file(path: Path, above: Sequence[Path] = ()) -> list[Layer]:
    """Read a file and its bases, the lowest first; `above` are the files that it is the base of."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist{suggest_recipe(path)}: give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read: {one_line(error)}") from error
    root = _compose(text, f"recipe {path}")
    if not isinstance(root, yaml.MappingNode | None):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "text"
        raise InputError(f"recipe {path} holds {kind}: a recipe has key: value pairs, such as stage: tokenizer")
    try:
        found: Any = OmegaConf.load(StringIO(text))
    except yaml.YAMLError as error:
        raise InputError(f"recipe {path} is not valid YAML: {one_line(error)}") from error
    except (OmegaConfBaseException, OSError, ValueError) as error:
        raise InputError(f"recipe {path} cannot be used: {one_line(error)}") from error
    except MISTAGGED as error:
        raise InputError(f"recipe {path} cannot be used: {MISTAGGED_CAUSE}") from error
    values: Any = OmegaConf.to_container(found, resolve=False)
    if "base" not in values:
        return [Layer(f"recipe {path}", values)]
    base = values.pop("base")
    if not isinstance(base, str):
        raise InputError(f"recipe {path}: base={show(base)} must be text: the path of another recipe")
    below, files = to_path(path.parent / base, f"recipe {path}: base"), [*above, path]
    if not below.is_file():
        raise InputError(f"recipe {path}: base={base!r} does not exist: give a recipe's path, relative to this one's")
    if below.resolve() in [file.resolve() for file in files]:
        raise InputError(f"recipe {path}: base={base!r} leads back to itself: let one recipe have no base")
    return [*_read_file(below, files), *_replace_length([Layer(f"recipe {path}", values)])]


def _replace_length(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, before them one that unsets epochs if they give steps alone, or steps if epochs alone."""
    given = {key for _, values in layers for key in LENGTHS if values.get(key) is not None}
    other = LENGTHS - given
    return [*(Layer(layers[0].where, dict.fromkeys(other)) for _ in given if other), *layers]


def _compose(text: str, where: str) -> Any:
    """Return the nodes of a YAML document, before any value is made of them.

    Raises InputError: it is not valid, too deep or, with the aliases in it written out, too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{where} is no recipe: it has {len(text)} characters, at most {MOST_CHARACTERS} are read")
    try:
        root: Any = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {one_line(error)}") from error
    except RecursionError:
        raise InputError(f"{where} is no recipe: it is nested too deeply") from None
    nodes = [(root, 0)]
    for number, (node, depth) in enumerate(nodes):  # grows as it goes
        if depth > DEEPEST or number > MOST_NODES:
            raise InputError(f"{where} is no recipe: it is nested too deeply, or aliases make it too large")
        children = getattr(node, "value", ())
        if isinstance(children, list):
            flat = chain.from_iterable(child if isinstance(child, tuple) else [child] for child in children)
            nodes += [(each, depth + 1) for each in flat]
    return root


def _check_text(values: dict[str, Any], where: str) -> None:
    """Raise InputError if a key is no text, or a text is not valid Unicode, which no file of the run could hold."""
    try:
        json.dumps(values, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = abbreviate(error.object[max(error.start - 40, 0) : error.end])
        raise InputError(
            f"{where} has text that is not valid UTF-8, {found}: rename it, or write it in UTF-8"
        ) from error
    except ValueError as error:  # such as 0x and thousands of digits, which YAML reads
        raise InputError(f"{where} cannot be read: {one_line(error)}") from error
    except TypeError as error:
        raise InputError(f"{where} has a key that is no text: the keys of a recipe are names") from error


def _merge(base: Any, given: Any) -> Any:
    """Merge the given values into those of a base: single sizes beside a preset's name keep the name."""
    for key, value in given.items():
        unknown = OmegaConf.is_missing(base, key) or OmegaConf.is_interpolation(base, key)
        if isinstance(value, dict) and not unknown and isinstance(base.get(key), str):
            base[key] = {"preset": base[key]}
    return OmegaConf.merge(base, given)
