"""What every recipe may say: its keys, their types, defaults and bounds. What a stage adds is in the stage's file."""

import math
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tokenizer.errors import InputError
from var.data.config import Count, DataConfig, Fraction, NotNegative, Positive, Rate, Section


class OptimizerConfig(Section):
    """AdamW.

    Attributes:
        lr: the peak, for the recipe's batch size.
        betas: decays of the moments.
        weight_decay: on matrices and kernels only; 0: none.
        final_weight_decay: what it becomes towards the end of the run; None: it stays.
        grad_clip: bound on the norm of the gradient; None: none.
    """

    lr: Positive
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    weight_decay: NotNegative = 0.05
    final_weight_decay: Positive | None = None
    grad_clip: Positive | None = 2.0


class ScheduleConfig(Section):
    """Learning rate over the run: a linear warm-up, a part at lr, then a fall (VAR's code: linear, held for 5 %).

    Attributes:
        warmup: fraction of the run spent rising from warmup_start * lr to lr.
        warmup_start: factor of lr at the first step.
        hold: fraction of the run held at lr after the warm-up.
        final_lr_factor: factor of lr at the last step.
        shape: of the fall from lr to final_lr_factor * lr.
    """

    warmup: Fraction = 0.02
    warmup_start: Fraction = 0.005
    hold: Fraction = 0.05
    final_lr_factor: Fraction = 0.1
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.warmup + self.hold > 1:
            raise InputError(f"warmup={self.warmup} and hold={self.hold} exceed the run: together at most 1, lower one")
        return self


class Recipe(Section):
    """What the recipes of all stages share.

    Attributes:
        fixed: keys that a resumed run must not change; with ema, given or not, all that a checkpoint remembers.
        stage: its name in the registry of stages.
        output: the run's folder.
        seed: of the weights, the order of the images and their augmentation.
        batch_size: images a step over all processes.
        epochs: length of the run in passes over the images; either this or steps.
        steps: length of the run in steps; either this or epochs.
        ema: decay of the average of the weights; None: no average.
        accumulate: parts that each process takes its share of a batch in, one after another, to save memory.
        precision: of the network; "auto" takes bfloat16 where the hardware is fast at it; float16 (with a loss
            scaler) needs CUDA.
        log_every, validate_every, sample_every, checkpoint_every: in steps.
        keep_last: checkpoints kept, the newest; the best one by validation is kept beside them.
        max_skipped: steps in a row that may be skipped for a loss or gradient that is not finite.
        compile: run the network through torch.compile.
        wandb_project: project at Weights & Biases to which the run's numbers go too; None: only to its folder.
        init: folder of an exported model to begin with, its weights only, in place of random ones.
    """

    fixed: ClassVar[frozenset[str]] = frozenset({"stage", "seed", "batch_size", "model"})

    stage: str
    output: Path
    init: Path | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    batch_size: Count
    accumulate: Count = 1
    epochs: Positive | None = None
    steps: Count | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: Count = 20
    validate_every: Count = 1000
    sample_every: Count = 1000
    checkpoint_every: Count = 1000
    keep_last: Count = 2
    max_skipped: Count = 20
    compile: bool = False
    wandb_project: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise InputError("epochs and steps are both missing: give one of them, such as epochs=100")
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"epochs={self.epochs:g} and steps={self.steps} both given: set one of them to null")
        return self

    def total_steps(self, length: int) -> int:
        """Steps of the whole run over a dataset of that length."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 0) * length / self.batch_size))

    @property
    def headline(self) -> str:
        """What sets a run of a series apart."""
        return f"{self.output}: lr {self.optimizer.lr:g}"

    def at_depth(self, depth: int) -> Self:
        """The recipe at another depth, whose output is OUTPUT/d{depth}; only for stages whose recipe defines it."""
        raise NotImplementedError
