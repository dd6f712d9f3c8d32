"""AIM's pre-training and its loss: every patch after a prefix predicts the next one (arXiv 2401.08541, section 3).

B batch, N patches, P side of a patch in pixels, D width of the encoder, C numbers that describe a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, check_types
from var.models.aim import EncoderConfig, initialize, sincos_2d_pos_embed
from var.models.masks import prefix_causal
from var.models.pretraining import Pretrainer
from var.models.transformer import MLP, NORM_EPS, BlockConfig, check_mlp_ratio


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head on every patch's features, which is discarded after pre-training.

    Raises InputError: a value that cannot work.
    """

    depth: int = 12  # residual MLP blocks; 0 leaves one linear map
    width: int = 2048  # of the blocks, a multiple of 4
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over its width

    def __post_init__(self) -> None:
        check_types(self, at_most={"depth": DEEPEST, "width": 2**16})
        if self.depth < 0:
            raise InputError(f"depth={self.depth} must be 0 (one linear map) or more")
        if self.width < 4 or self.width % 4:
            raise InputError(f"width={self.width} must be a positive multiple of 4")
        check_mlp_ratio(self.mlp_ratio)


class PixelHead(nn.Module):
    """Features and positions -> predictions, patch by patch: the transformer's blocks without their attention."""

    def __init__(self, encoder: EncoderConfig, config: HeadConfig, outputs: int) -> None:
        super().__init__()
        width = config.width if config.depth else encoder.width
        block = BlockConfig(width, heads=1, mlp_ratio=config.mlp_ratio, bias=False, gelu="none")
        self.widen = nn.Linear(encoder.width, width) if config.depth else nn.Identity()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=NORM_EPS) for _ in range(config.depth))
        self.mlps = nn.ModuleList(MLP(block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if config.depth else nn.Identity()
        self.predict = nn.Linear(width, outputs)
        self.position: Tensor | None
        position = sincos_2d_pos_embed(encoder.side, width) if config.depth else None
        self.register_buffer("position", position, persistent=False)
        initialize(self)

    def forward(self, features: Tensor, patch_indices: Tensor) -> Tensor:
        """(B, N - 1, D) and the index in the image of each patch, (N - 1,) -> (B, N - 1, C)."""
        x = self.widen(features)  # (B, N - 1, head width)
        if self.position is not None:
            x = x + self.position[patch_indices].to(x.dtype)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return self.predict(self.norm(x))  # (B, N - 1, C)


class AIMPretrainer(Pretrainer):
    """An encoder with its head.

    Args:
        outputs: C, numbers that the head predicts for a patch.
        order: (N,) int64, indices of the patches in the order of the sequence.
    """

    def __init__(self, encoder: EncoderConfig, head: HeadConfig, outputs: int, order: Tensor) -> None:
        super().__init__(encoder)
        self.head = PixelHead(encoder, head, outputs)
        self.order: Tensor
        self.register_buffer("order", order, persistent=False)

    def forward(self, images: Tensor, prefix: Tensor) -> Tensor:
        """Predictions of the second to the last patch of the sequence, (B, N - 1, C).

        Args:
            images: (B, 3, S, S), normalized.
            prefix: (B,) int64 in 0..N - 1, number of patches that see one another; 0 is purely causal.

        Raises InputError: images of another size; prefixes that are not one whole number for each image, or outside
        0..N - 1.
        """
        check_prefix(prefix, len(images), len(self.order))
        mask = prefix_causal(prefix.to(self.order.device), len(self.order))  # (B, 1, N, N)
        features = self.encoder(images, mask, self.order)  # (B, N, D)
        return self.head(features[:, :-1], self.order[:-1])


def check_prefix(prefix: object, batch: int, patches: int) -> None:
    """Raise InputError unless the prefixes are (B,) int64 in 0..N - 1.

    Values are checked here on the CPU, unless the tensor is fake (as in a dry run). Elsewhere that would make every
    step wait for the device, so the check runs there.
    """
    if not isinstance(prefix, Tensor) or prefix.dtype != torch.int64 or tuple(prefix.shape) != (batch,):
        given = f"{prefix.dtype} {tuple(prefix.shape)}" if isinstance(prefix, Tensor) else repr(prefix)
        raise InputError(f"prefix is {given}: give one length an image, a tensor of int64 of shape ({batch},)")
    outside = (prefix < 0) | (prefix >= patches)
    rule = f"must be in 0..{patches - 1}: of {patches} patches one at least is predicted"
    if prefix.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(~outside.any(), f"prefix {rule}")
    elif type(prefix) is Tensor and prefix.device.type == "cpu" and outside.any():
        raise InputError(f"prefix {int(prefix[outside][0])} {rule}")


def prefix_lengths(lengths: Sequence[int], patches: int) -> Tensor:
    """Convert lengths of prefixes to a tensor for `AIMPretrainer`, (B,) int64.

    Raises InputError: a length that is no whole number in 0..N - 1.
    """
    prefix = torch.tensor(lengths) if lengths else torch.empty(0, dtype=torch.int64)
    check_prefix(prefix, len(lengths), patches)
    return prefix


def target_mask(prefix: Tensor, length: int) -> Tensor:
    """Mask of the second to the last of N patches, true after the prefix: (B,) int64 in 0..N -> (B, N - 1) bool."""
    return torch.arange(1, length, device=prefix.device) >= prefix[:, None]
