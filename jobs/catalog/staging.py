"""Rows on their way: the wide row between the stages, and the staged parts of an uncommitted run.

A staged part is one Parquet file of wide rows, scores and failures alike, for manifest positions [start, stop): built
whole in memory, put once, and named by the positions, the failures and its content. So the names alone say what is
done, and what staging holds is not done again.
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcdd.errors import TRANSIENT_REASONS, FCDDError
from fcdd.io import storage
from jobs.catalog import part_files
from schemas import QUARANTINE, SCORES, Layout
from schemas.runs import ManifestPart

TABLES = {"scores": SCORES, "quarantine": QUARANTINE}
FAILURE_COLUMNS = ("stage", "reason", "detail", "attempts")
# Every column of both tables, each null in the rows of the other one, and the position in the manifest.
ROW = pa.schema(
    [
        pa.field("position", pa.int64()),
        *(field.with_nullable(True) for field in SCORES if field.name not in part_files.RUN_COLUMNS),
        *(QUARANTINE.field(name).with_nullable(True) for name in FAILURE_COLUMNS),
    ]
)
_PARTS_TO_EXPLAIN = 20
_NAME = re.compile(r"(\d{12})-(\d{12})-(\d+)-(\d+)-([0-9a-f]{8})-([0-9a-f]{24})\.parquet")


class DamagedPart(FCDDError):
    """A staged part is not what was put there."""


class Staged(NamedTuple):
    """One staged part, as its name says."""

    uri: str
    start: int
    stop: int
    failed: int
    transient: int
    attempt: str
    sha256: str

    @classmethod
    def parse(cls, uri: str) -> Self | None:
        """None for an object that is no staged part."""
        if not (match := _NAME.fullmatch(uri.rsplit("/", 1)[1])):
            return None
        start, stop, failed, transient = map(int, match.groups()[:4])
        return cls(uri, start, stop, failed, transient, match[5], match[6])

    def read(self) -> pa.Table:
        """ROW table. Raises DamagedPart when it is not there, or not what its name says."""
        try:
            data = storage.read(self.uri)
        except FileNotFoundError as error:
            raise DamagedPart(f"{self.uri} is gone; run the same command again") from error
        if hashlib.sha256(data).hexdigest()[:24] != self.sha256:
            raise DamagedPart(f"{self.uri} was damaged; run the same command again")
        return pq.read_table(pa.BufferReader(data))


def put(layout: Layout, run_id: str, attempt: str, rows: pa.Table) -> None:
    """Stage a ROW table; a part for each of its unbroken ranges of positions."""
    positions = rows["position"].to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    for first, last in itertools.pairwise(cuts):
        part = rows.slice(first, last - first)
        if not part.num_rows:
            continue
        data = part_files.to_parquet(part.select(ROW.names).cast(ROW))
        counts = f"{int(pc.sum(failed(part)).as_py())}-{int(pc.sum(is_transient(part)).as_py())}"
        start, stop, sha = positions[first], positions[last - 1] + 1, hashlib.sha256(data).hexdigest()[:24]
        name = f"{start:012d}-{stop:012d}-{counts}-{attempt}-{sha}.parquet"
        storage.write(storage.join(layout.staged(run_id), name), data)


def failed(rows: pa.Table) -> pa.Array:
    """Which rows have no score."""
    return pc.is_valid(rows["reason"])


def is_transient(rows: pa.Table) -> pa.Array:
    """Which rows failed for a reason of the store, and are worth another try."""
    of_the_store = pc.is_in(rows["reason"], pa.array(TRANSIENT_REASONS))
    return pc.fill_null(pc.and_(of_the_store, pc.is_in(rows["stage"], pa.array(["list", "fetch"]))), False)


class Coverage:
    """What of a manifest is staged, by the names of the parts: a bit per position."""

    def __init__(self, parts: list[Staged]) -> None:
        self.parts = sorted(parts, key=lambda part: (part.start, part.stop))
        self._bits = Bitmap(max((part.stop for part in parts), default=0))
        for part in self.parts:
            self._bits.set_range(part.start, part.stop)

    @classmethod
    def read(cls, layout: Layout, run_id: str) -> Self:
        """List the staged parts."""
        pages = storage.pages(layout.staged(run_id))
        return cls([part for page in pages for info in page if (part := Staged.parse(info.uri))])

    def count_transient_as_missing(self) -> None:
        """From now on images that failed for reasons of the store, each time they were tried, are not done."""
        waiting, settled = Bitmap(self._bits.size), Bitmap(self._bits.size)
        for part in self.parts:
            if not part.transient:
                settled.set_range(part.start, part.stop)
                continue
            rows = part.read()
            passing, positions = is_transient(rows).to_numpy(zero_copy_only=False), rows["position"].to_numpy()
            waiting.add(positions[passing])
            settled.add(positions[~passing])
        self._bits = self._bits.without(waiting.without(settled))

    def most_failed(self, *, transient: bool = True) -> int:
        """Failed images, at most: an image that was tried again counts again. By the names alone."""
        return sum(part.failed - (0 if transient else part.transient) for part in self.parts)

    def reasons(self) -> str:
        """Why images failed, with counts, from at most a few parts: for a person."""
        counts: Counter[str] = Counter()
        for part in [part for part in self.parts if part.failed][:_PARTS_TO_EXPLAIN]:
            counts.update(part.read()["reason"].drop_null().to_pylist())
        return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())

    def count_failed(self, *, transient: bool = True) -> int:
        """Images that have no score, each once; reads the parts with failures."""
        bad, good = Bitmap(self._bits.size), Bitmap(self._bits.size)
        for part in self.parts:
            if not part.failed:
                good.set_range(part.start, part.stop)
                continue
            rows = part.read()
            positions, mask = rows["position"].to_numpy(), failed(rows).to_numpy(zero_copy_only=False)
            good.add(positions[~mask])
            passing = is_transient(rows).to_numpy(zero_copy_only=False)
            bad.add(positions[mask if transient else mask & ~passing])
        return bad.without(good).count()

    def count(self) -> int:
        """Number of positions that are staged."""
        return self._bits.count()

    def missing(self, part: ManifestPart) -> Iterator[tuple[int, int]]:
        """Ranges [start, stop) of a manifest part that are not done."""
        yield from self._bits.gaps(part.start, part.start + part.rows)


class Bitmap:
    """N bits in N / 8 bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bytes: npt.NDArray[np.uint8] = np.zeros(-(-size // 8), np.uint8)

    def without(self, other: Self) -> Self:
        """The bits that are set here and not in `other`, of the same size."""
        result = type(self)(self.size)
        result._bytes = self._bytes & ~other._bytes
        return result

    def set_range(self, start: int, stop: int) -> None:
        """Set the bits [start, stop)."""
        window = self._window(start, stop)
        bits = np.unpackbits(self._bytes[window])
        bits[start - 8 * window.start : stop - 8 * window.start] = 1
        self._bytes[window] = np.packbits(bits)

    def add(self, indices: npt.NDArray[np.int64]) -> int:
        """Set the bits of `indices`, any order; returns how many were set before or come twice."""
        if not len(indices):
            return 0
        window = self._window(int(indices.min()), int(indices.max()) + 1)
        bits = np.unpackbits(self._bytes[window])
        before = int(bits.sum())
        bits[indices - 8 * window.start] = 1
        self._bytes[window] = np.packbits(bits)
        return len(indices) - (int(bits.sum()) - before)

    def has(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the bits of `indices` are set."""
        found: npt.NDArray[np.bool_] = (self._bytes[indices >> 3] >> (7 - (indices & 7)).astype(np.uint8)) & 1 == 1
        return found

    def count(self) -> int:
        """Bits that are set."""
        return int(np.bitwise_count(self._bytes).sum())

    def gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges within [start, stop) that are not set; beyond the size nothing is."""
        bits = np.zeros(stop - start + 2, np.int8)
        inside = min(stop, self.size)
        if inside > start:
            window = self._window(start, inside)
            bits[1 : 1 + inside - start] = np.unpackbits(self._bytes[window])[
                start - 8 * window.start : inside - 8 * window.start
            ]
        bits[0] = bits[-1] = 1
        edges = np.diff(bits)
        for first, last in zip(np.flatnonzero(edges < 0), np.flatnonzero(edges > 0), strict=True):
            yield start + int(first), start + int(last)

    @staticmethod
    def _window(start: int, stop: int) -> slice:
        return slice(start >> 3, -(-stop // 8))
