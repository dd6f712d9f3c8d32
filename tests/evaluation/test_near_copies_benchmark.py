"""`python benchmarks/near_copies.py`: what counts as a near copy."""

import runpy

import torch
from tiny import ROOT


def test_images_as_near_as_a_reconstruction_are_copies_mirrored_ones_too() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "near_copies.py"))
    training = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = torch.tensor([0.01, 0.01, 0.0])  # of their reconstructions, squared
    images = torch.stack([training[0].flip(-1) + 0.1, training[1] + 0.15, training[2] + 0.01, training[2]])
    assert script["share_of_copies"](images, training, errors) == 0.5
