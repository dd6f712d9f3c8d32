"""Base classes of frozen networks that give feature maps of images, and the loading of their weights.

Images are (B, 3, H, W) in [-1, 1]. The networks compute in the images' precision, float32 unless autocast is on, and do
not resize the images. Optional packages are imported only when a network needs them.
"""

from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError, one_line
from var.utils.images import IMAGENET_MEAN, IMAGENET_STD
from var.utils.weights import StateDict, read_weights

Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, for images in [-1, 1]

IMAGENET: Normalization = (tuple(2 * mean - 1 for mean in IMAGENET_MEAN), tuple(2 * std for std in IMAGENET_STD))


class Frozen(nn.Module):
    """A module whose parameters are not trained and which always stays in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever the mode given."""
        return super().train(False)


class Backbone(Frozen):
    """A frozen network that gives several feature maps of an image; gradients pass through it to the image.

    Attributes:
        channels: of the maps, first to last.
        smallest_side: least side of images, in pixels, for which no map is empty.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, channels: Sequence[int], normalization: Normalization, smallest_side: int
    ) -> None:
        super().__init__(network)
        self.channels = tuple(channels)
        self.smallest_side = smallest_side
        for name, values in zip(("mean", "std"), normalization, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> one map (B, C, h, w) for each of `channels`.

        Raises InputError: images smaller than smallest_side.
        """
        if min(images.shape[-2:]) < self.smallest_side:
            raise InputError(
                f"images of {images.shape[-2]}x{images.shape[-1]} px are too small for this perceptual network, which "
                f"needs {self.smallest_side} px: choose another backbone or larger images"
            )
        return self.network((images - self.mean) / self.std)


class IntermediateLayers(nn.Module):
    """Layers one after the other, and the outputs of those whose numbers are in `taps`."""

    def __init__(self, layers: Iterable[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        """Input of the first layer -> outputs of the layers in `taps`."""
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def read_or_download(weights: Path | None, url: str) -> StateDict:
    """Read the tensors of a file, or download them from a URL to torch's cache.

    Raises InputError: a file that cannot be used, a download that failed.
    """
    if weights is not None:
        return read_weights(weights)
    try:
        with redirect_stdout(StringIO()):  # torch announces the download even without progress
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:  # no connection, no space, a different file
        raise InputError(
            f"{url} could not be downloaded ({one_line(error)}): fetch it elsewhere and give its path as the weights "
            f"(of `var evaluate tokenizer` --lpips-weights)"
        ) from error
