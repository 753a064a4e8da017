"""The policies of cluster/aws/iam: every request of every role is allowed, and nothing is that no role asks for."""

import datetime as dt
import fnmatch
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

import pytest
from obstore.fsspec import FsspecStore

from cluster.local_s3 import LocalS3
from fcdd.io import storage
from jobs.catalog import leases
from jobs.labels import label_store
from jobs.labels.label_drawings import Box
from jobs.labels.label_store import Verdict
from schemas import Layout
from tests.detectors import make
from tests.faults.proxy import Request, serve
from tests.line import run_verb
from tests.places import NUM_IMAGES, picture

pytestmark = pytest.mark.s3
ROOT = Path(__file__).parents[2]
POLICIES = {path.stem: json.loads(path.read_text()) for path in (ROOT / "cluster/aws/iam").glob("*.json")}
BUCKET = "arn:aws:s3:::factory"
NIGHT = "2026-11-01"


class Ask(NamedTuple):
    """One request as IAM sees it."""

    action: str
    resource: str
    prefix: str | None = None
    conditional: bool = False


def asks(request: Request, root: str) -> Iterator[Ask]:
    """The permissions that a request needs, with the bucket and the test's own folder as the example's bucket."""
    query = parse_qs(request.query, keep_blank_values=True)
    if request.is_listing:
        yield Ask("s3:ListBucket", BUCKET, query.get("prefix", [""])[0].removeprefix(f"{root}/"))
    elif request.method == "POST" and "delete" in query:
        for key in re.findall(rb"<Key>(.*?)</Key>", request.body):
            yield Ask("s3:DeleteObject", f"{BUCKET}/{key.decode().removeprefix(root + '/')}")
    else:
        _, _, key = unquote(request.path).removeprefix("/").partition("/")
        action = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "DELETE": "Delete"}[request.method]
        assert not query or set(query) == {"x-id"}, request
        yield Ask(f"s3:{action}Object", f"{BUCKET}/{key.removeprefix(root + '/')}", conditional=request.conditional)


def rules(policy: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Action, resource (or prefix of a listing), conditions: the smallest things a policy says."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {})
        assert set(conditions) <= {"StringLike", "Null"}
        for action in statement["Action"]:
            if action == "s3:ListBucket":
                for prefix in conditions["StringLike"]["s3:prefix"]:
                    yield action, prefix, {}
            else:
                for resource in statement["Resource"]:
                    yield action, resource, conditions.get("Null", {})


def allows(rule: tuple[str, str, dict[str, Any]], ask: Ask) -> bool:
    action, pattern, null = rule
    if action != ask.action or (null == {"s3:if-none-match": "false"} and not ask.conditional):
        return False
    # A location is listed by its folder, with the slash or without.
    names = [ask.resource] if ask.prefix is None else [ask.prefix, f"{ask.prefix}/"]
    return any(fnmatch.fnmatchcase(name, pattern.replace("[", "[[]")) for name in names)


def tells_what_is_missing(rule: tuple[str, str, dict[str, Any]], known: list[tuple[str, str, dict[str, Any]]]) -> bool:
    """S3 answers 404 for a missing key only to who may list it; to others a mistyped name looks forbidden."""
    action, prefix, _ = rule
    return action == "s3:ListBucket" and ("s3:GetObject", f"{BUCKET}/{prefix}", {}) in known


class Recorder:
    """Runs commands with a proxy before the server that writes down what they ask for."""

    def __init__(self, s3: LocalS3, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._s3, self._root, self._patch = s3, prefix.removeprefix(f"s3://{s3.bucket}/"), monkeypatch
        self.seen: dict[str, set[Ask]] = {}

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        with serve(self._s3.endpoint) as proxy:
            self._point_to(proxy.endpoint)
            try:
                yield
            finally:
                self._point_to(self._s3.endpoint)
            asked = {ask for request in proxy.plan.seen for ask in asks(request, self._root)}
            self.seen.setdefault(name, set()).update(asked)

    def _point_to(self, endpoint: str) -> None:
        self._patch.setenv("AWS_ENDPOINT_URL", endpoint)
        FsspecStore.clear_instance_cache()  # what DuckDB reads through remembers its endpoint, too


@pytest.mark.slow
def test_each_role_may_do_what_its_jobs_do_and_nothing_more(
    s3: LocalS3, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, bundles, results = f"{prefix}/line-4", f"{prefix}/bundles", f"{prefix}/results"
    make().save(f"{bundles}/line-4-v1")
    for index in range(NUM_IMAGES):
        storage.write(f"{images}/{NIGHT}/{index:02d}.png", picture(index))
    for index in range(40):
        storage.write(f"{images}/good/{index:02d}.png", picture(100 + index))
    storage.write(f"{images}/{NIGHT}/broken.png", b"not an image")
    where, night, alone = ("--results", results, "--collection", "line-4"), ("--date", NIGHT), ("--workers", "0")
    bundle = ("--bundle", f"{bundles}/line-4-v1")
    recorder = Recorder(s3, prefix, monkeypatch)

    with recorder.role("train"):
        small = ("--network", "cnn28", "--image-size", "28", "--epochs", "4", "--batch-size", "8", "--alpha", "0.2")
        places = ("--images", f"{images}/good", "--bundle", f"{bundles}/line-4-v2", "--calibration-share", "0.3")
        run_verb("train", *places, *small, *alone)

    monkeypatch.setenv("FCDD_COMMAND", f"{sys.executable} -c pass")
    with recorder.role("score"):
        run_verb("nightly", *bundle, "--images", f"{images}/{{date}}", *where, *night, *alone, check=False)
    storage.write(f"{images}/{NIGHT}/broken.png", picture(50))
    storage.write(f"{images}/2026-11-02/0.png", picture(51))
    with recorder.role("score"):
        run_verb("retry-quarantine", *where, *night, *alone)
    storage.delete(f"{images}/{NIGHT}/00.png")
    with recorder.role("score"):
        run_verb("score", *bundle, "--images", images, *where, "--date", "2026-11-02", "--since-last", *alone)
        run_verb("verify", *where, "--date", "2026-11-02")
        run_verb("doctor", "--results", results, *bundle, "--images", images)

    with recorder.role("query"):
        run_verb("query", *where, *night)
        run_verb("query", *where, "--sql", "SELECT count(*) FROM labels")
        run_verb("runs", "--results", results)
        run_verb("metrics", "--results", results, "--once")

    uri = f"{images}/{NIGHT}/01.png"
    with recorder.role("review"):
        run_verb("report", *where, *night, "--output", str(tmp_path / "report.html"))
        run_verb("heatmap", *where, *night, "--top", "2", "--output", str(tmp_path / "pictures"))
        layout = Layout(results)
        with leases.acquire(layout.lease("line-4", dt.date.fromisoformat(NIGHT)), "review"):
            labels = label_store.Labels(layout, "line-4")
            image = {"image_uri": uri, "image_etag": "e", "run_id": "r", "date": dt.date(2026, 11, 1)}
            image |= {"width": 56, "height": 40, "anomaly_score": 0.5, "p_value": 0.1}
            verdict = Verdict(label=1, boxes=(Box(x0=1, y0=1, x1=9, y1=9),))
            labels.set(image, verdict, reviewer="ann", now=dt.datetime.now(dt.UTC))

    # A run that somebody stopped, a part of a run that died, a drawing that was replaced, a lease of the dead.
    for name in ("scores", "quarantine", "deleted", "drift"):
        storage.write(f"{results}/{name}/collection=line-4/date={NIGHT}/run=20261101-dead/part-0.parquet", b"")
    storage.write(f"{results}/labels/collection=line-4/masks/old.png", b"")
    storage.write(f"{results}/_leases/collection=line-4/date=2026-10-01/000001.json", b"{}")
    for index in range(5):
        storage.write(f"{images}/bad/{index}.png", b"not an image")
    bad = ("--images", f"{images}/bad", "--date", "2026-11-05", "--max-quarantine", "0")
    assert run_verb("score", *bundle, *where, *bad, *alone, check=False).returncode == 3
    with recorder.role("gc"):
        run_verb("gc", "--results", results, "--older-than-days", "0")

    assert set(recorder.seen) == set(POLICIES)
    for role, policy in POLICIES.items():
        known = list(rules(policy))
        refused = [ask for ask in recorder.seen[role] if not any(allows(rule, ask) for rule in known)]
        assert refused == [], role
        unused = [
            rule
            for rule in known
            if not any(allows(rule, ask) for ask in recorder.seen[role]) and not tells_what_is_missing(rule, known)
        ]
        assert unused == [], role


def test_no_role_may_replace_what_is_published() -> None:
    published = [f"{BUCKET}/results/{table}/x" for table in ("scores", "quarantine", "deleted", "drift")]
    for role, policy in POLICIES.items():
        for action, resource, null in rules(policy):
            covers = any(fnmatch.fnmatchcase(name, resource) for name in (*published, f"{BUCKET}/results/runs/x.json"))
            if action == "s3:PutObject" and covers:
                assert null == {"s3:if-none-match": "false"}, (role, resource)
