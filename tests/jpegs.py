"""JPEGs of every kind that matters, small ones."""

import io

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (60, 44)) -> Image.Image:
    """Coloured clouds (width, height): smooth, so that decoders agree."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, orientation: int | None = None, **options: object) -> bytes:
    """Encoded, by Pillow's options."""
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    sink = io.BytesIO()
    image.save(sink, "JPEG", **options)
    return sink.getvalue()
