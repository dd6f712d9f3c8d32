"""Command that measures how well a transformer predicts tokens: `var evaluate likelihood --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from var.cli.evaluation.labeled_images import describe, find_renamed_labels, open_labeled_images
from var.cli.evaluation.options import DataOptions
from var.cli.evaluation.results import finish, format_mean, heading, read_batches
from var.cli.options import ModelOptions
from var.cli.run import in_columns

if TYPE_CHECKING:
    from var.evaluation.likelihood import LabeledLikelihood, Likelihood, TokenLikelihood


def likelihood(data: DataOptions, model: ModelOptions) -> None:
    """Print loss and error of token prediction with teacher forcing: over all scales, each scale, the last one.

    Examples:
      var evaluate likelihood --data imagenet --model var-d16 --num 5000
      var evaluate likelihood --data configs/mini_var.yaml data.source=imagenet --json likelihood.json
    """
    opened = open_labeled_images(data, model, "likelihood.json")
    from var.evaluation.likelihood import likelihood as measure

    pipe, dataset, _ = opened
    side = pipe.vqvae.config.image_side
    found = measure(pipe, read_batches(dataset, data, "measured"))
    results = {
        "command": "likelihood",
        **describe(opened, data, model, found.num_images),
        **to_dict(found, side),
    }
    lines = [*heading(results), "", *format_table(found), "", *format_summary(found, side)]
    finish(lines, find_renamed_labels(pipe, dataset), results, data.json_file)


def to_dict(found: "LabeledLikelihood", side: int) -> dict[str, Any]:
    """Return the results for the JSON file; losses in nats per token unless the key says otherwise."""
    return {
        "with_label": likelihood_to_dict(found.given, side),
        "null_class": likelihood_to_dict(found.null, side),
        "label_saves_nats_per_image": found.gain._asdict(),
        "standard_errors": "over images",
    }


def likelihood_to_dict(found: "Likelihood", side: int) -> dict[str, Any]:
    """Return the entries of all tokens, of the last scale and of each scale."""

    def entries(of: "TokenLikelihood") -> dict[str, Any]:
        values = {name: getattr(of, name) for name in ("loss", "error", "bits", "perplexity")}
        values |= {"nats_per_image": of.nats_per_image, "bits_per_pixel": of.bits_per_pixel(side)}
        return {"tokens": of.tokens, **{name: value._asdict() for name, value in values.items()}}

    return {
        "all": entries(found.whole),
        "last": entries(found.last),
        "scales": {format_scale(of): entries(of) for of in found.of_scales},
    }


def format_scale(of: "TokenLikelihood") -> str:
    """Return the scale's name, such as `4x4`."""
    side = round(of.tokens**0.5)
    return f"{side}x{side}"


def format_table(found: "LabeledLikelihood") -> list[str]:
    """Return a row for all scales and one for each: with the label; in the last two columns, with the null class."""
    last = format_scale(found.given.last)
    rows = [("scale", "tokens", "nats/token", "error", "bits", "perplexity", "null class: nats/token", "error")]
    given = [("all", found.given.whole), *((format_scale(of), of) for of in found.given.of_scales)]
    for (name, of), without in zip(given, [found.null.whole, *found.null.of_scales], strict=True):
        name = f"{name}, last" if name == last else name
        labeled, null = ((format_mean(x.loss, ".4f"), format_mean(x.error, ".2f", 100) + " %") for x in (of, without))
        rows.append((name, str(of.tokens), *labeled, f"{of.bits.mean:.4f}", f"{of.perplexity.mean:.1f}", *null))
    return in_columns(rows)


def format_summary(found: "LabeledLikelihood", side: int) -> list[str]:
    """Return the total of an image's tokens in nats and bits per pixel, in lines."""
    lines = []
    for name, column in (("with its label", found.given), ("null class", found.null)):
        whole = column.whole
        lines.append(
            f"an image, {name:<17}{format_mean(whole.nats_per_image, '.2f')} nats, "
            f"{format_mean(whole.bits_per_pixel(side), '.4f')} bits/pixel (of its tokens, no bound on its pixels)"
        )
    lines.append(f"the label saves            {format_mean(found.gain, '.2f')} nats")
    lines.append("± is the standard error over images; error is 1 - top-1 accuracy")
    return lines
