"""Command that measures a tokenizer: `var evaluate tokenizer --data SOURCE`."""

from typing import TYPE_CHECKING, Any

from tokenizer.errors import InputError
from var.cli.evaluation import options
from var.cli.evaluation.results import (
    data_entry,
    finish,
    format_mean,
    format_size,
    heading,
    parse_classes,
    read_batches,
)
from var.cli.options import Device
from var.cli.run import in_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizer.vqvae import VQVAE
    from var.evaluation.metrics.extractors import Extractor
    from var.evaluation.metrics.stats import MeanStderr
    from var.evaluation.reconstruction import Reconstruction, Usage


def tokenizer(
    data: options.DataOptions,
    model: options.TokenizerModel = "var-mini",
    extractor: options.Extractor = "inception-v3-compat",
    weights: options.ExtractorWeights = None,
    fid: options.Fid = True,
    lpips: options.Lpips = None,
    lpips_weights: options.LpipsWeights = None,
    per_scale: options.PerScale = False,
    device: Device = "auto",
) -> None:
    """Print rFID, PSNR, SSIM, LPIPS and L1 of reconstructions, and how much of the codebook each scale uses.

    Examples:
      var evaluate tokenizer --data imagenet --model var-d16 --lpips lpips-vgg
      var evaluate tokenizer --data configs/mini_tokenizer.yaml data.source=imagenet --extractor efficientnet-lite0
    """
    chosen_classes = parse_classes(data.classes)
    if weights is not None and not fid:
        raise InputError(f"--weights {weights} are for rFID, which --no-fid leaves out: remove one of the two")
    if lpips_weights is not None and lpips is None:
        raise InputError(f"--lpips-weights {lpips_weights} needs --lpips, such as --lpips lpips-vgg")
    from var.evaluation.data import open_images, read_source
    from var.evaluation.metrics.extractors import open_extractor
    from var.evaluation.reconstruction import psnr_of_scales, reconstruction
    from var.hub.load import find_tokenizer
    from var.networks.perceptual import load_perceptual
    from var.utils.device import choose_device
    from var.utils.paths import check_target
    from var.utils.provenance import device_name, fingerprint, versions

    source = read_source(data.data, data.overrides or [])
    if data.json_file is not None:
        inputs = [data.data, source.source, model, weights, lpips_weights]
        check_target(data.json_file, "tokenizer.json", inputs)
    target = choose_device(device)
    vqvae = find_tokenizer(model).to(target)
    dataset = open_images(source, data.split, vqvae.config.image_side, chosen_classes)
    network = open_extractor(extractor, weights, device) if fid else None
    distance = None if lpips is None else load_perceptual(lpips, lpips_weights).to(target)
    found = reconstruction(vqvae, read_batches(dataset, data, "measured"), distance, network)
    after = psnr_of_scales(vqvae, read_batches(dataset, data, "decoded")) if per_scale else None
    choice = f"labels {data.classes}" if chosen_classes else "all its classes"
    results = {
        "command": "tokenizer",
        "model": {
            "name": model,
            "parts": f"tokenizer of {format_size(vqvae)}, {kind_of_tokens(vqvae)}",
            "weights": fingerprint(vqvae),
            "dtype": "tokenizer in float32, reconstructions rounded to 8 bits",
            "device": device_name(target),
        },
        "data": data_entry(dataset, data, found.num_images, choice),
        "versions": versions(),
        **to_dict(found, vqvae.config.scales, lpips, network, after),
    }
    lines = [*heading(results), *format_extractor(network), "", *format_measures(found, lpips, network)]
    lines += format_usage(found, vqvae.config.scales, after)
    finish(lines, find_rfid_warnings(found, network), results, data.json_file)


def kind_of_tokens(vqvae: "VQVAE") -> str:
    """Return the size of the codebook, or the channels of continuous tokens, as text."""
    config = vqvae.config
    if vqvae.is_continuous:
        return f"continuous tokens of {config.latent_dim} channels"
    return f"{config.vocab_size} codewords"


def to_dict(
    found: "Reconstruction",
    sides: "Sequence[int]",
    lpips: str | None,
    extractor: "Extractor | None",
    after: "tuple[MeanStderr, ...] | None",
) -> dict[str, Any]:
    """Return the results for the JSON file."""
    names = [f"{side}x{side}" for side in sides]
    by_scale = zip(names, found.of_scales, strict=found.overall is not None)
    rfid: dict[str, Any] | None = None
    if extractor is not None:
        made_by = {name: getattr(extractor, name) for name in ("library", "weights", "side", "resize", "dimension")}
        rfid = {"value": found.fid, "extractor": extractor.name, **made_by}
    return {
        "psnr": found.psnr._asdict(),
        "ssim": found.ssim._asdict(),
        "l1": found.l1._asdict(),
        "perceptual": None if found.perceptual is None else {"network": lpips, **found.perceptual._asdict()},
        "rfid": rfid,
        "codebook": found.overall
        and {"all": usage_json(found.overall), "scales": {name: usage_json(usage) for name, usage in by_scale}},
        "psnr_after_scale": after and {name: value._asdict() for name, value in zip(names, after, strict=True)},
        "standard_errors": "over images",
    }


def usage_json(usage: "Usage") -> dict[str, float]:
    """Return usage as counts and as fractions of the reachable maximum."""
    fractions = {"used_fraction": usage.used_fraction, "perplexity_fraction": usage.perplexity_fraction}
    return usage._asdict() | fractions


def format_extractor(extractor: "Extractor | None") -> list[str]:
    """Return the extractor as lines of text, as `var evaluate score` prints it."""
    if extractor is None:
        return []
    return [
        f"extractor  {extractor.name} of {extractor.library}, weights {extractor.weights}",
        f"           images resized to {extractor.side} px: {extractor.resize}; float32",
    ]


def format_measures(found: "Reconstruction", lpips: str | None, extractor: "Extractor | None") -> list[str]:
    """Return a line for every measure."""
    lines = [
        f"PSNR        {format_mean(found.psnr, '.3f')} dB (pixels in 0..1, mean of the images' values)",
        f"SSIM        {format_mean(found.ssim, '.4f')} (pixels in 0..1, Gaussian window of 11 px)",
        f"L1          {format_mean(found.l1, '.5f')} (pixels in 0..1)",
    ]
    if found.perceptual is not None:
        name = "LPIPS" if lpips and lpips.startswith("lpips-") else "LPIPS form"
        lines.append(f"{name:<12}{format_mean(found.perceptual, '.4f')} ({lpips}, at the images' own size)")
    if found.fid is not None and extractor is not None:
        lines.append(f"rFID        {found.fid:.4f} ({extractor.name}, {found.num_images} images and reconstructions)")
    lines.append("± is the standard error over images")
    return lines


def format_usage(found: "Reconstruction", sides: "Sequence[int]", after: "tuple[MeanStderr, ...] | None") -> list[str]:
    """Return an empty line, a row for each scale and one for all; nothing where there is no codebook."""
    if found.overall is None:
        return []
    names = [*(f"{side}x{side}" for side in sides), "all"]
    rows = [("scale", "tokens", "codewords used", "perplexity", "PSNR after it, dB" if after else "")]
    for i, (name, usage) in enumerate(zip(names, [*found.of_scales, found.overall], strict=True)):
        used = f"{usage.used} ({usage.used_fraction:.1%})"
        perplexity = f"{usage.perplexity:.1f} ({usage.perplexity_fraction:.1%})"
        decibels = format_mean(after[i], ".3f") if after and i < len(after) else ""
        rows.append((name, str(usage.tokens), used, perplexity, decibels))
    return [
        "",
        *in_columns(rows),
        "in brackets: fraction of the reachable maximum, the smaller of tokens and codewords",
    ]


def find_rfid_warnings(found: "Reconstruction", extractor: "Extractor | None") -> list[str]:
    """Return warnings about the reliability of rFID."""
    if extractor is None:
        return []
    from var.evaluation.metrics.warnings import count_warnings, extractor_warnings

    return [*count_warnings("rFID", found.num_images, extractor), *extractor_warnings(extractor)]
