"""Training images as a data set: decoded to memory once, or read from the store whenever one is needed."""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fcdd import augmentation
from fcdd.cropping import box_of
from fcdd.errors import ConfigError, ImageError
from fcdd.images import View
from fcdd.io import isolation, storage
from fcdd.io.storage import ObjectInfo
from fcdd.paper import datasets
from fcdd.supervision import HeldOut
from jobs.sources import fetching
from jobs.sources.fetching import Failure, ImageSet
from jobs.timing import progress

log = logging.getLogger(__name__)


class StoredImages:
    """Listed objects as a data set that reads images one by one and keeps nothing (`supervision.ImageReader`).

    `held_out` are digests of pixels: such a picture raises HeldOut, under whatever name.
    """

    failures: Sequence[str] = ()
    copies: Sequence[str] = ()

    def __init__(self, infos: Sequence[ObjectInfo], view: View, held_out: frozenset[str] = frozenset()) -> None:
        self._infos, self._view, self._held_out = infos, view, held_out
        self._known_copies = set[int]()  # a camera that stood still leaves many in a row: they are not read again

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._infos)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (H,W,C). Raises ImageError naming the object when it cannot be read, HeldOut when it is held out."""
        if index in self._known_copies:
            raise HeldOut(self._infos[index].uri)
        loaded = fetching.fetch_and_decode(self._infos[index], self._view)
        if isinstance(loaded, Failure):
            raise _named(loaded, self._infos[index])
        if is_held_out(loaded.pixels, self._held_out):
            self._known_copies.add(index)
            raise HeldOut(self._infos[index].uri)
        return loaded.pixels

    def sample(self, count: int) -> npt.NDArray[np.uint8]:
        """Up to `count` images spread evenly, (N,H,W,C), without those that are held out or cannot be read.

        Raises ConfigError when there is none.
        """
        chosen = np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64)
        pixels = fetching.load_set([self._infos[index] for index in chosen], self._view).pixels
        usable = [index for index, image in enumerate(pixels) if not is_held_out(image, self._held_out)]
        if not usable:
            raise ConfigError(_ALL_COPIES)
        return pixels if len(usable) == len(pixels) else pixels[usable]


class LoadedImages:
    """Listed objects decoded to memory; what cannot be read, or is among the `held_out`, raises when it is read.

    `held_out` are digests of pixels. `failures` names what could not be read, `copies` what is held out under another
    name. Raises ConfigError when more than a tenth cannot be read.
    """

    def __init__(self, infos: Sequence[ObjectInfo], view: View, held_out: frozenset[str]) -> None:
        self._infos, self._failed, depths = infos, dict[int, Failure](), fetching.Depths(view)
        # Shared memory: processes that draw samples do not copy it. A list beside it would take as much again, and so
        # would leaving rows out later: usable images come one after the other from the start.
        self._pixels = torch.empty((len(infos), *view.size, view.channels), dtype=torch.uint8).share_memory_()
        self._rows = np.full(len(infos), -1)
        self._usable = 0
        fetched = fetching.fetch_each(infos, view)
        for index, image in enumerate(progress.told(fetched, len(infos), "reading images", log)):
            if isinstance(image, Failure):
                self._failed[index] = image
            elif not is_held_out(image.pixels, held_out):
                self._pixels.numpy()[self._usable] = image.pixels
                self._rows[index] = self._usable
                self._usable += 1
                depths.add(image)
        depths.warn()
        errors = {index: _named(failure, infos[index]) for index, failure in self._failed.items()}
        for error in errors.values():
            log.warning("left out %s", error)
        if len(errors) > fetching.MAX_UNREADABLE_SHARE * len(infos) or len(errors) == len(infos):
            raise ConfigError(f"{len(errors)} of {len(infos)} images cannot be read; see the log above")
        copies = [info.uri for index, info in enumerate(infos) if self._rows[index] < 0 and index not in errors]
        for uri in copies:
            log.info("not trained on: %s", HeldOut(uri))
        if not self._usable:
            raise ConfigError(_ALL_COPIES)
        self.failures, self.copies = [str(error) for error in errors.values()], [str(HeldOut(uri)) for uri in copies]

    def __len__(self) -> int:
        """Number of objects, unreadable ones included."""
        return len(self._rows)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (H,W,C). Raises ImageError for one that cannot be read, HeldOut for one that is held out."""
        if index in self._failed:
            raise _named(self._failed[index], self._infos[index])
        if self._rows[index] < 0:
            raise HeldOut(self._infos[index].uri)
        pixels: npt.NDArray[np.uint8] = self._pixels[self._rows[index]].numpy()
        return pixels

    def sample(self, count: int) -> npt.NDArray[np.uint8]:
        """All usable images, (N,H,W,C), without a copy: there is no need to choose, they are in memory."""
        pixels: npt.NDArray[np.uint8] = self._pixels.numpy()[: self._usable]
        return pixels

    @property
    def usable(self) -> list[int]:
        """The indices of the images that `sample` returns."""
        return np.flatnonzero(self._rows >= 0).tolist()


_ALL_COPIES = "every training image is also held out under another name; give more images"


def is_held_out(pixels_hwc: npt.NDArray[np.uint8], held_out: frozenset[str]) -> bool:
    """Whether a picture is among those of which these are the digests."""
    return bool(held_out) and pixel_digest(pixels_hwc) in held_out


def without(loaded: ImageSet, infos: Sequence[ObjectInfo], held_out: frozenset[str]) -> ImageSet:
    """Images loaded from `infos`, without those pictures of which `held_out` are the digests."""
    kept = [index for index, image in enumerate(loaded.pixels) if not is_held_out(image, held_out)]
    if len(kept) == len(loaded.pixels):
        return loaded
    for index in sorted(set(range(len(loaded.pixels))) - set(kept)):
        log.info("not calibrated on: %s", HeldOut(infos[loaded.positions[index]].uri))
    return ImageSet(
        loaded.pixels[kept], loaded.positions[kept], loaded.statistics[kept], [loaded.formats[index] for index in kept]
    )


def pixel_digest(pixels_hwc: npt.NDArray[np.uint8]) -> str:
    """What equal pictures have in common, whatever their names and files."""
    return hashlib.sha256(np.ascontiguousarray(pixels_hwc).tobytes()).hexdigest()


def _named(failure: Failure, info: ObjectInfo) -> ImageError:
    return ImageError(failure.error.reason, f"{failure.error.detail} ({info.uri})")


def read_anomalies(
    infos: Sequence[ObjectInfo], mask_infos: Sequence[ObjectInfo | None], view: View
) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.bool_]]]:
    """Labelled anomalies (H,W,C) and masks (H,W) at the network's size; without a mask all of an image is anomalous.

    Raises ConfigError that names an image or a mask that cannot be used.
    """
    pixels, masks = [], []
    for info, mask_info in zip(infos, mask_infos, strict=True):
        size = view.size
        original, image = read_both(info, view)
        mask = np.ones(size, np.bool_)
        if mask_info is not None:
            whole = datasets.check_mask(read_grey(mask_info), original, mask_info.uri)
            top, left, bottom, right = box_of(view.crop, original)
            mask = augmentation.nearest(whole[top:bottom, left:right], size)
            if not mask.any():
                raise ConfigError(f"nothing is left of the mask {mask_info.uri} at {size[1]}x{size[0]} pixels")
        pixels.append(image)
        masks.append(mask)
    return pixels, masks


def read_both(info: ObjectInfo, view: View) -> tuple[tuple[int, int], npt.NDArray[np.uint8]]:
    """Original (height, width) and pixels (H,W,C) of an image that has to be readable; ConfigError if it is not."""
    loaded = fetching.fetch_and_decode(info, view)
    if isinstance(loaded, Failure):
        raise ConfigError(f"cannot read the labelled anomaly {info.uri}: {loaded.error}")
    return (loaded.height, loaded.width), loaded.pixels


def read_grey(info: ObjectInfo) -> npt.NDArray[np.uint8]:
    """A mask's grey levels (H,W) at full size. Raises ConfigError when it cannot be read."""
    try:
        return np.asarray(isolation.picture(storage.read_checked(info), mode="L"))
    except ImageError as error:
        raise ConfigError(f"cannot read the mask {info.uri}: {error}") from error
