"""Which engine scores a run: the one that was asked for, or the one that is done first."""

import importlib.util
import logging
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from jobs.engines.in_process import InProcess
from jobs.engines.work import Engine
from jobs.shell.machine import MOST_THREADS

# Images for which a machine with more CPUs than that is done sooner by threads than by Ray, which has to be started.
SMALL_NIGHT = 5_000
# Beside a GPU: one thread has the card, one sends the next pixels, one does what follows the network.
GPU_THREADS = 3
_HIDDEN = ("", "-1", "NoDevFiles")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")

log = logging.getLogger(__name__)


class Wishes(NamedTuple):
    """What the options say. `workers` None: whatever is done first; 0: this process. `gpu` None: where there is any."""

    workers: int | None
    gpu: bool | None
    cluster_wait_s: float


def choose(wishes: Wishes, images: int | None, cluster: ExitStack) -> Engine:
    """For so many `images`, None if they are not known yet. A Ray that is started here lasts as long as `cluster`.

    Raises ConfigError for what the machines do not have.
    """
    cpus = usable_cpus()
    if is_for_this_process(wishes, images, cpus):
        gpu, loaders = wishes.gpu is not False, min(cpus, MOST_THREADS)
        on_gpu = gpu and has_gpu()
        threads = min(loaders, GPU_THREADS) if on_gpu else loaders
        log.info("scoring in this process with %d thread%s", threads, "" if threads == 1 else "s")
        return InProcess(loaders, threads, gpu=gpu, on_gpu=on_gpu)
    # Late: Ray's import costs seconds that a wrong option should not wait for.
    from jobs.engines.over_ray import OverRay
    from jobs.on_ray.machines import Request

    return OverRay(Request(workers=wishes.workers, gpu=wishes.gpu, wait_s=wishes.cluster_wait_s), cluster)


def is_for_this_process(wishes: Wishes, images: int | None, cpus: int) -> bool:
    """Whether threads are done first, or were asked for."""
    if wishes.workers is not None:
        return wishes.workers == 0
    if _on_cluster() or wishes.cluster_wait_s or _may_use_gpu(wishes.gpu):
        return False
    return cpus <= MOST_THREADS or (images is not None and images <= SMALL_NIGHT)


def backend(gpu: bool | None, *, compiles: bool) -> Literal["torch", "openvino"]:
    """The faster library: OpenVINO on CPUs. What a cluster has is not known here, so it takes torch for both."""
    on_cpus = gpu is False or not (_on_cluster() or _may_use_gpu(gpu))
    return "openvino" if on_cpus and not compiles and importlib.util.find_spec("openvino") else "torch"


def may_have_gpu(gpu: bool | None) -> bool:
    """Whether there may be a GPU for a run: what a cluster has is not known here."""
    return gpu is not False and (_on_cluster() or has_gpu())


def _on_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS"))


def _may_use_gpu(gpu: bool | None) -> bool:
    return has_gpu() if gpu is None else gpu


def has_gpu() -> bool:
    """Whether a driver offers a GPU here; torch, which would know for sure, takes seconds to load."""
    offered = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()  # the second: Linux on Windows
    return offered and os.environ.get("CUDA_VISIBLE_DEVICES") not in _HIDDEN


def usable_cpus() -> int:
    """CPUs that this process may run on, and is granted the time of."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        granted, period = _QUOTA.read_text().split()
        return min(cpus, max(1, math.ceil(int(granted) / int(period))))
    except (OSError, ValueError):  # no such limit ("max"), or not on Linux
        return cpus
