"""The part that all stages share whose transformer is trained on a tokenizer's tokens (VAR paper, section 3.2).

B batch, L tokens of all scales.
"""

from abc import abstractmethod
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE, Regularization, TokenizerConfig
from var.data.config import Count, Rate, UserPath
from var.data.dataset import Batch, SampleDataset
from var.data.listing import SPLIT_NAMES
from var.data.token_cache import MANIFEST, Manifest
from var.data.token_dataset import TokenDataset
from var.data.tokenize import write_tokens
from var.hub.checkpoint import TOKENIZER, TRANSFORMER
from var.hub.sources import find_weights
from var.hub.start import start_from
from var.models.conditional import ConditionalTransformer, TransformerConfig, TransformerSizes
from var.sampling.generate import generate
from var.sampling.generators import check_sampling
from var.sampling.params import SamplingParams
from var.training.adapters import add_adapters, merge_adapters
from var.training.checkpointing import checkpoints
from var.training.config import Recipe
from var.training.estimate.images import Images, find_images
from var.training.resuming import check_before_work
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, Phase, Stage, check_labels, open_images, require
from var.training.tokenizers import open_tokenizer, tokenizer_config
from var.utils.classes import spread
from var.utils.images import image_grid, to_pil
from var.utils.ranks import Ranks

SHOWN_CLASSES, SHOWN_PER_CLASS = 8, 4

ConfigT = TypeVar("ConfigT", bound=TransformerConfig)

# Parameters that weight decay should not pull to zero: positions, levels, the start and the AdaLN offsets.
NEVER_DECAYED = ("start_position", "position", "level_embedding.weight", "offset")


@dataclass(frozen=True)
class RecipeSizes(TransformerSizes):
    """Sizes of the transformer that a recipe chooses; the others of its config are the tokenizer's."""

    num_classes: int | None = None  # None: as many as the training data has

    def __post_init__(self) -> None:
        self.config(None, 1 if self.num_classes is None else self.num_classes)

    def config(self, tokenizer: TokenizerConfig | None, num_classes: int) -> TransformerConfig:
        """Return the whole configuration, for this tokenizer (None: one of the default sizes) and number of classes.

        Raises InputError: sizes that cannot work.
        """
        return self.joined(TransformerConfig, tokenizer, num_classes)

    def joined(self, kind: type[ConfigT], tokenizer: TokenizerConfig | None, num_classes: int) -> ConfigT:
        """Return a configuration of that kind of these sizes, with those of the tokenizer."""
        names = () if tokenizer is None else kind.of_tokenizer
        theirs = {name: getattr(tokenizer, name) for name in names}
        return kind(**asdict(self) | theirs | {"num_classes": num_classes})


class TransformerRecipe(Recipe):
    """A recipe of a transformer on the tokens of a tokenizer."""

    has_transformer = True

    tokenizer: UserPath  # a trained one: its folder, the name of a model that has it, or a released file
    model: RecipeSizes
    label_drop: Rate = 0.1  # fraction of the labels replaced by the null class in training
    # Folder, completed at the start of the run; None encodes the images in every step.
    token_cache: UserPath | None = None
    token_views: Count = 1  # augmented views of every image in the token cache; epoch e uses view e mod token_views
    gradient_checkpointing: bool = False  # recompute each block in the backward pass, to save memory
    sampling: SamplingParams | None = None  # the exported model's defaults for sampling, in its config.json

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
        reference = self.model.config(None, 1)  # resolves width and heads that are not given
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


TransformerRecipeT = TypeVar("TransformerRecipeT", bound=TransformerRecipe)


class Dropped(NamedTuple):
    """What a step leaves out at random."""

    labels: Tensor  # (B,) int64, the null class where the label is dropped
    path_noise: Tensor  # (B, 2 * depth), of stochastic depth


class TransformerStage(Stage[TransformerRecipeT]):
    """A transformer on tokens; a batch holds images, or tokens from the cache. A subclass has the loss."""

    kind: ClassVar[type[ConditionalTransformer]]
    regularization: ClassVar[Regularization] = TransformerConfig.regularization  # of the tokenizer
    parts = (TOKENIZER, TRANSFORMER)

    def __init__(
        self, recipe: TransformerRecipeT, vqvae: VQVAE, train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, {"tokenizer": vqvae})
        self.vqvae = vqvae
        self.num_classes = recipe.model.num_classes or train_data.num_classes
        for data in (train_data, validation_data):
            check_labels(data.labels, self.num_classes, "model.num_classes")
        labels = train_data.labels  # None where they are known only when read: then `present` is all classes
        self.present = list(range(self.num_classes)) if labels is None else sorted(set(labels.tolist()))
        self.config = self.choose_config()
        if recipe.sampling is not None:
            check_sampling(recipe.sampling, self.config)
        # A block's AdaLN runs before all blocks, apart from the rest of its block.
        blocks = [name for i in range(self.config.depth) for name in (f"blocks.{i}.adaln", f"blocks.{i}")]
        model = self.build()
        self.phases = (
            Phase("model", model, recipe.optimizer, self.losses, NEVER_DECAYED, sharded=blocks, compiled=blocks),
        )
        if recipe.token_cache is not None:
            self.workers = 0  # reading tokens is faster than passing them between processes

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses: ...

    def choose_config(self) -> TransformerConfig:
        """Return the sizes of the model, for the tokenizer and the data."""
        return self.recipe.model.config(self.vqvae.config, self.num_classes)

    @classmethod
    def prepare(cls, recipe: TransformerRecipeT, device: torch.device, ranks: Ranks) -> None:
        """Encode the missing parts of the recipe's token cache, if it has one, on all processes."""
        if recipe.token_cache is None:
            return
        if recipe.init is not None and not checkpoints(recipe.output / "checkpoints"):
            find_weights(recipe.init, cls.kind.__name__, "init")  # before encoding, which takes long
        with torch.device("meta"):
            cls.outline(recipe).stage.set_trained()  # what the model has not is found here, not after encoding
        vqvae = open_tokenizer(recipe.tokenizer, cls.regularization).to(device)
        if not (recipe.token_cache / MANIFEST).is_file():
            splits = open_images(recipe, vqvae.config.image_side)
            if recipe.model.num_classes:
                for images in splits:
                    check_labels(images.labels, recipe.model.num_classes, "model.num_classes")
            check_before_work(recipe, *splits)
        write_tokens(recipe, vqvae, ranks)

    @classmethod
    def from_recipe(cls, recipe: TransformerRecipeT) -> Self:
        vqvae = open_tokenizer(recipe.tokenizer, cls.regularization)
        if recipe.token_cache is None:
            return cls(recipe, vqvae, *open_images(recipe, vqvae.config.image_side))
        return cls(recipe, vqvae, *(TokenDataset(recipe, vqvae, split) for split in SPLIT_NAMES))

    @classmethod
    def known_tokenizer(cls, recipe: TransformerRecipeT) -> tuple[TokenizerConfig, list[str]]:
        """Return the sizes of the recipe's tokenizer, and assumptions. Raises InputError: they are not known."""
        return tokenizer_config(recipe.tokenizer, cls.regularization), []

    @classmethod
    def outline(cls, recipe: TransformerRecipeT) -> Outline:
        tokenizer, notes = cls.known_tokenizer(recipe)
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
            length = vqvae.scales.total
            sample = torch.empty(3, side, side)
            if recipe.token_cache is not None:
                sample = torch.empty(vqvae.token_shape, dtype=vqvae.token_dtype)

        def encode(count: int) -> Tensor:
            return vqvae.encode(torch.empty(count, 3, side, side))

        return Outline(stage, images, sample, length, encode, to_encode, "token cache", notes)

    def start_from(self, given: Path) -> list[str]:
        return start_from(given, self.phases[0].model, self.train_data.class_names, self.vqvae).new

    @classmethod
    def next_command(cls, recipe: TransformerRecipeT) -> str:
        return f"python sample.py --model {recipe.output_as_typed}"

    def build(self) -> ConditionalTransformer:
        return self.kind(self.config)

    def adapt(self, model: nn.Module) -> None:
        if self.recipe.lora is not None:
            add_adapters(require(ConditionalTransformer, model), self.recipe.lora, self.recipe.seed)

    def _tokens(self, batch: Batch) -> Tensor:
        if batch.content.ndim < 4:  # no images
            return batch.content
        with torch.no_grad(), torch.autocast(batch.content.device.type, enabled=False):  # as for the cache
            return self.vqvae.encode(batch.content)

    def _check_streamed_labels(self, batch: Batch) -> None:
        """Raise InputError for a label without a class, where labels are known only when read."""
        if self.train_data.labels is None:
            check_labels(batch.labels, self.num_classes, "model.num_classes")

    def _drop(self, batch: Batch, rng: StepRNG) -> Dropped:
        dropped = rng.uniform("label drop") < self.recipe.label_drop
        labels = batch.labels.masked_fill(dropped, self.num_classes)
        return Dropped(labels, rng.uniform("stochastic depth", 2 * self.config.depth))

    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw one row a class: samples of the model, with the same random streams every time."""
        labels = [label for label in spread(self.present, SHOWN_CLASSES) for _ in range(SHOWN_PER_CLASS)]
        params = self.recipe.sampling or SamplingParams(cfg=2.0)
        samples = generate(require(ConditionalTransformer, model), self.vqvae, labels, params).images
        return image_grid(to_pil(samples), SHOWN_PER_CLASS)

    def export(self, model: nn.Module, folder: Path) -> None:
        from var.pipeline import VARPipeline  # too much to import for reading a recipe

        names = {label: self.train_data.class_names.get(label, str(label)) for label in self.present}
        transformer = require(ConditionalTransformer, model)
        if self.recipe.lora is not None:
            transformer = merge_adapters(transformer, self.build)
        VARPipeline(transformer, self.vqvae, names, self.recipe.sampling).save_pretrained(folder)


def _find_images(recipe: TransformerRecipe) -> tuple[Images, bool]:
    """Find number and classes of the training images; return them and whether the token cache exists."""
    if recipe.token_cache is None or not (recipe.token_cache / MANIFEST).is_file():
        return find_images(recipe.data), False
    info = Manifest.model_validate_json((recipe.token_cache / MANIFEST).read_bytes()).splits["train"]
    return Images(info.samples, info.num_classes), True
