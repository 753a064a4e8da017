"""Every request of a run failed once with every fault, then the same command again (SQLite's method).

`make test` takes a part of the matrix, `make chaos` all of it.
"""

import functools
import itertools
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.local_s3 import LocalS3
from fcdd.detector import Detector
from fcdd.io import storage
from tests.detectors import make
from tests.faults import harness, proxy
from tests.faults.oracle import Oracle, Reader, Violation
from tests.faults.proxy import FAULTS, FaultProxy, Request
from tests.places import encoded

pytestmark = pytest.mark.s3
NUM_IMAGES = 6
CHAOS, REST = pytest.mark.chaos, ("500", "reset", "shortened")


@dataclass
class Arena:
    """One bundle and one collection for all cases, a store behind a proxy, an oracle and a reader."""

    root: str
    proxy: FaultProxy
    oracle: Oracle
    reader: Reader
    logs: Path

    def results(self) -> str:
        return f"{self.root}/{uuid.uuid4().hex}"

    def case(self, fault: str, number: int, without: str | None = None) -> None:
        """Fail one request once; then the command again. Raises Violation."""
        self.disturbed(fault, lambda request: request.number == number, f"{fault}-{number}", without)

    def check_clean(self, results: str, log: str) -> None:
        """I5: what is left, if only the removal failed, is garbage that gc knows."""
        try:
            self.oracle.check_clean(results.removeprefix("s3://"))
        except Violation:
            collect = ["--results", results, "--older-than-days", "0"]
            harness.run(self.proxy, collect, log, None, lambda request: False)
            self.oracle.check_clean(results.removeprefix("s3://"))

    def disturbed(self, fault: str, chosen: object, name: str, without: str | None = None) -> int:
        results = self.results()
        bucket_path = results.removeprefix("s3://")
        self.reader.watch(bucket_path)
        argv, log = harness.command(self.root, results), str(self.logs / f"{name.replace(' ', '_')}.log")
        try:
            exit_code, plan = harness.run(self.proxy, argv, log, fault, chosen, without=without)  # type: ignore[arg-type]
            committed = self.oracle.check(bucket_path, exit_code=exit_code)
            again, _ = harness.run(self.proxy, argv, log, None, lambda request: False, without=without)
            if again != 0:
                raise Violation(f"I4: the rerun ended with {again}")
            if not self.oracle.check(bucket_path, exit_code=again):
                raise Violation("I4: the rerun committed nothing")
            if (committed and exit_code == 0) or not committed:
                self.check_clean(results, log)
            self.reader.poll(bucket_path)
            if self.reader.violations:
                raise self.reader.violations[0]
            return plan.injected
        except Violation as violation:
            raise Violation(f"{name}: {violation}\n{Path(log).read_text()[-2000:]}") from violation
        finally:
            self.reader.watch(None)
            storage.delete_prefix(results)


@pytest.fixture(scope="module")
def arena(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    root = f"s3://{s3.bucket}/faults"
    detector = make()
    detector.save(f"{root}/bundle")
    generator = np.random.default_rng(0)
    bad = {f"{root}/images/empty.png": "empty", f"{root}/images/broken.png": "not_an_image"}
    expected: dict[str, float | str] = {**bad}
    storage.write(f"{root}/images/empty.png", b"")
    storage.write(f"{root}/images/broken.png", b"not an image")
    for index in range(NUM_IMAGES):
        data = encoded(Image.fromarray(generator.integers(0, 256, (40, 56, 3)).astype(np.uint8)))
        uri = f"{root}/images/{index % 2}/{index}.png"
        storage.write(uri, data)
        expected[uri] = float(getattr(Detector.load(f"{root}/bundle").score([data]), detector.spec.score)[0])
    oracle = Oracle(s3.endpoint, s3.access_key, s3.secret_key)
    reader = Reader(oracle)
    reader.start()
    with proxy.serve(s3.endpoint) as running:
        arena = Arena(root, running, oracle, reader, tmp_path_factory.mktemp("faults"))
        # The scores of a fault-free run are the truth for all others; a plain loop says they are right.
        results = arena.results()
        log = str(arena.logs / "clean.log")
        exit_code, plan = harness.run(running, harness.command(root, results), log, None, lambda r: False)
        assert exit_code == 0, Path(log).read_text()
        [record] = oracle.records(results.removeprefix("s3://")).values()
        oracle.expected = oracle.content(results.removeprefix("s3://"), record)
        assert oracle.expected == {
            key: value if isinstance(value, str) else pytest.approx(value, rel=1e-5) for key, value in expected.items()
        }
        Arena.num_requests = len(plan.seen)  # type: ignore[attr-defined]
        Arena.seen = plan.seen  # type: ignore[attr-defined]
        yield arena
    reader.stop()


def violations(arena: Arena, cases: list[tuple[str, int]]) -> list[str]:
    found = []
    for fault, number in cases:
        try:
            arena.case(fault, number)
        except Violation as violation:
            found.append(str(violation))
    return found


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=() if each == "lost answer" else pytest.mark.slow) for each in FAULTS]
)
@pytest.mark.timeout(600)
def test_a_request_that_fails_once_costs_nothing(arena: Arena, fault: str) -> None:
    """A part of the matrix: every request is hit by some fault, every fault hits some requests."""
    count = Arena.num_requests  # type: ignore[attr-defined]
    step = len(FAULTS) if fault not in ("kill before", "kill after") else 6
    numbers = range(FAULTS.index(fault) % step, count, step)
    assert violations(arena, [(fault, number) for number in numbers]) == []


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_failed_once_with_every_fault(arena: Arena, fault: str) -> None:
    count = Arena.num_requests  # type: ignore[attr-defined]
    assert violations(arena, [(fault, number) for number in range(count + 2)]) == []
    print(f"{count + 2} cases of {fault!r}, 0 violations; {arena.reader.polls} polls of the reader")


def is_image(request: Request) -> bool:
    return request.method == "GET" and "/images/" in request.path


def is_record(request: Request) -> bool:
    return request.method == "PUT" and "/runs/" in request.path and ".json" in request.path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("safeguard", "fault"),
    [("checks", "flipped"), ("checks", "shortened"), ("read-back", "lost answer"), ("order", "kill after")],
)
def test_a_safeguard_that_is_taken_out_is_missed(arena: Arena, safeguard: str, fault: str) -> None:
    """The matrix has teeth: without the safeguard it finds violations, with it none."""
    chosen, counter = is_image if safeguard == "checks" else is_record, itertools.count()
    if safeguard == "checks":

        def chosen(request: Request) -> bool:  # one image only
            return is_image(request) and next(counter) == 3

    arena.disturbed(fault, chosen, f"with-{safeguard}-{fault}")

    def without_it() -> None:
        nonlocal counter
        for attempt in range(3):  # on a busy machine the client may give up the damaged answer, and ask again
            counter = itertools.count()
            arena.disturbed(fault, chosen, f"without-{safeguard}-{fault}-{attempt}", without=safeguard)

    with pytest.raises(Violation):
        without_it()


@pytest.mark.parametrize("without", [None, "condition"])
def test_of_two_runs_that_both_get_to_the_record_one_wins(arena: Arena, without: str | None) -> None:
    """The first is frozen at the door; the second takes it for dead and commits; then the first goes on."""
    results = arena.results()
    path = results.removeprefix("s3://")
    log = str(arena.logs / f"two-{without}.log")
    argv = harness.command(arena.root, results)
    arena.reader.watch(path)
    plan = arena.proxy.plan = proxy.Plan("kill before", is_record)
    first = harness.start(argv, arena.proxy.endpoint, log, without)
    frozen = functools.partial(os.kill, first.pid, signal.SIGSTOP)
    plan.kill = frozen
    deadline = time.monotonic() + 60
    while not plan.injected and time.monotonic() < deadline:
        time.sleep(0.02)
    arena.proxy.plan = proxy.Plan()
    time.sleep(0.5)
    second = harness.start(argv, arena.oracle.endpoint, log, without, ttl=-1.0)
    second.join(60)
    assert second.exitcode == 0, Path(log).read_text()
    arena.reader.poll(path)
    os.kill(first.pid, signal.SIGCONT)
    first.join(60)
    try:
        if without:
            with pytest.raises(Violation, match="changed after it was committed"):
                arena.reader.poll(path)
        else:
            arena.reader.poll(path)
            assert arena.reader.violations == []
            assert arena.oracle.check(path, exit_code=None)
    finally:
        arena.reader.watch(None)
        storage.delete_prefix(results)


def test_a_second_run_at_the_same_time_stops_and_says_who_is_at_work(arena: Arena) -> None:
    results = arena.results()
    log, other = arena.logs / "held.log", arena.logs / "second.log"
    argv = harness.command(arena.root, results)
    plan = arena.proxy.plan = proxy.Plan("hang", is_image)
    first = harness.start(argv, arena.proxy.endpoint, str(log))
    deadline = time.monotonic() + 60
    while not plan.injected and time.monotonic() < deadline:
        time.sleep(0.02)
    second = harness.start(argv, arena.oracle.endpoint, str(other))
    second.join(60)
    assert second.exitcode == 6
    assert f"process {first.pid} on " in other.read_text()
    assert "is scoring this night as run" in other.read_text()
    arena.proxy.plan = proxy.Plan()
    first.join(60)
    assert arena.oracle.check(results.removeprefix("s3://"), exit_code=first.exitcode)
    storage.delete_prefix(results)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "cut", "flipped", *(pytest.param(f, marks=CHAOS) for f in REST)])
def test_a_store_that_fails_a_fifth_of_all_requests_is_coped_with(arena: Arena, fault: str) -> None:
    generator = np.random.default_rng(FAULTS.index(fault))
    hits: dict[int, bool] = {}

    def chosen(request: Request) -> bool:
        # What is flipped in a body that has no checksum of its own cannot be told: bundle and listing have theirs.
        return hits.setdefault(request.number, bool(generator.random() < 0.2))

    assert arena.disturbed(fault, chosen, f"fifth-{fault}") > 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["expired", "503", pytest.param("hang", marks=pytest.mark.chaos)])
def test_a_store_that_is_gone_for_good_is_a_clear_stop_and_everything_is_kept(arena: Arena, fault: str) -> None:
    """After a while nothing answers any more: the run stops, says why, and the same command finishes it."""
    results = arena.results()
    log = arena.logs / f"gone-{fault}.log"
    argv = harness.command(arena.root, results)
    seen = next(r.number for r in Arena.seen if is_image(r))  # type: ignore[attr-defined]
    started = time.monotonic()
    exit_code, _ = harness.run(arena.proxy, argv, str(log), fault, lambda request: request.number >= seen)
    assert exit_code in (1, 2, 3), log.read_text()
    assert time.monotonic() - started < harness.DEADLINE_S
    assert "error: " in log.read_text()
    assert not arena.oracle.check(results.removeprefix("s3://"), exit_code=exit_code)
    again, _ = harness.run(arena.proxy, argv, str(log), None, lambda request: False)
    assert arena.oracle.check(results.removeprefix("s3://"), exit_code=again)
    storage.delete_prefix(results)
