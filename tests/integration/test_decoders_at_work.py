"""The object store of a local Ray has room for what all CPUs decode at once: without it Ray Data lets nobody begin."""

import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from jobs.catalog import shards
from jobs.on_ray import local, machines, session

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CPUS, BLOCK_BYTES = 8, shards.SHARD_PIXEL_BYTES
# The others Ray Data keeps for the actor, and as the share of the stage that writes.
DECODERS = CPUS - 3
# Until nobody more comes; the first ones wait for their processes, too.
PATIENCE_S, FIRST_PATIENCE_S = 15.0, 120.0


class Decode:
    """Makes a block of the size of a shard's pixels, once so many do, or nobody more comes; tells how many did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for index in rows["index"].to_pylist():
            (self.folder / f"{index}.working").touch()
            deadline = time.monotonic() + (FIRST_PATIENCE_S if index < DECODERS else PATIENCE_S)
            most = 0
            while most < DECODERS and time.monotonic() < deadline:
                most = max(most, len(list(self.folder.glob("*.working"))))
                time.sleep(0.1)
            time.sleep(0.5)  # so that all who wait have seen it
            (self.folder / f"{index}.working").unlink()
            yield pa.table({"most": [most], "pixels": pa.array([bytes(BLOCK_BYTES)], pa.large_binary())})


class Score:
    """Takes blocks as they come."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.select(["most"])


@pytest.mark.timeout(600)
def test_every_free_cpu_decodes(tmp_path: Path) -> None:
    if local.arguments(CPUS - 1, BLOCK_BYTES)["object_store_memory"] < CPUS * BLOCK_BYTES * 8:
        pytest.skip(
            "this machine has too little memory, or too small a /dev/shm, for the object store that is asked for"
        )
    count = 3 * DECODERS
    with session.session(cpus=CPUS - 1, block_bytes=BLOCK_BYTES):
        chain = (
            ray.data.from_items([{"index": index} for index in range(count)], override_num_blocks=count)
            .map_batches(Decode(tmp_path).__call__, batch_size=None, batch_format="pyarrow", num_cpus=1)
            .map_batches(
                Score,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=machines.GPU_ACTOR_CPUS,
            )
            .map_batches(lambda rows: rows, batch_size=None, batch_format="pyarrow", num_cpus=machines.WRITE_CPUS)
        )
        most = sorted(row["most"] for row in chain.iter_rows())
    assert len(most) == count
    assert most[count // 2] == DECODERS, most  # the last ones may be fewer
