"""VARPipeline: labels in, pictures out. What users import."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.checkpoint import load_tokenizer, load_var, read_config, save_model
from var.classes import find_label, imagenet_names, listing
from var.device import choose_device, choose_dtype
from var.files import replacing
from var.generate import check_fit, generate, occurrences
from var.images import resize_and_crop, to_pil, to_rgb, to_tensor
from var.model import VAR
from var.presets import RELEASED, SHIPPED, check_name
from var.released import cache_folder, load_released

TOKENIZER, TRANSFORMER = "tokenizer", "transformer"  # folders of a saved pipeline


@dataclass(frozen=True)
class PipelineOutput:
    """Pictures in the order of the labels, `num` of each.

    Attributes:
        images: RGB pictures of the model's side.
        labels: label of each picture.
        indices: number of each picture within its class; with the seed and the label it names the random stream.
        tokens: (B, L) int64 on the CPU.
        per_scale: for each picture, what it looks like after each scale; None unless asked for.
    """

    images: list[Image.Image]
    labels: list[int]
    indices: list[int]
    tokens: Tensor
    per_scale: list[list[Image.Image]] | None


class VARPipeline:
    """A transformer with its tokenizer.

    Args:
        model: the transformer.
        vqvae: the tokenizer that it was trained on.
        classes: label -> name of the classes that it was trained on; None: all of num_classes.

    Raises:
        InputError: the two do not fit each other.
    """

    def __init__(self, model: VAR, vqvae: VQVAE, classes: Mapping[int, str] | None = None) -> None:
        check_fit(model, vqvae)
        self.model = model.eval()
        self.vqvae = vqvae.eval()
        self.classes = None if classes is None else dict(classes)
        unknown = [label for label in self.classes or () if not 0 <= label < model.config.num_classes]
        if unknown or self.classes == {}:
            raise InputError(f"classes must name labels in 0..{model.config.num_classes - 1}, got {unknown or 'none'}")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        vae_file: str | Path | None = None,
        var_file: str | Path | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: a shipped model (`var-mini`), a released one (`var-d16` ... `var-d36`: downloaded from the
                Hugging Face hub and converted once), or a folder that `save_pretrained` or training wrote.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: of the networks: auto (bfloat16 where the device is fast at it), float32 or bfloat16.
            vae_file: released tokenizer file on this machine, for released names.
            var_file: released transformer file on this machine, for released names.

        Raises:
            InputError: unknown name, missing or damaged files, no connection, an impossible device or dtype.
        """
        target = choose_device(device)
        number_type = choose_dtype(dtype, target)
        if (vae_file or var_file) and str(name) not in RELEASED:
            raise InputError(
                f"vae_file and var_file go with a released name ({', '.join(RELEASED)}), not with {name!r}"
            )
        if vae_file or var_file:
            vqvae, model = load_released(str(name), _path(vae_file), _path(var_file))
            pipe = cls(model, vqvae)
        else:
            pipe = cls._from_folder(find_folder(name))
        pipe.model.cast(number_type).to(target)
        pipe.vqvae.cast(number_type).to(target)
        return pipe

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        for part in (TOKENIZER, TRANSFORMER):
            if not (folder / part).is_dir():
                raise InputError(f"{folder} has no folder {part}: a model has two, {TOKENIZER} and {TRANSFORMER}")
        entries = read_config(folder / TRANSFORMER)
        names = entries.get("classes")
        try:
            classes = None if names is None else {int(label): str(name) for label, name in names.items()}
        except (AttributeError, ValueError) as error:
            raise InputError(f"{folder / TRANSFORMER}: classes must map labels to names ({error})") from error
        return cls(load_var(folder / TRANSFORMER), load_tokenizer(folder / TOKENIZER), classes)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `tokenizer/` and `transformer/`, each of config.json and model.safetensors; dtype None: as they are.

        Raises:
            InputError: the folder cannot be written.
        """
        names = None if self.classes is None else {str(label): name for label, name in sorted(self.classes.items())}
        with replacing(Path(folder), (TOKENIZER, TRANSFORMER)) as new:
            save_model(new / TRANSFORMER, self.model, {} if names is None else {"classes": names}, dtype)
            save_model(new / TOKENIZER, self.vqvae, dtype=dtype)

    def label(self, given: int | str) -> int:
        """The label of a class given by index or name.

        Raises:
            InputError: a class that the model does not have or was not trained on, with those that it knows.
        """
        num_classes = self.model.config.num_classes
        if isinstance(given, str) and not re.fullmatch(r"-?\d+", given.strip()):
            return find_label(given, self.known_classes())
        label = int(given)
        if not 0 <= label < num_classes:
            raise InputError(f"class {label} must be in 0..{num_classes - 1}")
        if self.classes is not None and label not in self.classes:
            raise InputError(
                f"class {label} is not one that this model was trained on; it knows {listing(self.classes)}"
            )
        return label

    def known_labels(self) -> list[int]:
        """All labels that can be asked for, in order."""
        return sorted(self.classes) if self.classes is not None else list(range(self.model.config.num_classes))

    def known_classes(self) -> Mapping[int, str]:
        """Label -> name of all classes that can be asked for."""
        if self.classes is not None:
            return self.classes
        num_classes = self.model.config.num_classes
        return imagenet_names() if num_classes == 1000 else {label: str(label) for label in range(num_classes)}

    def __call__(
        self,
        labels: int | str | Sequence[int | str],
        num: int = 1,
        cfg: float = 4.0,
        top_k: int = 900,
        top_p: float = 0.96,
        seed: int = 0,
        smooth: bool = False,
        per_scale: bool = False,
        batch_size: int = 16,
    ) -> PipelineOutput:
        """Draw `num` pictures of each class.

        Args:
            labels: indices or names of classes.
            num: pictures a class.
            cfg: classifier-free guidance at the last scale (rises linearly from 0); 0 switches it off.
            top_k: keep the best tokens; 0 keeps all.
            top_p: keep the smallest set of tokens whose probability exceeds it; 0 keeps all.
            seed: a picture's random draws follow from the seed, its label and its number within the class alone.
            smooth: mix codewords; smoother pictures, not for metrics.
            per_scale: also decode the picture after every scale.
            batch_size: pictures drawn at once.

        Raises:
            InputError: an unknown class, or an option out of range.
        """
        for option, value in (("num", num), ("batch_size", batch_size)):
            if value < 1:
                raise InputError(f"{option}={value} must be at least 1")
        asked = [labels] if isinstance(labels, int | str | Integral) else list(labels)
        rows = [label for given in asked for label in [self.label(given)] * num]
        indices = occurrences(rows)
        images: list[Image.Image] = []
        growth: list[list[Image.Image]] = []
        tokens: list[Tensor] = []
        for first in range(0, max(len(rows), 1), batch_size):
            part = slice(first, first + batch_size)
            drawn = generate(self.model, self.vqvae, rows[part], cfg, top_k, top_p, seed, smooth, indices=indices[part])
            images += to_pil(drawn.images)
            tokens.append(drawn.tokens.cpu())
            if per_scale:
                growth += self._growth(drawn.f_hats)
        return PipelineOutput(images, rows, indices, torch.cat(tokens), growth if per_scale else None)

    @torch.inference_mode()
    def _growth(self, f_hats: list[Tensor]) -> list[list[Image.Image]]:
        columns = [to_pil(self.vqvae.pixels(f_hat)) for f_hat in f_hats]
        return [list(row) for row in zip(*columns, strict=True)]

    @torch.inference_mode()
    def reconstruct(self, image: Image.Image) -> Image.Image:
        """An image of any size and mode -> its centre square through the tokenizer and back, at the model's side."""
        side = self.vqvae.config.image_side
        square = to_tensor(resize_and_crop(to_rgb(image), side, side))[None].to(self.model.position.device)
        return to_pil(self.vqvae.decode(self.vqvae.encode(square)))[0]


def find_folder(name: str | Path) -> Path:
    """The folder of a model: the one given, a shipped one, or the conversion of a released one (made if need be).

    Raises:
        InputError: an unknown name; released weights that cannot be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    check_name(str(name))
    if str(name) in SHIPPED:
        return SHIPPED[str(name)]
    converted = cache_folder() / str(name)
    if not converted.is_dir():
        vqvae, model = load_released(str(name))
        VARPipeline(model, vqvae).save_pretrained(converted)
    return converted


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file).expanduser()
