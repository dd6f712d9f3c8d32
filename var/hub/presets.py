"""The models that have a name: the ones shipped here, the released ones, and sizes of AIM to train."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer.errors import InputError, did_you_mean
from tokenizer.scales import SCALES_512
from var.models.aim import EncoderConfig, check_layers
from var.models.var import VARConfig

_PRETRAINED = Path(__file__).parents[1] / "pretrained"
SHIPPED = {name: _PRETRAINED / name for name in ("var-mini", "var-emoji")}

RELEASED_REPOSITORY = "FoundationVision/var"  # on the Hugging Face hub
RELEASED_TOKENIZER = "vae_ch160v4096z32.pth"  # one tokenizer for all of them


RELEASED = {  # of the paper
    "var-d16": VARConfig(depth=16),  # 310 M parameters, 256 px
    "var-d20": VARConfig(depth=20),  # 600 M
    "var-d24": VARConfig(depth=24),  # 1.0 B
    "var-d30": VARConfig(depth=30),  # 2.0 B
    "var-d36": VARConfig(depth=36, scales=SCALES_512.sides, shared_adaln=True),  # 2.3 B, 512 px
}


def released_file(name: str) -> str:
    """The file of one of RELEASED in the repository."""
    return f"{name.replace('-', '_')}.pth"


AIM_REPOSITORY = "apple/AIM"  # backbones, and two heads for each
PROBED = 6  # blocks, the mean of whose outputs a released head reads

Layers = str | Sequence[int]  # that a probe reads, as users give them: see `choose_layers`


@dataclass(frozen=True)
class ReleasedAIM:
    """An encoder of the AIM paper: its sizes and its files."""

    config: EncoderConfig
    best: tuple[int, ...]  # the blocks whose features classify ImageNet best, as the paper found
    files: str  # what the names of its files in AIM_REPOSITORY begin with
    repository: str  # of one file with both the backbone and a head

    @property
    def backbone(self) -> str:
        """The encoder's file."""
        return f"{self.files}_backbone.pth"

    @property
    def heads(self) -> dict[str, str]:
        """The files of the two heads, by the name of what they read."""
        return {layers: f"{self.files}_head_{layers}_layers.pth" for layers in ("last", "best")}

    def layers(self, requested: Layers | None) -> tuple[int, ...]:
        """The blocks that `choose_layers` takes of the encoder; None: the best."""
        return choose_layers("best" if requested is None else requested, self.config.depth, self.best)


AIM_RELEASED = {
    f"aim-{size}": ReleasedAIM(
        EncoderConfig(width=width, depth=depth, heads=heads),
        tuple(range(best, best + PROBED)),
        f"aim_{file}_attnprobe",
        f"apple/aim-{size}",
    )
    for size, width, depth, heads, best, file in (
        ("600M", 1536, 24, 12, 14, "600m_2bimgs"),
        ("1B", 2048, 24, 16, 12, "1b_5bimgs"),
        ("3B", 3072, 24, 24, 12, "3b_5bimgs"),
        ("7B", 4096, 32, 32, 14, "7b_5bimgs"),
    )
}

AIM_SIZES = {  # the first three are for small machines, and have no released weights
    "aim-tiny": EncoderConfig(width=192, depth=6, heads=3),  # 2.8 M parameters
    "aim-small": EncoderConfig(width=384, depth=12, heads=6),  # 21 M
    "aim-base": EncoderConfig(width=768, depth=12, heads=12),  # 85 M
    **{name: released.config for name, released in AIM_RELEASED.items()},
}

ENCODER_SIZES = AIM_SIZES | {  # those of BEiT, MAE, SimMIM and SemAIM; without released weights
    "ViT-B": EncoderConfig(patch_size=16, width=768, depth=12, heads=12),  # 86 M parameters
    "ViT-L": EncoderConfig(patch_size=16, width=1024, depth=24, heads=16),  # 303 M
}

UNTRAINED, PIXELS = "untrained", "pixels"
BASELINES = (UNTRAINED, PIXELS)  # in place of a model's name: what its features are compared with


def encoder_sizes(given: str | Mapping[str, object]) -> dict[str, object]:
    """The sizes of an encoder by the name of a preset, as EncoderConfig takes them.

    Args:
        given: one of ENCODER_SIZES; or sizes, of which `preset` names those that the others stand in place of.

    Raises InputError: an unknown name, a preset of which nothing would be left.
    """
    changes: dict[str, object] = {"preset": given} if isinstance(given, str) else dict(given)
    if "preset" not in changes:
        return changes
    preset = changes.pop("preset")
    own = own_name(preset) if isinstance(preset, str) else ""
    if own not in ENCODER_SIZES:
        near, names = did_you_mean(str(preset), ENCODER_SIZES), ", ".join(ENCODER_SIZES)
        raise InputError(f"preset={preset!r} is unknown{near}: take one of {names}, or give the sizes")
    if {"width", "depth", "heads"} <= changes.keys():
        raise InputError(
            f"preset={preset} says nothing where width, depth and heads are given too: leave the preset or these out "
            f"(in place of all sizes of a recipe: model={preset})"
        )
    return ENCODER_SIZES[own].to_dict() | changes


def choose_layers(layers: Layers, depth: int, best: tuple[int, ...] | None) -> tuple[int, ...]:
    """The blocks that a probe reads, or that features are taken of, counted from 0, in ascending order.

    Args:
        layers: "best" for those that are known as such: what the probe at hand reads (that in a model's folder, or a
            released one), else what the paper found best of an encoder of these sizes. "last" for as many last blocks;
            where no best ones are known for the last six, or all if there are fewer. Or the blocks themselves.
        depth: blocks of the model.
        best: the ones known as best; None: none.

    Raises InputError: another word, a block that there is not, "best" where none are known.
    """
    if layers == "last":
        return tuple(range(max(depth - (PROBED if best is None else len(best)), 0), depth))
    if layers == "best":
        if best is None:
            raise InputError(
                f"the best layers are known of {', '.join(AIM_RELEASED)} and of folders with a probe, not of these "
                f"{depth} blocks: take last, or a list of blocks"
            )
        return best
    if not isinstance(layers, list | tuple | range) or not all(type(layer) is int for layer in layers):
        raise InputError(f"probe_layers={layers!r} is unknown: take last, best, or a list of blocks")
    check_layers(layers, depth)
    return tuple(sorted(layers))


def best_layers(config: EncoderConfig) -> tuple[int, ...] | None:
    """The blocks that the paper found best of an encoder of these sizes; None: of others."""
    sizes = (config.width, config.depth)
    return next((r.best for r in AIM_RELEASED.values() if (r.config.width, r.config.depth) == sizes), None)


_COLLECTIONS: dict[str, Collection[str]] = {RELEASED_REPOSITORY.lower(): RELEASED, AIM_REPOSITORY.lower(): AIM_RELEASED}
_NAMES = {name.lower(): name for name in (*SHIPPED, *RELEASED, *ENCODER_SIZES)} | {
    alias.lower().replace("_", "-"): name
    for name, released in AIM_RELEASED.items()
    # apple/aim-600M, and aim-600M-2B-imgs of the released code
    for alias in (released.repository, released.files.removesuffix("_attnprobe").replace("imgs", "-imgs"))
}


def own_name(name: str) -> str:
    """The name here of a model that is given as elsewhere, in another case or with underscores; others unchanged."""
    return _NAMES.get(name.lower().replace("_", "-"), name)


def is_known(name: str) -> bool:
    """Return whether `own_name` or `check_name` knows what a name stands for: a model, or a repository of several."""
    return own_name(name) in _NAMES.values() or name.lower() in _COLLECTIONS


def check_name(name: str, known: Collection[str] = (*SHIPPED, *RELEASED)) -> str:
    """Return the model's name here, see `own_name`. Raises InputError: not one of the known ones."""
    own = own_name(name)
    if own in known:
        return own
    if several := _COLLECTIONS.get(name.lower()):
        raise InputError(f"{name} on the hub holds several models: give the name of one, {', '.join(several)}")
    elsewhere = own in _NAMES.values()
    wrong = "of another kind" if elsewhere else f"neither a folder nor a known name{did_you_mean(name, known)}"
    raise InputError(
        f"model {name!r} is {wrong}: give a model folder, a repository on the Hugging Face hub (user/model), "
        f"or one of {', '.join(known)}"
    )


def check_aim_name(name: str) -> str:
    """Return the name here of a released AIM, see `own_name`. Raises InputError: any other."""
    own = own_name(name)
    if own in ENCODER_SIZES and own not in AIM_RELEASED:
        raise InputError(
            f"{name} has no released weights: train it (a recipe of stage aim, mae, ...) and give the model folder"
        )
    return check_name(name, AIM_RELEASED)
