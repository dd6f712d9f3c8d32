"""Released weights: found in a folder or downloaded, converted once, kept as a folder of ours."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import CONFIG, WEIGHTS, load_aim, save_model
from var.hub.convert import load_official
from var.hub.convert_aim import load_official_aim
from var.hub.presets import (
    AIM_RELEASED,
    AIM_REPOSITORY,
    RELEASED,
    RELEASED_REPOSITORY,
    RELEASED_TOKENIZER,
    ReleasedAIM,
    check_aim_name,
    choose_layers,
)
from var.models.aim import AIM
from var.models.var import VAR
from var.utils.files import cache_folder
from var.utils.weights import check_weights_exist, read_weights

Layers = str | Sequence[int] | None  # that a probe reads, as users ask for them


class UnreachableError(InputError):
    """The hub did not answer."""


def load_released(name: str, vae_file: Path | None = None, var_file: Path | None = None) -> tuple[VQVAE, VAR]:
    """The tokenizer and transformer of a released model, in float32 and evaluation mode.

    Args:
        name: one of presets.RELEASED.
        vae_file: the released tokenizer here; None looks in `released/` of the cache folder, then on the hub.
        var_file: the same for the transformer.

    Raises InputError: a file that is missing, damaged, or not of this model; no connection, with the files to fetch.
    """
    preset = RELEASED[name]
    files = (RELEASED_TOKENIZER, preset.file)
    vae_file = vae_file or locate_file(RELEASED_TOKENIZER, RELEASED_REPOSITORY, files)
    var_file = var_file or locate_file(preset.file, RELEASED_REPOSITORY, files)
    vae_state, var_state = read_weights(vae_file), read_weights(var_file)
    try:
        vqvae, model = load_official(vae_state, var_state, scales=preset.config.scales)
    except InputError as error:
        raise InputError(f"{vae_file} and {var_file} are not the files of {name}: {error}") from error
    if model.config != preset.config:
        raise InputError(f"{var_file} holds another model than {name}: its sizes are {model.config}")
    return vqvae, model


def load_aim_by_name(
    name: str | Path,
    probe_layers: Layers = None,
    backbone_file: str | Path | None = None,
    head_file: str | Path | None = None,
) -> AIM:
    """The AIM of a folder, or a released one, converted once for each of its heads: see var.AIM.from_pretrained.

    Raises InputError: an unknown name, weights that cannot be had, a probe that reads other layers than those asked
    for.
    """
    backbone, head = (None if file is None else Path(file).expanduser() for file in (backbone_file, head_file))
    if backbone or head:
        if str(name) not in AIM_RELEASED:
            known = ", ".join(AIM_RELEASED)
            raise InputError(f"backbone_file and head_file go with a released name ({known}), not with {str(name)!r}")
        return load_released_aim(str(name), probe_layers, backbone, head)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _converted_aim(str(name), probe_layers)
    model = load_aim(folder)
    own = model.config.probe_layers
    _agreed(probe_layers, own, model.config.depth, own, f"the probe in {folder}")
    return model


def _converted_aim(name: str, probe_layers: Layers) -> Path:
    check_aim_name(name)
    head = _head(AIM_RELEASED[name], _or_best(probe_layers, AIM_RELEASED[name]))
    folder = cache_folder() / f"{name}-{head}"
    if not folder.is_dir():
        save_model(folder, load_released_aim(name, head))
    return folder


def load_released_aim(
    name: str, probe_layers: Layers = None, backbone_file: Path | None = None, head_file: Path | None = None
) -> AIM:
    """A released encoder with a released head, in float32 and evaluation mode.

    Args:
        name: one of presets.AIM_RELEASED.
        probe_layers: as in var.AIM.from_pretrained.
        backbone_file: the released encoder here, or one file with encoder and head; None looks in `released/` of the
            cache folder, then on the hub.
        head_file: the same for the head.

    Raises InputError: a file that is missing, damaged, or not of this model; no connection, with the files to fetch; a
    head that reads other layers than those asked for.
    """
    preset = AIM_RELEASED[name]
    for given in filter(None, (backbone_file, head_file)):  # before what their names and contents tell of the layers
        check_weights_exist(given)
    if head_file is not None:
        files, layers = _with_head(preset, probe_layers, backbone_file, head_file)
    elif backbone_file is not None:
        files, layers = _with_backbone(preset, probe_layers, backbone_file)
    else:
        layers = _or_best(probe_layers, preset)
        files = _find_aim(preset, layers)
    called = " and ".join(map(str, files))
    try:
        model = load_official_aim(_merged(files), preset.config.image_size, preset.config.heads, layers)
    except InputError as error:
        raise InputError(f"{called}: not what {name} is made of: {error}") from error
    if model.config.encoder != preset.config:
        raise InputError(f"{called}: another model than {name}: its sizes are {model.config.encoder}")
    return model


def _find_aim(preset: ReleasedAIM, layers: tuple[int, ...]) -> tuple[Path, ...]:
    """Backbone and head; or one file that holds both, if its head reads these layers.

    What is in the cache's `released/` folder goes first. Of the two downloads that of backbone and head does: their
    names tell which layers the head reads, and the other head needs no second download of the backbone.
    """
    pair = (preset.backbone, preset.heads[_head(preset, layers)])
    here, joined = _released_folder(), _released_folder() / Path(preset.repository).name
    if (
        not all((here / file).is_file() for file in pair)
        and (joined / WEIGHTS).is_file()
        and _stated_layers(joined / CONFIG, preset) == layers
    ):
        return (joined / WEIGHTS,)
    try:
        return tuple(locate_file(file, AIM_REPOSITORY, pair) for file in pair)
    except UnreachableError:
        raise  # at once: the hub's client is slow to give up
    except InputError:
        with suppress(InputError):  # if the second choice fails too, the first is what to tell of
            if _stated_layers(download(CONFIG, preset.repository), preset) == layers:
                return (download(WEIGHTS, preset.repository),)
        raise


def _with_head(
    preset: ReleasedAIM, probe_layers: Layers, backbone_file: Path | None, head_file: Path
) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """The head given with its backbone, and the layers that it reads: released heads have them in their names."""
    read = next((layers for layers in preset.heads if f"head_{layers}_layers" in head_file.name), None)
    stated = None if read is None else _of_preset(read, preset)
    layers = _agreed(probe_layers, stated, preset.config.depth, preset.best, f"the head in {head_file}")
    return (backbone_file or locate_file(preset.backbone, AIM_REPOSITORY, (preset.backbone,)), head_file), layers


def _with_backbone(
    preset: ReleasedAIM, probe_layers: Layers, backbone_file: Path
) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """The backbone given with a released head, unless it has one itself, and the layers that the head reads."""
    if any(key.startswith("head.") for key in read_weights(backbone_file)):
        stated = _stated_layers(backbone_file.with_name(CONFIG), preset)
        what = f"the head in {backbone_file}"
        return (backbone_file,), _agreed(probe_layers, stated, preset.config.depth, preset.best, what)
    layers = _or_best(probe_layers, preset)
    head = preset.heads[_head(preset, layers)]
    return (backbone_file, locate_file(head, AIM_REPOSITORY, (head,))), layers


def _merged(files: Sequence[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_weights(file)
        if both := sorted(state.keys() & part.keys()):
            raise InputError(f"{len(both)} keys are in both files, such as {both[0]}: give a backbone and a head")
        state.update(part)
    return state


def _or_best(probe_layers: Layers, preset: ReleasedAIM) -> tuple[int, ...]:
    return _of_preset("best" if probe_layers is None else probe_layers, preset)


def _of_preset(layers: str | Sequence[int], preset: ReleasedAIM) -> tuple[int, ...]:
    return choose_layers(layers, preset.config.depth, preset.best)


def _head(preset: ReleasedAIM, layers: tuple[int, ...]) -> str:
    """The released head that reads these layers. Raises InputError: there is none."""
    heads = {_of_preset(head, preset): head for head in preset.heads}
    if layers in heads:
        return heads[layers]
    known = " or ".join(f"{head} {list(read)}" for read, head in heads.items())
    raise InputError(f"no released head reads layers {list(layers)}: take {known}, or pass head_file")


def _agreed(
    asked: Layers, stated: tuple[int, ...] | None, depth: int, best: tuple[int, ...], what: str
) -> tuple[int, ...]:
    """The layers that a head reads, by what is stated of it and what the user says.

    Args:
        asked: by the user; None: nothing.
        stated: by the file or folder; None: nothing.
        depth: blocks of the encoder.
        best: what "best" means.
        what: the head, for the message.

    Raises InputError: the two contradict each other, or neither says anything.
    """
    if asked is None:
        if stated is None:
            raise InputError(f"nothing tells which layers {what} reads: pass probe_layers")
        return stated
    layers = choose_layers(asked, depth, best)
    if stated is not None and set(layers) != set(stated):
        raise InputError(f"{what} reads layers {list(stated)}, not {list(layers)}: leave probe_layers out")
    return layers


def _stated_layers(file: Path, preset: ReleasedAIM) -> tuple[int, ...] | None:
    """What the config.json beside a released file with encoder and head says that the head reads; None: nothing."""
    try:
        layers = json.loads(file.read_text())["probe_layers"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return _of_preset(layers, preset) if isinstance(layers, list | str) else None


def _released_folder() -> Path:
    return cache_folder() / "released"


def locate_file(file: str, repository: str, needed: Sequence[str]) -> Path:
    """A released file: in the cache's `released/` folder, or from the hub.

    Args:
        file: its name.
        repository: on the hub.
        needed: all files of the model, for the message.

    Raises InputError: it is in neither place.
    """
    local = _released_folder() / file
    if local.is_file():
        return local
    try:
        return download(file, repository)
    except InputError as error:
        raise type(error)(
            f"{error}: fetch {' and '.join(needed)} from {repository} on the Hugging Face hub "
            f"and put them in {local.parent}"
        ) from error


def download(file: str, repository: str) -> Path:
    """A file of the hub, where its client keeps it. Raises InputError: it could not be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the HTTP library's errors, which differ by version
        kind = UnreachableError if isinstance(error, LocalEntryNotFoundError) else InputError
        raise kind(f"{file} could not be downloaded ({type(error).__name__})") from error
