"""A mean and its standard error, against NumPy and SciPy; and what a measurement says of itself."""

import numpy as np
import pytest
import torch
from helpers import refused, small_var, small_vqvae
from scipy import stats

from var.evaluation.metrics.stats import MeanStderr, mean_stderr
from var.utils.provenance import fingerprint, versions


def test_the_standard_error_is_scipys() -> None:
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = mean_stderr(torch.from_numpy(values), "it")
    assert found == pytest.approx((values.mean(), stats.sem(values)), rel=1e-12)
    assert found.times(-3) == pytest.approx((-3 * values.mean(), 3 * stats.sem(values)), rel=1e-12)


def test_sums_are_taken_in_float64() -> None:
    values = torch.full((3000,), 1.0) + torch.arange(3000) % 2 * 2**-20  # float32 sums of these lose the second part
    assert mean_stderr(values, "it").mean == 1 + 2**-21


def test_one_image_has_no_error() -> None:
    assert mean_stderr(torch.tensor([2.0]), "it") == MeanStderr(2.0, None)
    assert mean_stderr(torch.tensor([2.0]), "it").times(2) == MeanStderr(4.0, None)


def test_what_is_not_finite_is_refused() -> None:
    with refused("PSNR is not finite for 2 of 3 images"):
        mean_stderr(torch.tensor([1.0, float("nan"), float("inf")]), "PSNR")
    with refused("PSNR needs at least one image"):
        mean_stderr(torch.tensor([]), "PSNR")


def test_the_fingerprint_is_of_weights_their_type_and_sizes() -> None:
    known = fingerprint(small_var(), small_vqvae())
    assert fingerprint(small_var(), small_vqvae()) == known
    others = [
        (small_var(seed=1), small_vqvae()),
        (small_var(), small_vqvae(seed=1)),
        (small_var().cast(torch.bfloat16), small_vqvae()),
        (small_var(), small_vqvae(beta=0.5)),
    ]
    assert len({known, *(fingerprint(*networks) for networks in others)}) == 5


def test_versions_are_those_that_run() -> None:
    assert versions()["torch"] == torch.__version__
