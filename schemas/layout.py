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
        """A published part of `table` ("scores", "quarantine", "deleted", "drift"), relative to the results."""
        return f"{self.folder(table, collection, day, run_id)}/{name}"

    def folder(self, table: str, collection: str, day: date, run_id: str) -> str:
        """Where the published parts of one run lie, relative to the results location."""
        return f"{table}/collection={collection}/date={day.isoformat()}/run={run_id}"

    def runs(self) -> str:
        """Folder of the commit records."""
        return f"{self.results}/runs"

    def record(self, run_id: str) -> str:
        """The commit record: the run exists for readers if and only if this object exists."""
        return f"{self.runs()}/{run_id}.json"

    def notified(self, run_id: str, way: str) -> str:
        """There once this notification of the run was delivered."""
        return f"{self.runs()}/{run_id}/notified-{way}"

    def report(self, collection: str, day: date, run_id: str) -> str:
        """The report of a run."""
        return f"{self.results}/{self.folder('reports', collection, day, run_id)}/report.html"

    def labels(self, collection: str) -> str:
        """What people said of the images of a collection."""
        return f"{self.results}/labels/collection={collection}/labels.parquet"

    def masks(self, collection: str) -> str:
        """Folder of the masks that somebody drew."""
        return f"{self.results}/labels/collection={collection}/masks"

    def all_staging(self) -> str:
        """Folder of all uncommitted runs."""
        return f"{self.results}/_staging"

    def staging(self, run_id: str) -> str:
        """Folder of an uncommitted run."""
        return f"{self.all_staging()}/{run_id}"

    def intent(self, run_id: str) -> str:
        """What the run is to do, written before its listing: what is listed may only be continued with the same."""
        return f"{self.staging(run_id)}/intent.json"

    def manifest_part(self, run_id: str, index: int) -> str:
        """A part of the manifest; created once, in the order of the listing."""
        return f"{self.staging(run_id)}/manifest/part-{index:06d}.parquet"

    def unordered(self, run_id: str, source: int) -> str:
        """There if the listing of this location of the run once came out of order."""
        return f"{self.staging(run_id)}/manifest/unordered-{source}"

    def plan(self, run_id: str) -> str:
        """Created once, after the manifest's last part: from then on the manifest is complete."""
        return f"{self.staging(run_id)}/plan.json"

    def deleted(self, run_id: str) -> str:
        """Images that the listing found gone, staged."""
        return f"{self.staging(run_id)}/deleted.parquet"

    def starts(self, run_id: str, attempt: str) -> str:
        """Folder where the scoring processes of an attempt sign in."""
        return f"{self.staging(run_id)}/starts/{attempt}"

    def gpu_decoding_begun(self, run_id: str) -> str:
        """There once GPUs may have decoded some of the run."""
        return f"{self.staging(run_id)}/gpu_decoding_begun"

    def gpu_decoding_refused(self, run_id: str) -> str:
        """There, with the reason, once a GPU's decoder was found not to be trusted."""
        return f"{self.staging(run_id)}/gpu_decoding_refused.txt"

    def staged(self, run_id: str) -> str:
        """Folder of the staged parts."""
        return f"{self.staging(run_id)}/rows"

    def leases(self) -> str:
        """Folder of all leases."""
        return f"{self.results}/_leases"

    def lease(self, collection: str, day: date) -> str:
        """Folder of the lease that one night of a collection is scored under."""
        return f"{self.leases()}/collection={collection}/date={day.isoformat()}"
