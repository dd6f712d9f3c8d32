"""The masked autoencoder: what the encoder sees, and what the decoder makes of it."""

import torch
from helpers import largest_difference, normal, randomize, refused
from torch import Tensor

from var.models.aim import EncoderConfig, sincos_2d_pos_embed
from var.models.mae import MAEDecoderConfig, MAEPretrainer
from var.models.patch_masks import mark_cells
from var.models.pretraining import patches
from var.models.transformer import run_blocks

PATCH, N = 2, 16
ENCODER = EncoderConfig(image_size=8, patch_size=PATCH, width=16, depth=2, heads=2)
DECODER = MAEDecoderConfig(depth=2, width=128, heads=4, mlp_ratio=1.0)
VISIBLE = torch.tensor([[9, 0, 3, 14], [1, 15, 8, 2]])  # of two images


def small() -> MAEPretrainer:
    model = MAEPretrainer(ENCODER, DECODER, 12)
    randomize(model, seed=1, std=0.1)
    return model


def strength(output: Tensor, images: Tensor) -> Tensor:
    """The largest gradient of the output's squares to a pixel of each patch, (B, N)."""
    (gradient,) = torch.autograd.grad(output.square().sum(), images, retain_graph=True)
    return patches(gradient, PATCH).abs().amax(dim=-1)


def test_the_encoder_does_not_see_masked_patches() -> None:
    model, images, masked = small(), normal(2, 3, 8, 8).requires_grad_(), ~mark_cells(VISIBLE, N)
    features = model.encoder(images, order=VISIBLE)
    assert features.shape == (2, 4, 16)
    predictions = model(images, VISIBLE)
    assert predictions.shape == (2, N, 12)
    for output in (features, *predictions.unbind(dim=1)):
        assert (strength(output, images)[masked] == 0).all()
        assert (strength(output, images)[~masked] > 0).all()


def test_the_decoder_puts_features_and_mask_tokens_in_the_places_of_their_patches() -> None:
    model, features = small(), normal(2, 4, 16)
    decoder = model.decoder
    x = decoder.mask_token.expand(2, N, -1).clone()
    for b in range(2):
        for i, patch in enumerate(VISIBLE[b].tolist()):
            x[b, patch] = decoder.embed(features[b, i])
    x = run_blocks(decoder.blocks, x + sincos_2d_pos_embed(4, 128))
    assert largest_difference(decoder(features, VISIBLE), decoder.predict(decoder.norm(x))) < 1e-5


def test_the_order_of_visible_patches_does_not_matter() -> None:
    model, images = small(), normal(2, 3, 8, 8)
    assert largest_difference(model(images, VISIBLE), model(images, VISIBLE.flip(1))) < 1e-5


def test_the_papers_decoder() -> None:
    assert MAEDecoderConfig() == MAEDecoderConfig(depth=8, width=512, heads=16, mlp_ratio=4.0)
    with torch.device("meta"):
        model = MAEPretrainer(EncoderConfig(224, 16, 768, 12, 12), MAEDecoderConfig(), 768)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) / 1e6 > 80
    assert 25 < sum(parameter.numel() for parameter in model.decoder.parameters()) / 1e6 < 27


def test_decoder_sizes_that_cannot_work() -> None:
    for wrong, said in (
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"depth": 13}, "at most 12"),
        ({"width": 64}, "width=64 must be in 128..1024"),
        ({"width": 2048}, "at most 1024"),
        ({"width": 130, "heads": 2}, "width=130 must be a multiple of heads=2 and of 4"),
        ({"heads": 3}, "width=512 must be a multiple of heads=3"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
    ):
        with refused(said):
            MAEDecoderConfig(**wrong)
