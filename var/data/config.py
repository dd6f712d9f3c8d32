"""Recipe keys of the data: their types, defaults and bounds; the base class of all sections of a recipe."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from tokenizer.errors import LARGEST, InputError, check_whole_number
from var.utils.images import VAR_RESIZE
from var.utils.paths import to_path


def _expand(given: object, info: ValidationInfo) -> object:
    return str(to_path(given, info.field_name or "path")) if isinstance(given, str | Path) else given


UserPath = Annotated[Path, BeforeValidator(_expand)]  # one that the file system can take, with ~ as the user's home

# The upper bounds are far above all use: what exceeds them is a slip, and would take memory or time without end.
LARGEST_COUNT = 10**9
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Size = Annotated[int, Field(ge=1, le=2**14)]  # of an image's side or a network's layer
Positive = Annotated[float, Field(gt=0, le=1e12)]
NotNegative = Annotated[float, Field(ge=0, le=1e12)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]  # a probability at which something is dropped: at 1 nothing would be left


def _check_class(given: object) -> object:
    return given if isinstance(given, str) and given else check_whole_number("label", given, 0, LARGEST)


ClassChoice = Annotated[int | str, BeforeValidator(_check_class)]  # a label, or the text of a name or label


class Section(BaseModel):
    """A section of a recipe or file: unknown keys are refused, and it is frozen after the checks."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class JitterConfig(Section):
    """Changes of color, the factors drawn from 1 - x to 1 + x and applied in a random order.

    Attributes:
        probability: that an image is changed.
        brightness, contrast, saturation: x of each.
        hue: turned by up to this share of the circle, either way.
    """

    probability: Fraction = 0.8
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1


class DataConfig(Section):
    """Source of the images, and their preprocessing to squares.

    Attributes:
        source: a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, or without class folders; a folder of CLASS/*.jpg
            or *.jpg alone, all of them for training, with validation_fraction; a folder with
            train*.parquet and validation*.parquet in the Hugging Face image schema; a hub dataset such as
            zh-plus/tiny-imagenet; or the index of WebDataset shards, a path or URL ending in .json.
        image_column: column of the images, for Parquet and hub datasets.
        label_column: column of the integer labels, for Parquet and hub datasets; None: unconditional training.
        classes: keep only images of these labels, or of classes of these names; the labels keep their numbers. None
            keeps all. A text that is the name of a class means it, else a whole number is its label.
        resize: the short side becomes resize * side (Lanczos) before the crop (VAR's training: 1.125).
        crop: of the training images: a square at random or in the center, or `resized`, a part of random area and
            aspect (3:4 to 4:3), resized to the square; it is clipped at the image's edges, which reduces its area, and
            in images beyond 3:4 or 4:3 gives an aspect between that range and theirs. Validation images are always
            cropped at the center.
        crop_area: smallest and largest area of a resized crop, as a share of the image's.
        pad: white margin around the training images before the crop, as a share of their short side; with `resize: 1`
            a random crop then shifts them by up to that much. For drawings on white background.
        flip: mirror half of the training images.
        jitter: colors of the training images; None: as they are.
        workers: processes that read images, beside each training process; 0 reads in the training process.
        max_unreadable: largest fraction of unreadable images among the samples of a run, which stops at more.
        train_images: use so many images of the training split, the same in every run: one drawn from each of so many
            equal stretches of it, so that all classes have their share. None for all, as where there are fewer.
        validation_images: use so many images of the validation split, spread over it; None for all.
        validation_fraction: where there is no validation split, hold out this fraction of the training images; a split
            named test is left aside then. Where there is one, a warning says that the fraction is not used.
        shuffle_shards: number of streamed shards among which samples are shuffled.
        cache: folder for streamed shards; None: a folder below the user's cache.
        cache_gigabytes: bound on that folder.
    """

    source: Annotated[str, Field(min_length=1)]
    image_column: str = "image"
    label_column: str | None = "label"
    classes: Annotated[tuple[ClassChoice, ...], Field(min_length=1)] | None = None
    resize: Annotated[float, Field(ge=1, le=16)] = VAR_RESIZE
    crop: Literal["random", "center", "resized"] = "random"
    crop_area: tuple[Positive, Fraction] = (0.4, 1.0)
    pad: Annotated[float, Field(ge=0, le=1)] = 0.0
    flip: bool = False
    jitter: JitterConfig | None = None
    workers: Annotated[int, Field(ge=0, le=1024)] = 2
    max_unreadable: Fraction = 0.01
    train_images: Count | None = None
    validation_images: Count | None = None
    validation_fraction: Rate = 0
    shuffle_shards: Count = 8
    cache: UserPath | None = None
    cache_gigabytes: Positive = 50

    @model_validator(mode="after")
    def _areas_in_order(self) -> Self:
        if self.crop_area[0] > self.crop_area[1]:
            raise InputError(f"crop_area={list(self.crop_area)} is the wrong way round: give the smaller area first")
        return self
