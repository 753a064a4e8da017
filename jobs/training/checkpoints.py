"""Checkpoints of a training in any store: named by progress, loss and content, written whole, damaged ones passed over.

<location>/epoch-00003-step-000000-loss-1.9740-<sha256, 16 digits>.safetensors
"""

import hashlib
import logging
import math
import re
from typing import NamedTuple

from fcdd.checkpoint import CheckpointError, Progress, read_progress
from fcdd.io import storage

log = logging.getLogger(__name__)

_NAME = re.compile(r"epoch-(\d{5})-step-(\d{6})-loss-([0-9.a-z+-]+)-([0-9a-f]{16})\.safetensors")


class Stored(NamedTuple):
    """A checkpoint by its name: whole epochs and further steps done, the last epoch's loss, digest and location."""

    epoch: int
    step: int
    loss: float
    digest: str
    uri: str


class Checkpoints:
    """The checkpoints of one training below a location; the last `keep` and the one of the lowest loss are kept."""

    def __init__(self, location: str, keep: int) -> None:
        self.location = location
        self.keep = keep

    def save(self, data: bytes, progress: Progress, loss: float) -> str:
        """Write a checkpoint and remove those no longer needed; returns its location.

        The store's client retries failed requests. Raises ConfigError when it cannot be written; the earlier ones stay.
        """
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"epoch-{progress.epoch:05d}-step-{progress.step:06d}-loss-{loss:.4f}-{digest}.safetensors"
        uri = storage.join(self.location, name)
        storage.write(uri, data)
        stored = self.list()
        best = min(stored, key=lambda each: (math.isnan(each.loss), each.loss))
        for old in stored[: -self.keep]:
            if old != best:
                storage.delete(old.uri)
        return uri

    def list(self) -> list[Stored]:
        """All checkpoints, the least progress first."""
        found = []
        for page in storage.pages(self.location):
            for info in page:
                match = _NAME.fullmatch(info.uri.rpartition("/")[2])
                if match:
                    found.append(Stored(int(match[1]), int(match[2]), float(match[3]), match[4], info.uri))
        return sorted(found)

    def latest(self) -> tuple[bytes, str] | None:
        """The checkpoint with the most progress that is whole, and its location; damaged ones are named in the log."""
        for stored in reversed(self.list()):
            try:
                data = storage.read(stored.uri)
                if hashlib.sha256(data).hexdigest()[:16] != stored.digest:
                    raise CheckpointError(f"{len(data)} bytes that are not the ones written")
                read_progress(data)
                return data, stored.uri
            except (CheckpointError, FileNotFoundError) as error:
                log.warning("the checkpoint %s is damaged (%s); falling back to the previous one", stored.uri, error)
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        for stored in self.list():
            storage.delete(stored.uri)
