"""Scoring by Ray Data: many machines, GPUs, and processes that may be lost."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import ray.data

from fcdd import scorer
from fcdd.io import memory
from jobs.catalog import shards as cutting
from jobs.catalog.shards import Shard
from jobs.engines import stages
from jobs.engines.live_metrics import LiveMetrics
from jobs.engines.stages import Receipt
from jobs.engines.work import Work
from jobs.on_ray import machines, session
from jobs.on_ray.machines import Request

T = TypeVar("T")
R = TypeVar("R")
# Blocks that Ray keeps track of at once; of a larger run each holds several shards.
MAX_BLOCKS = 4096


class OverRay:
    """An engine on the cluster of this job, or on a Ray that lasts as long as `cluster`."""

    def __init__(self, request: Request, cluster: ExitStack) -> None:
        """Raises ConfigError for more workers than fit."""
        session.join(cluster, int(cutting.SHARD_PIXEL_BYTES / machines.DECODE_CPUS))
        self._where = machines.wait_for_scoring(request)
        self.workers, self.decoders, self.on_gpu = self._where.workers, self._where.decoders, bool(self._where.write)

    def receipts(self, work: Work, shards: list[Shard]) -> Iterator[Receipt]:
        """As they come."""
        where, spec = self._where, work.spec
        starts = stages.StartLog(work.results, work.run_id, work.attempt, where.workers)
        stage_parts = work.stage_parts()
        then = None if where.write else stage_parts
        chain = (
            ray.data.from_items([dict(shard) for shard in shards], override_num_blocks=min(len(shards), MAX_BLOCKS))
            .map_batches(work.fetch_decode(), batch_size=None, batch_format="pyarrow", **where.decode)
            .map_batches(
                stages.Score,
                fn_constructor_args=(spec, work.weights, work.runtime, work.alpha, then, starts),
                fn_constructor_kwargs={
                    "beside_gpu": self.on_gpu,
                    "gpu_decoding": work.gpu_decoding,
                    "sample": work.sample,
                },
                # Ray wants a number where there are GPUs: then shards are joined up to it, or cut.
                batch_size=cutting.largest_shard(spec.input_size, spec.channels) if where.write else None,
                batch_format="pyarrow",
                **where.actors,
                **({} if where.write else _memory(work)),
            )
        )
        if where.write:  # a GPU does not wait for the store
            chain = chain.map_batches(stage_parts, batch_size=None, batch_format="pyarrow", **where.write)
        live, waiting = LiveMetrics(work.collection), sum(shard["stop"] - shard["start"] for shard in shards)
        live.waiting(waiting)
        with session.translated_errors():
            for block in chain.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for receipt in block.to_pylist():  # type: ignore[union-attr, operator]
                    waiting -= receipt["rows"]
                    live.count(receipt)
                    live.waiting(waiting)
                    yield receipt

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As many calls at once as there are CPUs. Raises FCDDError."""
        return session.parallel_map(function, items)


def _memory(work: Work) -> dict[str, Any]:
    """Of actors in which torch computes on CPUs: they keep what it frees. Such a process takes 0.3 s more to start."""
    by_torch = scorer.is_by_torch(work.spec, work.runtime)
    return {"runtime_env": {"env_vars": memory.ENVIRONMENT}} if by_torch else {}
