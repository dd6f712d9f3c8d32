"""The diffusion head of MAR (arXiv 2406.11838, section 3.2): the distribution of a continuous token, given a condition.

Noise is added to a token in TIMESTEPS steps by the cosine schedule (arXiv 2102.09672, section 3.2). The head predicts
the noise from the noisy token, the timestep and the condition; ancestral sampling (DDPM, arXiv 2006.11239, algorithm 2)
takes it away again in fewer, evenly spaced steps. The variance of a step is fixed to that of the posterior given the
clean token, beta-tilde: MAR learns it.

N tokens, C their channels, D width of the transformer, W width of the head.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenizer.errors import DEEPEST, InputError, check_types
from var.models.transformer import NORM_EPS, AdaLN, modulate

TIMESTEPS = 1000  # in training
OFFSET = 0.008  # of the cosine schedule: its first steps are not too small
LARGEST_BETA = 0.999
FREQUENCIES = 128  # of the timestep, a sine and a cosine each
LONGEST_PERIOD = 10_000
# Bound on a predicted clean token, whose variance is 1. Where next to nothing of the token is left a small error of the
# predicted noise is a huge one of the token.
LARGEST_TOKEN = 10.0


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of the head.

    Attributes:
        head_depth: residual blocks, 3 to 12 in the paper.
        head_width: W; 0 for that of the transformer.

    Raises:
        InputError: a value that cannot work, with the value and the remedy.
    """

    head_depth: int = 3
    head_width: int = 0

    def check_head(self) -> None:
        """Raise InputError for sizes out of range."""
        check_types(self, at_least_one=("head_depth",), at_most={"head_depth": DEEPEST, "head_width": 2**16})
        if self.head_width < 0:
            raise InputError(f"head_width={self.head_width} must not be negative; 0 takes the transformer's width")


@cache
def alphas_cumprod() -> NDArray[np.float64]:
    """Share of a token's variance that is left after each timestep, (TIMESTEPS,): alpha-bar of the cosine schedule."""
    time = np.arange(TIMESTEPS + 1) / TIMESTEPS
    left = np.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    betas = np.minimum(1 - left[1:] / left[:-1], LARGEST_BETA)
    alpha_bar: NDArray[np.float64] = np.cumprod(1 - betas)
    return alpha_bar


def spaced_timesteps(steps: int) -> NDArray[np.int64]:
    """Choose the timesteps of sampling, evenly spaced with both ends among them, ascending, (steps,).

    Raises InputError: steps not in 2..TIMESTEPS.
    """
    if not 2 <= steps <= TIMESTEPS:
        raise InputError(f"diffusion_steps={steps} must be in 2..{TIMESTEPS}, those of training")
    return np.linspace(0, TIMESTEPS - 1, steps).round().astype(np.int64)


def add_noise(tokens: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return tokens (..., C) at timesteps (...) in 0..TIMESTEPS - 1, with standard normal noise (..., C)."""
    # Roots before the rounding to float32: the last shares are as small as 1e-9. Some devices have no float64.
    alpha_bar = alphas_cumprod()
    of_token, of_noise = (
        torch.tensor(np.sqrt(share), dtype=tokens.dtype, device=tokens.device)[timesteps][..., None]
        for share in (alpha_bar, 1 - alpha_bar)
    )
    return of_token * tokens + of_noise * noise


class HeadBlock(nn.Module):
    """A residual MLP whose norm and gate are modulated by timestep and condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.adaln = AdaLN(width, 3)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, W), (N, W) -> (N, W)."""
        shift, scale, gate = self.adaln(condition).squeeze(2).unbind(dim=1)
        return x + gate * self.down(F.silu(self.up(torch.addcmul(shift, self.norm(x), 1 + scale))))


class DiffusionHead(nn.Module):
    """Noisy token, timestep and condition -> the noise in it, for every token by itself.

    Args:
        channels: C.
        condition_width: D.
        width: W.
        depth: number of blocks.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.token_in = nn.Linear(channels, width)
        self.condition_in = nn.Linear(condition_width, width)
        self.timestep_in = nn.Linear(2 * FREQUENCIES, width)
        self.timestep_out = nn.Linear(width, width)
        self.blocks: Sequence[HeadBlock] = nn.ModuleList(  # type: ignore[assignment]  # a ModuleList names no type
            HeadBlock(width) for _ in range(depth)
        )
        self.adaln = AdaLN(width, 2)
        self.noise_out = nn.Linear(width, channels)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the initial weights: every block is the identity, and the predicted noise 0 (as in DiT and MAR)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.timestep_in, self.timestep_out):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.adaln.linear for block in self.blocks), self.adaln.linear, self.noise_out):
            nn.init.zeros_(layer.weight)

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Predict noise.

        Args:
            noisy: (N, C).
            timesteps: (N,) or (1,) int64 in 0..TIMESTEPS - 1.
            condition: (N, D).

        Returns:
            (N, C).
        """
        time = self.timestep_out(F.silu(self.timestep_in(embed_timesteps(timesteps))))  # (N, W) or (1, W)
        condition = self.condition_in(condition) + time  # (N, W)
        x = self.token_in(noisy)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.adaln(condition).squeeze(2).unbind(dim=1)
        noise: Tensor = self.noise_out(modulate(x, scale, shift))
        return noise


def embed_timesteps(timesteps: Tensor) -> Tensor:
    """(N,) int64 -> (N, 2 * FREQUENCIES) float32: cosines and sines of falling frequencies."""
    exponents = torch.arange(FREQUENCIES, device=timesteps.device) / FREQUENCIES
    angles = timesteps[:, None].float() * (-math.log(LONGEST_PERIOD) * exponents).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def diffusion_loss(head: DiffusionHead, condition: Tensor, tokens: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, the mean over channels and a token's timesteps, (N,) float32.

    Args:
        head: the head.
        condition: (N, D).
        tokens: (N, C).
        timesteps: (n, N) int64, several for each token, which share its condition (MAR, appendix A).
        noise: (n, N, C), standard normal.
    """
    repeats = len(timesteps)
    noisy = add_noise(tokens.expand(repeats, -1, -1), noise, timesteps)  # (n, N, C)
    predicted = head(noisy.flatten(0, 1), timesteps.flatten(), condition.repeat(repeats, 1))
    return (predicted.float() - noise.flatten(0, 1)).square().mean(dim=-1).unflatten(0, (repeats, -1)).mean(dim=0)


def sample_ancestral(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw tokens step by step from pure noise.

    Args:
        predict: noisy tokens (N, C) and a timestep (1,) -> the noise in them, (N, C).
        noise: (N, steps, C), standard normal: what begins it, and what every step but the last adds.
        temperature: factor on what the steps add.

    Returns:
        (N, C).

    Raises InputError: see `spaced_timesteps`.
    """
    timesteps = spaced_timesteps(noise.shape[1])
    alpha_bars = alphas_cumprod()[timesteps]
    x = noise[:, 0]
    for done, i in enumerate(reversed(range(len(timesteps)))):
        alpha_bar, before = alpha_bars[i], alpha_bars[i - 1] if i else 1.0
        predicted = predict(x, torch.tensor(timesteps[i : i + 1], device=x.device))
        clean = (x - math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(alpha_bar)
        clean = clean.clamp(-LARGEST_TOKEN, LARGEST_TOKEN)
        beta = 1 - alpha_bar / before
        # Mean and variance of the step before, given x and the clean token (DDPM, equations 6 and 7).
        x = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - alpha_bar)
        if i:
            x = x + temperature * math.sqrt(beta * (1 - before) / (1 - alpha_bar)) * noise[:, done + 1]
    return x
