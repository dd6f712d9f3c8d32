"""What training makes of an image: a square, cropped, mirrored and recolored at random."""

import math

import numpy as np
from PIL import Image, ImageOps

from var.data.config import DataConfig, JitterConfig
from var.utils.images import crop_and_resize, resize_and_crop
from var.utils.torchvision_compat import import_torchvision

ASPECTS = (math.log(3 / 4), math.log(4 / 3))  # of resized crops


def augment_image(image: Image.Image, config: DataConfig, side: int, rng: np.random.Generator) -> Image.Image:
    """Crop a square of an RGB image, perhaps mirror it and change its colors, as the recipe says."""
    x, y, mirror = rng.random(3)
    margin = round(config.pad * min(image.size))
    short_side = round(round(config.resize * side) * (1 + 2 * margin / min(image.size)))
    image = ImageOps.expand(image, margin, "white") if margin else image
    if config.crop == "resized":
        low, high = config.crop_area
        image = crop_and_resize(image, side, rng.uniform(low, high), math.exp(rng.uniform(*ASPECTS)), (x, y))
    else:
        image = resize_and_crop(image, short_side, side, (x, y) if config.crop == "random" else (0.5, 0.5))
    if config.flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image if config.jitter is None else jitter_colors(image, config.jitter, rng)


def jitter_colors(image: Image.Image, config: JitterConfig, rng: np.random.Generator) -> Image.Image:
    """The image with its colors changed, or as it is."""
    import_torchvision()
    from torchvision.transforms import functional

    changes = (
        (functional.adjust_brightness, rng.uniform(1 - config.brightness, 1 + config.brightness)),
        (functional.adjust_contrast, rng.uniform(1 - config.contrast, 1 + config.contrast)),
        (functional.adjust_saturation, rng.uniform(1 - config.saturation, 1 + config.saturation)),
        (functional.adjust_hue, rng.uniform(-config.hue, config.hue)),
    )
    order = rng.permutation(len(changes))
    if rng.random() >= config.probability:
        return image
    for i in order:
        change, amount = changes[i]
        image = change(image, amount)
    return image
