"""VAR: a transformer that predicts each whole token map from all coarser ones (arXiv 2404.02905, section 3).

B batch, K scales, L tokens of all scales, C latent channels, D width, V codebook size.

Labels are dropped in training, for classifier-free guidance, in `var/training/stages/var.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.scales import Scales
from var.models.conditional import (
    CodebookTransformer,
    CodebookTransformerConfig,
    Condition,
    ConditionalTransformer,
    compute_logits,
    initialize,
)
from var.models.masks import block_causal, fastest
from var.models.transformer import KVCache, run_blocks


@dataclass(frozen=True)
class VARConfig(CodebookTransformerConfig):
    """All sizes of the transformer; defaults are VAR-d16.

    Attributes:
        scale_drop: rate at which scales between the first and the last were left out in training; above 0 the model
            can also draw without them.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    scale_drop: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales[0] != 1:
            raise InputError(
                f"scales {list(self.scales)} must begin with 1, as the class embedding stands for one token: train the "
                "tokenizer with such model.scales, or of a single scale take stage=raster"
            )
        if not 0 <= self.scale_drop < 1:
            raise InputError(f"scale_drop={self.scale_drop} must be in [0, 1)")

    def to_dict(self) -> dict[str, object]:
        """Return the fields by name; scale_drop only where it is not 0, as versions without it read the others."""
        return {name: value for name, value in asdict(self).items() if name != "scale_drop" or value}


class VAR(CodebookTransformer):
    """Labels and the coarser scales' features -> logits of the tokens."""

    config: VARConfig

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config)
        self.level_embedding = nn.Embedding(len(self.scales), config.width)
        self._add_blocks()
        self.mask: Tensor
        self.levels: Tensor
        self.register_buffer("mask", block_causal(self.scales), persistent=False)
        self.register_buffer("levels", self.scales.levels(), persistent=False)
        initialize(self)

    def embed(
        self, condition: Condition, teacher_forcing_input: Tensor, positions: Tensor | slice = slice(None)
    ) -> Tensor:
        """Input of the first block, (B, L, D): the start token, then every scale's input (B, L - 1, C).

        L may also be the tokens of some scales alone, whose positions are then given.
        """
        x = self._contents(condition, teacher_forcing_input)
        return x + (self.position[:, positions] + self.level_embedding(self.levels[positions]))

    def _part(self, kept: Sequence[int] | None) -> tuple[Scales, Tensor | slice, Tensor]:
        """Return the scales that are kept (None: all), the positions of their tokens, and their mask."""
        if kept is None:
            return self.scales, slice(None), self.mask
        scales = Scales(tuple(self.scales.sides[k] for k in kept))
        ranges = [torch.arange(*self.scales.offsets[k : k + 2], device=self.mask.device) for k in kept]
        positions = torch.cat(ranges)
        return scales, positions, self.mask[positions[:, None], positions]

    def forward(
        self,
        labels: Tensor,
        teacher_forcing_input: Tensor,
        path_noise: Tensor | None = None,
        checkpoint: bool = False,
        kept: Sequence[int] | None = None,
        read: Callable[[nn.Linear, Tensor], Any] = compute_logits,
    ) -> Any:
        """Predict all scales at once, each from itself and the coarser ones (training; VAR paper, figure 4).

        Args:
            labels: (B,) int64, num_classes for the null class.
            teacher_forcing_input: (B, L - 1, C), f_hat resized to every scale but the first.
            path_noise: (B, 2 * depth) uniform in [0, 1), for stochastic depth; None drops nothing.
            checkpoint: keep only each block's input for the backward pass, and recompute the block there.
            kept: scales that L counts, in ascending order, the first among them; None: all.
            read: computes what is returned from the head and its input, (B, L, D) float32: where logits are only a
                step on the way, as to `head_losses`, they need not all exist at once.

        Returns:
            What `read` does: (B, L, V) float32 logits, unless another function is given.

        Raises:
            InputError: the input is not of shape (B, L - 1, C), the noise not of shape (B, 2 * depth).
        """
        scales, positions, mask = self._part(kept)
        self._check_shapes(len(labels), scales.total, teacher_forcing_input, path_noise)
        condition = self.condition(labels)
        x = self.embed(condition, teacher_forcing_input, positions)  # (B, L, D)
        x = self._run(x, condition, fastest(scales, mask), path_noise, checkpoint)
        return self._read(x, condition, read)

    def prefill(self, kept: Sequence[int], next_inputs: Tensor, condition: Condition, cache: KVCache) -> None:
        """Write some scales into the cache in one pass, as `step` does scale by scale.

        Args:
            kept: the scales, in ascending order, the first among them.
            next_inputs: (B, n - 1, C), the inputs of all of them but the first; they have n tokens together.
            condition: of the labels, for the same batch.
            cache: written from its start on.
        """
        scales, positions, mask = self._part(kept)
        x = self.embed(condition, next_inputs, positions)
        run_blocks(self.blocks, x, condition.modulations, fastest(scales, mask), cache)

    def step(
        self, k: int, next_input: Tensor | None, condition: Condition, cache: KVCache, cached: int | None = None
    ) -> Tensor:
        """Predict scale k, after scales 0..k-1, or some of them, with the same cache.

        Args:
            k: the scale.
            next_input: (B, side * side, C), f_hat of the coarser scales resized to this one; None at scale 0.
            condition: of the labels, for the same batch.
            cache: read up to scale k - 1, written at scale k.
            cached: tokens that it holds; None: those of all scales before k.

        Returns:
            (B, side * side, V) float32 logits.
        """
        start, stop = self.scales.offsets[k : k + 2]
        if next_input is None:
            x = condition.start + self.start_position  # (B, 1, D)
        else:
            x = self.feature_in(next_input.to(self.feature_in.weight.dtype))  # (B, side * side, D)
        x = x + self.position[:, start:stop] + self.level_embedding.weight[k]
        x = run_blocks(self.blocks, x, condition.modulations, cache=cache, start=start if cached is None else cached)
        return self._logits(x, condition)  # (B, side * side, V)


def require_var(model: ConditionalTransformer, work: str) -> VAR:
    """Return the model, which a work needs to be a VAR. Raises InputError: it is of another kind."""
    if not isinstance(model, VAR):
        raise InputError(f"{work} needs a VAR, and the model is a {type(model).__name__}: give another one")
    return model
