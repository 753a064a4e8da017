"""Ray for the length of a job: the cluster the job was submitted to, or a local one."""

import logging
import logging.handlers
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, WorkerCrashedError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fcdd.errors import ConfigError, FCDDError
from jobs.on_ray import local
from jobs.shell.look_ahead import ahead

T = TypeVar("T")
R = TypeVar("R")
# An error in the text of a traceback: its class, and all lines of what it says.
_RAISED = re.compile(r"^([A-Za-z_][\w.]*): (.*?)\s*(?=\n\n(?:The above|During)|\Z)", re.MULTILINE | re.DOTALL)
# What Ray Data adds to the words of an error that a generator raises: advice for its own callers.
_ADDED = re.compile(r"\nFailed to [^\n]* after \d+/\d+ attempts \(total backoff .*\Z", re.DOTALL)


@contextmanager
def session(
    *, cpus: int = 0, gpus: int = 0, block_bytes: int = 0, ready: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS (set by `ray job submit`), else start Ray here and stop it after.

    A local Ray gets a logical CPU more than `cpus`, and room for a block of `block_bytes` on each. Raises ConfigError
    when a cluster has fewer CPUs or GPUs, since Ray would wait for them for ever; for those that an autoscaler starts,
    `ready` waits first. The output of workers stays in Ray's log files: on a terminal its own messages would bury the
    job's. An error of Ray that nothing within catches becomes an FCDDError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its C++ core reports harmless conditions of Ray Data's own actors as errors on the driver's terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ExitStack() as stack:
        _init(stack, cpus, block_bytes)
        _quiet(stack)
        with translated_errors():
            ready()
            total = ray.cluster_resources()
            if total.get("CPU", 0) < cpus or total.get("GPU", 0) < gpus:
                raise ConfigError(
                    f"this needs {cpus} CPUs and {gpus} GPUs, the cluster has {total.get('CPU', 0):.0f} and "
                    f"{total.get('GPU', 0):.0f}; use fewer workers or a larger cluster"
                )
            yield


def _init(stack: ExitStack, cpus: int, block_bytes: int) -> None:
    """Raises FCDDError in a sentence when Ray cannot be started, or the cluster not be joined."""
    address, here = os.environ.get("RAY_ADDRESS"), dict[str, Any]()
    if not address:
        stack.enter_context(local.closed_to_others())
        here = local.arguments(cpus, block_bytes)
    stack.callback(ray.shutdown)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **here)
    except Exception as error:  # Ray raises bare ones, too, for a node that does not start in time
        what = f"join the cluster of RAY_ADDRESS, {address}" if address else "start on this machine"
        raise FCDDError(f"Ray could not {what}: {first_line(error)}; `fcdd doctor` looks at what it needs") from error
    finally:
        with suppress(ValueError):  # not in the main thread: whoever started this one handles signals
            signal.signal(signal.SIGTERM, ours)  # Ray took it for itself


def _quiet(stack: ExitStack) -> None:
    """Messages of Ray go to its log files: an error is raised, and printed once, at the end.

    When memory is short Ray ends an actor that only counts, and then reports every few seconds that it cannot count.
    """
    node: Any = ray._private.worker._global_node
    logger = logging.getLogger("ray")
    file = logging.FileHandler(Path(node.get_logs_dir_path(), f"fcdd-driver-{os.getpid()}.log"), delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    # It prints lines of workers that died on stdout, whatever the logging is set to.
    ray._private.worker.print_to_stdstream = lambda data, **_: logger.warning("%s", "".join(data["lines"]))
    for handler in (*logger.handlers, *logging.getLogger("ray.data").handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            stack.callback(handler.setLevel, handler.level)  # others may use the handler, too
            handler.setLevel(logging.CRITICAL)
    logger.addHandler(file)
    stack.callback(logger.removeHandler, file)
    stack.callback(file.close)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # each look at a worker's memory maps costs it milliseconds
    # A run of a few images has fewer blocks than actors, which is no reason for a warning.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")


def join(stack: ExitStack, block_bytes: int = 0) -> None:
    """Begin a session that lasts as long as `stack`, if there is none."""
    if not ray.is_initialized():
        stack.enter_context(session(block_bytes=block_bytes))


@contextmanager
def translated_errors() -> Iterator[None]:
    """Errors that Ray raises as FCDDError: ours with their own class, others with their message.

    The whole of what Ray says is in its log file of this driver.
    """
    try:
        yield
    except RayError as error:
        logging.getLogger("ray").error("%s", error)
        raise _ours(error) from error


def _ours(error: RayError) -> FCDDError:
    """What a worker raised. Ray joins the class of a task's error with its own; an actor's is in the text only."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FCDDError):
        cause.args = tuple(_ADDED.sub("", each) if isinstance(each, str) else each for each in cause.args)
        return cause
    raised = [(name, _ADDED.sub("", said)) for name, said in _RAISED.findall(str(error)) if not name.startswith("ray.")]
    for name, said in reversed(raised):
        if name.startswith(("fcdd.", "jobs.")):
            kind = next((each for each in _kinds(FCDDError) if _full_name(each) == name), FCDDError)
            return kind(said) if kind.__init__ is FCDDError.__init__ else FCDDError(said)
    if raised:
        return FCDDError(f"Ray could not go on: {': '.join(raised[0])}")
    if isinstance(error, RayActorError | WorkerCrashedError | OutOfMemoryError):
        return FCDDError(
            "Ray lost one of its processes and could not go on, most often because memory was short: free some, or use "
            "fewer --workers, and run the same command again"
        )
    return FCDDError(f"Ray could not go on: {first_line(error)}")


def _kinds(kind: type[FCDDError]) -> Iterator[type[FCDDError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def first_line(error: BaseException) -> str:
    """Of what an error says; its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on the cluster, in order; as many calls at once as there are CPUs. Raises FCDDError."""
    remote = ray.remote(num_cpus=1)(function)
    with translated_errors():
        for _, result in ahead(remote.remote, items, 1 + int(ray.cluster_resources().get("CPU", 1))):
            yield ray.get(result)


@contextmanager
def worker_logs() -> Iterator[Queue]:
    """A queue by which workers log on the driver; give it to `log_to` on the worker."""
    queue = _queue()
    listener = _Listener(queue, *logging.getLogger().handlers)
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
        with suppress(RayError):
            queue.shutdown()


class _Listener(logging.handlers.QueueListener):
    """Ends when the queue does: when memory is short Ray ends the process that keeps it."""

    def dequeue(self, block: bool) -> logging.LogRecord:
        try:
            return super().dequeue(block)
        except RayError:
            return self._sentinel  # type: ignore[attr-defined, no-any-return]

    def enqueue_sentinel(self) -> None:
        with suppress(RayError):
            super().enqueue_sentinel()


@contextmanager
def queue() -> Iterator[Queue]:
    """A queue between workers and the driver."""
    created = _queue()
    try:
        yield created
    finally:
        with suppress(RayError):
            created.shutdown()


def _queue() -> Queue:
    """On the driver's machine, so that the loss of another one takes nothing of it along."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def send_logs_to(queue: Queue) -> None:
    """Send this worker's log to the driver."""
    handler = logging.handlers.QueueHandler(queue)
    for package in ("jobs", "fcdd"):
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
