"""The options of `var evaluate` that no other command has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from var.cli.options import MODEL, SPLIT, Batch, JsonFile

WEIGHTS = "otherwise cached, downloaded or a package's."

Labels = Annotated[
    str | None, Option("--classes", help="Only these labels, such as 1,145. Default: all, or all that the model knows.")
]
MaxImages = Annotated[int | None, Option("--num", help="At most so many images, spread over the split. Default: all.")]


@dataclass(frozen=True)
class DataOptions:
    """Images that a model is measured on, and where the results go."""

    data: Annotated[
        str,
        Option(
            help="What a recipe takes as data.source: a folder, a hub dataset, "
            "an index of shards. Or a recipe (.yaml), "
            "for all that it says of its data.",
            metavar="SOURCE",
        ),
    ]
    overrides: Annotated[
        list[str] | None,
        Argument(help="key=value, where --data is a recipe, such as data.source=FOLDER.", metavar="KEY=VALUE"),
    ] = None
    split: Annotated[SPLIT, Option(help="Never augmented, cropped at the center.")] = "validation"
    classes: Labels = None
    num: MaxImages = None
    batch: Batch = 32
    json_file: JsonFile = None


TokenizerModel = Annotated[str, Option("--model", help=f"{MODEL}, or the folder of a tokenizer.")]
Extractor = Annotated[
    str, Option(help="inception-v3-compat (FID), efficientnet-lite0 (offline), vgg16, clip-vit-b-32, ...")
]
MaybeExtractor = Annotated[str | None, Option("--extractor", help="Whose statistics to add.")]
ExtractorWeights = Annotated[Path | None, Option("--weights", help=f"The extractor's weights; {WEIGHTS}")]
Fid = Annotated[bool, Option(help="Measure the rFID.")]
Lpips = Annotated[
    str | None,
    Option(
        help="Also a perceptual distance: lpips-vgg, lpips-alex, lpips-squeeze; or LPIPS's form on the features of "
        "efficientnet-lite1, efficientnet-lite2, vgg16 or dino-vits16, without learned weights."
    ),
]
LpipsWeights = Annotated[Path | None, Option(help=f"Weights of --lpips; {WEIGHTS}")]
PerScale = Annotated[bool, Option("--per-scale", help="Also PSNR after each scale: as many decodings as scales.")]
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
        help="Also tell how often the classifier sees the right class when it chooses among these labels, such as "
        "1,145,207, or the keys of a JSON file.",
        metavar="LABELS|FILE",
    ),
]
ReferenceFile = Annotated[Path, Option("--out", help="The .npz.", metavar="FILE")]
ReferenceSource = Annotated[
    str, Argument(help="With --split what a recipe takes as data.source; without, a folder or .npz.", metavar="SOURCE")
]
ReferenceSplit = Annotated[SPLIT | None, Option("--split", help="Of SOURCE.")]
ReferenceSize = Annotated[int | None, Option("--size", help="Side of the images in pixels, with --split.")]
NumInSet = Annotated[int, Option("--num-per-class", help="Images of each class, at least 1.")]
SampleSetFolder = Annotated[Path, Option("--out", help="Folder: images/LABEL_INDEX.png, settings.json, samples.npz.")]
Reject = Annotated[
    float | None,
    Option(
        help="Rejection sampling: the part of the generated images that is kept, in (0, 1], those that a classifier is "
        "surest of, class by class; 0.5 generates twice as many. For models with ImageNet's 1000 classes."
    ),
]
RejectBy = Annotated[
    str | None,
    Option(help="Extractor that classifies them; never score with the same one. Default: efficientnet-lite1."),
]
Npz = Annotated[bool, Option(help="Write samples.npz, as ADM's evaluator takes it.")]
