"""Command that measures a transformer as a classifier: `var evaluate classification --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from var.cli.classify_options import Keep, Rows, format_idle_steps
from var.cli.evaluation.labeled_images import describe, find_renamed_labels, open_labeled_images
from var.cli.evaluation.options import DataOptions
from var.cli.evaluation.results import finish, format_mean, heading, read_batches
from var.cli.options import ModelOptions
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.evaluation.classification import Accuracy, Classification, Classifier


def classification(data: DataOptions, model: ModelOptions, keep: Keep = None, rows: Rows = 64) -> None:
    """Print the accuracy of classifying images by the likelihood of their tokens under every class.

    Examples:
      var evaluate classification --data imagenet --model var-d16 --num 1000 --keep 3:25%,5:8
      var evaluate classification --data configs/mini_var.yaml data.source=imagenet --json classification.json
    """
    from var.sampling.class_likelihood import Pruning

    pruning = None if keep is None else Pruning.parse(keep, "--keep")
    opened = open_labeled_images(data, model, "classification.json")
    from var.evaluation.classification import classification as measure

    pipe, dataset, _ = opened
    found = measure(pipe, read_batches(dataset, data, "classified"), pruning, rows)
    sides = pipe.model.scales.sides
    results = {
        "command": "classification",
        **describe(opened, data, model, found.num_images),
        **to_dict(found, sides, keep),
    }
    idle = format_idle_steps(pruning, len(sides), found.num_classes)
    lines = [*heading(results), "", *format_table(found, sides, keep), "", *idle, *format_summary(found)]
    finish(lines, find_renamed_labels(pipe, dataset), results, data.json_file)


def to_dict(found: "Classification", sides: tuple[int, ...], keep: str | None) -> dict[str, Any]:
    """Return the results for the JSON file; accuracies are fractions."""

    def accuracy(of: "Accuracy") -> dict[str, Any]:
        return {"top1": of.top1._asdict(), "top5": of.top5._asdict()}

    def classifier(of: "Classifier") -> dict[str, Any]:
        return {**accuracy(of.accuracy), "seconds_per_image": of.seconds, "tokens_per_image": of.tokens}

    by_scales = zip(sides, found.of_first_scales, strict=True)
    return {
        "num_classes": found.num_classes,
        "whole": classifier(found.whole),
        "pruned": None if found.pruned is None else {"keep": keep, **classifier(found.pruned)},
        "agreement": found.agreement and found.agreement._asdict(),
        "up_to_scale": {f"{side}x{side}": accuracy(of) for side, of in by_scales},
        "standard_errors": "over images",
    }


def format_table(found: "Classification", sides: tuple[int, ...], keep: str | None) -> list[str]:
    """Return a row for each way to classify, then one for each number of scales."""
    rows = [("classified by", "top-1, %", "top-5, %", "tokens/image", "s/image")]
    pruned = [] if found.pruned is None else [(f"all scales, --keep {keep}", found.pruned)]
    for name, of in [("all scales", found.whole), *pruned]:
        rows.append((name, *format_accuracy(of.accuracy), str(of.tokens), f"{of.seconds:.3g}"))
    per_class = 0
    for side, accuracy in zip(sides, found.of_first_scales, strict=True):
        per_class += side * side
        rows.append((f"scales up to {side}x{side}", *format_accuracy(accuracy), str(per_class * found.num_classes), ""))
    return in_columns(rows)


def format_accuracy(of: "Accuracy") -> tuple[str, str]:
    """Return top-1 and top-5 in percent."""
    return format_mean(of.top1, ".1f", 100), format_mean(of.top5, ".1f", 100)


def format_summary(found: "Classification") -> list[str]:
    """Return agreement, number of classes and what ± means, in lines."""
    agreement = found.agreement
    agree = [] if agreement is None else [f"pruned and whole agree on {format_mean(agreement, '.1f', 100)} % of images"]
    chance = f"among {found.num_classes} classes: chance is {100 / found.num_classes:.3g} %"
    return [*agree, f"{chance}; ± is the standard error over images"]
