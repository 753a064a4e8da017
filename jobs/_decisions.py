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
from fcdd.drift import MIN_IMAGES, Finding, Levels, Tally, Verdict
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
class _Counts:
    """What is counted of published parts. The scope None is the collection."""

    p_values: Counter[float] = field(default_factory=Counter)
    scopes: dict[str | None, Tally] = field(default_factory=dict)

    def add(self, other: "_Counts") -> None:
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
    counts = _Counts()
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
        "drift": judge(layout, intent, fitted, counts),
    }


def count_part(job: _PartJob) -> _Counts:
    """The counts of one published part. Raises FCDDError when it is not what was published."""
    table = _parts.read_published(Layout(job.results), job.part, _COLUMNS)
    counts = _Counts()
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        counts.add(_count_rows(table.slice(start, _ROWS_AT_ONCE), job.calibration))
    return counts


def _count_rows(rows: pa.Table, fitted: Calibration) -> _Counts:
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
    return _Counts(
        Counter(dict(zip(p_values.tolist(), copies.tolist(), strict=True))), {g: tally(g) for g in (None, *named)}
    )


def _reference(fitted: Calibration, group: str | None) -> calibration.Reference | None:
    return fitted.pooled if group is None else fitted.groups.get(group)


def judge(layout: Layout, intent: Intent, fitted: Calibration, counts: _Counts) -> Drift:
    """The verdict; the table behind it is placed beside the run's record."""
    scopes = counts.largest(_MAX_GROUPS)
    if not scopes:
        return Drift(verdict="ok", reasons=("nothing was scored",), part=None)
    rows, reasons = [], []
    levels = Levels.of(sum(_reference(fitted, scope) is not None for scope, _ in scopes))
    for scope, tally in scopes:
        findings = list(_findings(scope, tally, scopes, intent, fitted, levels))
        reasons += [(finding.verdict, _reason(scope, finding)) for finding in findings if finding.verdict != "ok"]
        rows.append(_row(scope, tally, findings, fitted))
    reasons.sort(key=lambda each: -drift.VERDICTS.index(each[0]))
    said = [sentence for _, sentence in reasons]
    if scopes[0][1].num_images < MIN_IMAGES or fitted.pooled.num_images < MIN_IMAGES:
        said.append(
            f"only {scopes[0][1].num_images} images and {fitted.pooled.num_images} calibration images: from "
            f"{MIN_IMAGES} each on distributions are compared"
        )
    table = _parts.with_run(pa.Table.from_pylist(rows, _without_run(DRIFT)), intent)
    part = _parts.place(layout, layout.drift(intent.run_id, "drift-{}.parquet"), conform(table, DRIFT))
    return Drift(verdict=drift.worst([verdict for verdict, _ in reasons]), reasons=_shortened(said), part=part)


def _findings(
    scope: str | None,
    tally: Tally,
    scopes: list[tuple[str | None, Tally]],
    intent: Intent,
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
    own = fitted.deciding(intent.alpha)
    parts = None
    if scope is None:
        alone = [(tally.num_images, own[group].num_images) for group, tally in scopes if group in own]
        together = tally.num_images - sum(images for images, _ in alone)
        parts = [*alone, *([(together, reference.num_images)] if together else [])]
    yield from drift.judge(tally, reference, alpha=intent.alpha, levels=levels, alarm_parts=parts)


def _reason(scope: str | None, finding: Finding) -> str:
    return finding.sentence if scope is None else f"group {scope}: {finding.sentence}"


def _shortened(reasons: list[str]) -> tuple[str, ...]:
    if len(reasons) <= _MAX_REASONS:
        return tuple(reasons)
    return (*reasons[: _MAX_REASONS - 1], f"and {len(reasons) - _MAX_REASONS + 1} more, in the drift table")


def _row(scope: str | None, tally: Tally, findings: list[Finding], fitted: Calibration) -> dict[str, Any]:
    reference = _reference(fitted, scope)
    verdicts: list[Verdict] = [finding.verdict for finding in findings]
    return {
        "scope": "collection" if scope is None else "group",
        "image_group": scope or "",
        "num_images": tally.num_images,
        "num_calibration": reference.num_images if reference else 0,
        "num_alarms": tally.num_alarms,
        "verdict": drift.worst(verdicts),
        "findings": [finding._asdict() for finding in findings],
        "average_map": heatmap.encode(tally.average_map()),
        "nominal_map": heatmap.encode(np.array(reference.map_mean, np.float32)) if reference else b"",
    }


def _without_run(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in _parts.RUN_COLUMNS])
