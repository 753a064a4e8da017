"""What the data decide where the options leave it open: the size of the network's input, the number of variants."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from fcdd import depth, networks, sizing, variants
from fcdd.cropping import Crop, box_of
from fcdd.errors import ConfigError, ImageError
from fcdd.images import DecodedImage, View
from fcdd.io.storage import ObjectInfo
from fcdd.whitening import Statistics
from jobs.sources import fetching
from jobs.sources.fetching import Failure
from jobs.training.settings import TrainSettings, crop_of, size_of

log = logging.getLogger(__name__)

# Images that are looked at: of more, so many spread evenly over the list.
_SIZED, _DEEP, _COMPARED = 16, 64, 160
_BATCH = 16
# Whole cells take away a little.
_TOO_FEW = 0.9
# Ratios of sides that differ by more are another shape.
_STRETCHED = 1.1
_PUBLISHED = "224"
# Coarse cells have twice the pixels of fine ones.
_FINER = 2


def with_image_size(settings: TrainSettings, listed: Sequence[ObjectInfo]) -> TrainSettings:
    """The options with a size of the input: for pretrained trunks that of the images (`fcdd.sizing`), else 224 pixels.

    Raises ConfigError when none of the images that are looked at can be read.
    """
    if networks.parse(settings.network) is None:
        return settings.model_copy(update={"image_size": settings.image_size or _PUBLISHED})
    sizes = _sizes(crop_of(settings), _looked_at(settings, listed))
    _warn_of_shapes(sizes)
    own = sorted(sizes, key=lambda size: (size[0] * size[1], size))[len(sizes) // 2]
    height, width = (
        sizing.input_size(sizes, settings.smallest_defect)
        if settings.image_size is None
        else sizing.whole_cells(size_of(settings))
    )
    has = (settings.smallest_defect or 0) * height / own[0]
    if settings.smallest_defect and settings.image_size is None and has < _TOO_FEW * sizing.PER_DEFECT:
        log.warning(
            "a defect of %g pixels has %.1f at that size, %d are asked for: it may be missed",
            *(settings.smallest_defect, has, sizing.PER_DEFECT),
        )
    _tell(own, (height, width), is_given=(settings.image_size or settings.smallest_defect) is not None)
    return settings.model_copy(update={"image_size": f"{height}x{width}"})


def _warn_of_shapes(sizes: Sequence[tuple[int, int]]) -> None:
    """Images of several shapes are a few cameras, which a crop or a bundle for each would see as they are."""
    by_shape = sorted(sizes, key=lambda size: size[1] / size[0])
    narrowest, widest = by_shape[0], by_shape[-1]
    if widest[1] * narrowest[0] > _STRETCHED * narrowest[1] * widest[0]:
        log.warning(
            "images of different shapes, %s and %s pixels (height x width), are all stretched to one: a bundle for "
            "each (--include), or a --crop of one shape, shows them as they are",
            *(_by(narrowest), _by(widest)),
        )


def _sizes(crop: Crop | None, images: Sequence[DecodedImage]) -> list[tuple[int, int]]:
    """(height, width) of what is seen of images. Raises ConfigError for a crop that none of them has."""
    sizes, why = list[tuple[int, int]](), ""
    for image in images:
        try:
            sizes.append(box_of(crop, (image.height, image.width)).size)
        except ImageError as error:
            why = error.detail
    if not sizes:
        raise ConfigError(f"--crop fits none of the images that were looked at: {why}")
    return sizes


def with_full_scale(settings: TrainSettings, listed: Sequence[ObjectInfo]) -> TrainSettings:
    """The options with the value that is white in files of 16 bits, if a camera's depth shows in the images.

    Raises ConfigError when none of the images that are looked at can be read.
    """
    if settings.full_scale is not None:
        return settings
    peaks = [image.peak for image in _looked_at(settings, listed)]
    if any(peaks):
        peaks = [image.peak for image in _looked_at(settings, listed, _DEEP)]
    found = depth.find(peaks)
    if found is not None:
        log.info("the largest value of %d images is %g: --full-scale %g is white", len(peaks), max(peaks), found)
    return settings.model_copy(update={"full_scale": found})


def _looked_at(settings: TrainSettings, listed: Sequence[ObjectInfo], most: int = _SIZED) -> list[DecodedImage]:
    """Some of the images, whole and very small. Raises ConfigError when none can be read."""
    chosen = np.linspace(0, len(listed) - 1, min(len(listed), most)).astype(np.int64)
    view = View((sizing.MULTIPLE, sizing.MULTIPLE), 3, settings.full_scale)
    looked = fetching.fetch_all([listed[index] for index in chosen], view)
    images = [image for image in looked if isinstance(image, DecodedImage)]
    if not images:
        first = next(each for each in looked if isinstance(each, Failure))
        raise ConfigError(
            f"none of {len(looked)} images can be read, {listed[0].uri} among them ({first.error}); is it the right "
            "place?"
        )
    return images


def _tell(own: tuple[int, int], size: tuple[int, int], *, is_given: bool) -> None:
    """Log at what size images are seen, what more pixels would take, and warn of sides that are exchanged."""
    log.info("images of %s pixels are seen at %s (height x width)", *map(_by, (own, size)))
    if (own[0] - own[1]) * (size[0] - size[1]) < 0:
        log.warning("--image-size is HEIGHTxWIDTH: %s is upright where the images lie, or the reverse", _by(size))
    whole = sizing.whole_cells(own)
    times = whole[0] * whole[1] / (size[0] * size[1])
    if not is_given and times > 1.5:
        log.info(
            "defects of less than %.0f pixels of the original are easily missed by that: --smallest-defect PIXELS "
            "takes the size that yours need; to see all %s pixels takes about %.1f times as long to train and to score",
            *(sizing.PER_DEFECT * times**0.5, _by(whole), times),
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def with_variants(settings: TrainSettings, nominal_nhwc: npt.NDArray[np.uint8]) -> TrainSettings:
    """The options with the number of product variants in the name of a whitened network, if it names none.

    `nominal_nhwc` (N,H,W,C) are nominal images at the network's size.
    """
    if not networks.needs_statistics(settings.network) or networks.names_modes(settings.network):
        return settings
    number = variants.count(_mean_features(settings, nominal_nhwc), seed=settings.seed)
    if number == 1:
        return settings
    log.info("the images show %d product variants, each with statistics of its own (:1 behind --network: one)", number)
    parts = networks.parse(settings.network)
    assert parts is not None, "a network with a trunk"
    name = networks.with_statistics(settings.network, parts.statistics._replace(modes=number))
    return settings.model_copy(update={"network": name})


def with_stages(settings: TrainSettings) -> TrainSettings:
    """The options with the stages and components that fit the images in the name of a whitened network.

    The variants are counted before.
    """
    name = networks.for_size(settings.network, size_of(settings))
    if name != settings.network:
        log.info("for these images the network is %s", name)
        if settings.smallest_defect is None:  # else its size is chosen for that
            _tell_of_finer_cells(settings.network, name, size_of(settings))
    return settings.model_copy(update={"network": name})


def _tell_of_finer_cells(given: str, name: str, size: tuple[int, int]) -> None:
    """Say at what size the cells are smaller on the image, where the size made them coarse."""
    asked, found = networks.parse(given), networks.parse(name)
    if asked is None or found is None or asked.stages or asked.statistics.anywhere or found.statistics.modes > 1:
        return
    if found.statistics.is_by_stage:
        return
    sides = sizing.whole_cells(size)
    while not _has_fine_cells(given, sides):
        sides = (sides[0] - sizing.MULTIPLE, round((sides[0] - sizing.MULTIPLE) * size[1] / size[0]))
        sides = sizing.whole_cells(sides)
    # Else cells of half the pixels are larger on the image.
    if sides[0] * _FINER > size[0] and sides[1] * _FINER > size[1]:
        log.info(
            "at %s the map has cells of 16 pixels, at %s of 8, which are smaller on the image: --image-size %s may "
            "find more small defects",
            *map(_by, (size, sides, sides)),
        )


def _has_fine_cells(network: str, size: tuple[int, int]) -> bool:
    parts = networks.parse(networks.for_size(network, size))
    return parts is not None and parts.statistics.is_by_stage


@torch.inference_mode()
def _mean_features(settings: TrainSettings, nominal_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N,D), of up to `_COMPARED` images."""
    asked = networks.parse(settings.network)
    assert asked is not None, "a whitened network"
    # As a network of several variants sees them; of the head nothing is of interest.
    several = networks.with_statistics(settings.network, Statistics(2))
    stages = several if asked.stages else networks.for_size(several, size_of(settings))
    name = networks.with_statistics(stages, Statistics(anywhere=True))
    network = networks.build(name, in_channels=nominal_nhwc.shape[3], image_size=size_of(settings)).eval()
    if settings.pretrained:
        networks.load_pretrained(network, name, settings.weights)
    scaling = networks.input_normalization(settings.network)
    assert scaling is not None, "a whitened network has a trunk"
    spread = np.linspace(0, len(nominal_nhwc) - 1, min(len(nominal_nhwc), _COMPARED)).astype(np.int64)
    pixels, size = torch.from_numpy(nominal_nhwc[spread]), sizing.images_at_once(size_of(settings), _BATCH)
    network.fold_features()
    features = [network.compute_features(scaling(part)).mean((2, 3)) for part in pixels.split(size)]
    found: npt.NDArray[np.float32] = torch.cat(features).numpy()
    return found
