"""Training steps as the trainer takes them: loss under autocast, backward pass, clipping, AdamW.

B batch, L tokens of all scales, S side of the images in pixels.
"""

from collections.abc import Callable
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizer.vqvae import VQVAE
from var.bench.sizes import VARSizes
from var.data.config import DataConfig
from var.data.dataset import Batch
from var.training.config import OptimizerConfig
from var.training.distributed import build_accelerator
from var.training.estimate.images import Images
from var.training.phase_runner import PhaseRunner
from var.training.rng import StepRNG
from var.training.stages.base import Stage
from var.training.stages.tokenizer import Networks, TokenizerRecipe, TokenizerStage
from var.training.stages.var import VARRecipe, VARStage
from var.training.stages.var import VARSizes as RecipeSizes

STEPS = 10**6  # of the run whose steps these are, for its schedule


def transformer_step(
    sizes: VARSizes, batch: int, dtype: torch.dtype, device: torch.device, compiled: bool
) -> Callable[[], object]:
    """Build a step of stage `var` on random tokens, as they come from a token cache."""
    given = {field.name: getattr(sizes.transformer, field.name) for field in fields(RecipeSizes)}
    keys = _keys(batch, dtype, compiled)
    recipe = VARRecipe(**keys, stage="var", tokenizer=Path("random"), model=RecipeSizes(**given))
    data = Images(classes=sizes.transformer.num_classes).stand_in(recipe.data, sizes.tokenizer.image_side)
    vqvae = VQVAE(sizes.tokenizer).eval().requires_grad_(False)
    tokens = torch.randint(sizes.tokenizer.vocab_size, (batch, vqvae.scales.total))
    return _step(VARStage(recipe, vqvae, data, data), tokens, device)


def tokenizer_step(
    sizes: VARSizes, batch: int, dtype: torch.dtype, device: torch.device, compiled: bool
) -> Callable[[], object]:
    """Build a step of stage `tokenizer` on random images, with losses on pixels and codewords alone."""
    recipe = TokenizerRecipe(**_keys(batch, dtype, compiled), stage="tokenizer", model=sizes.tokenizer)
    side = sizes.tokenizer.image_side
    data = Images(classes=1).stand_in(recipe.data, side)
    images = torch.rand(batch, 3, side, side) * 2 - 1
    return _step(TokenizerStage(recipe, Networks(None, None, None), data, data), images, device)


def _keys(batch: int, dtype: torch.dtype, compiled: bool) -> dict[str, Any]:
    """Return what the recipes of both stages share; nothing is read from these paths or written there."""
    return {
        "output": "bench",
        "data": DataConfig(source="random"),
        "batch_size": batch,
        "steps": STEPS,
        "optimizer": OptimizerConfig(lr=1e-4),
        "precision": str(dtype).removeprefix("torch."),
        "compile": compiled,
    }


def _step(stage: Stage[Any], content: Tensor, device: torch.device) -> Callable[[], object]:
    accelerator = build_accelerator(stage.recipe, device)
    stage.to(accelerator.device)
    stage.set_trained()
    (phase,) = stage.phases
    runner = PhaseRunner(phase, stage.recipe, accelerator, sharded=False)
    content = content.to(accelerator.device)
    labels = torch.zeros(len(content), dtype=torch.long, device=accelerator.device)
    batch, indices, steps = Batch(content, labels, [], []), range(len(content)), count()

    def step() -> None:
        rng = StepRNG(0, next(steps), len(indices), indices, accelerator.device)
        result = runner.step([batch], [rng], [None], STEPS)
        stage.after_step(rng, result.carries, accelerator.reduce)

    return step
