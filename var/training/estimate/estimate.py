"""What a recipe will take, told before anything is downloaded or written: `train.py RECIPE --dry-run`.

The networks and one micro-batch are fake tensors, which have shapes and types but no content: a pass forward and
backward over them costs next to nothing, and says how many operations it is and what it keeps for the way back.
"""

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tokenizer.errors import InputError, one_line
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.data.dataset import Batch, ImageDataset
from var.data.folder import FolderSource
from var.data.listing import Listing
from var.data.token_cache import MANIFEST
from var.features.sources import BASELINES, EncoderFeatures, FeatureSource, VARFeatures, baseline, load_features
from var.hub.checkpoint import read_config
from var.hub.presets import AIM_RELEASED, RELEASED, SHIPPED
from var.models.aim import Encoder
from var.models.var import VAR
from var.networks.backbones import build_backbone
from var.networks.perceptual import build_perceptual
from var.training.config import AIMRecipe, AnyRecipe, ProbeRecipe, Recipe, TokenizerRecipe, VARRecipe, VARSizes
from var.training.distributed import sharding_asked_for
from var.training.estimate.images import Images, find_images
from var.training.rng import StepRNG
from var.training.stages import Phase
from var.training.stages.aim import AIMStage
from var.training.stages.probe import ProbeStage
from var.training.stages.tokenizer import TokenizerStage, frozen_networks
from var.training.stages.var import VARStage
from var.utils.device import choose_device, choose_dtype

FLOAT = 4  # bytes of a weight: they are held in float32 whatever the products run in
SHARE_OF_PRODUCT = 1 / 1.5  # assumed: what training reaches of the speed of one large matrix product
LONG_ENOUGH = 0.05  # seconds of a product whose speed is believed
LARGEST_PRODUCT = 8192
CLASSES, LENGTH = 1000, 10**6  # of the training images, assumed where nothing tells


class Network(NamedTuple):
    """One of those that a step runs through."""

    name: str
    parameters: int
    trained: bool
    averaged: bool = False
    sharded: bool = False


class Pass(NamedTuple):
    """The same work in a phase of some steps: products of one type."""

    name: str  # of the phase
    flops: float  # a step, over all processes, forward and backward
    dtype: torch.dtype  # of what is multiplied
    share: float  # of the run's steps, those that have it


class Memory(NamedTuple):
    """Bytes on one process, the largest where they differ."""

    weights: float  # of what is trained
    gradients: float
    optimizer: float  # AdamW's two averages
    average: float  # of the weights
    frozen: float
    activations: float  # that one micro-batch keeps for the backward pass

    @property
    def total(self) -> float:
        return sum(self)


class Processes(NamedTuple):
    """Those that the command was started with."""

    number: int
    sharded: bool


@dataclass(frozen=True)
class Estimate:
    """What a run will take, as far as it can be told.

    Attributes:
        networks: what is trained, then what is frozen.
        images: a step, over all processes.
        tokens: a step, over all processes.
        parts: micro-batches that a process takes a step in.
        passes: the work of the steps.
        encoding: FLOPs that write the token cache first, in float32; 0 where there is nothing to write.
        memory: of one process.
        processes: that share a step.
        length: images of an epoch; None: unknown.
        steps: of the run; None: unknown.
        device: where the speeds were measured.
        speeds: FLOP/s of a large matrix product on one process; empty: the recipe's precision does not work there.
        checkpoint: bytes of one checkpoint on the disk.
        checkpoints: how many are kept at most.
        notes: what was assumed, or could not be told.
    """

    networks: Sequence[Network]
    images: int
    tokens: int
    parts: int
    passes: Sequence[Pass]
    encoding: float
    memory: Memory
    processes: Processes
    length: int | None
    steps: int | None
    device: str
    speeds: Mapping[torch.dtype, float]
    checkpoint: float
    checkpoints: int
    notes: Sequence[str]

    @property
    def flops(self) -> float:
        """Of the mean step of the run."""
        return sum(part.share * part.flops for part in self.passes)

    @property
    def epochs(self) -> float | None:
        return None if self.steps is None or not self.length else self.steps * self.images / self.length

    @property
    def seconds_a_step(self) -> float | None:
        """Of the mean step of the run."""
        if not self.speeds:
            return None
        return sum(part.share * self._seconds(part.flops, part.dtype) for part in self.passes)

    @property
    def seconds(self) -> float | None:
        """Of all steps, and of the token cache before them; not of validation and pictures."""
        if self.seconds_a_step is None or self.steps is None:
            return None
        before = self._seconds(self.encoding, torch.float32) if self.encoding else 0
        return before + self.steps * self.seconds_a_step

    def _seconds(self, flops: float, dtype: torch.dtype) -> float:
        return flops / (self.processes.number * self.speeds[dtype] * SHARE_OF_PRODUCT)


def estimate(recipe: AnyRecipe) -> Estimate:
    """What the recipe's run would take if it were started so. Nothing is written and nothing downloaded.

    The speed is measured here, in a fraction of a second; the number of processes is read from the environment, as
    torchrun and `accelerate launch` set it.

    Raises:
        InputError: sizes that cannot work; no tokenizer to train a transformer on; a package that is not installed.
    """
    processes = Processes(int(os.environ.get("WORLD_SIZE", "1")), sharding_asked_for())
    device = choose_device()
    dtype = torch.float16 if recipe.precision == "float16" else choose_dtype(recipe.precision, device)
    micro = math.ceil(recipe.batch_size / (processes.number * recipe.accumulate))
    images = find_images(recipe)
    notes = [images.unknown] if images.unknown else []

    plan = _plan(recipe, images)
    networks, work = _networks(plan.stage, recipe), _work(plan, micro, dtype)
    works = recipe.precision != "float16" or device.type == "cuda"
    if not works:
        notes.append(f"precision=float16 needs CUDA, this device is {device.type}: no time can be told")
    kinds = {part.dtype for part in work.passes} | ({torch.float32} if work.encoding else set())
    saved = sum(n.parameters * (4 if n.averaged else 3) for n in networks if n.trained)
    return Estimate(
        networks=networks,
        images=recipe.batch_size,
        tokens=recipe.batch_size * plan.tokens,
        parts=recipe.accumulate,
        passes=[part._replace(flops=part.flops * recipe.batch_size / micro) for part in work.passes],
        encoding=work.encoding,
        memory=_memory(networks, work.kept, processes),
        processes=processes,
        length=images.number,
        steps=recipe.steps if images.number is None else recipe.total_steps(images.number),
        device=_device_name(device),
        speeds={kind: measured_speed(device, kind) for kind in kinds} if works else {},
        checkpoint=saved * FLOAT,
        checkpoints=recipe.keep + 1,
        notes=[*notes, *plan.notes],
    )


AnyStage = TokenizerStage | VARStage | AIMStage | ProbeStage


class _Plan(NamedTuple):
    stage: AnyStage  # as it will be trained, on the meta device
    side: int  # of the images
    tokens: int  # of an image
    cached: bool = False  # a batch holds tokens, not images
    to_encode: int = 0  # images, before the first step
    notes: Sequence[str] = ()


def _plan(recipe: AnyRecipe, images: Images) -> _Plan:
    if isinstance(recipe, TokenizerRecipe):
        return _tokenizer_plan(recipe, images)
    if isinstance(recipe, ProbeRecipe):
        return _probe_plan(recipe, images)
    return _var_plan(recipe, images) if isinstance(recipe, VARRecipe) else _aim_plan(recipe, images)


def _tokenizer_plan(recipe: TokenizerRecipe, images: Images) -> _Plan:
    networks = frozen_networks(recipe, lambda name, _: build_backbone(name), lambda name, _: build_perceptual(name))
    data = _stand_in(recipe, images, recipe.model.image_side)
    with torch.device("meta"):
        stage = TokenizerStage(recipe, networks, data, data)
    return _Plan(stage, recipe.model.image_side, stage.vqvae.scales.total)


def _aim_plan(recipe: AIMRecipe, images: Images) -> _Plan:
    data = _stand_in(recipe, images, recipe.model.image_size)
    with torch.device("meta"):
        vqvae = None
        if recipe.tokenizer is not None:
            vqvae = VQVAE(TokenizerConfig(**read_config(recipe.tokenizer)["config"])).eval().requires_grad_(False)
        stage = AIMStage(recipe, vqvae, data, data)
    return _Plan(stage, recipe.model.image_size, recipe.model.patches)


def _var_plan(recipe: VARRecipe, images: Images) -> _Plan:
    tokenizer, notes = _tokenizer_config(recipe)
    if recipe.model.num_classes is None and images.classes is None:
        notes += (f"the number of classes is unknown: assumed {CLASSES}",)
    to_encode = 0
    if recipe.tokens is not None and not (recipe.tokens / MANIFEST).is_file():
        to_encode = (images.number or 0) * recipe.token_views
        notes += (f"the token cache {recipe.tokens} is not there: the run begins with writing it",)
    data = _stand_in(recipe, images, tokenizer.image_side)
    with torch.device("meta"):
        vqvae = VQVAE(tokenizer).eval().requires_grad_(False)
        stage = VARStage(recipe, vqvae, data, data)
    cached = recipe.tokens is not None
    return _Plan(stage, tokenizer.image_side, vqvae.scales.total, cached, to_encode, notes)


def _probe_plan(recipe: ProbeRecipe, images: Images) -> _Plan:
    source, notes = _feature_source(recipe)
    if recipe.num_classes is None and images.classes is None:
        notes += (f"the number of classes is unknown: assumed {CLASSES}",)
    data = _stand_in(recipe, images, source.image_size)
    with torch.device("meta"):
        stage = ProbeStage(recipe, source, data, data)
    return _Plan(stage, source.image_size, source.patches, notes=notes)


def _feature_source(recipe: ProbeRecipe) -> tuple[FeatureSource, tuple[str, ...]]:
    """What gives the recipe's features, without weights where these would be downloaded, and what was assumed."""
    name, sizes = recipe.model, recipe.sizes
    with torch.device("meta"):
        if name in BASELINES:
            return baseline(name, sizes), ()
        if name in AIM_RELEASED:
            return EncoderFeatures(Encoder(AIM_RELEASED[name].config).eval().requires_grad_(False)), ()
        if name in RELEASED:
            config = RELEASED[name].config
            vqvae = VQVAE(TokenizerConfig(scales=config.scales)).eval().requires_grad_(False)
            return VARFeatures(VAR(config).eval().requires_grad_(False), vqvae), ()
        if sizes is not None and not Path(name).expanduser().exists() and name not in SHIPPED:
            assumed = f"model={name!r} is not there: assumed an encoder of the recipe's sizes"
            return EncoderFeatures(Encoder(sizes).eval().requires_grad_(False)), (assumed,)
    return load_features(name, sizes), ()


def _stand_in(recipe: Recipe, images: Images, side: int) -> ImageDataset:
    """A dataset of the length and classes of the recipe's, of which nothing can be read."""
    length = LENGTH if images.number is None else images.number
    source = FolderSource(Path(recipe.data.source), ())
    listing = Listing(source, np.arange(length), np.zeros(length, np.int64), images.classes or CLASSES, {})
    return ImageDataset(listing, recipe.data, side, recipe.seed, augment=True)


def _tokenizer_config(recipe: VARRecipe) -> tuple[TokenizerConfig, tuple[str, ...]]:
    """Sizes of the recipe's tokenizer, and what was assumed."""
    if recipe.tokenizer.is_dir():
        try:
            return TokenizerConfig(**read_config(recipe.tokenizer)["config"]), ()
        except (TypeError, ValueError) as error:
            raise InputError(f"tokenizer={str(recipe.tokenizer)!r} cannot be used: {one_line(error)}") from error
    for name, released in RELEASED.items():
        tokenizer = TokenizerConfig(scales=released.config.scales)
        if _same_sizes(recipe.model, tokenizer, released.config.num_classes, released.config.to_dict()):
            side = tokenizer.image_side
            return tokenizer, (
                f"tokenizer={str(recipe.tokenizer)!r} is not there: assumed the released one of {name}, {side} px",
            )
    raise InputError(f"tokenizer={str(recipe.tokenizer)!r} does not exist: train stage 1 first, and give its model")


def _same_sizes(sizes: VARSizes, tokenizer: TokenizerConfig, num_classes: int, known: Mapping[str, object]) -> bool:
    return sizes.config(tokenizer, num_classes).to_dict() == known


def _networks(stage: AnyStage, recipe: Recipe) -> list[Network]:
    trained = [
        Network(phase.name, _size(phase.model), True, recipe.ema is not None and i == 0, sharded=bool(phase.units))
        for i, phase in enumerate(stage.phases)
    ]
    return trained + [Network(name, _size(network), trained=False) for name, network in stage.frozen.items()]


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _memory(networks: Sequence[Network], kept: int, processes: Processes) -> Memory:
    weights = gradients = average = 0.0
    for network in (network for network in networks if network.trained):
        sharded = processes.sharded and network.sharded and processes.number > 1
        size = FLOAT * network.parameters / (processes.number if sharded else 1)
        weights += size
        # DistributedDataParallel adds gradients up in buckets of their own.
        gradients += size * (2 if processes.number > 1 and not sharded else 1)
        average += size if network.averaged else 0
    frozen = FLOAT * sum(network.parameters for network in networks if not network.trained)
    return Memory(weights, gradients, 2 * weights, average, frozen, kept)


class _Work(NamedTuple):
    passes: list[Pass]  # of one micro-batch
    kept: int  # bytes for the way back, in the phase that keeps most
    encoding: float  # FLOPs before the first step


def _work(plan: _Plan, micro: int, dtype: torch.dtype) -> _Work:
    """Take the first step of every kind as a runner takes it, and count."""
    stage = plan.stage
    costs: dict[tuple[str, Hashable], _Cost] = {}
    shares: dict[tuple[str, float, torch.dtype], float] = defaultdict(float)
    encoding = 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in _all_networks(stage):
            _pretend(network)
        images = torch.empty(micro, 3, plan.side, plan.side)
        if plan.to_encode and isinstance(stage, VARStage):
            with _Products() as encoder:
                stage.vqvae.encode(images)
            encoding = encoder.flops.total() * plan.to_encode / micro
        content = torch.zeros(micro, plan.tokens, dtype=torch.long) if plan.cached else images
        batch = Batch(content, torch.zeros(micro, dtype=torch.long), [], [])
        for phase, before in zip(stage.phases, (None, *stage.phases), strict=False):
            kinds = [stage.kind(phase.name, step) for step in range(phase.start_step, stage.steps)]
            for kind, number in Counter(kinds).items():
                step = phase.start_step + kinds.index(kind)
                left = costs[before.name, stage.kind(before.name, step)].left if before else None
                cost = costs[phase.name, kind] = _cost(stage, phase, batch, step, left, dtype)
                for product, flops in cost.flops.items():
                    shares[phase.name, flops, product] += number / stage.steps
    passes = [Pass(*same, share) for same, share in shares.items()]
    return _Work(passes, max(cost.kept for cost in costs.values()), encoding)


def _pretend(network: nn.Module) -> None:
    """Put fake tensors of a CPU, which autocast knows, in place of those on the meta device."""
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            fake = torch.empty_like(parameter, device="cpu")
            setattr(part, name, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty_like(buffer, device="cpu"))


def _all_networks(stage: AnyStage) -> list[nn.Module]:
    return [*(phase.model for phase in stage.phases), *stage.frozen.values()]


class _Cost(NamedTuple):
    """Of a phase of one micro-batch."""

    flops: Mapping[torch.dtype, int]  # by what is multiplied, forward and backward
    kept: int  # bytes for the way back, parameters left out
    left: Any  # for the next phase


def _cost(stage: AnyStage, phase: Phase, batch: Batch, step: int, left: Any, dtype: torch.dtype) -> _Cost:
    parameters = [parameter for network in _all_networks(stage) for parameter in network.parameters()]
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}  # by storage; holding the tensors keeps an address from being used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    places = range(len(batch.labels))
    draws = StepRNG(0, step, len(places), places, torch.device("cpu"))
    with _Products() as products:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            losses = stage.losses(phase.name, phase.model.train(), batch, draws, left)
        losses.total.backward()
    size = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in weights)
    return _Cost(products.flops, size, losses.kept)


class _Products(TorchDispatchMode):
    """Inside, the operations of products are counted, by the type of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type its modes
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = _FLOPS.get(function.overloadpacket)
        if count is not None:
            self.flops[args[0].dtype] += count(*args, **(kwargs or {}), out_val=result)
        return result


def _attention(query: Tensor, key: Tensor, value: Tensor, products: int) -> int:
    """FLOPs of so many products of two (b, h, l, d) over l, half of them of queries and keys, half with values."""
    batch, heads, length, width = query.shape
    return products * batch * heads * length * key.shape[2] * (width + value.shape[3])


# Torch's own table lacks what attention dispatches to on a CPU.
_FLOPS: Mapping[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _attention(q, k, v, 2),
    # Five products on the way back, for the first is computed again; the count is of what mathematics asks for.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: _attention(q, k, v, 4)
    ),
}


def measured_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product there now: the best of three, of matrices large enough to take their time."""
    side = 128
    while True:
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        seconds = min(_seconds(matrix) for _ in range(3))
        if seconds > LONG_ENOUGH or side == LARGEST_PRODUCT:
            return 2 * side**3 / seconds
        side *= 2


def _seconds(matrix: Tensor) -> float:
    began = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # which waits for the device
    return time.perf_counter() - began


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} ({threads} thread{'s' if threads > 1 else ''})"
