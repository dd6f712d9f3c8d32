"""Operations of a piece of work, counted while it runs: those of matrix products and those of convolutions."""

from collections.abc import Callable
from math import prod
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

# The products of `var.models.packed`.
PACKED = {torch.ops.mkldnn._linear_pointwise: lambda x, *_, out_shape: 2 * prod(x) * out_shape[-1]}

# The products of `var.models.int8`.
INT8 = {torch.ops.quantized.linear_dynamic: lambda x, *_, out_shape: 2 * prod(x) * out_shape[-1]}


class Operations(NamedTuple):
    """FLOPs, a multiplication and an addition being two."""

    products: int  # of matrices in floating point, those of attention among them
    convolutions: int
    int8_products: int = 0


def count_operations(action: Callable[[], object]) -> Operations:
    """Run the action once, without the compiler, and count the FLOPs that it executes, backward passes included."""
    known = CPU_ATTENTION | PACKED | INT8
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=known) as mode:
        action()
    counts = mode.get_flop_counts()["Global"]
    convolutions = sum(count for operator, count in counts.items() if "conv" in str(operator))
    int8 = sum(counts.get(operator, 0) for operator in INT8)
    return Operations(sum(counts.values()) - convolutions - int8, convolutions, int8)
