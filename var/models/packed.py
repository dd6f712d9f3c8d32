"""Weights that lie as oneDNN reads them on x86 CPUs: linear maps of a transformer's blocks, a tokenizer's convolutions.

The plain weight of a linear map is laid out anew in every product, which takes longer than the product itself for the
few tokens of a coarse scale.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.models.transformer import AdaLNBlock
from var.utils.device import cpu_capabilities, has_fast_bfloat16

LINEAR_MAPS = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")  # of a block


class PackedLinear(nn.Module):
    """A linear map whose weight is laid out for products without gradients; it computes what the layer packed does.

    Args:
        layer: on a CPU, in a type that `can_pack` says True of.
        gelu: approximation of a GELU that is computed within the product, before the sums are rounded; None: no GELU.
    """

    def __init__(self, layer: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.gelu = gelu
        self.kind, self.trained = type(layer), layer.weight.requires_grad  # that `unpack` gives back
        self.weight = _lay_out(layer.weight.detach())
        self.bias: nn.Parameter | None = layer.bias
        self.numel = layer.weight.numel()  # of the numbers that are no parameters
        self.eval()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out); a bias that is given, as to QKV, is in place of the layer's own.

        Raises InputError: gradients would be needed, which these products do not have.
        """
        bias = self.bias if bias is None else bias
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            raise InputError("a packed model has no gradients: call it in torch.inference_mode(), or unpack it first")
        name, approximation = ("none", "") if self.gelu is None else ("gelu", self.gelu)
        x = x.to(self.weight.dtype)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, bias, name, [], approximation)
        return y

    def unpack(self) -> nn.Linear:
        """Return the layer that was packed, with the same numbers."""
        weight = self.weight.to_dense()
        layer = self.kind(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=self.trained)
        layer.register_parameter("bias", self.bias)
        return layer.eval()

    def extra_repr(self) -> str:
        """Return the sizes, as nn.Linear shows them."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, bias={self.bias is not None}"

    def train(self, mode: bool = True) -> "PackedLinear":
        """Raise InputError for mode=True: these products have no gradients."""
        if mode:
            raise InputError("a packed layer cannot be trained: call unpack() first")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedLinear":
        raise InputError("a packed layer is not moved or cast: call unpack() first")

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write what the layer that was packed would."""
        destination[f"{prefix}weight"] = self.weight.to_dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied and pickled: the plain weight in place of the packed one, which can be neither."""
        return {**self.__dict__, "weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {**state, "weight": _lay_out(state["weight"])}
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch does not type it


def _lay_out(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def can_pack(weight: Tensor) -> bool:
    """Return whether this device and build of torch have products of packed weights of this type."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(bfloat16)


def pack(blocks: Iterable[AdaLNBlock]) -> None:
    """Pack the linear maps of attention and MLP in place, where that can be done; those in int8 are left."""
    fuse = gains_from_fused_gelu()
    for block in blocks:
        for name in LINEAR_MAPS:
            layer = block.get_submodule(name)
            if isinstance(layer, nn.Linear) and can_pack(layer.weight):
                activation = block.mlp.activation if fuse and name == "mlp.up" else None
                gelu = activation.approximate if isinstance(activation, nn.GELU) else None
                block.set_submodule(name, PackedLinear(layer, gelu))
                if gelu is not None:
                    block.mlp.activation = nn.Identity()


def gains_from_fused_gelu() -> bool:
    """Return whether a GELU costs less within oneDNN's product than after it: with AVX512; with AVX2 it costs more."""
    return bool(cpu_capabilities().get("avx512_f"))


def pack_tokenizer(vqvae: VQVAE) -> None:
    """Lay out the convolutions of encoder and decoder, in place, with channels last where they gain from it.

    That is in bfloat16 on CPUs with instructions for it; elsewhere nothing is done. The weights stay parameters.
    """
    device = vqvae.quant_conv.weight.device
    if device.type == "cpu" and vqvae.dtype == torch.bfloat16 and has_fast_bfloat16(device):
        for network in (vqvae.encoder, vqvae.decoder):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch does not type it


def is_packed(blocks: Iterable[AdaLNBlock]) -> bool:
    """Return whether any linear map of these blocks is packed."""
    return any(isinstance(part, PackedLinear) for block in blocks for part in block.modules())


def unpack(blocks: Iterable[AdaLNBlock]) -> None:
    """Undo `pack`: the weights are parameters again, the same to the last bit."""
    for block in blocks:
        for name in LINEAR_MAPS:
            layer = block.get_submodule(name)
            if isinstance(layer, PackedLinear):
                block.set_submodule(name, layer.unpack())
                if layer.gelu is not None:
                    block.mlp.activation = nn.GELU(layer.gelu)
