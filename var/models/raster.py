"""The baseline of VAR: the same transformer predicts the next token of a single map (VQGAN, arXiv 2012.09841).

B batch, L tokens of the map, C latent channels, D width, V codebook size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.models.conditional import (
    CodebookTransformer,
    CodebookTransformerConfig,
    Condition,
    compute_logits,
    initialize,
)
from var.models.masks import causal
from var.models.orders import sequence_order
from var.models.transformer import KVCache, run_blocks

RasterOrder = Literal["raster", "spiral", "z-curve"]


@dataclass(frozen=True)
class RasterConfig(CodebookTransformerConfig):
    """All sizes of the transformer.

    Attributes:
        scales: the side of the token map, the only one of the tokenizer.
        order: of the tokens in sampling and validation, see `sequence_order`.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    scales: tuple[int, ...] = (16,)
    order: RasterOrder = "raster"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.scales) != 1:
            raise InputError(
                f"scales {list(self.scales)} are {len(self.scales)} token maps, a raster model predicts those of a "
                f"single one: train its tokenizer with model.scales=[{self.scales[-1]}]"
            )


class Raster(CodebookTransformer):
    """Labels and the codes of the earlier tokens -> logits of the next token.

    Besides its content, a token has two learned positions: that of the cell whose code it is, and that of the cell that
    is predicted from it (RAR, arXiv 2411.00776). So the model can be trained in any order of the cells.
    """

    config: RasterConfig

    def __init__(self, config: RasterConfig) -> None:
        super().__init__(config)  # whose `position` is that of the cell that is predicted
        self.token_position = nn.Parameter(torch.empty(1, self.scales.total, config.width))
        self._add_blocks()
        self.mask: Tensor
        self.order: Tensor
        self.register_buffer("mask", causal(self.scales.total), persistent=False)
        self.register_buffer("order", sequence_order(config.order, *config.scales), persistent=False)
        initialize(self)

    def forward(
        self,
        labels: Tensor,
        teacher_forcing_input: Tensor,
        order: Tensor | None = None,
        path_noise: Tensor | None = None,
        checkpoint: bool = False,
        read: Callable[[nn.Linear, Tensor], Any] = compute_logits,
    ) -> Any:
        """Predict all tokens at once, each from those before it.

        Args:
            labels: (B,) int64, num_classes for the null class.
            teacher_forcing_input: (B, L - 1, C), codes of all tokens but the last, in their order.
            order: (L,) or (B, L) int64, cells in the order of their prediction; None: the model's own.
            path_noise, checkpoint, read: as `VAR.forward` takes them.

        Returns:
            What `read` does: (B, L, V) float32 logits in the order of the tokens, unless another function is given.

        Raises:
            InputError: the input is not of shape (B, L - 1, C), the noise not of shape (B, 2 * depth).
        """
        self._check_shapes(len(labels), self.scales.total, teacher_forcing_input, path_noise)
        condition = self.condition(labels)
        order = self.order if order is None else order
        x = self._contents(condition, teacher_forcing_input)  # (B, L, D)
        before = F.pad(self.token_position[0, order[..., :-1]], (0, 0, 1, 0))  # (L, D) or (B, L, D), 0 at the start
        x = self._run(x + (self.position[0, order] + before), condition, self.mask, path_noise, checkpoint)
        return self._read(x, condition, read)

    def count_blind(self, known: Tensor) -> int:
        """Count the tokens that come before all known ones; none if nothing is known."""
        return int((~known[self.order.to(known.device)]).cumprod(dim=0).sum()) if known.any() else 0

    def step(self, i: int, code: Tensor | None, condition: Condition, cache: KVCache) -> Tensor:
        """Predict token i in the model's order, after tokens 0..i-1 with the same cache.

        Args:
            i: the token's number in the order.
            code: (B, 1, C), of token i - 1; None at token 0.
            condition: of the labels, for the same batch.
            cache: read up to token i - 1, written at token i.

        Returns:
            (B, 1, V) float32 logits.
        """
        if code is None:
            x = condition.start + self.start_position  # (B, 1, D)
        else:
            x = self.feature_in(code.to(self.feature_in.weight.dtype)) + self.token_position[:, self.order[i - 1 : i]]
        x = x + self.position[:, self.order[i : i + 1]]
        return self._logits(run_blocks(self.blocks, x, condition.modulations, cache=cache, start=i), condition)
