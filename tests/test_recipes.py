"""The recipes of the repository: each loads, is the model it says, and tells how it is run and what comes of it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tokenizer.scales import SCALES_512
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.presets import AIM_RELEASED
from var.models.aim import Encoder
from var.models.mar import MAR
from var.models.raster import Raster
from var.models.var import VAR
from var.networks.backbones import BACKBONES
from var.networks.perceptual import PERCEPTUAL
from var.training.config import Recipe
from var.training.encoder_stage import EncoderRecipe
from var.training.masked_pixel_stage import MaskedPixelRecipe
from var.training.recipe import load_recipe
from var.training.stages.aim import AIMRecipe
from var.training.stages.beit import BEiTRecipe
from var.training.stages.mar import MARRecipe
from var.training.stages.probe import ProbeRecipe, candidates
from var.training.stages.raster import RasterRecipe
from var.training.stages.semaim import SemAIMRecipe
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
PAPER = {  # millions of parameters
    "imagenet_d16": 310,
    "imagenet_d20": 600,
    "imagenet_d24": 1030,
    "imagenet_d30": 2010,
    "imagenet_512_d36": 2350,
}
# Which tokenizer recipe's model a transformer's recipe is for; the others take the released tokenizer.
TOKENIZERS = {name: name.replace("_var", "_tokenizer") for name in (p.stem for p in RECIPES) if name.endswith("_var")}


def recipe(name: str) -> Recipe:
    return load_recipe(CONFIGS / f"{name}.yaml")


def var_recipe(name: str) -> VARRecipe:
    loaded = recipe(name)
    assert isinstance(loaded, VARRecipe)
    return loaded


def tokenizer_recipe(name: str) -> TokenizerRecipe:
    loaded = recipe(name)
    assert isinstance(loaded, TokenizerRecipe)
    return loaded


def header(path: Path) -> dict[str, str]:
    """The fields of the comment above a recipe; a line that is indented further goes on with the one before."""
    fields: dict[str, str] = {}
    name = ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            return fields
        if start := re.match(r"# ([A-Z][a-z]+):\s+(.*)", line):
            name = start[1]
            fields[name] = start[2]
        elif name and line.startswith("#   "):
            fields[name] += " " + line[1:].strip()
        else:
            name = ""
    return fields


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_how_it_runs_and_what_comes_of_it(path: Path) -> None:
    fields = header(path)
    assert list(fields) == ["Command", "Data", "Hardware", "Time", "Result"]
    assert f"train.py configs/{path.name}" in fields["Command"].replace("\\ ", "")
    for name in ("Time", "Result"):
        assert re.match(r"(measured|expected)\b", fields[name]), f"{name}: {fields[name]}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_line_is_longer_than_the_codes(path: Path) -> None:
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_a_run_of_its_own_and_builds(path: Path) -> None:
    loaded = load_recipe(path)
    assert loaded.output == Path("runs") / path.stem.replace("own_folder", "own")
    with torch.device("meta"):
        if isinstance(loaded, TokenizerRecipe):
            VQVAE(loaded.model)
            assert loaded.image_size == loaded.model.image_side
        elif isinstance(loaded, EncoderRecipe | MaskedPixelRecipe):
            Encoder(loaded.model)
        elif isinstance(loaded, ProbeRecipe):
            sizes = loaded.sizes or AIM_RELEASED[loaded.model].config
            assert len(candidates(loaded.probe_layers, sizes.depth, loaded.probed)) > 1
        elif isinstance(loaded, MARRecipe):
            tokenizer = TokenizerConfig(scales=(16,), regularization="kl")
            MAR(loaded.model.config(tokenizer, loaded.model.num_classes or 1000))
        elif isinstance(loaded, RasterRecipe):
            Raster(loaded.model.config(TokenizerConfig(scales=(16,)), loaded.model.num_classes or 1000))
        else:
            VAR(loaded.model.config(TokenizerConfig(), loaded.model.num_classes or 1000))


def test_frozen_networks_are_known_and_the_metric_is_not_the_loss() -> None:
    for path in RECIPES:
        loaded = load_recipe(path)
        if not isinstance(loaded, TokenizerRecipe):
            continue
        perceptual, metric, adversarial = loaded.loss.perceptual, loaded.metric, loaded.loss.adversarial
        assert {network.network for network in (perceptual, metric) if network} <= set(PERCEPTUAL)
        assert adversarial is None or adversarial.network in BACKBONES
        assert perceptual is None or metric is None or perceptual.network != metric.network


@pytest.mark.parametrize(("name", "millions"), PAPER.items())
def test_transformers_have_the_papers_sizes(name: str, millions: int) -> None:
    loaded = var_recipe(name)
    scales = SCALES_512.sides if "512" in name else TokenizerConfig().scales
    with torch.device("meta"):
        model = VAR(loaded.model.config(TokenizerConfig(scales=scales), 1000))
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)


def test_tokenizer_has_the_papers_size() -> None:
    loaded = tokenizer_recipe("imagenet_tokenizer")
    assert loaded.model == TokenizerConfig()
    with torch.device("meta"):
        assert parameters(VQVAE(loaded.model)) / 1e6 == pytest.approx(109, rel=0.01)


@pytest.mark.parametrize("name", PAPER)
def test_transformers_follow_the_papers_recipe(name: str) -> None:
    loaded = var_recipe(name)
    depth = loaded.model.depth
    base = 1e-4 if depth < 24 else 8e-5
    assert loaded.optimizer.lr == pytest.approx(base * loaded.batch_size / 256)
    assert loaded.optimizer.betas == (0.9, 0.95)
    assert (loaded.optimizer.weight_decay, loaded.optimizer.grad_clip) == (0.05, 2.0)
    assert loaded.optimizer.final_weight_decay == (None if depth < 30 else 0.08)
    assert (loaded.schedule.warmup_start, loaded.schedule.hold, loaded.schedule.shape) == (0.005, 0.05, "linear")
    assert loaded.schedule.final_lr_factor == (0.1 if depth < 24 else 0.01)
    assert loaded.label_drop == 0.1
    assert (loaded.data.resize, loaded.data.crop, loaded.data.flip) == (1.125, "random", False)
    assert 768 <= loaded.batch_size <= 1024
    assert loaded.epochs is not None
    assert 200 <= loaded.epochs <= 350


@pytest.mark.parametrize(("name", "first"), TOKENIZERS.items())
def test_the_two_stages_of_a_data_set_fit(name: str, first: str) -> None:
    second, tokenizer = var_recipe(name), tokenizer_recipe(first)
    assert second.tokenizer == tokenizer.output / "model"
    for key in ("source", "image_column", "label_column", "resize", "crop", "validation_fraction"):
        assert getattr(second.data, key) == getattr(tokenizer.data, key), key
    assert tokenizer.model.scales[0] == 1
    assert second.token_cache is not None


def test_the_baseline_differs_from_var_in_scales_and_stage_alone() -> None:
    tokenizers = [tokenizer_recipe(f"tiny_imagenet{name}_tokenizer") for name in ("", "_raster")]
    sizes = [replace(each.model, scales=(8,)) for each in tokenizers]
    assert sizes[0] == sizes[1] == tokenizers[1].model
    transformers = [recipe(f"tiny_imagenet_{name}") for name in ("var", "raster")]
    for pair, changed in ((tokenizers, {"output", "model"}), (transformers, {"output", "stage"})):
        first, second = (each.model_dump() for each in pair)
        differ = {name for name in first.keys() & second.keys() if first[name] != second[name]}
        assert differ == changed | ({"tokenizer", "token_cache"} if pair is transformers else set())
    assert isinstance(transformers[1], RasterRecipe)
    assert transformers[1].tokenizer == tokenizers[1].output / "model"


def test_the_probe_is_of_the_encoder_that_is_trained_before_it() -> None:
    first, second = recipe("tiny_imagenet_aim"), recipe("tiny_imagenet_probe")
    assert isinstance(first, AIMRecipe)
    assert isinstance(second, ProbeRecipe)
    assert second.model == str(first.output / "model")
    assert second.sizes == first.model
    for key in ("source", "image_column", "label_column", "resize"):
        assert getattr(second.data, key) == getattr(first.data, key), key


@pytest.mark.parametrize(("name", "patches", "masked"), [("mae", 196, 147), ("simmim", 49, 29)])
def test_masked_pretraining_follows_the_papers(name: str, patches: int, masked: int) -> None:
    loaded, small = recipe(f"imagenet_{name}"), recipe(f"tiny_imagenet_{name}")
    assert isinstance(loaded, MaskedPixelRecipe)
    assert isinstance(small, MaskedPixelRecipe)
    assert (loaded.cells, loaded.masked_cells) == (patches, masked)
    assert (loaded.model.width, loaded.model.depth, loaded.model.heads) == (768, 12, 12)
    assert loaded.optimizer.lr == pytest.approx(1.5e-4 * loaded.batch_size / 256 if name == "mae" else 8e-4)
    assert loaded.optimizer.weight_decay == 0.05
    assert (small.mask_ratio, small.targets) == (loaded.mask_ratio, loaded.targets)
    assert small.data.crop_area == loaded.data.crop_area
    aim = recipe("tiny_imagenet_aim")
    assert isinstance(aim, AIMRecipe)
    assert small.model == aim.model


def test_beit_and_semaim_follow_the_papers() -> None:
    beit, semaim = recipe("imagenet_beit"), recipe("imagenet_semaim")
    assert isinstance(beit, BEiTRecipe)
    assert isinstance(semaim, SemAIMRecipe)
    for loaded in (beit, semaim):
        assert (loaded.model.width, loaded.model.depth, loaded.model.heads) == (768, 12, 12)
        assert loaded.optimizer.weight_decay == 0.05
        assert loaded.epochs == 800
    assert (beit.mask_ratio, beit.min_block, beit.min_aspect) == (0.4, 16, 0.3)
    assert (beit.batch_size, beit.optimizer.lr, beit.optimizer.grad_clip) == (2048, 1.5e-3, 3.0)
    assert (semaim.attention, semaim.targets) == ("causal", "normalized")


def test_the_papers_probe_reads_six_blocks() -> None:
    loaded = recipe("imagenet_probe")
    assert isinstance(loaded, ProbeRecipe)
    assert (loaded.model, loaded.probe_layers, loaded.probed, loaded.num_classes) == ("aim-600M", "best", 6, 1000)
    released = AIM_RELEASED[loaded.model]
    assert released.best in candidates("best", released.config.depth, loaded.probed)
    assert loaded.optimizer.grad_clip is None
    assert round(loaded.data.resize * 224) == 256  # as var.models.aim.val_transforms


@pytest.mark.parametrize(("name", "num_classes"), [("mini", 1000), ("emoji", 1389)])
def test_a_shipped_model_is_of_its_recipes(name: str, num_classes: int) -> None:
    shipped = CONFIGS.parent / "var" / "pretrained" / f"var-{name}"
    first, second = tokenizer_recipe(f"{name}_tokenizer"), var_recipe(f"{name}_var")
    known = yaml.safe_load((shipped / "tokenizer" / "config.json").read_text())["config"]
    assert TokenizerConfig(**known) == first.model
    known = yaml.safe_load((shipped / "transformer" / "config.json").read_text())["config"]
    ours = second.model.config(first.model, num_classes).to_dict()
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()} == known
    assert "measured" in header(CONFIGS / f"{name}_var.yaml")["Result"]


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("one_gpu", DistributedType.NO, 1),
        ("ddp", DistributedType.MULTI_GPU, 8),
        ("fsdp2", DistributedType.FSDP, 8),
        ("several_nodes", DistributedType.MULTI_GPU, 16),
    ],
)
def test_accelerate_reads_its_files(name: str, kind: DistributedType, processes: int) -> None:
    path = CONFIGS / "accelerate" / f"{name}.yaml"
    loaded = load_config_from_file(str(path))
    assert (loaded.distributed_type, loaded.num_processes) == (kind, processes)
    assert loaded.mixed_precision == "bf16"  # as in the recipes that set it
    fields = header(path)
    assert f"--config_file configs/accelerate/{name}.yaml" in fields["Command"]
    assert "Hardware" in fields
    (named,) = re.findall(r"configs/\w+\.yaml", fields["Command"])
    assert (CONFIGS.parent / named).is_file()
    if kind == DistributedType.FSDP:
        assert loaded.fsdp_config["fsdp_version"] == 2


def test_every_accelerate_file_is_tested_and_named_in_a_recipe_by_its_path() -> None:
    found = {path.stem for path in (CONFIGS / "accelerate").iterdir()}
    assert found == {"one_gpu", "ddp", "fsdp2", "several_nodes"}
    for path in RECIPES:
        for named in re.findall(r"configs/accelerate/\w+\.yaml", path.read_text()):
            assert (CONFIGS.parent / named).is_file(), named
