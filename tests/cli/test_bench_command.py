"""`var bench` on tiny models: what it prints and writes, and what it refuses. No time is asserted."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Run, refusal
from tiny_aim import small_aim

from var.hub.checkpoint import save_model

RESULT = {
    *("work", "batch", "dtype", "compiled", "seconds", "images_per_second", "peak_memory", "flops", "ceilings"),
    *("floor", "time_over_floor"),
}


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.bench.ceilings.LONGEST", 0.0)
    monkeypatch.setattr("var.bench.ceilings.SHORTEST", 0.0)


def measured(var: Run, *arguments: object) -> tuple[str, dict[str, Any]]:
    """Printed and written."""
    code, out, err = var("bench", *arguments, "--repeats", 2, "--json", "bench.json")
    assert (code, err) == (0, "")
    return out, json.loads(Path("bench.json").read_text())


def test_all_works_of_a_var_at_two_batches(var: Run, model: Path) -> None:
    out, written = measured(var, "all", "--model", model, "--batch", "1,2", "--threads", 1, "--dtype", "float32")
    machine = written["machine"]
    assert (machine["threads"], machine["torch"]) == (1, torch.__version__)
    assert {"processor", "flags", "device"} <= machine.keys()
    assert machine["processor"] in out.splitlines()[0]
    works = ("sample", "encode", "decode", "train", "train-tokenizer")
    results = written["results"]
    assert [(r["work"], r["batch"]) for r in results] == [(work, batch) for work in works for batch in (1, 2)]
    for result in results:
        assert result.keys() == RESULT
        assert len(result["seconds"]["values"]) == 2
        assert set(result["ceilings"]) == {"product", "convolution", "convolution, channels last", "copy"}
        assert result["peak_memory"] > 0
        assert any(line.startswith(f"{result['work']} ") for line in out.splitlines())
    for one, two in zip(results[::2], results[1::2], strict=True):
        for kind in ("products", "convolutions"):
            assert 0 < one["flops"][kind] < two["flops"][kind] <= 2 * one["flops"][kind]


def test_sampling_in_int8(var: Run, model: Path) -> None:
    out, written = measured(var, "sample", "--model", model, "--dtype", "float32,int8")
    float32, int8 = written["results"]
    assert (float32["dtype"], int8["dtype"]) == ("float32", "int8")
    assert set(int8["ceilings"]) == {"int8 product", *float32["ceilings"]}
    assert re.search(r"^int8 product +int8 ", out, re.MULTILINE)
    counts = float32["flops"], int8["flops"]
    assert counts[0]["int8_products"] == 0 < counts[1]["int8_products"]
    assert counts[1]["products"] + counts[1]["int8_products"] == counts[0]["products"]


def test_features_of_an_aim_in_two_types(var: Run, tmp_path: Path) -> None:
    save_model(tmp_path / "aim", small_aim())
    _, written = measured(var, "all", "--model", tmp_path / "aim", "--dtype", "float32,bfloat16")
    assert [(r["work"], r["dtype"]) for r in written["results"]] == [
        ("features", "float32"),
        ("features", "bfloat16"),
    ]


def test_eager_and_compiled_are_compared(var: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []

    def compile_nothing(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    for work in ("sample", "decode", "train"):
        _, written = measured(var, work, "--model", model, "--compile", "no")
        assert ([r["compiled"] for r in written["results"]], compiled) == ([False], [])
        _, written = measured(var, work, "--model", model, "--compile", "both")
        assert [r["compiled"] for r in written["results"]] == [False, True]
        assert compiled
        compiled.clear()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("smaple",), ("'smaple' is no work of a VAR", "sample, encode, decode, train, train-tokenizer or all")),
        (("features",), ("'features' is no work of a VAR",)),
        (("encode", "--model", "aim-tiny"), ("'encode' is no work of an AIM", "features")),
        (("sample", "--model", "var-d17"), ("'var-d17'", "var-d16")),
        (("sample", "--batch", "0"), ("batch=0", "1")),
        (("sample", "--batch", "1,10000000000"), ("batch=10000000000", "1..16777216")),
        (("sample", "--batch", "1,"), ("--batch", "1,4")),
        (("sample", "--repeats", "0"), ("repeats=0",)),
        (("sample", "--threads", "0"), ("threads=0",)),
        (("sample", "--dtype", "float32,int3"), ("'int3'", "float32, bfloat16 or int8")),
        (("all", "--dtype", "float32,int8"), ("encode is not done in int8", "sample")),
        (("sample", "--dtype", "int8", "--compile", "both"), ("sample, compiled, is not done in int8",)),
        (("features", "--model", "aim-tiny", "--dtype", "int8"), ("features is not done in int8", "bfloat16")),
        (("sample", "--device", "cuda:99"), ("'cuda:99' cannot be used",)),
        (("sample", "--compile", "maybe"), ("--compile", "maybe")),
        (("sample", "--json", "nowhere/"), ("nowhere",)),
        ((), ("Missing argument",)),
    ],
)
def test_what_cannot_be_measured(var: Run, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    Path("nowhere").mkdir()
    refusal(var("bench", *arguments), *parts)
