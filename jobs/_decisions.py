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
from fcdd.calibration import STATISTICS, Calibration, Decider
from fcdd.drift import MIN_IMAGES, Finding, Levels, Tally
from jobs import _parts
from schemas import DRIFT, Drift, Layout, Part, conform
from schemas.runs import Intent

_COLUMNS = ["anomaly_score", "p_value", "is_anomalous", "image_group", "image_format", "heatmap", *STATISTICS]
# Maps decoded at once: a row group of a published part.
_ROWS_AT_ONCE = 5_000
# Groups of a run that are told apart, the largest first; images of the others count for the collection only.
_MAX_GROUPS = 100
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

    def add(self, other: "Counts") -> None:
        self.p_values.update(other.p_values)
        for scope, tally in other.scopes.items():
            if scope in self.scopes:
                self.scopes[scope].add(tally)
            else:
                self.scopes[scope] = tally
        self._keep_largest()

    def _keep_largest(self) -> None:
        if len(self.scopes) > 2 * _MAX_GROUPS:
            self.scopes = dict(self.largest(_MAX_GROUPS))

    def largest(self, groups: int) -> list[tuple[str | None, Tally]]:
        """The collection, then so many groups by name, those of the most images."""
        named = [(scope, tally) for scope, tally in self.scopes.items() if scope is not None]
        named = sorted(named, key=lambda each: (-each[1].num_images, each[0]))[:groups]
        whole: list[tuple[str | None, Tally]] = [(None, self.scopes[None])] if None in self.scopes else []
        return whole + sorted(named, key=lambda each: str(each[0]))


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
        "map_threshold": fitted.map_threshold,
        "num_calibration": fitted.pooled.num_images,
        "smallest_p_value": 1 / (fitted.pooled.num_images + 1),
        "fdr": intent.fdr,
        "fdr_p_value": cut,
        "num_discoveries": discoveries,
        "drift": _drift(layout, intent, fitted, counts),
    }


def count_part(job: _PartJob) -> Counts:
    """The counts of one published part. Raises FCDDError when it is not what was published."""
    table = _parts.read_published(Layout(job.results), job.part, _COLUMNS)
    counts = Counts()
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        counts.add(count_rows(table.slice(start, _ROWS_AT_ONCE), job.calibration))
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

    named = [group for group, _ in Counter(groups.tolist()).most_common(_MAX_GROUPS) if group]
    p_values, copies = np.unique(values["p_value"], return_counts=True)
    return Counts(
        Counter(dict(zip(p_values.tolist(), copies.tolist(), strict=True))), {g: tally(g) for g in (None, *named)}
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
    scopes = counts.largest(_MAX_GROUPS)
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
    reasons = [_reason(group, finding) for group, finding in found]
    if min(scopes[0].tally.num_images, fitted.pooled.num_images) < MIN_IMAGES:
        reasons.append(
            f"only {scopes[0].tally.num_images} images and {fitted.pooled.num_images} calibration images: from "
            f"{MIN_IMAGES} each on distributions are compared"
        )
    rows = pa.Table.from_pylist([_row(scope, fitted) for scope in scopes], _without_run(DRIFT))
    path = layout.drift(intent.run_id, "drift-{}.parquet")
    part = _parts.place(layout, path, conform(_parts.with_run(rows, intent), DRIFT))
    return Drift(verdict=drift.worst([finding.verdict for _, finding in found]), reasons=_shortened(reasons), part=part)


def _findings(
    scope: str | None,
    tally: Tally,
    scopes: list[tuple[str | None, Tally]],
    alpha: float,
    fitted: Calibration,
    levels: Levels,
) -> Iterator[Finding]:
    reference = _reference(fitted, scope)
    if reference is None:
        if fitted.groups and tally.num_images >= MIN_IMAGES:
            sentence = (
                "unknown to the calibration: it is judged with the others; `fcdd calibrate` with its images adds it"
            )
            yield Finding("image_group", "chi2", float(tally.num_images), 0.0, "watch", sentence)
        return
    own = fitted.deciding(alpha)
    parts = None
    if scope is None:
        alone = [(tally.num_images, own[group].num_images) for group, tally in scopes if group in own]
        together = tally.num_images - sum(images for images, _ in alone)
        parts = [*alone, *([(together, reference.num_images)] if together else [])]
    yield from drift.judge(tally, reference, alpha=alpha, levels=levels, alarm_parts=parts)


def _reason(scope: str | None, finding: Finding) -> str:
    return finding.sentence if scope is None else f"group {scope}: {finding.sentence}"


def _shortened(reasons: list[str]) -> tuple[str, ...]:
    if len(reasons) <= _MAX_REASONS:
        return tuple(reasons)
    return (*reasons[: _MAX_REASONS - 1], f"and {len(reasons) - _MAX_REASONS + 1} more, in the drift table")


def _row(scope: Scope, fitted: Calibration) -> dict[str, Any]:
    reference = _reference(fitted, scope.group)
    return {
        "scope": "collection" if scope.group is None else "group",
        "image_group": scope.group or "",
        "num_images": scope.tally.num_images,
        "num_calibration": reference.num_images if reference else 0,
        "num_alarms": scope.tally.num_alarms,
        "verdict": drift.worst([finding.verdict for finding in scope.findings]),
        "findings": [finding._asdict() for finding in scope.findings],
        "average_map": heatmap.encode(scope.tally.average_map()),
        "nominal_map": heatmap.encode(np.array(reference.map_mean, np.float32)) if reference else b"",
    }


def _without_run(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in _parts.RUN_COLUMNS])
