"""What an engine is given: everything about one attempt at a run that is the same for all of its shards."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from fcdd.bundle import BundleSpec
from fcdd.images import Limits
from fcdd.runtime import Runtime
from jobs.catalog.shards import Shard
from jobs.engines import stages
from jobs.engines.gpu_decoding import GpuDecoding
from jobs.engines.stages import FetchDecode, Receipt, StageParts
from jobs.sources.locations import Locations

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The stages of an attempt, but for the place where they run. `alpha` is the false-alarm rate."""

    results: str
    run_id: str
    attempt: str
    collection: str
    spec: BundleSpec
    weights: bytes
    sample: bytes | None
    runtime: Runtime
    alpha: float
    limits: Limits
    timeout_s: float
    roots: tuple[str, ...]
    allowed: Locations | None
    # What GPUs decode; None: nothing.
    gpu_decoding: GpuDecoding | None = None

    def fetch_decode(self) -> FetchDecode:
        """The first stage."""
        spec, pattern = self.spec, self.spec.calibration.group_pattern
        return stages.FetchDecode(
            self.results,
            self.run_id,
            spec.view,
            self.limits,
            self.timeout_s,
            self.roots,
            pattern,
            self.attempt,
            self.allowed,
            self.gpu_decoding,
        )

    def stage_parts(self) -> StageParts:
        """The last stage."""
        return stages.StageParts(self.results, self.run_id, self.attempt)


class Engine(Protocol):
    """Where stages run: so many shards are scored, and decoded, at once."""

    workers: int
    decoders: int
    # Whether the network is on GPUs.
    on_gpu: bool

    def receipts(self, work: Work, shards: list[Shard]) -> Iterator[Receipt]:
        """A receipt for each shard as it is staged; shards that were lost have none."""
        ...

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`map`, in order, with whatever the engine has to do it at once. `function` can be pickled."""
        ...
