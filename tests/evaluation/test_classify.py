"""Classes of single images: by likelihood and by probe, in Python."""

import json
from pathlib import Path

import pytest
import torch
from helpers import noise, refused
from tiny import NAMES, tiny_pipeline
from tiny_aim import small_aim

from var.evaluation.image_probe import (
    By,
    ImageProbe,
    choose_by,
    classify_by_probe,
    load_image_probe,
)
from var.hub.checkpoint import save_model
from var.models.aim import Probe, ProbeConfig, val_transforms
from var.pipeline import VARPipeline
from var.sampling.class_likelihood import Pruning
from var.utils.images import resize_and_crop, to_tensor

PHOTOS = [noise(20, 12), noise(9, 30, seed=1)]


def test_scores_are_those_of_the_square_in_the_center(pipe: VARPipeline) -> None:
    ranked = pipe.classify(PHOTOS)
    assert len(ranked) == 2
    for photo, found in zip(PHOTOS, ranked, strict=True):
        assert sorted(each.label for each in found) == sorted(NAMES)
        assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)  # type: ignore[type-var]
        assert sum(each.posterior or 0.0 for each in found) == pytest.approx(1)
        square = to_tensor(resize_and_crop(photo, 9, 8))[None]
        with torch.no_grad():
            tokens = pipe.vqvae.encode(square)
            inputs = pipe.vqvae.quantizer.teacher_forcing_input(tokens)
            for each in found:
                log_p = pipe.model(torch.tensor([each.label]), inputs).log_softmax(-1)
                expected = log_p.gather(2, tokens[..., None]).sum().item()
                assert each.name == NAMES[each.label]
                assert each.score == pytest.approx(expected, rel=1e-5)
                assert sum(each.by_scale) == pytest.approx(each.score)


def test_candidates_by_name_and_pruned_ones(pipe: VARPipeline) -> None:
    (found,) = pipe.classify(PHOTOS[0], [0, NAMES[1], 0, 4])
    assert sorted(each.label for each in found) == [0, 1, 4]
    (pruned,) = pipe.classify(PHOTOS[:1], [0, 1, 4], Pruning(((1, 1),)))
    assert [each.score is None for each in pruned] == [False, True, True]
    assert [each.posterior for each in pruned] == [1, None, None]
    assert [len(each.by_scale) for each in pruned] == [3, 1, 1]
    assert pruned[1].by_scale > pruned[2].by_scale
    assert pipe.classify(PHOTOS[:1], [0, 1, 4], "1:1") == [pruned]


def test_input_that_cannot_work_is_refused(pipe: VARPipeline) -> None:
    with refused("no images"):
        pipe.classify([])
    with refused("only candidate"):
        pipe.classify(PHOTOS, [1, 1])
    with refused("only candidate"):
        pipe.classify(PHOTOS, [])
    with refused("class 2", "not one that this model was trained on"):
        pipe.classify(PHOTOS, [1, 2])
    with refused("after 3 scales"):
        pipe.classify(PHOTOS, pruning=Pruning(((3, 1),)))
    with refused("str", "PIL image"):
        pipe.classify(["photo.jpg"])  # type: ignore[list-item]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline(NAMES).save_pretrained(folder / "var")
    aim = small_aim()
    save_model(folder / "aim", aim, {"classes": {"1": "cup", "3": "crane", "9": "of other data"}})
    save_model(folder / "unnamed", aim)
    save_model(folder / "encoder", aim.encoder)
    probe = Probe(ProbeConfig(width=16, heads=2, num_classes=5, layers=(0, 2)))
    save_model(folder / "probe", probe.eval(), {"features_of": {"model": str(folder / "encoder"), "sizes": None}})
    return folder


@pytest.mark.parametrize(
    ("name", "by"),
    [("var", "likelihood"), ("aim", "probe"), ("encoder", "probe"), ("probe", "probe")],
)
def test_the_kind_of_model_says_how_it_classifies(models: Path, name: str, by: By) -> None:
    other: By = "probe" if by == "likelihood" else "likelihood"
    assert choose_by(str(models / name)) == choose_by(str(models / name), by) == by
    with refused(name, f"cannot classify by {other}"):
        choose_by(str(models / name), other)


def test_names_say_how_they_classify_before_anything_is_loaded() -> None:
    for name in ("var-mini", "var-emoji", "var-d30", "VAR_MINI"):
        assert choose_by(name) == "likelihood"
    for name in ("aim-600M", "apple/aim-7B", "AIM-1B"):
        assert choose_by(name) == "probe"
    assert choose_by("someone/something") == "likelihood"
    assert choose_by("someone/something", "probe") == "probe"
    for name in ("var-d16", "VAR_D16"):
        with refused(name, "by probe", "a VAR classifies by likelihood"):
            choose_by(name, "probe")


@pytest.mark.parametrize(("name", "names"), [("aim", {1: "cup", 3: "crane"}), ("unnamed", dict(enumerate("01234")))])
def test_a_probe_ranks_its_classes(models: Path, name: str, names: dict[int, str]) -> None:
    probe = load_image_probe(str(models / name), device="cpu", dtype="float32")
    assert probe.names == names
    ranked = classify_by_probe(probe, PHOTOS)
    aim = small_aim()
    for photo, found in zip(PHOTOS, ranked, strict=True):
        with torch.no_grad():
            logits = aim(val_transforms(8)(photo)[None]).logits[0]
        expected = sorted(names, key=lambda label: -logits[label].item())
        assert [each.label for each in found] == expected
        assert [each.score for each in found] == pytest.approx([logits[label].item() for label in expected], rel=1e-4)
        assert [each.posterior for each in found] == pytest.approx(logits[expected].softmax(0).tolist(), rel=1e-4)
        assert found[0].name == names[found[0].label]
        assert found[0].by_scale == ()


def test_a_probe_alone_reads_what_its_folder_names(models: Path) -> None:
    probe: ImageProbe = load_image_probe(str(models / "probe"), device="cpu", dtype="float32")
    (found,) = classify_by_probe(probe, PHOTOS[:1])
    assert sum(each.posterior or 0.0 for each in found) == pytest.approx(1)
    assert sorted(each.label for each in found) == [0, 1, 2, 3, 4]


def test_an_encoder_without_a_probe_is_refused(models: Path) -> None:
    with refused("encoder", "no probe"):
        load_image_probe(str(models / "encoder"))
    config = json.loads((models / "encoder" / "config.json").read_text())
    assert config["model"] == "Encoder"
