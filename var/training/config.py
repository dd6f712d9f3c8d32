"""Keys that every recipe may have, their types, defaults and bounds. A stage's own keys are in its file."""

import math
import shlex
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenizer.errors import InputError
from var.data.config import Count, DataConfig, Fraction, NotNegative, Positive, Rate, Section, UserPath
from var.hub.presets import encoder_sizes

# Part of a model: a pattern for consecutive components of parameters' names, such as blocks.0, encoder, mlp or *bias.
Part = Annotated[str, Field(min_length=1)]


def preset_sizes(given: object) -> object:
    """Replace a name in presets.ENCODER_SIZES, alone or as `preset` beside single sizes, by the encoder's sizes."""
    return encoder_sizes(given) if isinstance(given, str | dict) else given


class OptimizerConfig(Section):
    """AdamW."""

    lr: Positive  # the peak, for the recipe's batch size
    betas: tuple[Rate, Rate] = (0.9, 0.95)  # decays of the moments
    weight_decay: NotNegative = 0.05  # on matrices and kernels only
    final_weight_decay: Positive | None = None  # at the end of the run; None: the same throughout
    grad_clip: Positive | None = 2.0  # bound on the norm of the gradient
    # Parts of the model, as in `freeze`, and the factors on their learning rates; the last that matches counts.
    lr_factors: dict[Part, Positive] = Field(default_factory=dict)


class ScheduleConfig(Section):
    """Learning rate over the run: a linear warm-up, a part at lr, then a fall (VAR's code: linear, held for 5 %)."""

    warmup: Fraction = 0.02  # of the run, spent rising from warmup_start * lr to lr
    warmup_start: Fraction = 0.005  # factor of lr at the first step
    hold: Fraction = 0.05  # of the run, held at lr after the warm-up
    final_lr_factor: Fraction = 0.1  # at the last step
    shape: Literal["linear", "cosine"] = "linear"  # of the fall from lr to final_lr_factor * lr

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.warmup + self.hold > 1:
            raise InputError(f"warmup={self.warmup} and hold={self.hold} exceed the run: together at most 1, lower one")
        return self


class LoRAConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685): W becomes W + alpha / rank * B A, of which B and A are trained."""

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Rate = 0.0  # of the adapters' input, in training
    # The layers that have one: of attention (qkv, proj), of the MLP (up, down), of AdaLN (linear).
    layers: Annotated[tuple[Literal["qkv", "proj", "up", "down", "linear"], ...], Field(min_length=1)] = (
        *("qkv", "proj", "up", "down"),
    )
    train: tuple[Part, ...] = ("class_embedding",)  # parts that are trained whole beside the adapters, as in `freeze`


class Recipe(Section):
    """Keys that the recipes of all stages share; `..._every` is in steps."""

    # Keys that a resumed run must not change; with ema, given or not, all that a checkpoint remembers.
    fixed: ClassVar[frozenset[str]] = frozenset(
        {"stage", "seed", "batch_size", "model", "freeze", "train_only", "lora"}
    )
    has_transformer: ClassVar[bool] = False  # which lora can adapt
    # Keys and values renamed since the previous version: old -> new; of a nested key, its last part.
    renamed: ClassVar[Mapping[str, str]] = {
        "keep": "keep_last",
        "wandb": "wandb_project",
        "optimizer.clip": "grad_clip",
        "schedule.flat": "hold",
        "schedule.final": "final_lr_factor",
    }
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {}

    stage: str  # its name in the registry of stages
    output: UserPath  # the run's folder
    # Weights that replace the random ones at the start: a model's name, folder or repository, or a released file.
    init: UserPath | None = None
    # Parts of the model that are not trained, or the only ones that are: by name or kind, such as blocks.0 or mlp.
    freeze: tuple[Part, ...] = ()
    train_only: tuple[Part, ...] = ()
    lora: LoRAConfig | None = None  # train adapters of a transformer in place of its weights; merged on export
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of the weights, the order of the images and their augmentation
    data: DataConfig
    batch_size: Annotated[int, Field(ge=1, le=2**24)]  # images a step over all processes
    # Micro-batches, one after another, of each process's share of a batch, to save memory; None: the launcher's, or 1.
    accumulate: Count | None = None
    # Length of the run, in passes over the images or in steps: one of them is given. 0 steps only export the start.
    epochs: Annotated[float, Field(gt=0, le=1e7)] | None = None
    steps: Annotated[int, Field(ge=0, le=10**9)] | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of the average of the weights; None: no average
    # "auto" takes the launcher's, else bfloat16 where the hardware is fast at it; float16, with a loss scaler, needs
    # CUDA.
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: Count = 20
    validate_every: Count = 1000
    sample_every: Count = 1000
    checkpoint_every: Count = 1000
    keep_last: Count = 2  # of the checkpoints, the newest; the best one by validation is kept beside them
    max_skipped: Count = 20  # steps in a row that may be skipped for a loss or gradient that is not finite
    compile: bool = False  # by torch.compile
    wandb_project: Annotated[str, Field(min_length=1)] | None = None  # at Weights & Biases; None: no run there

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> Self:
        if self.freeze and self.train_only:
            raise InputError("freeze and train_only are both given: leave one of them out")
        if self.lora is not None and not self.has_transformer:
            raise InputError(
                f"lora adapts the transformer of VAR, which stage {self.stage} does not train: leave it out"
            )
        if self.lora is not None and self.init is None:
            raise InputError("lora adapts a trained transformer: give it as init")
        if self.lora is not None and (self.freeze or self.train_only):
            raise InputError("lora trains its adapters and lora.train alone: leave out freeze and train_only")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise InputError("epochs and steps are both missing: give one of them, such as epochs=100")
        if self.epochs is not None and self.steps is not None:
            raise InputError(
                f"epochs={self.epochs:g} and steps={self.steps} both given: set one of them to null, as by steps=null"
            )
        return self

    def total_steps(self, length: int) -> int:
        """Steps of the whole run over a dataset of that length."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 0) * length / self.batch_size))

    @property
    def freezes(self) -> bool:
        """Whether only a part of the model's parameters is trained."""
        return bool(self.freeze or self.train_only or self.lora)

    @property
    def micro_batches(self) -> int:
        """Number of micro-batches of a process in a step."""
        return self.accumulate or 1

    @property
    def output_as_typed(self) -> str:
        """The output folder as it is typed in a shell, for commands that are printed to be copied."""
        return shlex.quote(str(self.output))

    @property
    def source_as_typed(self) -> str:
        """The images as an override for another recipe, as it is typed in a shell."""
        return shlex.quote(f"data.source={self.data.source}")

    @property
    def headline(self) -> str:
        """One line that identifies a run in a series."""
        return f"{self.output}: lr {self.optimizer.lr:g}"

    def at_depth(self, depth: int) -> Self:
        """Return the recipe at another depth, whose output is OUTPUT/d{depth}; only some stages' recipes define it."""
        raise NotImplementedError  # `series` refuses a stage whose recipe does not define it
