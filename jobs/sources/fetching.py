"""From listed objects to decoded images, many requests in flight: shared by training and scoring."""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fcdd import images
from fcdd.calibration import STATISTICS
from fcdd.depth import DEEPEST
from fcdd.errors import ConfigError, FCDDError, ImageError
from fcdd.images import DecodedImage, Limits, View
from fcdd.io import isolation, storage
from fcdd.io.isolation import IsolatedDecoder
from fcdd.io.storage import ObjectInfo
from fcdd.jpeg_files import JpegFile
from jobs.shell.look_ahead import ahead
from jobs.sources import listing
from jobs.sources.locations import Locations
from jobs.timing import progress

# Enough to hide the latency of an object store (docs/facts.md: no gain from 16 to 64).
REQUESTS_IN_FLIGHT = 16
# Encoded images that are fetched or being fetched ahead of the decoder: so many, and so many bytes if they are large.
_AHEAD, _AHEAD_BYTES = 2 * REQUESTS_IN_FLIGHT, 256 * 1024**2
# Taken for the size of an image that is to be looked up.
_ASSUMED_BYTES = 4 * 1024**2
# More unreadable training images than this share means the wrong prefix, not a few bad files.
MAX_UNREADABLE_SHARE = 0.1
# So many failures of the store and not one success: it is gone, or the credentials are.
STORE_IS_GONE = 16

log = logging.getLogger(__name__)


class StoreUnavailable(FCDDError):
    """The store of the images refuses or breaks off everything."""


class Failure(NamedTuple):
    """Why one image has no pixels."""

    stage: str
    error: ImageError


class ImageSet(NamedTuple):
    """Readable images in memory: pixels (N,H,W,C) uint8, positions in the list (N,).

    `statistics` are (N, len(calibration.STATISTICS)).
    """

    pixels: npt.NDArray[np.uint8]
    positions: npt.NDArray[np.int64]
    statistics: npt.NDArray[np.float32]
    formats: list[str]


class Fetched(NamedTuple):
    """What an image was listed or found as, and its encoded bytes, or why there are none."""

    info: ObjectInfo
    data: bytes | Failure


@dataclass
class Loaded:
    """Objects and their images or failures, in the order given; seconds waited for the store and decoder."""

    infos: list[ObjectInfo]
    results: list[DecodedImage | Failure | JpegFile]
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


def load_isolated(
    infos: Sequence[ObjectInfo],
    decoder: IsolatedDecoder,
    limits: Limits,
    allowed: Locations | None = None,
    leave: Callable[[bytes], JpegFile | None] | None = None,
) -> Loaded:
    """Fetch and decode, many requests in flight, decoding apart from this process; never raises for a bad image.

    What lies outside of `allowed` is not opened: manifests and tables are data. None: whatever was listed. What `leave`
    returns is not decoded. Raises StoreUnavailable when the store fails again and again, and never succeeds.
    """
    loaded = Loaded(list(infos), [Failure("fetch", ImageError("fetch_failed", "not tried"))] * len(infos))
    order: list[int] = []

    def readable() -> Iterator[bytes]:
        gone = 0
        for index, (info, fetched) in enumerate(_fetch_ahead(infos, limits, allowed, loaded)):
            loaded.infos[index] = info
            if isinstance(fetched, Failure):
                loaded.results[index] = fetched
                gone += fetched.error.reason in ("forbidden", "fetch_failed")
                if gone >= STORE_IS_GONE and gone == index + 1:
                    raise StoreUnavailable(
                        f"the first {gone} images from {storage.spelled(infos[0].uri)} on cannot be read, for the last "
                        f"one: {fetched.error}; check the store and the credentials, then run the same command again"
                    )
            elif leave and (file := leave(fetched)):
                loaded.results[index] = file
            else:
                order.append(index)
                yield fetched

    started = time.perf_counter()
    for position, result in enumerate(decoder.decode_each(readable())):
        loaded.results[order[position]] = result if isinstance(result, DecodedImage) else Failure("decode", result)
    loaded.decode_seconds = time.perf_counter() - started - loaded.fetch_seconds
    return loaded


def _fetch_ahead(
    infos: Sequence[ObjectInfo], limits: Limits, allowed: Locations | None, loaded: Loaded
) -> Iterator[Fetched]:
    """Fetched objects in order; not more than `_AHEAD` of them, or `_AHEAD_BYTES`, wait in memory."""
    pending = ahead(
        lambda info: _fetchers().submit(_fetch, info, limits, allowed),
        infos,
        _AHEAD,
        weigh=lambda info: _ASSUMED_BYTES if listing.is_to_look_up(info.size) else info.size,
        max_weight=_AHEAD_BYTES,
        discard=Future.cancel,
    )
    for _, future in pending:
        yield _waited(future, loaded)


@functools.cache
def _fetchers() -> ThreadPoolExecutor:
    """The same threads for all shards of a worker."""
    return ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="fetch")


def _waited(future: "Future[Fetched]", loaded: Loaded) -> Fetched:
    started = time.perf_counter()
    result = future.result()
    loaded.fetch_seconds += time.perf_counter() - started
    return result


def _fetch(info: ObjectInfo, limits: Limits, allowed: Locations | None) -> Fetched:
    stage = "list"
    try:
        if allowed:
            allowed.check(info.uri)
        if listing.is_to_look_up(info.size):
            info = storage.stat_checked(info.uri)
        images.check_size(info.size, limits)
        stage = "fetch"
        return Fetched(info, storage.read_checked(info))
    except ImageError as error:
        return Fetched(info._replace(size=listing.last_known(info.size)), Failure(stage, error))


def fetch_and_decode(info: ObjectInfo, view: View) -> DecodedImage | Failure:
    """One image, decoded apart from this process, or why not; never raises for a bad image."""
    stage = "fetch"
    try:
        data = storage.read_checked(info)
        stage = "decode"
        return isolation.shared_pool(view).decode(data)
    except ImageError as error:
        return Failure(stage, error)


def fetch_each(infos: Iterable[ObjectInfo], view: View) -> Iterator[DecodedImage | Failure]:
    """`fetch_and_decode` of every object, in order; only a few are loaded ahead."""
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        for _, future in ahead(lambda info: pool.submit(fetch_and_decode, info, view), infos, _AHEAD):
            yield future.result()


def fetch_all(infos: Iterable[ObjectInfo], view: View) -> list[DecodedImage | Failure]:
    """`fetch_each`, all together."""
    return list(fetch_each(infos, view))


def load_set(infos: Sequence[ObjectInfo], view: View) -> ImageSet:
    """All readable images in memory; the others are named in the log.

    Raises ConfigError when more than a tenth is unreadable.
    """
    loaded = list(progress.told(fetch_each(infos, view), len(infos), "reading images", log))
    good = [image for image in loaded if isinstance(image, DecodedImage)]
    for info, failure in zip(infos, loaded, strict=True):
        if isinstance(failure, Failure):
            log.warning("left out %s: %s", storage.spelled(info.uri), failure.error)
    check_readable(len(good), len(infos))
    depths = Depths(view)
    for image in good:
        depths.add(image)
    depths.warn()
    return ImageSet(
        np.stack([image.pixels for image in good]),
        np.flatnonzero([isinstance(image, DecodedImage) for image in loaded]),
        np.array([[getattr(image, name) for name in STATISTICS] for image in good], np.float32),
        [image.format for image in good],
    )


class Depths:
    """Whether files of 16 bits fit the full scale that they are read with."""

    def __init__(self, view: View) -> None:
        self._full_scale = view.full_scale or DEEPEST
        self._faint = self._beyond = self._all = 0

    def add(self, image: DecodedImage) -> None:
        """Count an image."""
        self._all += 1
        self._faint += image.is_faint
        self._beyond += image.peak > self._full_scale

    def warn(self) -> None:
        """Say what does not fit."""
        if self._faint:
            log.warning(
                "%d of %d images use less than an eighth of the full scale of %g that white is: they are nearly black; "
                "--full-scale 4095 is that of cameras of 12 bits",
                *(self._faint, self._all, self._full_scale),
            )
        if self._beyond:
            log.warning(
                "%d of %d images have values beyond the full scale of %g: what is brighter is white; give a larger "
                "--full-scale",
                *(self._beyond, self._all, self._full_scale),
            )


def check_readable(readable: int, of: int) -> None:
    """Raises ConfigError when more than a tenth of the images is unreadable."""
    if readable < (1 - MAX_UNREADABLE_SHARE) * of or not readable:
        raise ConfigError(f"{of - readable} of {of} images cannot be read; see the log above")
