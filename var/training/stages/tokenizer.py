"""Stage 1: train the multi-scale VQVAE to reconstruct images (VAR paper, section 3.2 and appendix).

B batch, K scales, V codebook size, C latent channels.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from tokenizer.augment import NOISE, augment
from tokenizer.discriminators import FeatureHeads, PatchGAN, advance_spectral_norms
from tokenizer.losses import (
    adaptive_weight,
    gradient_penalty,
    hinge_discriminator,
    hinge_generator,
    pixel_losses,
    psnr,
    ramp,
)
from tokenizer.vqvae import VQVAE, VQVAEOutput
from var.data.dataset import Batch, SampleDataset
from var.hub.checkpoint import save_model
from var.networks.backbone import Backbone
from var.networks.backbones import load_backbone
from var.networks.perceptual import Enlarged, load_perceptual, ssim
from var.training.codebook import CodebookHealth, count_tokens, vectors_seen
from var.training.config import AdversarialConfig, TokenizerRecipe
from var.training.rng import StepRNG
from var.training.stages import Losses, Phase
from var.utils.images import image_grid, to_pil

PICTURED = 8  # images on the sheet


class Kept(NamedTuple):
    """What a micro-batch's first phase leaves behind, without gradients."""

    places: range  # of its images in the step's batch
    reconstruction: Tensor  # (B, 3, H, W)
    features: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, L)
    gradients: Tensor  # (2, ...), at the decoder's last kernel: of the terms that see pixels, of the adversarial one


class Networks(NamedTuple):
    """The frozen ones; None: the recipe has no use for it."""

    perceptual: nn.Module | None  # of the loss
    backbone: Backbone | None  # below the discriminator
    metric: nn.Module | None  # of the validation


def frozen_networks(
    recipe: TokenizerRecipe,
    backbone: Callable[[str, Path | None], Backbone] = load_backbone,
    perceptual: Callable[[str, Path | None], nn.Module] = load_perceptual,
) -> Networks:
    """The networks that a recipe names, as `backbone` and `perceptual` make them from a name and a file of weights.

    Raises:
        InputError: see `load_backbone`.
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


class TokenizerStage:
    """Pixel, VQ, perceptual and adversarial losses, and care for the codebook."""

    def __init__(
        self, recipe: TokenizerRecipe, networks: Networks, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        self.recipe = recipe
        self.train_data, self.validation_data = train_data, validation_data
        self.steps = recipe.total_steps(len(train_data))

        self.workers = recipe.data.workers
        self.vqvae = self.build()
        for i, phi in enumerate(self.vqvae.quantizer.phi):  # with fewer scales than phi, some have no part in the loss
            phi.requires_grad_(i in self.vqvae.quantizer.phi_index)
        self.phases = [Phase("model", self.vqvae, recipe.optimizer, never_decayed=("codebook.weight",))]
        self.health = CodebookHealth(len(self.vqvae.scales), recipe.model.vocab_size)

        self.perceptual, backbone, self.metric = networks
        roles = ("of the perceptual loss", "below the discriminator", "of the validation's metric")
        used = zip(roles, networks, strict=True)
        self.frozen = {f"network {role}": network for role, network in used if network is not None}
        self.best = f"lpips/{recipe.metric.network.removeprefix('lpips-')}" if recipe.metric else "l2"
        config, side = recipe.loss.adversarial, recipe.model.image_side
        self.adversary = Adversary(config, backbone, side, self.steps) if config else None
        if self.adversary:
            self.phases.append(self.adversary.phase)

    def prepare(self, device: torch.device) -> None:
        for network in self.frozen.values():
            network.to(device)

    def build(self) -> VQVAE:
        return VQVAE(self.recipe.model)

    def kind(self, phase: str, step: int) -> Hashable:
        if self.adversary and phase == self.adversary.phase.name:
            return self.adversary.penalizes(step)
        return self._opposed(step)

    def _opposed(self, step: int) -> bool:
        return self.adversary is not None and step >= self.adversary.phase.start_step

    def losses(self, phase: str, model: nn.Module, batch: Batch, draws: StepRNG, kept: Any) -> Losses:
        if self.adversary and phase == self.adversary.phase.name:
            return self.adversary.losses(model, batch.content, draws, kept)
        return self._model_losses(model, batch.content, draws)

    def _model_losses(self, model: nn.Module, images: Tensor, draws: StepRNG) -> Losses:
        weights = self.recipe.loss
        output: VQVAEOutput = model(images, self._num_scales(draws))
        pixel = pixel_losses(output.reconstruction, images)
        logs = {"l1": pixel.l1, "l2": pixel.l2, "vq": output.vq_loss}
        of_pixels = weights.l1 * pixel.l1 + weights.l2 * pixel.l2
        if self.perceptual is not None and weights.perceptual is not None:
            logs["perceptual"] = self.perceptual(output.reconstruction, images).mean()
            of_pixels = of_pixels + weights.perceptual.weight * logs["perceptual"]
        total = of_pixels + weights.vq * output.vq_loss
        if weights.crowding:
            logs["crowding"] = self.vqvae.quantizer.entropy_loss(output.features)
            total = total + weights.crowding * logs["crowding"]

        kernel = self.vqvae.decoder.conv_out.weight
        gradients = torch.zeros(2, *kernel.shape, device=kernel.device)
        if self.adversary and draws.step >= self.adversary.phase.start_step:
            logs["adversarial"] = self.adversary.judge(output.reconstruction, draws)
            if self.adversary.config.adaptive:
                terms = (of_pixels, logs["adversarial"])
                gradients = torch.stack([torch.autograd.grad(term, kernel, retain_graph=True)[0] for term in terms])
                logs["adaptive_weight"] = self.adversary.adaptive
            total = total + self.adversary.weight(draws.step) * logs["adversarial"]
        logs = {"loss": total, **logs, "psnr": psnr(output.reconstruction, images).mean()}
        kept = Kept(draws.places, output.reconstruction.detach(), output.features.detach(), output.tokens, gradients)
        return Losses(total, {name: value.detach() for name, value in logs.items()}, kept)

    def _num_scales(self, draws: StepRNG) -> Tensor | None:
        """(B,) in 1..K: for a share of the images a random number of scales, for the others all (quantizer dropout)."""
        if self.recipe.quantizer_dropout == 0:
            return None
        scales = len(self.vqvae.scales)
        dropped, number = draws.uniform("quantiser dropout", 2).unbind(dim=1)
        return torch.where(dropped < self.recipe.quantizer_dropout, 1 + (number * scales).long(), scales)

    @torch.no_grad()
    def after_step(
        self, draws: StepRNG, kept: Sequence[Kept], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        quantizer = self.vqvae.quantizer
        counts = torch.stack([count_tokens(quantizer, part.tokens) for part in kept]).sum(dim=0)
        self.health.count(reduce(counts))
        if self.recipe.restart_dead_codes and (dead := self.health.dead(self.recipe.restart_dead_codes)):
            self._restart(dead, draws, kept, reduce)
        if self.adversary and draws.step >= self.adversary.phase.start_step:
            shares = [part.gradients * (len(part.places) / draws.batch_size) for part in kept]
            self.adversary.adapt(*reduce(torch.stack(shares).sum(dim=0)))
            advance_spectral_norms(self.adversary.discriminator)
        return self._close_window() if self.health.steps >= self.recipe.usage_window else {}

    def _close_window(self) -> dict[str, Tensor]:
        """Usage and perplexity of the window; the quantizer keeps its counts, as the released weights do."""
        quantizer = self.vqvae.quantizer
        quantizer.usage.copy_(self.health.counts / self.health.steps)
        return {
            f"{name}/{side}x{side}": value
            for name, values in self.health.close_window().items()
            for side, value in zip(quantizer.scales.sides, values, strict=True)
        }

    def _restart(
        self, dead: list[int], draws: StepRNG, kept: Sequence[Kept], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        """Put dead codewords where the data is: on vectors that the scales look up, each scale with an equal share."""
        quantizer = self.vqvae.quantizer
        samples = draws.integers("restart: sample", draws.batch_size, len(dead))
        scales = draws.integers("restart: scale", len(quantizer.scales), len(dead))
        positions = draws.integers("restart: position", quantizer.scales.lengths[-1], len(dead))
        vectors = torch.zeros_like(quantizer.codebook.weight[dead])
        for part in kept:
            seen = vectors_seen(quantizer, part.features)
            for i, (sample, k, position) in enumerate(zip(samples, scales, positions, strict=True)):
                if sample in part.places:
                    row = part.places.index(sample)
                    vectors[i] = seen[k][row, position % quantizer.scales.lengths[k]]
        quantizer.codebook.weight[dead] = reduce(vectors)  # each vector comes from one process, the others give zeros
        self.health.age[dead] = 0

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
            "vq": output.vq_loss.expand(len(images)),
        }
        if self.metric is not None:
            values[self.best] = self.metric(shown, images)
        return values

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """One row an image: the input, then the reconstruction after each scale."""
        images = batch.content[:PICTURED]
        columns = [images, *_vqvae(model).reconstruct(images)]
        return image_grid(to_pil(torch.stack(columns, dim=1).flatten(0, 1)), columns=len(columns))

    def export(self, model: nn.Module, folder: Path) -> None:
        save_model(folder, _vqvae(model))

    def state_dict(self) -> dict[str, Any]:
        adapted = {"adaptive": self.adversary.adaptive} if self.adversary else {}
        return {"codebook": self.health.state_dict(), **adapted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.health.load_state_dict(state["codebook"])
        if self.adversary:
            self.adversary.adaptive = state["adaptive"]


class Adversary:
    """The discriminator: its own phase, and what it says to the tokenizer (VQGAN, arXiv 2012.09841, section 3.1).

    Args:
        backbone: of a discriminator on features; None: one on pixels.
        side: of the images.
        steps: of the whole run.

    Attributes:
        adaptive: scale of the term in the next step, 0-dimensional. It is taken a step late, so that it is one number
            of the whole batch for all processes and micro-batches.
    """

    def __init__(self, config: AdversarialConfig, backbone: Backbone | None, side: int, steps: int) -> None:
        self.config = config
        self.sees: nn.Module = backbone or nn.Identity()
        self.discriminator: nn.Module = (
            FeatureHeads(backbone.channels, config.spectral_norm)
            if backbone
            else PatchGAN(side, config.width, config.layers, config.spectral_norm)
        )
        self.phase = Phase(
            "discriminator", self.discriminator, config.optimizer, start_step=round(config.start * steps)
        )
        self.ramp_steps = round(config.ramp * steps)
        self.adaptive = torch.ones((), device="cpu")  # a number that goes with any device, also where the rest is meta

    def penalizes(self, step: int) -> bool:
        """Whether the discriminator's phase of a step has R1."""
        return self.config.r1 > 0 and step % self.config.r1_every == 0

    def weight(self, step: int) -> Tensor:
        """Of the adversarial term in a step, 0-dimensional; in its first step the scale is only measured."""
        return self.config.weight * ramp(step, self.phase.start_step + 1, self.ramp_steps) * self.adaptive

    def adapt(self, of_others: Tensor, of_adversarial: Tensor) -> None:
        """Take the scale for the next step from the gradients that the terms have at the decoder's last kernel."""
        if self.config.adaptive:
            self.adaptive = adaptive_weight(of_others, of_adversarial, *self.config.adaptive)

    def judge(self, reconstruction: Tensor, draws: StepRNG) -> Tensor:
        """The adversarial term, with gradients to the reconstruction and none to the discriminator."""
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        seen = self.sees(self._augmented(reconstruction, draws, "generator"))
        return hinge_generator(functional_call(self.discriminator, constants, (seen,)))

    def losses(self, model: nn.Module, images: Tensor, draws: StepRNG, kept: Kept) -> Losses:
        """The discriminator's phase: the hinge loss on the images and their reconstructions, now and then R1."""
        penalized = self.penalizes(draws.step)
        real = images.detach().requires_grad_(penalized)
        fake = kept.reconstruction
        seen = torch.cat([self._augmented(real, draws, "real"), self._augmented(fake, draws, "fake")])
        logits = model(self.sees(seen))
        of_real, of_fake = [part[: len(real)] for part in logits], [part[len(real) :] for part in logits]
        total = hinge_discriminator(of_real, of_fake)
        logs = {"hinge": total, "real": -hinge_generator(of_real), "fake": -hinge_generator(of_fake)}
        if penalized:
            logs["r1"] = gradient_penalty(of_real, real)
            total = total + self.config.r1 * self.config.r1_every * logs["r1"]
        return Losses(total, {f"discriminator/{name}": value.detach() for name, value in logs.items()}, kept)

    def _augmented(self, images: Tensor, draws: StepRNG, purpose: str) -> Tensor:
        return augment(images, draws.uniform(f"DiffAugment {purpose}", NOISE), self.config.augment)


def _vqvae(model: nn.Module) -> VQVAE:
    if not isinstance(model, VQVAE):
        raise TypeError(f"a VQVAE is trained in this stage, got {type(model).__name__}")
    return model
