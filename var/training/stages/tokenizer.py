"""Stage 1: train the multi-scale VQVAE to reconstruct images (VAR paper, section 3.2 and appendix).

With model.regularization=kl it is the autoencoder of LDM (arXiv 2112.10752, section 3.1), whose latents are Gaussian.
B batch, K scales, V codebook size.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.discriminators import advance_spectral_norms
from tokenizer.errors import InputError, did_you_mean
from tokenizer.losses import pixel_losses, psnr
from tokenizer.vqvae import VQVAE, TokenizerConfig, VQVAEOutput
from var.data.config import Count, NotNegative, Positive, Rate, Section, Size, UserPath
from var.data.dataset import Batch, SampleDataset
from var.hub.checkpoint import save_model
from var.networks.backbones import build_backbone, load_backbone
from var.networks.frozen import Backbone
from var.networks.perceptual import PERCEPTUAL, Enlarged, build_perceptual, load_perceptual, ssim
from var.training.adversary import AdversarialConfig, Adversary, Carry
from var.training.codebook import CodebookHealth, count_tokens, lookup_vectors
from var.training.config import Recipe
from var.training.estimate.images import find_images
from var.training.latents import LatentMoments, sum_latents
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, Phase, Stage, open_images, register, require
from var.utils.images import image_grid, to_pil

SHOWN = 8  # images on the sheet


class NetworkConfig(Section):
    """A frozen perceptual network: its name, and a file of its weights in place of a download."""

    network: str
    weights: UserPath | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.network not in PERCEPTUAL:
            near = did_you_mean(self.network, PERCEPTUAL)
            raise InputError(f"network={self.network!r} is unknown{near}: take one of {', '.join(PERCEPTUAL)}")
        return self


class PerceptualConfig(NetworkConfig):
    """A distance of features (LPIPS, arXiv 1801.03924) and its weight in the loss."""

    weight: Positive = 1.0
    # Side in pixels to which both images are enlarged for the network (bicubic); None: they are not. A network trained
    # on large images extracts little from small ones.
    image_size: Size | None = None


class TokenizerLossConfig(Section):
    """Weights of the tokenizer's losses; perceptual or adversarial null leaves out that term."""

    l1: NotNegative = 0.2  # mean absolute difference of the pixels
    l2: NotNegative = 1.0  # mean squared difference of the pixels
    vq: NotNegative = 1.0  # of features and codewords
    # Divergence of the latents from a standard normal distribution, with model.regularization=kl: in nats, over the
    # numbers of an image. The weight is that of LDM (arXiv 2112.10752).
    kl: NotNegative = 1e-6
    entropy: NotNegative = 0.0  # spreads each scale's usage over the codebook; a statistic of the micro-batch
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None

    @model_validator(mode="after")
    def _sees_pixels(self) -> Self:
        if self.l1 == self.l2 == 0:
            raise InputError("l1=0 and l2=0 leave no loss on pixels: raise one of them")
        return self


class TokenizerRecipe(Recipe):
    """Stage 1."""

    renamed: ClassVar[Mapping[str, str]] = {
        **Recipe.renamed,
        "loss.crowding": "entropy",
        "loss.adversarial.optimizer.clip": "grad_clip",
    }

    model: TokenizerConfig
    loss: TokenizerLossConfig = TokenizerLossConfig()
    quantizer_dropout: Rate = 0.0  # probability that an image is decoded from a random number of its first scales only
    restart_dead_codes: Count | None = None  # steps that a codeword may go unused before the batch replaces it
    usage_window: Count = 100  # steps over which usage and perplexity of the codebook are computed
    metric: NetworkConfig | None = None  # of the validation's perceptual distance; better not the loss's network
    image_size: Size | None = None  # side of the images in pixels, a check on model.scales

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        given = {
            "quantizer_dropout": self.quantizer_dropout,
            "restart_dead_codes": self.restart_dead_codes,
            "loss.entropy": self.loss.entropy,
        }
        of_codebook = [f"{name}={value:g}" for name, value in given.items() if value]
        if self.model.regularization == "kl" and of_codebook:
            raise InputError(
                f"{of_codebook[0]} needs a codebook, and model.regularization=kl has none: set it to 0 or null"
            )
        return self

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        last, downsample, side = self.model.scales[-1], self.model.downsample, self.model.image_side
        if self.image_size is not None and side != self.image_size:
            raise InputError(
                f"model.scales end at {last}, which at {downsample} pixels a token is {side} pixels, not "
                f"image_size={self.image_size}: let them end at image_size / {downsample}, or change model.multipliers"
            )
        return self


class Networks(NamedTuple):
    """The frozen networks; None: the recipe has none."""

    perceptual: nn.Module | None  # of the loss
    backbone: Backbone | None  # below the discriminator
    metric: nn.Module | None  # of the validation


def frozen_networks(
    recipe: TokenizerRecipe,
    backbone: Callable[[str, Path | None], Backbone] = load_backbone,
    perceptual: Callable[[str, Path | None], nn.Module] = load_perceptual,
) -> Networks:
    """Build the networks of a recipe, by `backbone` and `perceptual` from a name and a file of weights.

    Raises InputError: see `load_backbone`.
    """
    loss, metric = recipe.loss, recipe.metric
    distance = perceptual(loss.perceptual.network, loss.perceptual.weights) if loss.perceptual else None
    if distance is not None and loss.perceptual is not None and loss.perceptual.image_size is not None:
        distance = Enlarged(distance, loss.perceptual.image_size)
    sees = loss.adversarial if loss.adversarial and loss.adversarial.discriminator == "features" else None
    return Networks(
        distance,
        backbone(sees.network, sees.weights) if sees else None,
        perceptual(metric.network, metric.weights) if metric else None,
    )


@register("tokenizer")
class TokenizerStage(Stage[TokenizerRecipe]):
    """Pixel, VQ or KL, perceptual and adversarial losses; restarts of dead codewords, or the latents' deviation."""

    recipe_type = TokenizerRecipe

    def __init__(
        self, recipe: TokenizerRecipe, networks: Networks, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        roles = ("of the perceptual loss", "below the discriminator", "of the validation's metric")
        used = zip(roles, networks, strict=True)
        frozen = {f"network {role}": network for role, network in used if network is not None}
        super().__init__(recipe, train_data, validation_data, frozen)
        self.vqvae = self.build()
        self.regularization = recipe.model.regularization
        self.upkeep: CodebookHealth | LatentMoments
        if self.vqvae.is_continuous:
            self.upkeep = LatentMoments(recipe.model.latent_dim)
        else:
            for i, phi in enumerate(self.vqvae.quantizer.phi):  # with fewer scales than phi, some are unused
                phi.requires_grad_(i in self.vqvae.quantizer.phi_index)
            self.upkeep = CodebookHealth(len(self.vqvae.scales), recipe.model.vocab_size)

        self.perceptual, backbone, self.metric = networks
        self.best = f"lpips/{recipe.metric.network.removeprefix('lpips-')}" if recipe.metric else "l2"
        config, side = recipe.loss.adversarial, recipe.model.image_side
        adversary = self.adversary = Adversary(config, backbone, side, self.steps) if config else None
        kind = adversary.plays if adversary else lambda step: False
        phase = Phase("model", self.vqvae, recipe.optimizer, self.losses, ("codebook.weight",), kind=kind)
        self.phases = (phase, adversary.phase) if adversary else (phase,)

    @classmethod
    def from_recipe(cls, recipe: TokenizerRecipe) -> Self:
        images = open_images(recipe, recipe.model.image_side)
        return cls(recipe, frozen_networks(recipe), *images)

    @classmethod
    def outline(cls, recipe: TokenizerRecipe) -> Outline:
        networks = frozen_networks(recipe, lambda name, _: build_backbone(name), lambda name, _: build_perceptual(name))
        side, images = recipe.model.image_side, find_images(recipe.data)
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            stage = cls(recipe, networks, data, data)
            return Outline(stage, images, torch.empty(3, side, side), stage.vqvae.scales.total)

    @classmethod
    def next_command(cls, recipe: TokenizerRecipe) -> str:
        of_one_map = "tiny_imagenet_mar" if recipe.model.regularization == "kl" else "tiny_imagenet_raster"
        stage_2 = of_one_map if len(recipe.model.scales) == 1 else "own_folder_var"
        return f"python train.py {stage_2} {recipe.source_as_typed} tokenizer={recipe.output_as_typed}"

    def set_trained(self) -> None:
        super().set_trained()
        if self.recipe.restart_dead_codes and not self.vqvae.quantizer.codebook.weight.requires_grad:
            raise InputError("restart_dead_codes replaces codewords, and the codebook is frozen: set it to null")
        if self.adversary and self.adversary.config.adaptive and not self.vqvae.decoder.conv_out.weight.requires_grad:
            raise InputError(
                "loss.adversarial.adaptive weighs gradients of decoder.conv_out, which is frozen: set it to false"
            )

    def build(self) -> VQVAE:
        return VQVAE(self.recipe.model)

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        """Losses of the tokenizer's phase."""
        weights, images = self.recipe.loss, batch.content
        output: VQVAEOutput = model(images, self._num_scales(rng), self._posterior_noise(rng))
        l1, l2 = pixel_losses(output.reconstruction, images)
        logs = {"l1": l1, "l2": l2, self.regularization: output.regularization}
        of_pixels = weights.l1 * l1 + weights.l2 * l2
        if self.perceptual is not None and weights.perceptual is not None:
            logs["perceptual"] = self.perceptual(output.reconstruction, images).mean()
            of_pixels = of_pixels + weights.perceptual.weight * logs["perceptual"]
        total = of_pixels + getattr(weights, self.regularization) * output.regularization
        if weights.entropy:
            logs["entropy"] = self.vqvae.quantizer.entropy_loss(output.features)
            total = total + weights.entropy * logs["entropy"]

        kernel = self.vqvae.decoder.conv_out.weight
        gradients = torch.zeros(2, *kernel.shape, device=kernel.device)
        if self.adversary and self.adversary.plays(rng.step):
            logs["adversarial"] = self.adversary.judge(output.reconstruction, rng)
            if self.adversary.config.adaptive:
                terms = (of_pixels, logs["adversarial"])
                gradients = torch.stack([torch.autograd.grad(term, kernel, retain_graph=True)[0] for term in terms])
                logs["adaptive_weight"] = self.adversary.adaptive
            total = total + self.adversary.weight(rng.step) * logs["adversarial"]
        logs = {"loss": total, **logs, "psnr": psnr(output.reconstruction, images).mean()}
        passed = Carry(rng.indices, output.reconstruction.detach(), output.features.detach(), output.tokens, gradients)
        return Losses(total, {name: value.detach() for name, value in logs.items()}, passed)

    def _num_scales(self, rng: StepRNG) -> Tensor | None:
        """Draw numbers of scales, (B,) in 1..K: random for a share of the images, else K (quantizer dropout)."""
        if self.recipe.quantizer_dropout == 0:
            return None
        scales = len(self.vqvae.scales)
        dropped, number = rng.uniform("quantiser dropout", 2).unbind(dim=1)
        return torch.where(dropped < self.recipe.quantizer_dropout, 1 + (number * scales).long(), scales)

    def _posterior_noise(self, rng: StepRNG) -> Tensor | None:
        """Draw what latents differ from their means by, (B, C, h, w); None where they are quantized."""
        side = self.recipe.model.scales[-1]
        return rng.normal("posterior", self.recipe.model.latent_dim, side, side) if self.vqvae.is_continuous else None

    @torch.no_grad()
    def after_step(
        self, rng: StepRNG, carries: Sequence[Carry], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        if isinstance(self.upkeep, LatentMoments):
            numbers = self._measure_latents(self.upkeep, carries, reduce)
        else:
            numbers = self._keep_codebook(self.upkeep, rng, carries, reduce)
        if self.adversary and self.adversary.plays(rng.step):
            shares = [part.gradients * (len(part.indices) / rng.batch_size) for part in carries]
            self.adversary.adapt(*reduce(torch.stack(shares).sum(dim=0)))
            advance_spectral_norms(self.adversary.discriminator)
        return numbers

    def _measure_latents(
        self, moments: LatentMoments, carries: Sequence[Carry], reduce: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Keep mean and deviation of the latents in the tokenizer; return the mean deviation."""
        moments.add(reduce(torch.stack([sum_latents(part.features) for part in carries]).sum(dim=0)))
        self.vqvae.latent_mean.copy_(moments.mean())
        self.vqvae.latent_std.copy_(moments.std())
        return {"latent_std": moments.std().mean()}

    def _keep_codebook(
        self, health: CodebookHealth, rng: StepRNG, carries: Sequence[Carry], reduce: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Count the codewords, and restart dead ones; at the end of a window return what `_close_window` does."""
        counts = torch.stack([count_tokens(self.vqvae.quantizer, part.tokens) for part in carries]).sum(dim=0)
        health.count(reduce(counts))
        if self.recipe.restart_dead_codes and (dead := health.dead(self.recipe.restart_dead_codes)):
            self._restart(dead, rng, carries, reduce)
            health.age[dead] = 0
        return self._close_window(health) if health.steps >= self.recipe.usage_window else {}

    def _close_window(self, health: CodebookHealth) -> dict[str, Tensor]:
        """Return usage and perplexity of the window; keep its mean counts in the quantizer, as released weights do."""
        quantizer = self.vqvae.quantizer
        quantizer.usage.copy_(health.counts / health.steps)
        return {
            f"{name}/{side}x{side}": value
            for name, values in health.close_window().items()
            for side, value in zip(quantizer.scales.sides, values, strict=True)
        }

    def _restart(
        self, dead: list[int], rng: StepRNG, carries: Sequence[Carry], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Replace dead codewords by vectors that the scales quantize, from all scales in equal shares."""
        quantizer = self.vqvae.quantizer
        samples = rng.integers("restart: sample", rng.batch_size, len(dead))
        scales = rng.integers("restart: scale", len(quantizer.scales), len(dead))
        positions = rng.integers("restart: position", quantizer.scales.lengths[-1], len(dead))
        vectors = torch.zeros_like(quantizer.codebook.weight[dead])
        for part in carries:
            seen = lookup_vectors(quantizer, part.features)
            for i, (sample, k, position) in enumerate(zip(samples, scales, positions, strict=True)):
                if sample in part.indices:
                    row = part.indices.index(sample)
                    vectors[i] = seen[k][row, position % quantizer.scales.lengths[k]]
        quantizer.codebook.weight[dead] = reduce(vectors)  # each vector comes from one process, the others give zeros

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images = batch.content
        output: VQVAEOutput = model(images)
        shown = output.reconstruction.clamp(-1, 1)
        values = {
            "psnr": psnr(shown, images),
            "ssim": ssim(shown, images),
            "l1": (output.reconstruction - images).abs().mean(dim=(1, 2, 3)),
            "l2": (output.reconstruction - images).square().mean(dim=(1, 2, 3)),
            self.regularization: output.regularization.expand(len(images)),
        }
        if self.metric is not None:
            values[self.best] = self.metric(shown, images)
        return values

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw one row an image: the input, then the reconstruction after each scale."""
        images = batch.content[:SHOWN]
        columns = [images, *require(VQVAE, model).reconstruct(images)]
        return image_grid(to_pil(torch.stack(columns, dim=1).flatten(0, 1)), columns=len(columns))

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, require(VQVAE, model))

    def state_dict(self) -> dict[str, Any]:
        adapted = {"adaptive": self.adversary.adaptive} if self.adversary else {}
        return {"codebook": self.upkeep.state_dict(), **adapted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.upkeep.load_state_dict(state["codebook"])
        if self.adversary:
            self.adversary.adaptive = state["adaptive"]
