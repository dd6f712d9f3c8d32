"""Saving and pushing, of everything that `from_pretrained` loads; and the text of a repository's card."""

import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.client import check_repository, push_folder

LIBRARY = "var-next-scale"


class Card(NamedTuple):
    """What a model's card says of it."""

    summary: str  # a sentence or two
    facts: Mapping[str, object]  # sizes by name
    sections: Mapping[str, str]  # more, in Markdown, by heading
    usage: str  # lines of Python, with {repository} for the name
    tags: tuple[str, ...]


class Shared(ABC):
    """A model that can be written to a folder and pushed to the Hugging Face hub."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, of each part.

        Args:
            folder: where to.
            dtype: of the stored weights: float32, bfloat16, float16 or float64, as text or of torch; None or auto: as
                they are.

        Raises:
            InputError: the folder cannot be written, another dtype, weights that are not finite.
        """

    @abstractmethod
    def card(self) -> Card:
        """Return what the card says: facts that follow from the model alone."""

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> str:
        """Push the model to a repository on the Hugging Face hub, for `from_pretrained(repository)`, in one commit.

        Args:
            repository: user/model; made if there is none. Weights of ours that it has are replaced, other files stay.
            private: of a repository that is made; None: as the user's account has it.
            token: of the hub; None: HF_TOKEN, or that of `hf auth login`.
            commit_message: None: a plain one.
            license: in the header of the card, as the hub writes it, such as mit. Given, it makes the card anew; None:
                a README.md that the repository has stays, and a new one names no license.
            dtype: of the stored weights, as `save_pretrained` takes it.

        Returns:
            The address of the commit.

        Raises:
            InputError: no name of a repository, no connection, no right to write there, another dtype, weights that
                are not finite.
        """
        check_repository(repository)
        text = card_text(self.card(), repository, license)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            self.save_pretrained(folder, dtype)
            return push_folder(folder, repository, text, license is not None, private, token, commit_message)


def card_text(card: Card, repository: str, license: str | None = None) -> str:
    """Return the text of README.md. Raises InputError: a license that is no identifier."""
    from huggingface_hub import ModelCardData

    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise InputError(f"license={license!r} must be an identifier of the hub, such as mit, apache-2.0 or other")
    header = ModelCardData(library_name=LIBRARY, license=license, tags=[*card.tags]).to_yaml()
    parts = [f"---\n{header}\n---", f"# {repository.rpartition('/')[2]}", card.summary]
    parts.append("\n".join(f"- {name}: {value}" for name, value in card.facts.items()))
    parts += [f"## {heading}\n\n{text}" for heading, text in card.sections.items()]
    parts.append(f"## Use\n\n```python\n{card.usage.format(repository=repository)}\n```")
    return "\n\n".join(parts) + "\n"


def size(model: nn.Module) -> str:
    """Return a model's number of parameters as text."""
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def tokenizer_facts(model: VQVAE) -> dict[str, object]:
    """Return a tokenizer's sizes by name, for a card."""
    config = model.config
    codebook = {"codebook": f"{config.vocab_size} codewords of {config.latent_dim} channels"}
    latents = {"latents": f"continuous, {config.latent_dim} channels"}
    return {
        "images": f"{config.image_side} x {config.image_side} px",
        "sides of the token maps": ", ".join(map(str, config.scales)),
        **(latents if model.is_continuous else codebook),
    }
