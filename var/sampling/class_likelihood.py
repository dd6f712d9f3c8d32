"""VAR as a classifier: the likelihood of an image's tokens under every class (A-VARC, arXiv 2510.12060).

Teacher forcing: every scale is predicted from the image's own coarser ones, once for each class. With equal priors the
class of highest likelihood is the most probable one.

B images, M classes (the candidates), K scales, L tokens of all scales, C latent channels, R rows: pairs of an image and
a class.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tokenizer.errors import InputError, abbreviate, check_whole_number
from tokenizer.scales import Scales
from var.models.token_losses import cross_entropy
from var.models.transformer import KVCache
from var.models.var import VAR
from var.sampling.output import ClassScore
from var.utils.progress import Progress


@dataclass(frozen=True)
class Pruning:
    """Numbers of candidates that are kept after coarse scales: of each image those of highest likelihood so far.

    Attributes:
        steps: pairs (scales, kept), such as ((3, 0.25), (5, 8)): after the three coarsest scales a quarter of all
            classes is kept (a float in (0, 1], rounded up), after five scales eight classes (a whole number). Where
            fewer are left, all of these are kept: see `idle_steps`. () keeps all.

    Raises:
        InputError: scales that are not whole numbers in increasing order, numbers of classes below 1 or increasing,
            fractions outside (0, 1].
    """

    steps: tuple[tuple[int, int | float], ...] = ()

    def __post_init__(self) -> None:
        for scales, kept in self.steps:
            fraction = isinstance(kept, float) and 0 < kept <= 1
            if type(scales) is not int or scales < 1 or not (fraction or (type(kept) is int and kept >= 1)):
                raise InputError(
                    f"pruning step {abbreviate((scales, kept))} must be a number of scales, at least 1, and how many "
                    "classes are kept after them: a whole number, at least 1, or a fraction in (0, 1]"
                )
        for (scales, kept), (next_scales, next_kept) in pairwise(self.steps):
            if next_scales <= scales or (type(next_kept) is type(kept) and next_kept > kept):
                raise InputError(
                    f"pruning steps {abbreviate(self.steps)}: scales must increase, and the classes that are kept must "
                    "not; put the steps in the order of the scales"
                )

    @classmethod
    def parse(cls, text: str, key: str = "pruning") -> "Pruning":
        """Read steps from text such as `3:25%,5:8`; `key` is the option's, for messages.

        Raises InputError for anything else.
        """
        steps: list[tuple[int, int | float]] = []
        for part in text.split(","):
            found = re.fullmatch(r"\s*(\d{1,9}):(?:(\d{1,9})|(\d{1,9}(?:\.\d{1,9})?)%)\s*", part)
            if found is None:
                raise InputError(
                    f"{key}={abbreviate(text)} must be scales and the classes kept after them, such as 3:25%,5:8: "
                    "after three scales a quarter, after five scales eight"
                )
            scales, number, percent = found.groups()
            steps.append((int(scales), float(percent) / 100 if number is None else int(number)))
        return cls(tuple(steps))

    def candidates(self, num_scales: int, num_classes: int) -> list[int]:
        """Return the number of classes under which each scale is predicted, K numbers.

        Raises:
            InputError: a step after the last scale, which would prune nothing, or later.
        """
        if self.steps and self.steps[-1][0] >= num_scales:
            raise InputError(
                f"pruning after {self.steps[-1][0]} scales: the model has {num_scales}, so it must be after "
                f"{num_scales - 1} of them at most"
            )
        counts = [num_classes] * num_scales
        for scales, kept in self.steps:
            number = kept if isinstance(kept, int) else max(math.ceil(kept * num_classes - 1e-9), 1)  # 0.07 * 100 > 7
            counts[scales:] = [min(number, counts[-1])] * (num_scales - scales)
        return counts

    def idle_steps(self, num_scales: int, num_classes: int) -> list[tuple[int, int]]:
        """Return the steps that leave out no class, as pairs of their scales and the number of classes left there."""
        counts = self.candidates(num_scales, num_classes)
        return [(scales, counts[scales]) for scales, _ in self.steps if counts[scales] == counts[scales - 1]]

    def tokens(self, scales: Scales, num_classes: int) -> int:
        """Return the number of tokens whose probability is needed for an image, over all classes."""
        counts = self.candidates(len(scales), num_classes)
        return sum(count * length for count, length in zip(counts, scales.lengths, strict=True))


WHOLE = Pruning()


@dataclass(frozen=True, eq=False)
class ClassLikelihood:
    """Log-likelihood of the tokens of B images under M classes.

    Attributes:
        labels: M labels.
        by_scale: (B, M, K) float64 on the CPU, in nats: summed over the tokens of each scale; NaN at the scales that
            pruning left out.
    """

    labels: tuple[int, ...]
    by_scale: Tensor

    def total(self, num_scales: int | None = None) -> Tensor:
        """(B, M): sum over the first scales (None: all); -inf where some of them were left out."""
        total = self.by_scale[..., :num_scales].sum(dim=-1)
        return total.where(~total.isnan(), -torch.inf)

    def posterior(self) -> Tensor:
        """(B, M): probability of each class if all M are equally probable at first; 0 of those that were pruned."""
        return self.total().softmax(dim=1)

    def num_scales(self) -> Tensor:
        """(B, M) int64: the number of scales that were predicted under each class."""
        return (~self.by_scale.isnan()).sum(dim=-1)

    def ranking(self) -> Tensor:
        """(B, M) int64: positions in labels, the best first.

        Those that were pruned follow the others, the later ones first, each by its likelihood up to there.
        """
        return rank(self.num_scales(), self.by_scale.nansum(dim=-1))

    def ranked(self, names: Mapping[int, str]) -> list[list[ClassScore]]:
        """Return the M classes of each image in the order of `ranking`; names has those of the labels."""
        total, posterior, num_scales = self.total(), self.posterior(), self.num_scales()

        def score(image: int, m: int) -> ClassScore:
            value, by_scale = total[image, m].item(), self.by_scale[image, m, : num_scales[image, m]].tolist()
            label = self.labels[m]
            if len(by_scale) < self.by_scale.shape[-1]:  # pruned
                return ClassScore(label, names[label], None, None, tuple(by_scale))
            return ClassScore(label, names[label], posterior[image, m].item(), value, tuple(by_scale))

        return [[score(image, m) for m in order] for image, order in enumerate(self.ranking().tolist())]


def rank(*keys: Tensor) -> Tensor:
    """Positions (B, M) in descending order of the first key (B, M), where equal of the next; ties stay in order."""
    order = torch.arange(keys[0].shape[1]).expand_as(keys[0])
    for key in reversed(keys):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return order


@torch.inference_mode()
def class_likelihood(
    model: VAR,
    tokens: Tensor,
    teacher_forcing_input: Tensor,
    labels: Sequence[int],
    pruning: Pruning = WHOLE,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> ClassLikelihood:
    """Compute the log-likelihood of images' tokens under each of some classes.

    Memory is bounded by batch_size rows, each a pair of an image and a class. Where the rows of an image, or of
    several, fit in one batch, candidates that are kept go on with their keys and values; else what was predicted of
    them before is computed again, which is little: coarse scales have few tokens. Batches change rounding alone.

    Args:
        model: in evaluation mode, on any device.
        tokens: (B, L) int64, on the model's device.
        teacher_forcing_input: (B, L - 1, C), the quantizer's, of these tokens.
        labels: M different classes; num_classes is the null class.
        pruning: which classes' fine scales are left out.
        batch_size: rows that are computed at once.
        progress: called with the images so far, those at work in part, and their number.

    Raises:
        InputError: no images, tokens or input of another shape, no labels, labels that are repeated or that the model
            does not have, pruning that does not fit its scales, a likelihood that is not finite.
    """
    batch_size = check_whole_number("batch_size", batch_size, 1)
    num_classes, num_scales, total = model.config.num_classes, len(model.scales), model.scales.total
    if not labels or len(set(labels)) < len(labels) or min(labels) < 0 or max(labels) > num_classes:
        raise InputError(f"labels {abbreviate(list(labels))} must be different ones in 0..{num_classes}, at least one")
    expected = (len(tokens), total - 1, model.config.latent_dim)
    if not len(tokens) or tokens.shape[1:] != (total,) or teacher_forcing_input.shape != expected:
        raise InputError(
            f"tokens of shape {tuple(tokens.shape)} and input of shape {tuple(teacher_forcing_input.shape)} given: "
            f"the model needs (B, {total}) and (B, {total - 1}, {model.config.latent_dim}), B at least 1"
        )
    counts = pruning.candidates(num_scales, len(labels))
    images_at_once = max(batch_size // len(labels), 1)
    parts = zip(tokens.split(images_at_once), teacher_forcing_input.split(images_at_once), strict=True)
    count = _count_images(progress, len(tokens), pruning.tokens(model.scales, len(labels)))
    by_scale = [_of_images(model, *part, torch.tensor(labels), counts, batch_size, count) for part in parts]
    return ClassLikelihood(tuple(labels), torch.cat(by_scale))


def _count_images(progress: Progress | None, images: int, tokens: int) -> Callable[[int], None]:
    """Return what counts tokens whose probability is known; an image has that many, over all classes."""
    known = 0

    def count(more: int) -> None:
        nonlocal known
        known += more
        if progress is not None:
            progress(known / tokens, images)

    return count


def _of_images(
    model: VAR,
    tokens: Tensor,
    inputs: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    batch_size: int,
    count_tokens: Callable[[int], None],
) -> Tensor:
    """(B, M, K) log-likelihood of images whose rows fit in one batch, or of a single image.

    Args:
        counts: number of candidates at each scale.
    """
    batch, num_scales = len(tokens), len(counts)
    found = torch.full((batch, len(labels), num_scales), torch.nan, dtype=torch.float64)
    candidates = torch.arange(len(labels)).expand(batch, -1)  # (B, those that are left), positions in labels
    carried: KVCache | None = None  # keys and values of all candidates at the scales so far, if they were one batch
    fewer = [k for k in range(1, num_scales) if counts[k] < counts[k - 1]]
    for start, stop in pairwise([0, *fewer, num_scales]):
        if start:
            candidates, carried = _keep_best(found[..., :start], candidates, counts[start], carried)
        images = torch.arange(batch).repeat_interleave(candidates.shape[1])  # (R,)
        positions = candidates.flatten()  # (R,)
        first = 0 if carried is None else start
        batches = torch.arange(len(images)).split(batch_size)
        for rows in batches:
            cache = model.new_cache(len(rows)) if carried is None else carried
            scores = _of_rows(model, tokens, inputs, images[rows], labels[positions[rows]], cache, first, stop)
            found[images[rows], positions[rows], first:stop] = scores
            count_tokens(len(rows) * sum(model.scales.lengths[start:stop]))
        carried = cache if len(batches) == 1 else None
    return found


def _keep_best(found: Tensor, candidates: Tensor, number: int, cache: KVCache | None) -> tuple[Tensor, KVCache | None]:
    """Return the candidates of highest likelihood so far, (B, number), in their order, and their part of the cache.

    Args:
        found: (B, M, scales so far), log-likelihood.
        candidates: (B, those that are left), positions among the M.
        cache: of all candidates, image by image, or none.
    """
    batch, left = candidates.shape
    kept = rank(found.sum(dim=-1).gather(1, candidates))[:, :number].sort().values  # (B, number), in candidates
    if cache is not None:
        rows = (kept + torch.arange(batch)[:, None] * left).flatten().to(cache.keys.device)
        cache = KVCache(cache.keys[:, rows], cache.values[:, rows])
    return candidates.gather(1, kept), cache


def _of_rows(
    model: VAR,
    tokens: Tensor,
    inputs: Tensor,
    images: Tensor,
    labels: Tensor,
    cache: KVCache,
    start: int,
    stop: int,
) -> Tensor:
    """(R, stop - start) float64 on the CPU: log-likelihood of scales start..stop - 1, those before are in the cache."""
    device = tokens.device
    images, condition = images.to(device), model.condition(labels.to(device))
    offsets = model.scales.offsets
    scores = []
    for k in range(start, stop):
        here = slice(*offsets[k : k + 2])
        next_input = inputs[images, here.start - 1 : here.stop - 1] if k else None  # (R, side * side, C)
        losses = cross_entropy(model.step(k, next_input, condition, cache), tokens[images, here])  # (R, side * side)
        scores.append(-losses.double().sum(dim=1))
    found = torch.stack(scores, dim=1).cpu()
    if not found.isfinite().all():
        raise InputError("the likelihood is not finite: the model's weights are damaged")
    return found
