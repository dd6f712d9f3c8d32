"""AIM in JAX, of flax's nnx modules: the network of `var.models.aim`, for inference.

B batch, N patches, P side of a patch in pixels, D width, H heads.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from var.backends.weights import convert_weights
from var.models import aim
from var.models.aim import AIMConfig, AIMOutput, EncoderConfig, check_layers, sincos_2d_pos_embed
from var.models.transformer import NORM_EPS, BlockConfig
from var.utils.images import check_arrays


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        self.heads = config.heads
        self.qkv = nnx.Linear(config.width, 3 * config.width, use_bias=False, rngs=rngs)
        self.proj = nnx.Linear(config.width, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(B, N, D) -> (B, N, D)."""
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.proj(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLP(nnx.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        hidden = round(config.width * config.mlp_ratio)
        self.up = nnx.Linear(config.width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """(B, N, D) -> (B, N, D)."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Block(nnx.Module):
    """Attention and MLP, each a residual branch behind a LayerNorm."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs) -> None:
        self.norm_attention = layer_norm(config.width, rngs)
        self.norm_mlp = layer_norm(config.width, rngs)
        self.attention = Attention(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Array) -> Array:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class Encoder(nnx.Module):
    """Images -> features of their patches."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        patch = (config.patch_size, config.patch_size)
        self.patchify = nnx.Conv(3, config.width, patch, strides=patch, padding="VALID", rngs=rngs)
        self.patch_norm = layer_norm(config.width, rngs)
        self.blocks = nnx.List([Block(config.block, rngs) for _ in range(config.depth)])
        self.norm = layer_norm(config.width, rngs)  # for heads of pre-training; the probe reads before it
        self.position = nnx.Variable(jnp.array(sincos_2d_pos_embed(config.side, config.width).numpy()))

    def embed(self, images: Array) -> Array:
        """(B, 3, S, S), normalized -> patches with their positions (B, N, D), row by row. Raises InputError."""
        floating = isinstance(images, Array | np.ndarray) and jnp.issubdtype(images.dtype, jnp.floating)
        check_arrays(images, floating, "a floating-point array of JAX or NumPy", self.config.image_size)
        dtype = self.patchify.kernel[...].dtype
        x = self.patchify(jnp.moveaxis(images, 1, -1).astype(dtype))  # (B, S / P, S / P, D)
        return self.patch_norm(x.reshape(len(x), self.config.patches, x.shape[-1])) + self.position.astype(dtype)

    def extract_features(self, images: Array, layers: Sequence[int] | None = None) -> list[Array]:
        """See var.models.aim.Encoder.extract_features."""
        wanted = range(self.config.depth) if layers is None else layers
        check_layers(wanted, self.config.depth)
        x, outputs = self.embed(images), []
        for block in self.blocks[: max(wanted) + 1]:
            outputs.append(x := block(x))
        return [outputs[layer] for layer in wanted]


class AttentiveProbe(nnx.Module):
    """Attention of one learned query over the patches, then a linear classifier."""

    def __init__(self, width: int, heads: int, num_classes: int, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.norm = nnx.BatchNorm(
            width, use_running_average=True, epsilon=1e-6, use_bias=False, use_scale=False, rngs=rngs
        )
        self.query = nnx.Param(jnp.zeros((1, 1, width)))
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.classify = nnx.Linear(width, num_classes, use_bias=False, rngs=rngs)

    def __call__(self, features: Array) -> Array:
        """(B, N, D) -> logits (B, classes)."""
        x = self.norm(features).astype(features.dtype)  # its statistics are in float32
        q = jnp.broadcast_to(self.query[...], (len(x), 1, x.shape[-1]))
        q, k, v = (split_heads(part, self.heads) for part in (q, self.key(x), self.value(x)))
        return self.classify(jax.nn.dot_product_attention(q, k, v).reshape(len(x), x.shape[-1]))


class AIM(nnx.Module):
    """The encoder with an attentive probe."""

    def __init__(self, config: AIMConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.encoder = Encoder(config.encoder, rngs)
        self.probe = AttentiveProbe(config.width, config.heads, config.num_classes, rngs)

    def __call__(self, images: Array) -> AIMOutput[Array]:
        """(B, 3, S, S), as `val_transforms` makes them -> logits and features. Raises InputError: as in PyTorch."""
        features = jnp.stack(self.extract_features(images, self.config.probe_layers)).mean(axis=0)
        return AIMOutput(self.probe(features), features)

    def extract_features(self, images: Array, layers: Sequence[int] | None = None) -> list[Array]:
        """See var.models.aim.Encoder.extract_features."""
        return self.encoder.extract_features(images, layers)


def split_heads(x: Array, heads: int) -> Array:
    """(B, L, D) -> (B, L, H, D / H)."""
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=NORM_EPS, use_fast_variance=False, rngs=rngs)


def from_torch(model: aim.AIM, dtype: str = "float32") -> AIM:
    """A copy of a model in JAX, in evaluation mode; dtype is of the weights, not of the probe's statistics."""
    weights = dict(convert_weights(model, "jax"))
    graph, state = nnx.split(nnx.eval_shape(lambda: AIM(model.config, nnx.Rngs(0))))  # nothing is drawn

    def fill(path: tuple[object, ...], variable: nnx.Variable[Array]) -> nnx.Variable[Array]:
        values = jnp.array(weights[".".join(map(str, path))])
        return variable.replace(values.astype(dtype) if isinstance(variable, nnx.Param) else values)

    return nnx.merge(graph, nnx.map_state(fill, state))
