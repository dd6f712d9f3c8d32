"""Import torchvision beside a torch that its compiled operators were not built for.

torchvision's wheels are linked against CUDA. Beside a CPU-only torch its operators cannot be loaded, and `import
torchvision` fails on registering shape functions for `torchvision::nms` and `torchvision::qnms`. Its Python parts
(transforms, datasets, models, utils) need neither operator and import once the two are declared.
"""

import sys
from types import ModuleType

import torch

from var.utils.optional_packages import import_package

_SCHEMAS = [f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")]
_declarations: list[torch.library.Library] = []  # a declaration ends with its Library object


def import_torchvision() -> ModuleType:
    """Return torchvision, with its missing operators declared if it does not import otherwise.

    Nothing is declared where torchvision imports as it is. After this call `import torchvision.transforms.v2` and the
    like work as usual; calling a declared operator raises NotImplementedError. Repeated calls return the same module.

    Raises:
        InputError: torchvision is not installed.
        RuntimeError: torchvision fails to import for a reason other than its missing operators.
    """
    try:
        return import_package("torchvision")
    except RuntimeError:
        if hasattr(torch.ops.torchvision, "nms"):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left
    _declarations.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in _SCHEMAS:
        _declarations[0].define(schema)
    return import_package("torchvision")
