"""The loop over scales."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import CLASSES, SIDES, VOCAB, largest_difference, random_tokens, refused, small_var, small_vqvae
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sampling import models, sample
from torch import Tensor, nn

from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE
from var.models.var import VAR
from var.sampling.generate import ForcedTokens, generate, generate_batches, index_within_class
from var.sampling.logits import (
    RandomStreams,
    cfg_at_scale,
    classifier_free_guidance,
    filter_logits,
    gumbel_softmax,
    sample_tokens,
)
from var.sampling.params import SamplingParams


def rows_through(module: nn.Module) -> tuple[list[int], Callable[[], None]]:
    """Batch sizes of what goes into a module from now on, and how to stop counting."""
    rows: list[int] = []
    handle = module.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    return rows, handle.remove


@pytest.mark.parametrize("smooth", [False, True])
def test_contract(smooth: bool) -> None:
    out = sample([0, CLASSES, 2], smooth=smooth)
    assert out.tokens.shape == (3, 21)
    assert out.tokens.dtype == torch.int64
    assert out.tokens.min() >= 0
    assert out.tokens.max() < VOCAB
    assert out.images.shape == (3, 3, 8, 8)
    assert out.images.dtype == torch.float32
    assert out.images.abs().max() <= 1
    assert len(out.f_hats) == len(SIDES)


def test_images_are_the_decoded_tokens() -> None:
    vqvae, out = models()[1], sample([1, 2])
    assert largest_difference(out.images, vqvae.decode(out.tokens)) < 1e-5
    for k, f_hat in enumerate(out.f_hats):
        assert largest_difference(f_hat, vqvae.quantizer.decode(out.tokens, num_scales=k + 1)) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_tokens_follow_from_the_training_forward(cfg: float) -> None:
    """What the loop drew, drawn again from the masked network with teacher forcing and guidance by hand."""
    model, vqvae = models()
    labels = [1, 4]
    out = generate(model, vqvae, labels, SamplingParams(cfg, 5, 0.9), seed=3)
    features = vqvae.quantizer.teacher_forcing_input(out.tokens)
    conditional = model(torch.tensor(labels), features)
    unconditional = model(torch.full((2,), CLASSES), features)
    streams, scales = RandomStreams(3, labels, [0, 0]), Scales(SIDES)
    parts = zip(scales.split(conditional), scales.split(unconditional), scales.split(out.tokens), strict=True)
    for k, (with_label, without, tokens) in enumerate(parts):
        t = cfg * k / 2
        logits = filter_logits((1 + t) * with_label - t * without, 5, 0.9)
        assert torch.equal(sample_tokens(logits, streams.uniform(tokens.shape[1])), tokens)


@torch.no_grad()
def test_smooth_mode_mixes_codewords() -> None:
    model, vqvae = models()
    out = generate(model, vqvae, [1, 4], SamplingParams(0.0, 5, 0.0, smooth=True), seed=3)
    logits = filter_logits(model.step(0, None, model.condition(torch.tensor([1, 4])), model.new_cache(2)), 5)
    weights = gumbel_softmax(logits, RandomStreams(3, [1, 4], [0, 0]).uniform(1, VOCAB), 0, 3)
    assert torch.equal(weights.argmax(dim=-1), out.tokens[:, :1])
    mixed = vqvae.quantizer.scale_update(weights @ vqvae.quantizer.codebook.weight, 0)
    assert largest_difference(out.f_hats[0], mixed) < 1e-5
    hard = vqvae.quantizer.decode(out.tokens, num_scales=1)
    assert largest_difference(out.f_hats[0], hard) > 1e-3


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_an_image_does_not_depend_on_the_rest_of_its_batch(smooth: bool, cfg: float) -> None:
    options = {"smooth": smooth, "cfg": cfg}
    a = sample([2, 0, 2, 1], **options)
    b = sample([2, 4, 2, CLASSES], **options)
    for row in (0, 2):  # of the same class, label and index
        assert torch.equal(a.tokens[row], b.tokens[row])
        assert torch.equal(a.images[row], b.images[row])
    assert not torch.equal(a.tokens[1], b.tokens[1])


def test_an_image_keeps_its_place_in_the_stream_wherever_it_stands() -> None:
    a = sample([2, 0, 1])
    b = sample([0, 1, 2])
    assert torch.equal(a.tokens[0], b.tokens[2])
    second = sample([2, 2, 0])
    assert torch.equal(second.tokens[1], sample([2, 0, 1], indices=[1, 0, 0]).tokens[0])


def test_seed_and_index_tell_images_apart() -> None:
    first = sample([2, 2])
    assert torch.equal(first.tokens, sample([2, 2]).tokens)
    assert torch.equal(first.images, sample([2, 2]).images)
    assert not torch.equal(first.tokens, sample([2, 2], seed=4).tokens)
    assert not torch.equal(first.tokens[0], first.tokens[1])


def test_labels_may_be_a_tensor() -> None:
    assert torch.equal(sample([2, 0]).tokens, sample(torch.tensor([2, 0])).tokens)


def test_labels_are_not_written_to() -> None:
    labels, indices = [2, 0], [5, 6]
    sample(labels, indices=indices)
    assert labels == [2, 0]
    assert indices == [5, 6]


@pytest.mark.parametrize(("cfg", "rows"), [(0.0, 3), (1.5, 6)])
def test_unconditional_rows_run_only_with_guidance(cfg: float, rows: int) -> None:
    model, vqvae = models()
    seen, stop = rows_through(model.blocks[0])
    generate(model, vqvae, [0, 1, 2], SamplingParams(cfg))
    stop()
    assert seen == [rows] * len(SIDES)


def test_faint_guidance_is_close_to_none() -> None:
    faint, none = sample([0, 1], cfg=1e-6), sample([0, 1], cfg=0.0)
    assert torch.equal(faint.tokens, none.tokens)
    assert not torch.equal(sample([0, 1], cfg=8.0).tokens, none.tokens)


def test_guidance_towards_no_class_changes_nothing() -> None:
    a, b = (generate(*models(), [CLASSES], SamplingParams(cfg, top_k=1)) for cfg in (0.0, 3.0))
    assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize(("labels", "rows"), [([CLASSES] * 3, 3), ([CLASSES, 1, CLASSES], 6)])
def test_rows_are_doubled_only_where_guidance_does_something(labels: list[int], rows: int) -> None:
    model, vqvae = models()
    seen, stop = rows_through(model.blocks[0])
    out = generate(model, vqvae, labels, SamplingParams(cfg=2.0))
    stop()
    assert seen == [rows] * len(SIDES)
    plain = generate(model, vqvae, labels, SamplingParams(cfg=0.0))
    assert torch.equal(out.tokens[::2], plain.tokens[::2])  # those of no class


def test_modulation_is_computed_once_an_image() -> None:
    model, vqvae = models()
    seen, stop = rows_through(model.blocks[1].adaln)
    generate(model, vqvae, [0, 1])
    stop()
    assert seen == [4]


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_no_state_survives_an_exception(scale: int) -> None:
    model, vqvae = models()
    labels = [0, 1]
    expected = generate(model, vqvae, labels)

    def snapshot() -> tuple[object, ...]:
        both = (model, vqvae)
        flags = [[(name, p.requires_grad) for name, p in m.named_parameters()] for m in both]
        attributes = [[(n, sorted(vars(child)), child.training) for n, child in m.named_modules()] for m in both]
        return flags, attributes, torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    before = snapshot()
    tensors = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, vqvae)]
    copies = [{name: value.clone() for name, value in state.items()} for state in tensors]
    calls = 0

    def explode(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == scale + 1:
            raise BrokenError

    handle = model.blocks[1].register_forward_hook(explode)
    with pytest.raises(BrokenError):
        generate(model, vqvae, [3, 4], seed=9)
    handle.remove()

    assert snapshot() == before
    for state, copy in zip(tensors, copies, strict=True):
        assert all(torch.equal(value, copy[name]) for name, value in state.items())
    again = generate(model, vqvae, labels)
    assert torch.equal(again.tokens, expected.tokens)
    assert torch.equal(again.images, expected.images)


def test_results_are_ordinary_tensors_that_training_can_use() -> None:
    model, vqvae = models()
    out = generate(model, vqvae, [0, 1])
    assert not any(result.is_inference() for result in (out.tokens, out.images, *out.f_hats))
    vqvae.encode(out.images)
    features = vqvae.quantizer.teacher_forcing_input(out.tokens).detach()
    model(torch.tensor([0, 1]), features).sum().backward()
    assert model.head.weight.grad is not None


def test_global_random_numbers_are_neither_used_nor_moved() -> None:
    model, vqvae = models()
    before = torch.get_rng_state()
    first = generate(model, vqvae, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(generate(model, vqvae, [0, 1]).tokens, first.tokens)


def test_occurrences() -> None:
    assert index_within_class([7, 3, 7, 7, 3]) == [0, 0, 1, 2, 1]
    assert index_within_class([]) == []


@pytest.mark.parametrize("label", [-1, CLASSES + 1])
def test_unknown_labels_are_refused(label: int) -> None:
    with refused(f"label {label}", f"0..{CLASSES - 1}", f"{CLASSES} for no class"):
        sample([0, label])


def test_no_labels_are_refused() -> None:
    with refused("no labels"):
        sample([])


@pytest.mark.parametrize("option", [{"cfg": -1.0}, {"top_k": -1}, {"top_p": 1.5}, {"seed": -1}])
def test_options_out_of_range_are_refused(option: dict[str, float]) -> None:
    (name,) = option
    with refused(f"{name}={option[name]}"):
        sample([0], **option)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"scales": (1, 3, 4)}, "scales=(1, 3, 4)"),
        ({"vocab_size": 16}, "vocab_size=16"),
        ({"latent_dim": 4}, "latent_dim=4"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change: dict[str, object], part: str) -> None:
    with refused(part, "trained on"):
        generate(small_var(), small_vqvae(**change), [0])


@pytest.mark.parametrize("smooth", [False, True])
def test_bfloat16_networks_generate(smooth: bool) -> None:
    model, vqvae = (m.cast(torch.bfloat16) for m in models())
    sampling = SamplingParams(smooth=smooth)
    out = generate(model, vqvae, [0, 1], sampling)
    assert out.images.dtype == out.f_hats[-1].dtype == torch.float32
    assert torch.equal(out.tokens, generate(model, vqvae, [0, 1], sampling).tokens)


# --- known tokens


@cache
def models_of(sides: tuple[int, ...], shared_adaln: bool) -> tuple[VAR, VQVAE]:
    return small_var(seed=1, scales=sides, shared_adaln=shared_adaln), small_vqvae(seed=2, scales=sides)


def random_mask(batch: int, length: int, share: float, seed: int) -> Tensor:
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share


any_models = st.builds(models_of, st.sampled_from([(1, 2, 4), (1, 2, 3, 5), (1, 3, 4, 6), (1, 5)]), st.booleans())
any_seed = st.integers(0, 10**6)


@given(any_models, any_seed, st.floats(0, 1), st.sampled_from([0.0, 2.0]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_kept_tokens_stay_and_the_others_follow_from_the_final_ones(
    both: tuple[VAR, VQVAE], seed: int, share: float, cfg: float, smooth: bool
) -> None:
    model, vqvae = both
    labels = [1, CLASSES]
    tokens = random_tokens(2, model.scales.total, seed=seed)
    keep = random_mask(2, model.scales.total, share, seed + 1)
    out = generate(model, vqvae, labels, SamplingParams(cfg, 0, 0.0, smooth), seed, forced=ForcedTokens(tokens, keep))
    assert torch.equal(out.tokens[keep], tokens[keep])
    if smooth:
        return  # what follows a scale is drawn to fit its mixtures, not its tokens
    assert largest_difference(out.images, vqvae.decode(out.tokens)) < 1e-5
    streams, scales = RandomStreams(seed, labels, [0, 0]), model.scales
    with torch.no_grad():
        features = vqvae.quantizer.teacher_forcing_input(out.tokens)
        conditional = scales.split(model(torch.tensor(labels), features))
        unconditional = scales.split(model(torch.full((2,), CLASSES), features))
    parts = zip(conditional, unconditional, scales.split(out.tokens), scales.split(keep), strict=True)
    for k, (with_label, without, drawn, keep_k) in enumerate(parts):
        logits = classifier_free_guidance(with_label, without, cfg_at_scale(cfg, k, len(scales)))
        uniform = streams.uniform(drawn.shape[1])
        # A number next to the border of two tokens may fall on either side of it.
        low, high = (sample_tokens(logits, (uniform + rounding).clamp(0, 1 - 1e-7)) for rounding in (-1e-4, 1e-4))
        assert ((low <= drawn) & (drawn <= high) | keep_k).all()


@given(any_models, any_seed, st.sampled_from([0.0, 2.0]), st.booleans())
@settings(max_examples=10, deadline=None)
def test_nothing_kept_is_plain_generation(both: tuple[VAR, VQVAE], seed: int, cfg: float, smooth: bool) -> None:
    model, vqvae = both
    tokens = random_tokens(2, model.scales.total, seed=seed)
    sampling = SamplingParams(cfg, 20, 0.9, smooth)
    plain = generate(model, vqvae, [1, 3], sampling, seed)
    none = ForcedTokens(tokens, torch.zeros_like(tokens, dtype=torch.bool))
    out = generate(model, vqvae, [1, 3], sampling, seed, forced=none)
    assert torch.equal(out.tokens, plain.tokens)
    assert torch.equal(out.images, plain.images)
    assert all(torch.equal(a, b) for a, b in zip(out.f_hats, plain.f_hats, strict=True))


@given(any_models, any_seed, st.booleans())
@settings(max_examples=10, deadline=None)
def test_everything_kept_is_the_tokenizers_image(both: tuple[VAR, VQVAE], seed: int, smooth: bool) -> None:
    model, vqvae = both
    tokens = random_tokens(2, model.scales.total, seed=seed)
    known = ForcedTokens(tokens, torch.ones_like(tokens, dtype=torch.bool))
    out = generate(model, vqvae, [1, 3], SamplingParams(cfg=2.0, smooth=smooth), seed, forced=known)
    assert torch.equal(out.tokens, tokens)
    assert largest_difference(out.images, vqvae.decode(tokens)) < 1e-5


@pytest.mark.parametrize("smooth", [False, True])
def test_known_tokens_change_nothing_before_their_scale(smooth: bool) -> None:
    model, _ = models()
    labels, options = list(range(CLASSES)), {"top_k": 0, "top_p": 0.0, "smooth": smooth}
    plain = sample(labels, **options)
    tokens, keep = (plain.tokens + 1) % VOCAB, random_mask(CLASSES, model.scales.total, 0.5, seed=4)
    last = keep & (model.scales.levels() == len(SIDES) - 1)
    out = sample(labels, **options, forced=ForcedTokens(tokens, last))
    assert torch.equal(out.tokens, torch.where(last, tokens, plain.tokens))  # the same random numbers elsewhere
    second = keep & (model.scales.levels() == 1)
    out = sample(labels, **options, forced=ForcedTokens(tokens, second))
    assert torch.equal(out.tokens[:, :5], torch.where(second, tokens, plain.tokens)[:, :5])
    assert not torch.equal(out.tokens[:, 5:], plain.tokens[:, 5:])  # drawn to fit them


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_known_tokens_in_batches(batch_size: int) -> None:
    model, vqvae = models()
    labels = [2, 1, 2, CLASSES, 2]
    known = ForcedTokens(random_tokens(5, model.scales.total), random_mask(5, model.scales.total, 0.4, seed=1))
    sampling = SamplingParams(cfg=2.0)
    for given_known in (known, None):
        whole = generate(model, vqvae, labels, sampling, seed=5, forced=given_known)
        parts = list(generate_batches(model, vqvae, labels, batch_size, sampling, 5, given_known))
        assert [len(part.tokens) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert largest_difference(torch.cat([part.images for part in parts]), whole.images) < 1e-4


def test_no_batches_of_nothing() -> None:
    with refused("batch_size=0", "at least 1"):
        list(generate_batches(*models(), [1], 0))


def test_known_tokens_are_not_written_to() -> None:
    tokens, keep = random_tokens(1, 21) - 5, random_mask(1, 21, 0.5, seed=1)
    keep &= tokens >= 0
    copies = tokens.clone(), keep.clone()
    sample([1], forced=ForcedTokens(tokens, keep))
    assert torch.equal(tokens, copies[0])
    assert torch.equal(keep, copies[1])


@pytest.mark.parametrize(
    "known",
    [
        ForcedTokens(random_tokens(1, 20), torch.ones(1, 20, dtype=torch.bool)),
        ForcedTokens(random_tokens(1, 21), torch.ones(1, 20, dtype=torch.bool)),
        ForcedTokens(random_tokens(2, 21), torch.ones(2, 21, dtype=torch.bool)),
        ForcedTokens(random_tokens(1, 21)[0], torch.ones(21, dtype=torch.bool)),
    ],
)
def test_known_tokens_of_another_shape_are_refused(known: ForcedTokens) -> None:
    with refused(str(tuple(known.tokens.shape)), "(1, 21) needed"):
        sample([1], forced=known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_what_is_kept_must_be_booleans(dtype: torch.dtype) -> None:
    with refused(str(dtype), "booleans"):
        sample([1], forced=ForcedTokens(random_tokens(1, 21), torch.ones(1, 21, dtype=dtype)))


@pytest.mark.parametrize("token", [-1, VOCAB, 10**9])
def test_kept_tokens_outside_the_codebook_are_refused(token: int) -> None:
    tokens, keep = random_tokens(1, 21), random_mask(1, 21, 0.5, seed=1)
    kept, others = keep[0].nonzero()[0, 0], (~keep)[0].nonzero()[0, 0]
    expected = sample([1], forced=ForcedTokens(tokens, keep)).tokens
    without_meaning = tokens.clone()
    without_meaning[0, others] = token
    assert torch.equal(sample([1], forced=ForcedTokens(without_meaning, keep)).tokens, expected)
    tokens[0, kept] = token
    with refused(f"0..{VOCAB - 1}", "codebook"):
        sample([1], forced=ForcedTokens(tokens, keep))
