"""Sets of samples: the same whoever draws them and however often that is stopped; with a judge, of the best."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused, small_var
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import NAMES, tiny_pipeline
from torch import Tensor

from tokenizer.errors import InputError
from var.evaluation.metrics.extractors import ExtractedFeatures
from var.evaluation.samples import generate as samples
from var.evaluation.samples import rejection, sample_folder
from var.evaluation.samples.generate import generate_samples
from var.evaluation.samples.rejection import ClassProbability, best_indices, check_labels_are_imagenets
from var.evaluation.samples.sample_folder import has_samples_npz, write_samples_npz
from var.evaluation.samples.sample_set import Settings, sample_settings
from var.pipeline import VARPipeline
from var.sampling.generate import generate
from var.sampling.params import FOR_METRICS
from var.sampling.refiner import Refiner
from var.utils.images import to_pil
from var.utils.locks import locked
from var.utils.ranks import Ranks

JUDGE = "brightness"


def settings_of(pipe: VARPipeline, **changes: Any) -> Settings:
    """Four classes of five images in batches of three, so that some batches have two classes."""
    return sample_settings(pipe, "tiny", **{"num_per_class": 5, "batch": 3, "top_k": 0, **changes})


def rejecting(pipe: VARPipeline, **changes: Any) -> Settings:
    """Three of eight: ceil(3 / 0.4)."""
    return settings_of(pipe, num_per_class=3, reject=0.4, judge=JUDGE, **changes)


def brightness(images: Tensor, labels: list[int]) -> list[float]:
    assert (images.dtype, images.shape) == (torch.uint8, (len(labels), 3, 8, 8))
    return images.double().mean(dim=(1, 2, 3)).tolist()


def hashes(folder: Path) -> dict[str, str]:
    """Of every file; nothing that is hidden may be left over."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(folder: Path, label: int, index: int) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(folder / "images" / f"{label:06d}_{index:06d}.png"))


@pytest.fixture(scope="module")
def whole(pipe: VARPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set, drawn at one go."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    assert generate_samples(pipe, settings_of(pipe), folder) == 20
    write_samples_npz(folder, settings_of(pipe))
    return folder


@pytest.fixture(scope="module")
def rejected(pipe: VARPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best of the candidates, drawn at one go."""
    folder = tmp_path_factory.mktemp("rejected") / "set"
    assert generate_samples(pipe, rejecting(pipe), folder, brightness) == 32
    write_samples_npz(folder, rejecting(pipe))
    return folder


def test_the_images_are_those_that_a_pipeline_draws(pipe: VARPipeline, whole: Path) -> None:
    """Of the same seed, label and index, and within rounding: they are drawn in other company there."""
    drawn = pipe([0, 1, 3, 4], num=5, cfg=1.5, top_k=0)
    for label, index, image in zip(drawn.labels, drawn.indices, drawn.images, strict=True):
        difference = pixels(whole, label, index).astype(int) - np.asarray(image)
        assert np.abs(difference).max() <= 1


def test_the_npz_holds_one_image_of_every_class_then_the_next_ones(whole: Path) -> None:
    with np.load(whole / "samples.npz", allow_pickle=False) as npz:
        assert npz.files == ["arr_0", "arr_1"]
        images, labels = npz["arr_0"], npz["arr_1"]
    assert (images.shape, images.dtype) == ((20, 8, 8, 3), np.uint8)
    assert labels.tolist() == [0, 1, 3, 4] * 5
    for row, label in enumerate(labels):
        np.testing.assert_array_equal(images[row], pixels(whole, int(label), row // 4))
    assert len({image.tobytes() for image in images}) == 20


def test_settings_tell_what_was_drawn(pipe: VARPipeline, whole: Path) -> None:
    told = json.loads((whole / "settings.json").read_text())
    expected = {"model": "tiny", "labels": [0, 1, 3, 4], "num_per_class": 5, "candidates": 5, "judge": None, "seed": 0}
    assert expected.items() <= told.items()
    assert {"cfg": 1.5, "top_k": 0, "top_p": 0.96, "batch": 3, "dtype": "float32"}.items() <= told.items()
    assert told["imagenet_labels"] is False  # a red fox has another label there
    assert set(told["versions"]) == {"var-next-scale", "torch", "numpy", "pillow"}


def together(world: int, work: Callable[[Ranks], int]) -> list[int]:
    """Several workers at once, each in a thread: what they return."""
    barrier, numbers, results = threading.Barrier(world, timeout=60), [0] * world, [0] * world

    def gather(rank: int, number: int) -> list[int]:
        numbers[rank] = number
        barrier.wait()
        result = list(numbers)
        barrier.wait()
        return result

    def member(rank: int) -> None:
        try:
            results[rank] = work(Ranks(rank, world, all_gather=lambda number: gather(rank, number)))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_several_workers_draw_the_same_set(pipe: VARPipeline, whole: Path, rejected: Path, tmp_path: Path) -> None:
    settings = settings_of(pipe)
    assert together(3, lambda ranks: generate_samples(pipe, settings, tmp_path / "a", ranks=ranks)) == [20] * 3
    write_samples_npz(tmp_path / "a", settings)
    assert hashes(tmp_path / "a") == hashes(whole)
    best_of = rejecting(pipe)
    counts = together(3, lambda ranks: generate_samples(pipe, best_of, tmp_path / "b", brightness, ranks))
    assert counts == [32] * 3
    write_samples_npz(tmp_path / "b", best_of)
    assert hashes(tmp_path / "b") == hashes(rejected)


def test_a_refusal_ends_all_workers_and_one_of_them_tells(pipe: VARPipeline, tmp_path: Path) -> None:
    """Before anything is drawn and after the last image; and of several that are refused it is the first."""
    told: dict[int, str] = {}

    def refused_draw(folder: Path, ranks: Ranks, breaking: bool) -> int:
        def progress(done: int, total: int) -> None:
            (folder / "images" / "x.txt").write_bytes(b"")

        try:
            generate_samples(pipe, settings_of(pipe), folder, None, ranks, progress if breaking else lambda *now: None)
        except (InputError, SystemExit) as error:
            told[ranks.rank] = str(error)
        return 0

    (tmp_path / "x.txt").write_text("")
    together(3, lambda ranks: refused_draw(tmp_path, ranks, breaking=False))
    assert told.pop(0).startswith(f"{tmp_path} holds other files, such as x.txt")
    assert told == {1: "2", 2: "2"}
    told.clear()
    together(3, lambda ranks: refused_draw(tmp_path / "set", ranks, breaking=True))
    assert "images holds other files, such as x.txt" in told.pop(0)
    assert told == {1: "2", 2: "2"}
    told.clear()

    def step(ranks: Ranks) -> int:
        try:
            with ranks.in_step():
                if ranks.rank:
                    raise InputError(f"of {ranks.rank}")
        except (InputError, SystemExit) as error:
            told[ranks.rank] = str(error)
        return 0

    together(3, step)
    assert told == {0: "2", 1: "of 1", 2: "2"}


def test_threads_are_one_on_a_cpu_and_then_as_before(
    pipe: VARPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, seen = samples.generate, []

    def watched(*given: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return draw(*given, **options)

    monkeypatch.setattr(samples, "generate", watched)
    torch.set_num_threads(2)
    try:
        generate_samples(pipe, settings_of(pipe), tmp_path)
        assert (set(seen), torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(1)


class Stop(BaseException):
    """The end of a process, as far as this one can play it."""


@pytest.mark.parametrize("at", [4, 12])
def test_stopped_while_it_writes_images(
    pipe: VARPipeline, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Then the same call draws what is missing, and none of the batches that are there."""
    save, count = samples.save_image, [0]

    def stopped(path: Path, image: Image.Image) -> None:
        count[0] += 1
        if count[0] >= at:
            path.with_name(f".{path.name}.7.new").write_bytes(b"half")
            raise Stop
        save(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "save_image", stopped)
        patch.setattr(samples, "THREADS", 1)
        with pytest.raises(Stop):
            generate_samples(pipe, settings_of(pipe), tmp_path)
    assert len(list((tmp_path / "images").glob("0*.png"))) == at - 1
    with refused("is not complete"):
        write_samples_npz(tmp_path, settings_of(pipe))
    missing = 20 - (at - 1) // 3 * 3
    assert generate_samples(pipe, settings_of(pipe), tmp_path) == missing
    write_samples_npz(tmp_path, settings_of(pipe))
    assert hashes(tmp_path) == hashes(whole)
    assert generate_samples(pipe, settings_of(pipe), tmp_path) == 0


@pytest.mark.parametrize(("at", "after"), [(1, False), (6, True), (10, False)])
def test_stopped_while_it_rejects(
    pipe: VARPipeline, rejected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, after: bool
) -> None:
    """Just before or after the scores of a batch are written, of eleven."""
    write, count = sample_folder.Records.write, [0]

    def stopped(*given: Any) -> None:
        count[0] += 1
        if count[0] < at or after:
            write(*given)
        if count[0] == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(sample_folder.Records, "write", stopped)
        with pytest.raises(Stop):
            generate_samples(pipe, rejecting(pipe), tmp_path, brightness)
    assert generate_samples(pipe, rejecting(pipe), tmp_path, brightness) == 32 - 3 * (at - (not after))
    write_samples_npz(tmp_path, rejecting(pipe))
    assert hashes(tmp_path) == hashes(rejected)


def test_progress_is_that_of_all(pipe: VARPipeline, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    generate_samples(pipe, settings_of(pipe), tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 20) for done in (3, 6, 9, 12, 15, 18, 20)]
    (tmp_path / "images" / "000004_000004.png").unlink()
    told.clear()
    generate_samples(pipe, settings_of(pipe), tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 2)]
    told.clear()
    elsewhere = Ranks(0, 2, all_gather=lambda share: [share, 20 - share if share else 0])  # the other one has the rest
    with refused("is not complete"):
        generate_samples(pipe, settings_of(pipe), tmp_path / "b", None, elsewhere, lambda *now: told.append(now))
    assert told == [(5, 20), (10, 20), (16, 20), (20, 20)]  # of its eleven


def test_the_seed_changes_every_image(pipe: VARPipeline, whole: Path, tmp_path: Path) -> None:
    generate_samples(pipe, settings_of(pipe, seed=1), tmp_path)
    ours, theirs = hashes(tmp_path / "images"), hashes(whole / "images")
    assert ours.keys() == theirs.keys()
    assert not set(ours.values()) & set(theirs.values())


def test_a_part_of_the_classes_and_their_order(pipe: VARPipeline, whole: Path, tmp_path: Path) -> None:
    settings = settings_of(pipe, classes=["3", "red fox", 3], batch=5)
    assert settings.labels == (0, 3)
    generate_samples(pipe, settings, tmp_path)
    assert len(hashes(tmp_path / "images")) == 10
    assert np.abs(pixels(tmp_path, 3, 2).astype(int) - pixels(whole, 3, 2)).max() <= 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "with seed=0, not 1"),
        ({"cfg": 4}, "with cfg=1.5, not 4.0"),
        ({"top_k": 5}, "with top_k=0, not 5"),
        ({"top_p": 0.5}, "with top_p=0.96, not 0.5"),
        ({"batch": 4}, "with batch=3, not 4"),
        ({"cfg_scales": (0, 1)}, "without cfg_scales, not with [0, 1]"),
        ({"temperature": 0.5}, "with temperature=1.0, not 0.5"),
        ({"compiled": True}, "with compiled=False, not True"),
        ({"num_per_class": 6}, "with num_per_class=5, not 6"),
        ({"classes": [0, 1]}, "with labels=[0, 1, 3, 4], not [0, 1]"),
        ({"reject": 0.5, "judge": JUDGE}, "with candidates=5, not 10"),
        ({"reject": 1.0, "judge": JUDGE}, "without judge, not with brightness"),
    ],
)
def test_a_folder_keeps_its_settings(pipe: VARPipeline, whole: Path, changes: dict[str, Any], told: str) -> None:
    before = hashes(whole)
    with refused(f"{whole} was begun {told}: give another folder, or remove this one"):
        judge = brightness if "reject" in changes else None
        generate_samples(pipe, settings_of(pipe, **changes), whole, judge)
    assert hashes(whole) == before


def test_a_set_of_an_earlier_version_resumes(pipe: VARPipeline, whole: Path, tmp_path: Path) -> None:
    """Its settings lack the options that came later."""
    shutil.copytree(whole, tmp_path / "set")
    file = tmp_path / "set" / "settings.json"
    settings = json.loads(file.read_text())
    for name in ("cfg_scales", "temperature", "use_scales", "refiner", "refine_from", "compiled", "imagenet_labels"):
        del settings[name]
    file.write_text(json.dumps(settings))
    (tmp_path / "set" / "images" / "000000_000000.png").unlink()
    assert generate_samples(pipe, settings_of(pipe), tmp_path / "set") == 3  # the batch that has it
    with refused("was begun with temperature=1.0, not 0.5"):
        generate_samples(pipe, settings_of(pipe, temperature=0.5), tmp_path / "set")


def test_a_set_with_a_refiner(pipe: VARPipeline, tmp_path: Path) -> None:
    other, folder = small_var(seed=5), tmp_path / "set"

    def settings(scale: int) -> Settings:
        return settings_of(pipe, num_per_class=1, refiner=Refiner(other, scale), refiner_name="other")

    with refused("refine_from=2", "need the refiner"):
        generate_samples(pipe, settings(2), folder)
    assert generate_samples(pipe, settings(2), folder, refiner=Refiner(other, 2)) == 4
    saved = json.loads((folder / "settings.json").read_text())
    assert {"refiner": "other", "refine_from": 2}.items() <= saved.items()
    expected = to_pil(
        generate(pipe.model, pipe.vqvae, [0, 1, 3], replace(FOR_METRICS, top_k=0), refiner=Refiner(other, 2)).images
    )
    np.testing.assert_array_equal(pixels(folder, 0, 0), np.asarray(expected[0]))
    with refused("was begun with refine_from=2, not without:"):
        alone = replace(settings_of(pipe, num_per_class=1), weights=saved["weights"])
        generate_samples(pipe, alone, folder)
    with refused("was begun with refine_from=2, not 1"):
        generate_samples(pipe, replace(settings(1), weights=saved["weights"]), folder, refiner=Refiner(other, 1))
    with refused("was begun by another model"):
        generate_samples(pipe, settings_of(pipe, num_per_class=1), folder)


def test_a_folder_keeps_its_model_and_versions(pipe: VARPipeline, whole: Path) -> None:
    settings = settings_of(pipe)
    assert generate_samples(pipe, replace(settings, model="moved/elsewhere"), whole) == 0
    other = tiny_pipeline(NAMES)
    with torch.no_grad():
        other.vqvae.quantizer.codebook.weight[0, 0] += 1
    with refused("was begun by another model (tiny)"):
        generate_samples(other, settings_of(other), whole)
    with refused("was begun with versions=", "'torch': '2.0'"):
        versions = {"torch": "2.0", **{name: v for name, v in settings.versions.items() if name != "torch"}}
        generate_samples(pipe, replace(settings, versions=versions), whole)
    with refused("was begun with device=cpu", "not H100"):
        generate_samples(pipe, replace(settings, device="H100"), whole)
    half = tiny_pipeline(NAMES)
    half.model.bfloat16()
    with refused("was begun with dtype=float32, not bfloat16"):  # which changes the checksum of the weights too
        generate_samples(half, settings_of(half), whole)


def test_an_npz_that_is_not_of_this_set_is_none(pipe: VARPipeline, whole: Path, tmp_path: Path) -> None:
    settings, file = settings_of(pipe), tmp_path / "samples.npz"
    generate_samples(pipe, settings, tmp_path)
    assert has_samples_npz(whole, settings)
    assert not has_samples_npz(tmp_path, settings)
    with np.load(whole / "samples.npz") as npz:
        images, labels = npz["arr_0"], npz["arr_1"]
    file.write_bytes(b"junk")
    assert not has_samples_npz(tmp_path, settings)
    for others in ((images[:-1], labels), (images[:, :4], labels), (images, labels[::-1]), (images,)):
        np.savez(file, *others)
        assert not has_samples_npz(tmp_path, settings)
    np.savez(file, images, labels)
    assert has_samples_npz(tmp_path, settings)


def test_foreign_files_are_left_alone(pipe: VARPipeline, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"")
    with refused("holds other files, such as holiday.png", "give a new folder"):
        generate_samples(pipe, settings_of(pipe), tmp_path)
    generate_samples(pipe, settings_of(pipe), tmp_path / "set")
    for name in ("000002_000000.png", "000000_000005.png", "x.txt"):
        (tmp_path / "set" / "images" / name).write_bytes(b"")
        with refused("images holds other files", name, "move them away"):
            generate_samples(pipe, settings_of(pipe), tmp_path / "set")
        (tmp_path / "set" / "images" / name).unlink()
    (tmp_path / "set" / "settings.json").write_text("[]")
    with refused("settings.json cannot be read"):
        generate_samples(pipe, settings_of(pipe), tmp_path / "set")
    (tmp_path / "file").write_text("")
    with refused("cannot write", "file is a file"):
        generate_samples(pipe, settings_of(pipe), tmp_path / "file")


def test_images_that_lost_their_end_are_drawn_again(pipe: VARPipeline, whole: Path, tmp_path: Path) -> None:
    """So are those of another size, and missing ones; what only reading them through shows is told."""
    generate_samples(pipe, settings_of(pipe), tmp_path)
    files = [tmp_path / "images" / f"{label:06d}_000001.png" for label in (0, 1, 3)]
    os.truncate(files[0], files[0].stat().st_size - 1)
    files[1].write_bytes(b"")
    Image.new("RGB", (8, 9)).save(files[2])
    assert generate_samples(pipe, settings_of(pipe), tmp_path) == 9
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 255
    files[0].write_bytes(content)
    assert generate_samples(pipe, settings_of(pipe), tmp_path) == 0
    with refused("000000_000001.png is damaged: remove it and run the same command again"):
        write_samples_npz(tmp_path, settings_of(pipe))
    files[0].unlink()
    assert generate_samples(pipe, settings_of(pipe), tmp_path) == 3
    write_samples_npz(tmp_path, settings_of(pipe))
    assert hashes(tmp_path) == hashes(whole)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_per_class": 0}, ("num_per_class=0 must be at least 1",)),
        ({"num_per_class": 10**6 + 1}, ("1,000,001 images", "at most 1,000,000")),
        ({"num_per_class": 10**5, "reject": 0.01}, ("10,000,000 images",)),
        ({"reject": 0.0}, ("reject=0.0 must be in (0, 1]",)),
        ({"reject": 1.5}, ("reject=1.5",)),
        ({"reject": float("nan")}, ("reject=nan",)),
        ({"classes": [2]}, ("class 2", "not one that this model was trained on")),
        ({"classes": []}, ("at least one",)),
        ({"cfg": -1}, ("cfg=-1",)),
        ({"top_p": 2}, ("top_p=2",)),
        ({"seed": -1}, ("seed=-1",)),
        ({"batch": 0}, ("batch=0 must be at least 1",)),
    ],
)
def test_options_out_of_range(pipe: VARPipeline, changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        settings_of(pipe, **changes)


def test_a_judge_goes_with_settings_for_one(pipe: VARPipeline, tmp_path: Path) -> None:
    with refused("judge=None need no scorer"):
        generate_samples(pipe, settings_of(pipe), tmp_path, brightness)
    with refused("judge=brightness need a scorer"):
        generate_samples(pipe, rejecting(pipe), tmp_path)


@pytest.mark.parametrize(("reject", "candidates"), [(1.0, 5), (0.5, 10), (0.1, 50), (0.3, 17), (0.99, 6)])
def test_so_many_candidates(pipe: VARPipeline, reject: float, candidates: int) -> None:
    assert settings_of(pipe, reject=reject, judge=JUDGE).candidates == candidates


def test_exactly_the_best_are_kept(pipe: VARPipeline, rejected: Path, tmp_path: Path) -> None:
    """The brightest three of eight, told from all eight."""
    generate_samples(pipe, settings_of(pipe, num_per_class=8), tmp_path)
    expected = set()
    for label in NAMES:
        values = [pixels(tmp_path, label, index).mean(dtype=np.float64) for index in range(8)]
        order = sorted(range(8), key=lambda index: (-values[index], index))
        expected |= {f"{label:06d}_{index:06d}.png" for index in order[:3]}
    found = hashes(rejected / "images")
    assert found.keys() == expected
    assert found.items() <= hashes(tmp_path / "images").items()
    with np.load(rejected / "samples.npz") as npz:
        assert npz["arr_1"].tolist() == [0, 1, 3, 4] * 3
        by_class = np.array(sorted(expected)).reshape(4, 3)
        for row, name in zip(npz["arr_0"], by_class.T.flatten(), strict=True):
            np.testing.assert_array_equal(row, np.asarray(Image.open(rejected / "images" / name)))


def test_the_disk_holds_few_more_than_are_kept(pipe: VARPipeline, tmp_path: Path) -> None:
    """What is kept of each class, and what is being written."""
    most = []

    def progress(done: int, total: int) -> None:
        most.append(len(list((tmp_path / "images").iterdir())) - 3 * min(4, done // 12 + 2))

    generate_samples(
        pipe, settings_of(pipe, num_per_class=3, reject=0.25, judge=JUDGE), tmp_path, brightness, progress=progress
    )
    assert len(most) == 16
    assert max(most) <= 2 * 3


def test_equal_scores_keep_the_first(pipe: VARPipeline, tmp_path: Path) -> None:
    generate_samples(pipe, rejecting(pipe), tmp_path, lambda images, labels: [0.5] * len(labels))
    assert {path.name[7:13] for path in (tmp_path / "images").iterdir()} == {"000000", "000001", "000002"}


def test_scores_that_are_damaged_are_made_again(pipe: VARPipeline, rejected: Path, tmp_path: Path) -> None:
    generate_samples(pipe, rejecting(pipe), tmp_path, brightness)
    (tmp_path / "scores" / "000002.json").write_text('{"000000_000006.png": ')
    kept = next((tmp_path / "images").glob("000004_*"))
    kept.unlink()
    assert generate_samples(pipe, rejecting(pipe), tmp_path, brightness) > 0
    write_samples_npz(tmp_path, rejecting(pipe))
    assert hashes(tmp_path) == hashes(rejected)


@given(st.dictionaries(st.integers(0, 30), st.sampled_from([0.0, 0.25, 0.5, 1.0])), st.integers(1, 10))
def test_best(scores: dict[int, float], count: int) -> None:
    order = sorted(scores, key=lambda index: (-scores[index], index))
    assert best_indices(scores, count) == set(order[:count])


def fake_extractor(logits: Tensor | None) -> Callable[..., Any]:
    """In place of open_extractor: one that gives these logits whatever it sees."""

    class Extractor(SimpleNamespace):
        def __call__(self, images: Tensor) -> ExtractedFeatures:
            return ExtractedFeatures(torch.zeros(len(images), 2), logits, None)

    return lambda name, weights=None, device="auto": Extractor(name=name, version="1, f")


def test_the_probability_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    monkeypatch.setattr(rejection, "open_extractor", fake_extractor(logits))
    judge = ClassProbability("efficientnet-lite1", "cpu")
    assert judge.description == "efficientnet-lite1 (1, f)"
    found = judge(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [1, 2])
    assert found == pytest.approx([np.e / (1 + np.e + np.e**2), 1 / 3], rel=1e-12)


def test_what_cannot_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "open_extractor", fake_extractor(torch.tensor([[float("nan")]])))
    with refused("the logits of efficientnet-lite1 are not finite"):
        ClassProbability("efficientnet-lite1")(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0])
    monkeypatch.delattr(rejection, "open_extractor")  # what is refused is never opened: that might download it
    for name in ("vgg16", "inception-v3-compat", "nothing"):
        with refused(f"{name} is no classifier of ImageNet's classes: choose another, such as efficientnet-lite1"):
            ClassProbability(name)
    with refused("the model has 5 classes", "ImageNet's 1000"):
        check_labels_are_imagenets(5, {})
    with refused("the model has classes of its own, not ImageNet's"):
        check_labels_are_imagenets(1000, {0: "our cat", 1: "our dog"})
    check_labels_are_imagenets(1000, {1: "goldfish", 207: "golden retriever"})


def test_a_second_process_in_one_set_is_refused_and_hidden_files_are_none(pipe: VARPipeline, tmp_path: Path) -> None:
    with locked(tmp_path / "set"), refused(f"{tmp_path / 'set'} is in use by process "):
        generate_samples(pipe, settings_of(pipe), tmp_path / "set")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".DS_Store").touch()
    generate_samples(pipe, settings_of(pipe), tmp_path / "set")
    (tmp_path / "set" / "images" / ".DS_Store").touch()
    assert generate_samples(pipe, settings_of(pipe), tmp_path / "set") == 0
    write_samples_npz(tmp_path / "set", settings_of(pipe))
