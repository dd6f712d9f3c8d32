"""Names that users import from outside the rooms lead to the code inside them."""

import var
import var.convert
import var.generate
import var.sampling
from var.aim import AIM
from var.hub import convert, convert_aim
from var.pipeline import VARPipeline
from var.sampling import generate, logits
from var.vqvae import VQVAE


def test_pipeline_and_aim_are_in_the_package_itself() -> None:
    assert var.VARPipeline is VARPipeline
    assert var.AIM is AIM
    assert var.VQVAE is VQVAE
    assert var.load_pretrained == AIM.from_pretrained


def test_modules_at_the_top_hand_on_what_the_rooms_define() -> None:
    for name in var.convert.__all__:
        assert getattr(var.convert, name) is getattr(convert_aim if name.endswith("aim") else convert, name)
    assert var.generate.generate is generate.generate
    assert var.sampling.filter_logits is logits.filter_logits
