"""Linear maps of a transformer's blocks whose weights lie as oneDNN's products on x86 CPUs read them.

A plain weight is laid out anew in every product, which takes longer than the product itself for the few tokens of a
coarse scale.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tokenizer.errors import InputError
from var.models.transformer import AdaLNBlock

LINEAR_MAPS = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")  # of a block


class PackedLinear(nn.Module):
    """A linear map whose weight is laid out for products without gradients; it computes what the layer packed does.

    Args:
        layer: on a CPU, in a type that `can_pack` says True of.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
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
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, bias, "none", [], "")
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
    for block in blocks:
        for name in LINEAR_MAPS:
            layer = block.get_submodule(name)
            if isinstance(layer, nn.Linear) and can_pack(layer.weight):
                block.set_submodule(name, PackedLinear(layer))


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
