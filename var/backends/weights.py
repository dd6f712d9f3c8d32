"""Names and layouts of AIM's weights in JAX and MLX, whose modules are called as ours are: only the leaves differ."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from var.models import aim


class Leaf(NamedTuple):
    """The last part of a tensor's name, and which of our axes follow one another there; None: as ours do."""

    name: str
    axes: tuple[int, ...] | None = None


class Entry(NamedTuple):
    """Where the tensors go whose names fit a pattern."""

    ours: str
    jax: Leaf
    mlx: Leaf


# A name counts for the first pattern that it fits.
TABLE = (
    Entry("encoder.patchify.weight", Leaf("kernel", (2, 3, 1, 0)), Leaf("weight", (0, 2, 3, 1))),  # (D, 3, P, P)
    Entry("*norm*.weight", Leaf("scale"), Leaf("weight")),
    Entry("*.weight", Leaf("kernel", (1, 0)), Leaf("weight")),  # (out, in)
    Entry("*.bias", Leaf("bias"), Leaf("bias")),
    Entry("encoder.position", Leaf("position"), Leaf("position")),
    Entry("probe.query", Leaf("query"), Leaf("query")),
    Entry("probe.norm.running_mean", Leaf("mean"), Leaf("running_mean")),
    Entry("probe.norm.running_var", Leaf("var"), Leaf("running_var")),
)


def convert_weights(model: aim.AIM, framework: Literal["jax", "mlx"]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield names and values, in float32, of all that a model computes with, as the framework's AIM has them."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    del tensors["probe.norm.num_batches_tracked"]  # of training
    for name, tensor in tensors.items():
        entry = next(entry for entry in TABLE if fnmatchcase(name, entry.ours))
        leaf = entry.jax if framework == "jax" else entry.mlx
        values = tensor.detach().float().cpu().numpy()
        yield ".".join([*name.split(".")[:-1], leaf.name]), values.transpose(leaf.axes or range(values.ndim))
