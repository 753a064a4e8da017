"""Where the anomalous half of a training comes from: synthetic, outlier exposure, or a few real anomalies.

A source takes a nominal image and a generator and returns an anomalous image with its mask; sources that bring
images of their own ignore the nominal one. Official names (METHOD section 4): outlier exposure and `noise_images` are
"noise", `malformed` with whole masks "malformed_normal", with exact ones "malformed_normal_gt".

Shapes: N images, H x W pixels, C channels.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fcdd import noise, outliers
from fcdd.errors import ConfigError, ImageError

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Unit = npt.NDArray[np.float32]  # in [0,1]
AnomalySource = Callable[[Pixels, np.random.Generator], tuple[Pixels, Mask]]

log = logging.getLogger(__name__)


class HeldOut(ImageError):
    """A readable picture that must not be trained on: the same one, under whatever name, is held out."""

    def __init__(self, name: str) -> None:
        super().__init__("changed", f"the same picture is held out ({name})")


class ImageReader(Protocol):
    """A data set of images to draw from: reads image `index` when it is needed and keeps nothing."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pixels:
        """Image (H,W,C) uint8. Raises ImageError when it cannot be read, HeldOut when it must not be drawn."""
        ...


class TrainingSet(NamedTuple):
    """Images of one or many sizes, and, if some are anomalous, labels (N,) 0 nominal / 1 anomalous and masks (H,W)."""

    images: ImageReader
    labels: npt.NDArray[np.int64] | None = None
    masks: Sequence[Mask] | None = None


def malformed(image_hwc: Pixels, generator: np.random.Generator, *, mode: str) -> tuple[Pixels, Mask]:
    """The image with published noise added, and the mask (H,W) of what changed; redrawn until something did."""
    while True:
        image, mask = noise.malform(image_hwc, noise.MODES[mode](_shape(image_hwc), generator))
        if mask.any():
            return image, mask


def noise_images(image_hwc: Pixels, generator: np.random.Generator, *, mode: str) -> tuple[Pixels, Mask]:
    """A noise image of the same size, all of it anomalous."""
    return noise.as_image(noise.MODES[mode](_shape(image_hwc), generator)), np.ones(image_hwc.shape[:2], np.bool_)


def _shape(image_hwc: Pixels) -> tuple[int, int, int]:
    height, width, channels = image_hwc.shape
    return height, width, channels


# By the names of `fcdd train --anomalies`; masks mark what changed, soft rims left out.
SYNTHETIC: dict[str, AnomalySource] = {
    "mixed": outliers.mixed,
    "defects": outliers.defects,
    "cutpaste": outliers.cutpaste,
    "perlin": outliers.perlin,
    **{mode: functools.partial(malformed, mode=mode) for mode in noise.MODES},
}


@dataclass(frozen=True, slots=True)
class WholeMask:
    """Another source with its images anomalous everywhere: the official "malformed_normal"."""

    source: AnomalySource

    def __call__(self, image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
        """An anomalous image and a mask of ones."""
        image, mask = self.source(image_hwc, generator)
        return image, np.ones_like(mask)


class OutlierExposure:
    """Images of other things, drawn with replacement and read one by one: nothing is kept in memory.

    `limit`: so many images, chosen once by `seed`, are all that is ever drawn (METHOD: `--oe-limit`). An image that
    cannot be read is named in the log and another one drawn; the official code trains on a black image instead.
    """

    def __init__(self, images: ImageReader, *, limit: int | None = None, seed: int = 0) -> None:
        """Raises ConfigError when there are no images."""
        if not len(images):
            raise ConfigError("there are no images for outlier exposure")
        self.images = images
        self._chosen = None if limit is None else np.random.default_rng(seed).permutation(len(images))[:limit]

    def __call__(self, image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
        """An outlier, all of it anomalous. Raises ConfigError when ten draws in a row cannot be read."""
        for _ in range(10):
            index = int(
                generator.integers(len(self.images)) if self._chosen is None else generator.choice(self._chosen)
            )
            try:
                image = self.images[index]
            except ImageError as error:
                log.warning("left out outlier %d: %s", index, error)
                continue
            return image, np.ones(image.shape[:2], np.bool_)
        raise ConfigError("ten outlier-exposure images in a row cannot be read; see the log above")


@dataclass(frozen=True, slots=True)
class RealAnomalies:
    """A few labelled anomalies, drawn with replacement (semi-supervised); without masks all of an image is anomalous.

    Take the images out of the test set: the official code leaves them in. Raises ConfigError for masks that are not
    those of the images, or in which nothing is anomalous: the pixels of a defect would be trained on as nominal.
    """

    images: Sequence[Pixels]
    masks: Sequence[Mask] | None = None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ConfigError("there are no labelled anomalies")
        if self.masks is not None and len(self.masks) != len(self.images):
            raise ConfigError(
                f"{len(self.images)} labelled anomalies but {len(self.masks)} masks; give each one, or none"
            )
        for index, mask in enumerate(self.masks or ()):
            if mask.shape != self.images[index].shape[:2]:
                raise ConfigError(
                    f"the mask of labelled anomaly {index} has {_by(mask.shape)} pixels, its image "
                    f"{_by(self.images[index].shape)}; a mask must have its image's size"
                )
            if not mask.any():
                raise ConfigError(f"nothing is anomalous in the mask of labelled anomaly {index}; mark its defect")

    def __call__(self, image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
        """One of the anomalies and its mask."""
        index = int(generator.integers(len(self.images)))
        image = self.images[index]
        return image, np.ones(image.shape[:2], np.bool_) if self.masks is None else self.masks[index]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of several sources for each sample, with the given chances."""

    sources: Sequence[AnomalySource]
    chances: Sequence[float]

    def __call__(self, image_hwc: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
        """An anomaly of one source."""
        return self.sources[generator.choice(len(self.sources), p=self.chances)](image_hwc, generator)


def offline(images: ImageReader, source: AnomalySource, *, seed: int) -> TrainingSet:
    """As many anomalies as nominal images, generated once and appended (official `--offline-supervision`)."""
    nominal = [images[index] for index in range(len(images))]
    anomalies = [source(image, np.random.default_rng((seed, index))) for index, image in enumerate(nominal)]
    return TrainingSet(
        [*nominal, *(image for image, _ in anomalies)],
        np.repeat([0, 1], len(images)),
        [*(np.zeros(image.shape[:2], np.bool_) for image in nominal), *(mask for _, mask in anomalies)],
    )


def malformed_offline(image_hwc: Pixels, generator: np.random.Generator, *, mode: str) -> tuple[Pixels, Mask]:
    """`malformed` by the sign rule of the official offline generation; redrawn until something changed."""
    while True:
        image, mask = noise.malform_offline(image_hwc, noise.MODES[mode](_shape(image_hwc), generator))
        if mask.any():
            return image, mask


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
