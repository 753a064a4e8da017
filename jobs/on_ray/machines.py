"""What a job asks of the machines of a cluster, and the wait for those that an autoscaler has yet to start."""

import logging
import time
from typing import Any, NamedTuple

import ray
from ray.data import ActorPoolStrategy
from ray.util.placement_group import placement_group, remove_placement_group

from fcdd.errors import ConfigError

# What the stages of scoring ask for. Without GPUs all of it runs in one actor, since Ray fuses stages that ask for the
# same: no pixels move, and no worker has to be started for the writes (4 s here). With GPUs decoding tasks take the
# CPUs that the actors beside the GPUs leave, and writing tasks a little. There are more decoders than CPUs, since some
# are always between two shards, and Ray Data keeps a sixth of the CPUs for the writing tasks, whatever they ask for.
DECODE_CPUS, SCORE_CPUS, GPU_ACTOR_CPUS, WRITE_CPUS = 0.6, 1.0, 0.5, 0.2
# Threads of an actor beside a GPU: one has the card, one sends the next pixels, one does what follows the network.
GPU_ACTOR_THREADS = 3
# Processes that may share a card: each has its own copy of the network and half a gigabyte of CUDA.
ACTORS_PER_GPU = 4
_SAY_EVERY_S = 30.0

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """`workers` None: as many as fit. `gpu` None: where there are any. With `wait_s` the cluster may be growing."""

    workers: int | None = None
    gpu: bool | None = None
    wait_s: float = 0.0


class Stages(NamedTuple):
    """Arguments of decoding, scoring and writing, for so many scoring actors; none for writing: the actors do it.

    `decoders` is how many shards can be decoded at the same time.
    """

    workers: int
    decoders: int
    decode: dict[str, Any]
    actors: dict[str, Any]
    write: dict[str, Any]


def wait_for_scoring(ask: Request) -> Stages:
    """The stages of scoring on this cluster. Raises ConfigError for more workers than fit, or none.

    On a cluster that grows one worker is enough to begin: the others join as their machines do. A CPU is always left
    over: an actor pool that takes every CPU would wait for ever for what Ray itself runs (docs/facts.md).
    """
    if ask.wait_s:
        bundle = {"GPU": 1.0, "CPU": GPU_ACTOR_CPUS} if ask.gpu else {"CPU": SCORE_CPUS}
        wait_for(bundle, ask.workers or 1, enough=1, least=1, wait_s=ask.wait_s)
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0), int(total.get("GPU", 0))
    gpu = gpus > 0 if ask.gpu is None else ask.gpu
    per_gpu = 1 if ask.wait_s or not gpus else -(-(ask.workers or 1) // gpus)
    cards = gpus * per_gpu if per_gpu <= ACTORS_PER_GPU else gpus
    fit = int(min(cards, (cpus - DECODE_CPUS - WRITE_CPUS) // GPU_ACTOR_CPUS) if gpu else (cpus - 1) // SCORE_CPUS)
    wanted = ask.workers or max(fit, 1)
    if wanted > fit and not (ask.wait_s and fit > 0):
        raise ConfigError(
            f"{wanted} workers do not fit: the cluster has {cpus:.0f} CPUs and {gpus} GPUs, room for {max(fit, 0)}"
            + ("" if ask.wait_s else "; if it can grow, say for how long to wait: --cluster-wait-s 900")
        )
    return _beside_gpus(wanted, cpus, 1 / per_gpu) if gpu else _on_cpus(wanted)


def _beside_gpus(workers: int, cpus: float, share: float) -> Stages:
    """Each actor has this share of a GPU."""
    pool = ActorPoolStrategy(
        size=workers, max_concurrent_calls_per_actor=GPU_ACTOR_THREADS, enable_true_multi_threading=True
    )
    decoders = int((cpus - workers * GPU_ACTOR_CPUS - WRITE_CPUS) // DECODE_CPUS)
    actors = {"compute": pool, "num_gpus": share, "num_cpus": GPU_ACTOR_CPUS}
    return Stages(workers, max(1, decoders), {"num_cpus": DECODE_CPUS}, actors, {"num_cpus": WRITE_CPUS})


def _on_cpus(workers: int) -> Stages:
    pool = ActorPoolStrategy(size=workers)
    return Stages(workers, workers, {"num_cpus": SCORE_CPUS}, {"compute": pool, "num_cpus": SCORE_CPUS}, {})


def for_training(workers: int, min_workers: int | None, *, gpu: bool, wait_s: float) -> None:
    """Wait for room for the workers of a training, or, when time is up, for the least that will do."""
    if wait_s:
        wait_for(
            {"CPU": 1.0, "GPU": 1.0} if gpu else {"CPU": 1.0},
            workers,
            enough=workers,
            least=min_workers or workers,
            wait_s=wait_s,
        )


def wait_for(bundle: dict[str, float], count: int, *, enough: int, least: int, wait_s: float) -> None:
    """Ask for `count` bundles of resources at once, until `enough` fit; when time is up, `least` will do.

    The autoscaler sees placement groups as demand; unlike its standing requests they end with this job, however that
    ends, so no machine is kept for nobody. Raises ConfigError.
    """
    groups = [placement_group([bundle]) for _ in range(count)]
    try:
        waiting, fit, deadline = [group.ready() for group in groups], 0, time.monotonic() + wait_s
        while fit < enough and (left := deadline - time.monotonic()) > 0:
            ready, _ = ray.wait(waiting, num_returns=enough, timeout=min(left, _SAY_EVERY_S))
            fit = len(ready)
            if fit < enough:
                log.info("waiting for machines: there is room for %d of %d workers", fit, count)
    finally:
        for group in groups:
            remove_placement_group(group)
    if fit < least:
        asked = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise ConfigError(
            f"after {wait_s:g} s the cluster has room for {fit} of {count} workers of {asked} each, and needs {least}; "
            "look at its limits, or at what else runs there, or wait longer (--cluster-wait-s)"
        )
