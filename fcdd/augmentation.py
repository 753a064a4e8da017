"""From a stored image to the network's input size: random chains for training, fixed ones for testing.

Source: METHOD section 4 (official `datasets/`). Images and masks move together; every random number comes from the
generator. What follows, LCN or mean and deviation, is `fcdd.normalization`.

Shapes: H x W pixels stored, H' x W' at the network, C channels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from fcdd.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Unit = npt.NDArray[np.float32]
Size = tuple[int, int]
# Ranges of the factors for brightness, contrast, saturation around 1, and of the shift of the hue in turns.
Jitter = tuple[float, float, float, float]
Light = Literal["none", "flips", "brightness", "all"]
Fit = Literal["crop", "resize", "crop_or_resize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """A training chain: geometry, colour, noise. The defaults change nothing but the size.

    `size` is the network's (height, width). `fit` says how to get there, by nearest neighbour where it resizes: "crop"
    at a random place, "resize", or one of both with equal chance ("crop_or_resize"). `shorter_side`: resized to it
    first, bilinear. `jitters`: one is drawn for each image, applied after the geometry or before it. `noise` is the
    deviation of additive Gaussian noise of images in [0,1]; `relative_noise`, as a share of the image's own deviation,
    is added to every second image, which is then cut to [0,1].
    """

    size: Size
    fit: Fit = "resize"
    padding: int = 0
    shorter_side: int | None = None
    resize_before_crop: Size | None = None
    flips: tuple[Literal["horizontal", "vertical"], ...] = ()
    gain: float = 0.0
    offset: float = 0.0
    jitters: Sequence[Jitter] = ()
    jitter_first: bool = False
    noise: float = 0.0
    relative_noise: float = 0.0

    def __call__(self, image_hwc: Pixels, mask_hw: Mask, generator: np.random.Generator) -> tuple[Unit, Mask]:
        """An image (H,W,C) uint8 and its mask (H,W) as float32 in about [0,1] (H',W',C) and mask (H',W')."""
        if self.shorter_side:
            image_hwc = shorter_side(image_hwc, self.shorter_side)
            mask_hw = nearest(mask_hw, (image_hwc.shape[0], image_hwc.shape[1]))
        image = self._jitter(image_hwc, generator) if self.jitter_first else image_hwc
        image, mask = self._geometry(image, mask_hw, generator)
        image = image if self.jitter_first else self._jitter(image, generator)
        pixels = image.astype(np.float32)
        if self.gain or self.offset:
            # Whole grey levels, as any camera's image: the network must not see that it was augmented.
            factor, shift = 1 + generator.uniform(-self.gain, self.gain), generator.uniform(-self.offset, self.offset)
            pixels = np.floor((pixels * factor + shift).clip(0, 255)).astype(np.float32)
        unit: Unit = pixels / np.float32(255)
        if self.noise:
            unit = unit + np.float32(self.noise) * generator.standard_normal(unit.shape, np.float32)
        if self.relative_noise and generator.random() < 0.5:
            deviation = np.float32(self.relative_noise) * unit.std()
            unit = (unit + deviation * generator.standard_normal(unit.shape, np.float32)).clip(0, 1)
        return unit, mask

    def _jitter(self, image: Pixels, generator: np.random.Generator) -> Pixels:
        if not self.jitters:
            return image
        return jitter(image, self.jitters[int(generator.integers(len(self.jitters)))], generator)

    def _geometry(self, image: Pixels, mask: Mask, generator: np.random.Generator) -> tuple[Pixels, Mask]:
        if self.padding:
            edges = ((self.padding, self.padding), (self.padding, self.padding))
            image, mask = np.pad(image, (*edges, (0, 0))), np.pad(mask, edges)
        crops = self.fit == "crop" or (self.fit == "crop_or_resize" and generator.random() < 0.5)
        if crops:
            if self.resize_before_crop:
                image, mask = nearest(image, self.resize_before_crop), nearest(mask, self.resize_before_crop)
            height, width = self.size
            if image.shape[0] < height or image.shape[1] < width:
                raise ConfigError(
                    f"cannot cut {width}x{height} pixels out of an image of {image.shape[1]}x{image.shape[0]}"
                )
            row = generator.integers(image.shape[0] - height + 1)
            column = generator.integers(image.shape[1] - width + 1)
            window = np.s_[row : row + height, column : column + width]
            image, mask = image[window], mask[window]
        elif self.fit in ("resize", "crop_or_resize"):
            image, mask = nearest(image, self.size), nearest(mask, self.size)
        for axis in self.flips:
            if generator.random() < 0.5:
                mirrored = np.s_[:, ::-1] if axis == "horizontal" else np.s_[::-1]
                image, mask = image[mirrored], mask[mirrored]
        return image, mask


def light(size: Size, kind: Light) -> Augmentation:
    """Our own chain: images mirrored both ways, and the brightness a camera's exposure or a lamp's age changes."""
    chain = Augmentation(size=size)
    if kind in ("flips", "all"):
        chain = replace(chain, flips=("horizontal", "vertical"))
    return replace(chain, gain=0.2, offset=15.0) if kind in ("brightness", "all") else chain


def jitter(image_hwc: Pixels, ranges: Jitter, generator: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue changed in random order, as torchvision's ColorJitter on PIL images."""
    image = Image.fromarray(image_hwc.squeeze(2) if image_hwc.shape[2] == 1 else image_hwc)
    factors = [generator.uniform(max(0, 1 - r), 1 + r) for r in ranges[:3]]
    turn = generator.uniform(-ranges[3], ranges[3])
    for step in generator.permutation(4):
        if step < 3:
            image = _ENHANCERS[step](image).enhance(factors[step])
        elif image.mode == "RGB":
            hue, saturation, value = image.convert("HSV").split()
            shifted = np.asarray(hue) + np.uint8(int(turn * 255) % 256)  # wraps around
            image = Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
    return np.asarray(image).reshape(image_hwc.shape)


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def nearest(array: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """An array (H,W,...) at `size` by nearest neighbour, by PIL's own choice of the pixel."""
    if array.shape[:2] == size:
        return array
    rows, columns = (_pil_indices(old, new) for old, new in zip(array.shape[:2], size, strict=True))
    resized: npt.NDArray[Any] = array[rows[:, None], columns[None, :]]
    return resized


@functools.lru_cache(maxsize=256)
def _pil_indices(old: int, new: int) -> npt.NDArray[np.int64]:
    """The source pixel of each target pixel, by PIL itself: no formula has its rounding for every size."""
    line = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    indices: npt.NDArray[np.int64] = np.asarray(line.resize((new, 1), Image.Resampling.NEAREST))[0].astype(np.int64)
    return indices


def shorter_side(image_hwc: Pixels, side: int) -> Pixels:
    """The image resized so that its shorter side has `side` pixels, antialiased bilinear as PIL's and torchvision's."""
    height, width = image_hwc.shape[:2]
    if height <= width:
        size = (side, max(int(side * width / height), side))
    else:
        size = (max(int(side * height / width), side), side)
    return bilinear(image_hwc, size)


def bilinear(image_hwc: Pixels, size: Size) -> Pixels:
    """The image at `size` = (height, width), antialiased bilinear."""
    image = Image.fromarray(image_hwc.squeeze(2) if image_hwc.shape[2] == 1 else image_hwc)
    resized = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return resized.reshape(*size, image_hwc.shape[2])


def grey(image_hwc: Pixels) -> Pixels:
    """The image with one channel, by PIL's weights of red, green and blue."""
    return np.asarray(Image.fromarray(image_hwc).convert("L"))[..., None]


def centre_crop(array: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """The middle of an array (H,W,...), as torchvision's CenterCrop rounds it."""
    row, column = (round((old - new) / 2) for old, new in zip(array.shape[:2], size, strict=True))
    return array[row : row + size[0], column : column + size[1]]
