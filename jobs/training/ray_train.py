"""The training loop as a worker of Ray Train, and the driver's side of it."""

import logging
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue
from torch import nn

from fcdd.errors import FCDDError
from fcdd.io import memory
from jobs.on_ray import machines, session
from jobs.training import train_loop
from jobs.training.train_loop import LoopConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What Ray Train hands to every worker; a message in `failures` is an error that trying again does not mend."""

    loop: LoopConfig
    logs: Queue
    failures: Queue


class RayWorkers:
    """This process among the workers of Ray Train.

    Metrics and checkpoints are ours: a report to Ray Train after every epoch took about two seconds each.
    """

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Distributed data parallel; only gradients are exchanged: weights and buffers are equal from the start."""
        wrapped: nn.Module = ray.train.torch.prepare_model(
            network, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return wrapped


def train_worker(config: dict[str, Job]) -> None:
    """One worker; returns at once when another attempt failed for good."""
    job = config["job"]
    if not job.failures.empty():
        return
    workers = RayWorkers()
    if workers.rank == 0:
        session.send_logs_to(job.logs)
    try:
        train_loop.train(job.loop, workers)
    except FCDDError as error:
        job.failures.put(str(error))
        raise


class TrainingFailed(FCDDError):
    """A worker failed: the message is its last line."""


def fit(
    loop: LoopConfig,
    *,
    workers: int,
    min_workers: int | None,
    gpu: bool,
    wait_s: float,
    max_failures: int,
    storage_path: str,
) -> None:
    """Train with Ray Train on the cluster, or on a local Ray. Raises TrainingFailed."""
    from ray.train.torch import TorchTrainer

    least = min_workers or workers

    def ready() -> None:
        machines.for_training(workers, min_workers, gpu=gpu, wait_s=wait_s)

    with (
        session.session(cpus=least, gpus=least if gpu else 0, ready=ready),
        session.worker_logs() as logs,
        session.queue() as failures,
    ):
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": Job(loop, logs, failures)},
            scaling_config=ray.train.ScalingConfig(
                num_workers=(min_workers, workers) if min_workers else workers,  # type: ignore[arg-type]
                use_gpu=gpu,
            ),
            run_config=ray.train.RunConfig(
                storage_path=storage_path,
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
                worker_runtime_env={"env_vars": memory.ENVIRONMENT},  # type: ignore[call-arg]  # has it at run time
            ),
        )
        failed: Exception | None = None
        try:
            with session.translated_errors():
                trainer.fit()
        except (FCDDError, ray.train.TrainingFailedError) as error:
            failed = error
        except SystemExit as error:  # what Ray Train makes of Ctrl-C
            raise KeyboardInterrupt from error
        if not failures.empty():
            raise TrainingFailed(str(failures.get())) from failed
        if failed is not None:
            reasons: dict[int, Any] = getattr(failed, "worker_failures", {})
            reason = next(iter(reasons.values()), failed)
            said = str(reason).strip().splitlines()[-1:] or [type(reason).__name__]
            raise TrainingFailed(f"training failed: {said[0]}; --resume goes on from the last checkpoint") from failed
