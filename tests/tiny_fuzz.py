"""Mistakes of all kinds, and a loop that tries them: each must end in a refusal of one line, or work.

All is drawn from a seed, so a failure comes again. No text leads out of the folder that a test works in, whoever runs
it: commands really write where their options say. The time of a case is that of the processor, which a busy machine
does not lengthen.
"""

import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizer.errors import InputError

SECONDS = 10  # of the processor, for one case
MOST_CHARACTERS = 2500  # of a refusal

TEXTS = (
    *("", " ", "\t", "\n", ".", "~", "~nosuchuser", "~nosuchuser/x", "-", "--", "=", "x", "none", "null"),
    *("x" * 5000, "a/" * 3000, "9" * 5000, "é" * 200, "\udcff", "a\udcffb", "\ud800", "\u202e", "\x07"),
    *("\0", "a\0b", "%s%n", "{}", "[]", "{", "[", "*", "&", "*a", "&a [*a]", "!!python/object:os.system x", "? ? ?"),
    *("[" * 3000, "{a: " * 3000, "${", "${oc.env:NOSUCHVARIABLE}", "${x}", "${stage}", "???", "${oc.decode:'['}"),
    *("photo.png/x", "photos", "nowhere/a.json", "a.yaml", "b.npz", "c.parquet"),
    *("true", "1,2", "1,,2", "1,2,", ",", "0x10", "1_000", "2020-01-01", "1:30", "<<", "@", "`", "#", "\\", '"', "'"),
    *("https://", "file:///nowhere/x.json", "s3::x", "a::b.json", "hf://", "C:\\x", "a b c", "🦊"),
)
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "1000000000",
        "1000000000000",
        "1000000000000000000",
        "1" + "0" * 30,
        "-" + "9" * 30,
    ),
    *("nan", "inf", "-inf", ".nan", ".inf", "1e308", "1e999", "-1e999", "1e-400", "0.5", "-0.5", "0.0", "-0.0", "1.5"),
)
VALUES: tuple[Any, ...] = (  # of JSON
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**18, 10**30, 10**400, -(10**30), 0.5, -0.5, 1e308),
    *("", "x", "16", "x" * 5000, "a\0b", "é", [], {}, [[]], [0], [1, 2], [10**9], [-1], ["x"], [None], [1] * 2000),
    *({"a": 1}, {"": {}}, {"0": {"name": 1}}, {"-1": {"name": "x"}}, {"9" * 30: {"name": "x"}}),
)


def mistakes(seed: int) -> Iterator[str]:
    """Draw texts without end: known troublemakers, numbers, and random ones."""
    rng = random.Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield rng.choice(TEXTS)
        elif kind < 0.85:
            yield rng.choice(NUMBERS)
        else:
            codes = (
                rng.choice((rng.randrange(32, 127), rng.randrange(1, 0xD800))) for _ in range(rng.randrange(1, 12))
            )
            yield "".join(map(chr, codes)).replace("/", "|").replace("..", ".|")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Change a file's bytes: some of them, its end, or a part that is repeated or left out."""
    kind, where = rng.randrange(5), rng.randrange(len(content))
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[:where] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + content[where:]
    if kind == 2:
        return content[:where] + content[where + rng.randrange(1, 40) :]
    if kind == 3:
        return content[:where] + content[where // 2 : where] + content[where:]
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 10)):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 128, 127, rng.randrange(256)))
    return bytes(changed)


def replaced(values: Any, rng: random.Random) -> Any:
    """Return a copy of nested values of JSON in which one is replaced, left out or given another name."""
    if isinstance(values, dict) and values and rng.random() < 0.9:
        key = rng.choice(list(values))
        kind = rng.random()
        if kind < 0.1:
            return {name: value for name, value in values.items() if name != key}
        if kind < 0.2:
            return {(rng.choice(("x", "", "a\0", "9" * 400)) if name == key else name): v for name, v in values.items()}
        return values | {key: replaced(values[key], rng)}
    if isinstance(values, list) and values and rng.random() < 0.6:
        at = rng.randrange(len(values))
        return [*values[:at], replaced(values[at], rng), *values[at + 1 :]]
    return rng.choice(VALUES)


@contextmanager
def limited_time() -> Iterator[None]:
    """Raise TimeoutError inside after so many seconds of the processor."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not refused in {SECONDS} s")

    former = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


class Findings:
    """What went otherwise than it may, to be shown all at once."""

    def __init__(self) -> None:
        self.cases, self.wrong = 0, dict[str, str]()

    def attempt(self, case: object, call: Callable[[], object]) -> None:
        """Call it: InputError of one line's length, or nothing, may come of it, in time."""
        self.cases += 1
        try:
            with limited_time():
                call()
        except InputError as error:
            if len(str(error)) > MOST_CHARACTERS:
                self.add(case, f"a refusal of {len(str(error))} characters: {str(error)[:200]}")
        except SystemExit as end:
            if end.code not in (0, 2):
                self.add(case, f"exit code {end.code}")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(where) if "/var/" in f.filename or "/tokenizer/" in f.filename), where[-1])
            self.add(case, f"{type(error).__name__} at {ours.filename}:{ours.lineno}: {str(error)[:200]}")

    def add(self, case: object, fault: str) -> None:
        """Keep a fault, once for each kind."""
        self.wrong.setdefault(fault[:120], f"{str(case)[:300]!r}: {fault}")

    def check(self, at_least: int = 300) -> None:
        """Fail if anything was found."""
        assert self.cases >= at_least
        assert not self.wrong, f"{len(self.wrong)} kinds of faults:\n" + "\n".join(self.wrong.values())


def files_below(folder: Path) -> set[str]:
    """List all that is in a folder, at any depth."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
