"""Small data sets of images, and how tests read them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from var.data.config import DataConfig
from var.data.dataset import ImageDataset, Sample, open_dataset

SIDE = 16


def picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """A smooth colored picture that no two seeds share."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes | None], labels: list[Any] | None, image: str = "image") -> None:
    columns: dict[str, Any] = {image: [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]}
    columns |= {} if labels is None else {"label": labels}
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path)


def write_folder(folder: Path, classes: dict[str, int], split: str) -> None:
    for number, (name, count) in enumerate(classes.items()):
        (folder / split / name).mkdir(parents=True)
        for i in range(count):
            picture(100 * number + i).save(folder / split / name / f"{i}.jpg")


def opened(source: object, split: Any = "train", seed: int = 0, **options: Any) -> ImageDataset:
    return open_dataset(DataConfig(source=str(source), **options), split, SIDE, seed)


def sample(dataset: ImageDataset, index: int, epoch: int = 0) -> Sample:
    found = dataset[epoch, index]
    assert isinstance(found, Sample), found
    return found


def of_one_image(folder: Path, data: bytes | None, **options: Any) -> ImageDataset:
    """As in validation: nothing stands in for an image that cannot be read."""
    for split in ("train", "validation"):
        write_parquet(folder / f"{split}.parquet", [data], [0])
    return opened(folder, "validation", **options)


def with_torn(folder: Path, torn: set[int], count: int = 12, **options: Any) -> ImageDataset:
    images = [b"torn" if i in torn else encoded(picture(i)) for i in range(count)]
    write_parquet(folder / "train.parquet", images, list(range(count)))
    return opened(folder, **options)
