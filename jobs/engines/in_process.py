"""Scoring by the threads of this process: nothing has to be started, and the network is in memory once.

    shards -> threads that load (each with a decoder process of its own) -> threads that score and stage -> receipts

As many threads load as there are CPUs: one that waits for a store, or for its decoder, leaves its CPU to the others.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, TypeVar

import pyarrow as pa

from jobs.catalog.shards import Shard
from jobs.engines import stages
from jobs.engines.stages import FetchDecode, Receipt, Score
from jobs.engines.work import Work
from jobs.shell.look_ahead import ahead

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


class InProcess:
    """An engine of so many threads that load and score; the network is loaded with the first shard, and kept."""

    def __init__(self, loaders: int, scorers: int, *, gpu: bool, on_gpu: bool = False) -> None:
        """`gpu`: the network may run on one; `on_gpu`: it is known that there is one."""
        self.decoders, self.workers, self._gpu, self.on_gpu = loaders, scorers, gpu, on_gpu
        self._score: Future[Score] | None = None

    def receipts(self, work: Work, shards: list[Shard]) -> Iterator[Receipt]:
        """As they come: an image that takes its decoder a minute holds up one thread."""
        fetch_decode, stage = work.fetch_decode(), work.stage_parts()
        with ThreadPoolExecutor(self.decoders) as loading, ThreadPoolExecutor(self.workers) as scoring:
            try:
                score = self._score = self._score or scoring.submit(self._new_score, work)

                def load(shard: Shard) -> "Future[pa.Table]":
                    return loading.submit(_load, fetch_decode, shard)

                def finish(rows: "Future[pa.Table]") -> list[Receipt]:
                    receipts: list[Receipt] = stage(score.result()(rows.result())).to_pylist()
                    return receipts

                begun = set[Future[list[Receipt]]]()
                with closing(ahead(load, shards, self.decoders, discard=Future[Any].cancel)) as loaded:
                    for _, rows in loaded:
                        begun.add(scoring.submit(finish, rows))
                        if len(begun) > self.workers:
                            done, begun = wait(begun, return_when=FIRST_COMPLETED)
                            yield from _receipts(done)
                while begun:
                    done, begun = wait(begun, return_when=FIRST_COMPLETED)
                    yield from _receipts(done)
            finally:  # after an error, nobody wants what was not begun yet
                for pool in (loading, scoring):
                    pool.shutdown(wait=False, cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """By as many threads as load."""
        with ThreadPoolExecutor(self.decoders) as pool:
            calls = ahead(lambda item: pool.submit(function, item), items, self.decoders, discard=Future[Any].cancel)
            with closing(calls):
                for _, result in calls:
                    yield result.result()

    def _new_score(self, work: Work) -> Score:
        score = stages.Score(
            *(work.spec, work.weights, work.runtime, work.alpha),
            threads=self.workers,
            gpu=self._gpu,
            gpu_decoding=work.gpu_decoding,
            sample=work.sample,
        )
        on_cpu_by_torch = work.runtime.backend == "torch" and not score.scorer.is_on_gpu
        if on_cpu_by_torch and not importlib.util.find_spec("openvino"):
            log.info(
                "with OpenVINO (180 MB; pip install 'fcdd-at-scale[cpu]') the default network takes a third less time "
                "on CPUs, and a run does not load torch"
            )
        return score


def _load(fetch_decode: FetchDecode, shard: Shard) -> pa.Table:
    (rows,) = fetch_decode(pa.Table.from_pylist([dict(shard)]))
    return rows


def _receipts(done: "Iterable[Future[list[Receipt]]]") -> Iterator[Receipt]:
    for each in done:
        yield from each.result()
