"""From scores to decisions with nominal images alone: conformal p-values, thresholds, and what nominal looks like.

With n held-out nominal scores c, a new nominal image exchangeable with them has
p = (1 + #{c >= s}) / (n + 1) <= alpha with probability at most alpha (Vovk et al., 2005; Bates et al., 2023).
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcdd.errors import ConfigError

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
# Statistics of an anomaly map, by the names of `fcdd.scores.Scored`: one of them is the anomaly score.
Score = Literal["mean", "maximum", "top1pct"]
SCORES: tuple[Score, ...] = get_args(Score)
# The paper's mean drowns a small defect among nominal cells (benchmarks/results/2026-11-26-default-score.md).
DEFAULT_SCORE: Score = "maximum"
# What is measured of every image beside its map; the order of `Nominal.statistics`.
STATISTICS = ("brightness", "contrast", "sharpness", "width", "height")
# Distributions of more values are kept as so many quantiles, scores apart: every one of those counts in a p-value.
SKETCH_VALUES = 1000
# A group of fewer calibration images has no reference of its own, nor have more groups than these, the largest first.
MIN_GROUP, MAX_GROUPS = 50, 64
_DIGITS = 6
# Scores of more than so many times the next lower one are strange images, and no tail.
APART = 1.5
# Strange images are looked for among so many of the largest scores: one of each.
_LARGEST_OF = 20


@dataclass(frozen=True)
class Nominal:
    """What was measured of N nominal images that were not trained on.

    `scores` and `peaks` (N,): anomaly scores and largest map values; `statistics` (N, len(STATISTICS)); formats and
    groups one per image; `maps` (N,U,V) float32; `others` the statistics of the maps that are not the score, (N,) each.
    """

    scores: Floats
    peaks: Floats
    statistics: Floats
    formats: Sequence[str]
    groups: Sequence[str]
    maps: npt.NDArray[np.float32]
    others: Mapping[Score, Floats] = field(default_factory=dict)

    def check(self) -> None:
        """Raises ConfigError for no images, scores or maps that are not finite, or scores that are all the same."""
        if not len(self.scores):
            raise ConfigError("there is not one calibration image: bring nominal images that were not trained on")
        if not (np.isfinite(self.scores).all() and np.isfinite(self.maps).all()):
            raise ConfigError("the calibration scores are not finite: training diverged; lower the learning rate")
        if len(self.scores) > 1 and np.ptp(self.scores) == 0:
            raise ConfigError(
                f"all {len(self.scores)} calibration images have the score {self.scores[0]:g}: such a detector tells "
                "nothing apart; are they all the same picture, or did the training collapse?"
            )

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Nominal":
        """The images of a mask (N,)."""
        return Nominal(
            scores=self.scores[chosen],
            peaks=self.peaks[chosen],
            statistics=self.statistics[chosen],
            formats=[kind for kind, keep in zip(self.formats, chosen, strict=True) if keep],
            groups=[group for group, keep in zip(self.groups, chosen, strict=True) if keep],
            maps=self.maps[chosen],
            others={name: values[chosen] for name, values in self.others.items()},
        )


def is_empty(value: Any) -> bool:
    """Fields that later versions added are left out where they say nothing: digests of older bundles hold."""
    return not value


class Reference(BaseModel):
    """What nominal images of one scope (all, or one group) look like: each distribution ascending."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_images: int = Field(ge=1)
    scores: tuple[float, ...] = Field(min_length=1, description="every nominal anomaly score, ascending")
    other_scores: dict[Score, tuple[float, ...]] = Field(
        default_factory=dict,
        exclude_if=is_empty,
        description="the other statistics of the same maps, in the order of the scores",
    )
    statistics: dict[str, tuple[float, ...]] = Field(description="brightness, ...: values, or so many quantiles")
    formats: dict[str, Annotated[int, Field(ge=0)]] = Field(description="images of each file format")
    map_mean: tuple[tuple[float, ...], ...] = Field(description="average anomaly map")
    map_std: tuple[tuple[float, ...], ...] = Field(description="deviation of each cell between images")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Distributions are searched by bisection, and maps compared cell by cell."""
        if len(self.scores) != self.num_images:
            raise ValueError(f"there are {len(self.scores)} scores of {self.num_images} images")
        if set(self.statistics) != set(STATISTICS):
            raise ValueError(f"expected the statistics {', '.join(STATISTICS)}, got {', '.join(self.statistics)}")
        if any(len(values) != self.num_images for values in self.other_scores.values()):
            raise ValueError(f"the other scores are not of {self.num_images} images")
        for name, values in (("scores", self.scores), *self.statistics.items()):
            if not values or any(after < before for before, after in itertools.pairwise(values)):
                raise ValueError(f"the {name} are not ascending, or there are none")
        widths = {len(row) for row in (*self.map_mean, *self.map_std)}
        if len(widths) != 1 or not min(widths) or len(self.map_mean) != len(self.map_std):
            raise ValueError("the average map and its deviation are not two tables of one shape")
        return self

    @classmethod
    def fit(cls, nominal: Nominal) -> Self:
        """Of all images given."""
        # As the scores table has them: runs are compared with these values, ties and all.
        columns = dict(zip(STATISTICS, np.asarray(nominal.statistics, np.float32).astype(np.float64).T, strict=True))
        maps, order = nominal.maps.astype(np.float64), np.argsort(nominal.scores, kind="stable")
        return cls(
            num_images=len(nominal.scores),
            scores=tuple(nominal.scores[order].tolist()),
            other_scores={name: tuple(values[order].tolist()) for name, values in nominal.others.items()},
            statistics={name: tuple(sketch(values).tolist()) for name, values in columns.items()},
            formats=dict(sorted(Counter(nominal.formats).items())),
            map_mean=tuple(tuple(rounded(row)) for row in maps.mean(0)),
            map_std=tuple(tuple(rounded(row)) for row in maps.std(0)),
        )

    def switched(self, before: Score, score: Score) -> Self:
        """With another statistic as the score; `before` is the name of the one that is it."""
        columns = {**self.other_scores, before: self.scores}
        order = np.argsort(columns[score], kind="stable")
        ordered = {name: tuple(np.array(values)[order].tolist()) for name, values in columns.items()}
        return self.model_copy(update={"scores": ordered.pop(score), "other_scores": ordered})


class Calibration(BaseModel):
    """What the bundle knows of nominal images it was not trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    alpha: float = Field(gt=0, lt=1, description="promised false-alarm rate of `threshold` and `map_threshold`")
    threshold: float = Field(description="an image is anomalous when its score is above this")
    map_threshold: float = Field(ge=0, description="map values above this make a region; display scale 0.5")
    pooled: Reference = Field(description="all calibration images")
    is_leave_one_out: bool = Field(
        False, exclude_if=is_empty, description="images were trained on, scored by statistics that did not see them"
    )
    group_pattern: str | None = Field(None, description="names an image's group; default: its first folder")
    decide_by_group: bool = Field(False, description="whether groups have thresholds and p-values of their own")
    groups: dict[str, Reference] = Field(default_factory=dict, description="groups that are large enough")

    @classmethod
    def fit(
        cls,
        nominal: Nominal,
        *,
        alpha: float,
        group_pattern: str | None = None,
        decide_by_group: bool = False,
        is_leave_one_out: bool = False,
    ) -> Self:
        """From nominal images.

        `map_threshold` is exceeded anywhere by a share of about `alpha` of nominal images. Raises ConfigError for too
        few images for `alpha`, or as `Nominal.check`.
        """
        nominal.check()
        names = np.array(nominal.groups, dtype=object)
        large = [
            group for group, count in Counter(nominal.groups).most_common(MAX_GROUPS) if group and count >= MIN_GROUP
        ]
        pooled = Reference.fit(nominal)
        rule = Rule.of(pooled, alpha)
        return cls(
            alpha=alpha,
            threshold=rule.threshold,
            map_threshold=rule.region_threshold or conformal_threshold(nominal.peaks, alpha),
            pooled=pooled,
            is_leave_one_out=is_leave_one_out,
            group_pattern=group_pattern,
            decide_by_group=decide_by_group,
            groups={group: Reference.fit(nominal.where(names == group)) for group in sorted(large)},
        )

    def switched(self, before: Score, score: Score, *, alpha: float, decide_by_group: bool) -> Self:
        """The calibration of another score or rate, from what is known of the same images.

        `before` is the score that it has. Raises ConfigError when nothing is known of that score.
        """
        if not {score, "maximum"} <= {before, *self.pooled.other_scores}:
            raise ConfigError(
                f"this bundle knows nominal images by the {before} of their maps only; give --images to calibrate "
                f"the {score} on"
            )
        references = [self.pooled, *self.groups.values()]
        pooled, *groups = references if score == before else [each.switched(before, score) for each in references]
        rule = Rule.of(pooled, alpha)
        peaks = np.array(pooled.scores if score == "maximum" else pooled.other_scores["maximum"])
        regions = rule.region_threshold or conformal_threshold(peaks, alpha)
        return self.model_copy(
            update={
                "alpha": alpha,
                "threshold": rule.threshold,
                "map_threshold": regions,
                "pooled": pooled,
                "groups": dict(zip(self.groups, groups, strict=True)),
                "decide_by_group": decide_by_group,
            }
        )

    def deciding(self, alpha: float) -> dict[str, Reference]:
        """Groups that decide by their own nominal images: if wanted, those that are large enough for `alpha`."""
        needed = images_needed(alpha)
        return {g: r for g, r in self.groups.items() if r.num_images >= needed} if self.decide_by_group else {}


class Decider:
    """p-values and alarms at one false-alarm rate. Raises ConfigError if the calibration cannot support it.

    Where the score is another statistic than the maximum, an image whose region exceeds what regions of nominal images
    reach is an alarm, too: see `Rule`.
    """

    def __init__(self, calibration: Calibration, alpha: float) -> None:
        self._pooled = Rule.of(calibration.pooled, alpha)
        self._groups = {group: Rule.of(each, alpha) for group, each in calibration.deciding(alpha).items()}
        self.threshold = self._pooled.threshold
        self.map_threshold = self._pooled.region_threshold or calibration.map_threshold
        self.smallest_p_value = self._pooled.smallest_p_value
        self.decides_by_regions = self._pooled.region_threshold is not None
        self.alpha = alpha

    @property
    def group_thresholds(self) -> dict[str, float]:
        """Of the groups that have one of their own."""
        return {group: rule.threshold for group, rule in self._groups.items()}

    def __call__(
        self, scores: Floats, peaks: Floats, groups: Sequence[str]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """(N,) p-values, and which images are anomalous: those with p <= alpha; `peaks` (N,) are the maps' maxima."""
        p, alarms = self._pooled(scores, peaks)
        for group in set(groups) & self._groups.keys() if self._groups else ():
            here = np.fromiter((each == group for each in groups), np.bool_, len(groups))
            p[here], alarms[here] = self._groups[group](scores[here], peaks[here])
        return p, alarms


@dataclass(frozen=True, slots=True)
class Rule:
    """How images of one scope are decided at one false-alarm rate.

    By the score: p = (1 + #{c >= s}) / (n + 1), and anomalous above `threshold`. Where peaks of the maps are known
    beside the score, and n supports it, by whichever is rarer among nominal images: with r the smaller of an image's
    ranks by score and by peak, 1 + #{c >= s}, and the same r for every nominal image among the others,

        p = (2 + #{r_i < r}) / (n + 1)

    An image is then anomalous above `threshold` by its score *or* above `region_threshold` by its peak; both are the
    same rank from the top, and the rate holds for both together: the new image lifts at most one nominal image to its
    own rank, hence 2 and not 1.
    """

    scores: Floats
    threshold: float
    peaks: Floats | None = None
    ranks: npt.NDArray[np.int64] | None = None
    region_threshold: float | None = None

    @classmethod
    def of(cls, reference: Reference, alpha: float) -> Self:
        """Raises ConfigError when there are too few images for `alpha`."""
        scores = np.array(reference.scores)
        threshold = conformal_threshold(scores, alpha)
        if "maximum" not in reference.other_scores or len(scores) < images_needed(alpha / 2):
            return cls(scores, threshold)
        aligned = np.array(reference.other_scores["maximum"])
        peaks = np.sort(aligned)
        ranks = np.sort(np.minimum(_ranks(scores, scores), _ranks(aligned, peaks)))
        allowed = math.floor(alpha * (len(scores) + 1) + 1e-9) - 2
        # The largest rank that fewer than so many nominal images are ahead of.
        rank = min(int(ranks[allowed]), len(scores)) if allowed < len(ranks) else len(scores)
        return cls(scores, float(scores[-rank]), peaks, ranks, float(peaks[-rank]))

    @property
    def smallest_p_value(self) -> float:
        """That of an image beyond all nominal ones."""
        return (1 if self.ranks is None else 2) / (len(self.scores) + 1)

    def __call__(self, scores: Floats, peaks: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """(N,) p-values and alarms."""
        if self.peaks is None or self.ranks is None or self.region_threshold is None:
            return p_values(scores, self.scores), scores > self.threshold
        rank = np.minimum(1 + _ranks(scores, self.scores), 1 + _ranks(peaks, self.peaks))
        p = (2 + np.searchsorted(self.ranks, rank, side="left")) / (len(self.scores) + 1)
        return np.minimum(p, 1.0), (scores > self.threshold) | (peaks > self.region_threshold)


def _ranks(values: Floats, ascending: Floats) -> npt.NDArray[np.int64]:
    """How many of the ascending values are at least as large as each value."""
    return len(ascending) - np.searchsorted(ascending, values, side="left")


def images_needed(alpha: float) -> int:
    """The smallest calibration that supports a false-alarm rate: 1 / (n + 1) <= alpha."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def smallest_alpha(num_images: int, rank: int = 1) -> float:
    """The smallest rate of two digits at which the threshold is the score number `rank` from the top."""
    exact = rank / (num_images + 1)
    step = 10.0 ** (math.floor(math.log10(exact)) - 1)
    return round(math.ceil(exact / step - 1e-9) * step, 12)


@dataclass(frozen=True, slots=True)
class ThresholdImage:
    """The nominal image whose score is the threshold: its index, rank (1: the largest), and the next lower scores.

    `stands_apart`: it is the largest of all, and more than `APART` times the next one: one image sets the threshold.
    """

    index: int
    rank: int
    score: float
    below: list[float]
    stands_apart: bool


def threshold_image(scores: Floats, threshold: float) -> ThresholdImage:
    """Which of (N,) nominal scores is the threshold."""
    order = np.argsort(-scores, kind="stable")
    rank = int(np.flatnonzero(scores[order] == threshold)[0]) + 1
    ordered = [float(value) for value in scores[order]]
    apart = rank == 1 and len(ordered) > 1 and ordered[0] > APART * max(ordered[1], 0.0)
    return ThresholdImage(
        index=int(order[rank - 1]),
        rank=rank,
        score=threshold,
        below=ordered[rank : rank + 2],
        stands_apart=apart,
    )


def standing_apart(scores: Floats) -> npt.NDArray[np.int64]:
    """Which of (N,) nominal scores stand apart above all others, the largest first: there is a gap below them.

    The lowest of them is more than `APART` times the next one. More than a twentieth of all never do.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = np.maximum(scores[order], 0.0)
    looked_at = max(1, len(ordered) // _LARGEST_OF)
    gaps = np.flatnonzero(ordered[:looked_at] > APART * ordered[1 : looked_at + 1])
    return order[: int(gaps[-1]) + 1 if len(gaps) else 0].astype(np.int64)


def conformal_threshold(nominal: Floats | npt.NDArray[np.int64], alpha: float) -> float:
    """The value above which p_values(...) <= alpha; ConfigError if n cannot support alpha."""
    rank = math.floor(alpha * (len(nominal) + 1) + 1e-9)
    if rank < 1:
        raise ConfigError(
            f"a false-alarm rate of {alpha:g} needs at least {images_needed(alpha)} calibration images, got "
            f"{len(nominal)} (smallest possible p-value {1 / (len(nominal) + 1):.4g}); add nominal images, hold out a "
            f"larger share, or raise alpha: {smallest_alpha(len(nominal)):g} works"
        )
    return float(np.sort(nominal)[len(nominal) - min(rank, len(nominal))])


def p_values(scores: Floats, nominal_ascending: Floats) -> npt.NDArray[np.float64]:
    """(1 + #{c >= s}) / (n + 1) for every score, in (0, 1]; `nominal_ascending` is sorted."""
    n = len(nominal_ascending)
    at_least = n - np.searchsorted(nominal_ascending, scores, side="left")
    return (1 + at_least) / (n + 1)


def benjamini_hochberg(counts: dict[float, int], rate: float) -> tuple[float, int]:
    """The list of a run at a false-discovery rate, from how many images have each p-value: (cut, length of the list).

    Images with p <= cut are on it; of them a share of at most `rate` is expected to be nominal (Benjamini and
    Hochberg, 1995; for conformal p-values Bates et al., 2023, theorem 2). (0, 0) for an empty list.
    """
    p = np.array(sorted(counts))
    below = np.cumsum([counts[each] for each in p])
    passing = np.flatnonzero(p * (below[-1] if len(p) else 0) <= rate * below + 1e-12)
    return (float(p[passing[-1]]), int(below[passing[-1]])) if len(passing) else (0.0, 0)


def sketch(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The values ascending, or SKETCH_VALUES of them at even ranks."""
    ordered = np.sort(values)
    if len(ordered) <= SKETCH_VALUES:
        return ordered
    return ordered[np.rint(np.linspace(0, len(ordered) - 1, SKETCH_VALUES)).astype(np.int64)]


def rounded(values: npt.NDArray[np.float64]) -> list[float]:
    """Short JSON; cells are compared by half a deviation."""
    return [float(f"{value:.{_DIGITS}g}") for value in values]
