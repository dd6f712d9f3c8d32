"""The tokenizer with a KL term: Gaussian latents, continuous tokens."""

import pytest
import torch
from helpers import LATENT, continuous_vqvae, normal, random_images, refused
from torch.distributions import Normal, kl_divergence

from tokenizer.posterior import Posterior
from tokenizer.vqvae import VQVAE, TokenizerConfig


def test_the_divergence_is_that_of_normal_distributions() -> None:
    posterior = Posterior(normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1))
    theirs = kl_divergence(Normal(posterior.mean, (0.5 * posterior.log_variance).exp()), Normal(0.0, 1.0))
    assert torch.allclose(posterior.divergence(), theirs.sum(dim=(1, 2, 3)), rtol=1e-5)


def test_draws_have_the_mean_and_the_variance() -> None:
    posterior = Posterior(torch.full((1, 1, 100, 100), 2.0), torch.full((1, 1, 100, 100), -1.0))
    drawn = posterior.sample(normal(1, 1, 100, 100))
    assert drawn.mean().item() == pytest.approx(2, abs=0.02)
    assert drawn.var().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)


@torch.inference_mode()
def test_tokens_are_scaled_means_row_by_row_and_come_back() -> None:
    vqvae, images = continuous_vqvae(), random_images(2, 8)
    features, tokens = vqvae.features(images), vqvae.encode(images)
    assert tokens.shape == (2, *vqvae.token_shape) == (2, 16, LATENT)
    assert torch.allclose(tokens[:, 6], (features[:, :, 1, 2] - 0.5) / 2, atol=1e-6)
    assert torch.allclose(vqvae.latents(tokens), features, atol=1e-5)
    assert torch.allclose(vqvae.decode(tokens), vqvae.reconstruct(images)[0])


def test_training_decodes_a_draw_and_counts_the_divergence_for_each_number() -> None:
    vqvae, images = continuous_vqvae(), random_images(2, 8)
    mean, drawn = vqvae(images), vqvae(images, None, normal(2, LATENT, 4, 4))
    assert not torch.allclose(mean.reconstruction, drawn.reconstruction)
    assert torch.allclose(mean.reconstruction.clamp(-1, 1), vqvae.reconstruct(images)[0], atol=1e-5)
    posterior = Posterior(*vqvae._moments(images).chunk(2, dim=1))
    assert drawn.regularization.item() == pytest.approx((posterior.divergence().mean() / (3 * 8 * 8)).item())
    drawn.regularization.backward()
    assert vqvae.encoder.conv_in.weight.grad is not None


def test_it_has_no_codebook() -> None:
    vqvae = continuous_vqvae()
    assert not [name for name in vqvae.state_dict() if name.startswith("quantizer")]
    with refused("regularization=kl, and so no codebook"):
        vqvae.quantizer  # noqa: B018
    with refused("tokens torch.int64 of shape (2, 16) given", "(L, C) = (16, 8)"):
        vqvae.decode(torch.zeros(2, 16, dtype=torch.int64))
    with refused("scales [1, 2] are 2 token maps, and regularization=kl has a single one: set scales=[2]"):
        TokenizerConfig(scales=(1, 2), regularization="kl")
    with refused("regularization='ae' must be one of vq, kl"):
        TokenizerConfig(regularization="ae")  # type: ignore[arg-type]


def test_files_from_before_have_the_same_sizes() -> None:
    assert "regularization" not in TokenizerConfig().to_dict()
    config = TokenizerConfig(scales=(4,), regularization="kl")
    assert TokenizerConfig(**config.to_dict()) == config  # type: ignore[arg-type]


def test_it_is_copied_and_cast() -> None:
    vqvae = continuous_vqvae().cast(torch.bfloat16)
    assert vqvae.encode(random_images(1, 8)).dtype == torch.float32
    copy = VQVAE(vqvae.config)
    copy.load_state_dict(vqvae.state_dict())
    assert torch.equal(copy.latent_std, vqvae.latent_std)
