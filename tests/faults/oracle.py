"""What must be true of a results location, checked by code that shares nothing with the job's.

I1 each listed image is exactly once in the scores or in the quarantine, with the right score or reason
I2 a reader sees of a night nothing or a complete run, and a record never changes
I3 exit code and record agree
I4 a rerun ends committed, with the scores of a fault-free run
I5 staging is empty after the commit
"""

import hashlib
import io
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs
import pyarrow.parquet as pq


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Oracle:
    """Reads the store directly, by another client than the job's. `expected`: key -> score, or reason of quarantine."""

    endpoint: str
    access_key: str
    secret_key: str
    expected: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._fs = pyarrow.fs.S3FileSystem(
            endpoint_override=urlsplit(self.endpoint).netloc,
            scheme="http",
            access_key=self.access_key,
            secret_key=self.secret_key,
            region="us-east-1",
        )

    def read(self, path: str) -> bytes:
        with self._fs.open_input_file(path) as file:
            return bytes(file.read())

    def files(self, folder: str) -> list[str]:
        selector = pyarrow.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        return [info.path for info in self._fs.get_file_info(selector) if info.type == pyarrow.fs.FileType.File]

    def records(self, results: str) -> dict[str, dict[str, Any]]:
        paths = [path for path in self.files(f"{results}/runs") if path.endswith(".json")]
        return {path: json.loads(self.read(path)) for path in paths}

    def content(self, results: str, record: dict[str, Any]) -> dict[str, float | str]:
        """Key -> score or reason of a committed run. Raises Violation when it is not whole."""
        found: dict[str, float | str] = {}
        for table, column in (("scores", "anomaly_score"), ("quarantine", "reason")):
            for part in record[table]:
                try:
                    data = self.read(f"{results}/{part['path']}")
                except FileNotFoundError as error:
                    raise Violation(f"I2: a record names {part['path']}, which is not there") from error
                if hashlib.sha256(data).hexdigest() != part["sha256"]:
                    raise Violation(f"I2: {part['path']} is not what the record says")
                rows = pq.read_table(io.BytesIO(data), columns=["image_uri", column]).to_pylist()
                for row in rows:
                    key = row["image_uri"]
                    if key in found:
                        raise Violation(f"I1: {key} is there twice")
                    found[key] = row[column]
        if (drift := record["drift"]["part"]) and hashlib.sha256(
            self.read(f"{results}/{drift['path']}")
        ).hexdigest() != (drift["sha256"]):
            raise Violation(f"I2: {drift['path']} is not what the record says")
        return found

    def check(self, results: str, *, exit_code: int | None) -> bool:
        """Whether the night is committed; all invariants are checked. `exit_code` None: it was killed."""
        records = self.records(results)
        if len(records) > 1:
            raise Violation(f"I2: {len(records)} records of one command")
        if exit_code is not None and (exit_code == 0) != bool(records):
            raise Violation(f"I3: exit code {exit_code}, {len(records)} records")
        for record in records.values():
            content = self.content(results, record)
            if content.keys() != self.expected.keys():
                differing = content.keys() ^ self.expected.keys()
                raise Violation(f"I1: {len(content)} of {len(self.expected)} images: {differing}")
            wrong = {key: (content[key], value) for key, value in self.expected.items() if content[key] != value}
            if wrong:
                raise Violation(f"I1: wrong results {wrong}")
            if record["num_scored"] + record["num_quarantined"] != record["num_listed"]:
                raise Violation("I1: counts do not add up")
        return bool(records)

    def check_clean(self, results: str) -> None:
        """I5, after an undisturbed end."""
        left = self.files(f"{results}/_staging") + self.files(f"{results}/_leases")
        if left:
            raise Violation(f"I5: left behind: {left}")
        [record] = self.records(results).values()
        parts = [
            *record["scores"],
            *record["quarantine"],
            *([record["drift"]["part"]] if record["drift"]["part"] else []),
        ]
        named = {f"{results}/{part['path']}" for part in parts} | set(self.records(results))
        stray = {
            path for folder in ("scores", "quarantine", "runs") for path in self.files(f"{results}/{folder}")
        } - named
        if stray:
            raise Violation(f"I5: parts that no record names: {stray}")


class Reader(threading.Thread):
    """Polls a results location all the time; what it sees must always be whole, and never change."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(daemon=True)
        self._oracle = oracle
        self._results: str | None = None
        self._polling = threading.Lock()
        self._seen: dict[str, dict[str, Any]] = {}
        self._stopped = threading.Event()
        self.violations: list[Violation] = []
        self.polls = 0

    def run(self) -> None:
        while not self._stopped.wait(0.02):
            with self._polling:
                if self._results:
                    try:
                        self.poll(self._results)
                    except Violation as violation:
                        self.violations.append(violation)

    def watch(self, results: str | None) -> None:
        """Poll another location from now on, or none; returns when the last poll of the one before is over."""
        with self._polling:
            self._results, self.violations = results, []

    def poll(self, results: str) -> None:
        for path, record in self._oracle.records(results).items():
            self.polls += 1
            if self._seen.setdefault(path, record) != record:
                raise Violation(f"I2: the record {path} changed after it was committed")
            if len(self._oracle.content(results, record)) != record["num_listed"]:
                raise Violation(f"I2: {path} is not complete")

    def stop(self) -> None:
        self._stopped.set()
        self.join()
