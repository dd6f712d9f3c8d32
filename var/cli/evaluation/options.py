"""Options that only `var evaluate` has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from var.cli.options import MODEL, SPLIT, Batch, JsonFile, check_range

WEIGHTS = "by default cached, downloaded or from a package."

Labels = Annotated[
    str | None,
    Option(
        "--classes", help="Only these labels or names of classes: 1,lemon. Default: all, or all that the model knows."
    ),
]
MaxImages = Annotated[
    int | None,
    Option("--num", callback=check_range("num", 1), help="Maximum number of images, spread over the split."),
]


@dataclass(frozen=True)
class DataOptions:
    """Images that a model is measured on, and the file of the results."""

    data: Annotated[
        str,
        Option(
            help="As data.source of a recipe: a folder, a hub dataset, an index of shards. Or a recipe (.yaml), whose "
            "section `data` is used.",
            metavar="SOURCE",
        ),
    ]
    overrides: Annotated[
        list[str] | None,
        Argument(help="Overrides, if --data is a recipe, such as data.source=FOLDER.", metavar="KEY=VALUE"),
    ] = None
    split: Annotated[SPLIT, Option(help="Split; its images are center-cropped, never augmented.")] = "validation"
    classes: Labels = None
    num: MaxImages = None
    batch: Batch = 32
    json_file: JsonFile = None


TokenizerModel = Annotated[str, Option("--model", help=f"{MODEL}, or the folder of a tokenizer.")]
Extractor = Annotated[
    str, Option(help="inception-v3-compat (FID), efficientnet-lite0 (offline), vgg16, clip-vit-b-32, ...")
]
MaybeExtractor = Annotated[str | None, Option("--extractor", help="Extractor of the statistics to add.")]
ExtractorWeights = Annotated[Path | None, Option("--weights", help=f"The extractor's weights; {WEIGHTS}")]
Fid = Annotated[bool, Option(help="Compute rFID.")]
Lpips = Annotated[
    str | None,
    Option(
        help="Also a perceptual distance: lpips-vgg, lpips-alex, lpips-squeeze; or, without learned weights, LPIPS's "
        "formula on features of efficientnet-lite1, efficientnet-lite2, vgg16 or dino-vits16."
    ),
]
LpipsWeights = Annotated[Path | None, Option(help=f"Weights of --lpips; {WEIGHTS}")]
PerScale = Annotated[bool, Option("--per-scale", help="Also PSNR after each scale, which decodes once per scale.")]
Images = Annotated[Path, Option(help="Folder, or .npz with arr_0.", metavar="DIR|NPZ")]
Reference = Annotated[
    Path,
    Option(
        help="Folder, .npz of images, ADM's reference batch, or what `var evaluate reference` wrote.", metavar="DIR|NPZ"
    ),
]
Among = Annotated[
    str | None,
    Option(
        help="Also print the classifier's accuracy among these labels only, such as 1,145,207, or a JSON file's keys.",
        metavar="LABELS|FILE",
    ),
]
ReferenceFile = Annotated[Path, Option("--out", help="The .npz file to write.", metavar="FILE")]
ReferenceSource = Annotated[
    str, Argument(help="With --split, as data.source of a recipe; without, a folder or .npz.", metavar="SOURCE")
]
ReferenceSplit = Annotated[SPLIT | None, Option("--split", help="Split of SOURCE.")]
ReferenceSize = Annotated[
    int | None,
    Option("--size", callback=check_range("size", 1, 2**14), help="Side of the images in pixels, with --split."),
]
NumInSet = Annotated[
    int,
    Option("--num-per-class", callback=check_range("num_per_class", 1), help="Images of each class, at least 1."),
]
SampleSetFolder = Annotated[Path, Option("--out", help="Folder: images/LABEL_INDEX.png, settings.json, samples.npz.")]
Reject = Annotated[
    float | None,
    Option(
        help="Rejection sampling: fraction of each class's samples to keep, in (0, 1], those with the highest class "
        "probability under a classifier; 0.5 generates twice as many. For models of ImageNet's 1000 classes."
    ),
]
RejectBy = Annotated[
    str | None,
    Option(help="Classifier of --reject; never score with the same one. Default: efficientnet-lite1."),
]
Compile = Annotated[
    bool,
    Option("--compile", help="Compile the networks: minutes before the first image, for large sets; rounds otherwise."),
]
Npz = Annotated[bool, Option(help="Write samples.npz, as ADM's evaluator takes it.")]
