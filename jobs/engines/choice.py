"""Which engine scores a run: the one that was asked for, or the one that is done first."""

import importlib.util
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from jobs.engines.in_process import InProcess
from jobs.engines.work import Engine

# So many threads share a process well: they hold Python's lock for a tenth of the time (docs/facts.md).
MOST_THREADS = 8
# Images for which a machine with more CPUs than that is done sooner by threads than by Ray, which has to be started.
SMALL_NIGHT = 5_000

log = logging.getLogger(__name__)


class Wishes(NamedTuple):
    """What the options say: `workers` None: whatever is done first; 0: this process."""

    workers: int | None
    gpu: bool | None
    cluster_wait_s: float


def choose(wishes: Wishes, images: int | None, cluster: ExitStack) -> Engine:
    """For so many `images`, None if they are not known yet. A Ray that is started here lasts as long as `cluster`.

    Raises ConfigError for what the machines do not have.
    """
    cpus = usable_cpus()
    if wishes.workers == 0 or (wishes.workers is None and _is_for_this_process(wishes, images, cpus)):
        threads = min(cpus, MOST_THREADS)
        log.info("scoring in this process with %d thread%s", threads, "" if threads == 1 else "s")
        return InProcess(threads)
    # Late: Ray's import costs seconds that a wrong option should not wait for.
    from jobs.engines.over_ray import OverRay
    from jobs.on_ray.machines import Request

    return OverRay(Request(*wishes), cluster)


def _is_for_this_process(wishes: Wishes, images: int | None, cpus: int) -> bool:
    if "RAY_ADDRESS" in os.environ or wishes.cluster_wait_s or _may_use_gpu(wishes.gpu):
        return False
    return cpus <= MOST_THREADS or (images is not None and images <= SMALL_NIGHT)


def backend(gpu: bool | None, *, compiles: bool) -> Literal["torch", "openvino"]:
    """The faster library: OpenVINO on CPUs. What a cluster has is not known here, so it takes torch for both."""
    on_cpus = gpu is False or not ("RAY_ADDRESS" in os.environ or _may_use_gpu(gpu))
    if not on_cpus or compiles:
        return "torch"
    if importlib.util.find_spec("openvino"):
        return "openvino"
    log.info(
        "without OpenVINO scoring takes about a third longer here, and each run loads torch first: "
        "pip install 'fcdd-at-scale[cpu]' has it"
    )
    return "torch"


def _may_use_gpu(gpu: bool | None) -> bool:
    """`gpu` None: where there is one."""
    return has_gpu() if gpu is None else gpu


def has_gpu() -> bool:
    """Whether a driver offers one of NVIDIA's GPUs here; torch, which would know for sure, takes seconds to load."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
