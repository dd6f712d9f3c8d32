"""Stage 1 as its users see it."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from helpers import LATENT, SIDES, VOCAB, largest_difference, normal, random_tokens, refused, small_vqvae

from tokenizer.vqvae import VQVAE, TokenizerConfig


def pictures(batch: int = 2) -> torch.Tensor:
    return normal(batch, 3, 8, 8).clamp(-1, 1)


def test_the_released_size() -> None:
    with torch.device("meta"):
        vqvae = VQVAE(TokenizerConfig())
    assert vqvae.config.downsample == 16
    assert vqvae.config.image_side == 256
    assert round(sum(p.numel() for p in vqvae.parameters()) / 1e6) == 109


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_contracts(batch: int) -> None:
    vqvae, images = small_vqvae(), pictures(batch)
    tokens = vqvae.encode(images)
    assert tokens.shape == (batch, 21)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB
    decoded = vqvae.decode(tokens)
    assert decoded.shape == images.shape
    assert decoded.dtype == torch.float32
    assert vqvae.features(images).shape == (batch, LATENT, 4, 4)


@torch.no_grad()
def test_pictures_are_clamped_by_decode_but_not_by_pixels() -> None:
    vqvae = small_vqvae()
    vqvae.decoder.conv_out.bias.fill_(5.0)
    assert vqvae.decode(random_tokens(1, 21)).max() == 1
    assert vqvae.pixels(vqvae.quantizer.decode(random_tokens(1, 21))).max() > 1


@torch.no_grad()
def test_reconstruct_is_decode_after_every_scale() -> None:
    vqvae, images = small_vqvae(), pictures()
    tokens, steps = vqvae.encode(images), vqvae.reconstruct(images)
    assert len(steps) == len(SIDES)
    for k, step in enumerate(steps):
        assert torch.equal(step, vqvae.decode(tokens, num_scales=k + 1))
    assert torch.equal(steps[-1], vqvae.decode(tokens))
    assert not torch.equal(steps[0], steps[1])


@torch.no_grad()
def test_images_of_a_batch_do_not_mix() -> None:
    vqvae, images = small_vqvae(), pictures(4)
    assert torch.equal(vqvae.encode(images)[2:3], vqvae.encode(images[2:3]))
    assert largest_difference(vqvae.reconstruct(images)[-1][2:3], vqvae.reconstruct(images[2:3])[-1]) < 1e-5


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_large_batches_pass_in_parts_without_gradients(
    context: Callable[[], AbstractContextManager[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vqvae, images = small_vqvae(), pictures(5)
    sizes: list[int] = []
    for network in (vqvae.encoder, vqvae.decoder):
        network.register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    with context():
        tokens, features = vqvae.encode(images), vqvae.features(images)
        decoded = vqvae.decode(tokens)
    assert sizes == [5, 5, 5]
    sizes.clear()
    monkeypatch.setattr("tokenizer.vqvae.PIXELS_AT_ONCE", 2 * 8 * 8 + 1)
    with context():
        assert torch.equal(vqvae.encode(images), tokens)
        assert largest_difference(vqvae.features(images), features) < 1e-5
        assert largest_difference(vqvae.decode(tokens), decoded) < 1e-5
        with refused("images of shape (5, 3, 4, 4) given"):
            vqvae.encode(images[:, :, :4, :4])
    assert sizes == [2, 2, 1] * 3
    sizes.clear()
    monkeypatch.setattr("tokenizer.vqvae.PIXELS_AT_ONCE", 1)
    with context():
        assert largest_difference(vqvae.decode(tokens), decoded) < 1e-5
    assert sizes == [1] * 5
    sizes.clear()
    assert vqvae(images).reconstruction.requires_grad
    assert sizes == [5, 5]


@torch.no_grad()
def test_training_pass() -> None:
    vqvae, images = small_vqvae(), pictures()
    output = vqvae(images)
    assert torch.equal(output.tokens, vqvae.encode(images))
    assert largest_difference(output.reconstruction.clamp(-1, 1), vqvae.decode(output.tokens)) < 1e-5
    assert output.regularization.shape == ()
    assert torch.equal(output.features, vqvae.features(images))


def test_training_pass_with_some_scales_dropped() -> None:
    vqvae, images = small_vqvae(), pictures(3)
    whole, kept = vqvae(images), torch.tensor([1, 3, 2])
    output = vqvae(images, kept)
    for i, k in enumerate(kept.tolist()):
        alone = vqvae.decode(output.tokens[i : i + 1], num_scales=k)
        assert largest_difference(output.reconstruction[i : i + 1].clamp(-1, 1), alone) < 1e-5
    assert torch.equal(output.tokens, whole.tokens)
    assert torch.equal(output.regularization, whole.regularization)
    assert torch.equal(output.features, whole.features)
    (gradient,) = torch.autograd.grad(output.reconstruction[0].sum(), output.features)
    assert gradient[0].any()  # straight through, to the sample itself
    assert not gradient[1:].any()


def test_training_pass_reaches_every_parameter() -> None:
    vqvae, images = small_vqvae(), pictures(8)
    output = vqvae(images)
    ((output.reconstruction - images).square().mean() + output.regularization).backward()
    idle = [
        name
        for name, p in vqvae.named_parameters()
        # With three scales one of the four phi convolutions has nothing to do.
        if (p.grad is None or not p.grad.any()) and not name.startswith("quantizer.phi")
    ]
    assert idle == []


@pytest.mark.parametrize("shape", [(2, 3, 8, 4), (2, 3, 16, 16), (2, 1, 8, 8), (3, 8, 8)])
def test_images_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    vqvae = small_vqvae()
    for method in (vqvae.encode, vqvae.reconstruct, vqvae):
        with refused(str(shape), "(B, 3, 8, 8)"):
            method(torch.zeros(shape))


def test_wrong_tokens_are_refused() -> None:
    vqvae, tokens = small_vqvae(), random_tokens(2, 21)
    with refused("(2, 20)", "21"):
        vqvae.decode(tokens[:, 1:])
    for bad in (-1, VOCAB):
        changed = tokens.clone()
        changed[1, 20] = bad
        with refused(f"0..{VOCAB - 1}"):
            vqvae.decode(changed)


@pytest.mark.parametrize("num_scales", [0, -1, 4])
def test_num_scales_out_of_range_is_refused(num_scales: int) -> None:
    with refused(f"num_scales={num_scales}", "1..3"):
        small_vqvae().decode(random_tokens(1, 21), num_scales=num_scales)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"scales": (1, 4, 2)}, ("[1, 4, 2]", "increasing")),
        ({"vocab_size": 0}, ("vocab_size=0", "at least 1")),
        ({"latent_dim": -3}, ("latent_dim=-3",)),
        ({"num_phi": 0}, ("num_phi=0",)),
        ({"blocks": 0}, ("blocks=0",)),
        ({"multipliers": ()}, ("multipliers=[]",)),
        ({"multipliers": (1, 0)}, ("multipliers=[1, 0]", "positive")),
        ({"base_width": 48}, ("base_width 48 x 1", "norm_groups=32")),
        ({"decoder_width": 48}, ("decoder_width 48 x 1", "norm_groups=32")),
        ({"decoder_width": -32}, ("decoder_width=-32", "0 takes base_width")),
        ({"dropout": 1.0}, ("dropout=1.0", "[0, 1)")),
        ({"beta": -0.1}, ("beta=-0.1",)),
        ({"phi_ratio": -0.5}, ("phi_ratio=-0.5", "negative")),
    ],
)
def test_sizes_that_cannot_work_are_refused(change: dict[str, object], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        TokenizerConfig(**change)


def test_a_wider_decoder_leaves_the_encoder_as_it_is() -> None:
    plain, wide = small_vqvae(), small_vqvae(decoder_width=16)
    shapes = [{name: value.shape for name, value in vqvae.state_dict().items()} for vqvae in (plain, wide)]
    assert shapes[0].keys() == shapes[1].keys()
    changed = {name for name, shape in shapes[0].items() if shapes[1][name] != shape}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert wide.decoder.conv_out.weight.shape[1] == 16
    assert wide.decode(wide.encode(normal(2, 3, 8, 8).clamp(-1, 1))).shape == (2, 3, 8, 8)


def test_configuration_survives_its_dictionary() -> None:
    config = TokenizerConfig(scales=[1, 2], multipliers=[1, 2], cosine=True)  # type: ignore[arg-type]  # as JSON gives it
    assert config.scales == (1, 2)
    assert TokenizerConfig(**config.to_dict()) == config


@torch.no_grad()
def test_cast_changes_the_network_and_back() -> None:
    vqvae, images = small_vqvae(), pictures()
    exact = vqvae.decode(vqvae.encode(images))
    assert vqvae.cast(torch.bfloat16) is vqvae
    assert vqvae.decoder.conv_in.weight.dtype == torch.bfloat16
    tokens = vqvae.encode(images)
    assert vqvae.decode(tokens).dtype == torch.float32
    assert largest_difference(vqvae.features(images), small_vqvae().features(images)) < 0.2
    assert 0 < largest_difference(vqvae.decode(small_vqvae().encode(images)), exact) < 0.2
    assert vqvae.cast(torch.float32).dtype == torch.float32


@torch.no_grad()
def test_images_are_not_written_to() -> None:
    images = pictures()
    before = images.clone()
    vqvae = small_vqvae()
    vqvae.reconstruct(images)
    vqvae(images)
    assert torch.equal(images, before)
