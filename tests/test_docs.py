"""The commands and Python blocks of README and docs, run as they stand there, one after the other in one folder.

A reader's own files and released weights are stood in for by small ones (STAND_INS), and what takes hours is made short
by more options at a command's end, where the last one counts (SHORTER). A launcher's options are parsed, and what it
would start on several processes runs on this one; of `make` only the target is looked up, and nothing is fetched. The
Hugging Face hub is a small one on this machine. A page's Python blocks share their names.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch.distributed.run
from accelerate.commands.launch import launch_command_parser
from helpers import small_var, small_vqvae
from nbclient import NotebookClient
from PIL import Image
from tiny import ROOT, Ended, Run
from tiny_aim import small_aim
from tiny_hub import Hub

from var.hub.checkpoint import save_model
from var.hub.presets import SHIPPED
from var.pipeline import VARPipeline

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LABELS = (1, 145, 207, 323, 779, 951, 970, 978)  # those of var-mini
STAND_INS = {
    "FOLDER": "pictures",
    "SOURCE": "pictures",
    "MODEL": "var-mini",
    "DIR|NPZ": "samples/mini",
    "RECIPE": "configs/tiny_imagenet_scaling.yaml data.source=pictures",
    "RUNS": "runs/tiny_imagenet_scaling/d?",
    "var-d16": "released/var",
    "var-d30": "released/var",
    "aim-600M-2B-imgs": "released/aim",
    "aim-600M": "released/aim",
    "lpips-vgg": "efficientnet-lite2",  # whose package brings its weights
}
SHORTER = {
    "app": "--port 0",
    "train configs/own_folder_tokenizer": "steps=2 batch_size=2",
    "train configs/own_folder_var": "steps=2 batch_size=2 token_views=1",
    "train configs/tune_decoder": "steps=2 batch_size=2",
    "train configs/finetune_mini": "steps=2 batch_size=2 token_views=1",
    "train configs/tiny_imagenet_aim": "epochs=null steps=2 batch_size=4",
    "train configs/tiny_imagenet_beit": "epochs=null steps=2 batch_size=4",
    "train configs/tiny_imagenet_semaim": "epochs=null steps=2 batch_size=4",
    "train configs/tiny_imagenet_mae": "epochs=null steps=2 batch_size=4",
    "train configs/tiny_imagenet_simmim": "epochs=null steps=2 batch_size=4",
    "train configs/tiny_imagenet_raster": "epochs=null steps=2 batch_size=2",
    "train configs/tiny_imagenet_mar_tokenizer": "epochs=null steps=2 batch_size=2",
    "train configs/tiny_imagenet_mar.yaml": "epochs=null steps=2 batch_size=2 token_views=1 model.depth=2 "
    "model.width=64 model.heads=2 sampling.steps=2 sampling.diffusion_steps=2",
    "train configs/tiny_imagenet_probe": "steps=2 batch_size=4",
    "train configs/tiny_imagenet_scaling": "steps=1 batch_size=4 validate_every=1 token_views=1",
    "train configs/cca_mini": "steps=1 batch_size=4",
    "train configs/ddo_mini": "steps=1 batch_size=4 reference_samples=4",
    "scaling train": "--depths 1,2,3 steps=4 batch_size=4 validate_every=1 token_views=1",
    "scaling fit": "--resamples 100",
    "sample --model released/var --class 207 --refiner": "--refine-from 2",  # the stand-in has three scales
    "bench": "--repeats 1",
    "evaluate generate": "--num-per-class 1 --top-k 0",  # the stand-in's codebook is small
    "evaluate score": "--extractor efficientnet-lite0",  # whose package brings its weights
    "evaluate tokenizer": "--extractor efficientnet-lite0 --num 4",
    "evaluate likelihood": "--num 4",
    "evaluate classification": "--num 4",
}


def examples() -> Iterator[tuple[Path, int, str, str]]:
    """Page, line, language and text of every command in a bash block and of every Python block."""
    for page in PAGES:
        language, block = "", ""
        for number, line in enumerate(page.read_text().splitlines(), 1):
            if line.startswith("```"):
                if language == "python":
                    yield page, number, language, block
                language, block = ("" if language else line.removeprefix("```")), ""
            elif language == "bash":
                for command in re.sub(r"(^|\s+)#.*", "", line).split(" && "):
                    yield page, number, language, command
            else:
                block += f"{line}\n"


def commands() -> Iterator[tuple[str, str]]:
    """Place and text of every command in a bash block."""
    for page, number, language, command in examples():
        if language == "bash":
            yield f"{page.name}:{number}", command


def words_of(command: str) -> list[str]:
    """Of the command with all that is optional, and with stand-ins."""
    return shlex.split(with_stand_ins(command.replace("[", "").replace("]", "")))


def with_stand_ins(text: str) -> str:
    for word, stand_in in STAND_INS.items():
        text = re.sub(rf"(?<![\w-]){re.escape(word)}\b" if word.isalnum() else re.escape(word), stand_in, text)
    return text


def noise(path: Path, seed: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader has: the clone, pictures in folders of classes, a photograph with a mask, released weights."""
    for name in ("configs", "var"):
        (tmp_path / name).symlink_to(ROOT / name)
    pictures = tmp_path / "pictures"
    for label in LABELS:
        for i, split in enumerate(("train", "train", "train", "val", "val")):
            noise(pictures / split / str(label) / f"{i}.png", 5 * label + i, 64)
    (pictures / "classes.json").write_text(json.dumps({label: {"name": str(label)} for label in LABELS}))
    noise(tmp_path / "photo.jpg", 0, 240)
    noise(tmp_path / "small.png", 1, 20)
    mask = Image.new("L", (240, 240))
    mask.paste(255, (80, 60, 180, 200))
    mask.save(tmp_path / "mask.png")
    names = {1: "goldfish", 145: "king penguin", 207: "golden retriever", 999: "toilet tissue"}
    VARPipeline(small_var(num_classes=1000), small_vqvae(), names).save_pretrained(tmp_path / "released" / "var")
    save_model(tmp_path / "released" / "aim", small_aim(image_size=224, patch_size=56, depth=8))
    return tmp_path


@pytest.fixture
def perform(var: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Do what the words of a command say, as far as a test can; a command of another kind fails."""

    def in_this_process(command: Sequence[str]) -> int:
        code, _, err = var(*command[3:])
        print(err, file=sys.stderr)
        return code

    monkeypatch.setattr("var.training.series._run", in_this_process)
    monkeypatch.setattr("var.bench.ceilings.LONGEST", 0.0)
    monkeypatch.setattr("var.cli.page.wait", lambda: None)  # the page ends as soon as it is served

    def call(*words: str) -> Ended:
        match words:
            case ("make", target):
                assert f"\n{target}: " in (ROOT / "Makefile").read_text(), f"no target {target}"
            case ("source", ".venv/bin/activate"):
                pass
            case ("curl", "-LO", address):
                shutil.copy("val.npz", address.split("/")[-1])
            case ("torchrun", *options):
                started = torch.distributed.run.get_args_parser().parse_args(options)
                return call(started.training_script, *started.training_script_args)
            case ("accelerate", "launch", *options):
                started = launch_command_parser().parse_args(options)
                return call(started.training_script, *started.training_script_args)
            case ("python", ("sample.py" | "train.py") as script, *options):
                return call(script, *options)
            case (("sample.py" | "train.py") as script, *options):
                return call("var", script.removesuffix(".py"), *options)
            case ("var", *options):
                shorter = [more for start, more in SHORTER.items() if " ".join(options).startswith(start)]
                found = [sorted(folder.glob(option)) if "?" in option else [option] for option in options]
                return var(*chain(*found), *" ".join(shorter).split())
            case _:
                pytest.fail(f"{words} is none of the commands that this test can run")
        return 0, "", ""

    return call


def test_they_run(perform: Run) -> None:
    failed = []
    for place, command in commands():
        code, _, err = perform(*words_of(command))
        if code:
            failed.append(f"{place}: {command}: {err}")
    assert failed == [], "\n".join(failed)


def test_python_blocks_run(perform: Run, folder: Path, hub: Hub) -> None:
    """Those of a page share their names; what they read has been trained by commands of other places."""
    (folder / "runs" / "own_var").mkdir(parents=True)
    (folder / "runs" / "own_var" / "model").symlink_to(SHIPPED["var-mini"])
    probe = ("configs/tiny_imagenet_probe.yaml", "model=var-mini", "sizes=null", "output=runs/tiny_imagenet_probe_var")
    noise(folder / "small.png", 1, 4)  # smaller than the images of the released model's stand-in
    code, _, err = perform("var", "train", *probe, "data.source=pictures")
    assert not code, err
    failed, names = [], {page: dict[str, object]() for page in PAGES}
    for page, number, language, block in examples():
        if language == "python":
            try:
                exec(compile(with_stand_ins(block), f"{page.name}:{number}", "exec"), names[page])
            except Exception as error:
                without_backend = isinstance(error, ModuleNotFoundError) and error.name in {"jax", "mlx"}
                if not without_backend:  # `make lowest` has none
                    failed.append(f"{page.name}:{number}: {error!r}")
    assert failed == [], "\n".join(failed)


def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, build = pytest.importorskip("mkdocs.config"), pytest.importorskip("mkdocs.commands.build")
    monkeypatch.chdir(ROOT)
    build.build(config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))  # raises on a warning
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.parametrize("start", SHORTER)
def test_what_is_made_shorter_is_there(start: str) -> None:
    """Or else what was renamed would run for hours."""
    given = [" ".join(words_of(command)).replace(" train.py", " var train") for _, command in commands()]
    assert any(f"var {start}" in command for command in given)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = nbformat.read(notebook, as_version=4)
    NotebookClient(cells, timeout=300, kernel_name="python3").execute()  # raises what a cell raises
