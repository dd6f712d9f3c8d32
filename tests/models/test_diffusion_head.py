"""The diffusion head: its schedule and steps against the formulas of the papers, and a distribution that it learns."""

import math

import numpy as np
import pytest
import torch
from helpers import normal, refused
from torch import Tensor

from var.models.diffusion_head import (
    TIMESTEPS,
    DiffusionHead,
    add_noise,
    diffusion_loss,
    sample_ancestral,
    signal_shares,
    spaced_timesteps,
)


def test_the_schedule_is_the_cosine_of_improved_ddpm() -> None:
    def alpha_bar(t: float) -> float:  # betas_for_alpha_bar of the released code
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((i + 1) / TIMESTEPS) / alpha_bar(i / TIMESTEPS), 0.999) for i in range(TIMESTEPS)]
    assert np.allclose(signal_shares(), np.cumprod(1 - np.array(betas)), rtol=1e-9)


def test_timesteps_of_sampling_are_spaced_evenly() -> None:
    assert spaced_timesteps(TIMESTEPS).tolist() == list(range(TIMESTEPS))
    chosen = spaced_timesteps(100)  # 999 / 99 apart, as space_timesteps of the released code
    assert (chosen[0], chosen[1], chosen[-1], len(set(chosen.tolist()))) == (0, 10, 999, 100)
    for steps in (1, 1001):
        with refused(f"diffusion_steps={steps} must be in 2..1000"):
            spaced_timesteps(steps)


def test_noise_keeps_the_variance_of_tokens() -> None:
    tokens, noise = normal(2000, 4, seed=1), normal(2000, 4, seed=2)
    for timestep in (0, 500, 999):
        noisy = add_noise(tokens, noise, torch.full((2000,), timestep))
        assert noisy.std().item() == pytest.approx(1, abs=0.03)
    assert torch.allclose(noisy, noise, atol=1e-3)


def exact_noise(noisy: Tensor, timestep: Tensor) -> Tensor:
    """The best prediction for tokens of N(1, 0.5^2)."""
    share = float(signal_shares()[int(timestep)])
    variance = share * 0.25 + 1 - share
    return math.sqrt(1 - share) * (noisy - math.sqrt(share)) / variance


def test_sampling_with_the_exact_noise_draws_the_distribution() -> None:
    drawn = sample_ancestral(exact_noise, normal(4000, 100, 1))
    assert drawn.mean().item() == pytest.approx(1, abs=0.03)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.03)
    cold = sample_ancestral(exact_noise, normal(4000, 100, 1), temperature=0.8)
    assert cold.std() < 0.9 * drawn.std()


def test_it_learns_a_mixture_of_gaussians_for_each_condition() -> None:
    """Mean within 0.15, covariance within 0.2, of two mixtures whose covariances are about 1."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.2, 0.8], [0.8, -1.2]]])  # of two conditions
    conditions = torch.eye(2)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        which, part = (torch.randint(2, (count,), generator=generator) for _ in range(2))
        return which, centers[which, part] + 0.3 * torch.randn(count, 2, generator=generator)

    torch.manual_seed(0)
    head = DiffusionHead(2, 2, 64, 2)
    head.initialize()
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    steps = 400
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        which, tokens = draw(256)
        timesteps = torch.randint(TIMESTEPS, (2, 256), generator=generator)
        noise = torch.randn(2, 256, 2, generator=generator)
        optimizer.zero_grad()
        diffusion_loss(head, conditions[which], tokens, timesteps, noise).mean().backward()
        optimizer.step()
        rates.step()
    with torch.inference_mode():
        for i, expected in enumerate(centers):
            condition = conditions[i].expand(2000, -1)
            noise = torch.randn(2000, 50, 2, generator=generator)
            drawn = sample_ancestral(lambda x, t, given=condition: head(x, t, given), noise)
            assert (drawn.mean(dim=0) - expected.mean(dim=0)).abs().max() < 0.15
            covariance = torch.cov(expected.T, correction=0) + 0.09 * torch.eye(2)
            assert (torch.cov(drawn.T) - covariance).abs().max() < 0.2


def test_the_loss_is_the_mean_over_a_tokens_timesteps() -> None:
    torch.manual_seed(0)
    head = DiffusionHead(3, 5, 8, 1)
    tokens, condition, noise = normal(4, 3), normal(4, 5), normal(2, 4, 3, seed=1)
    timesteps = torch.tensor([[0, 10, 500, 999], [3, 3, 3, 3]])
    losses = diffusion_loss(head, condition, tokens, timesteps, noise)
    each = [
        (head(add_noise(tokens, noise[i], timesteps[i]), timesteps[i], condition) - noise[i]).square().mean(dim=1)
        for i in range(2)
    ]
    assert torch.allclose(losses, torch.stack(each).mean(dim=0), atol=1e-6)


def test_at_first_the_predicted_noise_is_none() -> None:
    head = DiffusionHead(3, 5, 8, 2)
    head.initialize()
    assert not head(normal(4, 3), torch.arange(4), normal(4, 5)).any()
