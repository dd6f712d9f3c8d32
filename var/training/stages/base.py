"""Stages of training: each turns batches into losses and knows nothing of processes, checkpoints or logging.

One stage is one file beside this one: its recipe, how it is built from it, what must exist before it starts, its phases
with their losses, its outline for the dry run, what it validates and shows. Another objective is one more file.
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
from var.training.config import OptimizerConfig, Recipe
from var.training.estimate.images import Images
from var.training.rng import StepRNG
from var.utils.ranks import Ranks

RecipeT = TypeVar("RecipeT", bound=Recipe)
StageT = TypeVar("StageT", bound="type[Stage[Any]]")
ModelT = TypeVar("ModelT", bound=nn.Module)


class Losses(NamedTuple):
    """Losses of a micro-batch in a phase."""

    total: Tensor  # what to minimize, the mean over the micro-batch
    logs: dict[str, Tensor]  # numbers to show, 0-dimensional, likewise means
    carry: Any = None  # what the phases after it and the upkeep need of it


# One training pass. Model: the phase's, possibly wrapped for several processes. Batch: on the device. StepRNG: all that
# is random. The last: what the same micro-batch carried over from the phase before, None in the first.
Loss = Callable[[nn.Module, Batch, StepRNG, Any], Losses]


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of every step: a plain training has one phase, an adversarial one has two."""

    name: str  # of its model and optimizer in checkpoints and logs
    model: nn.Module
    optimizer: OptimizerConfig
    loss: Loss
    never_decayed: tuple[str, ...] = ()  # ends of the names of parameters that weight decay leaves alone
    start_step: int = 0  # the first one that has this phase
    units: Sequence[str] = ()  # parts whose parameters are gathered together in a sharded model; none: it stays whole
    kind: Callable[[int], Hashable] = lambda step: None  # of the work in a step: steps of one kind do the same


class Stage(ABC, Generic[RecipeT]):
    """One kind of training, on data of which the loop takes batches, with networks that stay as they are."""

    recipe_type: ClassVar[type[Recipe]]
    best = "loss"  # the validation's number that tells the best checkpoint; the lower the better
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
        self.frozen = frozen or {}  # what is not trained, each network under its part
        self.steps = recipe.total_steps(len(train_data))
        self.workers = recipe.data.workers  # processes that read training samples, beside each training process

    @classmethod
    def prepare(cls, recipe: RecipeT, device: torch.device, ranks: Ranks) -> None:
        """Make what must exist before the stage is built; all processes call this.

        Raises InputError: it cannot be made.
        """

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: RecipeT) -> Self:
        """The stage with its data and its initial weights.

        Raises InputError: data or models that are not there or do not fit.
        """

    @classmethod
    @abstractmethod
    def outline(cls, recipe: RecipeT) -> "Outline":
        """The stage as `from_recipe` would build it, without reading, downloading or computing anything large.

        Raises InputError: sizes that cannot work, models that are not there and that nothing can stand in for.
        """

    def to(self, device: torch.device) -> None:
        """Move what is not trained to the device."""
        for network in self.frozen.values():
            network.to(device)

    @abstractmethod
    def build(self) -> nn.Module:
        """A model like the first phase's, with weights of no meaning."""

    def after_step(
        self, rng: StepRNG, carries: Sequence[Any], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        """Upkeep without gradients, the same on every process; numbers to show.

        `rng` has the places of any micro-batch, `carries` are those of the last phase, one for each micro-batch of this
        process, and `reduce` sums a tensor over all processes.
        """
        return {}

    @abstractmethod
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Values of each image, (B,), whose means the validation tells; nothing random."""

    @abstractmethod
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """A sheet that shows how far the model is."""

    @abstractmethod
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as users load it."""

    def state_dict(self) -> dict[str, Any]:
        """State to remember besides that of the models."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class Outline(NamedTuple):
    """A stage for the dry run."""

    stage: Stage[Any]  # as it will be trained, on the meta device
    images: Images  # what is known of the training images
    sample: Tensor  # what a batch holds of each, of its shape and type
    tokens: int  # of an image
    prepare: Callable[[int], object] = lambda count: None  # compute what `Stage.prepare` does, of so many images
    to_prepare: int = 0  # images that `Stage.prepare` has to compute this of
    prepared: str = ""  # what comes of it
    notes: Sequence[str] = ()  # what was assumed


_registered: dict[str, type[Stage[Any]]] = {}


def register(name: str) -> Callable[[StageT], StageT]:
    """Make a stage known under the name that its recipes give; one in a file beside this one has the file's name."""

    def add(stage: StageT) -> StageT:
        _registered[name] = stage
        return stage

    return add


def stage_names() -> list[str]:
    """All stages there are: those of the files beside this one, read only when asked for, and any other registered."""
    files = {path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - {"base"}
    return sorted(files | _registered.keys())


def find_stage(name: str) -> type[Stage[Any]]:
    """The stage of that name; KeyError: there is none."""
    if name not in _registered and name in stage_names():
        import_module(f"{__package__}.{name}")
    return _registered[name]


def require(kind: type[ModelT], model: nn.Module) -> ModelT:
    """The model, which is of the kind that a stage trains; TypeError: it is not."""
    if not isinstance(model, kind):
        raise TypeError(f"a {kind.__name__} is trained in this stage, got {type(model).__name__}")
    return model


def open_images(recipe: Recipe, side: int) -> list[ImageDataset]:
    """The recipe's training and validation images as squares of that side. Raises InputError: see `open_dataset`."""
    return [open_dataset(recipe.data, split, side, recipe.seed) for split in SPLIT_NAMES]


def check_labels(labels: NDArray[Any] | Tensor | None, num_classes: int, key: str = "num_classes") -> None:
    """Raise InputError if a model has no room for one of the labels; None: they are not known yet.

    `key` is where the recipe says how many it has room for.
    """
    if labels is not None and len(labels) and (largest := int(labels.max())) >= num_classes:
        raise InputError(
            f"the data has label {largest}, {key}={num_classes} has room for 0..{num_classes - 1}: "
            f"set {key} to at least {largest + 1}, or to null"
        )
