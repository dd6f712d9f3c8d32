"""The tab that compares images by their features: nearest neighbors in a folder, and what the patches tell apart."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenizer.errors import InputError
from var.app.colors import as_map, fit_colors
from var.app.controls import image_gallery, run_on_model
from var.app.folders import choose_folder, inside, list_folders
from var.app.state import AppState, as_they_come
from var.app.uploads import MAX_PIXELS, image_upload, open_upload
from var.features.extract import open_source
from var.features.sources import FeatureSource, VARFeatures
from var.models.var import require_var
from var.utils.classes import spread
from var.utils.image_files import find_images, holds_images
from var.utils.images import open_image, resize_and_center_crop, to_pil

MAX_IMAGES = 1000  # of a folder
BATCH = 16
NEIGHBORS = 7
HELD_FOLDERS = 4  # whose features are held in memory
UNCHOSEN = "the features of a folder of images: start the page with `var app --images FOLDER`"


@dataclass(frozen=True)
class Index:
    """Features of the images of a folder.

    Attributes:
        files: N images that could be read.
        vectors: (N, D) float32 of length 1.
    """

    files: list[Path]
    vectors: Tensor

    def nearest(self, vector: Tensor, number: int = NEIGHBORS) -> list[tuple[Path, float]]:
        """Return the images whose features (D,) are the most similar, with the cosine similarity, the best first."""
        similarity = self.vectors @ F.normalize(vector.float(), dim=0)
        best = similarity.topk(min(number, len(self.files)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self.files[i], value) for i, value in pairs]


@dataclass
class Features:
    """The model of the features, which is loaded when it is first needed, and the folders that it has seen."""

    state: AppState
    indexes: "OrderedDict[tuple[Any, ...], Index]" = field(default_factory=OrderedDict)

    @cached_property
    def source(self) -> FeatureSource:
        """The model."""
        if self.state.encoder is not None:
            return open_source(self.state.encoder)
        pipe = self.state.pipe
        return VARFeatures(require_var(pipe.model, "feature extraction"), pipe.vqvae)

    def patches(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the features (B, N, D) float32 of each patch; of a VAR, of each token of all scales."""
        source = self.source
        pixels = torch.stack([resize_and_center_crop(image, source.image_size) for image in images])
        outputs = source.features(pixels.to(source.device), source.choose(None))
        return torch.stack(outputs).float().mean(dim=0).cpu()

    def read_folder(self, root: Path, folder: Path, progress: Callable[[int, int], None]) -> Index:
        """Return the features of the images of a folder, or of MAX_IMAGES of them at even distances.

        Raises InputError: none that can be read.
        """
        found = [folder / name for name in find_images(folder)]
        files = spread_files([file for file in found if inside(root, file)])
        key = (folder, *((file, file.stat().st_mtime_ns) for file in files))
        if key not in self.indexes:
            self.indexes[key] = self._compute(files, progress)
            while len(self.indexes) > HELD_FOLDERS:
                self.indexes.popitem(last=False)
        return self.indexes[key]

    def _compute(self, files: Sequence[Path], progress: Callable[[int, int], None]) -> Index:
        known: list[Path] = []
        vectors: list[Tensor] = []
        for first in range(0, len(files), BATCH):
            images = []
            for file in files[first : first + BATCH]:
                try:
                    images.append(open_image(file, MAX_PIXELS))
                except InputError:  # one that cannot be read is nobody's neighbor
                    continue
                known.append(file)
            if images:
                vectors.append(self.patches(images).mean(dim=1))
            progress(min(first + BATCH, len(files)), len(files))
        if not vectors:
            raise InputError("none of the images in this folder can be read: choose another")
        return Index(known, F.normalize(torch.cat(vectors), dim=1))

    def color_maps(self, patches: Tensor) -> list[Image.Image]:
        """Return maps of features (B, N, D), of a VAR those of the last scale; colors mean the same in all of them."""
        model = self.source.model if isinstance(self.source, VARFeatures) else None
        side = isqrt(patches.shape[1]) if model is None else model.scales.sides[-1]
        last = patches[:, -side * side :]
        color = fit_colors(last.flatten(0, 1))
        return [as_map(color(each)) for each in last]


@dataclass(frozen=True)
class Neighbors:
    """An image and its nearest ones.

    Attributes:
        images: the image itself, then its neighbors, as the model sees them.
        captions: file and similarity of each.
        maps: first three principal components of their patches' features as colors.
    """

    images: list[Image.Image]
    captions: list[str]
    maps: list[Image.Image]


def spread_files(files: Sequence[Path]) -> list[Path]:
    """Return at most MAX_IMAGES of the files, at even distances."""
    return [files[i] for i in spread(range(len(files)), MAX_IMAGES)]


def list_image_folders(root: Path | None) -> list[str]:
    """List the folders with images in a folder."""
    return [] if root is None else list_folders(root, holds_images)


def find_neighbors(features: Features, image: Image.Image, given: str) -> Iterator[str | Neighbors]:
    """Look for the nearest neighbors of an image in a folder that is listed; yield how far it is, then the neighbors.

    Raises InputError: no such folder, none of whose images can be read.
    """
    root = features.state.images
    if root is None:
        raise InputError(UNCHOSEN)
    folder = choose_folder(root, list_image_folders(root), given)

    def look(show: Callable[[str | Neighbors], None]) -> str | Neighbors:
        with features.state.lock:
            index = features.read_folder(root, folder, lambda done, total: show(f"{done} of {total} images"))
            own = features.patches([image])
            found = index.nearest(own[0].mean(dim=0))
            images = [image, *(open_image(file, MAX_PIXELS) for file, _ in found)]
            patches = torch.cat([own, features.patches(images[1:])])
            side = features.source.image_size
            return Neighbors(
                [to_pil(resize_and_center_crop(each, side)[None])[0] for each in images],
                ["this image", *(f"{file.relative_to(folder).as_posix()} {value:.3f}" for file, value in found)],
                features.color_maps(patches),
            )

    yield from as_they_come(look)


def build(state: AppState) -> None:
    """Lay out the tab and connect it."""
    features, folders = Features(state), list_image_folders(state.images)
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            image = image_upload("features-image")
            folder = gr.Dropdown(
                folders, value=folders[0] if folders else None, label="Folder", elem_id="features-folder"
            )
            with gr.Row():
                button = gr.Button("Find neighbors", variant="primary", elem_id="features-button")
                stop = gr.Button("Stop")
        with gr.Column(scale=3, min_width=400):
            status = gr.Markdown("" if folders else UNCHOSEN, elem_id="features-status")
            gr.Markdown("Nearest neighbors, by the cosine of mean features")
            neighbors = image_gallery("Neighbors", "features-neighbors", NEIGHBORS + 1, 200)
            gr.Markdown("First three principal components of the patches' features, as red, green and blue")
            maps = image_gallery("Maps", "features-maps", NEIGHBORS + 1, 180)

    def look(file: str | None, chosen: str) -> Iterator[tuple[Any, ...]]:
        opened = open_upload(file)
        for found in find_neighbors(features, opened, chosen):
            if isinstance(found, Neighbors):
                yield "", list(zip(found.images, found.captions, strict=True)), found.maps
            else:
                yield found, gr.skip(), gr.skip()

    run_on_model(button, look, [image, folder], [status, neighbors, maps], stop, status)
