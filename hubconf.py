"""Entry points of torch.hub: `torch.hub.load(FOLDER, "aim_600M", source="local")`, from a clone, without installing."""

from collections.abc import Callable as _Callable
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from var.aim import AIM as _AIM

# What torch.hub looks for before it calls an entry point; names without an underscore are listed as entry points.
dependencies = ["einops", "huggingface_hub", "numpy", "PIL", "safetensors", "torch"]


def _entry_point(name: str) -> "_Callable[..., _AIM]":
    def load(pretrained: bool = True, probe_layers: _Any = None, **options: _Any) -> "_AIM":
        # Imported here: torch.hub checks the dependencies after this file is read.
        from dataclasses import asdict

        from tokenizer.errors import InputError
        from var.aim import AIM
        from var.hub.presets import AIM_SIZES, best_layers, choose_layers
        from var.models.aim import AIMConfig

        if pretrained:
            return AIM.from_pretrained(name, probe_layers=probe_layers, **options)
        if options:
            raise InputError(f"{', '.join(options)} go with pretrained=True: leave them out")
        sizes = AIM_SIZES[name]
        layers = choose_layers("best" if probe_layers is None else probe_layers, sizes.depth, best_layers(sizes))
        return AIM(AIMConfig(**asdict(sizes), probe_layers=layers))

    load.__doc__ = f"""{name} with its attentive probe.

    Args:
        pretrained: the released weights, in evaluation mode; else random ones, in training mode.
        probe_layers: "best" (None), "last", or a list of blocks counted from 0.
        options: device, dtype, backbone_file, head_file, as `var.AIM.from_pretrained` takes them.

    Raises:
        InputError: weights that cannot be had; as `var.AIM.from_pretrained`.
    """
    return load


# ruff: noqa: N816 - called as the models are
aim_600M = _entry_point("aim-600M")
aim_1B = _entry_point("aim-1B")
aim_3B = _entry_point("aim-3B")
aim_7B = _entry_point("aim-7B")
