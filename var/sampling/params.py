"""Sampling options as a value that checks itself. Imports no torch: the commands take their defaults from here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from tokenizer.errors import InputError, check_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Params = TypeVar("Params", bound="DataclassInstance")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling options; the defaults make good images, and measures of the distribution take less guidance.

    Attributes:
        cfg: classifier-free guidance at the last scale, rising linearly from 0; 0 switches it off.
        top_k: keep that many of the best tokens; 0 keeps all, as does more than the codebook has (a
            pipeline refuses such a value as an argument).
        top_p: of these keep the smallest set whose probability exceeds it; 0 keeps all.
        smooth: mix codewords by a Gumbel softmax; smoother images, not for metrics.

    Raises:
        InputError: a value of another type or out of range.
    """

    cfg: float = 4.0
    top_k: int = 900
    top_p: float = 0.96
    smooth: bool = False

    def __post_init__(self) -> None:
        check_types(self, bounded=("cfg", "top_p"))
        if not 0 <= self.cfg < float("inf"):
            raise InputError(f"cfg={self.cfg} must be a finite number, 0 (no guidance) or more; 1.5 to 4 is usual")
        if self.top_k < 0:
            raise InputError(f"top_k={self.top_k} must be 0 (keeps all tokens) or more")
        if not 0 <= self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be in [0, 1]; 0 keeps all tokens")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as config.json stores them."""
        return asdict(self)


FOR_METRICS = SamplingParams(cfg=1.5)  # of the paper's FID


class SamplingKeywords(TypedDict, total=False):
    """The fields of SamplingParams as keywords; None: the model's own."""

    cfg: float | None
    top_k: int | None
    top_p: float | None
    smooth: bool | None


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
