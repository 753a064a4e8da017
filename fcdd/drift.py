"""Does a run still look like the calibration? Counts of constant size, and tests on them.

    images of a run -> Tally (per scope: all of them, or one group; mergeable) -> judge -> findings, a verdict

Distributions are compared by the two-sample Kolmogorov-Smirnov test and the population stability index (PSI), the
alarms with their law given the calibration, the most anomalous images with an extreme-value tail, the average anomaly
map cell by cell. A finding needs to be significant *and* to matter: of a million images everything is significant.
All tests of a run share one probability of a false "drifted" (`Levels`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fcdd.calibration import STATISTICS, Floats, Reference

Verdict = Literal["ok", "watch", "drifted"]
VERDICTS: tuple[Verdict, ...] = ("ok", "watch", "drifted")
SCORE = "anomaly_score"

# At most this share of undrifted runs is called drifted; five times as many, to watch.
FALSE_DRIFT, WATCH_FACTOR = 0.01, 5
# Fewer images, of the run or of the calibration, are not compared.
MIN_IMAGES = 50
# What matters: a distance of distribution functions, a PSI (the usual 0.1 and 0.2), a factor of the alarm rate, a
# cell's rise in deviations between nominal images, a share of images of another format.
WATCH_DISTANCE, DRIFT_DISTANCE = 0.05, 0.1
WATCH_PSI, DRIFT_PSI = 0.1, 0.2
ALARM_FACTOR = 1.5
WATCH_RISE, DRIFT_RISE = 0.4, 0.7
_MAP_CLIP = 3.0
WATCH_FORMATS, DRIFT_FORMATS = 0.01, 0.05
# Bins of the PSI: ten, of few images so many that about twenty fall into each.
_PSI_BINS, _PSI_PER_BIN = 10, 20
# The tail begins at the fifth largest score of the calibration; an image counts for at most three times that score, so
# that one monster is no drift. Its shape is fitted to the top tenth, of at least so many images.
# A run may hold so many gross defects, as every run before it: that is no drift.
USUAL_DEFECTS = 0.001
TAIL_RANK, _TAIL_CAP, _MIN_IN_TAIL, _TAIL_FIT, _MIN_TAIL_FIT = 5, 2.0, 5, 0.1, 30
_DRAWS = 20_000
# Of more images in the tail the sum is drawn as a normal one; runs of more images have a continuous law of alarms.
_DRAWN_ONE_BY_ONE, _MANY = 50, 20_000


class Finding(NamedTuple):
    """One comparison of one scope: what was compared how, the effect, the probability of it by chance, a sentence."""

    what: str
    test: Literal["ks", "psi", "chi2", "alarms", "tail", "map", "known"]
    effect: float
    p_value: float
    verdict: Verdict
    sentence: str


class Levels(NamedTuple):
    """Significance levels: of the tail of the whole run, which sees the rarest change, of its alarms, of all others."""

    tail: float
    alarms: float
    other: float

    @classmethod
    def of(cls, num_scopes: int) -> Self:
        """FALSE_DRIFT shared out among the tests of a run of so many scopes."""
        tests_of_scope = 2 * (1 + len(STATISTICS)) + 3
        return cls(0.7 * FALSE_DRIFT, 0.1 * FALSE_DRIFT, 0.2 * FALSE_DRIFT / (tests_of_scope * max(1, num_scopes)))


@dataclass
class Tally:
    """What is counted of the images of one scope, against a reference; tallies of parts of a run are added up.

    Of every distribution: how many values lie below each reference value, and at or below it, which is all that the
    tests need.
    """

    num_images: int = 0
    num_alarms: int = 0
    below: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    at_or_below: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)
    formats: Counter[str] = field(default_factory=Counter)
    in_tail: int = 0
    tail_excess: float = 0.0
    map_sum: npt.NDArray[np.float64] | None = None
    clipped_sum: npt.NDArray[np.float64] | None = None

    @classmethod
    def count(
        cls,
        reference: Reference,
        scores: Floats,
        statistics: Mapping[str, Floats],
        formats: Sequence[str],
        alarms: npt.NDArray[np.bool_],
        maps: npt.NDArray[np.float32],
    ) -> Self:
        """Images with their scores (N,), statistics by name (N,), formats, alarms (N,) and maps (N,U,V)."""
        tally = cls(num_images=len(scores), num_alarms=int(alarms.sum()), formats=Counter(formats))
        for name, values in {SCORE: scores, **statistics}.items():
            points, values = _points(reference, name), np.asarray(values, np.float64)
            tally.below[name] = np.searchsorted(np.sort(values), points, side="left")
            tally.at_or_below[name] = np.searchsorted(np.sort(values), points, side="right")
            tally.sums[name] = float(values.sum())
        start = _tail_start(reference)
        if start > 0:
            tail = scores[scores > start].astype(np.float64)
            tally.in_tail, tally.tail_excess = len(tail), float(np.minimum(tail / start - 1, _TAIL_CAP).sum())
        tally.map_sum = maps.sum(0, dtype=np.float64)
        tally.clipped_sum = np.minimum(maps, _clip(reference)).sum(0, dtype=np.float64)
        return tally

    def add(self, other: Self) -> None:
        """Count the images of `other`, which was counted against the same reference, too."""
        self.num_images += other.num_images
        self.num_alarms += other.num_alarms
        for mine, theirs in ((self.below, other.below), (self.at_or_below, other.at_or_below)):
            for name, counts in theirs.items():
                mine[name] = mine[name] + counts if name in mine else counts
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.formats += other.formats
        self.in_tail += other.in_tail
        self.tail_excess += other.tail_excess
        if other.map_sum is not None:
            self.map_sum = other.map_sum if self.map_sum is None else self.map_sum + other.map_sum
        if other.clipped_sum is not None:
            self.clipped_sum = other.clipped_sum if self.clipped_sum is None else self.clipped_sum + other.clipped_sum

    def average_map(self) -> npt.NDArray[np.float32]:
        """Mean anomaly map (U,V) of the images counted, of which there must be one."""
        assert self.map_sum is not None
        average: npt.NDArray[np.float32] = (self.map_sum / self.num_images).astype(np.float32)
        return average


class AlarmLaw(NamedTuple):
    """Alarms of nominal images, at a rate that is Beta(a, b) distributed: n calibration images estimate it."""

    num_images: int
    a: float
    b: float

    @classmethod
    def at(cls, num_images: int, num_calibration: int, alpha: float) -> Self:
        """Above the k-th largest of n nominal scores, k = floor(alpha (n + 1)): Beta(k, n + 1 - k)."""
        rank = max(1, min(num_calibration, math.floor(alpha * (num_calibration + 1) + 1e-9)))
        return cls(num_images, rank, num_calibration + 1 - rank)

    @classmethod
    def above(cls, num_images: int, reference: Reference, threshold: float) -> Self:
        """Above a threshold that other images set: Beta(e + 1, n - e + 1), where e of the n own ones exceed it."""
        exceed = len(reference.scores) - int(np.searchsorted(reference.scores, threshold, side="right"))
        return cls(num_images, exceed + 1, reference.num_images - exceed + 1)

    @property
    def rate(self) -> float:
        """The expected share of alarms."""
        return self.a / (self.a + self.b)

    def frozen(self) -> Any:
        """The distribution of the number of alarms: beta-binomial; of many images a Beta that is as wide, scaled."""
        m = self.num_images
        if m <= _MANY:
            return _stats().betabinom(m, self.a, self.b)
        n = self.a + self.b
        narrower = m / (n + m)  # the binomial's variance on top of the Beta's
        return _stats().beta(self.a * narrower, self.b * narrower, scale=m)


def _stats() -> Any:
    """`scipy.stats`: its import takes longer than a small run's listing, and it is asked at the end of a run."""
    from scipy import stats

    return stats


def judge(
    tally: Tally, reference: Reference, *, levels: Levels, whole_run: bool, laws: Sequence[AlarmLaw]
) -> list[Finding]:
    """All comparisons of one scope, those that found nothing too; none if there are too few images.

    `laws` are those of the scope's alarms: one, or one for each part that has a threshold of its own.
    """
    if min(tally.num_images, reference.num_images) < MIN_IMAGES:
        return []
    findings = [
        finding for name in (SCORE, *STATISTICS) for finding in _distribution(tally, reference, name, levels.other)
    ]
    findings.append(_formats(tally, reference, levels.other))
    findings.append(_hot_spot(tally, reference, levels.other))
    findings.append(_alarms(tally, laws, levels.alarms if whole_run else levels.other))
    if whole_run:
        findings += _tail(tally, reference, levels.tail)
    return findings


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The gravest of several verdicts."""
    return max(verdicts, key=VERDICTS.index, default="ok")


def _verdict(p_value: float, level: float, effect: float, watch: float, drift: float) -> Verdict:
    if p_value < level and effect >= drift:
        return "drifted"
    return "watch" if p_value < level * WATCH_FACTOR and effect >= watch else "ok"


def _points(reference: Reference, name: str) -> npt.NDArray[np.float64]:
    return np.array(reference.scores if name == SCORE else reference.statistics[name], np.float64)


def _distribution(tally: Tally, reference: Reference, name: str, level: float) -> list[Finding]:
    """Kolmogorov-Smirnov and PSI of one distribution; exact for a reference that is no sketch."""
    points, n, m = _points(reference, name), reference.num_images, tally.num_images
    own_below, own_at = (np.searchsorted(points, points, side) / len(points) for side in ("left", "right"))
    distance = float(
        max(np.abs(tally.below[name] / m - own_below).max(), np.abs(tally.at_or_below[name] / m - own_at).max())
    )
    ks = float(_stats().kstwo.sf(distance, max(1, round(n * m / (n + m)))))
    wanted = min(_PSI_BINS, min(n, m) // _PSI_PER_BIN)
    edges = np.unique(np.searchsorted(points, np.quantile(points, np.arange(1, wanted) / wanted, method="lower")))
    psi, bins = _psi(tally.at_or_below[name][edges] / m, own_at[edges], n, m)
    psi_p = float(_stats().chi2.sf(psi / (1 / n + 1 / m), bins - 1))
    means = f"{name}: mean {tally.sums[name] / m:.4g} instead of {points.mean():.4g}"
    sentence = f"{means} (KS distance {distance:.2f}, PSI {psi:.2f})"
    by_distance = _verdict(ks, level, distance, WATCH_DISTANCE, DRIFT_DISTANCE)
    return [
        Finding(name, "ks", distance, ks, by_distance, sentence),
        Finding(name, "psi", psi, psi_p, _verdict(psi_p, level, psi, WATCH_PSI, DRIFT_PSI), sentence),
    ]


def _psi(run: npt.NDArray[np.float64], own: npt.NDArray[np.float64], n: int, m: int) -> tuple[float, int]:
    """PSI and its number of bins, from both distribution functions at the edges; half an image in an empty bin."""
    shares = [np.diff(np.concatenate(([0.0], values, [1.0]))) for values in (run, own)]
    a, b = (np.maximum(share, 0.5 / size) for share, size in zip(shares, (m, n), strict=True))
    return float(((a - b) * np.log(a / b)).sum()), len(a)


def _formats(tally: Tally, reference: Reference, level: float) -> Finding:
    """Chi-square test of the file formats; the effect is the total variation distance."""
    names = sorted({*tally.formats, *reference.formats})
    counts = np.array([[table.get(name, 0) for name in names] for table in (tally.formats, reference.formats)])
    p_value = float(_stats().chi2_contingency(counts, correction=False).pvalue) if len(names) > 1 else 1.0
    shares = counts / counts.sum(1, keepdims=True)
    effect = float(np.abs(shares[0] - shares[1]).sum() / 2)
    now, before = (
        ", ".join(f"{name} {share:.0%}" for name, share in zip(names, row, strict=True) if share) for row in shares
    )
    verdict = _verdict(p_value, level, effect, WATCH_FORMATS, DRIFT_FORMATS)
    return Finding("format", "chi2", effect, p_value, verdict, f"format: {now} instead of {before}")


def _deviations(reference: Reference) -> npt.NDArray[np.float64]:
    """Of each cell between nominal images; cells that hardly vary would turn nothing into much."""
    deviations = np.array(reference.map_std)
    varying = deviations[deviations > 0]  # cells that are ignored never do
    usual = float(np.median(varying)) if varying.size else 0.0
    floored: npt.NDArray[np.float64] = np.maximum(deviations, max(0.1 * usual, 1e-12))
    return floored


def _clip(reference: Reference) -> npt.NDArray[np.float32]:
    """A defect of one image must not look like dirt on the lens: cells count up to here, every image a little."""
    limit: npt.NDArray[np.float32] = (np.array(reference.map_mean) + _MAP_CLIP * _deviations(reference)).astype(
        np.float32
    )
    return limit


def _hot_spot(tally: Tally, reference: Reference, level: float) -> Finding:
    """The cell that rose most above its nominal mean in all images together, in deviations between nominal images."""
    assert tally.clipped_sum is not None
    mean, deviations = np.array(reference.map_mean), _deviations(reference)
    rise = (tally.clipped_sum / tally.num_images - mean) / deviations
    row, column = np.unravel_index(int(rise.argmax()), rise.shape)
    effect = float(rise[row, column])
    z = effect / math.sqrt(1 / tally.num_images + 1 / reference.num_images)
    p_value = min(1.0, float(_stats().norm.sf(z)) * rise.size)
    height, width = rise.shape
    plain = float((tally.average_map()[row, column] - mean[row, column]) / deviations[row, column])
    sentence = (
        f"average map: {plain:.1f} deviations hotter than nominal at {(column + 0.5) / width:.0%} of the width, "
        f"{(row + 0.5) / height:.0%} of the height, on {(rise >= max(WATCH_RISE, effect / 2)).mean():.0%} of the area"
    )
    verdict = _verdict(p_value, level, effect, WATCH_RISE, DRIFT_RISE)
    return Finding("average_map", "map", effect, p_value, verdict, sentence)


def alarm_interval(laws: Sequence[AlarmLaw], coverage: float = 0.95) -> tuple[int, int]:
    """How many false alarms nominal images raise, within `coverage`, given the size of the calibration."""
    ends = (1 - coverage) / 2, (1 + coverage) / 2
    if len(laws) == 1:
        low, high = (float(laws[0].frozen().ppf(end)) for end in ends)
    else:
        low, high = (float(value) for value in np.quantile(_drawn(laws), ends))
    return round(low), round(high)


def _drawn(laws: Sequence[AlarmLaw]) -> npt.NDArray[np.float64]:
    generator = np.random.default_rng(0)
    total: npt.NDArray[np.float64] = np.zeros(_DRAWS)
    for law in laws:
        total = total + law.frozen().rvs(_DRAWS, random_state=generator)
    return total


def _alarms(tally: Tally, laws: Sequence[AlarmLaw], level: float) -> Finding:
    """The number of alarms against its law."""
    found, images = tally.num_alarms, tally.num_images
    if len(laws) == 1:
        law = laws[0].frozen()
        p_more, p_less = float(law.sf(found - 1)), float(law.cdf(found))
    else:
        draws = _drawn(laws)
        p_more, p_less = (float((1 + count.sum()) / (1 + _DRAWS)) for count in (draws >= found, draws <= found))
    low, high = alarm_interval(laws)
    expected = sum(law.num_images * law.rate for law in laws) / images
    factor = found / images / expected
    verdict = _verdict(p_more, level, factor, 1.0, ALARM_FACTOR)
    if verdict == "ok" and p_less < level:
        verdict = "watch"  # too few alarms: does the camera see anything?
    sentence = f"alarms: {found} of {images} ({found / images:.2%}), {expected:.2%} expected ({low} to {high} images)"
    return Finding("alarms", "alarms", factor, min(p_more, p_less), verdict, sentence)


def _tail_start(reference: Reference) -> float:
    """The score from which on images count as the tail; 0 if the calibration is too small to know its tail."""
    n = reference.num_images
    return reference.scores[-TAIL_RANK] if n >= _MIN_TAIL_FIT / _TAIL_FIT and len(reference.scores) == n else 0.0


def _tail(tally: Tally, reference: Reference, level: float) -> list[Finding]:
    """The excess of the most anomalous images over the tail's start, against the tail of the calibration.

    Its law is drawn: the true rate beyond the start is Beta distributed, the number of images binomial. Each one's
    excess lies halfway between an exponential and a Pareto tail, both fitted to the top tenth of the calibration (mean
    excess; Hill's estimate): the one alone is too light, the other too heavy. To these come the usual defects, anywhere
    in the tail. A few gross anomalies show here that are too few for the alarm rate. Scores of much heavier tails than
    anomaly maps have (Pareto of index 3 and below) are called drifted more often than promised.
    """
    if (start := _tail_start(reference)) <= 0:
        return []
    top = np.array(reference.scores[-(int(reference.num_images * _TAIL_FIT) + 1) :])
    if top[0] <= 0:
        return []
    index, mean_excess = float(np.log(top[1:] / top[0]).mean()), float((top[1:] - top[0]).mean()) / start
    generator, fitted = np.random.default_rng(0), len(top) - 1
    n, m = reference.num_images, tally.num_images
    counts = np.minimum(generator.binomial(m, generator.beta(TAIL_RANK, n + 1 - TAIL_RANK, _DRAWS)), m)
    # The shape is known as well as so many images determine it: an exponential's mean has a Gamma law.
    scale = fitted / generator.gamma(fitted, size=_DRAWS)

    def excess(scales: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scaled = scales * draws
        return np.minimum((mean_excess * scaled + np.expm1(np.minimum(index * scaled, 50.0))) / 2, _TAIL_CAP)

    few = np.where(counts <= _DRAWN_ONE_BY_ONE, counts, 0)
    which = np.repeat(np.arange(_DRAWS), few)
    sums = np.bincount(which, excess(scale[which], generator.standard_exponential(len(which))), minlength=_DRAWS)
    grid, sample = np.linspace(scale.min(), scale.max(), 16), generator.standard_exponential(4_000)
    moments = [(values.mean(), values.std()) for values in (excess(factor, sample) for factor in grid)]
    mean, deviation = (np.interp(scale, grid, column) for column in zip(*moments, strict=True))
    many = counts - few
    sums = sums + many * mean + np.sqrt(many) * deviation * generator.standard_normal(_DRAWS)
    sums = sums + _TAIL_CAP * generator.random(_DRAWS) * generator.poisson(USUAL_DEFECTS * m, _DRAWS)
    p_value = float((1 + (sums >= tally.tail_excess).sum()) / (1 + _DRAWS))
    verdict = _verdict(p_value, level, float(tally.in_tail), _MIN_IN_TAIL, _MIN_IN_TAIL)
    sentence = (
        f"most anomalous images: {tally.in_tail} are above {start:.4g}, and further than nominal images explain "
        f"({m * TAIL_RANK / (n + 1):.1f} expected there)"
    )
    return [Finding("most_anomalous", "tail", tally.tail_excess, p_value, verdict, sentence)]
