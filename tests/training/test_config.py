"""Recipes: what is read, and that every slip gives one line naming key, value and remedy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refused
from pydantic import ValidationError
from tiny import TOKENIZER_YAML as TOKENIZER

from tokenizer.errors import InputError
from tokenizer.vqvae import TokenizerConfig
from var.training.recipe import load_recipe
from var.training.stages.base import find_stage, stage_names
from var.training.stages.tokenizer import TokenizerRecipe
from var.training.stages.var import VARRecipe, VARSizes

STAGES = ", ".join(stage_names())
VAR = """
stage: var
output: runs/var
data: {source: some/folder, classes: [207, 970]}
batch_size: 64
steps: 100
optimizer: {lr: 1e-4, betas: [0.9, 0.9], grad_clip: null}
tokenizer: runs/tokenizer/model
model: {depth: 4}
"""


@pytest.fixture
def tokenizer_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.yaml"
    path.write_text(TOKENIZER)
    return path


@pytest.fixture
def var_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "var.yaml"
    path.write_text(VAR)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith((f"recipe {path}", "override "))
    return text


def test_tokenizer_recipe_is_read_with_its_defaults(tokenizer_recipe: Path) -> None:
    recipe = load_recipe(tokenizer_recipe)
    assert isinstance(recipe, TokenizerRecipe)
    assert type(recipe.model) is TokenizerConfig
    assert recipe.model == TokenizerConfig(scales=(1, 2, 3, 4), base_width=64)
    assert (recipe.output, recipe.epochs, recipe.steps) == (Path("runs/tokenizer"), 3.0, None)
    assert recipe.optimizer.lr == 1e-4  # YAML 1.1 reads this spelling as a string
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert (recipe.data.resize, recipe.data.crop, recipe.data.flip) == (1.125, "random", False)
    assert (recipe.loss.l1, recipe.loss.l2, recipe.loss.vq) == (0.2, 1.0, 1.0)


def test_nested_parts_of_the_loss_are_read_with_their_defaults(tokenizer_recipe: Path) -> None:
    overrides = ["loss.perceptual.network=vgg16", "loss.adversarial.weight=0.5", "metric.network=lpips-alex"]
    recipe = load_recipe(tokenizer_recipe, overrides)
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.loss.perceptual is not None
    assert (recipe.loss.perceptual.network, recipe.loss.perceptual.weight) == ("vgg16", 1.0)
    adversarial = recipe.loss.adversarial
    assert adversarial is not None
    assert (adversarial.weight, adversarial.adaptive, adversarial.start) == (0.5, (0.015, 1e4), 0.22)
    assert adversarial.optimizer.betas == (0.5, 0.9)
    assert recipe.metric is not None
    assert recipe.metric.network == "lpips-alex"


def test_var_recipe_is_read(var_recipe: Path) -> None:
    recipe = load_recipe(var_recipe)
    assert isinstance(recipe, VARRecipe)
    assert recipe.data.classes == (207, 970)
    assert recipe.optimizer.grad_clip is None
    assert recipe.tokenizer == Path("runs/tokenizer/model")
    assert recipe.label_drop == 0.1


def test_overrides_win_and_the_last_one_most(tokenizer_recipe: Path) -> None:
    overrides = [
        "optimizer.lr=3e-4",
        "model.scales=[1,2]",
        "data.flip=true",
        "batch_size=8",
        "batch_size=16",
        "ema=0.99",
    ]
    recipe = load_recipe(tokenizer_recipe, overrides)
    assert isinstance(recipe, TokenizerRecipe)
    assert recipe.optimizer.lr == 3e-4
    assert recipe.model.scales == (1, 2)
    assert recipe.model.base_width == 64
    assert recipe.data.flip is True
    assert recipe.batch_size == 16
    assert recipe.ema == 0.99


def test_length_of_the_run_is_replaced_by_an_override(tokenizer_recipe: Path) -> None:
    recipe = load_recipe(tokenizer_recipe, ["epochs=null", "steps=7"])
    assert (recipe.epochs, recipe.steps) == (None, 7)


def test_interpolation_is_resolved(tokenizer_recipe: Path) -> None:
    recipe = load_recipe(tokenizer_recipe, ["output=runs/width-${model.base_width}"])
    assert recipe.output == Path("runs/width-64")


TEXTS = [
    "runs/exp #1",
    "1e3",
    "007",
    "on",
    "[a]",
    "{a",
    "a: b",
    " a ",
    "- a",
    "'a'",
    '"a',
    "~",
    "*a",
    "&a",
    "!a",
    "a=b",
]
ESCAPED = [
    "${x}",
    "a${",
    "${",
    "$",
    "}",
    r"\${x}",
    r"\\${x}",
    r"\\",
    "a\\",
    "${x",
    "${oc.env:HOME}",
    "${a:${b}}",
    r"C:\a\${b}\c",
    "$$",
]


@pytest.mark.parametrize("text", [*TEXTS, *ESCAPED])
def test_overrides_of_keys_that_are_text_are_taken_literally(var_recipe: Path, text: str) -> None:
    keys = (
        "output",
        "data.source",
        "data.label_column",
        "data.cache",
        "tokenizer",
        "token_cache",
        "init",
        "wandb_project",
    )
    found = load_recipe(var_recipe, [f"{key}={text}" for key in keys])
    path = Path(text).expanduser()
    assert (found.output, found.data.source, found.data.label_column) == (path, text, text)
    assert found.data.cache == found.tokenizer == found.token_cache == found.init == path
    assert found.wandb_project == text


def test_null_is_no_text_and_former_names_are_text_too(var_recipe: Path) -> None:
    found = load_recipe(var_recipe, ["init=null", "data.label_column=null", "wandb=null"])
    assert (found.init, found.data.label_column, found.wandb_project) == (None, None, None)
    found = load_recipe(var_recipe, ["wandb=exp #1", "tokens=1e3"])
    assert (found.wandb_project, found.token_cache) == ("exp #1", Path("1e3"))


def test_interpolation_and_escapes_stand_together(var_recipe: Path) -> None:
    found = load_recipe(var_recipe, [r"output=a\b ${nowhere} #${model.depth}-\${model.depth}"])
    assert str(found.output) == r"a\b ${nowhere} #4-\${model.depth}"


def test_recipe_cannot_be_changed(tokenizer_recipe: Path) -> None:
    recipe = load_recipe(tokenizer_recipe)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.batch_size = 1


def test_recipe_survives_a_round_trip(var_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(var_recipe)
    copy = tmp_path / "copy.yaml"
    copy.write_text(json.dumps(recipe.model_dump(mode="json")))
    assert load_recipe(copy) == recipe


def test_sizes_become_the_transformers_configuration() -> None:
    tokenizer = TokenizerConfig(scales=(1, 2, 4), vocab_size=128, latent_dim=8)
    config = VARSizes(depth=3, drop_path=0.05).config(tokenizer, num_classes=979)
    assert (config.depth, config.width, config.heads, config.drop_path) == (3, 192, 3, 0.05)
    assert (config.scales, config.vocab_size, config.latent_dim, config.num_classes) == ((1, 2, 4), 128, 8, 979)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # unknown keys: the key, the value, the known ones, the likely one
        ("bach_size=3", ["bach_size=3", "did you mean batch_size?", "epochs"]),
        ("optimizer.lrr=2", ["optimizer.lrr=2", "did you mean optimizer.lr?", "known in optimizer: lr, betas"]),
        ("lr=0.5", ["lr=0.5", "did you mean optimizer.lr?"]),
        ("model.depth=3", ["model.depth=3", "known in model: scales, vocab_size"]),
        ("model.vocab=3", ["model.vocab=3", "did you mean model.vocab_size?"]),
        ("data.zzz={a: 1}", ["data.zzz={a}", "known in data: source"]),
        ("loss.lpips=1", ["loss.lpips=1", "known in loss: l1, l2, vq"]),
        (
            "loss.adversarial.optimizer={lr: 1, lrr: 2}",
            ["loss.adversarial.optimizer.lrr=2", "mean loss.adversarial.optimizer.lr?"],
        ),
        ("adaptive=null", ["adaptive=null", "did you mean loss.adversarial.adaptive?"]),
        # wrong types
        ("batch_size='16'", ['batch_size="16"', "integer"]),
        ("batch_size=2.5", ["batch_size=2.5", "integer"]),
        ("batch_size=true", ["batch_size=true", "integer"]),
        ("optimizer.lr=fast", ['optimizer.lr="fast"', "number"]),
        ("optimizer=3", ["optimizer=3", "group of keys: lr, betas, weight_decay, final_weight_decay, grad_clip"]),
        ("model=3", ["model=3", "group of keys: scales, vocab_size"]),
        ("model.scales=3", ["model.scales=3", "list"]),
        ("model.scales=[a]", ['model.scales.0="a"', "integer"]),
        ("data.flip=maybe", ['data.flip="maybe"', "boolean"]),
        ("output=", ["override output= is empty: give a value"]),
        ("output=null", ["output=null", "must be text: give it a value"]),
        ("optimizer.lr=inf", ['optimizer.lr="inf"', "must be a finite number"]),
        ("optimizer.lr=-Infinity", ["must be a finite number"]),
        ("optimizer.lr=nan", ['optimizer.lr="nan"', "must be a finite number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "too few"]),
        ("loss.perceptual=1", ["loss.perceptual=1", "group of keys: network, weights, weight"]),
        ("loss.perceptual={}", ["loss.perceptual.network is missing"]),
        ("metric=lpips-alex", ['metric="lpips-alex"', "group of keys: network, weights"]),
        ("loss.adversarial.optimizer=3", ["loss.adversarial.optimizer=3", "group of keys: lr, betas"]),
        ("loss.adversarial.adaptive=[2]", ["loss.adversarial.adaptive=[2]", "too few"]),
        # values that cannot work
        ("loss.adversarial.optimizer.lr=-1", ["loss.adversarial.optimizer.lr=-1", "greater than 0"]),
        ("loss.adversarial.adaptive=[2, 1]", ["loss.adversarial.adaptive=[2, 1]", "give the lower bound first"]),
        ("loss.adversarial.discriminator=gan", ['discriminator="gan"', "'patchgan' or 'features'"]),
        ("loss.adversarial.start=1.5", ["loss.adversarial.start=1.5", "less than or equal to 1"]),
        ("loss.perceptual={network: vgg16, weight: 0}", ["loss.perceptual.weight=0", "greater than 0"]),
        ("quantizer_dropout=1", ["quantizer_dropout=1", "less than 1"]),
        ("accumulate=0", ["accumulate=0", "greater than or equal to 1"]),
        ("max_skipped=0", ["max_skipped=0", "greater than or equal to 1"]),
        ("wandb_project=''", ['wandb_project=""', "at least 1 character"]),
        ("data.validation_fraction=1", ["data.validation_fraction=1", "less than 1"]),
        ("data.cache_gigabytes=0", ["data.cache_gigabytes=0", "greater than 0"]),
        ("batch_size=0", ["batch_size=0", "greater than or equal to 1"]),
        ("epochs=0", ["epochs=0", "greater than 0"]),
        ("seed=-1", ["seed=-1", "greater than or equal to 0"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "greater than 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr=NaN", "finite"]),
        ("optimizer.lr=.inf", ["optimizer.lr=Infinity", "finite"]),
        ("optimizer.betas=[0.9, 1]", ["optimizer.betas.1=1", "less than 1"]),
        ("optimizer.grad_clip=0", ["optimizer.grad_clip=0", "greater than 0"]),
        ("optimizer.weight_decay=-0.1", ["optimizer.weight_decay=-0.1", "greater than or equal to 0"]),
        ("schedule.warmup=1.2", ["schedule.warmup=1.2", "less than or equal to 1"]),
        ("schedule.warmup=0.99", ["schedule.warmup=0.99", "hold=0.05", "together at most 1"]),
        ("schedule.shape=step", ['schedule.shape="step"', "'linear' or 'cosine'"]),
        ("ema=1", ["ema=1", "less than 1"]),
        ("precision=float64", ['precision="float64"', "'auto', 'float32', 'bfloat16' or 'float16'"]),
        ("keep_last=0", ["keep_last=0", "greater than or equal to 1"]),
        ("log_every=0", ["log_every=0", "greater than or equal to 1"]),
        ("data.crop=left", ['data.crop="left"', "'random', 'center' or 'resized'"]),
        ("data.classes=[]", ["data.classes=[]", "at least 1 item"]),
        ("data.classes=[-1]", ["data.classes.0", "label=-1 must be in 0.."]),
        ("data.resize=0.9", ["data.resize=0.9", "greater than or equal to 1"]),
        ("data.workers=-1", ["data.workers=-1", "greater than or equal to 0"]),
        ("data.max_unreadable=2", ["data.max_unreadable=2", "less than or equal to 1"]),
        ("data.validation_images=0", ["data.validation_images=0", "greater than or equal to 1"]),
        ("data.source=''", ['data.source=""', "at least 1 character"]),
        ("loss={l1: 0, l2: 0}", ["loss.l1=0 and l2=0", "raise one of them"]),
        ("restart_dead_codes=0", ["restart_dead_codes=0", "greater than or equal to 1"]),
        # the tokenizer's own checks
        ("model.vocab_size=0", ["model.vocab_size=0", "at least 1"]),
        ("model.scales=[2, 1]", ["model.scales [2, 1]", "increasing order"]),
        ("model.base_width=50", ["model: ", "base_width 50", "change one of them"]),
        # the length of the run
        ("epochs=null", ["epochs and steps are both missing", "epochs=100"]),
        # the stage
        ("stage=gan", ['stage="gan"', STAGES]),
        ("stage=null", ["stage=null", "tokenizer, var"]),
        ("stage=[1]", ["stage=[1]", "tokenizer, var"]),
        # the form of overrides
        ("--flip", ["'--flip'", "key=value"]),
        ("batch_size", ["'batch_size'", "key=value"]),
        ("a b=3", ["'a b=3'", "key=value"]),
        ("optimizer.betas[0]=3", ["'optimizer.betas[0]=3'", "key=value"]),
        ("batch_size=???", ["'batch_size=???'", "key=value"]),
        ("optimizer.betas=[", ["'optimizer.betas=['", "is not valid YAML"]),
        ("optimizer.lr=${nowhere}", ["optimizer.lr", "'nowhere' not found", "give optimizer.lr a value"]),
    ],
)
def test_tokenizer_recipe_refuses(tokenizer_recipe: Path, override: str, parts: list[str]) -> None:
    text = message(tokenizer_recipe, override)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("model.depth=0", ["model.depth=0", "at least 1"]),
        ("model.depth=129", ["model.depth=129", "at most 128"]),
        ("model.depth=!!bool zz", ["model.depth", "!!bool zz", "leave out the tag"]),
        ("model.depth=!!timestamp zz", ["model.depth", "leave out the tag"]),
        ("output=\xe9\udcff", ["output=", "not valid UTF-8"]),
        ("model.num_classes=0", ["model.num_classes=0", "at least 1"]),
        ("model.num_classes=900", ["label 970", "model.num_classes=900", "at least 971"]),
        ("model.width=102", ["model.width=102", "multiple of heads=4"]),
        ("model.drop_path=1", ["model.drop_path=1", "[0, 1)"]),
        ("model.vocab_size=1", ["model.vocab_size=1", "known in model: depth"]),
        ("label_drop=1", ["label_drop=1", "less than 1"]),
        ("token_views=-1", ["token_views=-1", "greater than or equal to 1"]),
        ("gradient_checkpointing=some", ['gradient_checkpointing="some"', "boolean"]),
        ("tokenizer=null", ["tokenizer=null", "must be text"]),
        ("loss.l1=1", ["loss={l1}", "not a known key"]),
    ],
)
def test_var_recipe_refuses(var_recipe: Path, override: str, parts: list[str]) -> None:
    text = message(var_recipe, override)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("a: [1", ["not valid YAML", "line "]),
        ("x: !!bool zz", ["leave out the tag"]),
        ("x: !!timestamp zz", ["leave out the tag"]),
        (TOKENIZER + "!!binary aGk=: 1", ["a key that is no text"]),
        ("a: 1\na: 2", ["not valid YAML", "duplicate key a"]),
        ("- 1", ["holds a list", "key: value"]),
        ("", ["the file is empty", f"stage, one of {STAGES}"]),
        (
            "model: {}\ndata: {}",
            ["stage is missing among model, data:", f"stage, one of {STAGES}"],
        ),
        ("stage:", ["stage=null", "tokenizer, var"]),
        ("A letter, not a recipe.\nIn two lines.", ["holds text", "key: value pairs, such as stage: tokenizer"]),
        (TOKENIZER.replace("batch_size: 64", ""), ["batch_size is missing", "batch_size=VALUE"]),
        (TOKENIZER.replace("lr: 1e-4", ""), ["optimizer.lr is missing"]),
        (
            TOKENIZER.replace("batch_size: 64", "bach_size: 64"),
            ["bach_size=64", "mean batch_size?", "(and 1 more)"],
        ),
        (TOKENIZER.replace("runs/tokenizer", "???"), ["output", "give output a value"]),
        (TOKENIZER.replace("runs/tokenizer", "3"), ["output=3", "must be text: put it in quotes"]),
    ],
)
def test_file_that_cannot_be_used(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    text = message(path)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000])
def test_numbers_of_thousands_of_digits_are_refused_in_our_words(var_recipe: Path, number: str) -> None:
    with refused("override 'steps=", "a whole number of thousands of digits is too large"):
        load_recipe(var_recipe, [f"steps={number}"])
    var_recipe.write_text(var_recipe.read_text() + f"\nlog_every: {number}\n")
    with refused(f"recipe {var_recipe}", "a whole number of thousands of digits is too large"):
        load_recipe(var_recipe)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "no.yaml")
    assert "cannot be read" in message(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in message(tmp_path / "binary.yaml")


def test_reading_recipes_imports_no_heavy_library_pipeline_or_editing() -> None:
    code = """
import sys
from pathlib import Path
from var.training.recipe import load_recipe
for path in Path("configs").glob("*.yaml"):
    load_recipe(path)
heavy = ("torchvision", "datasets", "pandas", "accelerate", "var.pipeline", "var.editing", "var.training.loop")
print([name for name in heavy if name in sys.modules])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=root
    )
    assert done.stdout.strip() == "[]"


def test_scales_that_do_not_fit_the_image_size_are_refused() -> None:
    path = Path(__file__).parents[2] / "configs" / "mini_tokenizer.yaml"
    with pytest.raises(InputError, match=r"end at 9.*36 pixels.*image_size=32.*image_size / 4"):
        load_recipe(path, ["model.scales=[1,2,9]"])


def test_the_length_given_last_counts(tmp_path: Path) -> None:
    """In passes or in steps: an override, or a recipe with a base, replaces the one by the other."""
    path, above = tmp_path / "base.yaml", tmp_path / "above.yaml"
    path.write_text(TOKENIZER)  # 3 epochs
    above.write_text("base: base.yaml\nsteps: 9\n")
    for recipe, expected in (
        (load_recipe(path, ["steps=4"]), (None, 4)),
        (load_recipe(above), (None, 9)),
        (load_recipe(above, ["epochs=2"]), (2, None)),
        (load_recipe(above, ["steps=null", "epochs=2"]), (2, None)),
    ):
        assert (recipe.epochs, recipe.steps) == expected
    with refused("epochs=2 and steps=4 both given", "null"):
        load_recipe(path, ["steps=4", "epochs=2"])


@pytest.mark.parametrize(
    "override",
    [
        *("steps=1" + "0" * 30, "epochs=1e300", "batch_size=1" + "0" * 18, "data.workers=1000000000"),
        *("model.blocks=1" + "0" * 18, "model.base_width=1" + "0" * 12, "model.scales=[1,1000000]"),
        *("image_size=1000000000", "data.resize=1e300", "model.multipliers=[1,2,4,8,16,32,64,128,256,512,1024]"),
        f"model.scales={list(range(1, 3000))}",
    ],
)
def test_sizes_have_bounds(override: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TOKENIZER)
    with refused(override.partition("=")[0].rpartition(".")[2]):
        load_recipe(tmp_path / "r.yaml", [override])


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300, "a/" * 3000, '"a\\0b"'])
def test_paths_that_no_file_can_have(path: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TOKENIZER.replace("runs/tokenizer", path))
    with refused("r.yaml: output="):
        load_recipe(tmp_path / "r.yaml")


def test_a_path_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text(TOKENIZER)
    assert load_recipe(tmp_path / "r.yaml", ["output=~/runs"]).output == tmp_path / "runs"


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("aim", {"attention", "targets", "head", "order"}),
        ("semaim", {"attention", "targets", "decoder", "smoothing"}),
        ("beit", {"mask_ratio", "min_block", "min_aspect", "scales"}),
        ("mae", {"mask_ratio", "targets", "decoder"}),
        ("simmim", {"mask_ratio", "targets", "mask_size"}),
    ],
)
def test_what_a_loss_measures_is_fixed_for_a_run(stage: str, keys: set[str]) -> None:
    assert keys <= find_stage(stage).recipe_type.fixed
