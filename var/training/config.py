"""What a recipe may say: every key, its type, its default and what it may be."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tokenizer.errors import InputError
from tokenizer.vqvae import TokenizerConfig
from var.data.config import Count, DataConfig, Fraction, NotNegative, Positive, Rate, Section
from var.features.sources import BASELINES
from var.models.aim import EncoderConfig
from var.models.pretraining import HeadConfig
from var.models.var import VARConfig
from var.networks.backbones import BACKBONES
from var.networks.perceptual import PERCEPTUAL
from var.sampling.params import SamplingParams


class OptimizerConfig(Section):
    """AdamW.

    Attributes:
        lr: the peak, for the recipe's batch size.
        betas: decays of the moments.
        weight_decay: on matrices and kernels only; 0: none.
        final_weight_decay: what it becomes towards the end of the run; None: it stays.
        clip: bound on the norm of the gradient; None: none.
    """

    lr: Positive
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    weight_decay: NotNegative = 0.05
    final_weight_decay: Positive | None = None
    clip: Positive | None = 2.0


class DiscriminatorOptimizerConfig(OptimizerConfig):
    """AdamW with the discriminator's defaults."""

    lr: Positive = 3e-4
    betas: tuple[Rate, Rate] = (0.5, 0.9)
    weight_decay: NotNegative = 0.0005
    clip: Positive | None = 10.0


class ProbeOptimizerConfig(OptimizerConfig):
    """AdamW for probes that are trained side by side.

    Attributes:
        clip: none, for the norm would be that of all probes' gradients together: what bounds it scales them all, and
            how one probe learns would depend on which others there are.
    """

    clip: Positive | None = None


class ScheduleConfig(Section):
    """Learning rate over the run: a linear warm-up, a flat part, then a fall (VAR's code: linear with a flat 5 %).

    Attributes:
        warmup: fraction of the run spent rising from warmup_start * lr to lr.
        warmup_start: factor of lr at the first step.
        flat: fraction of the run held at lr after the warm-up.
        final: factor of lr at the last step.
        shape: of the fall from lr to final * lr.
    """

    warmup: Fraction = 0.02
    warmup_start: Fraction = 0.005
    flat: Fraction = 0.05
    final: Fraction = 0.1
    shape: Literal["linear", "cosine"] = "linear"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.warmup + self.flat > 1:
            raise InputError(f"warmup={self.warmup} and flat={self.flat} exceed the run: together at most 1, lower one")
        return self


class NetworkConfig(Section):
    """A frozen perceptual network: its name, and its weights where they are not to be downloaded."""

    network: str
    weights: Path | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.network not in PERCEPTUAL:
            raise InputError(f"network={self.network!r} is unknown: take one of {', '.join(PERCEPTUAL)}")
        return self


class PerceptualConfig(NetworkConfig):
    """A distance of features (LPIPS, arXiv 1801.03924) and its weight in the loss.

    Attributes:
        weight: of the distance.
        image_size: side in pixels at which the network looks: both images are enlarged to it (bicubic); None: as they
            are. A network that was trained on large images sees little in small ones.
    """

    weight: Positive = 1.0
    image_size: Count | None = None


class AdversarialConfig(Section):
    """A discriminator, trained in turns with the tokenizer by the hinge loss (VQGAN, arXiv 2012.09841).

    Attributes:
        weight: of the adversarial term, beside the adaptive one.
        discriminator: on patches of pixels, or heads on the features of a frozen network.
        network: the frozen one.
        weights: of that network; None: those of its package or download.
        width: channels of PatchGAN's first layer.
        layers: PatchGAN's halvings of the side.
        spectral_norm: bound the layers' gains; PatchGAN then has no other norm.
        start: fraction of the run without the term and without training of the discriminator.
        ramp: fraction of the run in which the term then rises from 0 to its weight.
        adaptive: bounds of the ratio of the gradients' norms at the last layer, which scales the term; None: no scale.
        augment: probability of DiffAugment for what the discriminator sees.
        r1: weight of the gradient penalty on real images (arXiv 1801.04406); 0: none.
        r1_every: steps between two penalties, each then weighs r1 * r1_every.
        optimizer: of the discriminator.
    """

    weight: Positive = 0.4
    discriminator: Literal["patchgan", "features"] = "patchgan"
    network: str = "dino-vits16"
    weights: Path | None = None
    width: Count = 64
    layers: Count = 3
    spectral_norm: bool = True
    start: Fraction = 0.22
    ramp: Fraction = 0.02
    adaptive: tuple[Positive, Positive] | None = (0.015, 1e4)
    augment: Fraction = 1.0
    r1: NotNegative = 0.0
    r1_every: Count = 16
    optimizer: DiscriminatorOptimizerConfig = DiscriminatorOptimizerConfig()

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.network not in BACKBONES:
            raise InputError(f"network={self.network!r} is unknown: take one of {', '.join(BACKBONES)}")
        unread = {"patchgan": ("network", "weights"), "features": ("width", "layers")}[self.discriminator]
        if given := [name for name in unread if name in self.model_fields_set]:
            raise InputError(f"{given[0]} has no meaning for discriminator={self.discriminator!r}: leave it out")
        return self

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.adaptive is not None and self.adaptive[0] > self.adaptive[1]:
            low, high = self.adaptive
            raise InputError(f"adaptive=[{low:g}, {high:g}] is the wrong way round: give the lower bound first")
        return self


class TokenizerLossConfig(Section):
    """Weights of the tokenizer's losses; without perceptual or adversarial that term is left out.

    Attributes:
        l1, l2: mean absolute and squared difference of the pixels.
        vq: of features and codewords.
        crowding: spreads each scale's usage over the codebook (Quantizer.crowding); a statistic of the micro-batch.
        perceptual: distance of a frozen network's features.
        adversarial: a discriminator.
    """

    l1: NotNegative = 0.2
    l2: NotNegative = 1.0
    vq: NotNegative = 1.0
    crowding: NotNegative = 0.0
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None

    @model_validator(mode="after")
    def _sees_pixels(self) -> Self:
        if self.l1 == self.l2 == 0:
            raise InputError("l1=0 and l2=0 leave nothing that compares pixels: raise one of them")
        return self


class VARSizes(Section):
    """Sizes of the transformer that a recipe chooses, as in VARConfig; the other sizes are the tokenizer's.

    num_classes None: as many as the training data has.
    """

    depth: int
    width: int = 0
    heads: int = 0
    mlp_ratio: float = 4.0
    qk_norm: bool = True
    shared_adaln: bool = False
    drop_path: float | None = None
    num_classes: int | None = None

    @model_validator(mode="after")
    def _builds(self) -> Self:
        self.config(TokenizerConfig(), self.num_classes if self.num_classes is not None else 1)
        return self

    def config(self, tokenizer: TokenizerConfig, num_classes: int) -> VARConfig:
        """The whole configuration, for this tokenizer and number of classes.

        Raises:
            InputError: sizes that cannot work.
        """
        sizes = self.model_dump(exclude={"num_classes"})
        return VARConfig(
            **sizes,
            num_classes=num_classes,
            scales=tokenizer.scales,
            vocab_size=tokenizer.vocab_size,
            latent_dim=tokenizer.latent_dim,
        )


class Recipe(Section):
    """What both stages share.

    Attributes:
        output: the run's folder.
        seed: of the weights, the order of the images and their augmentation.
        batch_size: images a step over all processes.
        epochs: length of the run in passes over the images; either this or steps.
        steps: length of the run in steps; either this or epochs.
        ema: decay of the average of the weights; None: no average.
        accumulate: parts that each process takes its share of a batch in, one after another, to save memory.
        precision: of the network; "auto" takes bfloat16 where the hardware is fast at it; float16 (with a loss
            scaler) needs CUDA.
        log_every, validate_every, sample_every, checkpoint_every: in steps.
        keep: checkpoints kept, the newest; the best one by validation is kept beside them.
        max_skipped: steps in a row that may be skipped for a loss or gradient that is not finite.
        compile: run the network through torch.compile.
        wandb: project at Weights & Biases to which the run's numbers go too; None: only to its folder.
        init: folder of an exported model to begin with, its weights only, in place of random ones.
    """

    output: Path
    init: Path | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    batch_size: Count
    accumulate: Count = 1
    epochs: Positive | None = None
    steps: Count | None = None
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    log_every: Count = 20
    validate_every: Count = 1000
    sample_every: Count = 1000
    checkpoint_every: Count = 1000
    keep: Count = 2
    max_skipped: Count = 20
    compile: bool = False
    wandb: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise InputError("epochs and steps are both missing: give one of them, such as epochs=100")
        if self.epochs is not None and self.steps is not None:
            raise InputError(f"epochs={self.epochs:g} and steps={self.steps} both given: set one of them to null")
        return self

    def total_steps(self, length: int) -> int:
        """Steps of the whole run over a dataset of that length."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil((self.epochs or 0) * length / self.batch_size))


class TokenizerRecipe(Recipe):
    """Stage 1.

    Attributes:
        image_size: side of the images in pixels, a check on model.scales; None: what the scales say.
        quantizer_dropout: probability that an image is drawn from its first few scales only, a random number of them.
        restart_dead_codes: steps that a codeword may go unused before the batch replaces it; None: never.
        usage_window: steps over which usage and perplexity of the codebook are taken.
        metric: network of the validation's perceptual distance, better another one than the loss has; None: no such
            metric.
    """

    stage: Literal["tokenizer"]
    model: TokenizerConfig
    loss: TokenizerLossConfig = TokenizerLossConfig()
    quantizer_dropout: Rate = 0.0
    restart_dead_codes: Count | None = None
    usage_window: Count = 100
    metric: NetworkConfig | None = None
    image_size: Count | None = None

    @model_validator(mode="after")
    def _scales_fit(self) -> Self:
        last, downsample, side = self.model.scales[-1], self.model.downsample, self.model.image_side
        if self.image_size is not None and side != self.image_size:
            raise InputError(
                f"model.scales end at {last}, which at {downsample} pixels a token is {side} pixels, not "
                f"image_size={self.image_size}: let them end at image_size / {downsample}, or change model.multipliers"
            )
        return self


class SelfCorrectionConfig(Section):
    """Wrong tokens in training (Infinity, arXiv 2412.04431, section 3.4).

    Attributes:
        share: of a sample's tokens that are replaced, drawn uniformly from 0 to this.
        neighbors: each by one of so many codewords nearest to it.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    neighbors: Count = 100


class VARRecipe(Recipe):
    """Stage 2.

    Attributes:
        tokenizer: folder of a trained tokenizer.
        model: sizes of the transformer.
        label_drop: fraction of the labels replaced by the null class in training.
        tokens: folder of the token cache (`var tokenize`), written at the start of the run where it is not complete;
            None encodes the images in every step.
        token_views: augmented views of every image in the token cache; epoch e sees view e mod token_views.
        gradient_checkpointing: compute each block again in the backward pass, to save memory.
        self_correction: show the model wrong tokens in training; None: only right ones.
        sampling: what the model is sampled with unless asked otherwise, for its config.json; None: no preference.
    """

    stage: Literal["var"]
    tokenizer: Path
    model: VARSizes
    label_drop: Rate = 0.1
    tokens: Path | None = None
    token_views: Count = 1
    gradient_checkpointing: bool = False
    self_correction: SelfCorrectionConfig | None = None
    sampling: SamplingParams | None = None

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        classes, room = self.data.classes, self.model.num_classes
        if classes is not None and room is not None and max(classes) >= room:
            raise InputError(
                f"data.classes holds label {max(classes)}, but model.num_classes={room} takes labels 0..{room - 1}: "
                f"set model.num_classes to at least {max(classes) + 1}, or to null"
            )
        return self


class AIMRecipe(Recipe):
    """Pre-training of an image encoder (AIM, arXiv 2401.08541).

    Attributes:
        model: sizes of the encoder; by name, `model: aim-tiny` (-small, -base, -600M, ...: 224 px), or by name with
            others in place of single ones, `model: {preset: aim-tiny, image_size: 48, patch_size: 8}`.
        head: sizes of the head, which is thrown away afterwards.
        attention: `prefix` draws for each image how many patches see one another; `causal` has no prefix.
        order: in which the patches follow one another.
        targets: what is predicted of a patch: its pixels, normalized or not, or its `tokens`, those of the last scale
            of a tokenizer whose last token map has as many cells as the encoder has patches.
        tokenizer: folder of a trained tokenizer, for targets=tokens.
    """

    stage: Literal["aim"]
    model: EncoderConfig
    head: HeadConfig = HeadConfig()
    attention: Literal["prefix", "causal"] = "prefix"
    order: Literal["raster", "spiral", "checkerboard", "random"] = "raster"
    targets: Literal["normalised", "pixels", "tokens"] = "normalised"
    tokenizer: Path | None = None

    @model_validator(mode="after")
    def _targets_fit(self) -> Self:
        if (self.targets == "tokens") != (self.tokenizer is not None):
            raise InputError(
                "targets=tokens needs a tokenizer, and a tokenizer needs targets=tokens: give both or none"
            )
        if self.model.patches < 2:
            raise InputError("model has a single patch: nothing comes next, take a smaller patch_size")
        return self


class ProbeRecipe(Recipe):
    """Attentive probes on frozen features (AIM, arXiv 2401.08541, section 4).

    Attributes:
        model: what gives the features: the folder of an encoder, with or without a probe; a released AIM's name; the
            folder or name of a VAR pipeline (its transformer's hidden states); or what these are compared with:
            `untrained`, an encoder with the weights that it would begin its pre-training with, `pixels`, the patches
            as they are.
        sizes: of the encoder, as in AIMRecipe; needed for `untrained` and `pixels`, where a model is loaded a check on
            it.
        probe_layers: blocks, the mean of whose outputs a probe reads, counted from 0: a list of them; `last`; or
            `best`, for as many probes as there are runs of consecutive blocks, all trained in one pass over the
            features: the one that classifies the validation images best is exported.
        probed: blocks of `last` and of each run of `best`; all there are, where they are fewer.
        heads: of the probes' attention; None: the model's.
        num_classes: None: as many as the training data has.
        optimizer: each probe's.
    """

    stage: Literal["probe"]
    model: Annotated[str, Field(min_length=1)]
    sizes: EncoderConfig | None = None
    probe_layers: Literal["best", "last"] | tuple[int, ...] = "best"
    probed: Count = 6
    heads: Count | None = None
    num_classes: Annotated[int, Field(ge=2)] | None = None
    optimizer: ProbeOptimizerConfig

    @field_validator("probe_layers", mode="before")
    @classmethod
    def _words_or_blocks(cls, given: object) -> object:
        if isinstance(given, list | tuple) and all(type(layer) is int for layer in given):
            return tuple(given)
        if given in ("best", "last"):
            return given
        raise InputError(f"{given!r} must be best, last, or a list of blocks such as [3, 4, 5]")

    @model_validator(mode="after")
    def _sizes_known(self) -> Self:
        if self.model in BASELINES and self.sizes is None:
            raise InputError(
                f"sizes is missing: model={self.model} needs image_size, patch_size, width, depth and heads there"
            )
        return self


AnyRecipe = TokenizerRecipe | VARRecipe | AIMRecipe | ProbeRecipe
