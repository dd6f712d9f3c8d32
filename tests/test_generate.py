"""The loop over scales."""

from collections.abc import Callable

import pytest
import torch
from helpers import CLASSES, SIDES, VOCAB, largest_difference, refused, small_var, small_vqvae
from torch import Tensor, nn

from tokenizer.scales import Scales
from tokenizer.vqvae import VQVAE
from var.generate import Generated, generate, occurrences
from var.model import VAR
from var.sampling import RandomStreams, draw, filter_logits, smooth_choice


def models() -> tuple[VAR, VQVAE]:
    return small_var(seed=1), small_vqvae(seed=2)


def sample(labels: list[int] | Tensor, **options: object) -> Generated:
    return generate(*models(), labels, **({"cfg": 1.5, "top_k": 20, "top_p": 0.95, "seed": 3} | options))


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


def test_pictures_are_the_decoded_tokens() -> None:
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
    out = generate(model, vqvae, labels, cfg=cfg, top_k=5, top_p=0.9, seed=3)
    features = vqvae.quantizer.teacher_forcing_input(out.tokens)
    conditional = model(torch.tensor(labels), features)
    unconditional = model(torch.full((2,), CLASSES), features)
    streams, scales = RandomStreams(3, labels, [0, 0]), Scales(SIDES)
    parts = zip(scales.split(conditional), scales.split(unconditional), scales.split(out.tokens), strict=True)
    for k, (with_label, without, tokens) in enumerate(parts):
        t = cfg * k / 2
        logits = filter_logits((1 + t) * with_label - t * without, 5, 0.9)
        assert torch.equal(draw(logits, streams.uniform(tokens.shape[1])), tokens)


@torch.no_grad()
def test_smooth_mode_mixes_codewords() -> None:
    model, vqvae = models()
    out = generate(model, vqvae, [1, 4], cfg=0.0, top_k=5, top_p=0.0, seed=3, smooth=True)
    logits = filter_logits(model.step(0, None, model.condition(torch.tensor([1, 4])), model.new_cache(2)), 5)
    weights = smooth_choice(logits, RandomStreams(3, [1, 4], [0, 0]).uniform(1, VOCAB), 0, 3)
    assert torch.equal(weights.argmax(dim=-1), out.tokens[:, :1])
    mixed = vqvae.quantizer.contribution(weights @ vqvae.quantizer.codebook.weight, 0)
    assert largest_difference(out.f_hats[0], mixed) < 1e-5
    hard = vqvae.quantizer.decode(out.tokens, num_scales=1)
    assert largest_difference(out.f_hats[0], hard) > 1e-3


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_a_picture_does_not_depend_on_the_rest_of_its_batch(smooth: bool, cfg: float) -> None:
    options = {"smooth": smooth, "cfg": cfg}
    a = sample([2, 0, 2, 1], **options)
    b = sample([2, 4, 2, CLASSES], **options)
    for row in (0, 2):  # of the same class, label and index
        assert torch.equal(a.tokens[row], b.tokens[row])
        assert torch.equal(a.images[row], b.images[row])
    assert not torch.equal(a.tokens[1], b.tokens[1])


def test_a_picture_keeps_its_place_in_the_stream_wherever_it_stands() -> None:
    a = sample([2, 0, 1])
    b = sample([0, 1, 2])
    assert torch.equal(a.tokens[0], b.tokens[2])
    second = sample([2, 2, 0])
    assert torch.equal(second.tokens[1], sample([2, 0, 1], indices=[1, 0, 0]).tokens[0])


def test_seed_and_index_tell_pictures_apart() -> None:
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
    generate(model, vqvae, [0, 1, 2], cfg=cfg)
    stop()
    assert seen == [rows] * len(SIDES)


def test_faint_guidance_is_close_to_none() -> None:
    faint, none = sample([0, 1], cfg=1e-6), sample([0, 1], cfg=0.0)
    assert torch.equal(faint.tokens, none.tokens)
    assert not torch.equal(sample([0, 1], cfg=8.0).tokens, none.tokens)


def test_guidance_towards_no_class_changes_nothing() -> None:
    a, b = (generate(*models(), [CLASSES], cfg=cfg, top_k=1, top_p=0.0) for cfg in (0.0, 3.0))
    assert torch.equal(a.tokens, b.tokens)


def test_modulation_is_computed_once_a_picture() -> None:
    model, vqvae = models()
    seen, stop = rows_through(model.blocks[1].adaln)
    generate(model, vqvae, [0, 1], cfg=1.0)
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
    assert occurrences([7, 3, 7, 7, 3]) == [0, 0, 1, 2, 1]
    assert occurrences([]) == []


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
    out = generate(model, vqvae, [0, 1], smooth=smooth)
    assert out.images.dtype == out.f_hats[-1].dtype == torch.float32
    assert torch.equal(out.tokens, generate(model, vqvae, [0, 1], smooth=smooth).tokens)
