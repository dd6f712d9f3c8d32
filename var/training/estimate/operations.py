"""Operations of a step, and the memory that it keeps for the backward pass, counted on fake tensors.

These have shapes and types but no content: a forward and backward pass over them costs next to nothing.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from var.data.dataset import Batch
from var.training.rng import StepRNG
from var.training.stages.base import Outline, Phase, Stage


class Pass(NamedTuple):
    """Equal work of one phase in some of the steps: products of one type."""

    name: str  # of the phase
    flops: float  # a step, over all processes, forward and backward
    dtype: torch.dtype  # of the factors
    share: float  # of the run's steps that have it


class Work(NamedTuple):
    """Operations and memory of a run's steps."""

    passes: list[Pass]  # of one micro-batch
    kept: int  # bytes for the backward pass, in the phase that keeps most
    preparation: float  # FLOPs before the first step


def count_work(outline: Outline, micro: int, dtype: torch.dtype) -> Work:
    """Count in the first step of every kind, taken on a micro-batch of `micro` images as `PhaseRunner` does."""
    stage = outline.stage
    costs: dict[tuple[str, Hashable], _Cost] = {}
    shares: dict[tuple[str, float, torch.dtype], float] = defaultdict(float)
    preparation = 0.0
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in _all_networks(stage):
            _replace_by_fakes(network)
        if outline.to_prepare:
            with _Products() as products:
                outline.prepare(micro)
            preparation = products.flops.total() * outline.to_prepare / micro
        content = torch.empty(micro, *outline.sample.shape, dtype=outline.sample.dtype)
        batch = Batch(content, torch.zeros(micro, dtype=torch.long), [], [])
        for phase, before in zip(stage.phases, (None, *stage.phases), strict=False):
            kinds = [phase.kind(step) for step in range(phase.start_step, stage.steps)]
            for kind, number in Counter(kinds).items():
                step = phase.start_step + kinds.index(kind)
                carry = costs[before.name, before.kind(step)].carry if before else None
                cost = costs[phase.name, kind] = _measure(stage, phase, batch, step, carry, dtype)
                for product, flops in cost.flops.items():
                    shares[phase.name, flops, product] += number / stage.steps
    passes = [Pass(*same, share) for same, share in shares.items()]
    return Work(passes, max(cost.kept for cost in costs.values()), preparation)


def _replace_by_fakes(network: nn.Module) -> None:
    """Replace tensors on the meta device by fake ones on the CPU, which autocast supports."""
    for part in network.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            fake = torch.empty_like(parameter, device="cpu")
            setattr(part, name, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty_like(buffer, device="cpu"))


def _all_networks(stage: Stage[Any]) -> list[nn.Module]:
    return [*(phase.model for phase in stage.phases), *stage.frozen.values()]


class _Cost(NamedTuple):
    """Operations and memory of a phase on one micro-batch."""

    flops: Mapping[torch.dtype, int]  # by the type of the factors, forward and backward
    kept: int  # bytes for the backward pass, without parameters
    carry: Any  # for the next phase


def _measure(stage: Stage[Any], phase: Phase, batch: Batch, step: int, carry: Any, dtype: torch.dtype) -> _Cost:
    parameters = [parameter for network in _all_networks(stage) for parameter in network.parameters()]
    weights = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}  # by storage; the references keep an address from being used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    indices = range(len(batch.labels))
    rng = StepRNG(0, step, len(indices), indices, torch.device("cpu"))
    with _Products() as products:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            losses = phase.loss(phase.model.train(), batch, rng, carry)
        losses.total.backward()
    size = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in weights)
    return _Cost(products.flops, size, losses.carry)


class _Products(TorchDispatchMode):
    """Count the operations of products inside, by the type of the factors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type its modes
        self.flops: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        count = _FLOPS.get(function.overloadpacket)
        if count is not None:
            self.flops[args[0].dtype] += count(*args, **(kwargs or {}), out_val=result)
        return result


def attention_flops(query: torch.Size, key: torch.Size, products: int) -> int:
    """Return the FLOPs of `products` matrix products of attention; query (B, H, L, D / H), key (B, H, T, D / H)."""
    return 2 * products * query.numel() * key[2]


# Torch's own table lacks the operations that attention dispatches to on a CPU.
_FLOPS: Mapping[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: attention_flops(
        q.shape, k.shape, 2
    ),
    # The kernel does five products, recomputing the first; the gradient itself needs four.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, *_, **__: attention_flops(q.shape, k.shape, 4)
    ),
}
