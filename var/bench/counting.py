"""Operations of a piece of work, counted while it runs: those of matrix products and those of convolutions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from var.training.estimate.operations import attention_flops

aten = torch.ops.aten

# The counter knows the attention of GPUs only. As there, the backward pass computes the scores again: five products.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: attention_flops(q, k, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, *_, **__: attention_flops(q, k, 5)
    ),
}


class Operations(NamedTuple):
    """FLOPs, a multiplication and an addition being two."""

    products: int  # of matrices, those of attention among them
    convolutions: int


def count_operations(action: Callable[[], object]) -> Operations:
    """Run the action once, without the compiler, and count the FLOPs that it executes, backward passes included."""
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as mode:
        action()
    counts = mode.get_flop_counts()["Global"]
    convolutions = sum(count for operator, count in counts.items() if "conv" in str(operator))
    return Operations(sum(counts.values()) - convolutions, convolutions)
