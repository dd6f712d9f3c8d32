"""AIM in MLX: the network of `var.models.aim`, for inference.

B batch, N patches, P side of a patch in pixels, D width, H heads.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from var.backends.weights import convert_weights
from var.models import aim
from var.models.aim import AIMConfig, AIMOutput, EncoderConfig, check_layers, sincos_2d_pos_embed
from var.models.transformer import NORM_EPS, BlockConfig
from var.utils.images import check_arrays


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = mx.split(self.qkv(x), 3, axis=-1)
        return self.proj(attend(q, k, v, self.heads))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.up = nn.Linear(config.width, hidden, bias=False)
        self.down = nn.Linear(hidden, config.width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, D) -> (B, N, D)."""
        return self.down(nn.gelu(self.up(x)))


class Block(nn.Module):
    """Attention and MLP, each a residual branch behind a LayerNorm."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(config.width, NORM_EPS)
        self.norm_mlp = nn.LayerNorm(config.width, NORM_EPS)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Encoder(nn.Module):
    """Images -> features of their patches."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.patchify = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.patch_norm = nn.LayerNorm(config.width, NORM_EPS)
        self.blocks = [Block(config.block) for _ in range(config.depth)]
        self.norm = nn.LayerNorm(config.width, NORM_EPS)  # for heads of pre-training; the probe reads before it
        self.position = mx.array(sincos_2d_pos_embed(config.side, config.width).numpy())
        self.freeze(keys=["position"], recurse=False)

    def embed(self, images: mx.array) -> mx.array:
        """(B, 3, S, S), normalized -> patches with their positions (B, N, D), row by row. Raises InputError."""
        floating = isinstance(images, mx.array) and mx.issubdtype(images.dtype, mx.floating)
        check_arrays(images, floating, "a floating-point array of MLX", self.config.image_size)
        dtype = self.patchify.weight.dtype
        x = self.patchify(images.transpose(0, 2, 3, 1).astype(dtype))  # (B, S / P, S / P, D)
        return self.patch_norm(x.flatten(1, 2)) + self.position.astype(dtype)

    def extract_features(self, images: mx.array, layers: Sequence[int] | None = None) -> list[mx.array]:
        """See var.models.aim.Encoder.extract_features."""
        wanted = range(self.config.depth) if layers is None else layers
        check_layers(wanted, self.config.depth)
        x, outputs = self.embed(images), []
        for block in self.blocks[: max(wanted) + 1]:
            outputs.append(x := block(x))
        return [outputs[layer] for layer in wanted]


class AttentiveProbe(nn.Module):
    """Attention of one learned query over the patches, then a linear classifier."""

    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm(width, eps=1e-6, affine=False)
        self.query = mx.zeros((1, 1, width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.classify = nn.Linear(width, num_classes, bias=False)

    def __call__(self, features: mx.array) -> mx.array:
        """(B, N, D) -> logits (B, classes)."""
        x = self.norm(features).astype(features.dtype)  # its statistics are in float32
        q = mx.broadcast_to(self.query, (len(x), *self.query.shape[1:]))
        return self.classify(attend(q, self.key(x), self.value(x), self.heads)[:, 0])


class AIM(nn.Module):
    """The encoder with an attentive probe."""

    def __init__(self, config: AIMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.probe = AttentiveProbe(config.width, config.heads, config.num_classes)

    def __call__(self, images: mx.array) -> AIMOutput[mx.array]:
        """(B, 3, S, S), as `val_transforms` makes them -> logits and features. Raises InputError: as in PyTorch."""
        features = mx.stack(self.extract_features(images, self.config.probe_layers)).mean(axis=0)
        return AIMOutput(self.probe(features), features)

    def extract_features(self, images: mx.array, layers: Sequence[int] | None = None) -> list[mx.array]:
        """See var.models.aim.Encoder.extract_features."""
        return self.encoder.extract_features(images, layers)


def attend(q: mx.array, k: mx.array, v: mx.array, heads: int) -> mx.array:
    """Softmax attention of queries (B, L, D) to keys and values (B, N, D) -> (B, L, D)."""
    q, k, v = (mx.unflatten(x, -1, (heads, -1)).swapaxes(1, 2) for x in (q, k, v))  # (B, H, L or N, D / H)
    h = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5)
    return h.swapaxes(1, 2).flatten(2)


def from_torch(model: aim.AIM, dtype: str = "float32") -> AIM:
    """A copy of a model in MLX, in evaluation mode; dtype is of the weights, not of the probe's statistics."""
    copy = AIM(model.config)  # arrays are lazy: nothing is drawn
    copy.load_weights([(name, mx.array(values)) for name, values in convert_weights(model, "mlx")], strict=True)
    copy.update(tree_map(lambda weight: weight.astype(getattr(mx, dtype)), copy.trainable_parameters()))
    mx.eval(copy.parameters())
    copy.eval()
    return copy
