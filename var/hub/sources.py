"""Find trained weights of one kind of model by name, folder, file or repository, and read them under our names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer.errors import InputError, did_you_mean
from tokenizer.scales import SCALES_256, SCALES_512, Scales
from tokenizer.vqvae import VQVAE, TokenizerConfig
from var.hub.checkpoint import CONFIG, WEIGHTS, check_values, find_part, read_class_names, read_config
from var.hub.client import FILES, TOKENIZER_FILES, fetch_repository, is_repository
from var.hub.convert import TOKENIZER_ENTRIES, VAR_ENTRIES, load_official_tokenizer, load_official_var
from var.hub.convert_aim import load_official_encoder
from var.hub.download import locate_file
from var.hub.load import QUANTIZER
from var.hub.presets import (
    AIM_RELEASED,
    AIM_REPOSITORY,
    RELEASED,
    RELEASED_REPOSITORY,
    RELEASED_TOKENIZER,
    SHIPPED,
    check_aim_name,
    check_name,
    is_known,
    own_name,
    released_file,
)
from var.hub.state_dicts import find_state, shape_of
from var.models.aim import AIM, Encoder, EncoderConfig
from var.models.conditional import ConditionalTransformer, TransformerConfig
from var.models.var import VAR, VARConfig
from var.utils.paths import cache_folder, to_path
from var.utils.weights import StateDict, read_weights

# A tensor that the released files of each kind have, and those of the other kinds have not.
_MARKS = {
    VQVAE.__name__: "quantize.embedding.weight",
    VAR.__name__: "pos_1LC",
    Encoder.__name__: "trunk.post_trunk_norm.weight",
}
# One that a file of ours has.
_OURS = {
    "quantizer.codebook.weight",
    "level_embedding.weight",
    "token_position",
    "patchify.weight",
    "encoder.patchify.weight",
}
_USAGE = "quantize.ema_vocab_hit_SV"  # (K, V)
_PATCHES = "preprocessor.patchifier.proj.weight"
_ENTRIES = {VQVAE.__name__: TOKENIZER_ENTRIES, VAR.__name__: VAR_ENTRIES}


class Weights(NamedTuple):
    """The weights of a trained model, under our names."""

    given: str  # by the user, for messages
    config: Mapping[str, Any]  # its sizes
    state: StateDict
    classes: Mapping[int, str]  # names of its labels, as far as they are known
    quantizer: object = None  # of a transformer: its entry QUANTIZER, for `is_of_tokenizer`


def find_weights(given: str | Path, kind: str, key: str) -> Path | None:
    """Return the folder or file of a model's weights; None: those of a released name, not converted here yet.

    Args:
        given: a name, a folder (of a pipeline, a training's output, the model alone), a released file, or a repository
            on the hub, which is downloaded.
        kind: the class of the model: VQVAE, VAR, another one that draws, or Encoder.
        key: the recipe's, for messages.

    Raises InputError: nothing of that name, missing files, a damaged config, another kind of model, no connection.
    """
    place = to_path(given, key)
    path = place if place.exists() else _find_named(str(place), kind, key)
    if path is None or path.is_file():
        return path
    folder = find_part(path, kind)
    try:
        found = read_config(folder).get("model")
    except InputError as error:
        raise InputError(f"{key}={str(given)!r} cannot be used: {error}") from error
    if found != kind and not (kind == Encoder.__name__ and found == AIM.__name__):
        raise InputError(f"{key}={str(given)!r} holds a {found!r}, a {kind!r} is needed here")
    return folder


def _find_named(given: str, kind: str, key: str) -> Path | None:
    """Return the folder of a repository or a named model, converted before if released; None: a released one, not yet.

    A repository is downloaded.
    """
    of_aim, own = kind == Encoder.__name__, own_name(given)
    if own in RELEASED and kind not in _MARKS:
        raise InputError(f"{key}={given!r} is a {VAR.__name__!r}, a {kind!r} is needed here")
    if own in ((*SHIPPED, *RELEASED) if of_aim else AIM_RELEASED):
        raise InputError(f"{key}={given!r} is {'no AIM' if of_aim else 'an AIM'}, a {kind!r} is needed here")
    if not is_known(given):
        return _fetch(given, kind, key)
    try:
        own = (check_aim_name if of_aim else check_name)(given)
    except InputError as error:
        raise InputError(f"{key}={given!r} does not exist: {error}") from error
    if own in SHIPPED:
        return SHIPPED[own]
    heads = [f"{own}-{head}" for head in AIM_RELEASED[own].heads] if of_aim else [own]
    return next((cache_folder() / folder for folder in heads if (cache_folder() / folder).is_dir()), None)


def _fetch(given: str, kind: str, key: str) -> Path:
    """Return the folder of a repository on the hub. Raises InputError: none, or what no repository can be called."""
    known = AIM_RELEASED if kind == Encoder.__name__ else (*SHIPPED, *RELEASED)
    remedy = "train stage 1 first, and give its model" if key == "tokenizer" else "give a model's folder"
    remedy += f", a released file, a repository on the Hugging Face hub (user/model), or one of {', '.join(known)}"
    if not is_repository(given):
        raise InputError(f"{key}={given!r} does not exist{did_you_mean(given, known)}: {remedy}")
    try:
        return fetch_repository(given, files=TOKENIZER_FILES if kind == VQVAE.__name__ else FILES)
    except InputError as error:
        raise InputError(f"{key}={given!r} cannot be used: {error}; else {remedy}") from error


def read_weights_for(model: VQVAE | ConditionalTransformer | Encoder, given: str | Path, key: str) -> Weights:
    """Find and read weights for a model of the same kind, of any sizes.

    Raises InputError: see `find_weights`; damaged files, no connection.
    """
    kind = type(model).__name__
    place = find_weights(given, kind, key)
    if place is None or place.is_file():
        trained = read_released(place, str(given), kind, model.config, key)
        return Weights(str(given), trained.config.to_dict(), trained.state_dict(), {})
    entries, state = read_config(place), read_weights(place / WEIGHTS)
    check_values(place, entries, state)
    if entries["model"] == AIM.__name__:
        state = {name.removeprefix("encoder."): value for name, value in state.items()}
    classes = read_class_names(place, entries)
    return Weights(str(given), entries["config"], state, classes or {}, entries.get(QUANTIZER))


def read_released(
    file: Path | None, given: str, kind: str, sizes: TokenizerConfig | TransformerConfig | EncoderConfig, key: str
) -> VQVAE | VAR | Encoder:
    """Read a released file, or if it is None that of a released name, which is downloaded if need be.

    Args:
        sizes: of a file, those that no tensor shows: the scales, or the number of heads and the side of the images.

    Raises InputError: another kind of file, a damaged one, no connection.
    """
    if file is None:
        file, sizes = _locate_released(given, kind)
    state = find_state(read_weights(file, _ENTRIES.get(kind, ())), _ENTRIES.get(kind, ()))
    found = next((name for name, mark in _MARKS.items() if mark in state), None)
    if found is None and not _OURS.isdisjoint(state):
        raise InputError(
            f"{key}={given!r} holds the weights of a model of ours without its sizes: give the model's folder, with "
            f"{CONFIG} and {WEIGHTS}"
        )
    if found is None:
        raise InputError(
            f"{key}={given!r} holds no weights of a released {kind!r}: give a released file as its authors published "
            "it, or a model's folder"
        )
    if found != kind:
        raise InputError(f"{key}={given!r} holds a released {found!r}, a {kind!r} is needed here")
    try:
        if isinstance(sizes, EncoderConfig):
            known = [released.config.width for released in AIM_RELEASED.values()]
            heads = None if shape_of(state, _PATCHES, 4)[0] in known else sizes.heads
            return load_official_encoder(state, sizes.image_size, heads)
        if kind == VQVAE.__name__:
            return load_official_tokenizer(state, _choose_scales(sizes.scales, len, "scales", state, _USAGE, 0))
        return load_official_var(state, _choose_scales(sizes.scales, _count_tokens, "tokens", state, _MARKS[kind], 1))
    except InputError as error:
        raise InputError(f"{key}={given!r} cannot be used: {error}") from error


def _choose_scales(
    ours: tuple[int, ...],
    count: Callable[[tuple[int, ...]], int],
    unit: str,
    state: StateDict,
    name: str,
    dimension: int,
) -> tuple[int, ...]:
    """Return the scales whose count is a tensor's length: ours or a released model's; ours too without that tensor.

    Raises InputError: the length is that of none of them.
    """
    if name not in state or state[name].ndim <= dimension:
        return ours
    length, known = state[name].shape[dimension], dict.fromkeys((ours, SCALES_256.sides, SCALES_512.sides))
    for sides in known:
        if count(sides) == length:
            return sides
    tried = ", ".join(str(list(sides)) for sides in known)
    raise InputError(
        f"it is of {length} {unit}, which none of the scales tried have ({tried}), and a released file does not tell "
        "its own: give a model's folder, which does"
    )


def _count_tokens(sides: tuple[int, ...]) -> int:
    return Scales(sides).total


def _locate_released(name: str, kind: str) -> tuple[Path, VARConfig | EncoderConfig]:
    """Return the file of a released model, downloaded if need be, and the sizes of the model."""
    own = own_name(name)
    if kind == Encoder.__name__:
        released = AIM_RELEASED[own]
        return locate_file(released.backbone, AIM_REPOSITORY, (released.backbone,)), released.config
    file = RELEASED_TOKENIZER if kind == VQVAE.__name__ else released_file(own)
    return locate_file(file, RELEASED_REPOSITORY, (file,)), RELEASED[own]
