"""Masked patches as one learned embedding: what predictions depend on."""

import torch
from helpers import largest_difference, normal, randomize, refused

from var.models.aim import EncoderConfig
from var.models.masked_pretraining import MaskedPretrainer
from var.models.pretraining import patches

PATCH, N = 2, 16
ENCODER = EncoderConfig(image_size=8, patch_size=PATCH, width=16, depth=2, heads=2)


def small() -> MaskedPretrainer:
    model = MaskedPretrainer(ENCODER, 12)
    randomize(model, seed=1)
    return model


def test_every_prediction_depends_on_every_visible_patch_and_on_no_masked_one() -> None:
    model, images = small(), normal(2, 3, 8, 8).requires_grad_()
    masked = torch.stack([torch.arange(N) % 3 == 0, torch.arange(N) >= 7])
    predictions = model(images, masked)
    assert predictions.shape == (2, N, 12)
    for i in range(N):
        (gradient,) = torch.autograd.grad(predictions[:, i].square().sum(), images, retain_graph=True)
        strength = patches(gradient, PATCH).abs().sum(dim=-1)
        assert (strength[~masked] > 0).all()
        assert (strength[masked] == 0).all()


def test_a_masked_patch_is_its_position_and_the_embedding() -> None:
    model, images = small(), normal(1, 3, 8, 8)
    everything = torch.ones(N, dtype=torch.bool)
    x = (model.mask_embedding + model.encoder.position)[None]
    assert largest_difference(model(images, everything), model.predict(model.encoder.encode(x))) < 1e-5
    nothing = ~everything
    assert largest_difference(model(images, nothing), model.predict(model.encoder(images))) < 1e-5


def test_images_share_a_mask_or_have_their_own() -> None:
    model, images, masked = small(), normal(2, 3, 8, 8), torch.arange(N) < 5
    assert torch.equal(model(images, masked), model(images, masked.expand(2, -1)))


def test_images_of_another_size() -> None:
    with refused("(1, 3, 6, 6)", "(B, 3, 8, 8)"):
        small()(normal(1, 3, 6, 6), torch.zeros(N, dtype=torch.bool))
