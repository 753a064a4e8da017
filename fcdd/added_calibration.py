"""A calibration with more nominal images: those that it had, of which only distributions are kept, and new ones.

The promise is that of all of them together: p-values of the union of both samples hold for an image that is
exchangeable with that union. Scores are kept one by one, so thresholds are exact; what is compared for drift is joined
from quantiles where there were more than `calibration.SKETCH_VALUES` values.
"""

from collections import Counter

import numpy as np
import numpy.typing as npt

from fcdd.calibration import (
    MAX_GROUPS,
    MIN_GROUP,
    STATISTICS,
    Calibration,
    Nominal,
    Reference,
    Score,
    rounded,
    sketch,
)
from fcdd.errors import ConfigError


def add(before: Calibration, nominal: Nominal, score: Score, *, alpha: float, decide_by_group: bool) -> Calibration:
    """`before` with the N images of `nominal`, which must have been scored with the same weights.

    `score` is the statistic that `nominal.scores` and `before` are of. A group that `before` did not keep apart has
    the new images alone, if they are MIN_GROUP: which of the others are of it nobody knows.

    Raises ConfigError for too few images for `alpha`, for a calibration that does not know the maxima of its maps, or
    as `Nominal.check`.
    """
    nominal.check()
    added = Reference.fit(nominal)
    shared = {score, *before.pooled.other_scores} & {score, *added.other_scores}
    if "maximum" not in shared:
        raise ConfigError(
            f"this bundle knows nominal images by the {score} of their maps only, so that none can be added; calibrate "
            "with the new ones alone"
        )
    pooled = _joined(before.pooled, added)
    names, counts = np.array(nominal.groups, dtype=object), Counter(nominal.groups)
    groups = dict(before.groups)
    for group in (each for each, count in counts.items() if each and (each in groups or count >= MIN_GROUP)):
        new = Reference.fit(nominal.where(names == group))
        groups[group] = _joined(groups[group], new) if group in groups else new
    largest = sorted(groups, key=lambda group: (-groups[group].num_images, group))[:MAX_GROUPS]
    kept = {group: groups[group] for group in sorted(largest)}
    joined = before.model_copy(update={"pooled": pooled, "groups": kept})
    return joined.switched(score, score, alpha=alpha, decide_by_group=decide_by_group)  # thresholds of all together


def _joined(a: Reference, b: Reference) -> Reference:
    """What both know of their images together."""
    total = a.num_images + b.num_images
    scores = np.array([*a.scores, *b.scores])
    order = np.argsort(scores, kind="stable")
    others = {
        name: tuple(np.array([*values, *b.other_scores[name]])[order].tolist())
        for name, values in a.other_scores.items()
        if name in b.other_scores
    }
    means, deviations = ([np.array(getattr(each, what)) for each in (a, b)] for what in ("map_mean", "map_std"))
    shares = [each.num_images / total for each in (a, b)]
    mean = sum(share * each for share, each in zip(shares, means, strict=True))
    within = sum(share * each**2 for share, each in zip(shares, deviations, strict=True))
    between = sum(share * (each - mean) ** 2 for share, each in zip(shares, means, strict=True))
    return Reference(
        num_images=total,
        scores=tuple(scores[order].tolist()),
        other_scores=others,
        statistics={
            name: tuple(sketch(np.concatenate([_all_of(each, name) for each in (a, b)])).tolist())
            for name in STATISTICS
        },
        formats=dict(sorted((Counter(a.formats) + Counter(b.formats)).items())),
        map_mean=tuple(tuple(rounded(row)) for row in np.asarray(mean)),
        map_std=tuple(tuple(rounded(row)) for row in np.sqrt(np.asarray(within + between))),
    )


def _all_of(reference: Reference, name: str) -> npt.NDArray[np.float64]:
    """A statistic of every image (N,), ascending: from its quantiles where only those are kept."""
    values = np.array(reference.statistics[name])
    if len(values) == reference.num_images:
        return values
    ranks = np.linspace(0, len(values) - 1, reference.num_images)
    return np.asarray(np.interp(ranks, np.arange(len(values)), values), np.float64)
