"""How far a training step of VAR is from its matrix products: `python benchmarks/training_step.py --depth 16`.

A step starts from tokens, as they come out of the token cache: input of the transformer from the tokenizer's quantizer,
forward, cross-entropy, backward, clipping, AdamW. Sizes are those of the released models at 256 px; the weights are
random. The products of the step are counted, and what they would take at the speed that one large product reaches in
the same run is set against the time of the whole step.
"""

import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from products import SIDE, counted, product_speed, seconds
from torch import Tensor, nn

from tokenizer.scales import SCALES_256
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.cli.run import run
from var.models.masks import Spans, fastest
from var.models.var import VAR, VARConfig
from var.utils.device import choose_device, choose_dtype

CLIP, LABEL_DROP = 2.0, 0.1


@dataclass(frozen=True)
class Work:
    """What a step trains, and on what."""

    model: VAR
    forward: Callable[..., Tensor]  # the model's, compiled or not
    vqvae: VQVAE
    optimizer: torch.optim.Optimizer
    tokens: Tensor  # (B, L)
    labels: Tensor  # (B,)
    dtype: torch.dtype
    checkpoint: bool


@dataclass(frozen=True)
class Products:
    """FLOPs of the matrix products of a step."""

    executed: int
    dense: int  # with the scores of all L x L pairs, those behind the mask too


def prepare(depth: int, batch: int, device: torch.device, dtype: torch.dtype, compiled: bool, checkpoint: bool) -> Work:
    """Random weights and random tokens."""
    torch.manual_seed(0)
    config = VARConfig(depth=depth)
    with device:
        model = VAR(config)
        vqvae = VQVAE(TokenizerConfig()).requires_grad_(False).eval()
        tokens = torch.randint(config.vocab_size, (batch, SCALES_256.total))
        labels = torch.randint(config.num_classes, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    forward = torch.compile(model) if compiled else model
    return Work(model, forward, vqvae, optimizer, tokens, labels, dtype, checkpoint)


def backpropagate(work: Work, forward: Callable[..., Tensor]) -> None:
    """Forward and backward of one batch of tokens."""
    config, device = work.model.config, work.tokens.device
    noise = torch.rand(len(work.tokens), 2 * config.depth, device=device)
    dropped = torch.rand(len(work.tokens), device=device) < LABEL_DROP
    labels = work.labels.masked_fill(dropped, config.num_classes)
    inputs = work.vqvae.quantizer.teacher_forcing_input(work.tokens)
    with torch.autocast(device.type, work.dtype, enabled=work.dtype != torch.float32):
        logits = forward(labels, inputs, noise, checkpoint=work.checkpoint)
        loss = F.cross_entropy(logits.flatten(0, 1), work.tokens.flatten())
    loss.backward()


def train(work: Work) -> None:
    """One whole step."""
    backpropagate(work, work.forward)
    nn.utils.clip_grad_norm_(work.model.parameters(), CLIP)
    work.optimizer.step()
    work.optimizer.zero_grad(set_to_none=True)


@torch.inference_mode()
def encode(work: Work) -> None:
    """What a step from images has to do first, and one from the token cache has not."""
    side = work.vqvae.config.image_side
    work.vqvae.encode(torch.zeros(len(work.tokens), 3, side, side, device=work.tokens.device))


def count_products(work: Work) -> Products:
    """Count forward and backward, without the compiler, which hides its products from the counter."""
    counts = counted(lambda: backpropagate(work, work.model))
    work.optimizer.zero_grad(set_to_none=True)
    executed = sum(counts.values())
    attention = sum(count for operator, count in counts.items() if "attention" in str(operator))
    total = work.model.scales.total
    form = fastest(work.model.scales, work.model.mask)
    pairs = sum((stop - start) * stop for start, stop in form.bounds) if isinstance(form, Spans) else total**2
    return Products(executed, executed - attention + attention * total**2 // pairs)


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA what tensors took on the device, elsewhere the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def training_step(
    depth: Annotated[int, typer.Option(help="16 is VAR-d16.", min=1)] = 16,
    batch: Annotated[int, typer.Option(help="Samples a step.", min=1)] = 4,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16 (autocast).")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    repeats: Annotated[int, typer.Option(help="Steps that are timed.", min=1)] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model first.")] = False,
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Recompute blocks in the backward pass.")] = False,
) -> None:
    """Time a training step at 256 px against its matrix products at the speed of one large product."""
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    work = prepare(depth, batch, place, number, compiled, checkpoint)
    products = count_products(work)
    train(work)  # the optimizer's state is made, the compiler has compiled
    speeds, steps, encodings = [product_speed(place, number)], [], []
    for _ in range(repeats):
        encodings.append(seconds(lambda: encode(work), place))
        steps.append(seconds(lambda: train(work), place))
        speeds.append(product_speed(place, number))
    around = [(before + after) / 2 for before, after in pairwise(speeds)]
    best = min(step * speed for step, speed in zip(steps, around, strict=True)) / products.executed
    step, speed = statistics.median(steps), statistics.median(speeds)

    rows = {
        f"product of {SIDE} x {SIDE}": f"{speed / 1e9:.1f} GFLOP/s, median of {min(speeds) / 1e9:.1f} to "
        f"{max(speeds) / 1e9:.1f}",
        "products of a step": f"{products.executed / 1e9:.1f} GFLOP; {products.dense / 1e9:.1f} with a dense mask",
        "at that speed": f"{products.executed / speed:.3f} s; {products.dense / speed:.3f} s with a dense mask",
        "step": f"{step:.3f} s, median of {min(steps):.3f} to {max(steps):.3f}",
        "step / products": f"{step * speed / products.executed:.3f}, of medians; "
        f"{step * speed / products.dense:.3f} with a dense mask; {best:.3f} in the best step",
        "from images": f"{statistics.median(encodings):.3f} s more to encode them, in float32: "
        f"{1 + statistics.median(encodings) / step:.2f} times the step from the token cache",
        "peak memory": f"{peak_memory(place) / 2**30:.2f} GiB",
    }
    typer.echo(
        f"VAR-d{depth}, 256 px, batch {batch}, {str(number).removeprefix('torch.')}, {place}, "
        f"{torch.get_num_threads()} threads, compiled: {compiled}, checkpointing: {checkpoint}"
    )
    for name, value in rows.items():
        typer.echo(f"{name:22} {value}")


if __name__ == "__main__":
    run(training_step)
