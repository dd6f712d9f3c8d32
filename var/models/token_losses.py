"""Per-token cross-entropy and accuracy, pure functions for training and for evaluation.

B batch, L tokens of all scales, N = B * L, D width, V codebook size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tokenizer.scales import Scales

CHUNK = 2**24  # logits that `head_losses` holds at once, 64 MiB


class TokenLosses(NamedTuple):
    """Loss and accuracy of each token, (B, L)."""

    loss: Tensor  # cross-entropy in nats, with gradients to the logits
    accuracy: Tensor  # 1 where the token is the most probable one, else 0


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats of each of (B, L) tokens under (B, L, V) logits: (B, L) in the logits' type."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)


def token_losses(logits: Tensor, tokens: Tensor) -> TokenLosses:
    """Cross-entropy and accuracy of (B, L) tokens under (B, L, V) teacher-forced logits, in the logits' type."""
    loss = cross_entropy(logits, tokens)
    return TokenLosses(loss, (logits.detach().argmax(dim=-1) == tokens).to(loss.dtype))


def head_losses(head: nn.Linear, x: Tensor, tokens: Tensor, chunk: int = CHUNK) -> TokenLosses:
    """Cross-entropy and accuracy of (B, L) tokens under the logits head(x) of x (B, L, D), at most `chunk` at once.

    Where all of them are more, they are computed in parts, and those once more in the backward pass.
    """
    if tokens.numel() * head.out_features <= chunk:
        return token_losses(head(x), tokens)
    rows = max(1, chunk // head.out_features)
    parts: Any = _ChunkedLosses.apply  # torch does not type it
    loss, accuracy = parts(x.flatten(0, 1), head.weight, head.bias, tokens.flatten(), rows)
    return TokenLosses(loss.view_as(tokens), accuracy.view_as(tokens))


class _ChunkedLosses(torch.autograd.Function):
    """Losses and accuracy, (N,) each, of x (N, D), weight (V, D), bias (V,) and tokens (N,), `rows` at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        normalizer, picked, accuracy = (x.new_empty(len(x)) for _ in range(3))
        buffer = x.new_empty(min(rows, len(x)), len(weight))
        for i in range(0, len(x), rows):
            part = slice(i, i + rows)
            logits = torch.addmm(bias, x[part], weight.t(), out=buffer[: len(x[part])])  # (rows, V)
            picked[part] = logits.gather(1, tokens[part, None])[:, 0]
            highest, best = logits.max(dim=1)
            accuracy[part] = (best == tokens[part]).to(x.dtype)
            normalizer[part] = logits.sub_(highest[:, None]).exp_().sum(dim=1).log_() + highest  # log of sum of exp
        ctx.save_for_backward(x, weight, bias, tokens, normalizer)
        ctx.rows = rows
        ctx.mark_non_differentiable(accuracy)
        return normalizer - picked, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, tokens, normalizer = ctx.saved_tensors
        to_x, to_weight, to_bias = (
            torch.zeros_like(to) if needed else None
            for to, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False)
        )
        buffer = x.new_empty(min(ctx.rows, len(x)), len(weight))
        for i in range(0, len(x), ctx.rows):
            part = slice(i, i + ctx.rows)
            errors = torch.addmm(bias, x[part], weight.t(), out=buffer[: len(x[part])])  # (rows, V)
            errors.sub_(normalizer[part, None]).exp_()  # the softmax, from which 1 is taken at the token
            errors.scatter_add_(1, tokens[part, None], errors.new_full((1, 1), -1).expand(len(errors), 1))
            errors.mul_(gradient[part, None])
            if to_x is not None:
                torch.mm(errors, weight, out=to_x[part])
            if to_weight is not None:
                torch.addmm(to_weight, errors.t(), x[part], out=to_weight)
            if to_bias is not None:
                to_bias += errors.sum(dim=0)
        return to_x, to_weight, to_bias, None, None


def image_means(each: TokenLosses, scales: Scales) -> dict[str, Tensor]:
    """Means over each image's tokens, (B,): loss and accuracy, then those of every scale, as loss/4x4."""
    means = {name: values.mean(dim=1) for name, values in each._asdict().items()}
    for name, values in each._asdict().items():
        for side, part in zip(scales.sides, scales.split(values), strict=True):
            means[f"{name}/{side}x{side}"] = part.mean(dim=1)
    return means
