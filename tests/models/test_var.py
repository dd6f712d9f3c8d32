"""VAR: one network for training and for generation."""

import math
from functools import partial

import pytest
import torch
from helpers import (
    CLASSES,
    LATENT,
    SIDES,
    VOCAB,
    largest_difference,
    normal,
    random_tokens,
    refused,
    small_quantizer,
    small_var,
)
from torch import Tensor, nn

from tokenizer.scales import SCALES_512, Scales
from var.models.conditional import gate_init
from var.models.masks import Spans, spans
from var.models.token_losses import head_losses, token_losses
from var.models.var import VAR, VARConfig

SCALES = Scales(SIDES)
VARIANTS = pytest.mark.parametrize(
    "variant", [{}, {"shared_adaln": True}, {"qk_norm": False}, {"depth": 3, "heads": 2}], ids=str
)


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    """Labels, the null class among them, and features that tokens could have made."""
    features = small_quantizer().teacher_forcing_input(random_tokens(batch, SCALES.total)).detach()
    return torch.arange(batch) % CLASSES + (CLASSES + 1 - batch), features


def cached_logits(model: VAR, labels: Tensor, features: Tensor) -> Tensor:
    """Drive the generation step over the scales with given features."""
    condition, cache = model.condition(labels), model.new_cache(len(labels))
    padded = torch.cat([features.new_zeros(len(labels), 1, LATENT), features], dim=1)
    parts = [model.step(k, part if k else None, condition, cache) for k, part in enumerate(SCALES.split(padded))]
    return torch.cat(parts, dim=1)


@VARIANTS
@torch.no_grad()
def test_cached_generation_equals_the_masked_forward(variant: dict[str, int]) -> None:
    model = small_var(**variant)
    labels, features = inputs()
    assert CLASSES in labels
    masked = model(labels, features)
    assert masked.shape == (3, SCALES.total, VOCAB)
    assert masked.std() > 0.1
    assert largest_difference(cached_logits(model, labels, features), masked) < 1e-4


@torch.no_grad()
def test_cached_generation_equals_the_masked_forward_on_the_released_ladder() -> None:
    model = small_var(scales=(1, 2, 3, 4, 5, 6, 8))
    features = normal(1, model.scales.total - 1, LATENT)
    condition, cache = model.condition(torch.tensor([2])), model.new_cache(1)
    padded = torch.cat([features[:, :1], features], dim=1)
    masked = model(torch.tensor([2]), features)
    for k, (part, expected) in enumerate(zip(model.scales.split(padded), model.scales.split(masked), strict=True)):
        assert largest_difference(model.step(k, part if k else None, condition, cache), expected) < 1e-4


@VARIANTS
@pytest.mark.parametrize("scale", [1, 2])
@torch.no_grad()
def test_logits_see_their_own_scale_and_coarser_ones_only(variant: dict[str, int], scale: int) -> None:
    model = small_var(**variant)
    labels, features = inputs()
    start, stop = SCALES.offsets[scale : scale + 2]
    changed = features.clone()
    changed[:, stop - 2] += 1  # the input of the scale's last token; inputs begin at token 1
    before, after = model(labels, features), model(labels, changed)
    assert torch.equal(before[:, :start], after[:, :start])
    moved = (before[:, start:] - after[:, start:]).abs().amax(dim=-1)
    assert (moved > 1e-6).all()  # every token of this scale and of the finer ones


@torch.no_grad()
def test_rows_of_a_batch_do_not_mix() -> None:
    model = small_var()
    labels, features = inputs()
    other = features.clone()
    other[1:] += 1
    assert torch.equal(model(labels, features)[0], model(labels, other)[0])


@torch.no_grad()
def test_every_label_and_the_null_class_have_their_own_logits() -> None:
    model = small_var()
    labels = torch.arange(CLASSES + 1)
    assert model.class_embedding.num_embeddings == CLASSES + 1
    logits = model(labels, torch.zeros(CLASSES + 1, SCALES.total - 1, LATENT))
    assert torch.cdist(logits.flatten(1), logits.flatten(1)).add(torch.eye(CLASSES + 1)).min() > 0.1


@torch.no_grad()
def test_position_and_level_are_added_where_they_belong() -> None:
    model = small_var()
    labels, features = inputs()
    before = model(labels, features)
    model.level_embedding.weight[2] += 1
    after = model(labels, features)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])
    model.position[:, 3] += normal(32)
    last = model(labels, features)
    assert torch.equal(after[:, :1], last[:, :1])
    assert not torch.equal(after[:, 1:5], last[:, 1:5])


def test_another_number_of_inputs_is_refused() -> None:
    labels, features = inputs()
    with refused("(3, 19, 8)", "(3, 20, 8) needed"):
        small_var()(labels, features[:, 1:])


@torch.no_grad()
def test_arguments_are_not_written_to() -> None:
    labels, features = inputs()
    kept = labels.clone(), features.clone()
    small_var()(labels, features)
    cached_logits(small_var(), labels, features)
    assert torch.equal(labels, kept[0])
    assert torch.equal(features, kept[1])


def test_training_pass_reaches_every_parameter() -> None:
    for variant in ({}, {"shared_adaln": True}):
        model = small_var(**variant)
        model(*inputs()).square().mean().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_stochastic_depth_drops_what_the_noise_says_in_any_mode() -> None:
    model = small_var(depth=4, width=32, drop_path=0.6)
    assert model.config.drop_rates == pytest.approx((0, 0.2, 0.4, 0.6))
    labels, features = inputs()
    whole = model(labels, features)
    assert torch.equal(model.train()(labels, features), whole)  # dropping is asked for by noise alone
    noise = torch.full((3, 8), 0.9)
    noise[1, 5] = 0.39  # the MLP of block 2
    before, after = model(labels, features, torch.full((3, 8), 0.9)), model(labels, features, noise)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])
    assert not torch.equal(before, whole)  # what is kept is scaled up
    model.blocks[2].mlp.down.weight.zero_()
    model.blocks[2].mlp.down.bias.zero_()
    assert torch.equal(model(labels, features, torch.full((3, 8), 0.9))[1], after[1])


@torch.no_grad()
def test_at_rate_0_noise_changes_nothing() -> None:
    model, (labels, features) = small_var(drop_path=0.0), inputs()
    assert torch.equal(model(labels, features, torch.zeros(3, 4)), model(labels, features))


def test_noise_for_another_batch_or_depth_is_refused() -> None:
    for shape in ((2, 4), (3, 2)):
        with refused(f"path noise of shape {shape}", "(3, 4) needed"):
            small_var()(*inputs(), torch.zeros(shape))


def loss_and_gradients(model: VAR, **options: bool) -> tuple[Tensor, list[Tensor], int]:
    """The logits, the gradients, and the bytes that the forward pass keeps for the backward pass besides weights."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noise = torch.rand(3, 2 * model.config.depth, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(*inputs(), noise, **options)
    return (
        logits,
        list(torch.autograd.grad(logits.square().mean(), list(model.parameters()))),
        (sum(size for pointer, size in kept.items() if pointer not in weights)),
    )


@pytest.mark.parametrize("variant", [{}, {"shared_adaln": True}, {"qk_norm": False}], ids=str)
def test_checkpointing_gives_the_same_bits_from_less_memory(variant: dict[str, bool]) -> None:
    model = small_var(depth=4, width=32, drop_path=0.5, **variant)
    logits, gradients, kept = loss_and_gradients(model)
    logits_again, gradients_again, kept_again = loss_and_gradients(model, checkpoint=True)
    assert torch.equal(logits, logits_again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again, strict=True))
    block_inputs = 4 * 4 * 3 * SCALES.total * 32  # float32, 4 blocks, (3, L, 32): kept by the blocks, not by the hooks
    assert kept_again + block_inputs < 0.5 * kept


@torch.no_grad()
def test_spans_and_dense_mask_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (labels, features) = small_var(), inputs()
    dense = model(labels, features)
    seen: list[Spans] = []
    monkeypatch.setattr("var.models.var.fastest", lambda *args: seen.append(spans(*args)) or seen[-1])
    assert largest_difference(model(labels, features), dense) < 1e-5
    assert len(seen[0].bounds) > 1


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_read_from_the_head_in_parts_are_those_of_the_logits(dtype: torch.dtype, checkpoint: bool) -> None:
    model, (labels, features), tokens = small_var(), inputs(), random_tokens(3, SCALES.total)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        expected = token_losses(model(labels, features), tokens)
        read = partial(head_losses, tokens=tokens, chunk=10 * VOCAB)
        found = model(labels, features, checkpoint=checkpoint, read=read)
    assert torch.allclose(found.loss, expected.loss, rtol=1e-5)
    assert found.loss.dtype == torch.float32
    assert torch.equal(found.accuracy, expected.accuracy)
    losses = (found.loss.mean(), expected.loss.mean())
    for ours, theirs in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in losses), strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2 * theirs.abs().max()
        assert largest_difference(ours, theirs) <= tolerance


@pytest.mark.parametrize("shared", [False, True])
def test_initial_weights(shared: bool) -> None:
    torch.manual_seed(0)
    depth, width = 4, 64
    sizes = {"depth": depth, "width": width, "vocab_size": 512, "num_classes": 99, "latent_dim": 16}
    model = VAR(VARConfig(**sizes, scales=(1, 2, 4), shared_adaln=shared))
    std = math.sqrt(1 / (3 * width))

    def has_std(tensor: Tensor, expected: float) -> bool:
        spread = tensor.float().std().item()
        return abs(spread / expected - 1) < 5 / math.sqrt(2 * tensor.numel())

    for tensor in (model.class_embedding.weight, model.start_position, model.position, model.level_embedding.weight):
        assert has_std(tensor, std)
    assert has_std(model.feature_in.weight, std)
    assert has_std(model.head.weight, 0.02 * std)
    assert has_std(model.head_adaln.linear.weight, 0.5 * std)
    if shared:  # the layer of all blocks is drawn like any other; the blocks' offsets have the factors
        assert has_std(model.shared_adaln.linear.weight, std)
        offsets = torch.stack([block.adaln.offset for block in model.blocks]) * math.sqrt(width)  # (depth, 6, D)
        assert has_std(offsets[:, :2], 1e-3)
        assert has_std(offsets[:, 2:], 0.5)
    for layer in [] if shared else [block.adaln for block in model.blocks]:
        gates, others = layer.linear.weight.split([2 * width, 4 * width])
        assert has_std(gates, 1e-3 * std)
        assert has_std(others, 0.5 * std)
    for block in model.blocks:
        assert has_std(block.attention.qkv.weight, std)
        assert has_std(block.attention.proj.weight, std / math.sqrt(2 * depth))
        assert has_std(block.mlp.up.weight, std)
        assert has_std(block.mlp.down.weight, std / math.sqrt(2 * depth))
        assert block.attention.log_scale.exp().tolist() == pytest.approx([4.0] * depth)
        assert not block.attention.q_bias.any()
        assert not block.attention.v_bias.any()
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)


@pytest.mark.parametrize(("depth", "factor"), [(16, 1e-3), (20, 1e-3), (24, 1e-4), (30, 1e-5), (36, 5e-6)])
def test_initial_gates_of_the_released_sizes(depth: int, factor: float) -> None:
    assert gate_init(depth) == factor


@pytest.mark.parametrize(
    ("depth", "millions"), [(16, 310), (20, 600), (24, 1030), (30, 2010), (36, 2350)], ids=lambda value: str(value)
)
def test_parameter_counts_of_the_released_sizes(depth: int, millions: int) -> None:
    large = {"scales": SCALES_512.sides, "shared_adaln": True} if depth == 36 else {}
    with torch.device("meta"):
        model = VAR(VARConfig(depth=depth, **large))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_sizes_follow_from_the_depth() -> None:
    config = VARConfig(depth=20)
    assert (config.width, config.heads) == (1280, 20)
    assert config.drop_rates == pytest.approx([0.1 * 20 / 24 * i / 19 for i in range(20)])
    assert VARConfig(depth=2, width=96, heads=3, drop_path=0.3).drop_rates == (0.0, 0.3)
    assert VARConfig(**config.to_dict()) == config
    assert VARConfig(scales=[1, 2]).scales == (1, 2)  # type: ignore[arg-type]  # as JSON gives it


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"depth": 0}, ("depth=0", "at least 1")),
        ({"vocab_size": -1}, ("vocab_size=-1",)),
        ({"latent_dim": 0}, ("latent_dim=0",)),
        ({"num_classes": 0}, ("num_classes=0",)),
        ({"scales": (2, 4)}, ("[2, 4]", "begin with 1")),
        ({"scales": (1, 1)}, ("[1, 1]", "increasing")),
        ({"width": 100, "heads": 3}, ("width=100", "heads=3")),
        ({"width": -64}, ("width=-64",)),
        ({"mlp_ratio": 0.0}, ("mlp_ratio=0.0", "positive")),
        ({"drop_path": 1.0}, ("drop_path=1.0", "[0, 1)")),
        ({"drop_path": -0.1}, ("drop_path=-0.1",)),
    ],
)
def test_sizes_that_cannot_work_are_refused(change: dict[str, object], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        VARConfig(**change)


@torch.no_grad()
def test_bfloat16_keeps_the_head_exact_and_the_logits_close() -> None:
    model, (labels, features) = small_var(), inputs()
    exact = model(labels, features)
    head = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("head")}
    assert len(head) == 4
    assert model.cast(torch.bfloat16) is model
    for name, value in model.state_dict().items():
        assert value.dtype == (torch.float32 if name in head else torch.bfloat16), name
        assert name not in head or torch.equal(value, head[name]), f"{name} was rounded"
    logits = model(labels, features)
    assert logits.dtype == torch.float32
    assert largest_difference(logits, exact) < 0.05 * exact.abs().max()
    assert largest_difference(cached_logits(model, labels, features), logits) < 0.05 * exact.abs().max()


@torch.no_grad()
def test_autocast_leaves_the_head_in_float32() -> None:
    model, (labels, features) = small_var(), inputs()
    seen: list[torch.dtype] = []
    handle = model.head.register_forward_hook(lambda _, args, out: seen.extend((args[0].dtype, out.dtype)))
    exact = model(labels, features)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(labels, features)
    handle.remove()
    assert seen == [torch.float32] * 4
    assert 0 < largest_difference(logits, exact) < 0.05 * exact.abs().max()


def test_derived_buffers_are_not_stored_and_follow_the_device() -> None:
    model = small_var()
    assert not {"mask", "levels"} & model.state_dict().keys()
    with torch.device("meta"):
        empty = VAR(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    labels, features = inputs()
    assert torch.equal(empty.eval()(labels, features), model(labels, features))
