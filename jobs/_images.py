"""From listed objects to decoded images, many requests in flight: shared by training and scoring."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fcdd import images, storage
from fcdd.errors import ConfigError, ImageError
from fcdd.images import DecodedImage
from fcdd.storage import ObjectInfo

# Enough to hide the latency of an object store (LIMITS: flat from 16 to 64).
REQUESTS_IN_FLIGHT = 16
# The largest allowed image takes a gigabyte while it is decoded and resized: not sixteen at once.
_DECODING = threading.Semaphore(2)
# More unreadable training images than this share means the wrong prefix, not a few bad files.
MAX_UNREADABLE_SHARE = 0.1

log = logging.getLogger(__name__)


class Failure(NamedTuple):
    """Why one image has no pixels."""

    stage: str
    error: ImageError


class ImageSet(NamedTuple):
    """Readable images in memory: pixels (N,H,W,C) uint8, brightness and contrast (N,), positions in the list (N,)."""

    pixels: npt.NDArray[np.uint8]
    brightness: npt.NDArray[np.float32]
    contrast: npt.NDArray[np.float32]
    positions: npt.NDArray[np.int64]


def fetch_and_decode(info: ObjectInfo, size: tuple[int, int], channels: int) -> DecodedImage | Failure:
    """One image, or why not; never raises for a bad image."""
    stage = "fetch"
    try:
        data = storage.read_checked(info)
        stage = "decode"
        with _DECODING:
            return images.decode(data, size=size, channels=channels)
    except ImageError as error:
        return Failure(stage, error)


def fetch_each(infos: Iterable[ObjectInfo], size: tuple[int, int], channels: int) -> Iterator[DecodedImage | Failure]:
    """`fetch_and_decode` of every object, in order, as they are asked for."""
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        yield from pool.map(lambda info: fetch_and_decode(info, size, channels), infos)


def fetch_all(infos: Iterable[ObjectInfo], size: tuple[int, int], channels: int) -> list[DecodedImage | Failure]:
    """`fetch_each`, all together."""
    return list(fetch_each(infos, size, channels))


def load_set(infos: Sequence[ObjectInfo], size: tuple[int, int], channels: int) -> ImageSet:
    """All readable images in memory; the others are named in the log.

    Raises ConfigError when more than a tenth is unreadable.
    """
    loaded = fetch_all(infos, size, channels)
    good = [image for image in loaded if isinstance(image, DecodedImage)]
    for info, failure in zip(infos, loaded, strict=True):
        if isinstance(failure, Failure):
            log.warning("left out %s: %s", info.uri, failure.error)
    if len(good) < (1 - MAX_UNREADABLE_SHARE) * len(infos) or not good:
        raise ConfigError(f"{len(infos) - len(good)} of {len(infos)} images cannot be read; see the log above")
    return ImageSet(
        np.stack([image.pixels for image in good]),
        np.array([image.brightness for image in good], np.float32),
        np.array([image.contrast for image in good], np.float32),
        np.flatnonzero([isinstance(image, DecodedImage) for image in loaded]),
    )
