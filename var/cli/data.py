"""The commands that prepare data: `var data index|tokenize`."""

import time

import typer

from tokenizer.errors import InputError
from var.cli import options
from var.cli.progress import LONGEST_WAIT, progress_bar, stopping
from var.cli.run import Group


def index(folder: options.ShardFolder) -> None:
    """Write FOLDER/index.json, which data.source of a recipe takes; shards and index may be uploaded together then.

    Examples:
      var data index shards
      var data index /data/imagenet-wds
    """
    from var.data.shard_index import write_index

    typer.echo(f"index: {write_index(folder)}")


def tokenize(recipe: options.Recipe, overrides: options.Overrides = None) -> None:
    """Encode the images of RECIPE, of a stage on tokens, so that training needs no encoder.

    Run the same command again to resume.

    Examples:
      var data tokenize configs/mini_var.yaml token_cache=runs/tokens
      torchrun --nproc_per_node 8 -m var data tokenize configs/mini_var.yaml token_cache=runs/tokens
    """
    from var.training.recipe import load_recipe
    from var.training.transformer_stage import TransformerRecipe

    checked = load_recipe(recipe, overrides or [])
    if not isinstance(checked, TransformerRecipe):
        raise InputError(f"recipe {recipe} has stage={checked.stage}: var, raster and mar train on tokens")
    if checked.token_cache is None:
        raise InputError(f"recipe {recipe} has no token_cache: give the folder of the tokens, token_cache=FOLDER")
    from accelerate import PartialState

    from var.data.tokenize import write_tokens
    from var.training.distributed import destroy_process_group
    from var.training.tokenizers import open_tokenizer
    from var.utils.device import choose_device
    from var.utils.ranks import Ranks
    from var.utils.text import plural

    state = PartialState(cpu=choose_device().type == "cpu", timeout=LONGEST_WAIT)
    vqvae = open_tokenizer(checked.tokenizer).to(state.device)
    ranks = Ranks.of(state)
    began = time.perf_counter()
    is_main_process = state.is_main_process
    with (
        stopping(is_main_process=is_main_process),
        progress_bar("encoded", is_main_process, ranks.world_size) as progress,
    ):
        summary = write_tokens(checked, vqvae, ranks, progress)
    encoded = sum(ranks.all_gather(summary.encoded))
    seconds = time.perf_counter() - began
    destroy_process_group()
    if not is_main_process:
        return
    now = f"{encoded} now, {encoded / seconds:.0f} images/s" if encoded else "all of them there already"
    unreadable = f"; {plural(summary.unreadable, 'image')} could not be read" if summary.unreadable else ""
    size = f"{plural(summary.samples, 'encoded image')} in {summary.bytes / 1e6:.1f} MB"
    typer.echo(f"tokens: {checked.token_cache} holds {size}, {now}{unreadable}")


DATA = Group(
    "data",
    """List shards, fill the token cache.

    Examples:
      var data index shards
      var data tokenize configs/mini_var.yaml token_cache=runs/tokens
    """,
    {"index": index, "tokenize": tokenize},
)
