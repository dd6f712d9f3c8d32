"""Weight decay: on matrices only, for every parameter of both networks by name."""

import re

import pytest
import torch
from helpers import small_var, small_vqvae
from torch import nn

from var.training.config import OptimizerConfig
from var.training.optimizer import build_optimizer
from var.training.transformer_stage import NEVER_DECAYED

CONFIG = OptimizerConfig(lr=0.01, betas=(0.8, 0.9), weight_decay=0.5)

# What the paper's training never decays: biases, embeddings of position, level and start, the gates' offsets, s.
VAR_PLAIN = r"(.*bias|position|start_position|level_embedding\.weight|.*offset|.*log_scale)"
VAR_MATRICES = r"(class_embedding|feature_in|head|.*\.(linear|qkv|proj|up|down))\.weight"
# In the tokenizer, neither norms nor biases nor the codebook, whose vectors must stay where the features are.
VQVAE_PLAIN = r"(.*bias|.*norm\w*\.weight|quantizer\.codebook\.weight)"


def decayed(model: nn.Module, never_decayed: tuple[str, ...]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, CONFIG, never_decayed).param_groups
    assert sorted(names) == sorted(id(p) for group in groups for p in group["params"])  # each in just one group
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


@pytest.mark.parametrize("shared_adaln", [False, True])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_var(shared_adaln: bool, qk_norm: bool) -> None:
    model = small_var(shared_adaln=shared_adaln, qk_norm=qk_norm)
    names = [name for name, _ in model.named_parameters()]
    plain = {name for name in names if re.fullmatch(VAR_PLAIN, name)}
    found = decayed(model, NEVER_DECAYED)
    assert found == set(names) - plain
    assert all(re.fullmatch(VAR_MATRICES, name) for name in found)
    kinds = {"position", "start_position", "level_embedding.weight", "head.bias", "blocks.0.attention.q_bias"}
    kinds |= {"blocks.1.adaln.offset"} if shared_adaln else {"blocks.1.adaln.linear.bias"}
    kinds |= {"blocks.0.attention.log_scale"} if qk_norm else set()
    assert kinds <= plain
    matrices = {"class_embedding.weight", "feature_in.weight", "head.weight", "blocks.1.mlp.down.weight"}
    matrices |= {"shared_adaln.linear.weight"} if shared_adaln else {"blocks.0.adaln.linear.weight"}
    assert matrices <= found


def test_tokenizer() -> None:
    model = small_vqvae()
    names = [name for name, _ in model.named_parameters()]
    plain = {name for name in names if re.fullmatch(VQVAE_PLAIN, name)}
    found = decayed(model, ("codebook.weight",))
    assert found == set(names) - plain
    assert {"quantizer.codebook.weight", "encoder.norm_out.weight", "decoder.conv_out.bias"} <= plain
    assert {"quant_conv.weight", "quantizer.phi.0.weight", "encoder.conv_in.weight"} <= found


def test_a_step_without_gradient_shrinks_the_decayed_ones_alone() -> None:
    model = small_var()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, CONFIG, NEVER_DECAYED)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if re.fullmatch(VAR_PLAIN, name) else 1 - 0.01 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
