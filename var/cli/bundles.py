"""Options that go together: a command's parameter of such a type stands for all its fields, see `run.flatten`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from var.cli import options


@dataclass(frozen=True)
class ModelOptions:
    """A model and how it is loaded."""

    model: options.Model = "var-mini"
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are sampled."""

    seed: options.Seed = 0
    cfg: options.Cfg = None
    top_k: options.TopK = None
    top_p: options.TopP = None
    smooth: options.Smooth = None


@dataclass(frozen=True)
class MaskOptions:
    """What is inpainted, and how much around it the model sees."""

    mask: options.MaskFile = None
    box: options.Boxes = None
    context: options.Context = None
    hide_masked: options.HideMasked = None


@dataclass(frozen=True)
class BlendOptions:
    """How results go with the image around the mask."""

    dilate: options.Dilate = None
    feather: options.Feather = None
    composite: options.Composite = None
    color_match: options.ColorMatch = None


@dataclass(frozen=True)
class ResultOptions:
    """How many results of an edit, and where they go."""

    num: options.NumResults = 4
    out: options.SampleFolder = Path("edits")


def given(*bundles: SamplingOptions | BlendOptions, **more: object) -> dict[str, Any]:
    """The options that are not None, as keywords of the library."""
    values = [*(item for bundle in bundles for item in vars(bundle).items()), *more.items()]
    return {name: value for name, value in values if value is not None}
