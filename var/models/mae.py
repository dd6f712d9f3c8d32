"""Masked autoencoder: the encoder sees a few patches, a decoder predicts the others (MAE, arXiv 2111.06377, section 3).

B batch, N patches, n of them visible, D width of the encoder, W width of the decoder, C numbers that describe a patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from var.models.aim import EncoderConfig, initialize, sincos_2d_pos_embed
from var.models.pretraining import DecoderConfig, Pretrainer
from var.models.transformer import NORM_EPS, Block, BlockConfig, run_blocks


@dataclass(frozen=True)
class MAEDecoderConfig(DecoderConfig):
    """Sizes of MAE's decoder: 1 to 12 blocks, 128 to 1024 wide (the paper's table 1). Defaults are the paper's."""

    most_blocks = 12
    widths = (128, 1024)

    heads: int = 16


class MAEDecoder(nn.Module):
    """Features of the visible patches -> predictions of all: one learned token stands for every masked patch."""

    def __init__(self, encoder: EncoderConfig, config: MAEDecoderConfig, outputs: int) -> None:
        super().__init__()
        block = BlockConfig(config.width, config.heads, config.mlp_ratio, qk_norm=False, gelu="none")
        self.embed = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList names no type
            Block(block) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.predict = nn.Linear(config.width, outputs)
        self.position: Tensor
        self.register_buffer("position", sincos_2d_pos_embed(encoder.side, config.width), persistent=False)
        initialize(self)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """Predict all patches from those that are visible.

        Args:
            features: (B, n, D).
            visible: (B, n) int64 in 0..N - 1, the indices of their patches, different ones.

        Returns:
            (B, N, C), row by row.
        """
        x = self.embed(features)  # (B, n, W)
        tokens = self.mask_token.to(x.dtype).expand(len(x), *self.position.shape)
        x = tokens.scatter(1, visible[..., None].expand_as(x), x)  # (B, N, W)
        x = run_blocks(self.blocks, x + self.position.to(x.dtype))
        return self.predict(self.norm(x))


class MAEPretrainer(Pretrainer):
    """An encoder of visible patches with a decoder.

    Args:
        outputs: C, numbers that the decoder predicts for a patch.
    """

    def __init__(self, encoder: EncoderConfig, decoder: MAEDecoderConfig, outputs: int) -> None:
        super().__init__(encoder)
        self.decoder = MAEDecoder(encoder, decoder, outputs)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Predictions of all patches, row by row: (B, N, C).

        Args:
            images: (B, 3, S, S), normalized.
            visible: (B, n) int64 in 0..N - 1, different indices of the patches that the encoder sees.

        Raises InputError: images of another size.
        """
        return self.decoder(self.encoder(images, order=visible), visible)
