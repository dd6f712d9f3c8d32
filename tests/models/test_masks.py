"""The block-causal mask, dense and in spans."""

import pytest
import torch
from torch import Tensor

from tokenizer.scales import SCALES_256, SCALES_512, Scales
from var.models.masks import Spans, block_causal, fastest, spans

LADDERS = pytest.mark.parametrize(
    "scales", [SCALES_256, SCALES_512, Scales((1,)), Scales((1, 2)), Scales((1, 2, 3, 5, 8)), Scales((2, 9))], ids=str
)


def dense(form: Spans, length: int) -> Tensor:
    """What the spans let through, as a mask."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, stop in form.bounds:
        mask[start:stop, :stop] = True
    stop = form.bounds[0][1]
    mask[:stop, :stop] = form.coarse
    return mask


def test_mask_lets_a_token_see_its_own_scale_and_the_coarser_ones() -> None:
    levels = [0] + [1] * 4 + [2] * 9
    expected = [[key <= query for key in levels] for query in levels]
    assert block_causal(Scales((1, 2, 3))).tolist() == expected


@LADDERS
def test_spans_are_the_dense_mask(scales: Scales) -> None:
    mask = block_causal(scales)
    form = spans(scales, mask)
    starts, stops = zip(*form.bounds, strict=True)
    assert starts == (0, *stops[:-1])
    assert stops[-1] == scales.total
    assert torch.equal(dense(form, scales.total), mask)


@pytest.mark.parametrize("scales", [SCALES_256, SCALES_512], ids=str)
def test_spans_are_few_and_skip_most_of_what_is_masked(scales: Scales) -> None:
    form = spans(scales, block_causal(scales))
    assert len(form.bounds) == 4
    computed = sum((stop - start) * stop for start, stop in form.bounds)
    hidden = scales.total**2 - int(block_causal(scales).sum())
    assert scales.total**2 - computed > 0.9 * hidden


def test_form_follows_the_size_on_the_cpu() -> None:
    large, small = block_causal(SCALES_256), block_causal(Scales((1, 2, 3, 5, 8)))
    assert isinstance(fastest(SCALES_256, large), Spans)
    assert fastest(Scales((1, 2, 3, 5, 8)), small) is small
