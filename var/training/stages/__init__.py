"""What is trained: each stage turns batches into losses and knows nothing of processes, checkpoints or logging."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from var.data.dataset import Batch, SampleDataset
from var.training.config import OptimizerConfig
from var.training.rng import StepRNG


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of every step: a plain training has one phase, an adversarial one has two.

    Attributes:
        name: of its model and optimizer in checkpoints and logs.
        model: what it optimizes.
        optimizer: how.
        never_decayed: ends of the names of parameters that weight decay leaves alone.
        start_step: the first step that has this phase.
        units: names of the parts whose parameters are gathered together when the model is sharded over processes;
            none: it is too small to be sharded.
    """

    name: str
    model: nn.Module
    optimizer: OptimizerConfig
    never_decayed: tuple[str, ...] = ()
    start_step: int = 0
    units: Sequence[str] = ()


class Losses(NamedTuple):
    """What a micro-batch says in a phase."""

    total: Tensor  # what to minimize, the mean over the micro-batch
    logs: dict[str, Tensor]  # numbers to show, 0-dimensional, likewise means
    kept: Any = None  # what the phases after it and the upkeep need of it


class Stage(Protocol):
    """One kind of training."""

    @property
    def train_data(self) -> SampleDataset:
        """Of which the loop takes the steps' batches."""

    @property
    def validation_data(self) -> SampleDataset:
        """Always seen in the same order."""

    @property
    def workers(self) -> int:
        """Processes that read training samples, beside each training process."""

    @property
    def steps(self) -> int:
        """Of the whole run."""

    @property
    def phases(self) -> Sequence[Phase]:
        """Of every step, in order. The model of the first one is what is averaged, validated and exported."""

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        """What is not trained, each network under its part."""

    @property
    def best(self) -> str:
        """The validation's number that tells the best checkpoint; the lower the better."""

    def prepare(self, device: torch.device) -> None:
        """Move what is not trained to the device."""

    def kind(self, phase: str, step: int) -> Hashable:
        """Of a step's work in a phase: steps of one kind do the same."""

    def build(self) -> nn.Module:
        """A model like the first phase's, with weights of no meaning."""

    def losses(self, phase: str, model: nn.Module, batch: Batch, draws: StepRNG, kept: Any) -> Losses:
        """One training pass in a phase.

        Args:
            phase: its name.
            model: the phase's, possibly wrapped for several processes.
            batch: on the device.
            draws: all that is random.
            kept: of the same micro-batch in the phase before; None in the first.
        """

    def after_step(
        self, draws: StepRNG, kept: Sequence[Any], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        """Upkeep without gradients, the same on every process; numbers to show.

        Args:
            draws: of the step, with the places of any micro-batch.
            kept: by the last phase, for each micro-batch of this process.
            reduce: sum of a tensor over all processes.
        """

    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Values of each image, (B,), whose means the validation tells; nothing random."""

    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """A sheet that shows how far the model is."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the model as users load it."""

    def state_dict(self) -> dict[str, Any]:
        """What the stage has to remember besides its models."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
