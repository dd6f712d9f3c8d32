"""`python sample.py`: the files that it writes, and that every mistake is one line and exit code 2."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import NAMES, ROOT, Ended, Run, refusal, run, tiny_pipeline

from var.hub.presets import SHIPPED
from var.pipeline import PipelineOutput, VARPipeline


@pytest.fixture
def sample(var: Run, model: Path) -> Run:
    """The command on the tiny model unless told otherwise."""

    def call(*arguments: object) -> Ended:
        chosen = [] if "--model" in arguments else ["--model", model]
        typed = [] if "--dtype" in arguments else ["--dtype", "float32"]
        return var("sample", *chosen, *typed, *arguments)

    return call


# --- images


def test_files_and_what_is_printed(sample: Run, tmp_path: Path) -> None:
    code, out, err = sample("--class", 3, "--class", "red fox", "--num", 2, "--out", "images")
    assert (code, err) == (0, "")
    names = ["3_0.png", "3_1.png", "0_0.png", "0_1.png", "grid.png"]
    *paths, summary = out.splitlines()
    assert paths == [f"images/{name}" for name in names]
    assert "4 images in" in summary
    assert "model loaded in" in summary
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(names)
    drawn = tiny_pipeline(NAMES)([3, 0], num=2)
    for name, image in zip(names, drawn.images, strict=False):
        with Image.open(tmp_path / "images" / name) as saved:
            assert (saved.mode, saved.tobytes()) == ("RGB", image.tobytes())
    with Image.open(tmp_path / "images" / "grid.png") as grid:
        assert grid.size == (2 * 130 - 2, 2 * 130 - 2)  # two columns, enlarged to be seen


def test_classes_by_position_and_with_commas(sample: Run) -> None:
    def drawn(*arguments: object) -> list[str]:
        code, out, err = sample(*arguments, "--num", 1)
        assert code == 0, err
        return [Path(line).stem for line in out.splitlines()[:-2]]

    assert drawn(3, "red fox") == drawn("3,red fox") == drawn("--class", "3, red fox") == ["3_0", "0_0"]
    assert drawn(3, "--class", "0,1", "--class", 4) == ["3_0", "0_0", "1_0", "4_0"]
    refusal(sample("3,zebra"), "'zebra'")
    refusal(sample("3,"), "class ''")


def test_the_default_is_a_mix_of_the_known_classes(sample: Run, tmp_path: Path) -> None:
    code, out, _ = sample("--num", 1)
    assert code == 0
    names = [f"{name}.png" for name in ("0_0", "1_0", "3_0", "4_0", "grid")]
    assert [Path(line).name for line in out.splitlines()[:-1]] == names
    assert (tmp_path / "samples" / "grid.png").is_file()


def test_the_image_after_every_scale_and_the_gif(sample: Run, tmp_path: Path) -> None:
    code, out, _ = sample("--class", 1, "--num", 2, "--scales", "--out", "o")
    assert code == 0
    names = [name for i in range(2) for name in (f"1_{i}", *(f"1_{i}_scale{k}" for k in range(3)))]
    assert [Path(line).name for line in out.splitlines()[:-1]] == [
        *(f"{name}.png" for name in names),
        "growth.gif",
        "grid.png",
    ]
    with Image.open(tmp_path / "o" / "1_1.png") as last, Image.open(tmp_path / "o" / "1_1_scale2.png") as scale:
        assert last.tobytes() == scale.tobytes()
    with Image.open(tmp_path / "o" / "1_1_scale0.png") as first:
        assert first.tobytes() != scale.tobytes()
    with Image.open(tmp_path / "o" / "growth.gif") as gif:
        frames = getattr(gif, "n_frames", 1)
        durations = []
        for frame in range(frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
        assert gif.info["loop"] == 0
        assert gif.size == (2 * 130 - 2, 128)
    assert frames == 3
    assert durations == [350, 350, 4 * 350]  # the whole image stands longest


def test_many_images_are_summed_up_in_a_line_and_a_bounded_grid(sample: Run, tmp_path: Path) -> None:
    code, out, err = sample("--class", 3, "--class", 0, "--num", 40, "--top-k", 1, "--cfg", 0)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first == "80 images in samples; grid.png shows 64 of them"
    assert second.startswith("80 images in ")
    assert len(list((tmp_path / "samples").iterdir())) == 81
    with Image.open(tmp_path / "samples" / "grid.png") as grid:
        assert grid.size == (8 * 130 - 2, 8 * 130 - 2)


def test_it_says_that_earlier_images_will_be_replaced(sample: Run) -> None:
    for num, options, said in ((2, (), ""), (3, ("--seed", 1), "3 images in samples will be replaced; another --out")):
        code, _, err = sample(3, "--num", num, *options)
        assert code == 0
        assert err.startswith(said)
        assert bool(err) == bool(said)
    code, _, err = sample(1, "--num", 1)  # of other names: the grid alone is replaced
    assert (code, err) == (0, "1 image in samples will be replaced; another --out keeps it\n")


def test_what_is_drawn_stays_when_it_is_stopped(sample: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: VARPipeline, *arguments: Any, **options: Any) -> Iterator[PipelineOutput]:
        yield next(batches(self, *arguments, **options))
        signal.raise_signal(signal.SIGINT)

    batches = VARPipeline.batches
    monkeypatch.setattr(VARPipeline, "batches", interrupted)
    code, out, err = sample("--class", 3, "--num", 40)
    assert (code, out, err) == (130, "", "stopped: 16 of 40 images are in samples\n")
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == sorted([*(f"3_{i}.png" for i in range(16)), "grid.png"])
    with Image.open(tmp_path / "samples" / "grid.png") as grid:
        assert grid.size == (8 * 130 - 2, 2 * 130 - 2)


def test_options_change_the_images(sample: Run, tmp_path: Path) -> None:
    def pixels(*options: object) -> bytes:
        code, _, err = sample("--class", 1, "--num", 1, *options)
        assert code == 0, err
        with Image.open(tmp_path / "samples" / "1_0.png") as image:
            return image.tobytes()

    usual = pixels()
    assert pixels("--seed", 0, "--cfg", 4, "--top-k", 32, "--top-p", 0.96) == usual
    for options in (("--seed", 1), ("--cfg", 0), ("--top-k", 1), ("--top-p", 0.01), ("--smooth",)):
        assert pixels(*options) != usual


# --- mistakes


def test_a_misspelt_name_is_refused_before_a_model_is_loaded(sample: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VARPipeline, "from_pretrained", None)
    refusal(sample("--class", "0,red foks"), "did you mean 'red fox'")
    for name in ("var-mini", "VAR-d16"):
        refusal(sample("kingpenguin", "--model", name), "did you mean 'king penguin'")


def test_an_unknown_class(sample: Run) -> None:
    refusal(sample("--class", "zebra"), "'zebra'", "red fox")
    refusal(sample("--class", "red foks"), "did you mean 'red fox'")
    refusal(sample("--class", 2), "class 2 is not one that this model was trained on", "0 red fox, 1 tabby_cat")
    refusal(sample("--class", 5), "class 5 is not one that this model was trained on", "0 red fox, 1 tabby_cat")
    refusal(sample("--class", -1), "class -1")
    refusal(sample("--class=--5"), "'--5'")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--cfg", -1), ("cfg=-1.0", "or more")),
        (("--cfg", "nan"), ("cfg=nan",)),
        (("--top-k", -3), ("top_k=-3", "0 (keeps all tokens)")),
        (("--top-k", 33), ("top_k=33", "0..32", "0 keeps all")),
        (("--top-p", 2), ("top_p=2.0", "[0, 1]")),
        (("--top-p", -0.1), ("top_p=-0.1",)),
        (("--num", 0), ("num=0", "1..1000")),
        (("--num", 10**9), ("num=1000000000", "1..1000")),
        (("--seed", -1), ("seed=-1",)),
        (("--out", "/proc/x", "--model", "no/such/folder"), ("cannot write /proc/x: /proc takes no files",)),
        (("--out", "a" * 300, "--model", "no/such/folder"), ("out='aaa", "is too long, 300 bytes")),
        (("--num", "abc"), ("--num", "integer", "--help lists the options")),
        (("--nmu", 3), ("--nmu", "--num")),
        (("--device", "gpu"), ("device 'gpu'", "take cpu")),
        (("--device", "cuda:77"), ("device 'cuda:77'",)),
        (("--dtype", "half"), ("dtype 'half'", "auto, float32, bfloat16 or int8")),
        (("--model", "var-d99"), ("'var-d99'", "var-mini, var-emoji, var-d16")),
        (("--model", "no/such/folder"), ("'no/such/folder'", "give a model folder")),
    ],
)
def test_options_that_cannot_work(
    sample: Run, tmp_path: Path, options: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    refusal(sample(*options), *parts)
    assert not (tmp_path / "samples").exists()


def test_a_damaged_model(sample: Run, tmp_path: Path) -> None:
    tiny_pipeline(NAMES).save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "tokenizer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refusal(sample("--model", tmp_path / "m"), str(weights), "damaged", "again")


def test_a_foreign_folder(sample: Run, tmp_path: Path, model: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"no model")
    refusal(sample("--model", tmp_path / "photos"), str(tmp_path / "photos"), "tokenizer", "transformer")
    refusal(sample("--model", model / "transformer"), str(model / "transformer"), "no folder tokenizer")


def test_a_file_in_the_way_of_the_images(sample: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refusal(sample("--out", "file"), "cannot write file", "give another folder")
    refusal(sample("--out", "file/deeper"), "cannot write file/deeper")
    assert (tmp_path / "file").read_text() == "mine"


# --- processes of their own


def test_the_script(model: Path, tmp_path: Path) -> None:
    done = run(ROOT / "sample.py", "--model", model, "--class", "tabby cat", "--num", 1, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["samples/1_0.png", "samples/grid.png"]
    failed = run(ROOT / "sample.py", "--model", model, "--class", "zebra", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["sample", "train"])
def test_help_does_not_wait_for_torch(script: str) -> None:
    code = (
        f"import sys; sys.argv = ['{script}.py', '--help']\n"
        f"from var.cli.{script} import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'PIL', 'torchvision', 'accelerate', 'pydantic'} & sys.modules.keys()\n"
        "print('heavy:', heavy or 'nothing')"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: nothing\n")
    assert ("--class" if script == "sample" else "recipe") in done.stdout.lower()


# --- the shipped model; needs var/pretrained/var-mini


def test_the_shipped_model_draws_a_golden_retriever(tmp_path: Path) -> None:
    """Without network and without a model named, within the promised memory."""
    code = (
        "import resource, runpy, sys\n"
        "try: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    done = run("-c", code, ROOT / "sample.py", "--class", 207, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stderr.split()[-1]) < 1.5e6  # KB
    names = [f"207_{i}.png" for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [*names, "grid.png"]
    images = set()
    for name in names:
        with Image.open(tmp_path / "samples" / name) as image:
            assert image.size in ((32, 32), (64, 64))
            assert image.convert("L").getextrema()[1] - image.convert("L").getextrema()[0] > 60  # not one gray
            images.add(image.tobytes())
    assert len(images) == 4


def test_the_shipped_model_refuses_classes_it_never_saw() -> None:
    pipe = VARPipeline.from_pretrained("var-mini", dtype="float32")
    assert pipe.label("golden retriever") == 207
    assert len(pipe.known_classes()) >= 8
    unseen = next(label for label in range(1000) if label not in pipe.known_classes())
    with pytest.raises(ValueError, match="207 golden retriever"):
        pipe(unseen)
    assert SHIPPED["var-mini"].is_dir()
    assert not torch.equal(pipe(207).tokens, pipe(207, seed=1).tokens)


# --- options that are off by default


def test_a_window_temperatures_and_a_refiner(sample: Run, model: Path, tmp_path: Path) -> None:
    options = ("--class", 3, "--num", 1, "--cfg-scales", "0:1", "--temperature", "1,0.5,2")
    code, _, err = sample(*options, "--refiner", model, "--refine-from", 2, "--out", "o")
    assert (code, err) == (0, "")
    pipe = tiny_pipeline(NAMES)
    drawn = pipe(3, cfg_scales=(0, 1), temperature=(1.0, 0.5, 2.0), refiner=pipe, refine_from=2)
    with Image.open(tmp_path / "o" / "3_0.png") as saved:
        assert saved.tobytes() == drawn.images[0].tobytes()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--cfg-scales", "7"), ("cfg_scales='7' must be FIRST:LAST", "such as 0:7")),
        (("--cfg-scales", "0,7"), ("cfg_scales='0,7' must be FIRST:LAST",)),
        (("--cfg-scales", "a:b"), ("cfg_scales='a:b' must be FIRST:LAST",)),
        (("--cfg-scales", "2:1"), ("cfg_scales=[2, 1] must be the first and the last scale",)),
        (("--cfg-scales", "0:3"), ("cfg_scales=[0, 3] must be in 0..2",)),
        (("--temperature", "warm"), ("temperature='warm' must be a number, or one for each scale",)),
        (("--temperature", "0"), ("temperature=0.0 must be in 0.01..100",)),
        (("--temperature", "1,1"), ("temperature=[1.0, 1.0] must be one number, or 3",)),
        (("--use-scales", "1:4"), ("use_scales='1:4' must be sides",)),
        (("--use-scales", "1,4"), ("use_scales=[1, 4] leaves scales out",)),
        (("--refine-from", "2"), ("refiner and refine_from go together",)),
        (("--refiner", "var-mini"), ("refiner and refine_from go together",)),
        (("--refiner", "var-mini", "--refine-from", "2"), ("the refiner has scales=",)),
        (("--refiner", "nothing", "--refine-from", "2"), ("refiner: ", "'nothing'")),
        (("--refine-from", "0"), ("refine_from=0 must be in 1..",)),
    ],
)
def test_refusals_of_windows_temperatures_and_refiners(
    sample: Run, tmp_path: Path, options: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    refusal(sample("--class", 3, *options), *parts)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "options", [("--refiner", "var-mini"), ("--refine-from", 2), ("--refiner", "no", "--refine-from", 2)]
)
@pytest.mark.parametrize("command", [("sample",), ("evaluate", "generate")])
def test_mistakes_about_a_refiner_are_found_before_a_model_is_loaded(
    var: Run, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], options: tuple[object, ...]
) -> None:
    monkeypatch.setattr("var.hub.pipeline.load_pipeline", lambda *_: pytest.fail("a model was loaded"))
    refusal(var(*command, "--out", "o", *options), "refiner")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--cfg", -1), "cfg=-1.0"),
        (("--top-k", -3), "top_k=-3"),
        (("--top-p", 2), "top_p=2.0"),
        (("--temperature", 0), "temperature=0.0"),
    ],
)
@pytest.mark.parametrize("command", [("sample",), ("evaluate", "generate")])
def test_sampling_that_no_model_can_do_is_refused_before_one_is_loaded(
    var: Run, command: tuple[str, ...], options: tuple[object, ...], part: str
) -> None:
    refusal(var(*command, "--model", "no/such/folder", "--out", "o", *options), part)


def test_edits_have_no_options_of_scales(var: Run) -> None:
    refusal(var("edit", "upscale", "a.png", "--use-scales", "1,4"), "No such option: --use-scales")
