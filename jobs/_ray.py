"""Ray for the length of a job: the cluster the job was submitted to, or a local one."""

import logging
import logging.handlers
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeVar

import ray
import ray.data
from ray.exceptions import RayError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcdd.errors import ConfigError, FCDDError

T = TypeVar("T")
R = TypeVar("R")
# Below three logical CPUs the stages of a pipeline can starve each other for ever (RAY).
MIN_LOCAL_CPUS = 3
# Blocks are a few megabytes and consumed at once; Ray's default of 30 % of memory would only be reserved.
LOCAL_OBJECT_STORE_BYTES = 512 * 1024**2


@contextmanager
def session(*, cpus: int = 0, gpus: int = 0, ready: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS (set by `ray job submit`), else start Ray here and stop it after.

    A local Ray gets a logical CPU more than `cpus`, and never fewer than three. Raises ConfigError when a cluster has
    fewer CPUs or GPUs, since Ray would wait for them for ever; for those that an autoscaler starts, `ready` waits
    first. The output of workers stays in Ray's log files: on a terminal its own messages would bury the job's.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ core reports harmless conditions of Ray Data's own actors as errors on the driver's terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    local: dict[str, Any] = {
        "address": "local",  # not some other cluster that runs on this machine
        "num_cpus": max(cpus + 1, MIN_LOCAL_CPUS, os.cpu_count() or 1),
        "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    joins = bool(os.environ.get("RAY_ADDRESS"))
    ours = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level=logging.ERROR, log_to_driver=False, **({} if joins else local))
    with suppress(ValueError):  # not in the main thread: whoever started this one handles signals
        signal.signal(signal.SIGTERM, ours)  # Ray took it for itself
    # The job prints progress itself; Ray Data's own messages go to its log file.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # an error is raised, and said once, at the end
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # each look at a worker's memory maps costs it milliseconds
    # A run of a few images has fewer blocks than actors, which is no reason for a warning.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    try:
        ready()
        total = ray.cluster_resources()
        if total.get("CPU", 0) < cpus or total.get("GPU", 0) < gpus:
            raise ConfigError(
                f"this needs {cpus} CPUs and {gpus} GPUs, the cluster has {total.get('CPU', 0):.0f} and "
                f"{total.get('GPU', 0):.0f}; use fewer workers or a larger cluster"
            )
        yield
    finally:
        ray.shutdown()


def join(stack: ExitStack) -> None:
    """Begin a session that lasts as long as `stack`, if there is none."""
    if not ray.is_initialized():
        stack.enter_context(session())


@contextmanager
def one_sentence() -> Iterator[None]:
    """Errors of Ray itself as FCDDError: a worker that cannot be started carries its reason in the text only."""
    try:
        yield
    except FCDDError:
        raise
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        ours = [line.split(": ", 1)[1] for line in lines if line.startswith("fcdd.errors.") and ": " in line]
        said = ours or [f"Ray could not go on: {(lines or [type(error).__name__])[-1]}"]
        raise FCDDError(said[-1]) from error


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on the cluster, in order; as many calls at once as there are CPUs."""
    remote = ray.remote(num_cpus=1)(function)
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(remote.remote(item))
        if len(waiting) > ray.cluster_resources().get("CPU", 1):
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


@contextmanager
def worker_logs() -> Iterator[Queue]:
    """A queue by which workers log on the driver; give it to `log_to` on the worker."""
    queue = _queue()
    listener = logging.handlers.QueueListener(queue, *logging.getLogger().handlers)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        queue.shutdown()


@contextmanager
def queue() -> Iterator[Queue]:
    """A queue between workers and the driver."""
    created = _queue()
    try:
        yield created
    finally:
        created.shutdown()


def _queue() -> Queue:
    """On the driver's machine, so that the loss of another one takes nothing of it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def log_to(queue: Queue) -> None:
    """Send this worker's log to the driver."""
    handler = logging.handlers.QueueHandler(queue)
    for package in ("jobs", "fcdd"):
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
