"""Conversion from and to the released files' state dicts; the code is in `var.hub`."""

from var.hub.convert import load_official, load_official_tokenizer, load_official_var, to_official
from var.hub.convert_aim import load_official_aim, to_official_aim

__all__ = [
    "load_official",
    "load_official_aim",
    "load_official_tokenizer",
    "load_official_var",
    "to_official",
    "to_official_aim",
]
