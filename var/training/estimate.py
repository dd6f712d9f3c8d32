"""What a recipe will take, told before anything is downloaded or written: `train.py RECIPE --dry-run`.

The networks and one micro-batch are fake tensors, which have shapes and types but no content: a pass forward and
backward over them costs next to nothing, and says how many operations it is and what it keeps for the way back.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from tokenizer.augment import NOISE, augment
from tokenizer.discriminators import FeatureHeads, PatchGAN
from tokenizer.errors import InputError, one_line
from tokenizer.losses import hinge_discriminator, hinge_generator, pixel_losses
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.checkpoint import read_config
from var.device import choose_device, choose_dtype
from var.model import VAR
from var.presets import RELEASED
from var.training.config import AdversarialConfig, Recipe, TokenizerRecipe, VARRecipe, VARSizes
from var.training.outlines import outline_backbone, outline_perceptual
from var.training.parallel import sharding_asked_for
from var.training.sources import _parquet_files, list_images
from var.training.tokens import MANIFEST, Manifest

FLOAT = 4  # bytes of a weight: they are held in float32 whatever the products run in
SHARE_OF_PRODUCT = 1 / 1.5  # assumed: what training reaches of the speed of one large matrix product
LONG_ENOUGH = 0.05  # seconds of a product whose speed is believed
LARGEST_PRODUCT = 8192
CLASSES = 1000  # assumed where nothing tells


class Network(NamedTuple):
    """One of those that a step runs through."""

    name: str
    parameters: int
    trained: bool
    averaged: bool = False
    sharded: bool = False


class Pass(NamedTuple):
    """A part of the work."""

    name: str
    flops: float  # a step, over all processes, forward and backward
    dtype: torch.dtype  # of its products
    share: float = 1.0  # of the run's steps, those that have it


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
        passes: the work of a step.
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
        """Of a step that has all passes."""
        return sum(part.flops for part in self.passes)

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


def estimate(recipe: TokenizerRecipe | VARRecipe) -> Estimate:
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

    stage: _Stage
    if isinstance(recipe, TokenizerRecipe):
        stage = _tokenizer_stage(recipe, micro, dtype)
    else:
        stage = _var_stage(recipe, images, micro, dtype)
    steps = recipe.steps if images.number is None else recipe.total_steps(images.number)
    works = recipe.precision != "float16" or device.type == "cuda"
    if not works:
        notes.append(f"precision=float16 needs CUDA, this device is {device.type}: no time can be told")
    kinds = {part.dtype for part in stage.passes} | ({torch.float32} if stage.encoding else set())
    saved = sum(n.parameters * (4 if n.averaged else 3) for n in stage.networks if n.trained)
    return Estimate(
        networks=stage.networks,
        images=recipe.batch_size,
        tokens=recipe.batch_size * stage.tokens,
        parts=recipe.accumulate,
        passes=[part._replace(flops=part.flops * recipe.batch_size / micro) for part in stage.passes],
        encoding=stage.encoding / micro,
        memory=_memory(stage, processes),
        processes=processes,
        length=images.number,
        steps=steps,
        device=_device_name(device),
        speeds={kind: measured_speed(device, kind) for kind in kinds} if works else {},
        checkpoint=saved * FLOAT,
        checkpoints=recipe.keep + 1,
        notes=[*notes, *stage.notes],
    )


class _Stage(NamedTuple):
    """What a stage is made of, and the work of one micro-batch."""

    networks: list[Network]
    passes: list[Pass]
    activations: float
    tokens: int  # an image
    encoding: float = 0  # FLOPs of the encoder for a micro-batch, times the micro-batches to encode beforehand
    notes: tuple[str, ...] = ()


def _var_stage(recipe: VARRecipe, images: "Images", micro: int, dtype: torch.dtype) -> _Stage:
    tokenizer, notes = _tokenizer_config(recipe)
    num_classes = recipe.model.num_classes or images.classes
    if num_classes is None:
        num_classes = CLASSES
        notes += (f"the number of classes is unknown: assumed {CLASSES}",)
    with torch.device("meta"):
        vqvae, model = VQVAE(tokenizer).requires_grad_(False), VAR(recipe.model.config(tokenizer, num_classes)).train()
    side, length = tokenizer.image_side, vqvae.scales.total
    networks = [_network("model", model, True, recipe, sharded=True), _network("tokenizer", vqvae, False, recipe)]

    with _pretending(vqvae, model):
        pictures = torch.empty(micro, 3, side, side)
        tokens, labels = torch.zeros(2, micro, length, dtype=torch.long).unbind()
        noise = torch.empty(micro, 2 * model.config.depth)

        def predict() -> Tensor:
            inputs = vqvae.quantizer.teacher_forcing_input(tokens)
            logits = model(labels[:, 0], inputs, noise, checkpoint=recipe.gradient_checkpointing)
            return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

        step = _measure(predict, dtype)
        encoder = _measure(lambda: vqvae.encode(pictures), torch.float32)
    passes = [Pass("model", step.flops, dtype)]
    to_encode = 0.0
    if recipe.tokens is None:
        passes.append(Pass("encoder of the tokenizer", encoder.flops, torch.float32))
    elif not (recipe.tokens / MANIFEST).is_file():
        to_encode = (images.number or 0) * recipe.token_views
        notes += (f"the token cache {recipe.tokens} is not there: the run begins with writing it",)
    return _Stage(networks, passes, step.kept, length, encoder.flops * to_encode, notes)


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


def _tokenizer_stage(recipe: TokenizerRecipe, micro: int, dtype: torch.dtype) -> _Stage:
    loss, side = recipe.loss, recipe.model.image_side
    with torch.device("meta"):
        vqvae = VQVAE(recipe.model).train()
    perceptual = outline_perceptual(loss.perceptual.network) if loss.perceptual else None
    networks = [_network("model", vqvae, True, recipe)]
    rival = _Rival(loss.adversarial, side) if loss.adversarial else None
    frozen = [(perceptual, "of the perceptual loss"), (rival.sees if rival else None, "below the discriminator")]
    if recipe.metric:
        frozen.append((outline_perceptual(recipe.metric.network), "of the validation's metric"))
    if rival:
        networks.append(_network("discriminator", rival.discriminator, True, recipe)._replace(averaged=False))
    networks += [_network(f"network {role}", network, False, recipe) for network, role in frozen if network is not None]

    with _pretending(vqvae, *(network for network, _ in frozen if network), *([rival.discriminator] if rival else [])):
        images = torch.empty(micro, 3, side, side)

        def reconstruct(opposed: "_Rival | None") -> Tensor:
            output = vqvae(images)
            of_pixels = torch.stack(pixel_losses(output.reconstruction, images)).sum()
            if perceptual is not None:
                of_pixels = of_pixels + perceptual(output.reconstruction, images).mean()
            total = of_pixels + output.vq_loss
            if loss.crowding:
                total = total + vqvae.quantizer.crowding(output.features)
            if opposed is not None:
                said = opposed.judge(output.reconstruction)
                for term in (of_pixels, said):  # what the adaptive weight is taken from
                    torch.autograd.grad(term, vqvae.decoder.conv_out.weight, retain_graph=True)
                total = total + said
            return total

        step = _measure(lambda: reconstruct(None), dtype)
        passes, kept = [Pass("model", step.flops, dtype)], step.kept
        if rival and loss.adversarial:
            late = 1 - loss.adversarial.start
            opposed, judging = (
                _measure(lambda: reconstruct(rival), dtype),
                _measure(lambda: rival.turn(images), dtype),
            )
            passes += [Pass("adversarial term", opposed.flops - step.flops, dtype, late)]
            passes += [Pass("discriminator", judging.flops, dtype, late)]
            kept = max(opposed.kept, judging.kept)
    notes = ("the penalty R1 is not counted",) if loss.adversarial and loss.adversarial.r1 else ()
    return _Stage(networks, passes, kept, vqvae.scales.total, notes=notes)


class _Rival:
    """The discriminator as the stage uses it, without weights."""

    def __init__(self, config: AdversarialConfig, side: int) -> None:
        self.sees: nn.Module | None = None
        with torch.device("meta"):
            if config.discriminator == "features":
                self.sees = backbone = outline_backbone(config.network)
                self.discriminator: nn.Module = FeatureHeads(backbone.channels, config.spectral_norm)
            else:
                self.discriminator = PatchGAN(side, config.width, config.layers, config.spectral_norm)

    def judge(self, reconstruction: Tensor) -> Tensor:
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        return hinge_generator(functional_call(self.discriminator, constants, (self._seen(reconstruction),)))

    def turn(self, images: Tensor) -> Tensor:
        logits = self.discriminator(self._seen(torch.cat([images, images])))
        return hinge_discriminator(logits, logits)

    def _seen(self, images: Tensor) -> Any:
        augmented = augment(images, torch.empty(len(images), NOISE))
        return augmented if self.sees is None else self.sees(augmented)


def _network(name: str, module: nn.Module, trained: bool, recipe: Recipe, sharded: bool = False) -> Network:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return Network(name, parameters, trained, averaged=trained and recipe.ema is not None, sharded=sharded)


def _memory(stage: _Stage, processes: Processes) -> Memory:
    weights = gradients = average = 0.0
    for network in (network for network in stage.networks if network.trained):
        sharded = processes.sharded and network.sharded and processes.number > 1
        size = FLOAT * network.parameters / (processes.number if sharded else 1)
        weights += size
        # DistributedDataParallel adds gradients up in buckets of their own.
        gradients += size * (2 if processes.number > 1 and not sharded else 1)
        average += size if network.averaged else 0
    frozen = FLOAT * sum(network.parameters for network in stage.networks if not network.trained)
    return Memory(weights, gradients, 2 * weights, average, frozen, stage.activations)


class _Cost(NamedTuple):
    """Of one micro-batch."""

    flops: int
    kept: int  # bytes


def _measure(work: Callable[[], Tensor], dtype: torch.dtype) -> _Cost:
    """Operations of a pass, and of the way back if there is one; bytes that it keeps for that, parameters left out."""
    kept: dict[int, Tensor] = {}  # by storage; holding the tensors keeps an address from being used twice

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not _is_view_of_parameter(tensor):
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            loss = work()
        if loss.requires_grad:
            loss.backward()
    return _Cost(counter.get_total_flops(), sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def _is_view_of_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor._base, nn.Parameter)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], products: int) -> int:
    """FLOPs of so many products of two (b, h, l, d) over l, half of them of queries and keys, half with values."""
    batch, heads, length, width = query
    return products * batch * heads * length * key[2] * (width + value[3])


# What attention dispatches to on a CPU, which torch's own table lacks.
_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *args, out_shape=None, **kwargs: _attention(q, k, v, 2)
    ),
    # Five products on the way back, for the first is computed again; the count is of what mathematics asks for.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *args, out_shape=None, **kwargs: _attention(q, k, v, 4)
    ),
}


@contextmanager
def _pretending(*modules: nn.Module) -> Iterator[None]:
    """Inside, modules from the meta device and new tensors are fake ones of a CPU, so that autocast knows them."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in (part for module in modules for part in module.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                fake = torch.empty_like(parameter, device="cpu")
                setattr(part, name, nn.Parameter(fake, parameter.requires_grad))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, torch.empty_like(buffer, device="cpu"))
        yield


class Images(NamedTuple):
    """What is known of the training images without reading them."""

    number: int | None = None
    classes: int | None = None
    unknown: str | None = None  # what could not be told, and why


def find_images(recipe: TokenizerRecipe | VARRecipe) -> Images:
    """The number of training images and classes, from a token cache or from where the images lie."""
    if isinstance(recipe, VARRecipe) and recipe.tokens and (recipe.tokens / MANIFEST).is_file():
        info = Manifest.model_validate_json((recipe.tokens / MANIFEST).read_bytes()).splits["train"]
        return Images(info.samples, info.num_classes)
    source = recipe.data.source
    folder = Path(source).expanduser()
    try:
        if folder.is_dir() and not (folder / "train").is_dir() and (files := _parquet_files(folder, "train")):
            return _in_parquet(recipe, files)
        if not folder.exists() and source.count("/") == 1 and not source.endswith(".json"):
            return _on_the_hub(source)
        listing = list_images(recipe.data, "train")
    except InputError as error:
        return Images(unknown=f"the number of images is unknown: {error}")
    return Images(len(listing.rows), listing.num_classes)


def _in_parquet(recipe: Recipe, files: Sequence[str]) -> Images:
    """Counted in the files themselves: opened as a dataset they would be copied to a cache."""
    import pyarrow.parquet

    data = recipe.data
    try:
        if data.label_column is None:
            return Images(sum(pyarrow.parquet.read_metadata(file).num_rows for file in files), 1)
        tables = [pyarrow.parquet.read_table(file, columns=[data.label_column]) for file in files]
        labels = torch.cat([torch.tensor(table[data.label_column].to_numpy()) for table in tables])
    except (OSError, ValueError, KeyError) as error:  # pyarrow's own derive from these
        return Images(unknown=f"the number of images is unknown: {one_line(error)}")
    chosen = labels if data.classes is None else labels[torch.isin(labels, torch.tensor(data.classes))]
    return Images(len(chosen), int(labels.max()) + 1)


def _on_the_hub(name: str) -> Images:
    """What `datasets` noted of a dataset when it was loaded here before."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    for path in sorted(folder.glob("*/*/*/dataset_info.json")):
        number = json.loads(path.read_bytes()).get("splits", {}).get("train", {}).get("num_examples")
        if number:
            return Images(int(number))
    return Images(unknown=f"the number of images is unknown: {name} is no folder, nor loaded from the hub before")


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
    return f"{device.type} ({_several(torch.get_num_threads(), 'thread')})"


def show(found: Estimate) -> Any:
    """The estimate as a table and notes, for a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, show_header=False, pad_edge=False, title="dry run: nothing was written", title_justify="left"
    )
    for group in (_of_networks(found), _of_a_step(found), _of_memory(found), _of_the_run(found)):
        for name, value in group:
            table.add_row(Text(name), Text(value))
        table.add_row()
    return Group(table, *(Text(f"note: {note}") for note in found.notes))


Rows = list[tuple[str, str]]


def _of_networks(found: Estimate) -> Rows:
    return [
        (network.name, f"{amount(network.parameters)} parameters, {'trained' if network.trained else 'frozen'}")
        for network in found.networks
    ]


def _of_a_step(found: Estimate) -> Rows:
    rows = [
        ("a step", f"{found.images:,} images, {found.tokens:,} tokens"),
        ("  among", f"{_several(found.processes.number, 'process', 'es')}, {_several(found.parts, 'part')} each"),
    ]
    for part in found.passes:
        share = "" if part.share == 1 else f", in {part.share:.0%} of the steps"
        rows.append((f"  {part.name}", f"{amount(part.flops)}FLOP{share}"))
    return [*rows, ("  together", f"{amount(found.flops)}FLOP, forward and backward")]


def _of_memory(found: Estimate) -> Rows:
    names = ("weights", "gradients", "AdamW", "average of weights", "frozen networks", "activations")
    rows = [(f"  {name}", f"{amount(size)}B") for name, size in zip(names, found.memory, strict=True) if size]
    spread = ", parameters sharded" if found.processes.sharded and found.processes.number > 1 else ""
    whole = f"about {amount(found.memory.total)}B{spread}; passing buffers come on top"
    return [("memory of a process", whole), *rows]


def _of_the_run(found: Estimate) -> Rows:
    epochs = "" if found.epochs is None else f" ({found.epochs:.4g} epochs of {found.length:,} images)"
    rows = [("steps", "unknown" if found.steps is None else f"{found.steps:,}{epochs}")]
    if found.encoding:
        rows.append(("token cache, once", f"{amount(found.encoding)}FLOP"))
    for dtype, speed in found.speeds.items():
        kind = str(dtype).removeprefix("torch.")
        rows.append(("speed measured", f"{amount(speed)}FLOP/s, a matrix product in {kind} on {found.device}"))
    if found.seconds_a_step is not None:
        rows.append(("speed assumed", f"{SHARE_OF_PRODUCT:.0%} of that, on every process"))
        rows.append(("time expected", f"{duration(found.seconds_a_step)} a step"))
        if found.seconds is not None:
            rows[-1] = ("time expected", f"{duration(found.seconds)}, {duration(found.seconds_a_step)} a step")
    several = amount(found.checkpoint * found.checkpoints)
    kept = f"{amount(found.checkpoint)}B, at most {found.checkpoints} kept: {several}B"
    return [*rows, ("a checkpoint", kept)]


def amount(number: float) -> str:
    """Three digits and a prefix: 1234567 -> "1.23 M"."""
    power = min(max(int(math.log10(number)) // 3, 0), len(_PREFIXES) - 1) if number else 0
    return f"{number / 1000**power:.3g} {_PREFIXES[power]}"


_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def duration(seconds: float) -> str:
    """The two digits that matter, in the largest unit that holds it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


def _several(number: int, name: str, plural: str = "s") -> str:
    return f"{number} {name}{plural if number > 1 else ''}"
