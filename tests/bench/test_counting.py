"""Operations: those of single layers in closed form, and where convolutions are counted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var.bench.counting import Operations, count_operations
from var.models.int8 import Int8Linear
from var.models.packed import PackedLinear, can_pack

LINEAR = 2 * 3 * 8 * 5  # three vectors of 8 numbers to 5
CONVOLUTION = 2 * 2 * 25 * 6 * 4 * 9  # two images of 5 x 5, 4 channels to 6, 3 x 3
ATTENTION = 2 * 2 * 3 * 6 * 7 * 8  # one of its products: two samples, three heads, 6 queries, 7 keys, width 8


def backward(output: Tensor) -> None:
    output.sum().backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_linear_layer(mode: type[torch.no_grad]) -> None:
    layer, x = nn.Linear(8, 5), torch.randn(3, 8)
    with mode():
        assert count_operations(lambda: layer(x)) == Operations(LINEAR, 0)


def test_a_convolution() -> None:
    layer, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)
    with torch.inference_mode():
        assert count_operations(lambda: layer(x)) == Operations(0, CONVOLUTION)


def test_backward_passes_have_twice_the_products() -> None:
    linear, x = nn.Linear(8, 5), torch.randn(3, 8, requires_grad=True)
    assert count_operations(lambda: backward(linear(x))) == Operations(3 * LINEAR, 0)
    convolution, images = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5, requires_grad=True)
    assert count_operations(lambda: backward(convolution(images))) == Operations(0, 3 * CONVOLUTION)


def test_attention_has_two_products_and_five_backward() -> None:
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (6, 7, 7))
    assert count_operations(lambda: F.scaled_dot_product_attention(q, k, v)) == Operations(2 * ATTENTION, 0)
    both = count_operations(lambda: backward(F.scaled_dot_product_attention(q, k, v)))
    assert both == Operations((2 + 5) * ATTENTION, 0)


def test_a_linear_layer_in_int8_is_counted_apart() -> None:
    layer, after, x = Int8Linear(torch.randn(5, 8), None), nn.Linear(5, 4), torch.randn(1, 3, 8)
    with torch.inference_mode():
        assert count_operations(lambda: after(layer(x))) == Operations(2 * 3 * 5 * 4, 0, LINEAR)


def test_what_is_compiled_is_counted_without_the_compiler() -> None:
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        compiled.append(graph)
        return graph.forward

    layer, x = nn.Linear(8, 5), torch.randn(3, 8)
    run = torch.compile(lambda x: layer(x), backend=backend)
    assert count_operations(lambda: run(x)) == Operations(LINEAR, 0)
    assert compiled == []
    run(x)
    assert len(compiled) == 1


def test_a_packed_linear_layer_counts_as_the_plain_one() -> None:
    layer = nn.Linear(24, 40)
    if not can_pack(layer.weight):
        pytest.skip("this build of torch packs no weights")
    x = torch.randn(2, 5, 24)
    with torch.inference_mode():
        assert count_operations(lambda: PackedLinear(layer)(x)) == Operations(2 * 10 * 24 * 40, 0)
        assert count_operations(lambda: layer(x)) == Operations(2 * 10 * 24 * 40, 0)
