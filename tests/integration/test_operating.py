"""What operators run around the jobs: doctor, metrics, submit; without a cluster (with one: test_cluster)."""

import datetime as dt
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from cluster.local_s3 import free_ports
from fcdd.io import storage
from jobs import metrics
from jobs.metrics import MetricsSettings
from jobs.shell import checks
from schemas import Layout
from tests.line import NUM_IMAGES, Line, run_verb

VERSION = {"ray_version": __import__("ray").__version__}


# --- doctor


def examined(*options: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    done = run_verb("doctor", *options, "--format", "json", check=False)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(done.stdout):
        found.setdefault(finding["subject"], []).append(finding)
        assert finding["state"] in ("ok", "skipped") or finding["do"]
    return done.returncode, found


@contextmanager
def dashboard(token: str | None, version: dict[str, str], host: str = "127.0.0.1") -> Iterator[str]:
    """As much of Ray's dashboard as is asked; without a token it answers anyone."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            welcome = token is None or self.headers["Authorization"] == f"Bearer {token}"
            self.send_response(200 if welcome else 401)
            self.end_headers()
            self.wfile.write(json.dumps(version).encode() if welcome else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_good_place_gets_no_complaint(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.upload("nights/2026-11-01", 3, seed=1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", f"{line.root}/none")
    places = ("--images", f"{line.root}/nights/{{date}}", "--results", line.results, "--bundle", f"{line.root}/bundle")
    with dashboard("t0ken", VERSION) as address:
        code, found = examined("--address", address, *places)
    assert code == 0
    for subject in (
        "packages",
        "cluster",
        "token",
        "dashboard",
        "images",
        "results",
        "bundle",
        "clock",
        "GPU",
        "local Ray",
    ):
        assert {finding["state"] for finding in found[subject]} == {"ok"}, subject
    assert not any(page for page in storage.pages(line.results))  # the probes are gone
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    code, found = examined(*places)
    assert code == 0
    assert "memory" in found  # of jobs that no cluster runs
    assert not {"cluster", "token", "token file", "dashboard"} & set(found)  # nobody asked about a network
    assert "million images" in found["disk"][-1]["found"]
    shown = run_verb("doctor", *places, check=False).stdout
    assert "agrees with the store's" in shown
    assert "what to do" in shown


def test_a_cluster_that_anyone_may_use_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    with dashboard(None, VERSION) as address:
        code, found = examined("--address", address)
    assert code == 2
    assert "answers anyone" in found["token"][0]["found"]
    assert "RAY_AUTH_MODE=token" in found["token"][0]["do"]
    with dashboard("t0ken", VERSION, host="0.0.0.0") as address:
        code, found = examined("--address", address)
        assert (code, found["token"][0]["found"]) == (2, "the cluster wants one, there is none here")
        if checks._own_addresses():
            assert "it listens on" in found["dashboard"][0]["found"]
        (tmp_path / "auth_token").write_text("wrong")
        code, found = examined("--address", address)
        assert (code, found["token"][0]["found"]) == (2, "the cluster refuses ours (401)")
        assert found["token file"][0]["state"] == "warning"
    (tmp_path / "auth_token").write_text("t0ken\n")
    (tmp_path / "auth_token").chmod(0o600)
    with dashboard("t0ken", {"ray_version": "2.52.0"}) as address:
        code, found = examined("--address", address)
    assert (code, found["token file"][0]["state"]) == (2, "ok")
    assert found["cluster"][0]["do"] == "pip install 'ray==2.52.0'"
    code, found = examined("--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (code, found["cluster"][0]["state"]) == (2, "problem")


def test_places_that_are_wrong_are_problems_with_a_sentence(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(line.root) / "file").write_text("x")
    code, found = examined("--bundle", f"{line.root}/nothing", "--results", f"{line.root}/file", "--images", "http://x")
    assert code == 2
    for subject, said in (("bundle", "no bundle at"), ("results", "write"), ("images", "expected a location")):
        assert found[subject][0]["state"] == "problem"
        assert said in found[subject][0]["found"], found[subject]
    # A store that overwrites what should be created once, and a clock that is elsewhere.
    monkeypatch.setattr(storage, "create", storage.write)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=20)
    told = storage.stat
    monkeypatch.setattr(storage, "stat", lambda uri: told(uri)._replace(last_modified=later))
    code, found = examined("--results", line.results)
    assert code == 2
    assert "two runs could both commit" in found["results"][0]["found"]
    assert re.search(r"1\d\d\d s from the store's", found["clock"][0]["found"])


def test_too_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9, total=64 * 2**20))
    code, found = examined()
    assert code == 0
    assert [finding["state"] for finding in found["disk"]] == ["warning", "warning"]
    assert "1.0 GB free" in found["disk"][0]["found"]


# --- metrics


def page(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values...) -> value."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_the_latest_night_is_told_from_its_record(line: Line) -> None:
    line.upload("nights/2026-11-01", seed=1)
    line.upload("nights/2026-11-02", seed=2, defects=NUM_IMAGES // 2)
    storage.write(f"{line.root}/nights/2026-11-02/cam-0/broken.png", b"nothing")
    line.nightly(day=1)
    line.nightly(day=2)
    told = page(run_verb("metrics", "--results", line.results, "--once").stdout)
    [record] = [record for record in line.records() if record.day.day == 2]
    assert told["fcdd_results_readable",] == 1
    assert told["fcdd_last_night_timestamp_seconds", "c"] == dt.datetime(2026, 11, 2, tzinfo=dt.UTC).timestamp()
    assert told["fcdd_last_commit_timestamp_seconds", "c"] == pytest.approx(record.committed_at.timestamp())
    assert told["fcdd_last_run_images", "c", "scored"] == NUM_IMAGES
    assert told["fcdd_last_run_quarantined_images", "c", "not_an_image"] == 1
    assert told["fcdd_last_run_alarms", "c"] == record.num_anomalous >= NUM_IMAGES // 2
    verdicts = {verdict: told["fcdd_last_run_drift", "c", verdict] for verdict in ("ok", "watch", "drifted")}
    assert verdicts == {verdict: float(verdict == record.drift.verdict) for verdict in verdicts}
    assert page(run_verb("metrics", "--results", line.results, "--collection", "other", "--once").stdout) == {
        ("fcdd_results_readable",): 1,
        ("fcdd_records_left_out",): 0,
    }


def test_the_page_follows_the_records_and_outlives_what_cannot_be_read(line: Line) -> None:
    line.upload("nights/2026-11-01", seed=1)
    [port] = free_ports(1)
    settings = MetricsSettings.parse(["--results", line.results, "--port", str(port)])
    threading.Thread(target=metrics.serve, args=(settings,), daemon=True).start()

    def scrape() -> dict[tuple[str, ...], float]:
        for _ in range(50):
            try:
                return page(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text)
            except requests.ConnectionError:
                time.sleep(0.1)
        raise AssertionError("nobody listens")

    assert scrape() == {("fcdd_results_readable",): 1, ("fcdd_records_left_out",): 0}
    line.nightly(day=1)
    night = ("fcdd_last_night_timestamp_seconds", "c")
    assert night in (seen := scrape())
    storage.write(Layout(line.results).record("20261102-abc"), b"{}")  # of a later version, say
    strange = scrape()
    assert (strange["fcdd_results_readable",], strange["fcdd_records_left_out",]) == (1, 1)
    assert strange[night] == seen[night]
    runs = Path(line.results) / "runs"
    runs.rename(runs.with_name("away"))
    runs.symlink_to(runs)  # a disk that cannot be read
    gone = scrape()
    assert gone["fcdd_results_readable",] == 0
    assert gone[night] == seen[night]
    taken = run_verb("metrics", "--results", line.results, "--port", str(port), check=False)
    assert (taken.returncode, "cannot listen on" in taken.stderr) == (2, True)


# --- submit


def submitted(*arguments: str) -> Any:
    return run_verb("submit", *arguments, check=False)


def test_submit_prints_the_command_that_it_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    (tmp_path / "factory.toml").touch()
    options = ("--dry-run", "--submission-id", "night", "--working-dir", str(tmp_path), "--no-wait")
    done = submitted(*options, "nightly", "--config", "factory.toml", "--images", "s3://a b/{date}")
    assert done.stdout == (
        f"ray job submit --address http://head:8265 --submission-id night --working-dir {tmp_path} --no-wait -- "
        "python -m jobs.nightly --config factory.toml --images 's3://a b/{date}'\n"
    )
    # A value that is the name of a command is a value.
    odd = submitted("--dry-run", "--submission-id", "score", "--no-wait", "nightly", "--since-last").stdout
    assert odd.endswith("--submission-id score --no-wait -- python -m jobs.nightly --since-last\n")
    named = submitted("--dry-run", "--address", "https://ray", "retry-quarantine", "--run", "x").stdout
    assert re.fullmatch(
        r"ray job submit --address https://ray --submission-id fcdd-retry-quarantine-\w{8} -- "
        r"python -m jobs\.retry_quarantine --run x\n",
        named,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which job?"),
        (("review", "--results", "x"), "runs on your machine"),
        (("metrics", "--results", "x"), "runs on your machine"),
        (("--no-wait", "scroe"), "got 'scroe'"),
        (("--address", "head:8265", "runs"), "expected the address of the dashboard"),
        (("nightly", "--config", "factory.toml"), "give --working-dir"),
        (("--working-dir", ".", "nightly", "--config=nowhere.toml"), "is not in ."),
        (("--submission-id", "a b", "runs"), "--submission-id"),
        (("nightly", "--webhook", "https://x/canary-secret"), "FCDD_WEBHOOK in the environment of the cluster's nodes"),
        (("--dry-run", "nightly", "--command=canary-secret"), "FCDD_COMMAND in the environment of the cluster's nodes"),
        (("--address", "https://ann:canary-secret@head", "runs"), "holds a user's name"),
    ],
)
def test_what_cannot_work_is_refused_before_the_cluster_is_asked(arguments: tuple[str, ...], said: str) -> None:
    done = submitted(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "canary-secret" not in done.stdout + done.stderr
