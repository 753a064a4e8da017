"""Shards: ranges of the manifest, each what one call fetches, scores and stages, and what a killed worker costs."""

from typing import TypedDict

from jobs.catalog.staging import Coverage
from schemas.runs import ManifestPart

# The pixels of a shard are a block of Ray.
SHARD_ROWS, SHARD_PIXEL_BYTES = 512, 32 * 1024**2
# The first shards are small, so that something is seen at once and a pipeline fills; each worker gets so many, of
# doubling size, before they are as large as they may be.
_SMALLEST_SHARD, GROWING_SHARDS = 16, 4
# They become smaller again towards the end, a share of what is left each, so that all workers are at work until then.
_SHARDS_LEFT_PER_WORKER = 2


class Shard(TypedDict):
    """Positions [start, stop) of the manifest, all in one of its parts, which begins at `part_start`."""

    part: int
    part_start: int
    start: int
    stop: int


def cut(
    parts: tuple[ManifestPart, ...], done: Coverage, input_size: tuple[int, int], channels: int, workers: int
) -> list[Shard]:
    """What is not done, cut into shards for so many workers."""
    ranges = [
        (index, part.start, start, stop) for index, part in enumerate(parts) for start, stop in done.missing(part)
    ]
    left = sum(stop - start for *_, start, stop in ranges)
    largest = largest_shard(input_size, channels)
    shards: list[Shard] = []
    for index, part_start, start, stop in ranges:
        while start < stop:
            growing = _SMALLEST_SHARD * 2 ** min(len(shards) // workers, GROWING_SHARDS + 1)
            fair = max(_SMALLEST_SHARD, left // (workers * _SHARDS_LEFT_PER_WORKER))
            end = min(stop, start + min(largest, growing, fair))
            shards.append(Shard(part=index, part_start=part_start, start=start, stop=end))
            left -= end - start
            start = end
    return shards


def largest_shard(input_size: tuple[int, int], channels: int) -> int:
    """How many images of this size a shard has at most."""
    return max(1, min(SHARD_ROWS, SHARD_PIXEL_BYTES // (input_size[0] * input_size[1] * channels)))
