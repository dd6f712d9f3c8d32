"""Every option of the commands, once. Options that are None are the library's defaults, which their help tells."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tokenizer.errors import InputError
from var.editing.params import BlendParams
from var.sampling.params import FOR_METRICS, SamplingParams

SAMPLING, BLENDING = SamplingParams(), BlendParams()
ON_OFF = {True: "on", False: "off"}

CLASS = "Index or name of a class, such as 207 or 'golden retriever'"
MODEL = "var-mini, var-d16 ... var-d36, or a model folder"
WEIGHTS = "otherwise cached, downloaded or a package's."
SPLIT = Literal["train", "validation"]


def guidance(default: float) -> Any:
    """The option --cfg; commands that make metrics have another default than those that make images to look at."""
    text = f"Classifier-free guidance, 0 or more; 0 switches it off. Default: the model's, else {default:g}."
    return typer.Option(help=text, rich_help_panel="Sampling")


def check_seed(seed: int) -> int:
    """The seed, unless it is negative."""
    if seed < 0:
        raise InputError(f"--seed={seed} must be greater than or equal to 0 (it names random streams)")
    return seed


# --- models and devices

Model = Annotated[str, typer.Option(help=f"{MODEL}.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]

# --- sampling

Classes = Annotated[
    list[str] | None,
    typer.Option("--class", help=f"{CLASS}; repeat for several. Default: those that the model knows."),
]
NumPerClass = Annotated[int, typer.Option(max=1000, help="Images of each class.")]
NumInSet = Annotated[int, typer.Option("--num-per-class", help="Images of each class, at least 1.")]
Cfg = Annotated[float | None, guidance(SAMPLING.cfg)]
CfgForMetrics = Annotated[float | None, guidance(FOR_METRICS.cfg)]
TopK = Annotated[
    int | None,
    typer.Option(
        help=f"Keep that many of the best tokens; 0 keeps all. Default: the model's, else {SAMPLING.top_k}.",
        rich_help_panel="Sampling",
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Of these keep the best up to that probability, 0 to 1; 0 keeps all. "
        f"Default: the model's, else {SAMPLING.top_p:g}.",
        rich_help_panel="Sampling",
    ),
]
Smooth = Annotated[
    bool | None, typer.Option("--smooth", help="Smoother images; not for metrics.", rich_help_panel="Sampling")
]
Seed = Annotated[
    int,
    typer.Option(
        callback=check_seed, help="0 or more; with class and index it fixes an image.", rich_help_panel="Sampling"
    ),
]
Intermediates = Annotated[
    bool, typer.Option("--scales", help="Also save the image after every scale, and a GIF of its growth.")
]

# --- editing

ImageFile = Annotated[Path, typer.Argument(help="The image, of any size and mode.")]
MaskFile = Annotated[
    Path | None,
    typer.Option(
        "--mask",
        help="Image of the same size, white where it is filled; black or transparent is kept.",
        metavar="FILE",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        help="In pixels, in place of --mask: from x0,y0 up to, not including, x1,y1. Repeat for several.",
        metavar="x0,y0,x1,y1",
    ),
]
Class = Annotated[str, typer.Option("--class", help=f"{CLASS}.", metavar="CLASS")]
MaybeClass = Annotated[
    str | None,
    typer.Option("--class", help=f"{CLASS}. Default: none, the image alone counts.", metavar="CLASS"),
]
Context = Annotated[
    float | None,
    typer.Option(
        help="Side of the square that the model sees over the mask's longer side, 1 or more. A small one gives a small "
        "mask more detail and less to go by. Default: as much as fits the image."
    ),
]
Room = Annotated[int, typer.Option(help="Pixels that are added on this side.")]
Method = Annotated[
    Literal["auto", "shrink", "slide"] | None,
    typer.Option(
        help="shrink (shrink-and-place): the extended image is reduced to the model's size and inpainted in one "
        "piece. slide: a window as large as the image's shorter side slides outwards by halves, for large extensions "
        "in full detail. auto, the default: shrink up to twice the image's shorter side, slide beyond."
    ),
]
CoarseScales = Annotated[
    int | None,
    typer.Option("--scales", min=1, help="Coarse scales that are kept. Default: as many as the small image can tell."),
]
Consistent = Annotated[
    bool | None,
    typer.Option("--consistent/--no-consistent", help="Results, when reduced, are the small image. Default: on."),
]
NumResults = Annotated[int, typer.Option(min=1, max=100, help="How many results.")]
Dilate = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="So many more tokens around the mask are generated too, as those beside it know of it. "
        f"Default: {BLENDING.dilate}.",
        rich_help_panel="Blending",
    ),
]
Feather = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Pixels outside the mask over which the result fades into the image, also where less than that is kept "
        "between two masks; 0: a hard edge. Default: half a token.",
        rich_help_panel="Blending",
    ),
]
Composite = Annotated[
    bool | None,
    typer.Option(
        "--composite/--no-composite",
        help=f"Outside the mask the image stays as it is, bit for bit. Default: {ON_OFF[BLENDING.composite]}.",
        rich_help_panel="Blending",
    ),
]
ColorMatch = Annotated[
    bool | None,
    typer.Option(
        "--color-match/--no-color-match",
        help="Colors of the result are shifted smoothly to meet those around the mask. "
        f"Default: {ON_OFF[BLENDING.color_match]}.",
        rich_help_panel="Blending",
    ),
]
HideMasked = Annotated[
    bool | None,
    typer.Option(
        "--hide-masked/--no-hide-masked",
        help=f"The model does not see what is under the mask. Default: {ON_OFF[BLENDING.hide_masked]}.",
        rich_help_panel="Blending",
    ),
]

# --- recipes and training

Recipe = Annotated[Path, typer.Argument(help="YAML recipe, such as configs/mini_var.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as optimizer.lr=1e-4.", metavar="KEY=VALUE")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only print what it would take: parameters, FLOPs, memory, steps, time.")
]
Depths = Annotated[
    str, typer.Option(help="Such as 1,2,4: width and heads in proportion, learning rate in inverse proportion.")
]
Launch = Annotated[
    str, typer.Option(help="What starts each run on several processes, such as 'torchrun --nproc_per_node 2'.")
]

# --- scaling laws

Runs = Annotated[
    list[Path], typer.Argument(help="Output folders of runs of stage var, of three sizes at least.", metavar="RUNS")
]
PrintJson = Annotated[bool, typer.Option("--json", help="Print what scaling.json holds in place of tables.")]
Resamples = Annotated[int, typer.Option(min=100, help="Draws of the bootstrap.")]
BootstrapSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the bootstrap.")]

# --- data and features

ShardFolder = Annotated[
    Path, typer.Argument(help="Folder with train*.tar and val*.tar in the WebDataset form.", metavar="FOLDER")
]
ImageSource = Annotated[str, typer.Argument(help="Folder with images at any depth; see --split.", metavar="FOLDER")]
FeatureModel = Annotated[
    str,
    typer.Option(
        "--model",
        help="aim-600M to aim-7B, var-mini, var-d16 to var-d36, the folder of an encoder (with or without probe), "
        "a VAR pipeline or a probe (for what it reads); or, to compare with, untrained or pixels, with --sizes.",
    ),
]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="Of untrained and pixels: aim-tiny, aim-small, ..., single sizes, or both: aim-tiny,image_size=48.",
        metavar="SIZES",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Blocks whose outputs are averaged: best (what the model's probe reads, else the paper's choice for "
        "its sizes), last (as many last ones, else six), or a list such as 0,3,5, counted from 0. "
        "Default: best where known, else last."
    ),
]
Pool = Annotated[
    Literal["mean", "none"], typer.Option(help="mean: one vector an image. none: all its patches, row by row.")
]
FeatureSplit = Annotated[
    SPLIT | None,
    typer.Option(
        "--split",
        help="Read FOLDER as data.source of a recipe is read: a folder with train and val, or with train*.parquet "
        "and validation*.parquet, or a hub dataset.",
    ),
]
TrainFeatures = Annotated[Path, typer.Argument(help="Features file of labeled training images.", metavar="TRAIN")]
ValidationFeatures = Annotated[Path, typer.Argument(help="That of the images to classify.", metavar="VALIDATION")]
Neighbors = Annotated[int, typer.Option("--k", help="Neighbors that vote.")]

# --- evaluation

Data = Annotated[
    str,
    typer.Option(
        help="What a recipe takes as data.source: a folder, a hub dataset, an index of shards. Or a recipe (.yaml), "
        "for all that it says of its data.",
        metavar="SOURCE",
    ),
]
DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, where --data is a recipe, such as data.source=FOLDER.", metavar="KEY=VALUE"),
]
Split = Annotated[SPLIT, typer.Option(help="Never augmented, cropped at the center.")]
Labels = Annotated[
    str | None,
    typer.Option("--classes", help="Only these labels, such as 1,145. Default: all, or all that the model knows."),
]
MaxImages = Annotated[
    int | None, typer.Option("--num", help="At most so many images, spread over the split. Default: all.")
]
Batch = Annotated[int, typer.Option(help="Images at once, for each process.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results there.", metavar="FILE")]
TokenizerModel = Annotated[str, typer.Option("--model", help=f"{MODEL}, or the folder of a tokenizer.")]
Extractor = Annotated[
    str, typer.Option(help="inception-v3-compat (FID), efficientnet-lite0 (offline), vgg16, clip-vit-b-32, ...")
]
MaybeExtractor = Annotated[str | None, typer.Option("--extractor", help="Whose statistics to add.")]
ExtractorWeights = Annotated[Path | None, typer.Option("--weights", help=f"The extractor's weights; {WEIGHTS}")]
Fid = Annotated[bool, typer.Option("--fid/--no-fid", help="Measure the rFID.")]
Lpips = Annotated[
    str | None,
    typer.Option(
        help="Also a perceptual distance: lpips-vgg, lpips-alex, lpips-squeeze; or LPIPS's form on the features of "
        "efficientnet-lite1, efficientnet-lite2, vgg16 or dino-vits16, without learned weights."
    ),
]
LpipsWeights = Annotated[Path | None, typer.Option(help=f"Weights of --lpips; {WEIGHTS}")]
PerScale = Annotated[bool, typer.Option("--per-scale", help="Also PSNR after each scale: as many decodings as scales.")]
Images = Annotated[Path, typer.Option(help="Folder, or .npz with arr_0.", metavar="DIR|NPZ")]
Reference = Annotated[
    Path,
    typer.Option(
        help="Folder, .npz of images, ADM's reference batch, or what `var evaluate reference` wrote.",
        metavar="DIR|NPZ",
    ),
]
Among = Annotated[
    str | None,
    typer.Option(
        help="Also tell how often the classifier sees the right class when it chooses among these labels, such as "
        "1,145,207, or the keys of a JSON file.",
        metavar="LABELS|FILE",
    ),
]
ReferenceSource = Annotated[
    str,
    typer.Argument(
        help="With --split what a recipe takes as data.source; without, a folder or .npz.", metavar="SOURCE"
    ),
]
ReferenceSplit = Annotated[SPLIT | None, typer.Option("--split", help="Of SOURCE.")]
ReferenceSize = Annotated[int | None, typer.Option("--size", help="Side of the images in pixels, with --split.")]
Reject = Annotated[
    float | None,
    typer.Option(
        help="Rejection sampling: the part of the generated images that is kept, in (0, 1], those that a classifier is "
        "surest of, class by class; 0.5 generates twice as many. For models with ImageNet's 1000 classes.",
    ),
]
RejectBy = Annotated[
    str | None,
    typer.Option(help="Extractor that classifies them; never score with the same one. Default: efficientnet-lite1."),
]
Npz = Annotated[bool, typer.Option("--npz/--no-npz", help="Write samples.npz, as ADM's evaluator takes it.")]

# --- where results go

SampleFolder = Annotated[Path, typer.Option("--out", help="Folder for the images.")]
SampleSetFolder = Annotated[
    Path, typer.Option("--out", help="Folder: images/LABEL_INDEX.png, settings.json, samples.npz.")
]
LawsFolder = Annotated[Path, typer.Option("--out", help="Folder for scaling.json, parameters.png and compute.png.")]
FeaturesFile = Annotated[Path, typer.Option("--out", help="Parquet file: path, label, class_name, feature.")]
ReferenceFile = Annotated[Path, typer.Option("--out", help="The .npz.", metavar="FILE")]
