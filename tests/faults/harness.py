"""Runs `fcdd score --workers 0` in processes that start in milliseconds, with safeguards taken out on demand."""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

from tests.faults.proxy import FaultProxy, Plan, Request, killer

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "fcdd.detector", "jobs.score", "duckdb"])
DEADLINE_S = 90.0


def command(root: str, results: str) -> list[str]:
    where = ["--bundle", f"{root}/bundle", "--images", f"{root}/images", "--results", results]
    return [*where, "--collection", "c", "--date", "2026-11-01", "--workers", "0"]


def start(argv: list[str], endpoint: str, log: str, without: str | None = None, **patches: Any) -> Any:
    """A process that runs the command; its exit code is the command's."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    environment |= {"AWS_ENDPOINT_URL": endpoint, "FCDD_REQUEST_TIMEOUT_S": "1"}
    process = CONTEXT.Process(target=_main, args=(argv, environment, log, without, patches))
    process.start()
    return process


def _main(argv: list[str], environment: dict[str, str], log: str, without: str | None, patches: dict[str, Any]) -> None:
    import logging
    import sys

    os.environ.update(environment)
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    import torch

    from jobs import gc, score
    from jobs.catalog import leases

    torch.set_num_threads(1)
    if "ttl" in patches:
        leases.TTL_S = patches["ttl"]
    if without:
        SAFEGUARDS[without]()
    main = gc.main if argv[0] == "--results" else score.main
    sys.stderr.flush()
    os._exit(main(argv))


def run(
    proxy: FaultProxy, argv: list[str], log: str, fault: str | None, chosen: Callable[[Request], bool], **options: Any
) -> tuple[int | None, Plan]:
    """One run under a fault: its exit code (None if it was killed), and what the proxy saw."""
    plan = proxy.plan = Plan(fault, chosen)
    process = start(argv, proxy.endpoint, log, **options)
    plan.kill = killer(process.pid)
    process.join(DEADLINE_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"I6: still running after {DEADLINE_S} s; see {log}")
    return (None if process.exitcode == -9 else process.exitcode), plan


def _without_checks() -> None:
    """Bodies are believed as they come."""
    from fcdd.io import storage

    def believe(info: storage.ObjectInfo) -> bytes:
        store, key = storage._locate(info.uri)
        return store.get(key)[1]

    storage._as_listed = believe
    storage.contradicts = lambda etag, digest: False


def _without_read_back() -> None:
    """A conditional put whose answer is not "created" has failed."""
    from fcdd.io import storage

    def refuse(uri: str, data: bytes, error: Exception) -> None:
        raise error

    storage._settle = refuse


def _without_condition() -> None:
    """Records are put as anything else is."""
    from fcdd.io import storage

    storage.create = storage.write


def _without_order() -> None:
    """The record first, the parts afterwards."""
    from fcdd.io import storage
    from jobs.catalog import commit_records, part_files

    late: dict[str, bytes] = {}
    write, create = storage.write, storage.create

    class Late:
        """Keeps the parts back."""

        def __getattr__(self, name: str) -> Any:
            return getattr(storage, name)

        def create(self, uri: str, data: bytes) -> None:
            late[uri] = data

        def read(self, uri: str) -> bytes:
            return late.get(uri) or storage.read(uri)

    class First:
        """Writes the record, then the parts."""

        def __getattr__(self, name: str) -> Any:
            return getattr(storage, name)

        def create(self, uri: str, data: bytes) -> None:
            create(uri, data)
            time.sleep(0.3)
            for part, content in late.items():
                write(part, content)

    part_files.storage, commit_records.storage = Late(), First()  # type: ignore[attr-defined, assignment]


def _without_retries() -> None:
    """The first failure of the store is the last."""
    from fcdd.io import storage

    storage.ATTEMPTS = 1


SAFEGUARDS: dict[str, Callable[[], None]] = {
    "checks": _without_checks,
    "read-back": _without_read_back,
    "condition": _without_condition,
    "order": _without_order,
    "retries": _without_retries,
}
