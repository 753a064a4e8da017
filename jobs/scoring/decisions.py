"""What a run means: its list at a false-discovery rate, and how far it is from the calibration.

    published score parts -> counts per part (here or on the cluster) -> drift table and fields of the record

Only counts are kept, so memory does not depend on the number of images.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from fcdd import calibration, drift, heatmap
from fcdd.calibration import MIN_GROUP, STATISTICS, Calibration, Decider
from fcdd.drift import MIN_IMAGES, AlarmLaw, Finding, Levels, Tally
from jobs.catalog import part_files
from schemas import DRIFT, Drift, Layout, Part, conform
from schemas.runs import Intent

_COLUMNS = ["anomaly_score", "p_value", "is_anomalous", "image_group", "image_format", "heatmap", *STATISTICS]
# Decoded maps at once.
_CELLS_AT_ONCE = 4_000_000
# More groups than these are not judged one by one: they name no cameras.
_MAX_GROUPS = 300
# Reasons in the record; the table has every finding.
_MAX_REASONS = 20

T = TypeVar("T")
R = TypeVar("R")


class Map(Protocol):
    """`map`, here or on a cluster."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]:
        """The results in order."""


class _PartJob(NamedTuple):
    """One published part to count."""

    results: str
    part: Part
    calibration: Calibration


@dataclass
class Counts:
    """What is counted of published parts. The scope None is the collection."""

    p_values: Counter[float] = field(default_factory=Counter)
    scopes: dict[str | None, Tally] = field(default_factory=dict)
    has_too_many_groups: bool = False

    def add(self, other: "Counts") -> None:
        """Count the images of `other` too."""
        self.p_values.update(other.p_values)
        for scope, tally in other.scopes.items():
            if scope in self.scopes:
                self.scopes[scope].add(tally)
            else:
                self.scopes[scope] = tally
        self.has_too_many_groups |= other.has_too_many_groups or len(self.scopes) > 1 + _MAX_GROUPS
        if self.has_too_many_groups:
            self.scopes = {scope: tally for scope, tally in self.scopes.items() if scope is None}

    def ordered(self) -> list[tuple[str | None, Tally]]:
        """The collection, then the groups by name."""
        return sorted(self.scopes.items(), key=lambda each: (each[0] is not None, each[0] or ""))


def decide(layout: Layout, intent: Intent, fitted: Calibration, parts: Iterable[Part], run: Map) -> dict[str, Any]:
    """Fields of the record, after the drift table is placed beside it."""
    counts = Counts()
    for each in run(count_part, (_PartJob(layout.results, part, fitted) for part in parts)):
        counts.add(each)
    cut, discoveries = calibration.benjamini_hochberg(counts.p_values, intent.fdr)
    decider = Decider(fitted, intent.alpha)
    return {
        "alpha": intent.alpha,
        "threshold": decider.threshold,
        "group_thresholds": decider.group_thresholds,
        "map_threshold": decider.map_threshold,
        "num_calibration": fitted.pooled.num_images,
        "smallest_p_value": decider.smallest_p_value,
        "fdr": intent.fdr,
        "fdr_p_value": cut,
        "num_discoveries": discoveries,
        "drift": _drift(layout, intent, fitted, counts),
    }


def count_part(job: _PartJob) -> Counts:
    """The counts of one published part. Raises FCDDError when it is not what was published."""
    table = part_files.read_published(Layout(job.results), job.part, _COLUMNS)
    counts = Counts()
    at_once = max(1, _CELLS_AT_ONCE // np.size(job.calibration.pooled.map_mean))
    for start in range(0, table.num_rows, at_once):
        counts.add(count_rows(table.slice(start, at_once), job.calibration))
    return counts


def count_rows(rows: pa.Table, fitted: Calibration) -> Counts:
    """The counts of rows of the scores table."""
    values = {name: rows[name].to_numpy() for name in ("anomaly_score", "p_value", "is_anomalous", *STATISTICS)}
    maps = heatmap.decode_each(rows["heatmap"].to_pylist())
    formats = np.array(rows["image_format"].to_pylist(), object)
    groups = np.array(rows["image_group"].to_pylist(), object)

    def tally(group: str | None) -> Tally:
        here = np.ones(len(groups), np.bool_) if group is None else groups == group
        return Tally.count(
            _reference(fitted, group) or fitted.pooled,
            values["anomaly_score"][here],
            {name: values[name][here] for name in STATISTICS},
            formats[here].tolist(),
            values["is_anomalous"][here],
            maps[here],
        )

    named = sorted(set(groups.tolist()) - {""})
    too_many = len(named) > _MAX_GROUPS
    p_values, copies = np.unique(values["p_value"], return_counts=True)
    return Counts(
        Counter(dict(zip(p_values.tolist(), copies.tolist(), strict=True))),
        {group: tally(group) for group in (None, *([] if too_many else named))},
        too_many,
    )


def _reference(fitted: Calibration, group: str | None) -> calibration.Reference | None:
    return fitted.pooled if group is None else fitted.groups.get(group)


class Scope(NamedTuple):
    """What was found of the collection (group None) or of one group."""

    group: str | None
    tally: Tally
    findings: list[Finding]


def judge(counts: Counts, fitted: Calibration, alpha: float) -> list[Scope]:
    """Every comparison of every scope, the collection first."""
    scopes = counts.ordered()
    levels = Levels.of(sum(_reference(fitted, group) is not None for group, _ in scopes))
    return [
        Scope(group, tally, list(_findings(group, tally, scopes, alpha, fitted, levels))) for group, tally in scopes
    ]


def _drift(layout: Layout, intent: Intent, fitted: Calibration, counts: Counts) -> Drift:
    """The verdict; the table behind it is placed beside the run's record."""
    scopes = judge(counts, fitted, intent.alpha)
    if not scopes:
        return Drift(verdict="ok", reasons=("nothing was scored",), part=None)
    found = [(scope.group, finding) for scope in scopes for finding in scope.findings if finding.verdict != "ok"]
    found.sort(key=lambda each: -drift.VERDICTS.index(each[1].verdict))
    reasons = list(dict.fromkeys(_reason(group, finding) for group, finding in found))  # two tests, one sentence
    if min(scopes[0].tally.num_images, fitted.pooled.num_images) < MIN_IMAGES:
        reasons.append(
            f"only {scopes[0].tally.num_images} images and {fitted.pooled.num_images} calibration images: from "
            f"{MIN_IMAGES} each on distributions are compared"
        )
    if counts.has_too_many_groups:
        reasons.append(f"more than {_MAX_GROUPS} groups: not told apart; --group-pattern names cameras, not lots")
    rows = pa.Table.from_pylist([_row(scope, scopes, fitted, intent.alpha) for scope in scopes], _without_run(DRIFT))
    path = layout.part("drift", intent.collection, intent.day, intent.run_id, "part-00000-{}.parquet")
    part = part_files.publish(layout, path, conform(part_files.with_run(rows, intent), DRIFT))
    return Drift(verdict=drift.worst([finding.verdict for _, finding in found]), reasons=_shortened(reasons), part=part)


def _findings(
    group: str | None,
    tally: Tally,
    scopes: list[tuple[str | None, Tally]],
    alpha: float,
    fitted: Calibration,
    levels: Levels,
) -> Iterator[Finding]:
    reference = _reference(fitted, group)
    if reference is None:
        if fitted.groups and tally.num_images >= MIN_IMAGES:
            sentence = f"it has fewer than {MIN_GROUP} calibration images, so it is judged with the others only"
            yield Finding("image_group", "known", float(tally.num_images), 1.0, "watch", sentence)
        return
    laws = _alarm_laws(group, tally, scopes, alpha, fitted)
    yield from drift.judge(tally, reference, levels=levels, whole_run=group is None, laws=laws)


def _alarm_laws(
    group: str | None, tally: Tally, scopes: list[tuple[str | None, Tally]], alpha: float, fitted: Calibration
) -> list[AlarmLaw]:
    """By which law nominal images of the scope raise alarms: one, or one for each threshold."""
    own = fitted.deciding(alpha)
    if group is None:
        alone = [AlarmLaw.at(each.num_images, own[name].num_images, alpha) for name, each in scopes if name in own]
        together = tally.num_images - sum(law.num_images for law in alone)
        return [*alone, *([AlarmLaw.at(together, fitted.pooled.num_images, alpha)] if together or not alone else [])]
    if group in own:
        return [AlarmLaw.at(tally.num_images, own[group].num_images, alpha)]
    threshold = calibration.conformal_threshold(np.array(fitted.pooled.scores), alpha)
    return [AlarmLaw.above(tally.num_images, fitted.groups.get(group, fitted.pooled), threshold)]


def _reason(scope: str | None, finding: Finding) -> str:
    return finding.sentence if scope is None else f"group {scope}: {finding.sentence}"


def _shortened(reasons: list[str]) -> tuple[str, ...]:
    if len(reasons) <= _MAX_REASONS:
        return tuple(reasons)
    return (*reasons[: _MAX_REASONS - 1], f"and {len(reasons) - _MAX_REASONS + 1} more, in the drift table")


def _row(scope: Scope, scopes: list[Scope], fitted: Calibration, alpha: float) -> dict[str, Any]:
    reference = _reference(fitted, scope.group)
    tallies = [(each.group, each.tally) for each in scopes]
    low, high = drift.alarm_interval(_alarm_laws(scope.group, scope.tally, tallies, alpha, fitted))
    return {
        "scope": "collection" if scope.group is None else "group",
        "image_group": scope.group or "",
        "num_images": scope.tally.num_images,
        "num_calibration": reference.num_images if reference else 0,
        "num_alarms": scope.tally.num_alarms,
        "alarms_low": low,
        "alarms_high": high,
        "verdict": drift.worst([finding.verdict for finding in scope.findings]),
        "findings": [finding._asdict() for finding in scope.findings],
        "average_map": heatmap.encode(scope.tally.average_map()),
        "nominal_map": heatmap.encode(np.array(reference.map_mean, np.float32)) if reference else b"",
    }


def _without_run(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in part_files.RUN_COLUMNS])
