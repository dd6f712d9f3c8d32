"""Every option of the commands, once; those of one group of commands alone are in files of their own.

A parameter of a dataclass type stands for all its fields, see `run.flatten`. Options that are None are the library's
defaults, which their help states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from tokenizer.errors import LARGEST, InputError, abbreviate, check_whole_number
from var.sampling.params import FOR_METRICS, MAR_STEPS, SamplingParams
from var.utils.classes import find_label, read_number, split_classes

if TYPE_CHECKING:
    from var.pipeline import VARPipeline

SAMPLING = SamplingParams()

LARGEST_SEED = 2**63 - 1

CLASS = "Index or name of a class, such as 207 or 'golden retriever'"
MODEL = "var-mini, var-emoji, var-d16 ... var-d36, a model folder, or user/model on the Hugging Face hub"
SPLIT = Literal["train", "validation"]

OWN = {"model", "device", "dtype", "out", "mask", "box"}  # what commands read, load and write themselves

sampling_option: Any = partial(Option, rich_help_panel="Sampling")


def guidance(default: float) -> Any:
    """The option --cfg; commands that make metrics have another default than those that make images to look at."""
    text = f"Classifier-free guidance, 0 or more; 0 switches it off. Default: the model's, else {default:g}."
    return sampling_option(callback=check_field(SamplingParams, "cfg"), help=text)


def check_range(name: str, at_least: int, at_most: int = LARGEST) -> Callable[[int | None], int | None]:
    """Return a callback that refuses a number in the library's words, before a model is loaded; None is passed on.

    Every whole number has an upper bound: one far above all use is a slip, and would take memory or time without end.
    """
    return lambda value: None if value is None else check_whole_number(name, value, at_least, at_most)


def check_field(params: Callable[..., object], name: str) -> Callable[[Any], Any]:
    """Return a callback that refuses what the dataclass refuses of this field, before a model is loaded."""
    return lambda value: None if value is None else getattr(params(**{name: value}), name)


def whole_numbers(text: str, refusal: str) -> list[int]:
    """`1,2,4` -> numbers; InputError with the text of the refusal for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError(refusal) from error


def read_classes(given: Sequence[str], pipe: "VARPipeline") -> list[str]:
    """Split what has commas in it, such as `207,970`; names of the model's classes may have some of their own."""
    return [each for text in given for each in (split_classes(text, pipe.known_classes()) if "," in text else [text])]


def check_names(given: Sequence[str], model: str) -> None:
    """Refuse, before a model is loaded, a name that none of its classes has."""
    from var.hub.load import read_names

    if given and (names := read_names(model)):
        for text in given:
            for each in split_classes(text, names) if "," in text else [text]:
                if read_number(each) is None:
                    find_label(each, names)


def parse_window(text: str | None) -> tuple[int, ...] | None:
    """`0:7` -> (0, 7), the scales at which guidance acts; InputError for anything else."""
    if text is None:
        return None
    refusal = f"cfg_scales={abbreviate(text)} must be FIRST:LAST, scales counted from 0, such as 0:7"
    window = tuple(whole_numbers(text.replace(":", ","), refusal))
    if ":" not in text or "," in text:
        raise InputError(refusal)
    return SamplingParams(cfg_scales=window).cfg_scales


def parse_scales(text: str | None) -> tuple[int, ...] | None:
    """`1,2,4,8` -> sides of token maps; InputError for anything else."""
    refusal = f"use_scales={text!r} must be sides of the model's token maps, such as 1,2,4,8"
    return None if text is None else tuple(whole_numbers(text, refusal))


def parse_temperature(text: str | None) -> float | tuple[float, ...] | None:
    """`0.9`, or one number for each scale, `1,1,0.9`; InputError for anything else."""
    if text is None:
        return None
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(
            f"temperature={abbreviate(text)} must be a number, or one for each scale with commas between them, such as "
            "1,1,0.9"
        ) from error
    return SamplingParams(temperature=numbers if len(numbers) > 1 else numbers[0]).temperature


def collect_options(*bundles: object, **more: object) -> dict[str, Any]:
    """The options that are not None, as keywords of the pipeline's methods."""
    values = {name: value for bundle in bundles for name, value in vars(bundle).items()} | more
    return {name: value for name, value in values.items() if value is not None and name not in OWN}


# --- models and sampling

Batch = Annotated[int, Option(callback=check_range("batch", 1), help="Images at once, for each process.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, Option(help="auto, float32 or bfloat16.")]
VARDtype = Annotated[str, Option(help="auto, float32 or bfloat16; a VAR on a CPU also in int8.")]


@dataclass(frozen=True)
class ModelOptions:
    """A model and how it is loaded."""

    model: Annotated[str, Option(help=f"{MODEL}.")] = "var-mini"
    device: Device = "auto"
    dtype: VARDtype = "auto"


@dataclass(frozen=True)
class MetricsSamplingOptions:
    """Sampling options of commands that make metrics."""

    seed: Annotated[
        int,
        sampling_option(
            callback=check_range("seed", 0, LARGEST_SEED), help="0 or more; with class and index it fixes an image."
        ),
    ] = 0
    cfg: Annotated[float | None, guidance(FOR_METRICS.cfg)] = None
    top_k: Annotated[
        int | None,
        sampling_option(
            callback=check_field(SamplingParams, "top_k"),
            help=f"Keep that many of the best tokens; 0 keeps all. Default: the model's, else {SAMPLING.top_k}.",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        sampling_option(
            callback=check_field(SamplingParams, "top_p"),
            help="Of these keep the best up to that probability, 0 to 1; 0 keeps all. "
            f"Default: the model's, else {SAMPLING.top_p:g}.",
        ),
    ] = None
    cfg_scales: Annotated[
        str | None,
        sampling_option(
            callback=parse_window,
            metavar="FIRST:LAST",
            help="Guidance acts at these scales alone, counted from 0, and costs nothing at others. Default: the "
            "model's, else all.",
        ),
    ] = None
    temperature: Annotated[
        str | None,
        sampling_option(
            callback=parse_temperature,
            metavar="NUMBERS",
            help="Logits are divided by it before top-k and top-p; one number, or one for each scale, such as "
            f"1,1,0.9. Of a MAR: factor on the noise that its head adds. Default: the model's, else "
            f"{SAMPLING.temperature:g}.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        sampling_option(
            callback=check_range("steps", *MAR_STEPS["steps"]),
            help="Of a MAR: in which all tokens are drawn, at most one for each. Default: the model's, else 64.",
        ),
    ] = None
    diffusion_steps: Annotated[
        int | None,
        sampling_option(
            callback=check_range("diffusion_steps", *MAR_STEPS["diffusion_steps"]),
            help="Of a MAR: in which its head draws a token. Default: the model's, else 100.",
        ),
    ] = None


@dataclass(frozen=True)
class ScaleOptions:
    """Scales that are drawn, and a second model that draws the fine ones; edits have none of these."""

    use_scales: Annotated[
        str | None,
        sampling_option(
            callback=parse_scales,
            metavar="SIDES",
            help="Token maps that are drawn, such as 1,2,4,8, by a model that was trained with dropped scales. "
            "Default: the model's, else all.",
        ),
    ] = None
    refiner: Annotated[
        str | None,
        sampling_option(help="Model on the same tokenizer that draws the fine scales. Needs --refine-from."),
    ] = None
    refine_from: Annotated[
        int | None,
        sampling_option(callback=check_range("refine_from", 1), help="First scale that it draws, counted from 0."),
    ] = None


@dataclass(frozen=True)
class SamplingOptions(MetricsSamplingOptions):
    """Sampling options of commands that make images to look at."""

    cfg: Annotated[float | None, guidance(SAMPLING.cfg)] = None
    smooth: Annotated[bool | None, sampling_option("--smooth", help="Smoother images; not for metrics.")] = None


Classes = Annotated[
    list[str] | None,
    Option(
        "--class",
        help=f"{CLASS}; several with commas, or repeat it. Default: those that the model knows.",
        metavar="CLASS,...",
    ),
]
PositionalClasses = Annotated[
    list[str] | None, Argument(help=f"{CLASS}; as --class.", metavar="CLASS", show_default=False)
]
NumPerClass = Annotated[int, Option(callback=check_range("num", 1, 1000), help="Images of each class, 1 to 1000.")]
Intermediates = Annotated[
    bool, Option("--scales", help="Also save the image after every scale, and a GIF of its growth.")
]
SampleFolder = Annotated[Path, Option("--out", help="Folder for the images.")]

# --- recipes and training

Recipe = Annotated[
    Path, Argument(help="Recipe: a YAML file, or the name of one that `var recipes list` shows.", metavar="RECIPE")
]
RecipeName = Annotated[str, Argument(help="One that `var recipes list` shows.", metavar="NAME")]
RecipeWord = Annotated[str, Argument(help="Only those whose name has it.", metavar="WORD", show_default=False)]
RunsFolder = Annotated[Path, Option("--runs", help="Folder whose runs are listed too.")]
RecipeTarget = Annotated[
    Path, Argument(help="Folder, or a file for a recipe without a base.", metavar="TO", show_default="this folder")
]
RunFolder = Annotated[Path, Argument(help="Output folder of a run.", metavar="RUN")]
PlotFile = Annotated[Path | None, Option("--out", help="Image to write. Default: curves.png in RUN.", metavar="FILE")]
Overrides = Annotated[list[str] | None, Argument(help="key=value, such as optimizer.lr=1e-4.", metavar="KEY=VALUE")]
DryRun = Annotated[
    bool, Option("--dry-run", help="Only print what it would take: parameters, FLOPs, memory, steps, time.")
]
Depths = Annotated[
    str, Option(help="Such as 1,2,4: width and heads in proportion, learning rate in inverse proportion.")
]
Launch = Annotated[
    str, Option(help="What starts each run on several processes, such as 'torchrun --nproc_per_node 2'.")
]

# --- scaling laws

Runs = Annotated[
    list[Path], Argument(help="Output folders of runs of stage var, of three sizes at least.", metavar="RUNS")
]
PrintJson = Annotated[bool, Option("--json", help="Print what scaling.json holds in place of tables.")]
Resamples = Annotated[
    int, Option(callback=check_range("resamples", 100, 10**6), help="Draws of the bootstrap, at least 100.")
]
BootstrapSeed = Annotated[
    int, Option("--seed", callback=check_range("seed", 0, LARGEST_SEED), help="Of the bootstrap, 0 or more.")
]
LawsFolder = Annotated[Path, Option("--out", help="Folder for scaling.json, parameters.png and compute.png.")]

# --- data and features

ShardFolder = Annotated[
    Path, Argument(help="Folder with train*.tar and val*.tar in the WebDataset form.", metavar="FOLDER")
]
ImageSource = Annotated[str, Argument(help="Folder with images at any depth; see --split.", metavar="FOLDER")]
FeatureModel = Annotated[
    str,
    Option(
        "--model",
        help="aim-600M to aim-7B, var-mini, var-d16 to var-d36, the folder of an encoder (with or without probe), "
        "a VAR pipeline or a probe (for what it reads), user/model on the Hugging Face hub; or, to compare with, "
        "untrained or pixels, with --sizes.",
    ),
]
Sizes = Annotated[
    str | None,
    Option(
        help="Of untrained and pixels: aim-tiny, aim-small, ..., ViT-B, single sizes, or both: aim-tiny,image_size=48.",
        metavar="SIZES",
    ),
]
Layers = Annotated[
    str | None,
    Option(
        help="Blocks whose outputs are averaged: best (what the model's probe reads, else the paper's choice for "
        "its sizes), last (as many last ones, else six), or a list such as 0,3,5, counted from 0. "
        "Default: best where known, else last."
    ),
]
Pool = Annotated[Literal["mean", "none"], Option(help="mean: one vector an image. none: all its patches, row by row.")]
FeatureSplit = Annotated[
    SPLIT | None,
    Option(
        "--split",
        help="Read FOLDER as data.source of a recipe is read: a folder with train and val, or with train*.parquet "
        "and validation*.parquet, or a hub dataset.",
    ),
]
TrainFeatures = Annotated[Path, Argument(help="Features file of labeled training images.", metavar="TRAIN")]
FeaturesFile = Annotated[Path, Option("--out", help="Parquet: path, label, class_name, feature.", metavar="FILE")]
ValidationFeatures = Annotated[Path, Argument(help="That of the images to classify.", metavar="VALIDATION")]
JsonFile = Annotated[Path | None, Option("--json", help="Also write the results there.", metavar="FILE")]
Neighbors = Annotated[int, Option("--k", callback=check_range("k", 1), help="Neighbors that vote.")]
