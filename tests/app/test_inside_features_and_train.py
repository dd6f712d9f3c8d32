"""Functions behind the tabs that look inside, compare features and show training, without a server."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import picture, tiny_pipeline

from tokenizer.errors import InputError
from var.app import train
from var.app.colors import as_map, fit_colors, heat
from var.app.features import Features, Neighbors, find_neighbors, list_image_folders
from var.app.folders import list_folders
from var.app.inside import look_inside
from var.app.state import AppState
from var.evaluation.likelihood import likelihood
from var.utils.images import to_tensor


@pytest.fixture
def shown(state: AppState, tmp_path: Path) -> AppState:
    """A page with folders of images, and one beside them that it may not read."""
    for name in ("images/birds", "images/cups", "private", "images/empty"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(5):
        picture(0, i).save(tmp_path / "images" / "birds" / f"{i}.png")
        picture(1, i).save(tmp_path / "images" / "cups" / f"{i}.png")
    (tmp_path / "images" / "birds" / "damaged.png").write_bytes(b"no image")
    picture(1, 0).save(tmp_path / "private" / "secret.png")
    (tmp_path / "images" / "link").symlink_to(tmp_path / "private")
    (tmp_path / "images" / "birds" / "link.png").symlink_to(tmp_path / "private" / "secret.png")
    return replace(state, images=tmp_path / "images")


def test_inside_are_the_models_own_numbers(state: AppState) -> None:
    image = picture(1, 3)
    found = look_inside(state.pipe, image, 3)
    assert found.reconstructions[-1].tobytes() == state.pipe.reconstruct(image).tobytes()
    measured = likelihood(state.pipe, [(to_tensor(found.square)[None], [3])]).given
    assert found.bits == pytest.approx([scale.bits.mean for scale in measured.of_scales], abs=1e-4)
    sides = state.pipe.vqvae.scales.sides
    assert len(found.psnr) == len(found.token_maps) == len(found.probability_maps) == len(sides)
    for side, tokens in zip(sides, found.token_maps, strict=True):
        assert tokens.width % side == 0
        assert len(tokens.getcolors() or ()) <= side * side


def test_a_model_in_bfloat16_shows_the_tokens_of_float32() -> None:
    pipe = tiny_pipeline().to("cpu", "bfloat16")
    exact = tiny_pipeline().to("cpu", "bfloat16")
    exact.vqvae.cast(torch.float32)
    found, expected = look_inside(pipe, picture(1, 3)), look_inside(exact, picture(1, 3))
    assert pipe.vqvae.dtype == torch.bfloat16
    for one, other in zip(found.token_maps, expected.token_maps, strict=True):
        assert one.tobytes() == other.tobytes()


def test_the_class_changes_the_probability_and_not_the_tokens(state: AppState) -> None:
    given, without = look_inside(state.pipe, picture(1, 3), 3), look_inside(state.pipe, picture(1, 3))
    assert given.bits != without.bits
    assert [each.tobytes() for each in given.token_maps] == [each.tobytes() for each in without.token_maps]


def test_colors_follow_the_principal_components() -> None:
    vectors = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 0.1, 4, 0.1, 1])
    colors = fit_colors(vectors)(vectors).double()
    for channel, component in enumerate((0, 2, 4)):
        together = torch.corrcoef(torch.stack([colors[:, channel], vectors[:, component].double()]))
        assert abs(together[0, 1]) > 0.95
    assert fit_colors(torch.zeros(4, 2))(torch.zeros(4, 2)).shape == (4, 3)


def test_heat_grows_from_dark_to_bright() -> None:
    brightness = heat(torch.tensor([-1.0, 0, 0.3, 0.7, 1])).double().sum(dim=1)
    assert brightness[0] == brightness[1]
    assert (brightness[1:].diff() > 0).all()
    assert as_map(heat(torch.zeros(9))).width == 126


def test_an_image_is_its_own_nearest_neighbor(shown: AppState) -> None:
    *progress, found = find_neighbors(Features(shown), picture(0, 2), "birds")
    assert progress == ["6 of 6 images"]
    assert isinstance(found, Neighbors)
    assert found.captions[:2] == ["this image", "2.png 1.000"]
    assert len(found.images) == len(found.maps) == 6  # five could be read
    assert found.maps[0].tobytes() == found.maps[1].tobytes()


def test_features_of_a_folder_are_computed_once(shown: AppState) -> None:
    features = Features(shown)
    list(find_neighbors(features, picture(0, 2), "cups"))
    assert len(list(find_neighbors(features, picture(0, 3), "cups"))) == 1  # without progress
    picture(0, 9).save(shown.images / "cups" / "new.png")
    assert len(list(find_neighbors(features, picture(0, 3), "cups"))) == 2


def test_only_folders_inside_are_listed(shown: AppState) -> None:
    assert list_image_folders(shown.images) == [".", "birds", "cups"]
    assert list_image_folders(None) == []
    assert list_folders(shown.folder / "missing", lambda _: True) == []


@pytest.mark.parametrize("given", ["../private", "/etc", "link", "empty", "", None, ["birds"], "birds/../../private"])
def test_no_other_folder_can_be_chosen(shown: AppState, given: object) -> None:
    with pytest.raises(InputError, match="not one of those listed"):
        list(find_neighbors(Features(shown), picture(0, 0), given))
    with pytest.raises(InputError, match="--images FOLDER"):
        list(find_neighbors(Features(replace(shown, images=None)), picture(0, 0), given))


@pytest.fixture
def run(state: AppState) -> Path:
    folder = state.runs / "first"
    (folder / "pictures").mkdir(parents=True)
    lines = [{"step": step, "split": "train", "loss": 5 - step / 1000, "loss/4x4": 1.0} for step in range(1, 2001)]
    lines += [{"step": 1000, "split": "validation", "loss": 4.5}, {"step": 2000, "split": "validation", "loss": None}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '[1]\n{"step": "x"}\n{"step": 2001, "spl')
    for step in (1000, 2000):
        Image.new("RGB", (2000, 100), (step // 10, 0, 0)).save(folder / "pictures" / f"step-{step:08d}.png")
    (folder / "pictures" / "step-00003000.png").write_bytes(b"half")
    return folder


def test_curves_are_thinned_and_end_at_the_last_step(run: Path) -> None:
    curves = train.read_curves(run / "metrics.jsonl")
    points = curves.points[curves.points["split"] == "train"]
    assert len(points) <= train.MAX_POINTS
    assert points["step"].max() == 2000
    assert curves.points[curves.points["split"] == "validation"]["value"].tolist() == [4.5]
    assert curves.names == ["loss", "loss/4x4"]
    assert "train, step 2000: loss 3" in curves.last


def test_the_newest_sheets_are_shown_reduced(state: AppState, run: Path) -> None:
    sheets = train.newest_sheets(state.runs, run)
    assert [name for _, name in sheets] == ["step-00001000", "step-00002000"]
    assert max(sheets[0][0].size) == train.SHEET_SIDE


def test_runs_that_lead_outside_are_not_listed(state: AppState, run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "metrics.jsonl").write_text("")
    (state.runs / "link").symlink_to(outside)
    (state.runs / "second").mkdir()
    (state.runs / "second" / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    assert train.list_runs(state.runs) == ["first"]
    Image.new("RGB", (8, 8)).save(outside / "sheet.png")
    (run / "pictures" / "step-9.png").symlink_to(outside / "sheet.png")
    assert len(train.newest_sheets(state.runs, run)) == 2


def test_a_run_that_has_written_something_is_seen(run: Path) -> None:
    before = train.state_of(run)
    assert train.state_of(run) == before
    (run / "pictures" / "new.png").write_bytes(b"")
    assert train.state_of(run) != before


def test_nothing_is_read_of_numbers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    curves = train.read_curves(tmp_path / "metrics.jsonl")
    assert len(curves.points) == 0
    assert curves.names == []
    with pytest.raises(InputError, match="cannot be read"):
        train.read_lines(tmp_path / "missing")
