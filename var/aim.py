"""AIM as users import it: the network of `var.models.aim`, loaded by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

import torch

from var.backends.choose import TORCH, choose_backend
from var.hub.checkpoint import save_model
from var.hub.download import load_aim_by_name
from var.hub.sharing import Card, Shared, size
from var.models import aim
from var.utils.device import choose_device, choose_dtype
from var.utils.paths import to_path
from var.utils.weights import on_meta

if TYPE_CHECKING:
    from var.backends import aim_jax, aim_mlx


class LoadOptions(TypedDict, total=False):
    """Options of AIM.from_pretrained, besides the backend."""

    revision: str | None
    probe_layers: str | Sequence[int] | None
    device: str
    dtype: str
    backbone_file: str | Path | None
    head_file: str | Path | None


class AIM(Shared, aim.AIM):
    """The frozen encoder with an attentive probe; `AIM(config)` has random weights."""

    @overload
    @classmethod
    def from_pretrained(
        cls, name: str | Path, backend: Literal["torch"] = ..., **options: Unpack[LoadOptions]
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, name: str | Path, backend: Literal["jax"], **options: Unpack[LoadOptions]
    ) -> "aim_jax.AIM": ...

    @overload
    @classmethod
    def from_pretrained(
        cls, name: str | Path, backend: Literal["mlx"], **options: Unpack[LoadOptions]
    ) -> "aim_mlx.AIM": ...

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        backend: str = TORCH,
        *,
        revision: str | None = None,
        probe_layers: str | Sequence[int] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        backbone_file: str | Path | None = None,
        head_file: str | Path | None = None,
    ) -> Any:
        """Load an encoder with its probe, in evaluation mode.

        Args:
            name: a released model (`aim-600M`, `aim-1B`, `aim-3B`, `aim-7B`: downloaded from the Hugging Face hub and
                converted once; also by the names that it has there and in the released code, in any case), a folder
                that `save_pretrained` or training wrote, or a repository on the hub that `push_to_hub` wrote.
            backend: torch; jax or mlx give a `var.backends.aim_jax.AIM` or `aim_mlx.AIM` of the same weights, which
                takes images and gives logits and features in that framework's arrays.
            revision: branch, tag or commit of such a repository.
            probe_layers: what the probe reads, as `var.hub.presets.choose_layers` says: "best", "last", or a list of
                blocks counted from 0. Of a released model it chooses one of the two heads; the probe in a folder, and
                that of `head_file`, must read them. None: whatever that probe reads, else "best".
            device: auto, cpu, cuda, cuda:N or mps; of the other backends auto alone, their own default.
            dtype: of the networks: auto (bfloat16 where the device is fast at it; in other backends float32), float32
                or bfloat16.
            backbone_file: released encoder file on this machine, or one with encoder and head, for released names.
            head_file: released head file on this machine, for released names.

        Raises:
            InputError: unknown name, missing, damaged or foreign files, no connection, layers that the probe does not
                read, an impossible backend, device or dtype, a backend whose package is not installed.
        """
        if backend != TORCH:
            copy = choose_backend(backend, device, dtype)
            return copy(load_aim_by_name(name, probe_layers, backbone_file, head_file, revision))
        target = choose_device(device)
        chosen = choose_dtype(dtype, target)
        loaded = load_aim_by_name(name, probe_layers, backbone_file, head_file, revision)
        with on_meta():
            model = cls(loaded.config)
        model.encoder, model.probe = loaded.encoder, loaded.probe
        return model.eval().cast(chosen).to(target)

    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """See Shared.save_pretrained."""
        save_model(to_path(folder, "folder"), self, dtype=dtype)

    def card(self) -> Card:
        """See Shared.card."""
        config = self.config
        facts = {
            "images": f"{config.image_size} x {config.image_size} px, patches of {config.patch_size} px",
            "encoder": f"{config.depth} blocks, width {config.width}, {config.heads} heads",
            "parameters": f"{size(self.encoder)} of the encoder, {size(self.probe)} of the probe",
            "the probe": f"{config.num_classes} classes, from blocks {', '.join(map(str, config.probe_layers))}",
        }
        return Card(
            "An AIM (arXiv 2401.08541): an image encoder trained autoregressively, with an attentive probe.",
            facts,
            {},
            'from var import AIM\n\nmodel = AIM.from_pretrained("{repository}")',
            ("image-features", "image-classification", "aim"),
        )


load_pretrained = AIM.from_pretrained  # the name in the paper's code
