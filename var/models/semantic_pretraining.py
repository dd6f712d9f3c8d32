"""SemAIM's pre-training: each patch is predicted from the more semantic ones (arXiv 2312.10457).

As in the paper, the order of the patches is the image's own, the encoder sees them in this order through a causal mask,
and a decoder that is discarded afterwards predicts the next patch: its queries are the positions of the patches to be
predicted, and they attend to the encoder's outputs of the patches before. Simplified: the order comes from the encoder
that is being trained, by the attention of its mean query (see semantic_order.py), and the decoder is a small one whose
queries attend to the encoder's last outputs alone and not to each other.

B batch, N patches, D width of the encoder, W width of the decoder, H heads, C numbers that describe a patch.
"""

import math
from typing import NamedTuple

from einops import rearrange
from torch import Tensor, nn

from var.models.aim import EncoderConfig, initialize, sincos_2d_pos_embed
from var.models.aim_pretraining import check_prefix
from var.models.masks import prefix_causal
from var.models.pretraining import DecoderConfig, Pretrainer
from var.models.semantic_order import semantic_order
from var.models.transformer import MLP, NORM_EPS, BlockConfig, attend


class QueryBlock(nn.Module):
    """Attention of queries to a context and MLP, each a residual branch behind a LayerNorm."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.norm_mlp = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Queries (B, L, W), context (B, T, W) and a mask that broadcasts to (B, H, L, T) -> (B, L, W)."""
        q = rearrange(self.query(self.norm_attention(x)), "b l (h d) -> b l h d", h=self.heads)
        k, v = rearrange(self.key_value(context), "b t (two h d) -> two b t h d", two=2, h=self.heads)
        x = x + self.proj(attend(q, k, v, mask, 1 / math.sqrt(q.shape[-1])))
        return x + self.mlp(self.norm_mlp(x))


class QueryDecoder(nn.Module):
    """Features of patches and positions of others -> predictions of the others."""

    def __init__(self, encoder: EncoderConfig, config: DecoderConfig, outputs: int) -> None:
        super().__init__()
        block = BlockConfig(config.width, config.heads, config.mlp_ratio, qk_norm=False, bias=False, gelu="none")
        self.narrow = nn.Linear(encoder.width, config.width)
        self.blocks = nn.ModuleList(QueryBlock(block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.predict = nn.Linear(config.width, outputs)
        self.position: Tensor
        self.register_buffer("position", sincos_2d_pos_embed(encoder.side, config.width), persistent=False)
        initialize(self)

    def forward(self, features: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Predict L patches of each image from the features of T others.

        Args:
            features: (B, T, D).
            targets: (B, L) int64 in 0..N - 1, indices in the image of the patches to predict.
            mask: (B, 1, L, T) bool, true where a patch may attend to a feature, at least once in each row.

        Returns:
            (B, L, C).
        """
        context = self.narrow(features)  # (B, T, W)
        x = self.position[targets].to(context.dtype)  # (B, L, W)
        for block in self.blocks:
            x = block(x, context, mask)
        return self.predict(self.norm(x))


class SemanticPredictions(NamedTuple):
    """What the model predicts, and in which order."""

    predictions: Tensor  # (B, N - 1, C), of the second to the last patch of each image's order
    order: Tensor  # (B, N) int64, indices of the patches


class SemAIMPretrainer(Pretrainer):
    """An encoder with its decoder.

    Args:
        outputs: C, numbers that the decoder predicts for a patch.
        smoothing: standard deviation in patches of the Gaussian that smooths the attention; 0: none.
    """

    def __init__(self, encoder: EncoderConfig, decoder: DecoderConfig, outputs: int, smoothing: float) -> None:
        super().__init__(encoder)
        self.decoder = QueryDecoder(encoder, decoder, outputs)
        self.smoothing = smoothing

    def forward(self, images: Tensor, prefix: Tensor) -> SemanticPredictions:
        """Predict each patch from those before it in the order of its image.

        Args:
            images: (B, 3, S, S), normalized.
            prefix: (B,) int64 in 0..N - 1, see `prefix_causal`; 0, the paper's, is purely causal.

        Raises InputError: images of another size; prefixes that are not one whole number for each image, or outside
        0..N - 1.
        """
        patches = self.encoder.config.patches
        check_prefix(prefix, len(images), patches)
        order = semantic_order(self.encoder, images, self.smoothing)
        mask = prefix_causal(prefix.to(order.device), patches)  # (B, 1, N, N)
        features = self.encoder(images, mask, order)[:, :-1]  # (B, N - 1, D)
        return SemanticPredictions(self.decoder(features, order[:, 1:], mask[:, :, :-1, :-1]), order)
