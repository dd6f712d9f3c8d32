"""What several test files use: small models, the golden files, and a check on the errors that users see."""

import lzma
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.quantizer import Quantizer
from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.models.mar import MAR, MARConfig
from var.models.raster import Raster, RasterConfig
from var.models.var import VAR, VARConfig

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = Path(
    os.environ.get("VAR_GOLDEN", "golden")
).absolute()  # outputs of the reference implementation, too large for a clone
GOLDEN_MODELS = ("var_small", "var_small_shared_adaln")
GOLDEN_SCALES = (1, 2, 3, 4)
SIDES, VOCAB, LATENT, CLASSES = (1, 2, 4), 32, 8, 5

Tensors = dict[str, Tensor]

needs_golden = pytest.mark.skipif("VAR_GOLDEN" not in os.environ, reason="VAR_GOLDEN names no folder of golden files")


@cache
def read_tensors(path: Path) -> Tensors:
    """The tensors of an xz-compressed safetensors file."""
    return safetensors.torch.load(lzma.decompress(path.read_bytes()))


def under(tensors: Tensors, prefix: str) -> Tensors:
    """The entries whose names begin with the prefix, without it; weights stored in bfloat16 become float32."""
    return {
        name.removeprefix(prefix): value.float() if value.dtype == torch.bfloat16 else value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


@torch.no_grad()
def randomize(module: nn.Module, seed: int, std: float = 0.3) -> None:
    """Give every parameter random values, so that none is lost behind a small or zero initial one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def small_vqvae(seed: int = 0, **changes: Any) -> VQVAE:
    """Two levels, 8 px images, scales 1 2 4; features are spread over the codebook."""
    sizes = {"base_width": 8, "multipliers": (1, 2), "blocks": 1, "norm_groups": 4}
    common = {"scales": SIDES, "vocab_size": VOCAB, "latent_dim": LATENT}
    vqvae = VQVAE(TokenizerConfig(**(sizes | common | changes)))
    randomize(vqvae, seed)
    return vqvae.eval()


def continuous_vqvae(seed: int = 0) -> VQVAE:
    """As small_vqvae, with continuous tokens of a single map of 4x4, of about variance 1."""
    vqvae = small_vqvae(seed, scales=(4,), regularization="kl")
    vqvae.latent_mean.fill_(0.5)
    vqvae.latent_std.fill_(2.0)
    return vqvae


SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "num_classes": CLASSES}  # as a recipe gives them


def small_var(seed: int = 0, **changes: Any) -> VAR:
    """Two blocks of width 32 on the tokens of small_vqvae."""
    common = {"scales": SIDES, "vocab_size": VOCAB, "latent_dim": LATENT}
    model = VAR(VARConfig(**(SMALL | common | changes)))
    randomize(model, seed)
    return model.eval()


def small_raster(seed: int = 0, **changes: Any) -> Raster:
    """Two blocks of width 32 on the tokens of small_vqvae(scales=(4,))."""
    common = {"scales": SIDES[-1:], "vocab_size": VOCAB, "latent_dim": LATENT}
    model = Raster(RasterConfig(**(SMALL | common | changes)))
    randomize(model, seed)
    return model.eval()


def small_mar(seed: int = 0, **changes: Any) -> MAR:
    """Two blocks of width 32 on the tokens of small_vqvae(scales=(4,), regularization="kl")."""
    common = {"scales": SIDES[-1:], "latent_dim": LATENT, "head_depth": 1, "head_width": 16}
    model = MAR(MARConfig(**(SMALL | common | changes)))
    randomize(model, seed)
    return model.eval()


def small_quantizer(seed: int = 0, sides: tuple[int, ...] = SIDES, vocab: int = VOCAB, **changes: Any) -> Quantizer:
    quantizer = Quantizer(Scales(sides), vocab, LATENT, **changes)
    randomize(quantizer, seed)
    return quantizer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_images(batch: int, side: int, seed: int = 0) -> Tensor:
    """(batch, 3, side, side), uniform in [-1, 1]."""
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_tokens(batch: int, length: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def noise(width: int, height: int, seed: int = 0, bands: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8))


def mask_of(width: int, height: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """An image mask, True inside the boxes."""
    mask = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """The block must raise InputError with a message of one line that contains all parts."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert re.search(re.escape(part), message), f"{part!r} is not in {message!r}"


@contextmanager
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, torch.hub reaches no network."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
        yield
