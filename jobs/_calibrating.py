"""Nominal images of a calibration, as the jobs have them: measured here, or taken from a reviewed run."""

from collections.abc import Sequence

from fcdd import grouping
from fcdd.bundle import Score
from fcdd.calibration import Nominal
from fcdd.detector import Scored
from fcdd.storage import ObjectInfo
from jobs._images import ImageSet


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
    )
