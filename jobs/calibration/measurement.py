"""What calibrations are fitted to: nominal images, measured."""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fcdd import grouping
from fcdd.calibration import SCORES, STATISTICS, Nominal, Score
from fcdd.detector import Detector
from fcdd.images import DecodedImage
from fcdd.io.storage import ObjectInfo
from fcdd.scores import Scored, summarise
from jobs.sources import fetching
from jobs.sources.fetching import ImageSet
from jobs.timing import progress

# Decoded images in memory at once.
_BATCH = 64

log = logging.getLogger(__name__)


def nominal(
    scored: Scored,
    score: Score,
    images: ImageSet,
    infos: Sequence[ObjectInfo],
    roots: Sequence[str],
    group_pattern: str | None,
) -> Nominal:
    """Of readable images, scored; `infos` are those that `images` were loaded from, readable or not."""
    pattern = grouping.compile_pattern(group_pattern)
    return Nominal(
        scores=getattr(scored, score),
        peaks=scored.maximum,
        statistics=images.statistics,
        formats=images.formats,
        groups=[grouping.group_of(infos[index].uri, roots, pattern) for index in images.positions],
        maps=scored.maps,
        others=_others(scored, score),
    )


def _others(scored: Scored, score: Score) -> dict[Score, npt.NDArray[np.float32]]:
    """The statistics of the maps that are not the score."""
    return {name: getattr(scored, name) for name in SCORES if name != score}


def measure(
    trained: Detector, score: Score, infos: Sequence[ObjectInfo], roots: Sequence[str], group_pattern: str | None
) -> tuple[Nominal, list[str]]:
    """Images that were fetched and scored, a few at once, and their locations.

    Raises ConfigError when more than a tenth cannot be read.
    """
    spec = trained.spec
    maps, statistics, formats, uris = [], list[list[float]](), list[str](), list[str]()
    pending = []
    fetched = fetching.fetch_each(infos, spec.view)
    told = progress.told(zip(infos, fetched, strict=True), len(infos), "calibration", log)
    for info, image in told:
        if not isinstance(image, DecodedImage):
            log.warning("left out %s: %s", info.uri, image.error)
            continue
        pending.append(image.pixels)
        statistics.append([getattr(image, name) for name in STATISTICS])
        formats.append(image.format)
        uris.append(info.uri)
        if len(pending) == _BATCH:
            maps.append(trained.score(np.stack(pending)).maps)
            pending.clear()
    fetching.check_readable(len(uris), len(infos))
    if pending:
        maps.append(trained.score(np.stack(pending)).maps)
    scored, pattern = summarise(np.concatenate(maps), spec.ignored_cells), grouping.compile_pattern(group_pattern)
    measured = Nominal(
        scores=getattr(scored, score),
        peaks=scored.maximum,
        statistics=np.array(statistics, np.float32),
        formats=formats,
        groups=[grouping.group_of(uri, roots, pattern) for uri in uris],
        maps=scored.maps,
        others=_others(scored, score),
    )
    return measured, uris
