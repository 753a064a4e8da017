"""The commit protocol without Ray, on a disk: what is proved, dropped, compacted and refused."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from fcdd import heatmap
from fcdd.detector import Detector
from fcdd.errors import FCDDError
from fcdd.io import storage
from jobs.catalog import commit_records, intents, manifest_parts, part_files, staging, views
from jobs.catalog.staging import Coverage
from jobs.scoring import publishing
from jobs.scoring.manifests import Listing, Source
from jobs.scoring.publishing import Facts
from jobs.shell.errors import TooManyBadImages
from jobs.sources.listing import Selection
from schemas import Layout, RunRecord
from schemas.runs import Intent, Plan
from tests.detectors import make

NOW = datetime(2026, 11, 1, 3, tzinfo=UTC)
FACTS = Facts(images_per_second=1.0, stage_seconds={}, settings={}, versions={})


@pytest.fixture
def detector() -> Detector:
    return make()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}/results")


def make_plan(layout: Layout, images: str, run_id: str = "20261101-test", **changes: Any) -> Plan:
    intent = Intent(
        run_id=run_id,
        collection="c",
        day=date(2026, 11, 1),
        images=(images,),
        selection={},
        bundle="b",
        bundle_digest="d",
        alpha=0.01,
        fdr=0.1,
        started_at=NOW,
    ).model_copy(update=changes)
    with Listing(layout, intent, Source([images], None, Selection(), False)) as listing:
        return listing.plan()


@pytest.fixture
def plan(tmp_path: Path, layout: Layout) -> Plan:
    images = f"file://{tmp_path}/images"
    for index in range(20):
        storage.write(f"{images}/{index:02d}.png", b"x")
    return make_plan(layout, images)


def wide_rows(layout: Layout, plan: Plan, positions: Sequence[int], result: dict[str, Any]) -> pa.Table:
    """ROW table of some manifest positions, all with the same result."""
    listed = manifest_parts.read(layout, plan.intent.run_id, 0).take(pa.array(positions, pa.int64())).to_pylist()
    rows = [row | result | {"position": position} for row, position in zip(listed, positions, strict=True)]
    return pa.Table.from_pylist(rows, schema=staging.ROW)


GOOD = {
    "width": 8,
    "height": 8,
    "image_group": "",
    "num_frames": 1,
    "image_format": "PNG",
    "image_hash": bytes(32),
    "brightness": 1.0,
    "contrast": 1.0,
    "sharpness": 1.0,
    "anomaly_score": 1.5,
    "score_max": 2.0,
    "score_mean": 1.0,
    "score_top1pct": 2.0,
    "p_value": 0.5,
    "is_anomalous": True,
    "heatmap": heatmap.encode(np.ones((8, 12), np.float32)),
    "heatmap_height": 8,
    "heatmap_width": 12,
    "regions": [],
}


def stage(
    layout: Layout,
    plan: Plan,
    scored: Sequence[int],
    failed: Sequence[int] = (),
    *,
    reason: str = "corrupt",
    attempt: str = "aaaaaaaa",
) -> None:
    """Stage rows as the pipeline does."""
    failure_stage = "fetch" if reason == "fetch_failed" else "decode"
    bad = {"stage": failure_stage, "reason": reason, "detail": "d", "attempts": 1, "image_group": ""}
    for positions, result in ((scored, GOOD), (failed, bad)):
        if positions:
            rows = wide_rows(layout, plan, sorted(positions), result)
            staging.put(layout, plan.intent.run_id, attempt, rows)


class Undisturbed(NamedTuple):
    """A night that nobody else is at."""

    now: datetime

    def check(self) -> None:
        pass

    def commit_time(self) -> datetime:
        return self.now


def commit(layout: Layout, plan: Plan, detector: Detector, *, now: datetime = NOW, **options: Any) -> RunRecord:
    return publishing.commit(
        layout,
        plan,
        detector.spec.calibration,
        before=options.pop("before", None),
        run=map,
        night=Undisturbed(now),
        facts=FACTS,
    )


def published(layout: Layout, record: RunRecord, table: str) -> list[int]:
    parts = getattr(record, table)
    return [i for part in parts for i in part_files.read_published(layout, part)["row_id"].to_pylist()]


def missing(layout: Layout, plan: Plan) -> list[int]:
    done = Coverage.read(layout, plan.intent.run_id)
    done.count_transient_as_missing()
    return [i for part in plan.parts for start, stop in done.missing(part) for i in range(start, stop)]


def test_a_complete_run_is_published_sorted_and_staging_is_gone(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, [19, 3, 7, 1, 0], [2])
    stage(layout, plan, [4, 5, 6, *range(8, 19)])
    record = commit(layout, plan, detector)
    assert published(layout, record, "scores") == [i for i in range(20) if i != 2]
    assert published(layout, record, "quarantine") == [2]
    assert (record.num_scored, record.num_quarantined, record.num_anomalous) == (19, 1, 19)
    assert commit_records.find(layout, plan.intent.run_id) == record
    assert not any(page for page in storage.pages(f"{layout.results}/_staging"))


def test_a_missing_row_is_never_committed(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, range(19))
    with pytest.raises(publishing.IncompleteRun, match="1 of 20 images"):
        commit(layout, plan, detector)
    assert commit_records.find(layout, plan.intent.run_id) is None
    assert missing(layout, plan) == [19]


def test_rows_staged_twice_count_once_and_a_score_beats_a_quarantine(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(20))
    stage(layout, plan, [3, 4], [5], attempt="bbbbbbbb")
    record = commit(layout, plan, detector)
    assert published(layout, record, "scores") == list(range(20))
    assert published(layout, record, "quarantine") == []
    assert record.num_duplicates_dropped == 3


def test_a_large_run_is_cut_into_parts_in_manifest_order(
    layout: Layout, plan: Plan, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PART_ROWS", 6)
    stage(layout, plan, [i for i in range(20) if i not in (6, 7, 8, 9, 10, 11)], range(6, 12))
    record = commit(layout, plan, detector)
    assert [part.rows for part in record.scores] == [6, 6, 2]
    assert [part.rows for part in record.quarantine] == [6]
    assert published(layout, record, "scores") == [*range(6), *range(12, 20)]


def test_the_record_of_the_first_to_commit_stands(
    layout: Layout, plan: Plan, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(layout, plan, range(20))
    with monkeypatch.context() as patch:
        # The second is already at work on the same rows.
        patch.setattr(intents, "remove_staging", lambda layout, run_id: None)
        first = commit(layout, plan, detector)
    second = commit(layout, plan, detector, now=NOW.replace(hour=4))
    assert second == first


def test_a_run_that_dies_before_the_record_is_finished_by_the_next(
    layout: Layout, plan: Plan, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(layout, plan, range(20))

    def die(uri: str, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create", die)
        with pytest.raises(KeyboardInterrupt):
            commit(layout, plan, detector)
    assert commit_records.find(layout, plan.intent.run_id) is None
    record = commit(layout, plan, detector)
    files = [info.uri for page in storage.pages(f"{layout.results}/scores") for info in page]
    assert files == [f"{layout.results}/{part.path}" for part in record.scores]


def test_rows_of_another_image_than_the_manifest_has_are_refused(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(10))
    rows = wide_rows(layout, plan, range(10, 20), GOOD | {"image_etag": "of something else"})
    staging.put(layout, plan.intent.run_id, "aaaaaaaa", rows)
    with pytest.raises(publishing.IncompleteRun, match="another image_etag than its manifest"):
        commit(layout, plan, detector)


def test_a_damaged_staged_part_is_deleted_and_done_again(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, range(20))
    [part] = Coverage.read(layout, plan.intent.run_id).parts
    storage.write(part.uri, storage.read(part.uri)[:-1] + b"?")
    with pytest.raises(staging.DamagedPart, match="run the same command again"):
        commit(layout, plan, detector)
    assert missing(layout, plan) == list(range(20))


def test_images_that_failed_because_of_the_store_are_tried_again_and_the_tries_are_counted(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(17), [17])
    stage(layout, plan, [], [18, 19], reason="fetch_failed")
    assert Coverage.read(layout, plan.intent.run_id).count() == 20
    assert missing(layout, plan) == [18, 19]
    stage(layout, plan, [18], [19], reason="fetch_failed", attempt="bbbbbbbb")
    assert missing(layout, plan) == [19]
    stage(layout, plan, [], [19], reason="fetch_failed", attempt="cccccccc")
    stage(layout, plan, [], [19], reason="fetch_failed", attempt="cccccccc")  # a task that Ray ran twice
    record = commit(layout, plan, detector)
    [part] = record.quarantine
    rows = part_files.read_published(layout, part).to_pylist()
    assert [(row["row_id"], row["reason"], row["attempts"]) for row in rows] == [
        (17, "corrupt", 1),
        (19, "fetch_failed", 3),
    ]


def test_readers_see_the_latest_run_of_a_night_and_survive_what_else_lies_there(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(20))
    first = commit(layout, plan, detector)
    later = RunRecord.model_validate(first.model_dump() | {"committed_at": NOW.replace(hour=9), "run_id": "later"})
    storage.write(layout.record("later"), later.model_dump_json().encode())
    storage.write(f"{layout.runs()}/notes.txt", b"remember the milk")
    assert [record.run_id for record in commit_records.committed(layout.results, "c")] == ["later"]


def test_a_run_without_a_single_score_can_be_read(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, [], range(20))
    record = commit(layout, plan, detector)
    connection = views.connect(layout.results)
    views.scores(connection, layout.results, [record])
    assert connection.sql("SELECT count(*), max(anomaly_score) FROM scores").fetchall() == [(0, None)]


def test_the_quarantine_limit_counts_each_image_once_and_not_those_scored_later(layout: Layout, plan: Plan) -> None:
    for attempt in ("aaaaaaaa", "bbbbbbbb"):
        stage(layout, plan, range(10), range(10, 20), attempt=attempt)
    stage(layout, plan, [10])
    done = Coverage.read(layout, plan.intent.run_id)
    assert (done.most_failed(), done.count_failed()) == (20, 9)
    with pytest.raises(TooManyBadImages, match="9 of the images under"):
        publishing.check_quarantine(done, 8, plan.intent, final=True)
    assert publishing.check_quarantine(done, 9, plan.intent, final=True)


def test_failures_of_the_store_do_not_stop_a_run_early(layout: Layout, plan: Plan) -> None:
    stage(layout, plan, range(10), range(10, 20), reason="fetch_failed")
    done = Coverage.read(layout, plan.intent.run_id)
    assert not publishing.check_quarantine(done, 5, plan.intent, final=False)
    with pytest.raises(TooManyBadImages, match="fetch_failed 10"):
        publishing.check_quarantine(done, 5, plan.intent, final=True)


def test_a_retry_keeps_the_scores_of_the_run_before_and_proves_all_of_them(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(18), [18, 19])
    before = commit(layout, plan, detector)
    rows = _listed(plan)[18:]
    retried = plan.model_copy(
        update={
            "intent": plan.intent.model_copy(
                update={"run_id": "retry", "supersedes": before.run_id, "keeps": before.run_id, "is_retry": True}
            ),
            "num_rows": 2,
            "parts": (plan.parts[0].model_copy(update={"start": 0, "rows": 2}),),
        }
    )
    storage.write(layout.manifest_part("retry", 0), manifest_parts.to_bytes(rows, [18, 19], -1))
    stage(layout, retried, [0], [1])
    record = commit(layout, retried, detector, before=before)
    assert sorted(published(layout, record, "scores")) == list(range(19))
    assert published(layout, record, "quarantine") == [19]
    assert record.scores[0] == before.scores[0]
    storage.write(layout.manifest_part("retry", 0), manifest_parts.to_bytes(rows, [3, 19], -1))
    stage(layout, retried, [0], [1])
    with pytest.raises(publishing.IncompleteRun, match="came twice"):
        commit(layout, retried, detector, before=before)


def _listed(plan: Plan) -> list[storage.ObjectInfo]:
    return sorted(info for page in storage.pages(plan.intent.images[0]) for info in page)


def test_a_published_part_that_was_changed_is_named(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, range(20))
    record = commit(layout, plan, detector)
    [part] = record.scores
    storage.write(f"{layout.results}/{part.path}", b"something else")
    with pytest.raises(FCDDError, match="damaged or replaced"):
        part_files.read_published(layout, part)
