"""Which run of a night counts: interrupted, repeated, removed and damaged ones, and nights that fail beside others."""

import datetime as dt
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from fcdd.bundle import SPEC_FILE
from fcdd.io import storage
from jobs import results
from jobs.catalog import commit_records, intents, leases
from jobs.scoring import publishing
from jobs.scoring import runs as scoring_runs
from jobs.scoring.options import ScoreOptions
from schemas import Layout, RunRecord
from tests.line import Line, run_verb

ROOT = Path(__file__).parents[2]


def score(line: Line, *options: str, check: bool = True, day: int = 1) -> tuple[int, str]:
    done = line.around(
        *("score", "--bundle", f"{line.root}/bundle", "--images", f"{line.root}/nights/2026-11-{day:02d}"),
        *("--date", f"2026-11-{day:02d}", "--workers", "0", *options),
        check=check,
    )
    return done.returncode, done.stderr


def interrupted_before_the_record(line: Line, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """A score that died when everything was staged."""

    def die(*_: object, **__: object) -> RunRecord:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "commit", die)
        assert score(line, *options, check=False)[0] == 130


def layout_of(line: Line) -> Layout:
    return Layout(f"file://{line.results}")


def test_an_interrupted_run_that_another_one_overtook_begins_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.upload("nights/2026-11-01", 20, seed=1)
    interrupted_before_the_record(line, monkeypatch)
    line.upload("nights/2026-11-01/late", 10, seed=2, defects=10)
    assert line.nightly(check=False).returncode in (0, 4)
    [night] = line.records()
    assert (night.num_scored, night.num_anomalous) == (30, 10)
    assert score(line, check=False)[0] == 2  # the night is left alone
    _, said = score(line, "--rescore")
    [record] = line.records()
    assert (record.num_scored, record.num_anomalous, record.supersedes) == (30, 10, night.run_id)
    assert f"was begun when no run counted for the night; now {night.run_id} does, so it begins again" in said
    line.around("verify", "--date", "2026-11-01", "--sample", "0")


def test_a_run_is_not_committed_when_another_one_came_first(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both got past the lease: one was stopped for longer than a lease lives."""
    line.upload("nights/2026-11-01", 20, seed=1)
    commit = publishing.commit

    def late(*arguments: object, **options: object) -> RunRecord:
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "commit", commit)
            patch.setattr(leases, "_look", lambda *_: leases._Found(90, None, 0.0))
            line.nightly(check=False)
        storage.delete_prefix(layout_of(line).leases())
        lease = options["night"]._lease  # type: ignore[attr-defined]
        monkeypatch.setattr(lease, "check", lambda: None)
        return commit(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "commit", late)
    code, said = score(line, check=False)
    [record] = line.records()
    assert record.settings["webhook"] is None  # it is that of `nightly`
    assert (code, len(commit_records.history(layout_of(line)))) == (1, 1)
    assert f"{record.run_id} came to count for c 2026-11-01 in place of no run; nothing was committed" in said
    assert score(line, "--rescore")[0] == 0
    [again] = line.records()
    assert again.supersedes == record.run_id


def test_of_the_runs_of_a_night_the_one_that_took_the_place_of_another_is_the_later(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock says; and so the newest counts when a record between was removed."""
    line.upload("nights/2026-11-01", 5, seed=1)
    score(line)
    for _ in range(2):
        score(line, "--rescore")
    first, second, third = commit_records.history(layout_of(line))
    assert (second.supersedes, third.supersedes) == (first.run_id, second.run_id)
    ahead = first.model_copy(update={"committed_at": first.committed_at.replace(year=2040)})
    Path(line.results, "runs", f"{first.run_id}.json").write_text(ahead.model_dump_json())
    for record in (second, third):
        Path(line.results, "runs", f"{record.run_id}.json").unlink()
    score(line, "--rescore")
    [record] = line.records()
    assert record.supersedes == first.run_id
    assert record.committed_at > ahead.committed_at


def test_every_documented_way_reads_the_run_that_counts(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record between two others was removed: both are standing, and the later one counts for everybody."""
    line.upload("nights/2026-11-01", 5, seed=1)
    for options in ((), ("--rescore",), ("--rescore",)):
        score(line, *options)
    first, second, third = commit_records.history(layout_of(line))
    assert second.supersedes == first.run_id
    Path(line.results, "runs", f"{second.run_id}.json").unlink()
    wanted = [f"{line.results}/{part.path}" for part in third.scores]
    assert results.open(line.results).paths() == [f"file://{path}" for path in wanted]
    monkeypatch.chdir(line.root)
    text = (ROOT / "docs/results.md").read_text()
    [function] = re.findall(r"```python\n(import glob.*?)```", text, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(function, namespace)
    assert namespace["files"](line.results) == wanted
    [documented] = re.findall(r"```sql\n(.*?);", text, re.DOTALL)
    connection = duckdb.connect()
    connection.execute(documented)
    [(paths,)] = connection.execute("SELECT getvariable('parts')").fetchall()
    assert [f"{line.root}/{path}" for path in paths] == wanted
    for dialect in ("athena", "trino", "spark"):
        ddl = (ROOT / f"schemas/ddl/{dialect}.sql").read_text()
        [view] = re.findall(r"current_runs AS\n(.*?);", ddl, re.DOTALL)
        runs = f"(FROM read_json('{line.results}/runs/*.json'))"
        found = connection.execute(re.sub(r"(hive\.fcdd\.|fcdd_)runs", f"{runs} r", view)).fetchdf()
        assert found["run_id"].to_list() == [third.run_id]


def test_a_name_of_a_run_is_not_used_again_when_a_record_was_removed(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    score(line)
    score(line, "--rescore")
    first, second = (record.run_id for record in commit_records.history(layout_of(line)))
    Path(line.results, "runs", f"{first}.json").unlink()
    score(line, "--rescore")
    assert [record.run_id for record in line.records()] == [f"{first}-r3"]
    Path(line.results, "runs", f"{first}-r4.json").write_text("{}")
    code, said = score(line, "--rescore", check=False)
    assert code == 2
    assert f"the next run of this command is {first}-r4, and there is something at" in said
    assert intents.staged(layout_of(line)) == []  # nothing was scored for nothing
    assert [record.run_id for record in line.records()] == [f"{first}-r3"]
    assert second == f"{first}-r2"


def test_options_that_an_interrupted_run_cannot_take_any_more_are_named(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upload("nights/2026-11-01", 20, seed=1)
    interrupted_before_the_record(line, monkeypatch, "--alpha", "0.05", "--fdr", "0.2")
    _, said = score(line, "--alpha", "0.02", "--fdr", "0.1")
    [record] = line.records()
    assert (record.alpha, record.fdr) == (0.05, 0.2)
    assert "goes on with the options it was begun with: --alpha 0.05 (not 0.02), --fdr 0.2 (not 0.1)" in said


def test_the_retry_of_a_quarantine_takes_the_options_of_its_run_and_none_of_the_environment(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upload("nights/2026-11-01", 20, seed=1)
    storage.write(f"{line.root}/nights/2026-11-01/x.png", b"broken")
    score(line, "--alpha", "0.05", "--max-image-mb", "7")
    storage.write(f"{line.root}/nights/2026-11-01/x.png", storage.read(f"{line.root}/nights/2026-11-01/cam-0/000.png"))
    for name, value in (("ALPHA", "0.5"), ("BUNDLE", "/nowhere"), ("FDR", "0.9"), ("MAX_QUARANTINE", "0")):
        monkeypatch.setenv(f"FCDD_{name}", value)
    line.around("retry-quarantine", "--date", "2026-11-01", "--workers", "0")
    [record] = line.records()
    assert (record.num_scored, record.alpha, record.settings["max_image_mb"]) == (21, 0.05, 7)


def test_a_night_that_fails_does_not_stop_those_after_it(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(day=1, check=True)
    for index in range(20):
        storage.write(f"{line.root}/nights/2026-11-02/{index}.png", b"broken")
    for day in (3, 4):
        line.upload(f"nights/2026-11-{day:02d}", 5, seed=day)
    done = line.nightly("--catch-up", day=4)
    assert done.returncode == 3
    assert re.search(r"^error: 2026-11-02: \d+ of the images under .* cannot be scored", done.stderr, re.MULTILINE)
    assert [record.day.day for record in line.records()] == [1, 3, 4]
    again = line.nightly("--catch-up", day=4)
    assert again.returncode == 3


FOREIGN = {
    "junk": b"junk",
    "nothing": b"",
    "another document": b"{}",
    "deep JSON": b"[" * 100_000,
    "a long number": b'{"version": 1' + b"0" * 400 + b"}",
    "not UTF-8": b"\xff\xfe\x00",
    "a number that no table holds": "num_listed",
    "a count that no table holds": "quarantine_reasons",
    "a time at the end of the calendar": "committed_at",
}


def _edited(record: RunRecord, field: str) -> bytes:
    values = {"num_listed": 10**30, "quarantine_reasons": {"x": 10**40}, "committed_at": "9999-12-31T23:59:59.999999Z"}
    return json.dumps(record.model_dump(mode="json") | {field: values[field]}).encode()


def test_an_object_among_the_records_that_is_none_costs_a_warning_and_nothing_else(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(check=True)
    [record] = line.records()
    text = record.model_dump_json()
    others = {
        **{name: _edited(record, value) if isinstance(value, str) else value for name, value in FOREIGN.items()},
        "NaN": text.replace(f'"threshold":{record.threshold!r}', '"threshold":NaN').encode(),
        "a time without a zone": text.replace('Z"', '"').encode(),
        "a part elsewhere": text.replace("scores/collection=c/", "scores/../../collection=c/").encode(),
        "a copy under another name": text.encode(),
    }
    for name, data in others.items():
        Path(line.results, "runs", f"{name}.json").write_bytes(data)
    seen = line.around("query", "--format", "json")
    assert len(json.loads(seen.stdout)) > 0
    for name in others:
        assert f"left out: file://{line.results}/runs/{name}.json is" in seen.stderr
    assert line.records() == [record]
    run_verb("metrics", "--results", line.results, "--once")
    assert [
        run["run_id"] for run in json.loads(run_verb("runs", "--results", line.results, "--format", "json").stdout)
    ] == [record.run_id]
    line.upload("nights/2026-11-02", 5, seed=2)
    line.nightly(day=2, check=True)
    assert len(line.records()) == 2
    before = set(Path(line.results).rglob("part-*.parquet"))
    done = run_verb("gc", "--results", line.results, "--older-than-days", "0")
    assert "published parts are left alone: a record that cannot be read may name them" in done.stderr
    assert set(Path(line.results).rglob("part-*.parquet")) == before


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bundle_with_a_number_that_is_none_is_refused(line: Line, value: float) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    path = Path(line.root, "bundle", SPEC_FILE)
    fields = json.loads(path.read_text())
    del fields["digest"]
    fields["calibration"]["map_threshold"] = value
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"digest": digest, **fields}))
    done = line.nightly(check=False)
    assert done.returncode == 2
    assert "is not a bundle specification" in done.stderr
    assert "map_threshold" in done.stderr
    assert not Path(line.results).exists()


NONSENSE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "scores that are not ascending": lambda c: c["pooled"]["scores"].reverse(),
    "a statistic that is not ascending": lambda c: c["pooled"]["statistics"]["contrast"].reverse(),
    "another number of images": lambda c: c["pooled"].update(num_images=10**9),
    "a number that is none": lambda c: c["pooled"].update(num_images=10**30),
    "a ragged map": lambda c: c["pooled"]["map_mean"][0].pop(),
    "no statistics": lambda c: c["pooled"].update(statistics={}),
    "an empty statistic": lambda c: c["pooled"]["statistics"].update(contrast=[]),
    "formats less than none": lambda c: c["pooled"].update(formats={"PNG": -5}),
    "a threshold below all": lambda c: c.update(map_threshold=-1),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_calibration_that_does_not_fit_together_is_refused(line: Line, case: str) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    path = Path(line.root, "bundle", SPEC_FILE)
    fields = json.loads(path.read_text())
    del fields["digest"]
    NONSENSE[case](fields["calibration"])
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"digest": digest, **fields}))
    done = line.nightly(check=False)
    assert (done.returncode, "is not a bundle specification" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("field", ["deep", "size", "number"])
def test_a_bundle_of_nonsense_is_one_sentence(line: Line, field: str) -> None:
    path = Path(line.root, "bundle", SPEC_FILE)
    text = path.read_text()
    wrong = {
        "deep": "[" * 100_000,
        "size": text.replace('"input_size": [32, 48]', '"input_size": [0, 0]'),
        "number": text.replace('"gaussian_std": 2.0', f'"gaussian_std": 1{"0" * 400}'),
    }[field]
    assert wrong != text
    path.write_text(wrong)
    line.upload("nights/2026-11-01", 5, seed=1)
    done = line.nightly(check=False)
    assert done.returncode == 2
    assert "is not a bundle specification" in done.stderr
    assert "Traceback" not in done.stderr


def test_gc_goes_by_the_clock_of_the_store_and_leaves_what_it_cannot_read(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    interrupted_before_the_record(line, monkeypatch)
    layout = layout_of(line)
    [run_id] = intents.staged(layout)
    future = time.time() + 8 * 86_400
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: future)
        run_verb("gc", "--results", line.results)
    assert intents.staged(layout) == [run_id]
    intent = json.loads(storage.read(layout.intent(run_id)))
    storage.write(layout.intent(run_id), json.dumps(intent | {"of_a_later_version": 1}).encode())
    old = time.time() - 30 * 86_400
    for path in Path(line.results).rglob("*"):
        os.utime(path, (old, old))
    left = run_verb("gc", "--results", line.results)
    assert f"left staging of {run_id}: run {run_id} was begun by another version of this program" in left.stderr
    assert intents.staged(layout) == [run_id]
    assert "was begun by another version" in score(line, check=False)[1]
    storage.write(layout.intent(run_id), json.dumps(intent | {"runtime": {"device": "tpu"}}).encode())
    code, said = score(line, check=False)
    assert (code, "was begun by another version" in said) == (2, True)


def test_what_is_left_of_an_interrupted_removal_never_looks_like_work_that_is_done(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.upload("nights/2026-11-01", 20, seed=1)
    interrupted_before_the_record(line, monkeypatch)
    layout = layout_of(line)
    [run_id] = intents.staged(layout)
    staged = [info.uri for page in storage.pages(layout.staging(run_id)) for info in page]
    groups = intents.in_order_of_removal(staged)
    assert sorted(uri for group in groups for uri in group) == sorted(staged)
    assert groups[-1] == [layout.intent(run_id)]
    for done in range(1, len(groups)):
        storage.delete_all(groups[done - 1])
        score(line, "--dry-run")
        assert intents.read_intent(layout, run_id) is not None
    score(line)
    [record] = line.records()
    assert record.num_scored == 20


def test_a_damaged_labels_file_does_not_stop_gc(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(check=True)
    storage.write(layout_of(line).labels("c"), b"junk")
    storage.write(f"{layout_of(line).masks('c')}/0.png", b"a drawing")
    done = run_verb("gc", "--results", line.results, "--older-than-days", "0")
    assert "the masks of collection c are left alone" in done.stderr
    assert Path(line.results, "labels/collection=c/masks/0.png").exists()


def test_results_that_are_not_there_are_an_error_and_not_an_empty_table(tmp_path: Path) -> None:
    for verb in ("runs", "gc"):
        done = run_verb(verb, "--results", str(tmp_path / "nowhere"), check=False)
        assert done.returncode == 2
        assert "no run was ever begun there; correct --results" in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("option", ["--results", "--bundle"])
def test_the_images_are_no_place_for_anything_else(line: Line, option: str) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    images = f"{line.root}/nights/2026-11-01"
    places = {"--results": line.results, "--bundle": f"{line.root}/bundle", option: images}
    options = [each for name, place in places.items() for each in (name, place)]
    done = run_verb("score", "--images", images, "--collection", "c", "--date", "2026-11-01", *options, check=False)
    assert (done.returncode, f"{option} and --images are the same location" in done.stderr) == (2, True)


def test_a_record_is_read_back_before_it_is_written(line: Line) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(check=True)
    [record] = line.records()
    broken = record.model_copy(update={"run_id": "x", "threshold": math.nan})
    with pytest.raises(ValueError, match="threshold"):
        commit_records.write(layout_of(line), broken)
    assert not Path(line.results, "runs/x.json").exists()


@pytest.mark.parametrize("damage", [b"", b"junk", "half", "another version"])
def test_a_damaged_manifest_of_one_night_is_a_sentence_and_does_not_stop_the_others(
    line: Line, monkeypatch: pytest.MonkeyPatch, damage: bytes | str
) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(day=1, check=True)
    for day in (2, 3):
        line.upload(f"nights/2026-11-{day:02d}", 5, seed=day)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        line.nightly(day=2)
    layout = layout_of(line)
    [run_id] = intents.staged(layout)
    part = Path(layout.manifest_part(run_id, 0).removeprefix("file://"))
    whole = part.read_bytes()
    if damage == "another version":
        pq.write_table(pq.read_table(part).replace_schema_metadata(None), part)
    else:
        part.write_bytes(whole[: len(whole) // 2] if isinstance(damage, str) else damage)
    Path(layout.plan(run_id).removeprefix("file://")).unlink()
    done = line.nightly("--catch-up", day=3)
    assert done.returncode == 1
    assert "is damaged, or of another version; delete" in done.stderr
    assert "Traceback" not in done.stderr
    assert [record.day.day for record in line.records()] == [1, 3]


def test_whatever_is_wrong_with_one_night_the_others_are_done(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    line.nightly(day=1, check=True)
    for day in (2, 3):
        line.upload(f"nights/2026-11-{day:02d}", 5, seed=day)
    score_night = scoring_runs.score

    def broken(options: ScoreOptions) -> RunRecord:
        if options.day.day == 2:
            raise RuntimeError("a fault of this program")
        return score_night(options)

    monkeypatch.setattr(scoring_runs, "score", broken)
    done = line.nightly("--catch-up", day=3)
    assert done.returncode == 1
    assert "2026-11-02 was not done" in done.stderr
    assert [record.day.day for record in line.records()] == [1, 3]


@pytest.mark.parametrize(
    "name", ["000001 (1).json", "000001.json.bak", "\u00b2.json", "9" * 30 + ".json", "now-x", ".json"]
)
def test_what_else_lies_among_the_leases_is_none(line: Line, name: str) -> None:
    line.upload("nights/2026-11-01", 5, seed=1)
    folder = layout_of(line).lease("c", dt.date(2026, 11, 1))
    storage.write(f"{folder}/{name}", b"x")
    score(line)
    assert len(line.records()) == 1
    run_verb("gc", "--results", line.results, "--older-than-days", "0")


def test_images_behind_a_link_that_leads_nowhere_are_not_taken_for_deleted(line: Line) -> None:
    line.upload("real", 5, seed=1)
    line.upload("camera", 5, seed=2)
    Path(line.root, "all").mkdir()
    for name in ("real", "camera"):
        Path(line.root, "all", name).symlink_to(Path(line.root, name))
    Path(line.root, "all", "one.png").symlink_to(Path(line.root, "camera/cam-0/000.png"))
    line.nightly("--images", f"{line.root}/all", "--date", "today", check=True)
    Path(line.root, "camera").rename(Path(line.root, "unmounted"))
    listed = line.around(
        *("score", "--bundle", f"{line.root}/bundle", "--images", f"{line.root}/all", "--since-last", "--workers", "0"),
        *("--date", "2026-11-27"),
    )
    assert "deleted" not in listed.stdout
    assert sum(record.num_deleted for record in line.records()) == 0
    assert "2 by rule 'unreadable name'" in listed.stderr
