"""Released weights: found in a folder or downloaded, converted once, kept as a folder of ours."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.checkpoint import CONFIG, WEIGHTS, find_exported, load_aim, save_model
from var.hub.client import FILES, download, fetch_repository, is_repository
from var.hub.convert import TOKENIZER_ENTRIES, VAR_ENTRIES, load_official
from var.hub.convert_aim import load_official_aim
from var.hub.presets import (
    AIM_RELEASED,
    AIM_REPOSITORY,
    RELEASED,
    RELEASED_REPOSITORY,
    RELEASED_TOKENIZER,
    Layers,
    ReleasedAIM,
    check_aim_name,
    choose_layers,
    is_known,
    own_name,
    released_file,
)
from var.models.aim import AIM
from var.models.var import VAR
from var.utils.hub_connection import UnreachableError
from var.utils.json_text import parse_json
from var.utils.locks import in_turn
from var.utils.paths import cache_folder, to_path
from var.utils.weights import check_weights_exist, read_weights


def find_given(name: str | Path, revision: str | None = None, files: Sequence[str] = FILES) -> Path | None:
    """Return the folder that is given, or that in a training's output, or of a repository on the hub; None: a name.

    Args:
        name: as users give a model.
        revision, files: of a repository, see `fetch_repository`.

    Raises InputError: what no model can be called; a repository that cannot be had; a revision of something else.
    """
    folder = find_exported(to_path(name, "model"))
    if not folder.is_dir() and is_repository(str(name)) and not is_known(str(name)):
        return fetch_repository(str(name), revision, files)
    if revision is not None:
        raise InputError(
            f"revision={revision!r} goes with a repository on the hub (user/model), not with {str(name)!r}"
        )
    return folder if folder.is_dir() else None


def load_released(
    name: str,
    vae_file: Path | None = None,
    var_file: Path | None = None,
    phi_ratio: float | None = None,
    cosine: bool = False,
) -> tuple[VQVAE, VAR]:
    """The tokenizer and transformer of one of presets.RELEASED, in float32 and evaluation mode.

    A file that is not given is looked for in `released/` of the cache folder, then on the hub; phi_ratio and cosine are
    of the tokenizer, see `load_official`.

    Raises InputError: a file that is missing, damaged, or not of this model; no connection, with the files to fetch.
    """
    config, files = RELEASED[name], (RELEASED_TOKENIZER, released_file(name))
    vae_file, var_file = (
        given or locate_file(file, RELEASED_REPOSITORY, files)
        for given, file in zip((vae_file, var_file), files, strict=True)
    )
    vae_state, var_state = read_weights(vae_file, TOKENIZER_ENTRIES), read_weights(var_file, VAR_ENTRIES)
    try:
        vqvae, model = load_official(vae_state, var_state, scales=config.scales, phi_ratio=phi_ratio, cosine=cosine)
    except InputError as error:
        raise InputError(f"{vae_file} and {var_file} are not the files of {name}: {error}") from error
    if model.config != config:
        raise InputError(f"{var_file} holds another model than {name}: its sizes are {model.config}")
    return vqvae, model


def convert_once(name: str, convert: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, written first if it is not there: by one process, for which others wait.

    Raises InputError: as `convert` does; the cache folder cannot be written.
    """
    folder = cache_folder() / name
    if not folder.is_dir():
        with in_turn(folder.with_name(f".{name}.lock")):
            if not folder.is_dir():
                convert(folder)
    return folder


def load_aim_by_name(
    name: str | Path,
    probe_layers: Layers | None = None,
    backbone_file: str | Path | None = None,
    head_file: str | Path | None = None,
    revision: str | None = None,
) -> AIM:
    """The AIM of a folder or repository, or a released one, converted once a head: see var.AIM.from_pretrained.

    Raises InputError: an unknown name, weights that cannot be had, a probe that reads other layers than requested.
    """
    backbone = None if backbone_file is None else to_path(backbone_file, "backbone_file")
    head = None if head_file is None else to_path(head_file, "head_file")
    if backbone or head:
        own = own_name(str(name))
        if own not in AIM_RELEASED or revision is not None:
            known = ", ".join(AIM_RELEASED)
            raise InputError(f"backbone_file and head_file go with a released name ({known}), not with {str(name)!r}")
        return load_released_aim(own, probe_layers, backbone, head)
    folder = find_given(name, revision)
    if folder is None:
        released = check_aim_name(str(name))
        preset = AIM_RELEASED[released]
        read = _head(preset, preset.layers(probe_layers))
        folder = convert_once(
            f"{released}-{read}", lambda folder: save_model(folder, load_released_aim(released, read))
        )
    model = load_aim(folder)
    stated = model.config.probe_layers
    requested = None if probe_layers is None else choose_layers(probe_layers, model.config.depth, stated)
    _agree(requested, stated, f"the probe in {folder}")
    return model


def load_released_aim(
    name: str, probe_layers: Layers | None = None, backbone_file: Path | None = None, head_file: Path | None = None
) -> AIM:
    """A released encoder with a released head, in float32 and evaluation mode: see var.AIM.from_pretrained.

    A file that is not given is looked for in `released/` of the cache folder, then on the hub.

    Raises InputError: a file that is missing, damaged, or not of this model; no connection, with the files to fetch; a
    head that reads other layers than those requested.
    """
    preset = AIM_RELEASED[name]
    for given in filter(None, (backbone_file, head_file)):  # before the layers are read off names and contents
        check_weights_exist(given)
    files, layers = _choose_files(preset, probe_layers, backbone_file, head_file)
    called = " and ".join(map(str, files))
    try:
        model = load_official_aim(_merge_files(files), preset.config.image_size, preset.config.heads, layers)
    except InputError as error:
        raise InputError(f"{called}: not what {name} is made of: {error}") from error
    if model.config.encoder != preset.config:
        raise InputError(f"{called}: another model than {name}: its sizes are {model.config.encoder}")
    return model


def _choose_files(
    preset: ReleasedAIM, probe_layers: Layers | None, backbone_file: Path | None, head_file: Path | None
) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """Backbone and head, or one file that holds both; and the layers that the head reads.

    Released heads have them in their names, and a file with both has them in the config.json beside it.
    """
    requested = None if probe_layers is None else preset.layers(probe_layers)
    if head_file is not None:
        stated = next((preset.layers(read) for read in preset.heads if f"head_{read}_layers" in head_file.name), None)
        layers = _agree(requested, stated, f"the head in {head_file}")
        return (backbone_file or locate_file(preset.backbone, AIM_REPOSITORY, (preset.backbone,)), head_file), layers
    if backbone_file is not None and any(key.startswith("head.") for key in read_weights(backbone_file)):
        stated = _stated_layers(backbone_file.with_name(CONFIG), preset)
        return (backbone_file,), _agree(requested, stated, f"the head in {backbone_file}")
    layers = preset.best if requested is None else requested
    if backbone_file is None:
        return _find_aim(preset, layers), layers
    head = preset.heads[_head(preset, layers)]
    return (backbone_file, locate_file(head, AIM_REPOSITORY, (head,))), layers


def _find_aim(preset: ReleasedAIM, layers: tuple[int, ...]) -> tuple[Path, ...]:
    """Backbone and head; or one file that holds both, if its head reads these layers.

    What is in the cache's `released/` folder goes first. Of the two downloads that of backbone and head does: their
    names say which layers the head reads, and the other head needs no second download of the backbone.
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
        with suppress(InputError):  # if the second choice fails too, the first error is shown
            if _stated_layers(download(CONFIG, preset.repository), preset) == layers:
                return (download(WEIGHTS, preset.repository),)
        raise


def _merge_files(files: Sequence[Path]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for file in files:
        part = read_weights(file)
        if both := sorted(state.keys() & part.keys()):
            raise InputError(f"{len(both)} keys are in both files, such as {both[0]}: give a backbone and a head")
        state.update(part)
    return state


def _head(preset: ReleasedAIM, layers: tuple[int, ...]) -> str:
    """The released head that reads these layers. Raises InputError: there is none."""
    heads = {preset.layers(head): head for head in preset.heads}
    if layers in heads:
        return heads[layers]
    known = " or ".join(f"{head} {list(read)}" for read, head in heads.items())
    raise InputError(f"no released head reads layers {list(layers)}: take {known}, or pass head_file")


def _agree(requested: tuple[int, ...] | None, stated: tuple[int, ...] | None, head: str) -> tuple[int, ...]:
    """The layers that a head reads, by what the user requests and what its file or folder states; None: nothing.

    Raises InputError: the two contradict each other, or neither says anything.
    """
    layers = stated if requested is None else requested
    if layers is None:
        raise InputError(f"it is not stated which layers {head} reads: pass probe_layers")
    if stated is not None and set(layers) != set(stated):
        raise InputError(f"{head} reads layers {list(stated)}, not {list(layers)}: leave probe_layers out")
    return layers


def _stated_layers(file: Path, preset: ReleasedAIM) -> tuple[int, ...] | None:
    """The layers that the config.json beside a file with encoder and head says that the head reads; None: none."""
    try:
        layers = parse_json(file.read_text())["probe_layers"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return preset.layers(layers) if isinstance(layers, list | str) else None


def _released_folder() -> Path:
    return cache_folder() / "released"


def locate_file(file: str, repository: str, needed: Sequence[str]) -> Path:
    """A released file: in the cache's `released/` folder, or from the hub; `needed` are all files of the model.

    Raises InputError: neither has it; with the files to fetch.
    """
    local = _released_folder() / file
    if local.is_file():
        return local
    try:
        return download(file, repository)
    except InputError as error:
        raise type(error)(
            f"{error}: fetch {' and '.join(needed)} from {repository} on the Hugging Face hub "
            f"and put {'it' if len(needed) == 1 else 'them'} in {local.parent}"
        ) from error
