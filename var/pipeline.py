"""VARPipeline: labels in, pictures out. What users import."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Self, Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from tokenizer.vqvae import VQVAE
from var.editing.edit import DrawOptions, InpaintOptions, inpaint_windows, upscale
from var.editing.image_masks import Hole, Mask, read_hole
from var.editing.windows import Window, outpaint_windows, pad_canvas, window_around
from var.hub.checkpoint import load_tokenizer, load_var, read_config, save_model
from var.hub.download import load_released
from var.hub.presets import RELEASED, SHIPPED, check_name
from var.models.var import VAR
from var.sampling.generate import SamplingOptions, check_fit, generate_batches, index_within_class
from var.sampling.logits import SamplingParams
from var.utils.classes import find_label, imagenet_names, listing
from var.utils.device import choose_device, choose_dtype
from var.utils.files import cache_folder, replacing
from var.utils.images import load_image, resize_and_crop, to_pil, to_rgb, to_tensor

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


@dataclass(frozen=True)
class EditOutput:
    """Results of an edit.

    Attributes:
        images: RGB, all of one size.
        picture: what was edited: RGB, upright, with gray room where it was extended.
        hole: (height, width) of `picture`, True where it was drawn anew.
    """

    images: list[Image.Image]
    picture: Image.Image
    hole: Hole


class VARPipeline:
    """A transformer with its tokenizer.

    Args:
        model: the transformer.
        vqvae: the tokenizer that it was trained on.
        classes: label -> name of the classes that it was trained on; None: all of num_classes.
        sampling: what suits the model, taken wherever nothing else is asked for; None: nothing is known to.

    Raises:
        InputError: the two do not fit each other.
    """

    def __init__(
        self,
        model: VAR,
        vqvae: VQVAE,
        classes: Mapping[int, str] | None = None,
        sampling: SamplingParams | None = None,
    ) -> None:
        check_fit(model, vqvae)
        self.model = model.eval()
        self.vqvae = vqvae.eval()
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
        sampling = read_sampling(entries.get("sampling"), folder / TRANSFORMER)
        return cls(load_var(folder / TRANSFORMER), load_tokenizer(folder / TOKENIZER), classes, sampling)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `tokenizer/` and `transformer/`, each of config.json and model.safetensors; dtype None: as they are.

        Raises:
            InputError: the folder cannot be written.
        """
        extra: dict[str, object] = {}
        if self.classes is not None:
            extra["classes"] = {str(label): name for label, name in sorted(self.classes.items())}
        if self.sampling is not None:
            extra["sampling"] = self.sampling.to_dict()
        with replacing(Path(folder), (TOKENIZER, TRANSFORMER)) as new:
            save_model(new / TRANSFORMER, self.model, extra, dtype)
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
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        smooth: bool | None = None,
        per_scale: bool = False,
        batch_size: int = 16,
    ) -> PipelineOutput:
        """Draw `num` pictures of each class.

        What is None is the model's own default (`sampling` in its config.json), else that of `SamplingParams`.

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
        asked = [labels] if isinstance(labels, int | str | Integral) else list(labels)
        rows = [label for given in asked for label in self._rows(given, num)]
        images: list[Image.Image] = []
        growth: list[list[Image.Image]] = []
        tokens: list[Tensor] = []
        options = self._sampling(cfg=cfg, top_k=top_k, top_p=top_p, smooth=smooth)
        options["seed"] = seed
        for drawn in generate_batches(self.model, self.vqvae, rows, batch_size, **options):
            images += to_pil(drawn.images)
            tokens.append(drawn.tokens.cpu())
            if per_scale:
                growth += self._growth(drawn.f_hats)
        return PipelineOutput(images, rows, index_within_class(rows), torch.cat(tokens), growth if per_scale else None)

    @torch.inference_mode()
    def _growth(self, f_hats: list[Tensor]) -> list[list[Image.Image]]:
        columns = [to_pil(self.vqvae.pixels(f_hat)) for f_hat in f_hats]
        return [list(row) for row in zip(*columns, strict=True)]

    def inpaint(
        self,
        image: Image.Image,
        mask: Mask,
        label: int | str | None = None,
        num: int = 1,
        context: float | None = None,
        **options: Unpack[InpaintOptions],
    ) -> EditOutput:
        """Fill a hole of a picture.

        The model sees the largest square of the picture that has the hole near its middle; one that reaches over the
        edges if the hole is longer than the picture's shorter side.

        Args:
            image: of any size and mode; transparent parts become white.
            mask: the hole: a picture of the same size, white where it is filled (transparent is kept), a boolean array
                (height, width), a box (left, top, right, bottom) in pixels, or a list of boxes. An empty hole gives the
                picture as it is, or what the tokenizer makes of it with composite=False.
            label: index or name of a class; None for no class, as the paper fills holes.
            num: results.
            context: side of the square that the model sees over the hole's longer side; None: as large as it can be.
                A small one gives a small hole in a large picture more of the model's pixels, and less to go by; 1
                shows nothing but the hole.
            options: as `var.editing.edit.inpaint_windows` takes them: dilate, hide, composite, match, feather; cfg,
                top_k, top_p, seed, smooth, batch_size.

        Raises:
            InputError: an image that cannot be read, a mask of another size, an unknown class, an option out of range.
        """
        picture = to_rgb(load_image(image))
        hole = read_hole(mask, picture.size)
        return self._redraw(picture, hole, [window_around(hole, context)], label, num, **options)

    def edit(
        self,
        image: Image.Image,
        mask: Mask,
        label: int | str,
        num: int = 1,
        context: float | None = None,
        **options: Unpack[InpaintOptions],
    ) -> EditOutput:
        """Put something of a class where the mask is (class-conditional editing); all else as `inpaint`."""
        return self.inpaint(image, mask, label, num, context, **options)

    def outpaint(
        self,
        image: Image.Image,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        label: int | str | None = None,
        num: int = 1,
        method: str = "auto",
        **options: Unpack[InpaintOptions],
    ) -> EditOutput:
        """Continue a picture beyond its edges.

        Args:
            image: of any size and mode.
            left, right, top, bottom: pixels that are added on each side.
            label: index or name of a class; None for no class.
            num: results.
            method: `shrink` shows the model all of the extended picture at once, so that its parts go together, in as
                many pixels as the model has; `slide` moves a square as large as the picture's shorter side outwards by
                halves, so that the new parts are as detailed as the picture, each drawn with sight of its neighbors
                alone, so that edges may show. `auto` shrinks until the extended picture is twice as long as the given
                one's shorter side.
            options: as `inpaint` takes them.

        Raises:
            InputError: no extension, one too large, an unknown method; and as `inpaint`.
        """
        picture = to_rgb(load_image(image))
        canvas, hole = pad_canvas(picture, left, right, top, bottom)
        windows = outpaint_windows(picture.size, hole, method)
        return self._redraw(canvas, hole, windows, label, num, **options)

    def _redraw(
        self,
        picture: Image.Image,
        hole: Hole,
        windows: Iterable[Window],
        label: int | str | None,
        num: int,
        **options: Unpack[InpaintOptions],
    ) -> EditOutput:
        asked: InpaintOptions = {**self._sampling(), **options}
        images = inpaint_windows(self.model, self.vqvae, picture, hole, windows, self._rows(label, num), **asked)
        return EditOutput(images, picture, hole)

    def _sampling(self, **given: float | bool | None) -> SamplingOptions:
        """The options given, and for those that are None the model's."""
        params = (self.sampling or SamplingParams()).updated(**given)
        return SamplingOptions(cfg=params.cfg, top_k=params.top_k, top_p=params.top_p, smooth=params.smooth)

    def upscale(
        self,
        image: Image.Image,
        label: int | str | None = None,
        num: int = 1,
        num_scales: int | None = None,
        consistent: bool = True,
        **options: Unpack[DrawOptions],
    ) -> EditOutput:
        """Draw a small picture in the model's size: super-resolution.

        The picture is enlarged and encoded, its coarse tokens are kept, the fine ones drawn; `var.editing.edit.upscale`
        tells why. The longer side becomes the model's.

        Args:
            image: smaller than the model's pictures, of any mode.
            label: index or name of a class; None for no class.
            num: results.
            num_scales: how many coarse scales are kept; None: those whose tokens are at least as wide, in pixels of the
                small picture, as the last scale's are in one of full size.
            consistent: the results, reduced to the small picture's size, are the small picture.
            options: cfg, top_k, top_p, seed, smooth, batch_size.

        Raises:
            InputError: a picture that is not smaller; and as `inpaint`.
        """
        picture = to_rgb(load_image(image))
        asked: DrawOptions = {**self._sampling(), **options}
        images = upscale(self.model, self.vqvae, picture, self._rows(label, num), num_scales, consistent, **asked)
        return EditOutput(images, picture, np.ones(picture.size[::-1], dtype=bool))

    def _rows(self, label: int | str | None, num: int) -> list[int]:
        if num < 1:
            raise InputError(f"num={num} must be at least 1")
        return [self.model.config.num_classes if label is None else self.label(label)] * num

    @torch.inference_mode()
    def reconstruct(self, image: Image.Image) -> Image.Image:
        """An image of any size and mode -> its center square through the tokenizer and back, at the model's side."""
        side = self.vqvae.config.image_side
        square = to_tensor(resize_and_crop(to_rgb(load_image(image)), side, side))[None].to(self.model.position.device)
        return to_pil(self.vqvae.decode(self.vqvae.encode(square)))[0]


def read_sampling(entry: object, folder: Path) -> SamplingParams | None:
    """The entry `sampling` of a transformer's config.json; None: it has none.

    Raises:
        InputError: unknown options, or values out of range.
    """
    if entry is None:
        return None
    known = SamplingParams().to_dict()
    if not isinstance(entry, dict) or not entry.keys() <= known.keys():
        raise InputError(f"{folder}: sampling={entry!r} must map {', '.join(known)} to values")
    for name, value in entry.items():
        if type(value) is not type(known[name]) and not (name in ("cfg", "top_p") and type(value) is int):
            raise InputError(f"{folder}: sampling has {name}={value!r}, which must be like {known[name]}")
    return SamplingParams(**entry)


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
