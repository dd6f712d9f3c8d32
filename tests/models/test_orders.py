"""Orders of the cells of a grid."""

from itertools import permutations

import pytest
import torch

from var.models.orders import interleave_bits, sequence_order


def test_a_z_curve_of_four_by_four_goes_through_its_quarters() -> None:
    assert sequence_order("z-curve", 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_a_z_curve_of_another_side_is_that_of_the_larger_grid_without_what_is_outside() -> None:
    larger = [divmod(cell, 4) for cell in sequence_order("z-curve", 4).tolist()]
    inside = [3 * row + column for row, column in larger if row < 3 and column < 3]
    assert sequence_order("z-curve", 3).tolist() == inside == [0, 1, 3, 4, 2, 5, 6, 7, 8]


def test_a_spiral_of_four_by_four_goes_outwards_to_the_corner() -> None:
    inwards = [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4, 5, 6, 10, 9]
    assert sequence_order("spiral", 4).tolist() == inwards[::-1]


def test_codes_of_morton_have_the_bits_of_row_and_column_in_turn() -> None:
    rows, columns = torch.tensor([0b101, 0b000, 0b111]), torch.tensor([0b010, 0b111, 0b000])
    assert interleave_bits(rows, columns).tolist() == [0b100110, 0b010101, 0b101010]


@pytest.mark.parametrize("kind", ["raster", "spiral", "z-curve"])
def test_a_grid_of_one_cell(kind: str) -> None:
    assert sequence_order(kind, 1).tolist() == [0]  # type: ignore[arg-type]


def test_orders_are_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        orders = [
            sequence_order(kind, 3)  # type: ignore[arg-type]
            for kind in ("raster", "spiral", "checkerboard", "z-curve", "random")
        ]
    assert all(tuple(order.tolist()) in permutations(range(9)) for order in orders)
