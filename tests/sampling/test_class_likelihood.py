"""Likelihood under every class: against the model's own forward pass, one class at a time; pruned and whole."""

import pytest
import torch
from helpers import CLASSES, LATENT, random_images, random_tokens, refused, small_var, small_vqvae
from scipy.special import log_softmax, softmax
from torch import Tensor

from tokenizer.scales import SCALES_256, Scales
from var.models.var import VAR
from var.sampling.class_likelihood import WHOLE, ClassLikelihood, Pruning, class_likelihood, rank

LABELS = (0, 1, 3, 4, CLASSES)  # the null class too
BATCH, TOKENS = 4, 21
NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> VAR:
    return small_var()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    vqvae = small_vqvae()
    with torch.no_grad():
        tokens = vqvae.encode(random_images(BATCH, 8))
        return tokens, vqvae.quantizer.teacher_forcing_input(tokens)


@torch.no_grad()
def by_forward(model: VAR, tokens: Tensor, inputs: Tensor) -> Tensor:
    """(B, M, K): one class after the other, all scales at once under the mask, sums by NumPy and SciPy."""
    found = torch.empty(len(tokens), len(LABELS), 3, dtype=torch.float64)
    for m, label in enumerate(LABELS):
        logits = model(torch.full((len(tokens),), label), inputs).double().numpy()
        each = torch.from_numpy(log_softmax(logits, axis=-1)).gather(2, tokens[..., None])[..., 0]  # (B, L)
        found[:, m] = torch.stack([part.sum(dim=1) for part in (each[:, :1], each[:, 1:5], each[:, 5:])], dim=1)
    return found


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7, 10, 64])
def test_it_is_that_of_the_whole_sequence_for_any_batch(
    model: VAR, inputs: tuple[Tensor, Tensor], batch_size: int
) -> None:
    found = class_likelihood(model, *inputs, LABELS, batch_size=batch_size)
    assert found.labels == LABELS
    assert found.by_scale.dtype == torch.float64
    assert_close(found.by_scale, by_forward(model, *inputs))


def test_it_depends_on_image_and_class_alone(model: VAR, inputs: tuple[Tensor, Tensor]) -> None:
    whole = class_likelihood(model, *inputs, LABELS)
    one = class_likelihood(model, inputs[0][2:3], inputs[1][2:3], (4, 1))
    assert_close(one.by_scale[0], whole.by_scale[2][[3, 1]])
    assert whole.by_scale.std(dim=1).min() > 1e-3  # classes differ


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 64])
@pytest.mark.parametrize("steps", [((1, 3),), ((2, 2),), ((1, 0.8), (2, 0.4)), ((1, 3), (2, 1)), ((1, 5), (2, 5))])
def test_pruning_leaves_the_rest_as_it_is(
    model: VAR, inputs: tuple[Tensor, Tensor], steps: tuple[tuple[int, int | float], ...], batch_size: int
) -> None:
    """The best so far are kept, whatever fits in a batch: their cached keys and values go with them, or anew."""
    whole = by_forward(model, *inputs)
    expected = whole.clone()
    for scales, kept in steps:
        number = kept if isinstance(kept, int) else round(kept * len(LABELS))
        for image in range(BATCH):
            so_far = expected[image, :, :scales].sum(dim=1).nan_to_num(nan=-torch.inf)
            dropped = so_far.argsort(descending=True)[number:]
            expected[image, dropped, scales:] = NAN
    shown: list[tuple[float, int]] = []
    found = class_likelihood(model, *inputs, LABELS, Pruning(steps), batch_size, lambda *each: shown.append(each))
    assert_close(found.by_scale, expected)
    assert shown == sorted(shown)
    assert shown[-1] == (pytest.approx(BATCH), BATCH)
    last = steps[-1][1]
    left = last if isinstance(last, int) else round(last * len(LABELS))
    order = whole.sum(dim=2).where(~expected[..., -1].isnan(), -torch.inf).argsort(dim=1, descending=True)
    assert torch.equal(found.ranking()[:, :left], order[:, :left])


def test_pruning_needs_the_fine_scales_of_those_left_alone(
    model: VAR, inputs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = [0, 0, 0]
    step = VAR.step

    def counted(self: VAR, k: int, next_input: Tensor | None, condition: object, cache: object) -> Tensor:
        logits = step(self, k, next_input, condition, cache)  # type: ignore[arg-type]
        computed[k] += len(logits)
        return logits

    monkeypatch.setattr(VAR, "step", counted)
    pruning = Pruning(((1, 3), (2, 1)))
    class_likelihood(model, *inputs, LABELS, pruning, batch_size=20)
    assert computed == [4 * 5, 4 * 3, 4 * 1]  # nothing twice where it all fits in one batch
    assert sum(n * length for n, length in zip(computed, (1, 4, 16), strict=True)) == 4 * pruning.tokens(
        model.scales, len(LABELS)
    )


def test_totals_posterior_and_ranking_by_hand() -> None:
    by_scale = torch.tensor([[[-1.0, -2.0], [-2.0, NAN], [-1.5, -1.0], [-1.8, NAN]]], dtype=torch.float64)
    found = ClassLikelihood((7, 8, 9, 5), by_scale)
    assert found.total().tolist() == [[-3.0, -torch.inf, -2.5, -torch.inf]]
    assert found.total(1).tolist() == [[-1.0, -2.0, -1.5, -1.8]]
    assert found.num_scales().tolist() == [[2, 1, 2, 1]]
    assert found.posterior()[0].tolist() == pytest.approx(softmax([-3.0, -1e9, -2.5, -1e9]).tolist())
    assert found.ranking().tolist() == [[2, 0, 3, 1]]  # those pruned come last, whatever they had so far


def test_a_tie_is_ranked_in_the_order_of_the_labels() -> None:
    assert rank(torch.tensor([[1.0, 2.0, 1.0, 2.0]])).tolist() == [[1, 3, 0, 2]]
    assert rank(torch.tensor([[1, 2, 1, 2]]), torch.tensor([[0, 1, 5, 3]])).tolist() == [[3, 1, 2, 0]]


def test_candidates_of_each_scale() -> None:
    pruning = Pruning.parse("3:25%, 5:8")
    assert pruning == Pruning(((3, 0.25), (5, 8)))
    assert pruning.candidates(10, 1000) == [1000] * 3 + [250] * 2 + [8] * 5
    assert pruning.candidates(7, 9) == [9] * 3 + [3] * 2 + [3] * 2  # rounded up; never more than were left
    assert pruning.idle_steps(7, 9) == [(5, 3)]
    assert pruning.idle_steps(10, 1000) == []
    assert pruning.tokens(SCALES_256, 1000) == 1000 * 14 + 250 * (16 + 25) + 8 * 625
    assert WHOLE.tokens(SCALES_256, 1000) == 680_000
    assert Pruning(((1, 0.07),)).candidates(2, 100) == [100, 7]
    assert Pruning(((1, 1e-12),)).candidates(2, 100) == [100, 1]
    assert Pruning(((1, 1.0),)).candidates(2, 100) == [100, 100]
    assert Pruning.parse("1:12.5%").steps == ((1, 0.125),)


@pytest.mark.parametrize(
    "text",
    ["", "3", "3:", ":8", "3:0", "0:3", "3:0%", "3:101%", "3:-1", "3:8;5:2", "5:8,3:2", "3:8,3:4", "3:4,5:8", "3:2.5"],
)
def test_pruning_that_cannot_work_is_refused(text: str) -> None:
    with refused("must"):
        Pruning.parse(text)


@pytest.mark.parametrize("step", [(1, True), (True, 1), (1.0, 2), (1, NAN), (1, 1.5), (1, "8"), (1, -0.5)])
def test_pruning_of_other_types_is_refused(step: tuple[int, int]) -> None:
    with refused("pruning step", "must be"):
        Pruning((step,))


def test_input_that_does_not_fit_is_refused(model: VAR, inputs: tuple[Tensor, Tensor]) -> None:
    with refused("after 3 scales", "2 of them at most"):
        class_likelihood(model, *inputs, LABELS, Pruning(((3, 1),)))
    for labels in ((), (0, 0), (-1, 2), (0, CLASSES + 1)):
        with refused("labels", "different ones in 0..5"):
            class_likelihood(model, *inputs, labels)
    with refused("batch_size=0"):
        class_likelihood(model, *inputs, LABELS, batch_size=0)
    for tokens, given in (
        (inputs[0][:, 1:], inputs[1]),
        (inputs[0], inputs[1][:, 1:]),
        (inputs[0][:0], inputs[1][:0]),
        (random_tokens(3, TOKENS), inputs[1]),
    ):
        with refused(f"(B, {TOKENS})", f"{TOKENS - 1}, {LATENT}"):
            class_likelihood(model, tokens, given, LABELS)


def test_damaged_weights_are_reported(inputs: tuple[Tensor, Tensor]) -> None:
    model = small_var()
    torch.nn.init.constant_(model.head.bias, NAN)
    with refused("not finite", "damaged"):
        class_likelihood(model, *inputs, LABELS)


def test_a_model_that_knows_nothing_finds_all_classes_equal(inputs: tuple[Tensor, Tensor]) -> None:
    model = small_var()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    found = class_likelihood(model, *inputs, LABELS)
    lengths = torch.tensor(Scales((1, 2, 4)).lengths)
    torch.testing.assert_close(found.by_scale, (-lengths * torch.tensor(32.0).double().log()).expand(4, 5, 3))
    torch.testing.assert_close(found.posterior(), torch.full((4, 5), 0.2, dtype=torch.float64))
