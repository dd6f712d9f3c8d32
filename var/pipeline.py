"""VARPipeline, what users import: labels in, images out; edits of images, and their classes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image

from tokenizer.errors import LARGEST, InputError, check_whole_number
from var.editing.edit import DEFAULT_SAMPLING, inpaint_windows, upscale
from var.editing.image_masks import Mask, MaskLike, read_mask
from var.editing.output import EditOutput
from var.editing.params import BlendParams, EditKeywords, OnImages
from var.editing.windows import Window, outpaint_windows, pad_canvas, window_around
from var.hub.pipeline import Pipeline
from var.hub.refiner import open_refiner
from var.models.var import require_var
from var.sampling.batches import DrawingKeywords, OnScale, draw_batches, join_outputs
from var.sampling.class_likelihood import WHOLE, Pruning, class_likelihood
from var.sampling.generators import check_sampling
from var.sampling.output import ClassScore, PipelineOutput
from var.sampling.params import SamplingKeywords, SamplingParams, apply_options, check_known
from var.sampling.refiner import Refiner
from var.utils.device import check_float32
from var.utils.images import VAR_RESIZE, load_image, resize_and_crop, to_pil, to_rgb, to_tensor
from var.utils.progress import Progress, open_progress

__all__ = ["EditOutput", "PipelineOutput", "VARPipeline"]


class VARPipeline(Pipeline):
    """A transformer with its tokenizer, to draw, edit and classify images; see Pipeline for its arguments."""

    def __call__(
        self,
        labels: int | str | Sequence[int | str],
        num: int = 1,
        cfg: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        smooth: bool | None = None,
        intermediates: bool = False,
        batch_size: int = 16,
        cfg_scales: tuple[int, int] | None = None,
        temperature: float | tuple[float, ...] | None = None,
        refiner: "VARPipeline | str | Path | None" = None,
        refine_from: int | None = None,
        use_scales: tuple[int, ...] | None = None,
        steps: int | None = None,
        diffusion_steps: int | None = None,
        on_scale: OnScale | None = None,
        progress: bool | Progress = False,
    ) -> PipelineOutput:
        """Generate `num` images of each class.

        What is None is the model's own default (`sampling` in its config.json), else that of `SamplingParams`.

        Args:
            labels: indices or names of classes.
            num: images a class.
            cfg, top_k, top_p, smooth, cfg_scales, temperature, use_scales, steps, diffusion_steps: as `SamplingParams`
                has them.
            seed: an image's random draws follow from the seed, its label and its number within the class alone.
            intermediates: also decode the image after every scale.
            batch_size: images generated at once.
            refiner: pipeline or name of another model on the same tokenizer, which draws the fine scales (a name is
                loaded in every call).
            refine_from: first scale that it draws, counted from 0.
            on_scale: called with a ScaleOutput, the images so far of a batch, after each of its scales; a model that
                draws tokens of a single map calls it once a batch. One that raises ends the drawing.
            progress: True shows a bar, or now and then a line where there is no terminal and no notebook; a function
                is called as (done, total), numbers of images, in which those at work count in part.

        Raises:
            InputError: an unknown class, an option out of range, or a refiner that does not fit.
        """
        drawing: dict[str, Any] = {"seed": seed, "intermediates": intermediates, "batch_size": batch_size}
        drawing |= {"cfg": cfg, "top_k": top_k, "top_p": top_p, "smooth": smooth, "cfg_scales": cfg_scales}
        drawing |= {"temperature": temperature, "use_scales": use_scales, "refiner": refiner}
        drawing |= {"refine_from": refine_from, "on_scale": on_scale, "progress": progress}
        drawing |= {"steps": steps, "diffusion_steps": diffusion_steps}
        return join_outputs(self.batches(labels, num, **drawing))

    def batches(
        self, labels: int | str | Sequence[int | str], num: int = 1, **options: Unpack[DrawingKeywords]
    ) -> Iterator[PipelineOutput]:
        """Give what a call with these arguments generates batch by batch, each as soon as it is there."""
        classes = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
        rows = [label for label in map(self.label, classes) for _ in range(check_whole_number("num", num, 1, LARGEST))]
        sampling = self.choose_sampling(options)
        finer = self.choose_refiner(options.pop("refiner", None), options.pop("refine_from", None))
        rest: dict[str, Any] = {
            name: value for name, value in options.items() if name not in SamplingKeywords.__annotations__
        }
        return draw_batches(self.model, self.vqvae, rows, sampling, finer, self.names, **rest)

    def inpaint(
        self,
        image: Image.Image,
        mask: MaskLike,
        label: int | str | None = None,
        num: int = 1,
        context: float | None = None,
        **options: Unpack[EditKeywords],
    ) -> EditOutput:
        """Fill a masked part of an image.

        Args:
            image: of any size and mode; transparent parts become white.
            mask: an image of the same size, white where it is filled (transparent is kept), a boolean array (height,
                width), a box (left, top, right, bottom) in pixels, or a list of boxes. An empty one gives the image
                as it is, or what the tokenizer makes of it with composite=False.
            label: index or name of a class; None for no class, as the paper inpaints.
            num: results.
            context: side of the square that the model sees, with the mask near its middle, over the mask's longer side.
                None: as large as fits the image. A small one gives a small mask more of the model's pixels, and less to
                go by; 1 shows nothing but the mask. It reaches over the edges where the mask is longer than the image.
            options: fields of `SamplingParams` (cfg, top_k, top_p, ...) and of `BlendParams` (dilate, hide_masked,
                composite, color_match, feather); seed (0), batch_size (16), progress (False), as a call takes them;
                on_images, called with each batch of finished results.

        Raises:
            InputError: an image that cannot be read, a mask of another size, an unknown class, an option out of range.
        """
        image = to_rgb(load_image(image))
        found = read_mask(mask, image.size)
        return self._inpaint(image, found, [window_around(found, context)], label, num, options)

    def edit(
        self,
        image: Image.Image,
        mask: MaskLike,
        label: int | str,
        num: int = 1,
        context: float | None = None,
        **options: Unpack[EditKeywords],
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
        **options: Unpack[EditKeywords],
    ) -> EditOutput:
        """Continue an image beyond its edges.

        Args:
            image: of any size and mode.
            left, right, top, bottom: pixels that are added on each side.
            label: index or name of a class; None for no class.
            num: results.
            method: `shrink` shows the model all of the extended image at once: its parts go together, in as many pixels
                as the model has. `slide` moves a square as large as the image's shorter side outwards by halves: new
                parts are as detailed as the image, and edges may show between them. `auto` shrinks until the extended
                image is twice as long as the given one's shorter side.
            options: as `inpaint` takes them.

        Raises:
            InputError: no extension, one too large, an unknown method; and as `inpaint`.
        """
        image = to_rgb(load_image(image))
        canvas, mask = pad_canvas(image, left, right, top, bottom)
        return self._inpaint(canvas, mask, outpaint_windows(image.size, mask, method), label, num, options)

    def _inpaint(
        self,
        image: Image.Image,
        mask: Mask,
        windows: Iterable[Window],
        label: int | str | None,
        num: int,
        options: EditKeywords,
    ) -> EditOutput:
        seed, batch_size, progress = (
            options.pop("seed", 0),
            options.pop("batch_size", 16),
            options.pop("progress", False),
        )
        on_images = options.pop("on_images", None)
        check_known(options, SamplingParams(), BlendParams())
        sampling, blend = self._choose_edit_sampling(options), apply_options(BlendParams(), options)
        rows = self._rows(label, num)
        with open_progress(progress) as show:
            args = (self.model, self.vqvae, image, mask, windows, rows, sampling, blend, seed, batch_size, show)
            return EditOutput(inpaint_windows(*args, on_images), image, mask)

    def upscale(
        self,
        image: Image.Image,
        label: int | str | None = None,
        num: int = 1,
        num_scales: int | None = None,
        consistent: bool = True,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool | Progress = False,
        on_images: OnImages | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> EditOutput:
        """Show a small image in the model's size: super-resolution.

        The image is enlarged and encoded, its coarse tokens are kept, the fine ones generated. The longer side becomes
        the model's. `var.editing.edit.upscale` explains why.

        Args:
            image: smaller than the model's images, of any mode.
            label: index or name of a class; None for no class.
            num: results.
            num_scales: coarse scales that are kept; None: those whose tokens are at least as wide, in pixels of the
                small image, as the last scale's are in one of full size.
            consistent: the results, reduced to the small image's size, are the small image.
            seed, batch_size, progress: as `__call__` takes them.
            on_images: called with each batch of finished results.
            options: fields of `SamplingParams`: cfg, top_k, top_p, smooth, cfg_scales, temperature.

        Raises:
            InputError: an image that is not smaller; and as `inpaint`.
        """
        model, image = require_var(self.model, "upscaling"), to_rgb(load_image(image))
        check_known(options, SamplingParams())
        sampling, rows = self._choose_edit_sampling(options), self._rows(label, num)
        with open_progress(progress) as show:
            args = (model, self.vqvae, image, rows, num_scales, consistent, sampling, seed, batch_size, show)
            images = upscale(*args, on_images)
        return EditOutput(images, image, np.ones(image.size[::-1], dtype=bool))

    @torch.inference_mode()
    def classify(
        self,
        images: Image.Image | Iterable[Image.Image],
        labels: Iterable[int | str] | None = None,
        pruning: Pruning | str | None = None,
        batch_size: int = 64,
        progress: bool | Progress = False,
    ) -> list[list[ClassScore]]:
        """Rank classes by the likelihood of an image's tokens, all classes being equally probable at first.

        Args:
            images: of any size and mode, cropped as for validation: short side to 1.125 times the model's, then the
                square in the center.
            labels: indices or names of the candidates, two at least; None: all that the model knows.
            pruning: candidates that are kept after coarse scales, such as "3:25%,5:8", see `Pruning`; None: all.
            batch_size: pairs of an image and a class that are computed at once.
            progress: as `__call__` takes it.

        Returns:
            The classes for each image, the best first; those that were pruned come last.

        Raises:
            InputError: images that cannot be read, an unknown class, fewer than two, pruning that does not fit the
                model's scales, a tokenizer that is not in float32.
        """
        model, vqvae, names = require_var(self.model, "classification"), self.vqvae, self.known_classes()
        check_float32(vqvae)
        pruning = Pruning.parse(pruning) if isinstance(pruning, str) else pruning or WHOLE
        chosen = self.known_labels() if labels is None else list(dict.fromkeys(map(self.label, labels)))
        if len(chosen) < 2:
            raise InputError(f"class {chosen[0] if chosen else None} is the only candidate: give two classes or more")
        pruning.candidates(len(vqvae.scales), len(chosen))  # raises before images are read
        side, device = vqvae.config.image_side, model.position.device
        given = [images] if isinstance(images, Image.Image) else images
        rgb = (to_rgb(load_image(image)) for image in given)
        squares = (to_tensor(resize_and_crop(image, round(VAR_RESIZE * side), side)) for image in rgb)
        encoded = [vqvae.encode(square[None].to(device)) for square in squares]
        if not encoded:
            raise InputError("no images given: give at least one")
        tokens = torch.cat(encoded)  # (B, L)
        inputs = vqvae.quantizer.teacher_forcing_input(tokens)
        with open_progress(progress) as show:
            found = class_likelihood(model, tokens, inputs, chosen, pruning, batch_size, show)
        return found.ranked(names)

    def choose_sampling(
        self, options: Mapping[str, object], default: SamplingParams = DEFAULT_SAMPLING
    ) -> SamplingParams:
        """Return the model's own sampling, or the default where it has none, with the options that are not None.

        Raises:
            InputError: an option of another type or out of range, top_k above the tokens that the model has.
        """
        params, vocab_size = apply_options(self.sampling or default, options), self.vqvae.config.vocab_size
        check_sampling(params, self.model.config)
        if options.get("top_k") is not None and params.top_k > vocab_size and not self.vqvae.is_continuous:
            raise InputError(f"top_k={params.top_k} must be in 0..{vocab_size}, the tokens of this model; 0 keeps all")
        return params

    def _choose_edit_sampling(self, options: Mapping[str, object]) -> SamplingParams:
        """`choose_sampling` without the model's own use_scales: an edit keeps the encoder's token maps of all scales.

        One that is given is refused with the forced tokens.
        """
        sampling = self.choose_sampling(options)
        return sampling if options.get("use_scales") is not None else replace(sampling, use_scales=None)

    def choose_refiner(self, refiner: "VARPipeline | str | Path | None", refine_from: int | None) -> Refiner | None:
        """Return what draws from scale `refine_from` on, as `open_refiner` makes it; None if neither is given."""
        given = refiner.parts if isinstance(refiner, VARPipeline) else refiner
        return open_refiner(given, refine_from, self.parts)

    def _rows(self, label: int | str | None, num: int) -> list[int]:
        row = self.model.config.num_classes if label is None else self.label(label)
        return [row] * check_whole_number("num", num, 1, LARGEST)

    @torch.inference_mode()
    def reconstruct(self, image: Image.Image) -> Image.Image:
        """An image of any size and mode -> its center square through the tokenizer and back, at the model's size."""
        side = self.vqvae.config.image_side
        square = to_tensor(resize_and_crop(to_rgb(load_image(image)), side, side))[None].to(self.model.position.device)
        return to_pil(self.vqvae.decode(self.vqvae.encode(square)))[0]
