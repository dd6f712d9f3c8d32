"""What a recipe may say: every key, its type, its default and what it may be."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    """Stage 1.

    Attributes:
        image_size: side of the images in pixels, a check on model.scales; None: what the scales say.
        restart_dead_codes: steps that a codeword may go unused before the batch replaces it; None: never.
    """

    stage: Literal["tokenizer"]
    model: TokenizerConfig
    loss: TokenizerLossConfig = TokenizerLossConfig()
    restart_dead_codes: Count | None = None
    image_size: Count | None = None

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        last, downsample, side = self.model.scales[-1], self.model.downsample, self.model.image_side
        if self.image_size is not None and side != self.image_size:
            raise InputError(
                f"model.scales end at {last}, which at {downsample} pixels a token is {side} pixels, not "
                f"image_size={self.image_size}: let them end at image_size / {downsample}, or change model.multipliers"
            )
        return self


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
