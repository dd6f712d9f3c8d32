"""Low-rank adapters of a transformer's linear layers (LoRA, arXiv 2106.09685), by way of peft, and their merging."""

import copy
from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from tokenizer.errors import InputError
from var.models.conditional import ConditionalTransformer
from var.sampling.logits import mix_seed
from var.training.config import LoRAConfig
from var.training.parts import find_parameters, plain_name
from var.training.rng import Stream
from var.utils.optional_packages import optional_packages
from var.utils.torchvision_compat import import_torchvision


def add_adapters(model: ConditionalTransformer, config: LoRAConfig, seed: int) -> None:
    """Add adapters to a model, in place, and freeze all else but the parts in `config.train`.

    Until they are trained, the adapters change nothing: B of W + alpha / rank * B A is 0.

    Raises InputError: peft is not installed; a part to train that the model has not; a rank above that of a layer.
    """
    peft = _import_peft()
    trained = find_parameters(model, config.train, "lora.train")  # before adapters change names, which errors list
    _check_rank(model, config)
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.layers)
    )
    torch.manual_seed(mix_seed(Stream.ADAPTERS, seed))
    peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if plain_name(name) in trained:
            parameter.requires_grad_(True)


def _check_rank(model: ConditionalTransformer, config: LoRAConfig) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in config.layers:
            full = min(layer.weight.shape)
            if config.rank > full:
                raise InputError(
                    f"lora.rank={config.rank} is above {full}, the rank of the whole matrix of {name}: give a smaller "
                    "one, such as 16"
                )


def merge_adapters(
    model: ConditionalTransformer, build: Callable[[], ConditionalTransformer]
) -> ConditionalTransformer:
    """Return a model without adapters that computes the same: `build` makes one, and it gets W + alpha / rank * B A."""
    peft = _import_peft()
    merged, device = copy.deepcopy(model), model.position.device
    with torch.autocast(device.type, enabled=False):  # which would round B A
        for module in merged.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.merge()
    plain = build().to(device).eval()
    state = {plain_name(name): value for name, value in merged.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(state)
    return plain


def _import_peft() -> ModuleType:
    import_torchvision()  # which peft imports too
    with optional_packages("lora"):
        import peft
    return peft
