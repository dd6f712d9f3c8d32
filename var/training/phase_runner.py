"""One phase of a stage on all processes: its model and optimizer, replicated or sharded, and their steps."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch._functorch.config
from accelerate import Accelerator
from torch import Tensor, nn

from var.data.dataset import Batch
from var.sampling.logits import mix_seed
from var.training.config import Recipe
from var.training.distributed import (
    full_tensor,
    load_model_state,
    load_optimizer_state,
    model_state,
    no_sync,
    optimizer_state,
    shard,
)
from var.training.optimizer import build_optimizer
from var.training.rng import StepRNG, Stream
from var.training.schedule import lr_factor, weight_decay
from var.training.stages.base import Phase


class StepResult(NamedTuple):
    """Result of a phase's step."""

    logs: dict[str, Tensor]  # this process's share of the means over the batch: their sum over processes is the mean
    carries: list[Any]  # one a micro-batch, for the next phase
    norm: Tensor  # of the whole batch's gradient, before clipping
    lr: Tensor
    finite: bool  # all logs and gradients of all processes; if not, nothing was changed


class PhaseRunner:
    """One phase's model and optimizer; `phase.model` stays the plain model, to average, validate and save.

    `sharded` shards its parameters over the processes, if the phase says which; else every process has all of them.
    """

    def __init__(self, phase: Phase, recipe: Recipe, accelerator: Accelerator, sharded: bool) -> None:
        self.phase = phase
        self.recipe = recipe
        self.accelerator = accelerator
        sharded = sharded and bool(phase.sharded)
        if sharded:
            shard(phase.model, phase.sharded)
        self.optimizer = build_optimizer(phase.model, phase.optimizer, phase.never_decayed)
        self.model = phase.model
        if recipe.compile:
            torch._functorch.config.donated_buffer = False  # the adaptive weight walks the graph twice
            # Blocks share what is compiled for one of them: a quarter of the time that the whole model takes.
            for name in phase.compiled:
                phase.model.get_submodule(name).compile()
        if not sharded:
            self.model, self.optimizer = accelerator.prepare(self.model, self.optimizer)

    def step(self, batches: Sequence[Batch], rngs: Sequence[StepRNG], carries: Sequence[Any], steps: int) -> StepResult:
        """Take one of `steps` steps on this process's micro-batches, whose gradients add up to the whole batch's."""
        lr = self.phase.optimizer.lr * lr_factor(rngs[0].step, steps, self.recipe.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
            if group["decays"]:
                group["weight_decay"] = weight_decay(rngs[0].step, steps, self.phase.optimizer)
        self.model.train()
        logs: dict[str, Tensor] = {}
        carried: list[Any] = []
        for i, (batch, rng, carry) in enumerate(zip(batches, rngs, carries, strict=True)):
            torch.manual_seed(mix_seed(Stream.MODULES, rng.seed, rng.step, self.accelerator.process_index, i))
            share = len(rng.indices) / rng.batch_size
            with nullcontext() if i == len(batches) - 1 else no_sync(self.phase.model, self.model):
                with self.accelerator.autocast():
                    losses = self.phase.loss(self.model, batch, rng, carry)
                # Processes average their gradients, so this sums up to the mean over the whole batch.
                self.accelerator.backward(losses.total * (share * self.accelerator.num_processes))
            logs = {name: logs.get(name, 0) + value * share for name, value in losses.logs.items()}
            carried.append(losses.carry)
        norm, finite = self._finish(logs)
        return StepResult(logs, carried, norm, torch.tensor(lr), finite)

    def _finish(self, logs: Mapping[str, Tensor]) -> tuple[Tensor, bool]:
        """Clip the gradient and step, unless a number is not finite on any process."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        clip = self.phase.optimizer.grad_clip or float("inf")
        norm = full_tensor(nn.utils.clip_grad_norm_(self.phase.model.parameters(), clip))
        numbers = torch.stack([norm, *(value.float().to(norm.device) for value in logs.values())])
        sane = torch.isfinite(numbers).all()
        finite = bool(self.accelerator.reduce((~sane).float()) == 0)
        if finite:
            self.optimizer.step()
        elif scaler is not None:
            scaler.update()  # to a lower scale
        self.optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def state_dict(self) -> dict[str, Any]:
        """Return the state on the CPU, under plain names on any number of processes; every process must call this."""
        model = self.phase.model
        return {"model": model_state(model), "optimizer": optimizer_state(model, self.optimizer)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`, on any number of processes.

        Raises KeyError, ValueError: it is of another model.
        """
        load_model_state(self.phase.model, state["model"])
        load_optimizer_state(self.phase.model, self.optimizer, state["optimizer"])
