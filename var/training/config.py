"""Recipes: a YAML file and `key=value` overrides become one checked, frozen object before anything is loaded."""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tokenizer.errors import InputError
from tokenizer.vqvae import TokenizerConfig
from var.model import VARConfig

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # a probability at which something is dropped: at 1 nothing would be left


class Section(BaseModel):
    """What every part of a recipe shares: no key passes unread, and nothing changes after the checks."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the images come from and how they become squares.

    Attributes:
        source: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg; a folder with train*.parquet and
            validation*.parquet in the Hugging Face image schema; or a hub dataset such as zh-plus/tiny-imagenet.
        image_column: column of the images, for Parquet and hub datasets.
        label_column: column of the integer labels, for Parquet and hub datasets.
        classes: keep only images of these labels; the labels keep their numbers. None keeps all.
        resize: the short side becomes resize * side (Lanczos) before the crop (VAR's training: 1.125).
        crop: of the training images; those of validation are always cropped at the centre.
        flip: mirror half of the training images.
        workers: processes that read images, beside each training process; 0 reads in the training process.
        max_unreadable: fraction of the samples seen in a run; more unreadable ones stop it.
        validation_images: use so many images of the validation split, spread over it; None for all.
    """

    source: Annotated[str, Field(min_length=1)]
    image_column: str = "image"
    label_column: str = "label"
    classes: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    resize: Annotated[float, Field(ge=1)] = 1.125
    crop: Literal["random", "center"] = "random"
    flip: bool = False
    workers: Annotated[int, Field(ge=0)] = 2
    max_unreadable: Fraction = 0.01
    validation_images: Count | None = None


class OptimizerConfig(Section):
    """AdamW. lr is the peak, for the recipe's batch size; clip bounds the norm of the gradient, None: off."""

    lr: Positive
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    weight_decay: NotNegative = 0.05
    clip: Positive | None = 2.0


class ScheduleConfig(Section):
    """Learning rate over the run: a linear warm-up, a flat part, then a fall (VAR's code: linear with a flat 5 %).

    Attributes:
        warmup: fraction of the run spent rising from warmup_start * lr to lr.
        warmup_start: factor of lr at the first step.
        flat: fraction of the run held at lr after the warm-up.
        final: factor of lr at the last step.
        shape: of the fall from lr to final * lr.
    """

    warmup: Fraction = 0.02
    warmup_start: Fraction = 0.005
    flat: Fraction = 0.05
    final: Fraction = 0.1
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.warmup + self.flat > 1:
            raise InputError(f"warmup={self.warmup} and flat={self.flat} exceed the run: together at most 1, lower one")
        return self


class TokenizerLossConfig(Section):
    """Weights of the tokenizer's losses."""

    l1: NotNegative = 0.2
    l2: NotNegative = 1.0
    vq: NotNegative = 1.0

    @model_validator(mode="after")
    def _sees_pixels(self) -> Self:
        if self.l1 == self.l2 == 0:
            raise InputError("l1=0 and l2=0 leave nothing that compares pixels: raise one of them")
        return self


class VARSizes(Section):
    """Sizes of the transformer that a recipe chooses, as in VARConfig; the other sizes are the tokenizer's.

    num_classes None: as many as the training data has.
    """

    depth: int
    width: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    drop_path: float | None = None
    num_classes: int | None = None

    @model_validator(mode="after")
    def _builds(self) -> Self:
        self.config(TokenizerConfig(), self.num_classes if self.num_classes is not None else 1)
        return self

    def config(self, tokenizer: TokenizerConfig, num_classes: int) -> VARConfig:
        """The whole configuration, for this tokenizer and number of classes.

        Raises:
            InputError: sizes that cannot work.
        """
        sizes = self.model_dump(exclude={"num_classes"})
        return VARConfig(
            **sizes,
            num_classes=num_classes,
            scales=tokenizer.scales,
            vocab_size=tokenizer.vocab_size,
            latent_dim=tokenizer.latent_dim,
        )


class Recipe(Section):
    """What both stages share.

    Attributes:
        output: the run's folder.
        seed: of the weights, the order of the images and their augmentation.
        batch_size: images a step over all processes.
        epochs: length of the run in passes over the images; either this or steps.
        steps: length of the run in steps; either this or epochs.
        ema: decay of the average of the weights; None: no average.
        precision: of the network; "auto" takes bfloat16 where the hardware is fast at it.
        log_every, validate_every, sample_every, checkpoint_every: in steps.
        keep: checkpoints kept, the newest.
        compile: run the network through torch.compile.
    """

    output: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    batch_size: Count
    epochs: Positive | None = None
    steps: Count | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Count = 20
    validate_every: Count = 1000
    sample_every: Count = 1000
    checkpoint_every: Count = 1000
    keep: Count = 2
    compile: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise InputError("epochs and steps are both missing: give one of them, such as epochs=100")
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"epochs={self.epochs:g} and steps={self.steps} both given: set one of them to null")
        return self


class TokenizerRecipe(Recipe):
    """Stage 1. restart_dead_codes: steps that a codeword may go unused before the batch replaces it; None: never."""

    stage: Literal["tokenizer"]
    model: TokenizerConfig
    loss: TokenizerLossConfig = TokenizerLossConfig()
    restart_dead_codes: Count | None = None


class VARRecipe(Recipe):
    """Stage 2.

    Attributes:
        tokenizer: folder of a trained tokenizer.
        model: sizes of the transformer.
        label_drop: fraction of the labels replaced by the null class in training.
        token_views: 0 encodes the images in every step; n encodes n augmented views of every image once, then
            trains from memory.
    """

    stage: Literal["var"]
    tokenizer: Path
    model: VARSizes
    label_drop: Rate = 0.1
    token_views: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        classes, room = self.data.classes, self.model.num_classes
        if classes is not None and room is not None and max(classes) >= room:
            raise InputError(
                f"data.classes holds label {max(classes)}, but model.num_classes={room} takes labels 0..{room - 1}: "
                f"set model.num_classes to at least {max(classes) + 1}, or to null"
            )
        return self


STAGES: dict[str, type[TokenizerRecipe] | type[VARRecipe]] = {"tokenizer": TokenizerRecipe, "var": VARRecipe}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TokenizerRecipe | VARRecipe:
    """Read a recipe, apply overrides such as "optimizer.lr=1e-4" to it, and check every value.

    Types are strict (a quoted "16" is no number), so a slip in the YAML does not pass as something else.

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
    for override in overrides:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*=(?!\?\?\?$).*", override, flags=re.DOTALL):
            raise InputError(f"override {override!r} is not of the form key=value, such as optimizer.lr=1e-4")
        try:
            base = OmegaConf.merge(base, OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    try:
        values = OmegaConf.to_container(base, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]  # the lines after it are OmegaConf's own
        raise InputError(f"recipe {path}: {cause}: give {error.full_key} a value") from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


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
