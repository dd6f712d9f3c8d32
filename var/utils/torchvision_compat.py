"""Import torchvision beside a torch that its compiled operators were not built for.

torchvision's wheels are linked against CUDA. Beside a CPU-only torch its operators cannot be loaded, and `import
torchvision` fails on registering shape functions for `torchvision::nms` and `torchvision::qnms`. Its Python parts
(transforms, datasets, models, utils) need neither operator and import once the two are declared.
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_declarations: list[torch.library.Library] = []  # a declaration ends with its Library object


def import_torchvision() -> ModuleType:
    """Return torchvision, with its missing operators declared if it does not import otherwise.

    Nothing is declared where torchvision imports as it is. After this call `import torchvision.transforms.v2` and the
    like work as usual; calling a declared operator raises NotImplementedError. Repeated calls return the same module.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: torchvision fails to import for a reason other than its missing operators.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        if hasattr(torch.ops.torchvision, "nms"):
            raise
    _forget("torchvision")
    _declare_operators()
    return importlib.import_module("torchvision")


def _forget(package: str) -> None:
    """Drop the submodules that a failed import of `package` leaves behind."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declarations.append(library)
