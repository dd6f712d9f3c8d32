"""The tokenizer as users import it: the network of `tokenizer.vqvae`, loaded by name."""

from pathlib import Path
from typing import Self

import torch

from tokenizer import vqvae
from var.hub.checkpoint import save_model
from var.hub.load import find_tokenizer
from var.hub.sharing import Card, Shared, size, tokenizer_facts
from var.utils.device import choose_device, choose_dtype
from var.utils.paths import to_path
from var.utils.weights import on_meta


class VQVAE(Shared, vqvae.VQVAE):
    """The multi-scale VQVAE; `VQVAE(config)` has random weights."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
    ) -> Self:
        """Load a tokenizer, in evaluation mode.

        Args:
            name: as for `VARPipeline.from_pretrained`, of which the tokenizer is taken; or the folder or the repository
                of a tokenizer alone.
            revision: branch, tag or commit of a repository on the hub.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: of the network: auto (bfloat16 where the device is fast at it), float32 or bfloat16.

        Raises:
            InputError: unknown name, missing or damaged files, no connection, an impossible device or dtype.
        """
        target = choose_device(device)
        chosen = choose_dtype(dtype, target)
        loaded = find_tokenizer(name, revision)
        with on_meta():
            model = cls(loaded.config)
        model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
        return model.eval().cast(chosen).to(target)

    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """See Shared.save_pretrained."""
        save_model(to_path(folder, "folder"), self, dtype=dtype)

    def card(self) -> Card:
        """See Shared.card."""
        return Card(
            "The tokenizer of a VAR (arXiv 2404.02905): a multi-scale VQVAE, images to token pyramids and back.",
            tokenizer_facts(self) | {"parameters": size(self)},
            {},
            'from var import VQVAE\n\nvqvae = VQVAE.from_pretrained("{repository}")',
            ("image-tokenizer", "vqvae", "next-scale-prediction"),
        )
