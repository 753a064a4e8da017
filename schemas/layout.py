"""Where everything of a results location lies. Paths are made of our names only, never of object keys."""

import re
from dataclasses import dataclass
from datetime import date

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def is_name(text: str) -> bool:
    """Whether `text` may name a collection: lower-case letters, digits, "-" and "_", at most 63."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Layout:
    """URIs below one results location; engines ignore names that start with "_"."""

    results: str

    def part(self, table: str, collection: str, day: date, run_id: str, name: str) -> str:
        """A published part of `table` ("scores" or "quarantine"), relative to the results location."""
        return f"{table}/collection={collection}/date={day.isoformat()}/run={run_id}/{name}"

    def runs(self) -> str:
        """Folder of the commit records."""
        return f"{self.results}/runs"

    def record(self, run_id: str) -> str:
        """The commit record: the run exists for readers if and only if this object exists."""
        return f"{self.runs()}/{run_id}.json"

    def staging(self, run_id: str) -> str:
        """Folder of an uncommitted run."""
        return f"{self.results}/_staging/{run_id}"

    def manifest(self, run_id: str, digest: str) -> str:
        """Folder of the parts of the manifest with this digest: two listings never mix."""
        return f"{self.staging(run_id)}/manifest-{digest[:16]}"

    def plan(self, run_id: str) -> str:
        """Created once, after the manifest's last part: names the one manifest of this run by its digest."""
        return f"{self.staging(run_id)}/plan.json"

    def staged(self, run_id: str, table: str) -> str:
        """Folder of the staged parts of `table`."""
        return f"{self.staging(run_id)}/{table}"
