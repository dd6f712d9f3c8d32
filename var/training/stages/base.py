"""Stages of training: each turns batches into losses and knows nothing of processes, checkpoints or logging.

One stage is one file beside this one: its recipe and how it is built from it, its preparation, its phases with their
losses, its outline for the dry run, its validation and sheet. Another objective is one more file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.data.dataset import Batch, ImageDataset, SampleDataset, open_dataset
from var.data.listing import SPLIT_NAMES
from var.hub.start import start_from
from var.training.config import OptimizerConfig, Recipe
from var.training.estimate.images import Images
from var.training.parts import freeze
from var.training.rng import StepRNG
from var.utils.ranks import Ranks

RecipeT = TypeVar("RecipeT", bound=Recipe)
StageT = TypeVar("StageT", bound="type[Stage[Any]]")
T = TypeVar("T")


class Losses(NamedTuple):
    """Losses of a micro-batch in a phase."""

    total: Tensor  # to minimize, the mean over the micro-batch
    logs: dict[str, Tensor]  # numbers to log, 0-dimensional, means over the micro-batch
    carry: Any = None  # results for the next phase and `after_step`


# One training pass. Model: the phase's, possibly wrapped for several processes. Batch: on the device. StepRNG: all
# randomness. The last: the carry of the same micro-batch from the phase before, None in the first.
Loss = Callable[[nn.Module, Batch, StepRNG, Any], Losses]


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of a step: plain training has one phase, adversarial training has two."""

    name: str  # of its model and optimizer in checkpoints and logs
    model: nn.Module
    optimizer: OptimizerConfig
    loss: Loss
    never_decayed: tuple[str, ...] = ()  # endings of the names of parameters without weight decay
    start_step: int = 0  # the first one that has this phase
    sharded: Sequence[str] = ()  # submodules that are gathered one at a time; none: the model is never sharded
    compiled: Sequence[str] = ("",)  # submodules that are compiled each, once for all of a kind; "" is the whole
    kind: Callable[[int], Hashable] = lambda step: None  # of a step: steps of one kind do the same work


class Stage(ABC, Generic[RecipeT]):
    """One training objective: its data, its phases and its frozen networks."""

    recipe_type: ClassVar[type[Recipe]]
    parts: ClassVar[tuple[str, ...]] = ("",)  # folders in that of an export, with a model each
    best = "loss"  # the validation's number that decides which checkpoint is best; the lower the better
    phases: Sequence[Phase]  # of every step, in order; the first one's model is averaged, validated and exported

    def __init__(
        self,
        recipe: RecipeT,
        train_data: SampleDataset,
        validation_data: SampleDataset,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.recipe = recipe
        self.train_data, self.validation_data = train_data, validation_data
        self.frozen = frozen or {}  # networks that are not trained, by their role
        self.steps = recipe.total_steps(len(train_data))
        self.workers = recipe.data.workers  # processes that read training samples, beside each training process

    @classmethod
    def prepare(cls, recipe: RecipeT, device: torch.device, ranks: Ranks) -> None:
        """Write files that the stage needs before it is built; all processes call this.

        Raises InputError: they cannot be written.
        """

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: RecipeT) -> Self:
        """Build the stage with its data and its initial weights.

        Raises InputError: data or models that are missing or do not fit.
        """

    @classmethod
    @abstractmethod
    def outline(cls, recipe: RecipeT) -> "Outline":
        """Build the stage on the meta device, without reading, downloading or computing anything large.

        Raises InputError: sizes that cannot work, models that are missing and whose sizes are unknown.
        """

    def to(self, device: torch.device) -> None:
        """Move the frozen networks to the device."""
        for network in self.frozen.values():
            network.to(device)

    def start_from(self, given: Path) -> list[str]:
        """Give the first phase's model the weights of the recipe's init; return the tensors that stay random.

        Raises InputError: see `load_weights`.
        """
        return start_from(given, self.phases[0].model, self.train_data.class_names).new

    def set_trained(self) -> None:
        """Make the first phase's model ready for training: with what `adapt` adds, without what the recipe freezes.

        Raises InputError: a part that the model has not, nothing left to train, or what the stage needs to train.
        """
        self.adapt(self.phases[0].model)
        freeze(self.phases[0].model, self.recipe.freeze, self.recipe.train_only)

    def adapt(self, model: nn.Module) -> None:
        """Add to a model of `build` what is trained in place of its weights."""

    def rebuild(self) -> nn.Module:
        """Build a model with the names and shapes of the first phase's as it is trained."""
        model = self.build()
        self.adapt(model)
        return model

    @classmethod
    def next_command(cls, recipe: RecipeT) -> str:
        """Return a command that uses what a run of the recipe has exported."""
        return f"var features extract FOLDER --model {recipe.output_as_typed} --out features.parquet"

    @abstractmethod
    def build(self) -> nn.Module:
        """Build a model like the first phase's, with random weights."""

    def after_step(
        self, rng: StepRNG, carries: Sequence[Any], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        """Update state without gradients, the same on every process; return numbers to log.

        `rng` is that of any micro-batch, `carries` are those of the last phase, one for each micro-batch of this
        process, and `reduce` sums a tensor over all processes.
        """
        return {}

    @abstractmethod
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return values of each image, (B,), whose means are the validation's numbers; nothing random."""

    @abstractmethod
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw a sheet of the model's results."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model in the form that users load."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps besides that of the models."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`."""


class Outline(NamedTuple):
    """A stage for the dry run."""

    stage: Stage[Any]  # as it will be trained, on the meta device
    images: Images  # what is known of the training images
    sample: Tensor  # of the shape and type of one sample's content in a batch
    tokens: int  # of an image
    prepare: Callable[[int], object] = lambda count: None  # the computation of `Stage.prepare` for so many images
    to_prepare: int = 0  # number of images in `Stage.prepare`
    prepared: str = ""  # name of its result
    notes: Sequence[str] = ()  # assumptions


_registered: dict[str, type[Stage[Any]]] = {}


def register(name: str) -> Callable[[StageT], StageT]:
    """Register a stage under its name in recipes; for a stage in a file beside this one, that is the file's name."""

    def add(stage: StageT) -> StageT:
        _registered[name] = stage
        return stage

    return add


def stage_names() -> list[str]:
    """List all stages: those of the files beside this one, imported by `find_stage`, and other registered ones."""
    files = {path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - {"base"}
    return sorted(files | _registered.keys())


def find_stage(name: str) -> type[Stage[Any]]:
    """Import and return the stage of that name; KeyError: there is none."""
    if name not in _registered and name in stage_names():
        import_module(f"{__package__}.{name}")
    return _registered[name]


def require(kind: type[T], value: object) -> T:
    """Return the value if it is of that kind, else raise TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is needed here, got {type(value).__name__}")
    return value


def open_images(recipe: Recipe, side: int) -> list[ImageDataset]:
    """Open the recipe's training and validation images, squares of that side. Raises InputError: see `open_dataset`."""
    return [open_dataset(recipe.data, split, side, recipe.seed) for split in SPLIT_NAMES]


def check_labels(labels: NDArray[Any] | Tensor | None, num_classes: int, key: str = "num_classes") -> None:
    """Raise InputError if a label is not below num_classes; None: the labels are not known yet.

    `key` is the recipe's key of num_classes.
    """
    if labels is not None and len(labels) and (largest := int(labels.max())) >= num_classes:
        raise InputError(
            f"the data has label {largest}, {key}={num_classes} allows 0..{num_classes - 1}: "
            f"set {key} to at least {largest + 1}, or to null"
        )
