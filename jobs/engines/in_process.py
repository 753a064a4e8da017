"""Scoring by the threads of this process: nothing has to be started, and the network is in memory once.

    shards -> threads that load (each with a decoder process of its own) -> threads that score and stage -> receipts

As many threads load as score: a core that waits for a store, or for a decoder, is another thread's.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeVar

import pyarrow as pa

from jobs.catalog.shards import Shard
from jobs.engines import stages
from jobs.engines.stages import FetchDecode, Receipt, Score
from jobs.engines.work import Work
from jobs.shell.look_ahead import ahead

T = TypeVar("T")
R = TypeVar("R")


class InProcess:
    """An engine of so many threads; the network is loaded with the first shard, and kept."""

    def __init__(self, threads: int) -> None:
        self.workers = self.decoders = threads
        self._score: Future[Score] | None = None

    def receipts(self, work: Work, shards: list[Shard]) -> Iterator[Receipt]:
        """In order; one for every shard."""
        fetch_decode, stage = work.fetch_decode(), work.stage_parts()
        threads, cancel = self.workers, Future[Any].cancel
        with ThreadPoolExecutor(threads) as loading, ThreadPoolExecutor(threads) as scoring, ExitStack() as begun:
            score = self._score = self._score or scoring.submit(self._new_score, work)

            def load(shard: Shard) -> "Future[pa.Table]":
                return loading.submit(_load, fetch_decode, shard)

            def finish(rows: "Future[pa.Table]") -> list[Receipt]:
                receipts: list[Receipt] = stage(score.result()(rows.result())).to_pylist()
                return receipts

            loaded = begun.enter_context(closing(ahead(load, shards, threads, discard=cancel)))
            staged = ahead(lambda each: scoring.submit(finish, each[1]), loaded, threads + 1, discard=cancel)
            for _, receipts in begun.enter_context(closing(staged)):
                yield from receipts.result()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """One after the other."""
        return map(function, items)

    def _new_score(self, work: Work) -> Score:
        return stages.Score(work.spec, work.weights, work.runtime, work.alpha, threads=self.workers)


def _load(fetch_decode: FetchDecode, shard: Shard) -> pa.Table:
    (rows,) = fetch_decode(pa.Table.from_pylist([dict(shard)]))
    return rows
