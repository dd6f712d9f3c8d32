"""A new model starts from weights of a name, a folder or a released file; what is new and what is dropped is named."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIDES, refused, small_var, small_vqvae
from tiny_aim import small_aim
from tiny_hub import Hub, Repository
from torch import nn

from tokenizer.scales import SCALES_256, Scales
from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import save_model
from var.hub.convert import to_official
from var.hub.convert_aim import to_official_aim
from var.hub.presets import AIM_RELEASED, RELEASED, RELEASED_TOKENIZER, SHIPPED
from var.hub.start import check_start, interpolate_levels, interpolate_positions, start_from
from var.models.aim import EncoderConfig
from var.models.aim_pretraining import AIMPretrainer, HeadConfig
from var.models.var import VAR, VARConfig
from var.pipeline import VARPipeline
from var.training.tokenizers import open_tokenizer, tokenizer_config

NAMES = {0: "red fox", 1: "tabby cat", 2: "crane", 3: "crane"}


def tokenizer(seed: int = 0, **changes: Any) -> VQVAE:
    """A tokenizer whose sizes can be read off a released file."""
    return small_vqvae(seed, base_width=32, norm_groups=32, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline's folder."""
    VARPipeline(small_var(), small_vqvae(), NAMES).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Released files of tokenizer and transformer, and of an AIM, in the cache's folder under their names."""
    monkeypatch.setenv("VAR_CACHE", str(tmp_path))
    pipe, aim = VARPipeline(small_var(), tokenizer()), small_aim()
    monkeypatch.setitem(RELEASED, "var-d16", pipe.model.config)
    released = AIM_RELEASED["aim-600M"]
    object.__setattr__(small := type(released)(aim.config.encoder, (0,), released.files, ""), "best", (0, 2))
    monkeypatch.setitem(AIM_RELEASED, "aim-600M", small)
    (tmp_path / "released").mkdir()
    first, second = to_official(pipe.vqvae, pipe.model)
    torch.save(first, tmp_path / "released" / RELEASED_TOKENIZER)
    torch.save(second, tmp_path / "released" / "var_d16.pth")
    state = {name: value for name, value in to_official_aim(aim).items() if not name.startswith("head.")}
    torch.save(state, tmp_path / "released" / small.backbone)
    return tmp_path / "released"


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def pretrainer(**changes: int) -> AIMPretrainer:
    sizes = {
        name: getattr(small_aim().config, name) for name in ("image_size", "patch_size", "width", "depth", "heads")
    }
    config = EncoderConfig(**(sizes | changes))
    return AIMPretrainer(config, HeadConfig(width=8, depth=1), 48, torch.arange(config.patches))


# --- the same sizes


@pytest.mark.parametrize("given", ["var-d16", "var_d16.pth"])
def test_a_transformer_starts_from_a_released_name_or_file(files: Path, given: str) -> None:
    model = small_var(seed=1)
    started = start_from(given if given in RELEASED else files / given, model)
    assert_equal(model, small_var())
    assert (started.new, started.dropped, started.interpolated, started.classes) == ([], [], [], [])
    assert not (files.parent / "var-d16").exists()  # no conversion of both models is written for one


@pytest.mark.parametrize("given", ["var-d16", RELEASED_TOKENIZER])
def test_a_tokenizer_starts_from_a_released_name_or_file(files: Path, given: str) -> None:
    model = tokenizer(seed=1)
    start_from(given if given in RELEASED else files / given, model)
    assert_equal(model, tokenizer())


@pytest.mark.parametrize("kind", ["name", "file", "folder", "folder with a probe"])
def test_an_encoder_starts_from_a_released_one_and_its_head_is_new(files: Path, tmp_path: Path, kind: str) -> None:
    save_model(tmp_path / "aim", small_aim())
    save_model(tmp_path / "encoder", small_aim().encoder)
    places = {"name": Path("aim-600M"), "file": files / AIM_RELEASED["aim-600M"].backbone}
    places |= {"folder": tmp_path / "encoder", "folder with a probe": tmp_path / "aim"}
    model = pretrainer()
    started = start_from(places[kind], model)
    assert_equal(model.encoder, small_aim().encoder)
    assert started.new
    assert all(name.startswith("head.") for name in started.new)
    assert all(name.startswith("probe.") for name in started.dropped)
    assert bool(started.dropped) == (kind == "folder with a probe")


@pytest.mark.parametrize("spelling", ["VAR-d16", "var_d16", "VAR_D16"])
def test_a_released_name_in_any_spelling(files: Path, spelling: str) -> None:
    for model in (small_var(seed=1), tokenizer(seed=1)):
        assert not start_from(Path(spelling), model).new
    assert open_tokenizer(Path(spelling)).scales.sides == tokenizer_config(Path(spelling)).scales == SIDES


@pytest.mark.parametrize("alias", ["aim-600M-2B-imgs", "apple/aim-600M", "AIM_600m"])
def test_a_released_encoder_by_its_other_names(files: Path, alias: str) -> None:
    model = pretrainer()
    start_from(Path(alias), model)
    assert_equal(model.encoder, small_aim().encoder)


def repository(folder: Path) -> Repository:
    """A repository of a folder's files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Repository(states=[{str(path.relative_to(folder)): path.read_bytes() for path in files}])


def test_a_repository_of_the_hub_is_a_start(hub: Hub, folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "aim", small_aim())
    hub.repositories |= {"someone/pipe": repository(folder), "someone/aim": repository(tmp_path / "aim")}
    for given, ours, theirs in (
        ("someone/pipe", small_vqvae(seed=1), small_vqvae()),
        ("someone/pipe", small_var(seed=1), small_var()),
        ("someone/aim", pretrainer(), small_aim().encoder),
    ):
        check_start(Path(given), ours)
        start_from(Path(given), ours)
        assert_equal(ours.encoder if isinstance(ours, AIMPretrainer) else ours, theirs)


def test_of_a_repository_the_tokenizer_alone_is_fetched(hub: Hub, folder: Path) -> None:
    hub.repositories["someone/pipe"] = repository(folder)
    assert tokenizer_config(Path("someone/pipe")) == small_vqvae().config
    assert_equal(open_tokenizer(Path("someone/pipe")), small_vqvae())
    assert not any("transformer/" in request for request in hub.requests)


def test_a_repository_that_there_is_not_or_of_something_else_is_refused(hub: Hub, folder: Path) -> None:
    hub.repositories |= {"someone/empty": Repository(), "someone/vqvae": repository(folder / "tokenizer")}
    with refused("tokenizer='someone/none' cannot be used", "no repository of that name", "train stage 1 first"):
        tokenizer_config(Path("someone/none"))
    with refused("init='someone/empty' cannot be used", "holds no model of this project", "var-mini"):
        check_start(Path("someone/empty"), small_var())
    with refused("init='someone/vqvae' holds a 'VQVAE', a 'VAR' is needed"):
        check_start(Path("someone/vqvae"), small_var())
    with refused("init='FoundationVision/var'", "holds several models", "var-d16"):
        check_start(Path("FoundationVision/var"), small_var())
    with refused("init='apple/aim-600M' is an AIM, a 'VAR' is needed"):
        check_start(Path("apple/aim-600M"), small_var())


def test_a_shipped_model_is_a_start_for_both_stages() -> None:
    pipe = VARPipeline.from_pretrained("var-mini", device="cpu", dtype="float32")
    model, vqvae = VAR(pipe.model.config), VQVAE(pipe.vqvae.config)
    for ours, theirs in ((model, pipe.model), (vqvae, pipe.vqvae)):
        started = start_from("var-mini", ours)
        assert (started.new, started.dropped) == ([], [])
        assert_equal(ours, theirs)


# --- other sizes


def test_of_d16_with_ten_classes_only_the_table_of_classes_is_new() -> None:
    with torch.device("meta"):  # the shapes alone
        ours, theirs = VAR(VARConfig(depth=16, num_classes=10)).state_dict(), VAR(VARConfig(depth=16)).state_dict()
    assert [name for name, value in ours.items() if theirs[name].shape != value.shape] == ["class_embedding.weight"]


def test_of_other_classes_the_null_class_and_those_of_the_same_name_are_kept(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, theirs = small_var(seed=1, num_classes=3), small_var()
    before = model.class_embedding.weight.detach().clone()
    with caplog.at_level("INFO"):
        started = start_from(folder, model, {0: "tabby cat", 1: "crane", 2: "toaster"})
    assert (started.new, started.dropped) == (["class_embedding.weight"], [])
    assert started.classes == ["the null class", "tabby cat"]  # two were called crane
    table = model.class_embedding.weight
    assert torch.equal(table[-1], theirs.class_embedding.weight[-1])
    assert torch.equal(table[0], theirs.class_embedding.weight[1])
    assert torch.equal(table[1:3], before[1:3])
    assert_equal(model.blocks, theirs.blocks)  # type: ignore[arg-type]
    assert "is of other classes: rows kept of the null class, tabby cat; 2 of 4 rows random" in caplog.text
    assert "not in it" not in caplog.text
    assert "num_classes=5, here 3" in caplog.text


@pytest.mark.parametrize("kind", ["other names", "swapped", "no names in the data", "no names in the model"])
def test_rows_of_as_many_classes_go_by_their_names_where_both_are_known(tmp_path: Path, kind: str) -> None:
    theirs, names = small_var(num_classes=2), {0: "bar", 1: "cup"}
    if kind == "no names in the model":
        names = {0: "0", 1: "1"}
    VARPipeline(theirs, small_vqvae(), names).save_pretrained(tmp_path / "pipeline")
    ours = {"other names": {0: "cup", 1: "zoo"}, "swapped": {0: "cup", 1: "bar"}, "no names in the data": {}}
    model = small_var(seed=1, num_classes=2)
    before = model.class_embedding.weight.detach().clone()
    started = start_from(tmp_path / "pipeline", model, ours.get(kind, {0: "cup", 1: "zoo"}))
    was = theirs.class_embedding.weight
    expected = {"other names": [was[1], before[1], was[2]], "swapped": [was[1], was[0], was[2]]}
    assert torch.equal(model.class_embedding.weight, torch.stack(expected.get(kind, list(was))))
    assert started.new == (["class_embedding.weight"] if kind == "other names" else [])


def test_a_tokenizer_that_the_transformer_was_not_trained_with_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "var")  # whatever commands before have set
    start_from(folder, small_var(seed=1), vqvae=small_vqvae())
    assert not caplog.text
    start_from(folder, small_var(seed=1), vqvae=small_vqvae(seed=1))
    assert "was trained on the tokens of another tokenizer" in caplog.text


def test_a_size_that_the_folder_does_not_give_has_its_default(folder: Path) -> None:
    assert start_from(folder, small_var(seed=1)).settings == {}
    assert start_from(folder, small_var(seed=1, scale_drop=0.25)).settings == {"scale_drop": (0.0, 0.25)}


def test_positions_and_levels_of_other_scales_are_interpolated(folder: Path) -> None:
    model, theirs = small_var(seed=1, scales=(1, 2, 3, 6)), small_var()
    started = start_from(folder, model)
    assert started.interpolated == ["position", "level_embedding.weight"]
    assert (started.new, started.dropped) == ([], [])
    position = interpolate_positions(theirs.position, Scales(SIDES), Scales((1, 2, 3, 6)))
    assert torch.equal(model.position, position)
    assert torch.equal(model.level_embedding.weight[[0, -1]], theirs.level_embedding.weight[[0, -1]])


def test_a_scale_comes_from_the_one_at_the_same_place_of_the_pyramid() -> None:
    theirs, ours = Scales((1, 2, 4)), Scales((1, 3, 8))
    position = torch.cat([torch.full((1, side * side, 2), float(side)) for side in theirs.sides], dim=1)
    found = ours.split(interpolate_positions(position, theirs, ours))
    for part, side in zip(found, (1, 2, 4), strict=True):  # log 3 / log 8 is nearest to log 2 / log 4
        torch.testing.assert_close(part, torch.full_like(part, side))


def test_positions_are_interpolated_in_two_dimensions_and_kept_where_the_scale_is_the_same() -> None:
    theirs = Scales((1, 2))
    rows = torch.tensor([[0.0, 0.0, 1.0, 1.0]])  # 2 x 2: differs from row to row only
    position = torch.cat([torch.zeros(1, 1), rows], dim=1)[..., None]
    _, grid = Scales((1, 4)).split(interpolate_positions(position, theirs, Scales((1, 4))))
    grid = grid.reshape(4, 4)
    assert torch.equal(grid, grid[:, :1].expand(4, 4))
    assert (grid[1:, 0] > grid[:-1, 0]).any()
    assert (grid[0, 0], grid[3, 0]) == (0, 1)
    assert torch.equal(interpolate_positions(position, theirs, theirs), position)


def test_levels_are_interpolated_between_the_first_and_the_last() -> None:
    levels = torch.tensor([[0.0], [1.0], [4.0]])
    torch.testing.assert_close(interpolate_levels(levels, 5), torch.tensor([[0.0], [0.5], [1.0], [2.5], [4.0]]))


def test_a_head_of_another_vocabulary_is_new_and_a_shallower_model_drops_blocks(folder: Path) -> None:
    model = small_var(seed=1, vocab_size=64, depth=1)
    started = start_from(folder, model)
    assert started.new == ["head.weight", "head.bias"]
    assert started.dropped
    assert all(name.startswith(("blocks.1.", "head.")) for name in started.dropped)


def test_another_patch_size_is_new_and_another_image_size_is_not(tmp_path: Path) -> None:
    save_model(tmp_path / "aim", small_aim())
    started = start_from(tmp_path / "aim", pretrainer(image_size=16))
    assert not [name for name in started.new if not name.startswith("head.")]
    started = start_from(tmp_path / "aim", pretrainer(patch_size=2))
    assert [name for name in started.new if not name.startswith("head.")] == ["encoder.patchify.weight"]


# --- what cannot work


@pytest.mark.parametrize("check", [start_from, check_start])
def test_what_is_no_model_of_this_kind_is_refused(check: Any, folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "aim", small_aim())
    cases: list[tuple[object, nn.Module, tuple[str, ...]]] = [
        ("var-d17", small_var(), ("init='var-d17'", "did you mean var-d16", "var-d20")),
        ("aim-600M", small_var(), ("init='aim-600M'", "'VAR' is needed")),
        ("var-mini", pretrainer(), ("init='var-mini'", "'Encoder' is needed")),
        ("aim-tiny", pretrainer(), ("no released weights",)),
        (tmp_path / "none", small_var(), ("does not exist", "var-mini")),
        (tmp_path, small_var(), (f"init={str(tmp_path)!r}", "has no config.json")),
        ("absent.pth", small_var(), ("init='absent.pth' does not exist: give", "a released file")),
        (folder / "tokenizer", small_var(), ("holds a 'VQVAE', a 'VAR' is needed",)),
        (tmp_path / "aim", small_vqvae(), ("holds a 'AIM', a 'VQVAE' is needed",)),
        (folder, nn.Linear(2, 2), ("leave it out",)),
    ]
    for given, model, parts in cases:
        with refused(*parts):
            check(given, model)


def test_a_file_of_another_kind_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("no weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    cases = [
        ("var_d16.pth", tokenizer(), "holds a released 'VAR', a 'VQVAE' is needed"),
        (RELEASED_TOKENIZER, small_var(), "holds a released 'VQVAE', a 'VAR' is needed"),
        (AIM_RELEASED["aim-600M"].backbone, small_var(), "holds a released 'Encoder', a 'VAR' is needed"),
        ("../notes.pth", small_var(), "weights"),
        ("../other.pth", small_var(), "holds no weights of a released 'VAR': give"),
        ("../other.pth", pretrainer(), "holds no weights of a released 'Encoder': give"),
    ]
    for file, model, part in cases:
        with refused(part):
            start_from(files / file, model)


def test_a_file_of_ours_is_refused_with_its_folder_as_the_remedy(folder: Path) -> None:
    for part, model in (("tokenizer", small_vqvae()), ("transformer", small_var())):
        with refused("holds the weights of a model of ours without its sizes: give the model's folder"):
            start_from(folder / part / "model.safetensors", model)


def test_nothing_that_fits_is_refused_and_changes_nothing(folder: Path) -> None:
    model, before = small_var(seed=1, width=48), small_var(seed=1, width=48)
    with refused("no matrix that fits", "similar sizes"):
        start_from(folder, model)  # the bias of the head would fit
    assert_equal(model, before)


# --- the tokenizer of a transformer's recipe


def test_a_tokenizer_by_name_and_file(files: Path) -> None:
    of_256 = tokenizer(scales=SCALES_256.sides)
    torch.save(to_official(of_256, small_var())[0], files / "vae.pth")
    assert open_tokenizer(files / "vae.pth").config == of_256.config
    started = start_from(files / "vae.pth", tokenizer())  # of other scales
    assert (started.new, started.dropped) == (["quantizer.usage"], ["quantizer.usage"])
    for given in (Path("var-d16"), files / "vae.pth"):
        opened = open_tokenizer(given)
        assert torch.equal(opened.quantizer.codebook.weight, tokenizer().quantizer.codebook.weight)
        assert not any(parameter.requires_grad for parameter in opened.parameters())
    assert open_tokenizer(Path("var-d16")).config.scales == SIDES  # as the model of that name has
    assert open_tokenizer(Path("var-mini")).config == tokenizer_config(SHIPPED["var-mini"])


def test_a_file_of_scales_that_it_does_not_tell_is_refused_with_the_cause(files: Path) -> None:
    vae, var = to_official(tokenizer(scales=(1, 2, 4)), small_var())
    torch.save(vae, files / "vae.pth")
    torch.save(var, files / "var.pth")
    with refused("tokenizer=", "it is of 3 scales", str(list(SCALES_256.sides)), "a model's folder"):
        open_tokenizer(files / "vae.pth")
    with refused("init=", "it is of 21 tokens", "[1, 3]", "a model's folder"):
        start_from(files / "var.pth", small_var(scales=(1, 3)))


def test_the_sizes_of_a_named_tokenizer_need_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAR_CACHE", str(tmp_path))
    monkeypatch.setattr("var.hub.download.download", lambda *_: pytest.fail("nothing is to be downloaded"))
    assert [tokenizer_config(Path(name)).image_side for name in ("var-mini", "var-d16", "var-d36")] == [32, 256, 512]
    with refused("tokenizer='var-d17'", "var-d16"):
        tokenizer_config(Path("var-d17"))
