"""Sampling options as a value that checks itself. Imports no torch: the commands take their defaults from here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from tokenizer.errors import InputError, check_types, check_whole_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Params = TypeVar("Params", bound="DataclassInstance")

OFF = {
    "cfg_scales": None,
    "temperature": 1.0,
    "use_scales": None,
    "steps": None,
    "diffusion_steps": None,
}  # files without these options can be read by versions that have none

MAR_STEPS = {"steps": (1, 1000), "diffusion_steps": (2, 1000)}  # options of a MAR alone, and their range


@dataclass(frozen=True)
class SamplingParams:
    """Sampling options; the defaults make good images, and measures of the distribution take less guidance.

    Attributes:
        cfg: classifier-free guidance at the last scale, rising linearly from 0; 0 switches it off.
        top_k: keep that many of the best tokens; 0 keeps all, as does more than the codebook has (a
            pipeline refuses such a value as an argument).
        top_p: of these keep the smallest set whose probability exceeds it; 0 keeps all.
        smooth: mix codewords by a Gumbel softmax; smoother images, not for metrics.
        cfg_scales: first and last scale, counted from 0, at which guidance acts (arXiv 2404.07724), as strong there as
            without a window; None: all. The unconditional half of the batch runs at these scales alone.
        temperature: logits are divided by it before top_k and top_p; one number, or one for each scale. Of a MAR it is
            a factor on the noise that the steps of its head add.
        use_scales: sides of the token maps that are drawn, the first and the last among them, by a model that was
            trained with dropped scales; None: all. Other options count scales as the model does, those left out too.
        steps: in which a MAR draws all tokens, at most as many as there are; None: 64.
        diffusion_steps: in which its head draws a token; None: 100.

    Raises:
        InputError: a value of another type or out of range.
    """

    cfg: float = 4.0
    top_k: int = 900
    top_p: float = 0.96
    smooth: bool = False
    cfg_scales: tuple[int, ...] | None = None
    temperature: float | tuple[float, ...] = 1.0
    use_scales: tuple[int, ...] | None = None
    steps: int | None = None
    diffusion_steps: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _to_python(getattr(self, field.name)))
        check_types(self, bounded=("cfg", "top_p", "temperature"))
        for name in OFF:
            if isinstance(getattr(self, name), list):  # from JSON
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 <= self.cfg < float("inf"):
            raise InputError(f"cfg={self.cfg} must be a finite number, 0 (no guidance) or more; 1.5 to 4 is usual")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be 0 (keeps all tokens) or more")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be in [0, 1]; 0 keeps all tokens")
        for name, (least, most) in MAR_STEPS.items():
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), least, most)
        window = self.cfg_scales
        if window is not None and not (len(window) == 2 and 0 <= window[0] <= window[1]):
            raise InputError(
                f"cfg_scales={list(window)} must be the first and the last scale at which guidance acts, counted from "
                "0, such as 0 and 7"
            )
        temperatures = self.temperature if isinstance(self.temperature, tuple) else (self.temperature,)
        if not all(0.01 <= temperature <= 100 for temperature in temperatures):
            raise InputError(
                f"temperature={self.temperature} must be in 0.01..100, where 1 changes nothing; for the most "
                "probable tokens of a codebook alone give top_k=1"
            )

    def check_scales(self, sides: tuple[int, ...], scale_drop: float = 0.0) -> None:
        """Raise InputError for an option that does not fit a model of these scales, trained with that scale_drop."""
        num_scales, chosen = len(sides), self.use_scales
        if chosen is not None:
            ends = chosen[:1] + chosen[-1:]
            if list(chosen) != sorted(set(chosen) & set(sides)) or ends != (sides[0], sides[-1]):
                raise InputError(
                    f"use_scales={list(chosen)} must be some of the model's scales {list(sides)} in their order, the "
                    "first and the last among them"
                )
            if chosen != sides and not scale_drop:
                raise InputError(
                    f"use_scales={list(chosen)} leaves scales out, but the model was trained with all: leave it out, "
                    "or train one with scale_drop"
                )
        if self.cfg_scales is not None and self.cfg_scales[1] >= num_scales:
            raise InputError(f"cfg_scales={list(self.cfg_scales)} must be in 0..{num_scales - 1}, the model's scales")
        if isinstance(self.temperature, tuple) and len(self.temperature) != num_scales:
            raise InputError(
                f"temperature={list(self.temperature)} must be one number, or {num_scales}, one for each of the "
                "model's scales"
            )

    def check_codebook(self) -> None:
        """Raise InputError for an option that does not fit a model that draws tokens of a codebook."""
        for name in MAR_STEPS:
            if getattr(self, name) is not None:
                raise InputError(f"{name}={getattr(self, name)} is for a MAR, and the model is none: leave it out")

    def kept_scales(self, sides: tuple[int, ...]) -> list[int]:
        """Return the scales that are drawn, counted from 0."""
        return [k for k, side in enumerate(sides) if self.use_scales is None or side in self.use_scales]

    def guides(self, k: int) -> bool:
        """Return whether guidance acts at scale k."""
        first, last = self.cfg_scales or (0, k)
        return self.cfg > 0 and first <= k <= last

    def temperature_at(self, k: int) -> float:
        """Return the temperature of scale k."""
        return self.temperature[k] if isinstance(self.temperature, tuple) else self.temperature

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as config.json stores them; options that are off are left out."""
        return {name: value for name, value in asdict(self).items() if name not in OFF or value != OFF[name]}


def _to_python(value: Any) -> Any:
    """Return numbers and arrays of NumPy or torch as Python's own; others unchanged."""
    if isinstance(value, list | tuple):
        return type(value)(map(_to_python, value))
    return value.tolist() if hasattr(value, "tolist") else value


FOR_METRICS = SamplingParams(cfg=1.5)  # of the paper's FID


class SamplingKeywords(TypedDict, total=False):
    """The fields of SamplingParams as keywords; None: the model's own."""

    cfg: float | None
    top_k: int | None
    top_p: float | None
    smooth: bool | None
    cfg_scales: tuple[int, ...] | None
    temperature: float | tuple[float, ...] | None
    use_scales: tuple[int, ...] | None
    steps: int | None
    diffusion_steps: int | None


def apply_options(params: Params, options: Mapping[str, object]) -> Params:
    """Return the dataclass with the options that are its fields replaced; None keeps its own value.

    Raises:
        InputError: a value out of range.
    """
    names = {field.name for field in fields(params)}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    return replace(params, **given)


def check_known(options: Mapping[str, object], *params: "DataclassInstance") -> None:
    """Raise TypeError, as a call does, for an option that is a field of none of the dataclasses."""
    known = {field.name for each in params for field in fields(each)}
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unknown option {unknown[0]!r}: known are {', '.join(sorted(known))}")
