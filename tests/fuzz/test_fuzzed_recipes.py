"""Recipes that cannot work: overrides and YAML files."""

import random
from pathlib import Path

import pytest
from tiny import ROOT
from tiny_fuzz import Findings, damaged, files_below, mistakes

from var.training.recipe import load_recipe
from var.training.recipe_errors import fields_of, type_at
from var.training.stages.base import find_stage, stage_names

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def keys_of(section: type, prefix: str = "") -> list[str]:
    """List all keys of a recipe, those of sections and those in them."""
    keys = []
    for name in fields_of(section):
        inner = type_at(section, [name])
        keys += [prefix + name, *(keys_of(inner, f"{prefix}{name}.") if inner is not None else ())]
    return keys


def test_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng, findings, texts = random.Random(1), Findings(), mistakes(2)
    for stage in stage_names():
        base = next(path for path in RECIPES if f"stage: {stage}\n" in path.read_text())
        for key in keys_of(find_stage(stage).recipe_type):
            override = f"{key}={next(texts)}"
            findings.attempt(override, lambda base=base, override=override: load_recipe(base, [override]))
        for _ in range(12):
            several = [f"{rng.choice(('x', 'data', 'model.depth', 'a.b.c', ''))}={next(texts)}", next(texts)]
            findings.attempt(several, lambda base=base, several=several: load_recipe(base, several))
    findings.check()
    assert not files_below(tmp_path)


def test_yaml_files(tmp_path: Path) -> None:
    rng, findings, texts = random.Random(3), Findings(), mistakes(4)
    file, beside = tmp_path / "r.yaml", tmp_path / "base.yaml"
    beside.write_bytes(RECIPES[0].read_bytes())
    for number in range(300):
        content = rng.choice(RECIPES).read_bytes()
        if number % 4 == 0:
            content = next(texts).encode(errors="surrogatepass")
        elif number % 4 == 1:
            lines = content.splitlines()
            at = rng.randrange(len(lines))
            lines[at] = lines[at].split(b":")[0] + b": " + next(texts).encode(errors="surrogatepass")
            content = b"\n".join(lines)
        elif number % 4 == 2:
            content = (
                f"base: {next(texts)}\n".encode(errors="surrogatepass")
                if number % 8
                else b"base: base.yaml\n" + content
            )
        else:
            content = damaged(content, rng)
        file.write_bytes(content)
        findings.attempt(content[:3000], lambda: load_recipe(file))
    findings.check()
    assert files_below(tmp_path) == {"r.yaml", "base.yaml"}


BOMBS = {
    "deep": "a: " + "[" * 20_000,
    "deep mapping": "{a: " * 20_000,
    "indented": "".join(" " * i + "a:\n" for i in range(500)),
    "cycle": "stage: &a [*a]",
    "laughs": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "merges": "a: &a {b: 1}\n" + "".join(f"a{i}: {{<<: *a}}\n" for i in range(2000)),
    "number": f"stage: {'9' * 5000}",
    "long": f"stage: {'x' * 5_000_000}",
    "utf-16": "stage: tokenizer".encode("utf-16"),
    "latin": "output: caf\xe9".encode("latin-1"),
    "nothing": "",
    "documents": "stage: a\n---\nstage: b\n",
    "tag": "stage: !!python/object/apply:os.system [true]",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_made_to_do_harm(name: str, tmp_path: Path) -> None:
    content, findings = BOMBS[name], Findings()
    file = tmp_path / "r.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    findings.attempt(name, lambda: load_recipe(file))
    findings.check(1)
