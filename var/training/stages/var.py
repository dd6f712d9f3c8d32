"""Stage 2: train the transformer to predict every scale's tokens from the coarser ones (VAR paper, section 3.2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.data.config import Count, Rate, UserPath
from var.data.dataset import Batch, SampleDataset
from var.data.listing import SPLIT_NAMES
from var.data.token_cache import MANIFEST, Manifest
from var.data.token_dataset import TokenDataset
from var.data.tokenize import write_tokens
from var.hub.checkpoint import TOKENIZER, TRANSFORMER
from var.hub.presets import RELEASED
from var.hub.sources import find_weights
from var.hub.start import start_from
from var.models.conditional import TransformerSizes
from var.models.token_losses import TokenLosses, head_losses, image_means
from var.models.var import VAR, VARConfig
from var.sampling.generate import generate
from var.sampling.params import SamplingParams
from var.training.adapters import add_adapters, merge_adapters
from var.training.checkpointing import checkpoints
from var.training.config import Recipe
from var.training.estimate.images import Images, find_images
from var.training.rng import StepRNG
from var.training.scale_drop import draw_kept, quantize_kept
from var.training.self_correction import SelfCorrectionConfig, nearest_codewords, perturb
from var.training.stages.base import Losses, Outline, Phase, Stage, check_labels, open_images, register, require
from var.training.tokenizers import open_tokenizer, tokenizer_config
from var.utils.classes import spread
from var.utils.images import image_grid, to_pil
from var.utils.ranks import Ranks

SHOWN_CLASSES, SHOWN_PER_CLASS = 8, 4

# Parameters that weight decay should not pull to zero: positions, levels, the start and the AdaLN offsets.
NEVER_DECAYED = ("start_position", "position", "level_embedding.weight", "offset")


@dataclass(frozen=True)
class VARSizes(TransformerSizes):
    """Sizes of the transformer that a recipe chooses; a VARConfig's other sizes are the tokenizer's."""

    num_classes: int | None = None  # None: as many as the training data has

    def __post_init__(self) -> None:
        self.config(TokenizerConfig(), 1 if self.num_classes is None else self.num_classes)

    def config(self, tokenizer: TokenizerConfig, num_classes: int) -> VARConfig:
        """Return the whole configuration, for this tokenizer and number of classes.

        Raises InputError: sizes that cannot work.
        """
        given = {name: getattr(tokenizer, name) for name in ("scales", "vocab_size", "latent_dim")}
        return VARConfig(**asdict(self) | given | {"num_classes": num_classes})


class VARRecipe(Recipe):
    """Stage 2."""

    has_transformer = True
    renamed: ClassVar[Mapping[str, str]] = {**Recipe.renamed, "tokens": "token_cache"}

    tokenizer: UserPath  # a trained one: its folder, the name of a model that has it, or a released file
    model: VARSizes
    label_drop: Rate = 0.1  # fraction of the labels replaced by the null class in training
    # Folder, completed at the start of the run; None encodes the images in every step.
    token_cache: UserPath | None = None
    token_views: Count = 1  # augmented views of every image in the token cache; epoch e uses view e mod token_views
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, to save memory
    self_correction: SelfCorrectionConfig | None = None  # replace some input tokens by wrong ones in training
    scale_drop: Rate = 0.0  # rate at which a step leaves out a scale between the ends
    sampling: SamplingParams | None = None  # the exported model's defaults for sampling, in its config.json

    @model_validator(mode="after")
    def _scale_drop_fits(self) -> Self:
        if self.scale_drop and self.self_correction is not None:
            raise InputError(
                f"scale_drop={self.scale_drop} and self_correction both quantize the tokens anew: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _recomputed_without_chance(self) -> Self:
        if self.lora is not None and self.lora.dropout and self.gradient_checkpointing:
            raise InputError("lora.dropout would differ in a recomputed block: set gradient_checkpointing to false")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Self:
        room = self.model.num_classes
        largest = max((label for label in self.data.classes or () if isinstance(label, int)), default=0)
        if room is not None and largest >= room:
            raise InputError(
                f"data.classes has label {largest}, but model.num_classes={room} allows labels 0..{room - 1}: "
                f"set model.num_classes to at least {largest + 1}, or to null"
            )
        return self

    @property
    def headline(self) -> str:
        sizes = self.model
        return f"{self.output}: depth {sizes.depth}, width {sizes.width}, {sizes.heads} heads, lr {self.optimizer.lr:g}"

    def at_depth(self, depth: int) -> Self:
        """Scale width and heads in proportion to depth, as in the paper, and the learning rate in inverse proportion.

        With AdamW the best rate of a hidden matrix changes so with width (muP, arXiv 2203.03466); a single rate for all
        sizes would suit some of them better than others. The rate is rounded to eight digits.

        Raises InputError: a depth with a fraction of a head.
        """
        reference = self.model.config(TokenizerConfig(), 1)  # resolves width and heads that are not given
        heads, rest = divmod(reference.heads * depth, reference.depth)
        if rest:
            raise InputError(
                f"depth {depth} would have {reference.heads * depth / reference.depth:.3g} heads, in proportion to the "
                f"recipe's model.heads={reference.heads} at model.depth={reference.depth}: give depths with whole "
                "numbers of heads"
            )
        width = heads * (reference.width // reference.heads)
        rate = float(f"{self.optimizer.lr * reference.depth / depth:.8g}")
        return self.model_copy(
            update={
                "output": self.output / f"d{depth}",
                "model": replace(self.model, depth=depth, width=width, heads=heads),
                "optimizer": self.optimizer.model_copy(update={"lr": rate}),
            }
        )


VARRecipeT = TypeVar("VARRecipeT", bound=VARRecipe)


@register("var")
class VARStage(Stage[VARRecipeT]):
    """Cross-entropy of all L tokens under teacher forcing; a batch holds images, or tokens from the cache."""

    recipe_type: ClassVar[type[Recipe]] = VARRecipe
    parts = (TOKENIZER, TRANSFORMER)

    def __init__(
        self, recipe: VARRecipeT, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, {"tokenizer": vqvae})
        self.vqvae = vqvae
        if recipe.sampling is not None:
            recipe.sampling.check_scales(vqvae.scales.sides, recipe.scale_drop)
        self.num_classes = recipe.model.num_classes or train_data.num_classes
        for data in (train_data, validation_data):
            check_labels(data.labels, self.num_classes, "model.num_classes")
        labels = train_data.labels  # None where they are known only when read: then `present` is all classes
        self.present = list(range(self.num_classes)) if labels is None else sorted(set(labels.tolist()))
        wrong = recipe.self_correction
        self.neighbors = nearest_codewords(vqvae.quantizer, wrong.neighbors) if wrong else None
        config = recipe.model.config(self.vqvae.config, self.num_classes)
        self.config = replace(config, scale_drop=recipe.scale_drop)
        # A block's AdaLN runs before all blocks, apart from the rest of its block.
        units = [unit for i in range(self.config.depth) for unit in (f"blocks.{i}.adaln", f"blocks.{i}")]
        self.phases = (Phase("model", self.build(), recipe.optimizer, self.losses, NEVER_DECAYED, units=units),)
        if recipe.token_cache is not None:
            self.workers = 0  # reading tokens is faster than passing them between processes

    @classmethod
    def prepare(cls, recipe: VARRecipeT, device: torch.device, ranks: Ranks) -> None:
        """Encode the missing parts of the recipe's token cache, if it has one, on all processes."""
        if recipe.token_cache is None:
            return
        if recipe.init is not None and not checkpoints(recipe.output / "checkpoints"):
            find_weights(recipe.init, VAR.__name__, "init")  # before encoding, which takes long
        with torch.device("meta"):
            cls.outline(recipe).stage.set_trained()  # what the model has not is found here, not after encoding
        vqvae = open_tokenizer(recipe.tokenizer).to(device)
        if recipe.model.num_classes and not (recipe.token_cache / MANIFEST).is_file():
            for images in open_images(recipe, vqvae.config.image_side):
                check_labels(images.labels, recipe.model.num_classes, "model.num_classes")
        write_tokens(recipe, vqvae, ranks)

    @classmethod
    def from_recipe(cls, recipe: VARRecipeT) -> Self:
        vqvae = open_tokenizer(recipe.tokenizer)
        if recipe.token_cache is None:
            return cls(recipe, vqvae, *open_images(recipe, vqvae.config.image_side))
        return cls(recipe, vqvae, *(TokenDataset(recipe, vqvae, split) for split in SPLIT_NAMES))

    @classmethod
    def outline(cls, recipe: VARRecipeT) -> Outline:
        tokenizer, notes = _known_tokenizer(recipe)
        images, written = _find_images(recipe)
        notes += images.list_assumptions(recipe.model.num_classes)
        to_encode = 0
        if recipe.token_cache is not None and not written:
            to_encode = (images.number or 0) * recipe.token_views
            notes.append(f"the token cache {recipe.token_cache} does not exist: the run starts by writing it")
        side = tokenizer.image_side
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            vqvae = VQVAE(tokenizer).eval().requires_grad_(False)
            stage = cls(recipe, vqvae, data, data)
            if recipe.scale_drop:
                stage.recipe = recipe.model_copy(update={"scale_drop": 0.0})
                notes.append(f"scale_drop={recipe.scale_drop:g}: counted with all scales, the most that a step takes")
            length = vqvae.scales.total
            sample = torch.empty(3, side, side)
            if recipe.token_cache is not None:
                sample = torch.empty(length, dtype=torch.int64)

        def encode(count: int) -> Tensor:
            return vqvae.encode(torch.empty(count, 3, side, side))

        return Outline(stage, images, sample, length, encode, to_encode, "token cache", notes)

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.neighbors = None if self.neighbors is None else self.neighbors.to(device)

    def start_from(self, given: Path) -> list[str]:
        return start_from(given, self.phases[0].model, self.train_data.class_names, self.vqvae).new

    def build(self) -> VAR:
        return VAR(self.config)

    def adapt(self, model: nn.Module) -> None:
        if self.recipe.lora is not None:
            add_adapters(require(VAR, model), self.recipe.lora, self.recipe.seed)

    def _tokens(self, batch: Batch) -> Tensor:
        if not batch.content.is_floating_point():
            return batch.content
        with torch.no_grad(), torch.autocast(batch.content.device.type, enabled=False):  # as for the cache
            return self.vqvae.encode(batch.content)

    @torch.no_grad()
    def _features(self, batch: Batch) -> Tensor:
        """Return what the scales encode, (B, C, H, H): the encoder's features, or the sum of the cached tokens."""
        with torch.autocast(batch.content.device.type, enabled=False):
            if batch.content.is_floating_point():
                return self.vqvae.features(batch.content)
            return self.vqvae.quantizer.decode(batch.content)

    def _check_streamed_labels(self, batch: Batch) -> None:
        """Raise InputError for a label without a class, where labels are known only when read."""
        if self.train_data.labels is None:
            check_labels(batch.labels, self.num_classes, "model.num_classes")

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        self._check_streamed_labels(batch)
        dropped = rng.uniform("label drop") < self.recipe.label_drop
        labels = batch.labels.masked_fill(dropped, self.num_classes)
        path_noise = rng.uniform("stochastic depth", 2 * self.config.depth)
        checkpoint, kept = self.recipe.gradient_checkpointing, None
        if self.recipe.scale_drop:
            kept = draw_kept(len(self.vqvae.scales), self.recipe.scale_drop, rng)
            inputs, targets = quantize_kept(self.vqvae.quantizer, self._features(batch), kept)
        else:
            inputs, targets = self._pyramid(self._tokens(batch), rng)
        read = partial(head_losses, tokens=targets)
        each: TokenLosses = model(labels, inputs, path_noise, checkpoint=checkpoint, kept=kept, read=read)
        if kept is not None:  # which scales there are changes from step to step: validation reports each
            return Losses(each.loss.mean(), {"loss": each.loss.detach().mean(), "accuracy": each.accuracy.mean()})
        means = image_means(TokenLosses(each.loss.detach(), each.accuracy), self.vqvae.scales)
        return Losses(each.loss.mean(), {name: values.mean() for name, values in means.items()})

    def _pyramid(self, tokens: Tensor, rng: StepRNG) -> tuple[Tensor, Tensor]:
        """Return the transformer's input, (B, L - 1, C), and its targets, (B, L)."""
        quantizer, config = self.vqvae.quantizer, self.recipe.self_correction
        if config is None or self.neighbors is None:
            return quantizer.teacher_forcing_input(tokens), tokens
        share = config.share * rng.uniform("self-correction: share")
        noise = rng.uniform("self-correction: tokens", tokens.shape[1], 2)
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return perturb(quantizer, tokens, self.neighbors, share, noise)

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        tokens = self._tokens(batch)
        inputs = self.vqvae.quantizer.teacher_forcing_input(tokens)
        return image_means(model(batch.labels, inputs, read=partial(head_losses, tokens=tokens)), self.vqvae.scales)

    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw one row a class: samples of the model, with the same random streams every time."""
        labels = [label for label in spread(self.present, SHOWN_CLASSES) for _ in range(SHOWN_PER_CLASS)]
        params = self.recipe.sampling or SamplingParams(cfg=2.0)
        samples = generate(require(VAR, model), self.vqvae, labels, params).images
        return image_grid(to_pil(samples), SHOWN_PER_CLASS)

    def export(self, model: nn.Module, folder: Path) -> None:
        from var.pipeline import VARPipeline  # too much to import for reading a recipe

        names = {label: self.train_data.class_names.get(label, str(label)) for label in self.present}
        transformer = require(VAR, model)
        if self.recipe.lora is not None:
            transformer = merge_adapters(transformer, self.build)
        VARPipeline(transformer, self.vqvae, names, self.recipe.sampling).save_pretrained(folder)


def _find_images(recipe: VARRecipe) -> tuple[Images, bool]:
    """Find number and classes of the training images; return them and whether the token cache exists."""
    if recipe.token_cache is None or not (recipe.token_cache / MANIFEST).is_file():
        return find_images(recipe.data), False
    info = Manifest.model_validate_json((recipe.token_cache / MANIFEST).read_bytes()).splits["train"]
    return Images(info.samples, info.num_classes), True


def _known_tokenizer(recipe: VARRecipe) -> tuple[TokenizerConfig, list[str]]:
    """Return the sizes of the recipe's tokenizer, and assumptions."""
    try:
        return tokenizer_config(recipe.tokenizer), []
    except InputError:
        if recipe.tokenizer.exists():
            raise
        for name, released in RELEASED.items():
            tokenizer = TokenizerConfig(scales=released.scales)
            if recipe.model.config(tokenizer, released.num_classes) == released:
                assumed = f"assumed the released one of {name}, {tokenizer.image_side} px"
                return tokenizer, [f"tokenizer={str(recipe.tokenizer)!r} does not exist: {assumed}"]
        raise
