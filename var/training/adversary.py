"""The discriminator, trained in turns with the tokenizer: its recipe keys, its phase, its term of the loss.

The adaptive weight: its formula is in tokenizer/losses.py, the gradients that it compares in stages/tokenizer.py.

B batch, C latent channels, L tokens of all scales.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from tokenizer.augment import NOISE, augment
from tokenizer.discriminators import FeatureHeads, PatchGAN
from tokenizer.errors import InputError, did_you_mean
from tokenizer.losses import adaptive_weight, gradient_penalty, hinge_discriminator, hinge_generator, ramp
from var.data.config import Count, Fraction, NotNegative, Positive, Rate, Section
from var.data.dataset import Batch
from var.networks.backbones import BACKBONES
from var.networks.frozen import Backbone
from var.training.config import OptimizerConfig
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Phase


class DiscriminatorOptimizerConfig(OptimizerConfig):
    """AdamW with the discriminator's defaults."""

    lr: Positive = 3e-4
    betas: tuple[Rate, Rate] = (0.5, 0.9)
    weight_decay: NotNegative = 0.0005
    grad_clip: Positive | None = 10.0


class AdversarialConfig(Section):
    """A discriminator, trained in turns with the tokenizer by the hinge loss (VQGAN, arXiv 2012.09841)."""

    weight: Positive = 0.4  # of the adversarial term, beside the adaptive one
    # On patches of pixels, or heads on the features of a frozen network.
    discriminator: Literal["patchgan", "features"] = "patchgan"
    network: str = "dino-vits16"  # the frozen one
    weights: Path | None = None  # of that network; None: those of its package or download
    width: Count = 64  # channels of PatchGAN's first layer
    layers: Count = 3  # PatchGAN's halvings of the side
    spectral_norm: bool = True  # bound the layers' gains; PatchGAN then has no other norm
    start: Fraction = 0.22  # of the run, without the term and without training of the discriminator
    ramp: Fraction = 0.02  # of the run, in which the term then rises from 0 to its weight
    # Bounds of the ratio of the gradients' norms at the last layer, which scales the term; None: no scale.
    adaptive: tuple[Positive, Positive] | None = (0.015, 1e4)
    augment: Fraction = 1.0  # probability of DiffAugment for what the discriminator sees
    r1: NotNegative = 0.0  # weight of the gradient penalty on real images (arXiv 1801.04406)
    r1_every: Count = 16  # steps between two penalties, each then weighs r1 * r1_every
    optimizer: DiscriminatorOptimizerConfig = DiscriminatorOptimizerConfig()

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if self.network not in BACKBONES:
            near = did_you_mean(self.network, BACKBONES)
            raise InputError(f"network={self.network!r} is unknown{near}: take one of {', '.join(BACKBONES)}")
        if given := [name for name in self._unread if name in self.model_fields_set]:
            raise InputError(f"{given[0]} has no meaning for discriminator={self.discriminator!r}: leave it out")
        if self.adaptive is not None and self.adaptive[0] > self.adaptive[1]:
            low, high = self.adaptive
            raise InputError(f"adaptive=[{low:g}, {high:g}] is the wrong way round: give the lower bound first")
        return self

    @property
    def _unread(self) -> tuple[str, str]:
        """Keys that only the other kind of discriminator reads."""
        return {"patchgan": ("network", "weights"), "features": ("width", "layers")}[self.discriminator]

    @model_serializer(mode="wrap")
    def _without_unread(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys of the other kind, which would be refused when read back."""
        return {name: value for name, value in serialize(self).items() if name not in self._unread}


class Carry(NamedTuple):
    """Results that a micro-batch's first phase hands to the second, without gradients."""

    indices: range  # of its images in the batch of the step
    reconstruction: Tensor  # (B, 3, H, W)
    features: Tensor  # (B, C, h, w)
    tokens: Tensor  # (B, L)
    gradients: Tensor  # (2, ...), at the decoder's last kernel: of the terms that see pixels, of the adversarial one


class Adversary:
    """The discriminator: its own phase, and its term of the tokenizer's loss (VQGAN, arXiv 2012.09841, section 3.1).

    `backbone` is the frozen network of a discriminator on features; None gives one on pixels, for images of that side.
    `adaptive` scales the term in the next step: measured a step late, it is one number of the whole batch, the same for
    all processes and micro-batches.
    """

    def __init__(self, config: AdversarialConfig, backbone: Backbone | None, side: int, steps: int) -> None:
        self.config = config
        self.sees: nn.Module = backbone or nn.Identity()
        self.discriminator: nn.Module
        if backbone:
            self.discriminator = FeatureHeads(backbone.channels, config.spectral_norm)
        else:
            self.discriminator = PatchGAN(side, config.width, config.layers, config.spectral_norm)
        model, start = self.discriminator, round(config.start * steps)
        self.phase = Phase("discriminator", model, config.optimizer, self.losses, start_step=start, kind=self.penalizes)
        self.ramp_steps = round(config.ramp * steps)
        self.adaptive = torch.ones((), device="cpu")  # a number that goes with any device, also where the rest is meta

    def plays(self, step: int) -> bool:
        """Return whether a step has the discriminator's phase."""
        return step >= self.phase.start_step

    def penalizes(self, step: int) -> bool:
        """Return whether the discriminator's phase of a step has R1."""
        return self.config.r1 > 0 and step % self.config.r1_every == 0

    def weight(self, step: int) -> Tensor:
        """Weight of the adversarial term in a step, 0-dimensional; 0 in the first, which only measures the scale."""
        return self.config.weight * ramp(step, self.phase.start_step + 1, self.ramp_steps) * self.adaptive

    def adapt(self, of_others: Tensor, of_adversarial: Tensor) -> None:
        """Set the scale for the next step from the gradients of both terms at the decoder's last kernel."""
        if self.config.adaptive:
            self.adaptive = adaptive_weight(of_others, of_adversarial, *self.config.adaptive)

    def judge(self, reconstruction: Tensor, rng: StepRNG) -> Tensor:
        """The adversarial term, with gradients to the reconstruction and none to the discriminator."""
        constants = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        seen = self.sees(self._augment(reconstruction, rng, "generator"))
        return hinge_generator(functional_call(self.discriminator, constants, (seen,)))

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: Carry) -> Losses:
        """The discriminator's phase: the hinge loss on the images and their reconstructions, now and then R1."""
        penalized = self.penalizes(rng.step)
        real = batch.content.detach().requires_grad_(penalized)
        fake = carry.reconstruction
        seen = torch.cat([self._augment(real, rng, "real"), self._augment(fake, rng, "fake")])
        logits = model(self.sees(seen))
        of_real, of_fake = [part[: len(real)] for part in logits], [part[len(real) :] for part in logits]
        total = hinge_discriminator(of_real, of_fake)
        logs = {"hinge": total, "real": -hinge_generator(of_real), "fake": -hinge_generator(of_fake)}
        if penalized:
            logs["r1"] = gradient_penalty(of_real, real)
            total = total + self.config.r1 * self.config.r1_every * logs["r1"]
        return Losses(total, {f"discriminator/{name}": value.detach() for name, value in logs.items()}, carry)

    def _augment(self, images: Tensor, rng: StepRNG, purpose: str) -> Tensor:
        return augment(images, rng.uniform(f"DiffAugment {purpose}", NOISE), self.config.augment)
