"""The commit protocol without Ray, on a disk: what is proved, dropped, compacted and refused."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fcdd import heatmap, storage
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from jobs import _commit, _manifest, _records, _runs, _staging
from jobs._console import TooManyBadImages
from jobs._staging import StageParts
from schemas import Layout, RunRecord
from schemas.runs import Plan
from tests.unit.test_detector import make

NOW = datetime(2026, 11, 1, 3, tzinfo=UTC)


@pytest.fixture
def detector() -> Detector:
    return make()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(f"file://{tmp_path}/results")


@pytest.fixture
def plan(tmp_path: Path, layout: Layout, detector: Detector) -> Plan:
    images = f"file://{tmp_path}/images"
    for index in range(20):
        storage.write(f"{images}/{index:02d}.png", b"x")
    return _manifest.load_or_create_plan(
        layout,
        run_id="20261101-test",
        collection="c",
        day=date(2026, 11, 1),
        images_uri=images,
        bundle="b",
        bundle_digest=detector.spec.digest,
        now=NOW,
    )


def stage(
    layout: Layout,
    plan: Plan,
    scored: Sequence[int],
    failed: Sequence[int] = (),
    *,
    reason: str = "corrupt",
    attempt: str = "first",
) -> None:
    """Stage rows as the pipeline does."""
    [uri] = _manifest.part_uris(layout, plan)
    rows = _staging.read_table(uri).take(pa.array([*scored, *failed], pa.int64()))
    decoded = {"width": 8, "height": 8, "brightness": 1.0, "contrast": 1.0}
    good = decoded | {
        "anomaly_score": 1.5,
        "score_max": 2.0,
        "score_mean": 1.0,
        "score_top1pct": 2.0,
        "p_value": 0.5,
        "is_anomalous": True,
        "heatmap": heatmap.encode(np.ones((2, 2), np.float32)),
        "heatmap_height": 2,
        "heatmap_width": 2,
        "regions": [],
    }
    failure_stage = "fetch" if reason == "fetch_failed" else "decode"
    bad = {"stage": failure_stage, "reason": reason, "detail": "d", "attempts": 1}
    StageParts(layout.results, plan.run_id, attempt)(
        _staging.assemble(rows, [good] * len(scored) + [bad] * len(failed), plan)
    )


def commit(
    layout: Layout, plan: Plan, detector: Detector, *, max_quarantine_share: float = 1, now: datetime = NOW
) -> RunRecord:
    return _commit.commit(
        layout,
        plan,
        detector.spec,
        max_quarantine_share=max_quarantine_share,
        now=now,
        stage_seconds={},
        images_per_second=1.0,
        versions={},
    )


def published(layout: Layout, record: RunRecord, table: str) -> list[int]:
    parts = getattr(record, table)
    return [i for part in parts for i in _staging.read_table(f"{layout.results}/{part.path}")["row_id"].to_pylist()]


def test_a_complete_run_is_published_sorted_and_staging_is_gone(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, [19, 3, 7, 1, 0], [2])
    stage(layout, plan, [4, 5, 6, *range(8, 19)])
    record = commit(layout, plan, detector)
    assert published(layout, record, "scores") == [i for i in range(20) if i != 2]
    assert published(layout, record, "quarantine") == [2]
    assert (record.num_scored, record.num_quarantined, record.num_anomalous) == (19, 1, 19)
    assert _records.read(layout, plan.run_id) == record
    assert not any(page for page in storage.pages(f"{layout.results}/_staging"))


def test_a_missing_row_is_never_committed(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, range(19))
    with pytest.raises(_commit.IncompleteRun, match="1 of 20 images"):
        commit(layout, plan, detector)
    assert _records.read(layout, plan.run_id) is None
    assert np.flatnonzero(~_staging.done_rows(layout, plan, retry=False)).tolist() == [19]


def test_rows_staged_twice_count_once_and_a_score_beats_a_quarantine(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(20))
    stage(layout, plan, [3, 4], [5])
    record = commit(layout, plan, detector)
    assert published(layout, record, "scores") == list(range(20))
    assert published(layout, record, "quarantine") == []
    assert record.num_duplicates_dropped == 3


def test_a_large_run_is_cut_into_parts_in_manifest_order(
    layout: Layout, plan: Plan, detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_commit, "PART_ROWS", 6)
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
        patch.setattr(storage, "delete_prefix", lambda uri: None)  # the second is already at work on the same rows
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
    assert _records.read(layout, plan.run_id) is None
    record = commit(layout, plan, detector)
    files = [info.uri for page in storage.pages(f"{layout.results}/scores") for info in page]
    assert files == [f"{layout.results}/{part.path}" for part in record.scores]


def test_the_plan_of_an_interrupted_run_is_kept_when_images_are_added(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    storage.write(f"{plan.images}/late.png", b"x")
    again = _manifest.load_or_create_plan(
        layout,
        run_id=plan.run_id,
        collection="c",
        day=plan.day,
        images_uri=plan.images,
        bundle="b",
        bundle_digest=detector.spec.digest,
        now=NOW.replace(hour=9),
    )
    assert again == plan


def test_of_two_processes_that_list_at_the_same_time_one_adopts_the_plan_of_the_other(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = f"file://{tmp_path}/images"
    storage.write(f"{images}/b.png", b"x")
    arguments: dict[str, Any] = {"run_id": "r", "collection": "c", "day": date(2026, 11, 1), "images_uri": images}
    arguments |= {"bundle": "b", "bundle_digest": "d", "now": NOW}
    list_images, plans = _manifest.list_images, []

    def list_while_another_plans(prefix: str) -> list[storage.ObjectInfo]:
        monkeypatch.setattr(_manifest, "list_images", list_images)
        plans.append(_manifest.load_or_create_plan(layout, **arguments))
        storage.write(f"{images}/a.png", b"x")  # arrives between the two listings
        return list_images(prefix)

    monkeypatch.setattr(_manifest, "list_images", list_while_another_plans)
    plans.append(_manifest.load_or_create_plan(layout, **arguments))
    assert plans[0] == plans[1]
    [uri] = _manifest.part_uris(layout, plans[1])
    assert _staging.read_table(uri)["image_uri"].to_pylist() == [f"{images}/b.png"]


def test_images_that_failed_because_of_the_store_are_tried_again_and_the_tries_are_counted(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(17), [17])
    stage(layout, plan, [], [18, 19], reason="fetch_failed")
    assert _staging.done_rows(layout, plan, retry=False).all()
    assert np.flatnonzero(~_staging.done_rows(layout, plan, retry=True)).tolist() == [18, 19]
    stage(layout, plan, [18], [], reason="fetch_failed")
    stage(layout, plan, [], [19], reason="fetch_failed", attempt="second")
    stage(layout, plan, [], [19], reason="fetch_failed", attempt="third")
    stage(layout, plan, [], [19], reason="fetch_failed", attempt="third")  # a task that Ray ran twice
    record = commit(layout, plan, detector)
    [part] = record.quarantine
    rows = _staging.read_table(f"{layout.results}/{part.path}").to_pylist()
    assert [(row["row_id"], row["reason"], row["attempts"]) for row in rows] == [
        (17, "corrupt", 1),
        (19, "fetch_failed", 3),
    ]


def test_readers_see_the_latest_run_of_a_night_and_survive_what_else_lies_there(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    stage(layout, plan, range(20))
    first = commit(layout, plan, detector)
    later = RunRecord.model_validate(
        first.model_dump() | {"committed_at": NOW.replace(hour=9), "plan": plan.model_copy(update={"run_id": "later"})}
    )
    storage.write(layout.record("later"), later.model_dump_json().encode())
    storage.write(f"{layout.runs()}/notes.txt", b"remember the milk")
    assert [record.plan.run_id for record in _runs.committed(layout.results, "c")] == ["later"]
    storage.write(layout.record("odd"), b"{}")
    with pytest.raises(ConfigError, match=r"odd\.json is not a run record"):
        _runs.committed(layout.results, "c")


def test_a_run_without_a_single_score_can_be_read(layout: Layout, plan: Plan, detector: Detector) -> None:
    stage(layout, plan, [], range(20))
    record = commit(layout, plan, detector)
    connection = _runs.connect(layout.results)
    _runs.view_scores(connection, layout.results, [record])
    assert connection.sql("SELECT count(*), max(anomaly_score) FROM scores").fetchall() == [(0, None)]


def test_the_quarantine_limit_counts_each_image_once_and_not_those_scored_later(
    layout: Layout, plan: Plan, detector: Detector
) -> None:
    for attempt in ("first", "second"):
        stage(layout, plan, range(10), range(10, 20), attempt=attempt)
    stage(layout, plan, [10])
    with pytest.raises(TooManyBadImages, match="9 of 20 images"):
        commit(layout, plan, detector, max_quarantine_share=0.44)
    assert _records.read(layout, plan.run_id) is None
    assert commit(layout, plan, detector, max_quarantine_share=0.45).num_quarantined == 9


def test_the_manifest_lists_images_once_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/c.jpeg", "a/.hidden/d.png", "_e/f.png", "g.txt", "a-b.tif"):
        storage.write(f"{tmp_path}/{name}", b"1")
    infos = _manifest.list_images(f"file://{tmp_path}")
    assert [info.uri.removeprefix(f"file://{tmp_path}/") for info in infos] == ["a-b.tif", "a/c.jpeg", "b.PNG"]
    changed = [infos[0]._replace(etag="other"), *infos[1:]]
    assert _manifest.digest(infos) != _manifest.digest(changed)
