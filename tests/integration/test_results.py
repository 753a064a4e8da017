"""What people and programs get from committed results: questions, SQL, the Python API, other engines, files."""

import csv
import dataclasses
import datetime as dt
import gc
import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools.coco import COCO

from benchmarks import result_tables
from fcdd import heatmap, images
from fcdd.detector import Detector
from fcdd.errors import ConfigError, FCDDError
from fcdd.images import View
from fcdd.io import storage
from jobs import results
from jobs.results import Results
from jobs.shell import tables
from jobs.viewing import rendering
from schemas import LABELS, QUARANTINE, SCORES, Layout
from tests.hostile import HOSTILE
from tests.line import NUM_IMAGES, Line, picture, run_verb
from tests.places import encoded

ROOT = Path(__file__).parents[2]


def ask(line: Line, *options: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(
        run_verb("query", "--results", line.results, *options, "--format", "json").stdout
    )
    return found


def test_the_top_is_by_score_with_near_duplicates_as_one_line(nights: Line) -> None:
    every = ask(nights, "--top", "200", "--duplicates", "--date", "2026-11-02")
    scores = [row["anomaly_score"] for row in every]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    top = ask(nights, "--top", "5", "--date", "2026-11-02")
    assert len(top) == 5
    assert max(int(str(row["num_alike"])) for row in top) >= 5  # one defect and its four copies
    assert {row["image_uri"] for row in ask(nights, "--alarms", "--top", "99")} == {
        row["image_uri"] for row in ask(nights, "sql", "--sql", "SELECT image_uri FROM scores WHERE is_anomalous")
    }


def test_a_table_of_alarms_says_how_many_there_are_and_how_to_see_the_others(nights: Line) -> None:
    alarms = [int(str(row["num_alike"])) for row in ask(nights, "--alarms", "--top", "99")]
    few = run_verb("query", "--results", nights.results, "--alarms", "--top", "2").stdout
    groups = round(sum(1 / alike for alike in alarms))
    assert groups < len(alarms)
    what = f"; {len(alarms)} alarms in {groups} groups that look alike"
    assert f"{what}, the worst 2 are shown (--top {len(alarms)}: all)" in few
    every = run_verb("query", "--results", nights.results, "--alarms", "--top", "99").stdout
    assert what in every
    assert "are shown" not in every


def test_history_follows_one_image_also_into_the_quarantine(nights: Line) -> None:
    uri = f"file://{nights.root}/images/cam-1/001.png"
    states = [(row["date"], row["state"], row["reason"]) for row in ask(nights, "history", "--uri", uri)]
    assert states == [("2026-11-01", "scored", ""), ("2026-11-02", "quarantined", "empty: the object has 0 bytes")]
    assert [row["state"] for row in ask(nights, "history", "--uri", "cam-1/001.png")] == ["scored", "quarantined"]
    for end, said in (
        ("1.png", "these runs know no image '1.png'"),
        ("001.png", "images end in '001.png', among them"),
    ):
        unknown = run_verb("query", "history", "--results", nights.results, "--uri", end, check=False)
        assert (unknown.returncode, said in unknown.stderr) == (2, True)


def test_alarms_are_counted_per_night_and_camera(nights: Line) -> None:
    rows = ask(nights, "alarms")
    assert [(row["date"], row["group"]) for row in rows] == [
        (f"2026-11-0{day}", f"cam-{camera}") for day in (1, 2) for camera in (0, 1)
    ]
    first, second = nights.records()
    for record, counted in ((first, rows[:2]), (second, rows[2:])):
        for name, total in (
            ("scored", record.num_scored),
            ("alarms", record.num_anomalous),
            ("quarantined", record.num_quarantined),
        ):
            assert sum(int(str(row[name])) for row in counted) == total
    assert {row["group"] for row in ask(nights, "alarms", "--group", "cam-1")} == {"cam-1"}
    folders = {row["folder"] for row in ask(nights, "alarms", "--by", "folder")}
    assert folders == {f"file://{nights.root}/images/cam-{camera}" for camera in (0, 1)}
    assert [row["scored"] for row in ask(nights, "alarms", "--by", "night")] == [first.num_scored, second.num_scored]


def test_quarantine_says_why_with_an_example(nights: Line) -> None:
    rows = {str(row["reason"]): row for row in ask(nights, "quarantine")}
    assert {reason: row["images"] for reason, row in rows.items()} == {"empty": 1, "not_an_image": 1}
    assert str(rows["not_an_image"]["example"]).endswith("/cam-1/broken.png")


def test_changes_are_those_of_images_that_both_nights_have(nights: Line) -> None:
    changed = {
        str(row["image_uri"]).split("/images/")[1]: (row["before"], row["now"]) for row in ask(nights, "changes")
    }
    assert changed["cam-1/001.png"] == ("no alarm", "quarantined")
    assert {name for name, (_, now) in changed.items() if now == "alarm"} == {f"cam-0/00{n}.png" for n in (0, 2, 4)}
    table = run_verb("query", "changes", "--results", nights.results).stdout
    assert f"of the {NUM_IMAGES} images that both nights have" in " ".join(table.split())
    assert "drifted" in table
    with pytest.raises(AssertionError, match="there is one night, so nothing can have changed"):
        run_verb("query", "changes", "--results", nights.results, "--date", "2026-11-01")


def test_only_runs_that_count_are_seen(nights: Line, tmp_path: Path) -> None:
    again = Line(nights.root)
    before = nights.records()[0]
    count = "SELECT date, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL"
    seen = ask(nights, "--sql", count)
    stray = Layout(nights.results).part("scores", "c", dt.date(2026, 11, 1), "dead", "part-00000-00.parquet")
    path = Path(nights.results, stray)
    path.parent.mkdir(parents=True)
    pq.write_table(results.open(nights.results).dataset().to_table(), path)
    assert ask(again, "--sql", count) == seen
    assert {row["run_id"] for row in ask(nights, "runs")} == {record.run_id for record in nights.records()}
    assert before.num_scored == seen[0]["n"]


FORBIDDEN = {
    "a file of the system": ("SELECT * FROM read_text('/etc/passwd')", "the table function read_text is not allowed"),
    "a file as a table": ("SELECT * FROM '/etc/passwd'", "there is no table '/etc/passwd'"),
    "another file as CSV": ("FROM read_csv('/etc/hostname')", "the table function read_csv is not allowed"),
    "a listing": ("FROM glob('/*')", "the table function glob is not allowed"),
    "the environment": ("FROM read_blob('/proc/self/environ')", "read_blob is not allowed"),
    "a file beside the results": ("FROM read_text('{results}/../secret.txt')", "read_text is not allowed"),
    "a record": ("FROM read_text('{results}/runs/*.json')", "read_text is not allowed"),
    "secrets": ("FROM duckdb_secrets()", "duckdb_secrets is not allowed"),
    "a setting that names files": ("SELECT current_setting('allowed_paths')", "the function current_setting is not"),
    "the same in a condition": ("FROM runs WHERE CURRENT_SETTING('temp_directory') != ''", "current_setting is not"),
    "all settings": ("FROM duckdb_settings()", "duckdb_settings is not allowed"),
    "all settings by another name": ("FROM pg_catalog.pg_settings", "there is no table 'pg_catalog.pg_settings'"),
    "a view of DuckDB by the name of a CTE elsewhere": (
        "SELECT s.name, s.setting FROM (WITH pg_settings AS (SELECT 1) FROM pg_settings), pg_settings s",
        "cannot be called 'pg_settings'",
    ),
    "the same within the CTE": (
        "WITH Duckdb_Logs AS (SELECT * FROM duckdb_logs) FROM duckdb_logs",
        "cannot be called 'duckdb_logs'",
    ),
    "a file by the name of a CTE elsewhere": (
        'SELECT * FROM (WITH "/etc/passwd.csv" AS (SELECT 1 a) FROM "/etc/passwd.csv"), "/etc/passwd.csv"',
        "cannot be called '/etc/passwd.csv'",
    ),
    "what a view of DuckDB is made of": ("FROM (SHOW pg_settings)", "there is no table 'pg_settings'"),
    "SQL in a text": ("FROM query('FROM duckdb_settings()')", "the table function query is not allowed"),
    "serialised SQL": ("FROM json_execute_serialized_sql('{{}}')", "json_execute_serialized_sql is not allowed"),
    "the spill folder": ("FROM glob('/tmp/fcdd-query-*/**')", "glob is not allowed"),
    "a log": ("SELECT write_log('x')", "the function write_log is not allowed"),
    "waiting": ("SELECT sleep_ms(10000)", "the function sleep_ms is not allowed"),
    "the network": ("FROM 'https://example.com/x.parquet'", "there is no table 'https://example.com/x.parquet'"),
    "a variable of the process": ("FROM paths", "there is no table 'paths'"),
    "writing a file": ("COPY (SELECT 1) TO '{results}/x.csv'", "expected one SELECT, got COPY"),
    "writing under another name": ("EXPLAIN ANALYZE COPY (SELECT 1) TO '{results}/x.csv'", "got EXPLAIN"),
    "writing a part": ("COPY scores TO '{part}'", "got COPY"),
    **{
        f"{verb} within a SELECT": (f"WITH x AS ({body}) SELECT * FROM x", f"{verb} is not allowed within a SELECT")
        for verb, body in {
            "COPY": "COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)",
            "INSERT": "INSERT INTO runs SELECT * FROM runs RETURNING *",
            "UPDATE": "UPDATE runs SET run_id = 'x' RETURNING *",
            "DELETE": "DELETE FROM runs RETURNING *",
        }.items()
    },
    "emptying within a SELECT": ("WITH x AS (TRUNCATE runs) SELECT 1", "is not allowed within a SELECT"),
    "writing in a subquery": (
        "SELECT (WITH x AS (COPY (SELECT 1) TO '{part}' (FORMAT parquet, USE_TMP_FILE false)) SELECT count(*) FROM x)",
        "COPY is not allowed within a SELECT",
    ),
    "writing beside another part of it": (
        "SELECT 1 UNION ALL (WITH x AS (DELETE FROM runs RETURNING 1) FROM x)",
        "DELETE is not allowed within a SELECT",
    ),
    "a name that a CTE has elsewhere": (
        "SELECT (WITH duckdb_settings AS (SELECT 1) SELECT 1), * FROM duckdb_settings()",
        "duckdb_settings is not allowed",
    ),
    "what cannot be checked": ("PIVOT scores ON image_group USING count(*)", "expected one SELECT"),
    "a SELECT of enormous depth": ("SELECT " + "(" * 3000 + "1" + ")" * 3000, ""),
    "exporting": ("EXPORT DATABASE '{results}/x'", "got EXPORT"),
    "another database": ("ATTACH '{results}/x.db'", "got ATTACH"),
    "an extension": ("INSTALL httpfs", "got "),
    "a setting": ("SET enable_external_access = true", "got SET"),
    "a table": ("CREATE TABLE x AS SELECT 1", "got CREATE"),
    "two statements": ("SELECT 1; COPY (SELECT 1) TO '{results}/x.csv'", "got SELECT and COPY"),
    "nothing": (" ", "got nothing"),
    "no SQL": ("what is anomalous?", "not SQL"),
    "an unknown column": ("SELECT nonsense FROM scores", "cannot be answered"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_sql_of_ones_own_reads_the_results_and_nothing_else(nights: Line, case: str) -> None:
    Path(nights.root, "secret.txt").write_text("canary")
    query, message = FORBIDDEN[case]
    found = results.open(nights.results)
    query = query.format(results=nights.results, part=found.paths()[0].removeprefix("file://"))
    before = {path: path.stat().st_mtime_ns for path in Path(nights.root).rglob("*")}
    for explain in ((), ("--explain",)):
        done = run_verb("query", "--results", nights.results, "--sql", query, *explain, check=False)
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
        assert "canary" not in done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in Path(nights.root).rglob("*")} == before


def test_explain_shows_that_other_nights_and_row_groups_are_left_out(tmp_path: Path) -> None:
    """Five nights of 12,000 images: three row groups each."""
    result_tables.generate(str(tmp_path), nights=5, images=12_000, cells=4)
    uri = result_tables.image_uri(result_tables.FIRST_NIGHT, 7_777)
    query = f"SELECT * FROM scores WHERE date = '{result_tables.FIRST_NIGHT}' AND image_uri = '{uri}'"
    common = ("query", "--results", str(tmp_path), "--sql", query)
    assert [row["row_id"] for row in json.loads(run_verb(*common, "--format", "json").stdout)] == [7_777]
    plan = run_verb(*common, "--explain").stdout
    assert "files 1 of 5, row groups 1 of 3, 1 rows" in plan
    assert re.search(r"read \d+\.\d\d MB in \d+ requests, 1 of 3 row groups", plan)
    assert "file filters: (date = '2026-10-01'::DATE)" in plan


ALLOWED = {
    "windows and conditions": "SELECT image_uri, lag(p_value) OVER (PARTITION BY image_group ORDER BY image_uri ROWS "
    "BETWEEN 1 PRECEDING AND CURRENT ROW), CASE WHEN is_anomalous THEN 1 END FROM scores "
    "QUALIFY row_number() OVER () < 9",
    "lists, structs, lambdas": "SELECT [r.peak FOR r IN regions IF r.peak > 0], {'a': 1}, list_filter([1, 2], "
    "lambda x: x > 1), MAP {'k': 1}, unnest([1, 2]) FROM scores LIMIT 10 %",
    "casts": "SELECT '1'::DECIMAL(4, 2), DATE '2026-01-01' + INTERVAL 3 DAYS, "
    "try_cast('x' AS STRUCT(a INT, b VARCHAR[]))",
    "a CTE that calls itself": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) FROM t",
    "joins and groups": "SELECT s.image_group, count(*) FILTER (is_anomalous), "
    "string_agg(DISTINCT s.run_id, ',' ORDER BY s.run_id) FROM main.scores s LEFT JOIN quarantine q USING (image_uri) "
    "SEMI JOIN runs r ON s.run_id = r.run_id "
    "GROUP BY ROLLUP (s.image_group) HAVING count(*) > 1 ORDER BY ALL",
    "sets": "SELECT DISTINCT ON (image_group) image_group FROM scores UNION BY NAME (SELECT 1 AS b EXCEPT SELECT 2)",
    "stars and parameters": "SELECT COLUMNS('score.*'), * EXCLUDE (heatmap) REPLACE (p_value + 1 AS p_value) "
    "FROM scores",
    "a sample": "FROM scores TABLESAMPLE 10 %",
    "what there is": "SHOW TABLES",
    "of what kind": "DESCRIBE scores",
    "a summary": "SUMMARIZE SELECT p_value FROM scores",
    "the catalogue": "SELECT column_name FROM information_schema.columns WHERE table_name = 'scores'",
    "columns by function": "SELECT count(*) FROM duckdb_columns()",
    "subqueries": "SELECT *, EXISTS (SELECT 1 FROM labels) FROM (VALUES (1), (2)) t(a), "
    "LATERAL (SELECT a + 1), range(3)",
    "columns as rows": "FROM (UNPIVOT (SELECT image_uri, score_max, score_mean FROM scores) ON score_max, score_mean)",
    "rows as columns": "FROM scores PIVOT (count(*) FOR is_anomalous IN (true, false) GROUP BY image_group)",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_a_select_of_any_kind_that_only_reads_is_answered(nights: Line, case: str) -> None:
    assert results.open(nights.results).sql(ALLOWED[case]).to_arrow_table().num_columns > 0


def test_duckdb_itself_cannot_write_where_it_reads(nights: Line) -> None:
    """The second wall: without the first, the file system under it still refuses."""
    found = results.open(nights.results)
    part = found.paths()[0].removeprefix("file://")
    before = Path(part).read_bytes()
    cursor = found._database.cursor("SELECT 1 FROM scores")
    for place in (part, f"results://{part}", f"file://{part}"):
        for body in (f"COPY (SELECT 1) TO '{place}' (FORMAT parquet, USE_TMP_FILE false)", f"COPY runs TO '{place}'"):
            with pytest.raises((duckdb.Error, PermissionError)):
                cursor.execute(f"WITH x AS ({body}) SELECT * FROM x").fetchall()
    assert Path(part).read_bytes() == before


def test_a_question_takes_no_more_time_than_it_may(nights: Line) -> None:
    slow = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 1"
    # Also when time is up before the question is asked.
    for kind, seconds in (("table", "1"), ("csv", "1"), ("csv", "0.001")):
        options = ("--timeout-s", seconds, "--format", kind)
        done = run_verb("query", "--results", nights.results, "--sql", slow, *options, check=False)
        said = f"no answer within {seconds} s; ask for less, or give it more time"
        assert (done.returncode, said in done.stderr) == (2, True)


GREEDY = {
    "a list of many": "SELECT list(range) FROM range(600000000)",
    "a long text": "SELECT length(string_agg(range::VARCHAR, '')) FROM range(500000000)",
    "a large answer": "SELECT range, repeat('x', 1000) FROM range(10000000)",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GREEDY)
def test_a_question_takes_no_more_memory_than_it_may(nights: Line, case: str) -> None:
    code = (
        "import re, sys; from jobs import cli; code = cli.main(); status = open('/proc/self/status').read(); "
        "print('peak', re.findall(r'VmHWM:\\s+(\\d+)', status)[0], file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "query", "--results", nights.results, "--sql", GREEDY[case]]
    done = subprocess.run([*command, "--memory-gb", "1", "--format", "arrow", "--output", os.devnull], **CAPTURED)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert "Traceback" not in done.stderr
    assert int(done.stderr.split("peak ")[-1]) < 1.6e6  # kB: what the process needs to be there is about 0.25 GB
    assert done.returncode == (0 if case == "a large answer" else 2)
    if done.returncode:
        assert "the question needs more memory than it may have" in done.stderr


@pytest.mark.parametrize("kind", ["table", "csv"])
def test_a_question_is_interrupted_without_a_traceback(nights: Line, kind: str) -> None:
    slow = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range * b.range % 7 = 1"
    command = [sys.executable, "-m", "jobs.cli", "query", "--results", nights.results, "--format", kind, "--sql", slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        loaded = Path(f"/proc/{process.pid}/maps")
        while "duckdb" not in loaded.read_text():
            time.sleep(0.1)
        time.sleep(3)  # it answers by now
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, said.startswith("interrupted")) == (130, True), said


@pytest.mark.parametrize("damage", ["cut", "exchanged", "gone"])
@pytest.mark.parametrize("reader", ["query", "dataset", "evaluate"])
def test_a_part_that_is_not_what_was_published_is_not_answered_from(
    nights: Line, tmp_path: Path, damage: str, reader: str
) -> None:
    shutil.copytree(nights.results, tmp_path / "results")
    there = str(tmp_path / "results")
    paths = [Path(path.removeprefix("file://")) for path in results.open(there).paths()]
    if damage == "gone":
        paths[0].unlink()
    elif damage == "cut":
        pq.write_table(pq.read_table(paths[0]).slice(0, 3), paths[0])
    else:  # of the same size
        data = bytearray(paths[0].read_bytes())
        data[200] ^= 1
        paths[0].write_bytes(data)
    wrong = "is gone" if damage == "gone" else "is not what its commit record says: damaged or replaced"
    if reader == "dataset":
        with pytest.raises(FCDDError, match=wrong):
            results.open(there).dataset()
        return
    (tmp_path / "labels.csv").write_text("image_uri,label\nx,1\n")
    options = (
        ("--format", "json") if reader == "query" else ("--collection", "c", "--labels", str(tmp_path / "labels.csv"))
    )
    done = run_verb(reader, "--results", there, *options, check=False)
    assert (done.returncode, wrong in done.stderr) == (1, True)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet", "arrow"])
def test_answers_are_the_same_in_every_format(nights: Line, tmp_path: Path, kind: str) -> None:
    query = "SELECT image_uri, anomaly_score, is_anomalous, date, regions, heatmap FROM scores ORDER BY image_uri, date"
    path = tmp_path / f"x.{kind}"
    run_verb("query", "--results", nights.results, "--sql", query, "--format", kind, "--output", str(path))
    wanted = results.open(nights.results).sql(query).to_arrow_table()
    if kind == "parquet":
        assert pq.read_table(path).equals(wanted)
    elif kind == "arrow":
        assert pa.ipc.open_stream(path).read_all().equals(wanted)
    elif kind == "json":
        rows = json.loads(path.read_text())
        assert [row["image_uri"] for row in rows] == wanted["image_uri"].to_pylist()
        assert rows[0]["regions"] == wanted["regions"][0].as_py()
    else:
        frame = pd.read_csv(path)
        assert frame["anomaly_score"].to_list() == pytest.approx(wanted["anomaly_score"].to_pylist())
        assert frame["is_anomalous"].to_list() == wanted["is_anomalous"].to_pylist()
    run_verb("query", "--results", nights.results, "--sql", query, "--output", str(tmp_path / f"y.{kind}"))
    assert (tmp_path / f"y.{kind}").stat().st_size == path.stat().st_size  # the ending names the format
    refused = run_verb("query", "--results", nights.results, "--output", str(tmp_path / "y"), check=False)
    assert "what format should" in refused.stderr
    mixed_up = run_verb("query", "--results", nights.results, "--output", kind, check=False)
    assert f"did you mean --format {kind}?" in mixed_up.stderr


def test_hostile_names_are_text_in_every_answer(hostile: str) -> None:
    common = ("query", "--results", hostile, "--top", "5", "--duplicates")
    table = run_verb(*common).stdout
    assert "<script>alert(1)</script>" in table
    assert not {"\N{RIGHT-TO-LEFT OVERRIDE}", "\r", "\x1b"} & set(table)
    assert json.loads(run_verb(*common, "--format", "json").stdout)[2]["image_uri"] == HOSTILE[2]
    cells = list(csv.reader(io.StringIO(run_verb(*common, "--format", "csv").stdout, newline="")))
    named = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    assert [row["image_uri"] for row in named] == [*HOSTILE[:3], f"'{HOSTILE[3]}", HOSTILE[4]]
    assert not [cell for row in cells for cell in row if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert all(row["image_group"] == "'=HYPERLINK(1)" for row in named)
    shown = run_verb("query", "quarantine", "--results", hostile).stdout
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown


def test_a_question_starts_without_torch_and_ray(nights: Line) -> None:
    """And they need not be installed: importing them is made impossible."""
    code = textwrap.dedent(f"""
        import sys
        for name in ("torch", "ray", "torchvision", "sklearn", "scipy", "starlette", "uvicorn"):
            sys.modules[name] = None
        from jobs import cli, results
        night = results.open({nights.results!r}, date="2026-11-02")
        image = next(night.images("is_anomalous"))
        print(image.heatmap.shape, len(night.pandas()), night.dataset().count_rows())
        sys.argv = ["fcdd", "query", "--results", {nights.results!r}, "--top", "1", "--format", "json"]
        sys.exit(cli.main())
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shape, answer = done.stdout.split("\n", 1)
    scored = nights.records()[1].num_scored
    assert shape == f"(8, 12) {scored} {scored}"
    assert len(json.loads(answer)) == 1


def test_the_python_api_gives_the_same_rows_in_every_form(nights: Line) -> None:
    night = results.open(nights.results, collection="c", date="2026-11-02")
    wanted = sorted(row["image_uri"] for row in night.rows("SELECT image_uri FROM scores"))
    assert sorted(night.pandas(columns=["image_uri"])["image_uri"]) == wanted
    assert sorted(night.polars(columns=["image_uri"])["image_uri"]) == wanted
    assert sorted(night.dataset().to_table(columns=["image_uri"])["image_uri"].to_pylist()) == wanted
    assert sorted(image.image_uri for image in night.images()) == wanted
    assert night.dataset("runs").to_table().equals(night.runs())
    assert night.dataset("labels").schema == LABELS
    assert night.dataset().schema == SCORES
    assert night.pandas("quarantine").shape == (2, len(QUARANTINE.names))
    detector = Detector.load(f"{nights.root}/bundle")
    for image in night.images("anomaly_score > $least", {"least": 0}):
        scored = detector.score([storage.read(image.image_uri)])
        step = (scored.maps.max() - scored.maps.min()) / 255
        np.testing.assert_allclose(image.heatmap, scored.maps[0], atol=step)
        assert image.anomaly_score == pytest.approx(float(scored.maximum[0]), rel=1e-4)  # by another library
        break
    whole = results.open(nights.results)
    assert [record.day.day for record in whole.records] == [1, 2]
    assert [record.day.day for record in results.open(nights.results, until="2026-11-01").records] == [1]
    assert results.open_run(nights.results, whole.records[0].run_id).records == whole.records[:1]


def test_what_is_not_there_is_one_sentence(nights: Line) -> None:
    for call, message in (
        (lambda: results.open(nights.results, collection="x"), "no committed run of 'x'.*there are: c 2026-11-01"),
        (lambda: results.open(nights.results, date="2026-12-24"), "no committed run on 2026-12-24"),
        (lambda: results.open(nights.results, since="2026-12-01"), "no committed run from 2026-12-01"),
        (lambda: results.open(nights.results, date="2026-11-01", until="2026-11-02"), "give one or the other"),
        (lambda: results.open(nights.results, date="yesterday"), "expected a date like 2026-11-24, got 'yesterday'"),
        (lambda: results.open_run(nights.results, "x"), "there is no committed run 'x'"),
        (lambda: results.open(nights.results).dataset("x"), "there is no table 'x'; there are: scores, "),
        (lambda: results.open(nights.results).pandas(columns=["x"]), r"scores has no columns \['x'\]"),
        (lambda: results.open(nights.results).paths("runs"), "made of the commit records"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.s3
def test_results_in_a_bucket_are_read_with_the_environments_credentials(nights: Line, prefix: str) -> None:
    for page in storage.pages(nights.results):
        for info in page:
            storage.write(info.uri.replace(f"file://{nights.results}", f"{prefix}/results"), storage.read(info.uri))
    there = results.open(f"{prefix}/results", date="2026-11-02")
    assert there.dataset().count_rows() == there.records[0].num_scored
    assert there.sql("SELECT count(*) FROM quarantine").fetchall() == [(2,)]
    plan = run_verb(
        "query", "--results", f"{prefix}/results", "--sql", "SELECT max(p_value) FROM scores", "--explain"
    ).stdout
    assert re.search(r"read 0\.\d\d MB in \d+ requests", plan)
    refused = run_verb("query", "--results", f"{prefix}/results", "--sql", f"FROM read_text('{prefix}/x')", check=False)
    assert "the table function read_text is not allowed" in refused.stderr
    refused = run_verb("query", "--results", f"{prefix}/results", "--sql", "FROM read_text('/etc/passwd')", check=False)
    assert "the table function read_text is not allowed" in refused.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_other_engines_read_what_the_documentation_says(
    nights: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every example of docs/results.md is run as it stands, on the results of this test."""
    monkeypatch.chdir(tmp_path)
    Path("results").symlink_to(nights.results)
    text = (ROOT / "docs/results.md").read_text().replace("line-4", "c").replace("2026-11-24", "2026-11-02")
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```(python|sql)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks].count("python") == 6
    for kind, code in blocks:
        if kind == "sql":
            connection = duckdb.connect()
            for statement in code.split(";"):
                if statement.strip():
                    namespace["duckdb"] = connection.execute(statement).fetchall()
        else:
            exec(code, namespace)
    whole = results.open(nights.results)
    second = results.open(nights.results, date="2026-11-02")
    alarms = [image.image_uri for image in second.images("is_anomalous")]
    assert [row[0] for row in namespace["duckdb"]] == alarms[:10]  # type: ignore[attr-defined]
    every = sorted(whole.images("is_anomalous"), key=lambda image: -image.anomaly_score)
    assert list(namespace["worst"]["anomaly_score"]) == [image.anomaly_score for image in every[:10]]  # type: ignore[index]
    assert len(namespace["frame"]) == whole.dataset().count_rows()  # type: ignore[arg-type]
    assert sorted(namespace["hottest"]) == sorted(set(alarms))  # type: ignore[call-overload]
    assert namespace["alarms"].num_rows == len(every)  # type: ignore[attr-defined]
    assert namespace["by_camera"]["count()"].sum() == whole.dataset().count_rows()  # type: ignore[index]
    namespace["ray"].shutdown()  # type: ignore[attr-defined]


def test_a_heatmap_is_decoded_without_this_package(nights: Line) -> None:
    """By the Python function of schemas/heatmap.md, and by DuckDB with schemas/heatmap.sql."""
    [function] = re.findall(r"```python\n(.*?)```", (ROOT / "schemas/heatmap.md").read_text(), re.DOTALL)
    assert len([line for line in function.splitlines() if line.strip()]) <= 20
    namespace: dict[str, object] = {}
    exec(function, namespace)
    connection = duckdb.connect()
    connection.execute((ROOT / "schemas/heatmap.sql").read_text())
    connection.execute("CREATE TABLE encoded (heatmap BLOB)")
    encoded = [image.encoded_heatmap for image in results.open(nights.results, date="2026-11-02").images()][:20]
    encoded.append(heatmap.encode(np.zeros((3, 5), np.float32)))
    encoded.append(heatmap.encode(np.float32([[1e-40, 3e38], [0, 1]])))
    for each in encoded:
        wanted = heatmap.decode(each)
        np.testing.assert_array_equal(namespace["decode_heatmap"](each), wanted)  # type: ignore[operator]
        connection.execute("DELETE FROM encoded")
        connection.execute("INSERT INTO encoded VALUES (?)", [each])
        [(rows, low, high)] = connection.execute(
            "SELECT heatmap_decode(heatmap), heatmap_low(heatmap), heatmap_high(heatmap) FROM encoded"
        ).fetchall()
        np.testing.assert_allclose(np.array(rows), wanted, rtol=1e-6, atol=1e-30 + 2e-7 * float(wanted.max()))
        assert (low, high) == (wanted.min(), wanted.max())
    for damaged in (b"\2" + encoded[0][1:], encoded[0][:-1], b"", b"\1"):
        query = "SELECT heatmap_decode(heatmap) FROM (SELECT ?::BLOB AS heatmap)"
        assert connection.execute(query, [damaged]).fetchall() == [(None,)]
    with pytest.raises(ValueError, match="not a heatmap of version 1"):
        namespace["decode_heatmap"](b"\2" + encoded[0][1:])  # type: ignore[operator]


def test_heatmap_draws_the_worst_images_with_an_index(nights: Line, tmp_path: Path) -> None:
    folder = tmp_path / "worst"
    said = run_verb(
        "heatmap", "--results", nights.results, "--date", "2026-11-02", "--top", "3", "--output", str(folder)
    ).stdout
    index = pd.read_csv(folder / "index.csv")
    assert [path.name for path in sorted(folder.glob("*.png"))] == list(index["file"])
    top = ask(nights, "--top", "3", "--date", "2026-11-02")
    assert list(index["image_uri"]) == [row["image_uri"] for row in top]
    assert all(str(row["image_uri"]) in said for row in top)
    shown = Image.open(folder / index["file"][0])
    assert shown.text["image_uri"] == top[0]["image_uri"]  # type: ignore[attr-defined]
    width, height = 56, 40
    assert shown.width >= 2 * width
    assert shown.height > height  # the caption is below the pictures
    original = np.asarray(images.decode_full(storage.read(str(top[0]["image_uri"]))))
    np.testing.assert_array_equal(np.asarray(shown)[:height, :width], original)


def test_heatmap_of_alarms_alone_draws_those_that_query_lists(nights: Line, tmp_path: Path) -> None:
    where, folder = ("--results", nights.results, "--date", "2026-11-02"), tmp_path / "alarms"
    run_verb("heatmap", *where, "--alarms", "--top", "50", "--output", str(folder))
    alarms = ask(nights, "--alarms", "--top", "50", "--date", "2026-11-02")
    assert 0 < len(alarms) < len(ask(nights, "--top", "50", "--date", "2026-11-02"))
    assert list(pd.read_csv(folder / "index.csv")["image_uri"]) == [row["image_uri"] for row in alarms]


def test_pictures_that_are_drawn_one_by_one_are_all_in_the_index(nights: Line, tmp_path: Path) -> None:
    folder, top = tmp_path / "why", ask(nights, "--top", "3", "--date", "2026-11-02")
    for row in (*top, top[0]):
        asked = ("--results", nights.results, "--date", "2026-11-02", "--uri", str(row["image_uri"]))
        run_verb("heatmap", *asked, "--output", str(folder))
    assert list(pd.read_csv(folder / "index.csv")["image_uri"]) == [top[i]["image_uri"] for i in (1, 2, 0)]
    next(iter(folder.glob("*.png"))).unlink()
    run_verb("heatmap", *asked, "--output", str(folder))
    index = pd.read_csv(folder / "index.csv")
    assert set(index["file"]) == {path.name for path in folder.glob("*.png")}
    for text in ("a,b\n1,2\n", "file,image_uri,anomaly_score,p_value\nx,y\n", f"file\n{'x' * 200_000}\n", "\0\n"):
        (folder / "index.csv").write_text(text)
        run_verb("heatmap", *asked, "--output", str(folder))
        assert len(pd.read_csv(folder / "index.csv")) == 1


def test_heatmap_of_one_image_in_every_style(nights: Line, tmp_path: Path) -> None:
    [row] = ask(nights, "--top", "1", "--date", "2026-11-02")
    record = nights.records()[1]
    common = ("heatmap", "--results", nights.results, "--date", "2026-11-02", "--uri", str(row["image_uri"]))
    made = {}
    for style in ("overlay", "16-bit", "numpy"):
        folder = tmp_path / style
        run_verb(*common, "--style", style, "--no-caption", "--no-regions", "--output", str(folder))
        [made[style]] = folder.glob("01-*")
    values = np.load(made["numpy"])
    assert (values.dtype, values.shape) == (np.float32, (40, 56))
    levels = np.asarray(Image.open(made["16-bit"])).astype(np.float64)
    threshold = record.map_threshold
    np.testing.assert_allclose(threshold * levels / (65535 - levels), values, rtol=2e-3, atol=1e-3)
    image = next(results.open_run(nights.results, record.run_id).images())
    full = Detector.load(record.bundle).heatmap(image.heatmap)
    assert values.max() == pytest.approx(full.max(), rel=0.05)
    overlay = np.asarray(Image.open(made["overlay"])).astype(int)
    original = np.asarray(images.decode_full(storage.read(image.image_uri))).astype(int)
    cold, hot = values < 0.2 * threshold, values > 1.5 * threshold
    assert hot.any()
    if cold.any():
        assert np.abs(overlay - original)[cold].max() <= 1
    assert np.abs(overlay - original)[hot].max(1).mean() > 20


def test_lines_show_the_regions_and_leave_the_picture_as_it_is(nights: Line, tmp_path: Path) -> None:
    [row] = ask(nights, "--top", "1", "--date", "2026-11-02")
    common = ("heatmap", "--results", nights.results, "--date", "2026-11-02", "--uri", str(row["image_uri"]))
    original = np.asarray(images.decode_full(storage.read(str(row["image_uri"]))))
    shown = {}
    for style, *options in (("outline",), ("contours",), ("overlay",), ("overlay", "--no-regions")):
        folder = tmp_path / "-".join((style, *options))
        run_verb(*common, "--style", style, *options, "--no-caption", "--output", str(folder))
        [picture] = folder.glob("01-*")
        shown[folder.name] = np.asarray(Image.open(picture))
    changed = {name: (pixels != original).any(2) for name, pixels in shown.items()}
    [image] = list(
        results.open(nights.results, date="2026-11-02").images("image_uri = $uri", {"uri": row["image_uri"]})
    )
    for region in image.regions:  # each has an outline where it is, and most of what is in it is as it was
        assert changed["outline"][region.y0 : region.y1, region.x0 : region.x1].any()
    assert 0 < changed["outline"].mean() < 0.5
    assert (changed["contours"] | ~changed["outline"]).mean() > 0.98  # the outline is one of the contours
    assert changed["contours"].sum() > changed["outline"].sum()
    over = (shown["overlay"] != shown["overlay---no-regions"]).any(2)
    assert (over == changed["outline"]).mean() > 0.9  # the same lines over the heatmap


def test_evidence_is_drawn_over_a_large_image_made_smaller_where_it_was(
    nights: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_DRAWN", (28, 28))
    uri = str(ask(nights, "--top", "1", "--date", "2026-11-02")[0]["image_uri"])
    [image] = results.open(nights.results, date="2026-11-02").images("image_uri = $uri", {"uri": uri})
    assert image.regions
    common = ("heatmap", "--results", nights.results, "--date", "2026-11-02", "--uri", uri, "--no-caption", "--style")
    run_verb(*common, "outline", "--output", str(tmp_path / "outline"))
    run_verb(*common, "numpy", "--output", str(tmp_path / "numpy"))
    places = ("--bundle", f"{nights.root}/bundle", "--pictures", str(tmp_path / "p"), "--style", "outline")
    [predicted] = json.loads(run_verb("predict", uri, *places, "--format", "json").stdout)
    original = images.decode_full(storage.read(uri), within=(28, 28))
    for path in (*(tmp_path / "outline").glob("01-*"), Path(predicted["picture"])):
        with Image.open(path) as drawn:
            changed = np.asarray(drawn)[:20, :28] != np.asarray(original)
        for region in image.regions:
            top, left = max(0, region.y0 // 2 - 1), max(0, region.x0 // 2 - 1)
            inside = np.zeros((20, 28), np.bool_)
            inside[top : region.y1 // 2 + 2, left : region.x1 // 2 + 2] = True
            assert changed.any(2)[inside].any()
        assert changed.any(2).mean() < 0.5
    [values] = (tmp_path / "numpy").glob("01-*")
    assert np.load(values).shape == (40, 56)
    assert rendering.reduced(original, (56, 40)) == "   shown at 50% of 56 x 40 pixels"


def test_heatmap_takes_a_list_and_refuses_what_was_not_scored(nights: Line, tmp_path: Path) -> None:
    wanted = [str(row["image_uri"]) for row in ask(nights, "--top", "4", "--date", "2026-11-01")]
    listed = tmp_path / "list.csv"
    listed.write_text("image_uri\n" + "\n".join(wanted))
    common = ("heatmap", "--results", nights.results, "--output", str(tmp_path / "h"))
    run_verb(*common, "--uris", str(listed))
    assert sorted(pd.read_csv(tmp_path / "h/index.csv")["image_uri"]) == sorted(wanted)
    refused = run_verb(*common, "--uri", "s3://no/such.png", check=False)
    assert refused.returncode == 2
    assert "1 of 1 images were not scored in these runs, the first is 's3://no/such.png'" in refused.stderr


def test_heatmap_takes_the_end_of_a_location_that_one_image_has(nights: Line, tmp_path: Path) -> None:
    common = ("heatmap", "--results", nights.results, "--output", str(tmp_path / "h"), "--uri")
    path = f"{nights.root}/images/cam-0/003.png"
    run_verb(*common, "cam-0/003.png", "--uri", path)
    assert pd.read_csv(tmp_path / "h/index.csv")["image_uri"].to_list() == [storage.normalize(path)]
    several = run_verb(*common, "003.png", check=False)
    assert several.returncode == 2
    assert "2 images end in '003.png', among them" in several.stderr
    unreadable = run_verb(*common, "cam-1/broken.png", check=False)
    assert "were not scored in these runs" in unreadable.stderr


def test_heatmap_of_images_that_are_gone_says_so(hostile: str, tmp_path: Path) -> None:
    done = run_verb("heatmap", "--results", hostile, "--top", "2", "--output", str(tmp_path / "h"), check=False)
    assert done.returncode == 2
    assert "not one picture could be made" in done.stderr


def test_regions_are_coco_annotations(nights: Line, tmp_path: Path) -> None:
    path = tmp_path / "regions.json"
    run_verb("export", "coco", "--results", nights.results, "--date", "2026-11-02", "--output", str(path))
    alarms = list(results.open(nights.results, date="2026-11-02").images("is_anomalous"))
    coco = COCO(str(path))
    assert {image["file_name"] for image in coco.dataset["images"]} == {image.image_uri for image in alarms}
    assert len(coco.dataset["annotations"]) == sum(len(image.regions) for image in alarms)
    by_name = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    worst = alarms[0]
    boxes = [each["bbox"] for each in coco.loadAnns(coco.getAnnIds(imgIds=by_name[worst.image_uri]))]
    assert boxes == [[r.x0, r.y0, r.x1 - r.x0, r.y1 - r.y0] for r in worst.regions]
    run_verb("export", "coco", "--results", nights.results, "--all", "--output", str(path))
    assert len(json.loads(path.read_text())["images"]) == sum(record.num_scored for record in nights.records())
    root = alarms[0].image_uri.rpartition("/")[0].rpartition("/")[0]
    where = ["--results", nights.results, "--date", "2026-11-02", "--output", str(path)]
    run_verb("export", "coco", *where, "--relative-to", f"{root}/")
    images = json.loads(path.read_text())["images"]
    assert {f"{root}/{image['file_name']}" for image in images} == {image["coco_url"] for image in images}
    assert not any(image["file_name"].startswith("/") for image in images)
    elsewhere = run_verb("export", "coco", *where, "--relative-to", f"{root}/nowhere", check=False)
    assert elsewhere.returncode == 2
    assert "does not lie below --relative-to" in elsewhere.stderr
    named = run_verb("export", "coco", "--results", nights.results, "--output", str(tmp_path / "alarms"))
    assert f"coco        {tmp_path}/alarms.json  (" in named.stdout
    assert [each.suffix for each in tmp_path.iterdir()] == [".json"] * 2


def test_an_export_for_fiftyone_is_whole(nights: Line, tmp_path: Path) -> None:
    """The layout of FiftyOne's importer of a FiftyOneDataset without a version; its own reader was run by hand."""
    folder = tmp_path / "fiftyone"
    where = ("--results", nights.results, "--date", "2026-11-02", "--output", str(folder))
    run_verb("export", "fiftyone", *where)
    samples = json.loads((folder / "samples.json").read_text())["samples"]
    alarms = {
        image.image_uri: image for image in results.open(nights.results, date="2026-11-02").images("is_anomalous")
    }
    assert {sample["image_uri"] for sample in samples} == set(alarms)
    assert "version" not in json.loads((folder / "metadata.json").read_text())
    for sample in samples:
        image = alarms[sample["image_uri"]]
        assert (folder / sample["filepath"]).read_bytes() == storage.read(image.image_uri)
        heat = np.asarray(Image.open(folder / sample["heatmap"]["map_path"]))
        assert sample["heatmap"]["range"] == [0, 255]
        assert heat.shape == (32, 48)
        assert len(sample["regions"]["detections"]) == len(image.regions)
        for found in sample["regions"]["detections"]:
            assert 0.5 <= found["confidence"] < 1
            assert all(0 <= value <= 1 for value in found["bounding_box"])
    refused = run_verb("export", "fiftyone", *where, check=False)
    assert "is there and not empty; choose another place" in refused.stderr


@pytest.fixture(scope="module")
def resizing(nights: Line, tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    places = ("--bundle", f"{nights.root}/bundle", "--output", str(path))
    assert "not resized before" in run_verb("export", "onnx", *places, "--with-resize").stdout
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_a_bundle_as_onnx_agrees_with_the_detector(nights: Line, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    said = run_verb("export", "onnx", "--bundle", f"{nights.root}/bundle", "--output", str(path)).stdout
    assert float(re.findall(r"at most (\S+) of", said)[0]) <= 1e-4
    detector = Detector.load(f"{nights.root}/bundle")
    pixels = np.stack([images.decode(picture(seed), View((32, 48), 3)).pixels for seed in range(5)])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    maps, mean, maximum, top = session.run(None, {"images": pixels})
    wanted = detector.score(pixels)
    for found, expected in ((maps, wanted.maps), (mean, wanted.mean), (maximum, wanted.maximum), (top, wanted.top1pct)):
        np.testing.assert_allclose(found, expected, atol=1e-4 * wanted.maps.max())
    about = session.get_modelmeta().custom_metadata_map
    assert about["digest"] == detector.spec.digest
    assert (about["score"], float(about["threshold"])) == ("score_max", detector.spec.calibration.threshold)
    for said_of_the_input in ("uint8 (N, H, W, 3)", "RGB", "H 32, W 48", "bilinear WITH antialiasing"):
        assert said_of_the_input in about["input"]


@pytest.mark.parametrize("size", [(40, 56), (97, 130), (130, 60), (17, 33), (32, 48)])
def test_a_model_that_resizes_by_itself_agrees_with_our_decoder(
    size: tuple[int, int], resizing: onnxruntime.InferenceSession, nights: Line
) -> None:
    """Pixels differ by at most one grey level where Pillow rounds another way, and scores as little as that means."""
    generator = np.random.default_rng(0)
    shapes = generator.integers(0, 256, (3, 5, 7, 3)).astype(np.uint8)
    smooth = [Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC) for each in shapes]
    noisy = [np.asarray(each) + generator.normal(0, 12, (*size, 3)) for each in smooth]
    batch = np.stack(noisy).clip(0, 255).astype(np.uint8)
    detector = Detector.load(f"{nights.root}/bundle")
    wanted = detector.score([encoded(Image.fromarray(each)) for each in batch])
    maps, mean, maximum, top = resizing.run(None, {"images": batch})
    for found, expected in ((mean, wanted.mean), (maximum, wanted.maximum), (top, wanted.top1pct)):
        np.testing.assert_allclose(found, expected, rtol=0.01)
    np.testing.assert_allclose(maps, wanted.maps, atol=0.03 * wanted.maps.max())
    assert "any H and W" in resizing.get_modelmeta().custom_metadata_map["input"]


def test_several_answers_are_read_at_the_same_time(nights: Line) -> None:
    """One within another, one left unfinished, and by threads."""
    whole = results.open(nights.results)
    scored = whole.dataset().count_rows()
    count = "SELECT count(*) FROM scores"
    next(whole.images())  # and no more of it
    for _, image in zip(range(3), whole.images(), strict=False):
        assert whole.sql(count).fetchall() == [(scored,)]
        assert len(whole.pandas(columns=["image_uri"])) == scored
        assert image.heatmap.shape == (8, 12)
    first, second = whole.sql(count), whole.sql("SELECT count(*) FROM quarantine")
    assert (first.fetchall(), second.fetchall()) == ([(scored,)], [(2,)])
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: whole.sql(count).fetchall()[0][0], range(32))) == {scored}
    assert whole.sql("SELECT (TIMESTAMPTZ '2026-01-01 00:00:00Z')::VARCHAR").fetchall() == [("2026-01-01 00:00:00+00",)]


def test_what_does_not_fit_into_memory_is_sorted_in_a_folder_that_goes_away(
    nights: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    whole = dataclasses.replace(results.open(nights.results), memory_gb=0.2)
    large = "SELECT count(*) FROM (SELECT DISTINCT hash(i)::VARCHAR || 'abcdefghij' FROM range(4_000_000) t(i))"
    assert whole.sql(large).fetchall() == [(4_000_000,)]
    assert {path.name for path in tmp_path.iterdir()} == {"spill"}
    del whole
    gc.collect()
    assert list((tmp_path / "spill").iterdir()) == []


def test_a_damaged_file_is_in_the_way_of_those_only_that_need_it(nights: Line, tmp_path: Path) -> None:
    shutil.copytree(nights.results, tmp_path / "results")
    there = str(tmp_path / "results")
    labels = Path(Layout(there).labels("c"))
    labels.parent.mkdir(parents=True, exist_ok=True)
    labels.write_bytes(b"junk")
    assert results.open(there).sql("SELECT count(*) FROM runs").fetchall() == [(2,)]
    broken = run_verb("query", "--results", there, "--sql", "FROM labels", check=False)
    assert broken.returncode == 2
    assert "a file of labels is missing or damaged" in broken.stderr


def test_a_location_that_looks_like_a_partition_gives_the_same_answers(nights: Line, tmp_path: Path) -> None:
    there = tmp_path / "collection=zz/date=2020-01-01"
    shutil.copytree(nights.results, there)
    question = "SELECT DISTINCT collection, date::VARCHAR FROM scores ORDER BY ALL"
    assert results.open(str(there)).sql(question).fetchall() == [("c", "2026-11-01"), ("c", "2026-11-02")]
    wild = tmp_path / "a*b"
    shutil.copytree(nights.results, wild)
    with pytest.raises(ConfigError, match="which DuckDB takes for a pattern"):
        results.open(str(wild)).sql("FROM scores")


def test_columns_of_one_name_and_values_of_any_kind_come_out_whole(nights: Line) -> None:
    query = (
        "SELECT 1 AS a, 2 AS a, 3 AS b, MAP {'x': 1} AS m, MAP {DATE '2026-01-01': 1} AS n, MAP {{'k': 1}: [2]} AS o, "
        "12345678901234567890::HUGEINT AS h, sum(num_scored) AS s, 1.50::DECIMAL(4, 2) AS d, 'nan'::DOUBLE AS f, "
        "[NULL, {'y': '\\x01'::BLOB}] AS l, INTERVAL 90 MINUTE AS i, TIME '01:02:03' AS t FROM runs"
    )
    common = ("query", "--results", nights.results, "--sql", query)
    scored = sum(record.num_scored for record in nights.records())
    [row] = json.loads(run_verb(*common, "--format", "json").stdout)
    assert (row["a"], row["a_1"], row["b"]) == (1, 2, 3)
    assert (row["m"], row["n"], row["o"]) == ({"x": 1}, {"2026-01-01": 1}, [[{"k": 1}, [2]]])
    assert (row["h"], row["s"], row["d"], row["f"]) == (12345678901234567890, scored, 1.5, None)
    assert row["l"] == [None, {"y": "AQ=="}]
    [names, values] = list(csv.reader(io.StringIO(run_verb(*common, "--format", "csv").stdout)))
    assert names[:3] == ["a", "a_1", "b"]
    assert values[:3] == ["1", "2", "3"]
    assert "a_1" in run_verb(*common).stdout
    nothing = ("query", "--results", nights.results, "--sql", "SELECT 1 AS a WHERE false")
    assert json.loads(run_verb(*nothing, "--format", "json").stdout) == []
    assert run_verb(*nothing, "--format", "csv").stdout == "a\n"


def test_tables_fit_the_terminal_and_break_no_number(nights: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_WIDTH_WITHOUT_TERMINAL", 120)
    top = run_verb("query", "--results", nights.results, "--date", "2026-11-02").stdout
    assert max(map(len, top.splitlines())) <= 120
    assert top.count("2026-11-02") >= 10  # in one piece
    assert not [line for line in top.splitlines() if line != line.rstrip()]
    wide = run_verb("query", "--results", nights.results, "--sql", "SELECT * FROM scores LIMIT 2").stdout
    assert re.search(r"^ *anomaly_score +[\d.e-]+$", wide, re.MULTILINE)  # one below the other
    assert len(run_verb("query", "runs", "--results", nights.results).stdout.splitlines()) < 12
    assert "no rows" in run_verb("query", "--results", nights.results, "--sql", "SELECT 1 AS x WHERE false").stdout


@pytest.mark.parametrize("kind", ["csv", "json", "table", "arrow"])
def test_a_reader_that_has_seen_enough_is_no_error(nights: Line, kind: str) -> None:
    code = "SELECT image_uri, i FROM scores, range(2000) t(i)"
    command = [sys.executable, "-m", "jobs.cli", "query", "--results", nights.results, "--format", kind, "--sql", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_condition_of_ones_own_does_not_undo_the_order(nights: Line) -> None:
    scores = [image.anomaly_score for image in results.open(nights.results).images("true -- all of them")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 100


CAPTURED = {"capture_output": True, "text": True}

WRONG = {
    "a history of nothing": (["query", "history"], "whose history? add --uri"),
    "no SQL": (["query", "sql"], "which question? add --sql"),
    "an option of another question": (
        ["query", "history", "--top", "3"],
        "--top belongs to the question top, not to history",
    ),
    "a question beside SQL": (
        ["query", "alarms", "--sql", "SELECT 1"],
        "--sql belongs to the question sql, not to alarms",
    ),
    "an answer that is no answer": (["query", "--explain", "--format", "json"], "leave out --format and --output"),
    "a night and a range": (["query", "--date", "2026-11-01", "--since", "2026-11-01"], "give one or the other"),
    "a group that is none": (
        ["query", "--group", "cam-9"],
        "no image of the group 'cam-9'; there are: 'cam-0', 'cam-1'",
    ),
    "another question": (["query", "why"], "QUESTION: expected 'top', 'history'"),
    "pictures into a file": (
        ["heatmap", "--output", "/dev/null/x"],
        "cannot create the folder /dev/null/x for pictures",
    ),
    "pictures into a bucket": (["heatmap", "--output", "s3://b/x"], "expected a local folder for pictures"),
    "a report of no run": (["report", "--run", "x"], "there is no committed run 'x'"),
    "an export without results": (["export", "onnx", "--output", "x"], "--bundle is missing"),
    "a model that resizes in annotations": (
        ["export", "coco", "--with-resize", "--output", "x"],
        "--with-resize is of an ONNX model",
    ),
    "an export to a bucket": (["export", "coco", "--output", "s3://b/x"], "expected a local path"),
    "a port that is taken": (["review", "--port", "1", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1:1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_work_is_one_sentence(nights: Line, case: str) -> None:
    arguments, message = WRONG[case]
    done = run_verb(arguments[0], *arguments[1:], "--results", nights.results, check=False)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_results_of_several_collections_are_told_apart(nights: Line, tmp_path: Path) -> None:
    for page in storage.pages(nights.results):
        for info in page:
            storage.write(info.uri.replace(f"file://{nights.results}", str(tmp_path)), storage.read(info.uri))
    result_tables.generate(str(tmp_path), nights=1, images=50, cells=4)
    assert isinstance(results.open(str(tmp_path)), Results)
    assert len(results.open(str(tmp_path), collection="generated").records) == 1
    storage.write(f"{tmp_path}/labels.csv", b"image_uri,label\nx.png,1\n")
    for verb in ("report", "audit", "evaluate"):
        labels = ("--labels", f"{tmp_path}/labels.csv") * (verb != "report")
        done = run_verb(verb, "--results", str(tmp_path), *labels, check=False)
        assert "there are several collections; choose one with --collection: c, generated" in done.stderr


@pytest.mark.slow
def test_nights_of_different_bundles_are_not_ranked_or_measured_together(line: Line) -> None:
    for day in (1, 2):
        line.upload(f"nights/2026-11-{day:02d}", 20, seed=day, defects=5)
    line.upload("other", NUM_IMAGES * 2, seed=40)
    line.nightly(day=1)
    places = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/other", "--output", f"{line.root}/bundle")
    run_verb("calibrate", *places, "--overwrite")
    line.nightly(day=2)
    first, second = line.records()
    assert first.bundle_digest != second.bundle_digest
    rows = [
        (row["image_uri"], int("00" <= row["image_uri"][-6:-4] < "05")) for row in line.rows("--date", "2026-11-02")
    ]
    rows += [(uri.replace("11-02", "11-01"), 1 - label) for uri, label in rows]  # pooled, they would cancel out
    Path(line.root, "labels.csv").write_text("\n".join(["image_uri,label", *(f"{uri},{label}" for uri, label in rows)]))
    found = line.around("evaluate", "--labels", f"{line.root}/labels.csv", "--format", "json")
    document = json.loads(found.stdout)
    assert (document["model"], document["runs"]) == (second.bundle_digest, [second.run_id])
    assert document["metrics"]["anomaly_score"]["auroc"]["value"] == 1
    top = line.around("query", "--top", "100", "--duplicates", "--format", "json")
    assert {row["date"] for row in json.loads(top.stdout)} == {"2026-11-02"}
    drawn = line.around("heatmap", "--top", "3", "--output", f"{line.root}/pictures")
    for said in (found.stderr, top.stderr, drawn.stderr):
        assert f"left out nights of other bundles than {second.bundle_digest[:12]}" in said
        assert "2026-11-01; choose them with --date" in said
    # Alarms are decisions, and stand.
    alarms = line.around("query", "--alarms", "--format", "json")
    assert "left out nights" not in alarms.stderr
    found_alarms = json.loads(alarms.stdout)
    assert len(found_alarms) == sum(record.num_anomalous for record in (first, second))
    assert {row["date"] for row in found_alarms} == {"2026-11-01", "2026-11-02"}
    thresholds = {"2026-11-01": first.threshold, "2026-11-02": second.threshold}
    order = [row["anomaly_score"] / thresholds[row["date"]] for row in found_alarms]
    assert order == sorted(order, reverse=True)
    assert "in thresholds of their runs, which are of several bundles" in line.around("query", "--alarms").stdout
    # The bundle of the first night is gone: its heatmaps are, too, and no others.
    drawn = line.around("heatmap", "--alarms", "--output", f"{line.root}/alarms")
    assert f"is not the one that run {first.run_id} used" in drawn.stderr
    assert len(list(Path(line.root, "alarms").glob("*.png"))) == second.num_anomalous
    before = line.around("evaluate", "--labels", f"{line.root}/labels.csv", "--date", "2026-11-01", "--format", "json")
    assert json.loads(before.stdout)["metrics"]["anomaly_score"]["auroc"]["value"] == 0


@pytest.mark.parametrize("text", ["image_uri,label\n", "image_uri,label\nx,-1\n", "image_uri,label\nx,1\n"])
def test_labels_of_no_image_are_one_sentence(nights: Line, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    done = nights.around("evaluate", "--labels", str(tmp_path / "labels.csv"), check=False)
    assert done.returncode == 2
    assert "label" in done.stderr
    assert "Traceback" not in done.stderr
