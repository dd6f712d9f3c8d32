"""The models that have a name: the one shipped here and the released ones."""

from dataclasses import dataclass
from pathlib import Path

from tokenizer.errors import InputError
from tokenizer.scales import SCALES_512
from var.model import VARConfig

SHIPPED = {"var-mini": Path(__file__).parent / "models" / "var-mini"}

RELEASED_REPOSITORY = "FoundationVision/var"  # on the Hugging Face hub
RELEASED_TOKENIZER = "vae_ch160v4096z32.pth"  # one tokenizer for all of them


@dataclass(frozen=True)
class Released:
    """A transformer of the paper: its sizes and its file in the repository."""

    config: VARConfig
    file: str


RELEASED = {
    "var-d16": Released(VARConfig(depth=16), "var_d16.pth"),  # 310 M parameters, 256 px
    "var-d20": Released(VARConfig(depth=20), "var_d20.pth"),  # 600 M
    "var-d24": Released(VARConfig(depth=24), "var_d24.pth"),  # 1.0 B
    "var-d30": Released(VARConfig(depth=30), "var_d30.pth"),  # 2.0 B
    "var-d36": Released(
        VARConfig(depth=36, scales=SCALES_512.sides, shared_adaln=True), "var_d36.pth"
    ),  # 2.3 B, 512 px
}


def check_name(name: str) -> None:
    """Raise InputError unless the name is one of a shipped or released model."""
    if name not in SHIPPED and name not in RELEASED:
        known = ", ".join([*SHIPPED, *RELEASED])
        raise InputError(f"model {name!r} is neither a folder nor a known name: give a model folder, or one of {known}")
