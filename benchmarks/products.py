"""What the matrix products of a piece of work would take at the speed that one large product reaches."""

import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = 4096  # of the matrices whose product sets the speed
IN_A_ROW = 3  # of these products, the fastest counts

aten = torch.ops.aten


def attention_forward(q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    """FLOPs of the scores and of the weighted sum of values; q (B, H, L, D / H), k (B, H, T, D / H)."""
    return 4 * q.numel() * k[2]


def attention_backward(_: torch.Size, q: torch.Size, k: torch.Size, *__: object, **___: object) -> int:
    """FLOPs of the gradients, and of the scores, which are computed again."""
    return 10 * q.numel() * k[2]


# The counter knows the attention kernels of GPUs only.
CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def counted(action: Callable[[], object]) -> Mapping[object, int]:
    """FLOPs of the products of a call, by operator; not through a compiler, which hides them."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        action()
    counts: Mapping[object, int] = counter.get_flop_counts()["Global"]
    return counts


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Time of one call, until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large square matrices."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    return 2 * SIDE**3 / min(seconds(lambda: a @ b, device) for _ in range(IN_A_ROW))
