"""The settings of the page as a command line and as Python, which give the same images."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from var.sampling.params import SamplingParams

FLAGS = {True: "", False: "no-"}


def changed_options(chosen: SamplingParams, default: SamplingParams) -> dict[str, Any]:
    """Return the options that differ from the model's own, by name."""
    return {name: value for name, value in asdict(chosen).items() if value != getattr(default, name)}


def command_line(words: Sequence[object], options: Mapping[str, Any]) -> str:
    """Return a command with options: lists are repeated, True and False are flags, None is left out."""
    parts = [str(word) for word in words]
    for name, value in options.items():
        option = name.replace("_", "-")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, bool):
                parts.append(f"--{FLAGS[each]}{option}")
            elif each is not None:
                parts += [f"--{option}", f"{each:g}" if isinstance(each, float) else str(each)]
    return shlex.join(parts)


def python_call(model: str, call: str, arguments: Sequence[object], options: Mapping[str, Any]) -> str:
    """Return a script that loads the model and makes a call with arguments, as written, and options that are set."""
    several = options.get("num", 1) > 1 or any(isinstance(each, list) and len(each) > 1 for each in arguments)
    keywords = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return "\n".join(
        (
            "from var import VARPipeline",
            "",
            f"pipe = VARPipeline.from_pretrained({model!r}).pack()",
            f"out = pipe{call}({', '.join([*map(str, arguments), *keywords])})",
            f'out.save("{"edits" if call else "samples"}")' if several else 'out.images[0].save("image.png")',
        )
    )
