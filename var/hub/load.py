"""Pipelines on disk and by name: a folder of `tokenizer/` and `transformer/`, each as `checkpoint` writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch

from tokenizer.errors import InputError, abbreviate
from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import (
    CONFIG,
    TOKENIZER,
    TRANSFORMER,
    find_exported,
    load_tokenizer,
    load_transformer,
    read_class_names,
    read_config,
    save_model,
)
from var.hub.client import FILES, TOKENIZER_FILES
from var.hub.download import convert_once, find_given, load_released
from var.hub.presets import RELEASED, SHIPPED, check_name, own_name
from var.models.conditional import ConditionalTransformer
from var.sampling.generators import check_sampling
from var.sampling.params import SamplingParams
from var.utils.classes import imagenet_names
from var.utils.device import choose_stored_dtype
from var.utils.files import atomic_folder
from var.utils.paths import to_path
from var.utils.provenance import sha256

QUANTIZER = "quantizer_sha256"  # entry of a transformer's config.json: `quantizer_checksums` of its tokenizer
ROUNDED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PipelineParts(NamedTuple):
    """The parts of a VARPipeline."""

    model: ConditionalTransformer
    vqvae: VQVAE
    classes: Mapping[int, str] | None = None
    sampling: SamplingParams | None = None


def load_pipeline(
    name: str | Path,
    vae_file: str | Path | None = None,
    var_file: str | Path | None = None,
    phi_ratio: float | None = None,
    cosine: bool = False,
    revision: str | None = None,
) -> PipelineParts:
    """The parts of a pipeline, in float32: see VARPipeline.from_pretrained.

    Raises InputError: unknown name, missing or damaged files, no connection.
    """
    vae_path = to_path(vae_file, "vae_file") if vae_file else None
    var_path = to_path(var_file, "var_file") if var_file else None
    if vae_path is None and (phi_ratio is not None or cosine):
        raise InputError("phi_ratio and cosine say how to read a vae_file: give one, or leave them out")
    if vae_path is None and var_path is None:
        return _load_folder(find_folder(name, revision))
    own = own_name(str(name))
    if own not in RELEASED or revision is not None:
        raise InputError(f"vae_file and var_file go with a released name ({', '.join(RELEASED)}), not with {name!r}")
    vqvae, model = load_released(own, vae_path, var_path, phi_ratio, cosine)
    return PipelineParts(model, vqvae)


def save_pipeline(folder: Path, parts: PipelineParts, dtype: str | torch.dtype | None = None) -> None:
    """Write a pipeline's folder, whole or not at all; dtype: see `choose_stored_dtype`.

    Raises InputError: the folder cannot be written, a type that weights are not stored in.
    """
    dtype = choose_stored_dtype(dtype)
    extra: dict[str, object] = {QUANTIZER: quantizer_checksums(parts.vqvae, dtype)}
    if parts.classes is not None:
        extra["classes"] = {str(label): name for label, name in sorted(parts.classes.items())}
    if parts.sampling is not None:
        extra["sampling"] = parts.sampling.to_dict()
    with atomic_folder(folder) as new:
        save_model(new / TRANSFORMER, parts.model, extra, dtype)
        save_model(new / TOKENIZER, parts.vqvae, dtype=dtype)


def find_tokenizer(name: str | Path, revision: str | None = None) -> VQVAE:
    """Load the tokenizer of a model, in float32 on the CPU.

    Args:
        name: as for `VARPipeline.from_pretrained`, or the folder or repository of a tokenizer.
        revision: of a repository.

    Raises:
        InputError: an unknown name, missing or damaged files, no connection.
    """
    folder = find_folder(name, revision, TOKENIZER_FILES)
    return load_tokenizer(folder if (folder / CONFIG).is_file() else folder / TOKENIZER)


def find_folder(name: str | Path, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder of a model: that given or in a training output, a shipped one, a download, converted if need be.

    Args:
        name: a folder, user/model on the hub, or one of SHIPPED and RELEASED, in any case.
        revision, files: of a repository, see `var.hub.client.fetch_repository`.

    Raises InputError: an unknown name; a repository or released weights that cannot be had.
    """
    if folder := find_given(name, revision, files):
        return folder
    own = check_name(str(name))
    if own in SHIPPED:
        return SHIPPED[own]
    return convert_once(own, lambda folder: _convert(own, folder))


def read_names(name: str | Path) -> Mapping[int, str] | None:
    """Return label -> name of a model on this machine or a released one, without its weights; None: it has no list.

    Raises InputError: what no model can be called, a damaged config.json.
    """
    folder = find_exported(to_path(name, "model"))
    if not folder.is_dir():
        own = own_name(str(name))
        if own not in SHIPPED:
            return imagenet_names() if own in RELEASED else None
        folder = SHIPPED[own]
    part = folder / TRANSFORMER
    return read_class_names(part, read_config(part)) if (part / CONFIG).is_file() else None


def _convert(name: str, folder: Path) -> None:
    vqvae, model = load_released(name)
    save_pipeline(folder, PipelineParts(model, vqvae))


def _load_folder(folder: Path) -> PipelineParts:
    for part in (TOKENIZER, TRANSFORMER):
        if not (folder / part).is_dir():
            raise InputError(f"{folder} has no folder {part}: {_what_is_missing(folder)}")
    entries = read_config(folder / TRANSFORMER)
    classes = read_class_names(folder / TRANSFORMER, entries)
    model = load_transformer(folder / TRANSFORMER)
    sampling = _read_sampling(entries.get("sampling"), folder / TRANSFORMER, model)
    vqvae = load_tokenizer(folder / TOKENIZER)
    _check_pair(folder, entries.get(QUANTIZER), vqvae)
    return PipelineParts(model, vqvae, classes, sampling)


def _what_is_missing(folder: Path) -> str:
    """Say what to do about a folder without the two parts of a model."""
    if (folder / CONFIG).is_file():
        kind, parent = read_config(folder).get("model"), folder.parent
        if (parent / TOKENIZER).is_dir() and (parent / TRANSFORMER).is_dir():
            return f"it is a part of {parent}; give that folder"
        return f"it holds a {kind} alone; give a model that draws, such as the output of stage var"
    if (folder / "checkpoints").is_dir():
        return "its run has not exported a model yet; run its command again until it ends"
    return f"a model has two, {TOKENIZER} and {TRANSFORMER}"


def quantizer_checksums(vqvae: VQVAE, dtype: torch.dtype | None = None) -> dict[str, str]:
    """Checksums of the token weights, all that a transformer knows of its tokenizer, by the type they are rounded to.

    Of one tokenizer stored in two types, at least one checksum is the same.

    Args:
        dtype: type that the numbers are stored in; None: that which they have.
    """
    stored = [weight.detach().to(dtype or weight.dtype) for weight in vqvae.token_weights]
    return {name: sha256([value.to(kind).float() for value in stored]) for name, kind in ROUNDED.items()}


def is_of_tokenizer(entry: object, vqvae: VQVAE) -> bool:
    """Return whether a transformer is of a tokenizer, by its entry QUANTIZER; without one (None) it may be."""
    known = list(entry.values()) if isinstance(entry, dict) else []
    return entry is None or any(checksum in known for checksum in quantizer_checksums(vqvae).values())


def _check_pair(folder: Path, entry: object, vqvae: VQVAE) -> None:
    """Raise InputError if the transformer is of another tokenizer; transformers of before do not say of which."""
    if not is_of_tokenizer(entry, vqvae):
        raise InputError(
            f"{folder / TRANSFORMER} was trained on the tokens of another tokenizer than {folder / TOKENIZER}, by its "
            f"{QUANTIZER}: put the two together that were saved together, or remove that entry of its {CONFIG} if "
            "you changed codebook or phi yourself"
        )


def _read_sampling(entry: object, folder: Path, model: ConditionalTransformer) -> SamplingParams | None:
    if entry is None:
        return None
    known = [field.name for field in fields(SamplingParams)]
    if not isinstance(entry, dict) or not entry.keys() <= set(known):
        raise InputError(f"{folder}: sampling={abbreviate(entry)} must map {', '.join(known)} to values")
    try:
        sampling = SamplingParams(**entry)
        check_sampling(sampling, model.config)
    except InputError as error:
        raise InputError(f"{folder}: sampling: {error}") from error
    return sampling
