"""Command lines that cannot work, on small models: options with values of all kinds, words in the wrong position."""

import random
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from tiny import NAMES, ROOT, ended, image_folder, tiny_pipeline
from tiny_fuzz import Findings, files_below, mistakes

from var.cli import app
from var.cli.run import build

# Words that end at once or within a moment; OPTIONS are then given other values, one or two at a time.
COMMANDS = (
    ("sample", "--model", "model", "--class", "1", "--num", "1", "--out", "out/s"),
    ("edit", "inpaint", "photo.png", "--box", "1,1,5,5", "--model", "model", "--num", "1", "--out", "out/i"),
    ("edit", "outpaint", "photo.png", "--left", "2", "--model", "model", "--num", "1", "--out", "out/o"),
    ("edit", "upscale", "photo.png", "--model", "model", "--num", "1", "--out", "out/u"),
    (
        "edit",
        "class",
        "photo.png",
        "--box",
        "1,1,5,5",
        "--class",
        "1",
        "--model",
        "model",
        "--num",
        "1",
        "--out",
        "out/c",
    ),
    ("classify", "photo.png", "--model", "model"),
    ("train", str(ROOT / "configs" / "mini_var.yaml"), "steps=none"),
    ("data", "index", "photos"),
    ("data", "tokenize", str(ROOT / "configs" / "mini_var.yaml"), "steps=none"),
    ("features", "extract", "photos/train", "--model", "model", "--out", "out/f.parquet"),
    ("features", "classify", "a.parquet", "b.parquet", "--k", "1"),
    ("scaling", "train", str(ROOT / "configs" / "mini_var.yaml"), "steps=none", "--depths", "1,2"),
    ("scaling", "fit", "a", "b", "--out", "out/laws", "--resamples", "100"),
    ("evaluate", "generate", "--model", "none", "--num-per-class", "1", "--out", "out/set"),
    ("evaluate", "score", "--images", "none", "--reference", "photos"),
    ("evaluate", "reference", "none", "--out", "out/r.npz", "--extractor", "vgg16"),
    ("evaluate", "tokenizer", "--data", "photos", "--model", "none", "--num", "1"),
    ("evaluate", "likelihood", "--data", "photos", "--model", "model", "--num", "1"),
    ("evaluate", "classification", "--data", "photos", "--model", "model", "--num", "1"),
)
OUTPUTS = ("--out", "--json")
PARSER = typer.main.get_command(build(*app.COMMANDS, help=app.HELP))


def options_of(words: tuple[str, ...]) -> list[str]:
    command: Any = PARSER
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands[word]
    return [option for parameter in command.params for option in parameter.opts if option.startswith("--")]


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny_pipeline(NAMES).save_pretrained("model")
    image_folder(tmp_path / "photos", 1, 1)
    Image.new("RGB", (6, 6), "red").save("photo.png")
    (tmp_path / "out").mkdir()
    before = files_below(tmp_path)
    rng, findings, texts = random.Random(5), Findings(), mistakes(6)
    for number in range(340):
        command = COMMANDS[number % len(COMMANDS)]
        words, options = list(command), [*options_of(command), "--json"]
        for _ in range(rng.randrange(1, 3)):
            kind = rng.random()
            if kind < 0.6:
                words += [rng.choice(options), next(texts)]
            elif kind < 0.9:
                words[rng.randrange(1, len(words))] = next(texts)
            else:
                words.insert(rng.randrange(len(words)), next(texts))
        if any("--help" in word or "--out" in word for word in words[len(command) :]):
            continue
        monkeypatch.setattr(sys, "argv", ["var", *words])

        def call(words: list[str] = words) -> None:
            code, _, err = ended(app.main, capsys)
            if code:
                assert code == 2, code
                assert len(lines := [line for line in err.splitlines() if line.startswith("error: ")]) == 1, lines
            else:
                assert not err or "error" not in err

        findings.attempt(words, call)
        stray = files_below(tmp_path) - before
        outputs = {str(Path(value)) for option, value in pairwise(words) if option in OUTPUTS}
        if any(not {str(path) for path in (Path(name), *Path(name).parents)} & {"out", *outputs} for name in stray):
            findings.add(words, f"wrote {sorted(stray)[:5]}")
        before |= stray
    findings.check()
