"""Training images as a data set: decoded to memory once, or read from the store whenever one is needed."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fcdd import storage
from fcdd.errors import ConfigError, ImageError
from fcdd.storage import ObjectInfo
from jobs import _images
from jobs._images import Failure

log = logging.getLogger(__name__)


class StoredImages:
    """Listed objects as a data set that reads one image when asked and keeps nothing (`supervision.ImageReader`)."""

    failures: Sequence[str] = ()
    copies: Sequence[str] = ()

    def __init__(self, infos: Sequence[ObjectInfo], size: tuple[int, int], channels: int) -> None:
        self._infos, self._size, self._channels = infos, size, channels

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._infos)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (H,W,C). Raises ImageError naming the object when it cannot be read."""
        loaded = _images.fetch_and_decode(self._infos[index], self._size, self._channels)
        if isinstance(loaded, Failure):
            raise _named(loaded, self._infos[index])
        return loaded.pixels

    def sample(self, count: int) -> npt.NDArray[np.uint8]:
        """Up to `count` readable images spread evenly, (N,H,W,C). Raises ConfigError when none can be read."""
        chosen = np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64)
        return _images.load_set([self._infos[index] for index in chosen], self._size, self._channels).pixels


class LoadedImages:
    """Listed objects decoded to memory; what cannot be read, or is among the `held_out`, raises when asked for.

    `held_out` are digests of pixels. `failures` names what could not be read, `copies` what is held out under another
    name. Raises ConfigError when more than a tenth cannot be read.
    """

    def __init__(
        self, infos: Sequence[ObjectInfo], size: tuple[int, int], channels: int, held_out: frozenset[str]
    ) -> None:
        errors, copies, faint = dict[int, ImageError](), dict[int, ImageError](), 0
        # Shared memory: processes that draw samples do not copy it. A list beside it would take as much again.
        self._pixels = torch.empty((len(infos), *size, channels), dtype=torch.uint8).share_memory_()
        for index, image in enumerate(_images.fetch_each(infos, size, channels)):
            if isinstance(image, Failure):
                errors[index] = _named(image, infos[index])
            elif held_out and pixel_digest(image.pixels) in held_out:
                copies[index] = ImageError("changed", f"same picture as a calibration image ({infos[index].uri})")
            else:
                self._pixels.numpy()[index] = image.pixels
                faint += image.is_faint
        _images.warn_of_faint(faint, len(infos) - len(errors) - len(copies))
        for error in errors.values():
            log.warning("left out %s", error)
        for index in copies:
            log.info("not trained on, the same picture is held out: %s", infos[index].uri)
        if len(errors) > _images.MAX_UNREADABLE_SHARE * len(infos) or len(errors) == len(infos):
            raise ConfigError(f"{len(errors)} of {len(infos)} images cannot be read; see the log above")
        if len(errors) + len(copies) == len(infos):
            raise ConfigError("every training image is also among the calibration images; give more images")
        self.failures, self.copies = ([str(error) for error in each.values()] for each in (errors, copies))
        self._errors = errors | copies

    def __len__(self) -> int:
        """Number of objects, unreadable ones included."""
        return len(self._pixels)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (H,W,C). Raises ImageError for one that is left out."""
        if index in self._errors:
            raise self._errors[index]
        pixels: npt.NDArray[np.uint8] = self._pixels[index].numpy()
        return pixels

    def sample(self, count: int) -> npt.NDArray[np.uint8]:
        """All usable images, (N,H,W,C): there is no need to choose, they are in memory."""
        pixels: npt.NDArray[np.uint8] = self._pixels.numpy()
        return np.delete(pixels, list(self._errors), 0) if self._errors else pixels


def pixel_digest(pixels_hwc: npt.NDArray[np.uint8]) -> str:
    """What equal pictures have in common, whatever their names and files."""
    return hashlib.sha256(np.ascontiguousarray(pixels_hwc).tobytes()).hexdigest()


def _named(failure: Failure, info: ObjectInfo) -> ImageError:
    return ImageError(failure.error.reason, f"{failure.error.detail} ({info.uri})")


def read_both(info: ObjectInfo, size: tuple[int, int], channels: int) -> tuple[tuple[int, int], npt.NDArray[np.uint8]]:
    """Original (height, width) and pixels (H,W,C) of an image that has to be readable; ConfigError if it is not."""
    loaded = _images.fetch_and_decode(info, size, channels)
    if isinstance(loaded, Failure):
        raise ConfigError(f"cannot read the labelled anomaly {info.uri}: {loaded.error}")
    return (loaded.height, loaded.width), loaded.pixels


def read_grey(info: ObjectInfo) -> npt.NDArray[np.uint8]:
    """A mask's grey levels (H,W) at full size. Raises ConfigError when it cannot be read."""
    try:
        return np.asarray(_images.picture(storage.read_checked(info), mode="L"))
    except ImageError as error:
        raise ConfigError(f"cannot read the mask {info.uri}: {error}") from error
