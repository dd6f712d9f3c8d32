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
    alphas_cumprod,
    diffusion_loss,
    sample_ancestral,
    spaced_timesteps,
)


def test_the_schedule_is_the_cosine_of_improved_ddpm() -> None:
    def alpha_bar(t: float) -> float:  # betas_for_alpha_bar of the released code
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar((i + 1) / TIMESTEPS) / alpha_bar(i / TIMESTEPS), 0.999) for i in range(TIMESTEPS)]
    assert np.allclose(alphas_cumprod(), np.cumprod(1 - np.array(betas)), rtol=1e-9)


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
    share = float(alphas_cumprod()[int(timestep)])
    variance = share * 0.25 + 1 - share
    return math.sqrt(1 - share) * (noisy - math.sqrt(share)) / variance


def test_sampling_with_the_exact_noise_draws_the_distribution() -> None:
    drawn = sample_ancestral(exact_noise, normal(4000, 100, 1))
    assert drawn.mean().item() == pytest.approx(1, abs=0.03)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.03)
    cold = sample_ancestral(exact_noise, normal(4000, 100, 1), temperature=0.8)
    assert cold.std() < 0.9 * drawn.std()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_each_step_is_that_of_ddpm(temperature: float) -> None:
    """Equations 6 and 7 of arXiv 2006.11239, the noise that begins the sampling not scaled (MAR, section 4)."""

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        return exact_noise(noisy, timestep) + 1e-5 * noisy  # of pure noise the exact prediction leaves nothing

    noise = normal(5, 4, 1).double()
    times, alpha_bar = [0, 333, 666, 999], alphas_cumprod()
    x = noise[:, 0]
    for done, i in enumerate((3, 2, 1, 0)):
        now, before = alpha_bar[times[i]], alpha_bar[times[i - 1]] if i else 1.0
        predicted = predict(x, torch.tensor(times[i]))
        clean = (x - math.sqrt(1 - now) * predicted) / math.sqrt(now)
        alpha = now / before
        mean = math.sqrt(before) * (1 - alpha) / (1 - now) * clean + math.sqrt(alpha) * (1 - before) / (1 - now) * x
        variance = (1 - before) / (1 - now) * (1 - alpha)  # beta-tilde
        x = mean + (temperature * math.sqrt(variance) * noise[:, done + 1] if i else 0)
    assert torch.allclose(sample_ancestral(predict, noise, temperature), x, atol=1e-9)


def test_it_learns_a_mixture_of_gaussians_for_each_condition() -> None:
    """Mean within 0.06, covariance within 0.1, weights within 0.04, of mixtures with covariances of about 1.

    No single normal distribution passes: of one with the same mean and covariance three fifths lie near the centers.
    """
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.2, 0.8], [0.8, -1.2]]])  # of two conditions
    conditions, weights, deviation = torch.eye(2), torch.tensor([0.3, 0.7]), 0.3

    def draw(count: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(2, (count,), generator=generator)
        part = torch.multinomial(weights, count, replacement=True, generator=generator)
        return which, centers[which, part] + deviation * torch.randn(count, 2, generator=generator)

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
        for i, parts in enumerate(centers):
            condition = conditions[i].expand(4000, -1)
            noise = torch.randn(4000, 50, 2, generator=generator)
            drawn = sample_ancestral(lambda x, t, given=condition: head(x, t, given), noise)
            mean = weights @ parts
            covariance = (parts - mean).T @ (weights[:, None] * (parts - mean)) + deviation**2 * torch.eye(2)
            distances = torch.cdist(drawn, parts)  # (4000, 2)
            assert (drawn.mean(dim=0) - mean).abs().max() < 0.06
            assert (torch.cov(drawn.T) - covariance).abs().max() < 0.1
            assert (distances.argmin(dim=1) == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)
            assert (distances.amin(dim=1) < 3 * deviation).float().mean() > 0.97


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
