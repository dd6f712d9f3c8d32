"""MAR: the same transformer predicts continuous tokens of a single map, in any order (arXiv 2406.11838).

What it knows of a masked token becomes a condition, from which a small diffusion head draws the token. In the paper an
encoder sees the known tokens and a decoder all of them; here one stack of blocks, that of VAR, sees all, and attention
has no mask.

B batch, L tokens of the map, C latent channels, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import Regularization
from var.models.conditional import Condition, ConditionalTransformer, TransformerConfig, initialize
from var.models.diffusion_head import DiffusionHead, HeadSizes
from var.models.transformer import run_blocks


@dataclass(frozen=True)
class MARConfig(HeadSizes, TransformerConfig):
    """All sizes of the transformer and its head.

    Attributes:
        scales: the side of the token map, the only one of the tokenizer.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    regularization: ClassVar[Regularization] = "kl"

    scales: tuple[int, ...] = (16,)
    latent_dim: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_head()
        if len(self.scales) != 1:
            raise InputError(f"scales {list(self.scales)} are {len(self.scales)} token maps, a MAR has a single one")


def take_condition(head: nn.Module, condition: Tensor) -> Tensor:
    """Return the conditions (B, L, D) of the tokens as they are."""
    return condition


class MAR(ConditionalTransformer):
    """Labels and the tokens that are known -> a condition for each token, from which the head draws it.

    The content of a masked token is that of VAR's start token: the class embedding plus a learned vector, which is the
    mask embedding. It and AdaLN show the class to every token, in place of the 64 [cls] tokens of the paper.
    """

    config: MARConfig
    head: DiffusionHead

    def __init__(self, config: MARConfig) -> None:
        super().__init__(config)
        self._add_blocks()
        initialize(self)
        self.head.initialize()

    def _build_head(self) -> nn.Module:
        c = self.config
        return DiffusionHead(c.latent_dim, c.width, c.head_width or c.width, c.head_depth)

    def forward(
        self,
        labels: Tensor,
        tokens: Tensor,
        mask: Tensor,
        path_noise: Tensor | None = None,
        checkpoint: bool = False,
        read: Callable[[DiffusionHead, Tensor], Any] = take_condition,
    ) -> Any:
        """Predict the condition of every token.

        Args:
            labels: (B,) int64, num_classes for the null class.
            tokens: (B, L, C); those that are masked have no influence.
            mask: (B, L) bool, True where a token is not known.
            path_noise, checkpoint: as `VAR.forward` takes them.
            read: makes the result from the head and the conditions; it runs inside this model, which training may have
                wrapped.

        Returns:
            What `read` does: the conditions, (B, L, D) float32, unless another function is given.

        Raises:
            InputError: tokens or mask of another shape, the noise not of shape (B, 2 * depth).
        """
        expected = (len(labels), self.scales.total)
        if tokens.shape != (*expected, self.config.latent_dim) or mask.shape != expected:
            raise InputError(
                f"tokens of shape {tuple(tokens.shape)} and a mask of shape {tuple(mask.shape)} given, "
                f"{(*expected, self.config.latent_dim)} and {expected} needed for these labels"
            )
        self._check_path_noise(len(labels), path_noise)
        condition = self.condition(labels)
        x = self._run(self._embed(tokens, mask, condition), condition, None, path_noise, checkpoint)
        return read(self.head, self._modulate(x, condition))

    def predict(self, tokens: Tensor, mask: Tensor, condition: Condition) -> Tensor:
        """Return the conditions of all tokens, (B, L, D) float32, as `forward` does, from the labels' `condition`."""
        x = run_blocks(self.blocks, self._embed(tokens, mask, condition), condition.modulations)
        return self._modulate(x, condition)

    def _embed(self, tokens: Tensor, mask: Tensor, condition: Condition) -> Tensor:
        known = self.feature_in(tokens.to(self.feature_in.weight.dtype))  # (B, L, D)
        masked = condition.start + self.start_position  # (B, 1, D)
        return torch.where(mask[..., None], masked.to(known.dtype), known) + self.position
