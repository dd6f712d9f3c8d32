"""The linear maps of a VAR's blocks in int8, for CPUs: weights are rounded once, activations as they come.

B batch.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.models.transformer import AdaLNBlock
from var.utils.device import cpu_capabilities

LARGEST = 127  # of the integers that stand for weights, positive and negative


class Int8Linear(nn.Module):
    """A linear map whose weights are integers times a scale for each output; inputs are quantized sample by sample.

    Of each sample the numbers from the smallest to the largest, 0 included, are spread over 256 integers, or 128, see
    `saturates`. So a sample's result does not depend on the others in its batch.

    Args:
        weight: (out, in), as in nn.Linear.
        bias: (out,), kept in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.numel = weight.numel() + (0 if bias is None else bias.numel())
        self.packed = pack(weight.detach().float(), None if bias is None else bias.detach().float())
        self.reduce_range = saturates()  # as the kernels call 7 bits in place of 8
        self.eval()

    def forward(self, x: Tensor, bias: None = None) -> Tensor:
        """(B, L, in) -> (B, L, out), in the type of x; the bias is the layer's own, in place of a QKV too."""
        products = [torch.ops.quantized.linear_dynamic(each.float(), self.packed, self.reduce_range) for each in x]
        return torch.stack(products).to(x.dtype)

    def train(self, mode: bool = True) -> "Int8Linear":
        """Raise InputError for mode=True: integers have no gradients."""
        if mode:
            raise InputError("a model in int8 cannot be trained: load it with dtype float32 or bfloat16")
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Name the numbers, which are no parameters, in state_dict() too."""
        weight, bias = torch.ops.quantized.linear_unpack(self.packed)
        destination[f"{prefix}weight"], destination[f"{prefix}scale"] = weight.int_repr(), weight.q_per_channel_scales()
        if bias is not None:
            destination[f"{prefix}bias"] = bias


def pack(weight: Tensor, bias: Tensor | None) -> torch.ScriptObject:
    """Round a weight (out, in) to multiples of 1 / 127 of the largest in its row, in the layout that products read."""
    scale = weight.abs().amax(dim=1) / LARGEST  # (out,)
    scale = scale.where(scale > 0, 1)
    integers = (weight / scale[:, None]).round().to(torch.int8)
    with warnings.catch_warnings():  # the kernels take no other tensors than the quantized ones, which are deprecated
        warnings.filterwarnings("ignore", ".*quantized tensor creation functions", UserWarning)
        quantized = torch._make_per_channel_quantized_tensor(
            integers, scale.double(), torch.zeros(len(scale), dtype=torch.int64), axis=0
        )
    packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(quantized, bias)
    return packed


def saturates() -> bool:
    """Return whether activations have 7 bits in place of 8 on this processor.

    Without AVX512-VNNI, x86 adds pairs of products in 16 bits, too few for two of 255 * 127.
    """
    capabilities = cpu_capabilities()
    return bool(capabilities.get("avx2") and not capabilities.get("avx512_vnni"))


def quantize(block: AdaLNBlock) -> None:
    """Replace the linear maps of attention and MLP; what computes the modulation stays as it is."""
    attention = block.attention
    block.set_submodule("attention.qkv", Int8Linear(attention.qkv.weight, attention.qkv_bias()))
    attention.q_bias = attention.v_bias = None  # they are part of it now
    layers = {"attention.proj": attention.proj, "mlp.up": block.mlp.up, "mlp.down": block.mlp.down}
    for name, layer in layers.items():
        block.set_submodule(name, Int8Linear(layer.weight, layer.bias))
