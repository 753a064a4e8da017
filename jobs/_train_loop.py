"""The per-worker training function of Ray Train; the mathematics is in `fcdd.training`."""

import functools
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue

from fcdd import augmentation, detector, networks, normalization, supervision, training
from fcdd.normalization import Kind, Normalization
from fcdd.storage import ObjectInfo
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions
from jobs import _images, _ray

WEIGHTS_FILE, NORMALIZATION_FILE = "model.safetensors", "normalization.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What every worker gets; `images` are the training images of all workers."""

    images: list[ObjectInfo]
    network: str
    channels: int
    input_size: tuple[int, int]
    initial_weights: bytes
    normalization: Kind
    moving_statistics: bool
    frozen: bool
    anomalies: str
    outliers: list[ObjectInfo]
    outlier_share: float
    augmentation: augmentation.Light
    options: TrainOptions
    logs: Queue


def train_worker(config: dict[str, LoopConfig]) -> None:
    """Train this worker's share of every batch; rank 0 reports the weights after each epoch."""
    loop = config["loop"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    if rank == 0:
        _ray.log_to(loop.logs)
    loaded = _images.load_set(loop.images, loop.input_size, loop.channels)
    pixels = loaded.pixels[np.isin(loaded.positions, _common(loaded.positions))]
    network = detector.deserialize(
        loop.initial_weights,
        loop.network,
        loop.channels,
        loop.input_size,
        moving_statistics=loop.moving_statistics,
        frozen=loop.frozen,
    )
    scaling = input_normalization(loop, pixels)
    if rank == 0:
        training.fit_statistics(network, scaling, pixels, seed=loop.options.seed)
    # Wrapping sends rank 0's weights and buffers to the others; later only its buffers are ever saved.
    wrapped = ray.train.torch.prepare_model(network, parallel_strategy_kwargs={"broadcast_buffers": False})
    sampling = Sampling(
        anomalies=_anomalies(loop),
        augment=augmentation.light(loop.input_size, loop.augmentation),
        seed=loop.options.seed,
    )
    batches = functools.partial(training.batches, TrainingSet(list(pixels)), sampling, loop.options)
    trainer = training.Trainer(
        wrapped,
        network.receptive_field,
        scaling,
        loop.options,
        num_images=len(pixels),
        input_size=loop.input_size,
    )
    for epoch in range(loop.options.epochs):
        start = time.perf_counter()
        steps = [trainer.step(batch) for batch in batches(epoch=epoch, rank=rank, world_size=workers)]
        seconds = time.perf_counter() - start
        total, nominal, anomalous = np.nanmean(np.array(steps), axis=0)
        rate = len(steps) * loop.options.batch_size / seconds
        if rank == 0:
            log.info(
                "epoch %d/%d  loss %.4f (nominal %.4f, anomalous %.4f)  %.0f images/s",
                *(epoch + 1, loop.options.epochs, total, nominal, anomalous, rate),
            )
        metrics = {"epoch": epoch + 1, "loss": float(total), "images_per_second": rate, "num_images": len(pixels)}
        _report(metrics, network, scaling, save=rank == 0)


def _common(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What every worker could read: a request that failed on one of them must not shift the others' batches."""
    if not torch.distributed.is_initialized():
        return positions
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, positions)
    return functools.reduce(np.intersect1d, everyone)


def _anomalies(loop: LoopConfig) -> supervision.AnomalySource:
    """Synthetic anomalies, and outliers as often as asked for; they are read from the store one by one."""
    synthetic = supervision.SYNTHETIC[loop.anomalies]
    if not loop.outliers:
        return synthetic
    outliers = supervision.OutlierExposure(_images.StoredImages(loop.outliers, loop.input_size, loop.channels))
    return supervision.AnyOf([outliers, synthetic], [loop.outlier_share, 1 - loop.outlier_share])


def input_normalization(loop: LoopConfig, pixels: npt.NDArray[np.uint8]) -> Normalization:
    """What a pretrained trunk expects, else constants of the training images (N,H,W,C)."""
    expected = networks.input_normalization(loop.network)
    return expected or normalization.estimate(loop.normalization, torch.from_numpy(pixels))


def _report(metrics: dict[str, float], network: torch.nn.Module, scaling: Normalization, *, save: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if save:
            Path(folder, WEIGHTS_FILE).write_bytes(detector.serialize(network))
            Path(folder, NORMALIZATION_FILE).write_text(json.dumps(scaling.model_dump()))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)
