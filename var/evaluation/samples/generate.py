"""Generate a set of images: the same on one process and on many, and after a kill.

What an image shows follows from seed, label and index. Its last bits follow from what it is computed together with
too, so the list of images is cut into batches that are the same on any number of processes, and on a CPU each process
computes in one thread.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL.Image import Image

from tokenizer.errors import InputError
from var.evaluation.samples.rejection import SampleScorer
from var.evaluation.samples.sample_folder import (
    PICTURES,
    SCORES,
    Records,
    begin_set,
    check_same_set,
    is_done,
    list_samples,
    prune_rejected,
)
from var.evaluation.samples.sample_set import Batch, Settings
from var.pipeline import VARPipeline
from var.sampling.generate import generate
from var.utils.images import save_image, to_pil, to_uint8
from var.utils.ranks import ALONE, Ranks

THREADS = 8  # that write images while the next ones are drawn; Pillow lets them run side by side


def generate_samples(
    pipe: VARPipeline,
    settings: Settings,
    folder: Path,
    scorer: SampleScorer | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Complete the set in a folder: draw all batches that are not there, and keep the best if there is a scorer.

    Killed at any time, on any number of processes, the same call goes on from the batches that were done, and the set
    becomes the same, bit for bit, on the same kind of machine. In memory are two batches.

    With a scorer, an image goes as soon as num_per_class better ones of its class are known, so that the folder never
    holds many more than are kept.

    Args:
        settings: as `sample_settings` made them of this model.
        folder: seen by all processes.
        scorer: scores candidates; given if settings.judge is.
        ranks: the processes that share the batches; all of them call this.
        progress: is told how many samples are drawn by now, of how many that were missing: of all processes, as far
            as this one's share tells.

    Returns:
        Number of samples drawn just now, by all processes.

    Raises:
        InputError: a folder that holds other settings or other files, or cannot be written.
    """
    if (scorer is None) != (settings.judge is None):
        raise InputError(f"settings with judge={settings.judge} need {'no judge' if scorer else 'one'}")
    with ranks.in_step():
        if ranks.is_main:
            begin_set(folder, settings)
    with ranks.in_step():
        check_same_set(folder, settings)
    records, side = Records(folder / SCORES, settings), pipe.vqvae.config.image_side
    ours = settings.batches[ranks.rank :: ranks.world_size]
    todo = [batch for batch in ours if not is_done(batch, folder, records, side)]
    share = sum(len(batch.samples) for batch in todo)
    total = sum(ranks.all_gather(share))  # and from here on the folder changes
    done = 0
    for batch in _drawn(pipe, settings, folder, scorer, todo):
        if scorer is not None:
            prune_rejected(folder, records, set(batch.labels))
        done += len(batch.samples)
        progress(done * total // share, total)
    ranks.all_gather(done)  # what the others draw is there too now
    with ranks.in_step():
        if ranks.is_main:  # what is there now is the set, or someone else has been at it
            if scorer is not None:
                prune_rejected(folder, records, settings.labels)
            list_samples(folder, settings)
    return total


def _drawn(
    pipe: VARPipeline, settings: Settings, folder: Path, scorer: SampleScorer | None, todo: Sequence[Batch]
) -> Iterator[Batch]:
    """Draw batches, each of which is told of when it is on the disk; that happens while the next one is drawn."""
    records = Records(folder / SCORES, settings)
    options = {name: getattr(settings, name) for name in ("cfg", "top_k", "top_p", "seed")}

    def write(batch: Batch, images: Sequence[Image], scores: Sequence[float] | None) -> Batch:
        list(savers.map(save_image, [folder / PICTURES / sample.file for sample in batch.samples], images))
        if scores is not None:
            records.write(batch, scores)
        return batch

    writing: Future[Batch] | None = None
    with ThreadPoolExecutor(THREADS) as savers, ThreadPoolExecutor(1) as writer:
        for batch in todo:
            with _one_thread(pipe.model.position.device):
                indices = [sample.index for sample in batch.samples]
                images = generate(pipe.model, pipe.vqvae, batch.labels, indices=indices, **options).images
                scores = None if scorer is None else scorer(to_uint8(images).cpu(), batch.labels)
            if writing is not None:
                yield writing.result()
            writing = writer.submit(write, batch, to_pil(images), scores)
        if writing is not None:
            yield writing.result()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Inside, a CPU computes in one thread: sums that are split among several round according to their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
