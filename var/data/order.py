"""The order of the samples in each epoch, a pure function of the seed and the epoch."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# First word of every random stream, so that orders, augmentations and substitutes never share one.
ORDER, AUGMENTATION, SUBSTITUTE, DELAY = 0, 1, 2, 3


def epoch_order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """(length,) int64: a permutation drawn from (seed, epoch)."""
    return np.random.default_rng((ORDER, seed, epoch)).permutation(length)


class ShardOrder:
    """Shuffled order of samples in shards, which needs few shards at a time.

    The shards enter one after another, in an order drawn for the epoch; a sample is delayed from its shard's entrance
    by a random time, less than `window` shards take to enter. So at most `window` shards are in use at a time.

    Args:
        shards: (len,) the shard of every sample, rising.
        window: number of shards among which samples are shuffled.
    """

    def __init__(self, shards: NDArray[np.int64], window: int, seed: int) -> None:
        _, first, self.shard, count = np.unique(shards, return_index=True, return_inverse=True, return_counts=True)
        self.first = first.tolist()
        self.count = count.tolist()
        self.window = window
        self.seed = seed

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(len,): a permutation of the samples."""
        if len(self.first) <= self.window:
            return epoch_order(len(self.shard), self.seed, epoch)
        _, entrance = _entrances(len(self.first), self.seed, epoch)
        delay = np.random.default_rng((DELAY, self.seed, epoch)).random(len(self.shard))
        return np.argsort(entrance[self.shard] + self.window * delay, kind="stable")

    def samples_after(self, epoch: int, index: int, distance: int) -> range:
        """Return the samples of the shard that enters `distance` shards after a sample's, wrapping around the epoch."""
        sequence, entrance = _entrances(len(self.first), self.seed, epoch)
        shard = sequence[(entrance[self.shard[index]] + distance) % len(sequence)]
        return range(self.first[shard], self.first[shard] + self.count[shard])


@lru_cache(maxsize=2)
def _entrances(count: int, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    sequence = epoch_order(count, seed, epoch)
    return sequence, np.argsort(sequence)


def substitute(seed: int, epoch: int, index: int, attempt: int, length: int) -> int:
    """Choose the sample, of `length`, to try in place of an unreadable one; a different one, if there is any."""
    draw = np.random.default_rng((SUBSTITUTE, seed, epoch, index, attempt)).integers(max(length - 1, 1))
    return (index + 1 + int(draw)) % length
