"""Bitmaps and what the names of staged parts say."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdd.errors import FCDDError
from jobs.catalog import shards
from jobs.catalog.staging import Bitmap, Coverage, Staged
from jobs.engines.stages import StartLog
from schemas.runs import ManifestPart

RANGES = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 20)), max_size=8)


def staged(start: int, stop: int, failed: int = 0, transient: int = 0) -> Staged:
    name = f"{start:012d}-{stop:012d}-{failed}-{transient}-aaaaaaaa-{'0' * 24}.parquet"
    part = Staged.parse(f"s3://b/rows/{name}")
    assert part is not None
    return part


@given(ranges=RANGES, window=st.tuples(st.integers(0, 110), st.integers(0, 30)))
def test_a_bitmap_is_a_set_of_numbers(ranges: list[tuple[int, int]], window: tuple[int, int]) -> None:
    bitmap, expected = Bitmap(110), set()
    for start, length in ranges:
        bitmap.set_range(start, start + length)
        expected |= set(range(start, start + length))
    assert bitmap.count() == len(expected)
    start, stop = window[0], window[0] + window[1]
    gaps = {index for first, last in bitmap.gaps(start, stop) for index in range(first, last)}
    assert gaps == set(range(start, stop)) - expected


@given(first=st.sets(st.integers(0, 99)), second=st.lists(st.integers(0, 99), max_size=50))
def test_adding_tells_what_was_there_or_comes_twice(first: set[int], second: list[int]) -> None:
    bitmap = Bitmap(100)
    assert bitmap.add(np.array(sorted(first), np.int64)) == 0
    assert bitmap.add(np.array(second, np.int64)) == len(second) - len(set(second) - first)
    assert bitmap.count() == len(first | set(second))
    other = Bitmap(100)
    other.add(np.array(sorted(first), np.int64))
    assert bitmap.without(other).count() == len(set(second) - first)


def test_a_bitmap_of_a_billion_takes_an_eighth_of_a_byte_each() -> None:
    assert Bitmap(10**9)._bytes.nbytes == 125_000_000


@pytest.mark.parametrize("name", ["part.parquet", "x.txt", "000000000000-000000000001-0-0-a-b.parquet"])
def test_other_objects_are_no_staged_parts(name: str) -> None:
    assert Staged.parse(f"s3://b/rows/{name}") is None


@given(ranges=RANGES, workers=st.integers(1, 8))
def test_shards_cover_what_is_missing_once_and_never_cross_a_manifest_part(
    ranges: list[tuple[int, int]], workers: int
) -> None:
    parts = (
        ManifestPart(start=0, rows=40, source=0, last_uri=""),
        ManifestPart(start=40, rows=55, source=0, last_uri=""),
        ManifestPart(start=95, rows=1, source=-1, last_uri=""),
    )
    done = {index for start, length in ranges for index in range(start, start + length)} & set(range(96))
    coverage = Coverage([staged(start, min(start + length, 96)) for start, length in ranges if length and start < 96])
    cut = shards.cut(parts, coverage, (224, 224), 3, workers)
    covered = [index for shard in cut for index in range(shard["start"], shard["stop"])]
    assert sorted(covered) == sorted(set(range(96)) - done)
    for shard in cut:
        part = parts[shard["part"]]
        assert shard["part_start"] == part.start <= shard["start"] < shard["stop"] <= part.start + part.rows


def test_shards_of_large_pictures_are_small() -> None:
    parts = (ManifestPart(start=0, rows=100_000, source=0, last_uri=""),)
    small = shards.cut(parts, Coverage([]), (32, 32), 3, 2)
    large = shards.cut(parts, Coverage([]), (1024, 1024), 3, 2)
    assert max(each["stop"] - each["start"] for each in small) == shards.SHARD_ROWS
    assert max(each["stop"] - each["start"] for each in large) == 32 // 3


def test_the_first_and_the_last_shards_are_small_so_that_all_workers_begin_and_end_together() -> None:
    parts = (ManifestPart(start=0, rows=20_000, source=0, last_uri=""),)
    cut = shards.cut(parts, Coverage([]), (224, 224), 3, 19)
    sizes = [each["stop"] - each["start"] for each in cut]
    assert sizes[:19] == [16] * 19
    assert sizes[19:57:19] == [32, 64]
    assert max(sizes) == 222
    assert sizes[-19:] == [16] * 18 + [sizes[-1]]


def test_processes_that_die_again_and_again_are_not_started_for_ever(tmp_path: Path) -> None:
    starts = StartLog(f"file://{tmp_path}", "r", "aaaaaaaa", workers=2)
    for _ in range(11):
        starts.add()
    with pytest.raises(FCDDError, match="scoring processes died 10 times"):
        starts.add()
    StartLog(f"file://{tmp_path}", "r", "bbbbbbbb", workers=2).add()
