"""Train attentive probes on frozen features, to measure how well these separate classes (AIM, arXiv 2401.08541).

B batch, N patches, D width, M candidates: choices of blocks, each with a probe of its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tokenizer.errors import LARGEST, InputError, abbreviate
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.data.config import Count, Positive
from var.data.dataset import Batch, SampleDataset, number_present_classes
from var.data.loader import validation_loader
from var.hub.checkpoint import save_model
from var.hub.presets import AIM_RELEASED, BASELINES, RELEASED, SHIPPED, own_name
from var.models.aim import AIM, AIMConfig, AttentiveProbe, Encoder, EncoderConfig, Probe, ProbeConfig, check_layers
from var.models.var import VAR
from var.training.config import OptimizerConfig, Recipe, preset_sizes
from var.training.estimate.images import find_images
from var.training.rng import StepRNG
from var.training.stages.base import Losses, Outline, Phase, Stage, check_labels, open_images, register, require
from var.utils.files import atomic_folder
from var.utils.images import image_grid, to_pil
from var.utils.paths import to_path

if TYPE_CHECKING:  # features need the pipeline, too much to import for reading a recipe
    from var.features.sources import FeatureSource

SCORES = "probes.json"  # in the exported folder: accuracy of each candidate
RIGHT, WRONG = (-0.6, 0.6, -0.6), (0.8, -0.8, -0.8)  # frames on the sheet, in [-1, 1]

Layers = tuple[int, ...]


class ProbeOptimizerConfig(OptimizerConfig):
    """AdamW for probes that are trained side by side."""

    # None, for the norm would be that of all probes' gradients together: clipping it would make the training of one
    # probe depend on the others.
    grad_clip: Positive | None = None


class ProbeRecipe(Recipe):
    """Attentive probes on frozen features (AIM, arXiv 2401.08541, section 4)."""

    fixed = Recipe.fixed | {"sizes", "probe_layers"}

    # Source of the features: the folder of an encoder, with or without a probe; a released AIM's name; the folder or
    # name of a VAR pipeline (its transformer's hidden states); or a baseline: `untrained`, an encoder with its random
    # initial weights, or `pixels`, the raw patches.
    model: Annotated[str, Field(min_length=1)]
    # Of the encoder, as in AIMRecipe; needed for `untrained` and `pixels`, a check on a loaded model.
    sizes: EncoderConfig | None = None
    _preset = field_validator("sizes", mode="before")(preset_sizes)
    # Blocks, counted from 0, whose mean output a probe reads: a list of them; `last`; or `best`, which trains one probe
    # for every run of consecutive blocks, all at once, and exports the one with the best validation accuracy.
    probe_layers: Literal["best", "last"] | tuple[int, ...] = "best"
    probed: Count = 6  # blocks of `last` and of each run of `best`; all blocks of a shallower model
    heads: Count | None = None  # of the probes' attention; None: the model's
    # Outputs of a probe: so many; None: one for each label up to the training data's largest; `present`: one for each
    # class that has training images, which are numbered from 0 in the order of their labels.
    num_classes: int | Literal["present"] | None = None
    optimizer: ProbeOptimizerConfig  # each probe's

    @field_validator("probe_layers", mode="before")
    @classmethod
    def _words_or_blocks(cls, given: object) -> object:
        if isinstance(given, list | tuple) and all(type(layer) is int for layer in given):
            return tuple(given)
        if given in ("best", "last"):
            return given
        raise InputError(f"{given!r} must be best, last, or a list of blocks such as [3, 4, 5]")

    @field_validator("num_classes", mode="before")
    @classmethod
    def _number_or_present(cls, given: object) -> object:
        if given in (None, "present") or (type(given) is int and 2 <= given <= LARGEST):
            return given
        raise InputError(f"num_classes={abbreviate(given)} must be present, or a whole number in 2..{LARGEST}")

    @property
    def outputs(self) -> int | None:
        """Of a probe, where the recipe says how many; else they are the classes of the data."""
        return self.num_classes if isinstance(self.num_classes, int) else None

    @model_validator(mode="after")
    def _sizes_known(self) -> Self:
        if self.model in BASELINES and self.sizes is None:
            raise InputError(
                f"sizes is missing: model={self.model} needs sizes.image_size, patch_size, width, depth and heads"
            )
        return self


def candidates(probe_layers: str | Layers, depth: int, probed: int) -> list[Layers]:
    """List the blocks, out of `depth`, that each candidate of a ProbeRecipe reads, ascending.

    Raises InputError: a block out of range, or one given twice.
    """
    if not isinstance(probe_layers, str):
        check_layers(probe_layers, depth)
        return [tuple(sorted(probe_layers))]
    length = min(probed, depth)
    runs = [tuple(range(first, first + length)) for first in range(depth - length + 1)]
    return runs if probe_layers == "best" else runs[-1:]


def name_layers(layers: Layers) -> str:
    """Name a candidate, `14-19`, `5` or `0_2_5`, as is allowed for modules, files and TensorBoard's tags."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return "_".join(map(str, layers))


class Probes(nn.Module):
    """One probe for each candidate, all with the same initial weights, so that none depends on the others.

    In training a probe's norm takes its statistics from the patches of a micro-batch of one process, in evaluation from
    their running average.
    """

    def __init__(self, names: Sequence[str], probe: AttentiveProbe) -> None:
        super().__init__()
        self.probes: Mapping[str, AttentiveProbe] = nn.ModuleDict(  # type: ignore[assignment]  # as in var.models.aim
            {name: deepcopy(probe) for name in names}
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, N, D) for each candidate -> logits (M, B, classes)."""
        return torch.stack([probe(x) for probe, x in zip(self.probes.values(), features, strict=True)])


class Score(NamedTuple):
    """Accuracy of one candidate, as fractions of the validation images."""

    layers: Layers
    top1: float
    top5: float


@register("probe")
class ProbeStage(Stage[ProbeRecipe]):
    """Cross-entropy of the labels, summed over the candidates, which share nothing but the features.

    So each probe's gradient is that of its own loss, and AdamW, which works weight by weight, trains each as if alone.
    """

    recipe_type = ProbeRecipe
    best = "error"

    def __init__(
        self, recipe: ProbeRecipe, source: "FeatureSource", train_data: SampleDataset, validation_data: SampleDataset
    ) -> None:
        super().__init__(recipe, train_data, validation_data, source.networks)
        self.source = source
        encoder = source.networks.get("encoder")
        self.encoder = encoder if isinstance(encoder, Encoder) else None
        self.num_classes = recipe.outputs or train_data.num_classes
        self._check_labels()
        self.candidates = candidates(recipe.probe_layers, source.depth, recipe.probed)
        self.names = [name_layers(layers) for layers in self.candidates]
        self.layers = sorted({layer for layers in self.candidates for layer in layers})
        self.heads = self._choose_heads()
        # The query has no direction to shrink towards zero.
        self.phases = (Phase("probes", self.build(), recipe.optimizer, self.losses, never_decayed=("query",)),)

    @classmethod
    def from_recipe(cls, recipe: ProbeRecipe) -> Self:
        from var.features.sources import load_features

        # Before any other random draw: `untrained` has the weights that pre-training starts from.
        source = load_features(recipe.model, recipe.sizes)
        images = open_images(recipe, source.image_size)
        return cls(recipe, source, *(number_present_classes(*images) if recipe.num_classes == "present" else images))

    @classmethod
    def next_command(cls, recipe: ProbeRecipe) -> str:
        return f"var classify IMAGE --model {recipe.output_as_typed}"

    @classmethod
    def outline(cls, recipe: ProbeRecipe) -> Outline:
        source, notes = _known_features(recipe)
        side, images = source.image_size, find_images(recipe.data)
        if recipe.num_classes == "present":
            images = images._replace(classes=images.present)
        notes += images.list_assumptions(recipe.outputs)
        data = images.stand_in(recipe.data, side)
        with torch.device("meta"):
            stage = cls(recipe, source, data, data)
            return Outline(stage, images, torch.empty(3, side, side), source.patches, notes=notes)

    def _check_labels(self) -> None:
        known = self.num_classes if self.train_data.labels is None else self.train_data.num_classes
        if known < 2:
            raise InputError(
                "the training images have no labels, or a single class, and a probe is a classifier: give images in "
                "class folders, or the column of their labels as data.label_column"
            )
        for data in (self.train_data, self.validation_data):
            check_labels(data.labels, self.num_classes)

    def _choose_heads(self) -> int:
        """Return the probes' number of heads: with an encoder the encoder's, for both are exported as one AIM."""
        heads = self.recipe.heads or self.source.heads
        if self.encoder is not None and heads != self.source.heads:
            raise InputError(f"heads={heads} must be the encoder's, {self.source.heads}: leave heads out")
        if self.source.width % heads:
            raise InputError(f"heads={heads} must divide the width of the features, {self.source.width}: give heads")
        return heads

    def build(self) -> Probes:
        return Probes(self.names, AttentiveProbe(self.source.width, self.heads, self.num_classes))

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the features that each candidate reads, (B, N, D); the blocks run once for all of them."""
        outputs = dict(zip(self.layers, self.source.features(images, self.layers), strict=True))
        return [torch.stack([outputs[layer] for layer in layers]).mean(dim=0) for layers in self.candidates]

    def _evaluate(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, top-1 and top-5 accuracy (0 or 1) of each image, (M, B) each."""
        if self.train_data.labels is None:  # those of shards are known only when read
            check_labels(batch.labels, self.num_classes)
        logits = model(self._features(batch.content)).float()
        labels = batch.labels.expand(len(logits), -1)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        highest = logits.detach().topk(min(5, self.num_classes)).indices == labels[..., None]
        return losses, highest[..., 0].float(), highest.any(dim=-1).float()

    def losses(self, model: nn.Module, batch: Batch, rng: StepRNG, carry: None) -> Losses:
        losses, top1, _ = self._evaluate(model, batch)
        shown = losses.detach()
        logs = {"loss": shown.mean()}
        for i, name in enumerate(self.names):
            logs |= {f"loss/{name}": shown[i].mean(), f"top1/{name}": top1[i].mean()}
        return Losses(losses.mean(dim=1).sum(), logs)

    @torch.no_grad()
    def after_step(
        self, rng: StepRNG, carries: Sequence[Any], reduce: Callable[[Tensor], Tensor]
    ) -> Mapping[str, Tensor]:
        """Average the norms' running statistics over the processes, so that all validate the same probes."""
        statistics = [buffer for buffer in self.phases[0].model.buffers() if buffer.is_floating_point()]
        processes = reduce(torch.ones((), device=statistics[0].device))
        means = reduce(torch.stack(statistics)) / processes
        for buffer, mean in zip(statistics, means, strict=True):
            buffer.copy_(mean)
        return {}

    @torch.no_grad()
    def validate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses, top1, top5 = self._evaluate(model, batch)
        values = {"loss": losses.mean(dim=0), "error": 1 - top1.mean(dim=0)}
        for i, name in enumerate(self.names):
            values |= {f"loss/{name}": losses[i], f"top1/{name}": top1[i], f"top5/{name}": top5[i]}
        return values

    @torch.no_grad()
    def preview(self, model: nn.Module, batch: Batch) -> Image.Image:
        """Draw a row of images for each candidate, in a green frame where its probe is right, else in a red one."""
        _, top1, _ = self._evaluate(model, batch)
        images = [image for right in top1 for image in to_pil(add_frame(batch.content, right > 0))]
        return image_grid(images, columns=len(batch.content))

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the best candidate and all accuracies.

        With an encoder the folder is that of an AIM; with other features it holds the probe alone.
        """
        probes = require(Probes, model).eval()
        scores, images = self.scores(probes)
        best = max(range(len(scores)), key=lambda i: (scores[i].top1, i))  # of equal ones the last
        content = {"images": images, "best": list(scores[best].layers), "probes": [score._asdict() for score in scores]}
        with atomic_folder(folder) as new:
            model = self._build_export(probes.probes[self.names[best]], scores[best].layers)
            save_model(new, model, self._describe())
            (new / SCORES).write_text(json.dumps(content, indent=2) + "\n")

    def scores(self, probes: Probes) -> tuple[list[Score], int]:
        """Measure each candidate's accuracy; return it with the number of validation images that could be read."""
        device = next(probes.parameters()).device
        recipe = self.recipe
        right, images = torch.zeros(2, len(self.names), dtype=torch.float64), 0
        for batch in validation_loader(self.validation_data, recipe.data, recipe.batch_size, 0, 1):
            here = batch._replace(content=batch.content.to(device), labels=batch.labels.to(device))
            _, top1, top5 = self._evaluate(probes, here)
            right += torch.stack([top1, top5]).sum(dim=-1).cpu()
            images += len(batch.labels)
        fractions = zip(self.candidates, *(right / max(images, 1)).tolist(), strict=True)
        return [Score(*fraction) for fraction in fractions], images

    def _build_export(self, probe: AttentiveProbe, layers: Layers) -> AIM | Probe:
        """Build the model to export around the trained networks, without copying them."""
        if self.encoder is not None:
            sizes = asdict(self.encoder.config)
            with torch.device("meta"):
                aim = AIM(AIMConfig(**sizes, probe_layers=layers, num_classes=self.num_classes))
            aim.encoder, aim.probe = self.encoder, probe
            return aim
        with torch.device("meta"):
            alone = Probe(ProbeConfig(self.source.width, self.heads, self.num_classes, layers))
        alone.load_state_dict(probe.state_dict(), assign=True)
        return alone

    def _describe(self) -> dict[str, Any]:
        """Return further entries of config.json: names of the classes, and the source of a lone probe's features."""
        names = {str(label): name for label, name in sorted(self.train_data.class_names.items())}
        entries: dict[str, Any] = {"classes": names} if names else {}
        if self.encoder is None:
            entries["features_of"] = self.recipe.model_dump(mode="json", include={"model", "sizes"})
        return entries


def add_frame(images: Tensor, right: Tensor) -> Tensor:
    """Frame images (B, 3, S, S): green where `right`, (B,) bool, is true, else red."""
    side = images.shape[-1]
    width = max(side // 16, 1)
    colors = torch.where(right[:, None], images.new_tensor(RIGHT), images.new_tensor(WRONG))
    sheet = colors[:, :, None, None].repeat(1, 1, side + 2 * width, side + 2 * width)
    sheet[:, :, width:-width, width:-width] = images
    return sheet


def _known_features(recipe: ProbeRecipe) -> "tuple[FeatureSource, list[str]]":
    """Open the source of the recipe's features, without weights that would be downloaded; return it and assumptions."""
    from var.features.sources import EncoderFeatures, VARFeatures, baseline, load_features

    name, sizes = own_name(recipe.model), recipe.sizes
    with torch.device("meta"):
        if name in BASELINES:
            return baseline(name, sizes), []
        if name in AIM_RELEASED:
            return EncoderFeatures(Encoder(AIM_RELEASED[name].config).eval().requires_grad_(False)), []
        if name in RELEASED:
            vqvae = VQVAE(TokenizerConfig(scales=RELEASED[name].scales)).eval().requires_grad_(False)
            return VARFeatures(VAR(RELEASED[name]).eval().requires_grad_(False), vqvae), []
        if sizes is not None and not to_path(name, "model").exists() and name not in SHIPPED:
            assumed = f"model={name!r} does not exist: assumed an encoder of the recipe's sizes"
            return EncoderFeatures(Encoder(sizes).eval().requires_grad_(False)), [assumed]
    return load_features(name, sizes), []
