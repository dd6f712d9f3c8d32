"""The two networks of a pipeline: loaded by name, moved, saved, pushed. `var.pipeline` makes images with them."""

import operator
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Self

import torch

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.hub.load import PipelineParts, load_pipeline, save_pipeline
from var.hub.sharing import Card, Shared, size, tokenizer_facts
from var.models.conditional import ConditionalTransformer
from var.models.packed import pack, pack_tokenizer, unpack
from var.sampling.compiled import compile_tokenizer, compile_transformer
from var.sampling.drawing import check_fit
from var.sampling.generators import check_sampling, find_generator
from var.sampling.params import SamplingParams
from var.utils.classes import find_label, imagenet_names, label_of_text, listing, read_number, spread
from var.utils.device import VAR_DTYPES, check_int8, choose_device, choose_dtype, dtype_beside_int8
from var.utils.paths import to_path

LISTED = 50  # classes in a card


class Pipeline(Shared):
    """A transformer with its tokenizer: loaded, moved, saved and pushed.

    Args:
        model: the transformer.
        vqvae: the tokenizer that it was trained on.
        classes: label -> name of the classes that it was trained on; None: all of num_classes.
        sampling: what suits the model, the default of every option that is not given; None: no such defaults.

    Raises:
        InputError: the two do not fit each other, or sampling or classes do not fit them.
    """

    def __init__(
        self,
        model: ConditionalTransformer,
        vqvae: VQVAE,
        classes: Mapping[int, str] | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        check_fit(model, vqvae)
        self.model = model.eval()
        self.vqvae = vqvae.eval()
        if sampling is not None:
            check_sampling(sampling, model.config)
        self.sampling = sampling
        self.classes = None if classes is None else dict(classes)
        unknown = [label for label in self.classes or () if not 0 <= label < model.config.num_classes]
        if unknown or self.classes == {}:
            raise InputError(f"classes must name labels in 0..{model.config.num_classes - 1}, got {unknown or 'none'}")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        compile: bool = False,
        vae_file: str | Path | None = None,
        var_file: str | Path | None = None,
        phi_ratio: float | None = None,
        cosine: bool = False,
    ) -> Self:
        """Load a model.

        Args:
            name: a shipped model (`var-mini`, `var-emoji`), a released one (`var-d16` ... `var-d36`: downloaded from
                the Hugging Face hub and converted once), a folder that `save_pretrained` or training wrote, or a
                repository on the hub (`user/model`) that `push_to_hub` wrote.
            revision: branch, tag or commit of such a repository.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: of the networks: auto (bfloat16 where the device is fast at it), float32 or bfloat16; or int8, on a
                CPU: of the linear maps in the transformer's blocks, to draw and edit with; all else is as with auto.
            compile: as `compile` does.
            vae_file: released tokenizer file on this machine, for released names.
            var_file: released transformer file on this machine, for released names.
            phi_ratio, cosine: of the vae_file, where it is another than the released one: see
                `var.convert.load_official`.

        Raises:
            InputError: unknown name, missing or damaged files, no connection, an impossible device or dtype.
        """
        target = choose_device(device)
        chosen = choose_dtype(dtype, target, VAR_DTYPES)
        pipe = cls(*load_pipeline(name, vae_file, var_file, phi_ratio, cosine, revision))
        pipe.to(target, chosen)
        return pipe.compile() if compile else pipe

    def compile(self) -> Self:
        """Compile both networks in place by torch.compile: the first images take minutes, later ones less time.

        Every scale is compiled on its own, and again for another number of images at once. On a CPU it needs a C++
        compiler.

        Raises InputError: a model in int8, or one that draws token by token.
        """
        unpack(self.model.blocks)
        compile_transformer(self.model)
        compile_tokenizer(self.vqvae)
        return self

    def pack(self) -> Self:
        """Lay out the weights, in place, as products and convolutions on x86 CPUs read them: images take less time.

        A packed transformer makes images, is saved and copied as any other. It has no gradients, and its weights are no
        parameters until it is unpacked: `to`, `compile`, `model.train()` and `var.models.packed.unpack` do that.
        Nothing is packed on other devices, in int8, or in bfloat16 on CPUs that have no instructions for it. The
        tokenizer's weights stay parameters, with channels last where that gains: in bfloat16 on such a CPU.
        """
        pack(self.model.blocks)
        pack_tokenizer(self.vqvae)
        return self

    def to(self, device: str | torch.device, dtype: str | torch.dtype | None = None) -> Self:
        """Move both networks to a device, in place, as `from_pretrained` does; dtype None: as they are.

        Raises:
            InputError: an impossible device or dtype, another than int8 for a model in int8.
        """
        target = choose_device(device)
        if self.model.dtype == torch.int8:
            check_int8(target)
        if dtype is not None:
            chosen = choose_dtype(dtype, target, VAR_DTYPES)
            self.model.cast(chosen)
            self.vqvae.cast(dtype_beside_int8() if chosen == torch.int8 else chosen)
        for network in (self.model, self.vqvae):
            network.to(target)
        return self

    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write `tokenizer/` and `transformer/`: see Shared.save_pretrained."""
        save_pipeline(to_path(folder, "folder"), self.parts, dtype)

    def label(self, given: int | str) -> int:
        """The label of a class given by index or name; text that is the name of a class means it, even a number.

        Raises:
            InputError: a class that the model does not have or was not trained on, with those that it knows.
        """
        num_classes = self.model.config.num_classes
        try:
            label = self._label_of_text(given) if isinstance(given, str) else operator.index(given)
        except TypeError as error:
            raise InputError(f"class {given!r} must be the index of a class or its name") from error
        if self.classes is not None and label not in self.classes:
            raise InputError(
                f"class {label} is not one that this model was trained on; it knows {listing(self.classes)}"
            )
        if not 0 <= label < num_classes:
            raise InputError(f"class {label} must be in 0..{num_classes - 1}")
        return label

    def _label_of_text(self, text: str) -> int:
        number = read_number(text)
        if self.classes is None and number is not None:
            return number  # no name that `known_classes` has then is another number, and ImageNet's take time to read
        classes = self.known_classes()
        label = label_of_text(text, classes)
        return find_label(text, classes) if label is None else label

    def known_labels(self) -> list[int]:
        """Return all labels that the model was trained on, in ascending order."""
        return sorted(self.classes) if self.classes is not None else list(range(self.model.config.num_classes))

    @property
    def names(self) -> Mapping[int, str] | None:
        """Names of the classes; None: those of ImageNet, whose list takes time to read."""
        return {} if self.classes is None and self.model.config.num_classes != 1000 else self.classes

    def known_classes(self) -> Mapping[int, str]:
        """Return label -> name of all classes that the model was trained on."""
        if self.classes is not None:
            return self.classes
        num_classes = self.model.config.num_classes
        return imagenet_names() if num_classes == 1000 else {label: str(label) for label in range(num_classes)}

    def card(self) -> Card:
        """See Shared.card."""
        config, generator = self.model.config, find_generator(self.model.config)
        facts = tokenizer_facts(self.vqvae) | {
            "transformer": f"{config.depth} blocks, width {config.width}, {config.heads} heads",
            "parameters": f"{size(self.model)} of the transformer, {size(self.vqvae)} of the tokenizer",
            "classes": config.num_classes if self.classes is None else f"{len(self.classes)} of {config.num_classes}",
        }
        sections = {}
        if self.classes is not None:
            labels = sorted(self.classes)
            listed = spread(labels, LISTED)
            names = "\n".join(f"{label} {' '.join(self.classes[label].split())}" for label in listed)
            more = "" if len(listed) == len(labels) else "\n\nAll of them are in transformer/config.json."
            sections["Classes"] = f"```text\n{names}\n```{more}"
        if self.sampling is not None:
            values = "\n".join(f"- {name}: {value}" for name, value in self.sampling.to_dict().items())
            sections["Sampling"] = f"The defaults of this model:\n\n{values}"
        label = min(self.classes or [0])
        return Card(
            generator.about,
            facts,
            sections,
            'from var import VARPipeline\n\npipe = VARPipeline.from_pretrained("{repository}")\n'
            f'pipe({label}).images[0].save("image.png")',
            ("image-generation", "class-conditional", "var", generator.tag),
        )

    @property
    def parts(self) -> PipelineParts:
        """Return its networks, classes and sampling as they are."""
        return PipelineParts(self.model, self.vqvae, self.classes, self.sampling)

    def __repr__(self) -> str:
        facts, number = self._facts(), len(self.known_labels())
        return f"{type(self).__name__}({facts['model']}, {facts['images']}, {number} classes, {facts['runs on']})"

    def _repr_html_(self) -> str:
        row = "<tr><th style='text-align: left'>{}</th><td style='text-align: left'>{}</td></tr>"
        return f"<table>{''.join(row.format(name, escape(value)) for name, value in self._facts().items())}</table>"

    def _facts(self) -> dict[str, str]:
        """Return what a notebook shows of it, by name."""
        config, side = self.model.config, self.vqvae.config.image_side
        names = "" if self.classes is None else f": {listing(self.classes, 12)}"
        sampling = SamplingParams() if self.sampling is None else self.sampling
        options = ", ".join(f"{name} {value}" for name, value in sampling.to_dict().items())
        return {
            "model": f"{type(self.model).__name__} of depth {config.depth}",
            "images": f"{side}x{side} px",
            "token maps": ", ".join(map(str, config.scales)),
            "classes": f"{len(self.known_labels())}{names}",
            "sampling": options,
            "runs on": f"{self.model.position.device}, {str(self.model.dtype).removeprefix('torch.')}",
        }
