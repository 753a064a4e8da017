"""The training of one process, alone or as a worker of Ray Train; the mathematics is in `fcdd.training`.

The same function runs in all cases: it sees the other processes through `Workers`.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fcdd import augmentation, checkpoint, detector, networks, normalization, supervision, sync_batch_norm, training
from fcdd.checkpoint import Progress
from fcdd.errors import ConfigError, FCDDError
from fcdd.images import View
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from fcdd.networks import FCDDNetwork, OfWindows
from fcdd.normalization import Kind, Normalization
from fcdd.remembering import Remembering
from fcdd.supervision import AnomalySource, TrainingSet
from fcdd.training import Losses, Sampling, TrainOptions
from fcdd.windows import Windows
from jobs.sources import fetching
from jobs.timing import progress
from jobs.training import data_set
from jobs.training.checkpoints import Checkpoints

log = logging.getLogger(__name__)

# Seconds between two lines of progress within an epoch.
PROGRESS_SECONDS = 10.0
# Images that a streamed training reads to estimate constants and statistics: 150 MB at 224 pixels; of large ones fewer,
# of which one covariance is that of many cells.
SAMPLE_IMAGES, SAMPLE_BYTES, FEWEST_IMAGES = 1024, 2 * 10**9, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """What every process gets; `images` are the training images of all of them.

    `held_out` are digests of the pixels of calibration images and labelled anomalies: the same picture under another
    name is not trained on as nominal.
    """

    images: list[ObjectInfo]
    held_out: frozenset[str]
    network: str
    view: View
    initial_weights: bytes
    normalization: Kind
    moving_statistics: bool
    frozen: bool
    anomalies: str
    outliers: list[ObjectInfo]
    outlier_share: float
    labelled: list[ObjectInfo]
    masks: list[ObjectInfo | None]
    labelled_share: float
    augmentation: augmentation.Light
    options: TrainOptions
    stream: bool
    loader_processes: int
    compile: bool
    checkpoints: str
    keep_checkpoints: int
    checkpoint_steps: int
    conditions: dict[str, Any]

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.view.size

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return self.view.channels


class Workers(Protocol):
    """The processes of a training, as one of them sees them."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the processes, on the device."""
        ...


class Alone:
    """One process: `fcdd train --workers 0`."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network itself, on the device."""
        return network.to(self.device)


class TrainingDiverged(FCDDError):
    """The loss is not finite: the message names the images of the batch."""


def train(loop: LoopConfig, workers: Workers) -> Remembering | None:
    """Train from the latest checkpoint, or from the start, to the end; the last checkpoint is the result.

    Returns what this process knows of the images, if they are shown as they are.
    """
    store = Checkpoints(loop.checkpoints, loop.keep_checkpoints)
    found = store.latest() if workers.rank == 0 else None
    uri = _shared(found[1] if found else None, workers)
    if uri is not None and found is None:
        found = storage.read(uri), uri
    reader = _reader(loop)
    network = detector.deserialize(
        loop.initial_weights,
        loop.network,
        loop.channels,
        loop.input_size,
        moving_statistics=loop.moving_statistics,
        frozen=loop.frozen,
    )
    scaling = _shared(_constants(loop, reader) if workers.rank == 0 else None, workers)
    network.to(workers.device)
    network.fold_features()
    windows = Windows.for_images(
        loop.input_size,
        network.receptive_field,
        margin=networks.needs_statistics(loop.network),
        coarsest=network.coarsest,
    )
    remembering = Remembering(network) if _remembers(loop, windows) else None
    if found is None and networks.needs_statistics(loop.network):
        _fit_statistics(loop, network, scaling, reader, workers, remembering)
    if workers.device.type == "cuda":  # tensor cores want it; on CPUs the images alone suffice
        network.to(memory_format=torch.channels_last)
    if workers.size > 1:
        sync_batch_norm.synchronize(network)
        for value in network.state_dict().values():  # statistics too, which data parallel would not exchange
            dist.broadcast(value, src=0)
    wrapped = workers.wrap(OfWindows(network) if windows else remembering or network)
    trainer = training.Trainer(
        torch.compile(wrapped) if loop.compile else wrapped,  # type: ignore[arg-type]
        windows.inner_field if windows else network.receptive_field,
        scaling,
        loop.options,
        num_images=len(loop.images),
        input_size=windows.inner_size if windows else loop.input_size,
    )
    run = _Run(loop, workers, store, trainer, network, scaling, reader, windows)
    epoch, step = run.restore(*found) if found else (0, 0)
    if found and remembering:
        share = {"rank": workers.rank, "world_size": workers.size}
        known = _rememberer(remembering, reader)
        training.remember_components(network, scaling, reader.sample(_sample_images(loop)), known, **share)
    run.go(TrainingSet(reader), epoch, step)
    return remembering


class _Run:
    """The epochs of one process."""

    def __init__(
        self,
        loop: LoopConfig,
        workers: Workers,
        store: Checkpoints,
        trainer: training.Trainer,
        network: FCDDNetwork,
        scaling: Normalization,
        reader: data_set.StoredImages | data_set.LoadedImages,
        windows: Windows | None,
    ) -> None:
        self.windows = windows
        self.loop, self.workers, self.store, self.trainer = loop, workers, store, trainer
        self.network, self.scaling, self.history = network, scaling, list[dict[str, float]]()
        self.at_most = len(loop.images)  # images trained on, as far as a training that is resumed had found out
        self.steps = training.num_steps(len(loop.images), loop.options)
        self.left_out, self.copies = set(reader.failures), set(reader.copies)
        self.waited = 0.0

    def restore(self, state: bytes, uri: str) -> tuple[int, int]:
        """Go on from a checkpoint; the epoch and step that it reached."""
        restored = checkpoint.restore(state, self.network, self.trainer.optimizer, self.trainer.schedule)
        self.history, self.at_most = list(restored.history), restored.num_images
        self.network.fold_features()  # those of the checkpoint
        if self.workers.rank == 0:
            log.info("resuming after epoch %d, step %d, from %s", restored.epoch, restored.step, uri)
        return restored.epoch, restored.step

    def go(self, data: TrainingSet, epoch: int, step: int) -> None:
        """Train all steps from the one that was reached."""
        options = self.loop.options
        batches = training.batches(
            data,
            Sampling(
                anomalies=_anomalies(self.loop),
                augment=augmentation.light(
                    self.windows.part_size if self.windows else self.loop.input_size, self.loop.augmentation
                ),
                seed=options.seed,
                windows=self.windows,
                leaves_as_they_are=_remembers(self.loop, self.windows),
            ),
            options,
            start=epoch * self.steps + step,
            rank=self.workers.rank,
            world_size=self.workers.size,
            processes=self.loop.loader_processes,
        )
        if not self.loop.loader_processes:
            batches = drawn_ahead(batches)
        for number in range(epoch, options.epochs):
            self._epoch(batches, number, step)
            step = 0

    def _epoch(self, batches: Iterator[training.Batch], epoch: int, first: int) -> None:
        options, began = self.loop.options, time.perf_counter()
        shown, self.waited = began, 0.0
        losses: list[Losses] = []
        for step in range(first, self.steps):
            losses.append(self._step(batches))
            done = step + 1
            if self.loop.checkpoint_steps and done % self.loop.checkpoint_steps == 0 and done < self.steps:
                self._save(epoch, done, losses[-1].mean)
            if self.workers.rank == 0 and time.perf_counter() - shown > PROGRESS_SECONDS and done < self.steps:
                shown = time.perf_counter()
                rate = len(losses) * options.batch_size / (shown - began)
                left = ((options.epochs - epoch) * self.steps - done) * options.batch_size / rate
                log.info(
                    "epoch %d/%d  step %d/%d  loss %.4f  %.0f images/s  %.0f s to go",
                    *(epoch + 1, options.epochs, done, self.steps, losses[-1].mean, rate, left),
                )
        seconds = time.perf_counter() - began
        self._exchange()
        metrics = self._metrics(epoch, losses, seconds)
        self.history.append(metrics)
        self._save(epoch + 1, 0, metrics["loss"])
        if self.workers.rank == 0:
            left = seconds * (options.epochs - epoch - 1)
            log.info(
                "epoch %d/%d  loss %.4f (nominal %.4f, anomalous %.4f)  learning rate %.2g  "
                "%.0f images/s, %.0f %% waiting for data  %.0f s to go",
                *(epoch + 1, options.epochs, metrics["loss"], metrics["loss_nominal"], metrics["loss_anomalous"]),
                *(metrics["learning_rate"], metrics["images_per_second"], 100 * metrics["waiting_share"], left),
            )

    def _step(self, batches: Iterator[training.Batch]) -> Losses:
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        self._note(batch.left_out, batch.copies)
        try:
            return self.trainer.step(batch)
        except FloatingPointError as error:
            names = ", ".join(sorted({self.loop.images[source].uri for source in batch.sources}))
            raise TrainingDiverged(f"{error}; the batch has {names}") from error

    def _note(self, left_out: Iterable[str], copies: Iterable[str]) -> None:
        """Name every image that is left out once. Raises ConfigError when too many cannot be read."""
        new, total = set(left_out) - self.left_out, len(self.loop.images)
        for text in sorted(new):
            log.warning("left out %s", text)
        for text in sorted(set(copies) - self.copies):
            log.info("not trained on: %s", text)
        self.left_out |= new
        self.copies.update(copies)
        if new and len(self.left_out) > fetching.MAX_UNREADABLE_SHARE * total:
            raise ConfigError(f"{len(self.left_out)} of {total} images cannot be read; see the log above")

    def _exchange(self) -> None:
        """What any worker left out, in every worker: each reads its share of a batch only. Raises as `_note`."""
        if self.workers.size == 1 or not self.loop.stream:
            return
        found: list[Any] = [None] * self.workers.size
        dist.all_gather_object(found, (self.left_out, self.copies))
        for left_out, copies in found:
            self._note(left_out, copies)

    def _metrics(self, epoch: int, losses: list[Losses], seconds: float) -> dict[str, float]:
        sums = torch.tensor(np.array(losses, np.float64).sum(0), device=self.workers.device)
        if self.workers.size > 1:
            dist.all_reduce(sums)
        nominal, num_nominal, anomalous, num_anomalous = sums.tolist()
        return {
            "epoch": epoch + 1,
            "loss": (nominal + anomalous) / (num_nominal + num_anomalous),
            "loss_nominal": nominal / max(num_nominal, 1),
            "loss_anomalous": anomalous / max(num_anomalous, 1),
            "learning_rate": self.trainer.optimizer.param_groups[0]["lr"],
            "images_per_second": len(losses) * self.loop.options.batch_size / seconds,
            "waiting_share": self.waited / seconds,
        }

    def _save(self, epoch: int, step: int, loss: float) -> None:
        if self.workers.rank != 0:
            return
        progress = Progress(
            epoch=epoch,
            step=step,
            conditions=self.loop.conditions,
            normalization=self.scaling,
            num_images=min(self.at_most, len(self.loop.images) - len(self.left_out) - len(self.copies)),
            history=self.history,
        )
        data = checkpoint.pack(self.network, self.trainer.optimizer, self.trainer.schedule, progress)
        self.store.save(data, progress, loss)


def _remembers(loop: LoopConfig, windows: Windows | None) -> bool:
    """Whether features of nominal images are computed once: where they are fixed, and so are the images."""
    is_fixed = networks.needs_statistics(loop.network) and loop.augmentation == "none"
    # What is compiled would be so for every number of images that are not known.
    return is_fixed and windows is None and not loop.stream and not loop.compile


def drawn_ahead(batches: Iterator[training.Batch]) -> Iterator[training.Batch]:
    """The same batches, each drawn by a thread while the one before it is trained on. Raises what drawing raises."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def _shared(value: Any, workers: Workers) -> Any:
    """Rank 0's value in every process."""
    if workers.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _reader(loop: LoopConfig) -> data_set.StoredImages | data_set.LoadedImages:
    """Images in memory, or read from the store as they are needed."""
    if loop.stream:
        return data_set.StoredImages(loop.images, loop.view, loop.held_out)
    return data_set.LoadedImages(loop.images, loop.view, loop.held_out)


def _anomalies(loop: LoopConfig) -> AnomalySource:
    """Synthetic anomalies, outliers and labelled ones in the shares of the options; outliers are read one by one."""
    source = supervision.SYNTHETIC[loop.anomalies]
    if loop.outliers:
        outliers = supervision.OutlierExposure(data_set.StoredImages(loop.outliers, loop.view, loop.held_out))
        source = supervision.AnyOf([outliers, source], [loop.outlier_share, 1 - loop.outlier_share])
    if loop.labelled:
        real = supervision.RealAnomalies(*data_set.read_anomalies(loop.labelled, loop.masks, loop.view))
        source = supervision.AnyOf([real, source], [loop.labelled_share, 1 - loop.labelled_share])
    return source


def _constants(loop: LoopConfig, reader: data_set.StoredImages | data_set.LoadedImages) -> Normalization:
    """What a pretrained trunk expects, else constants of the training images."""
    expected = networks.input_normalization(loop.network)
    if expected is not None:
        return expected
    return normalization.estimate(loop.normalization, torch.from_numpy(reader.sample(_sample_images(loop))))


def _sample_images(loop: LoopConfig) -> int:
    """How many images are read at once."""
    fitting = SAMPLE_BYTES // (math.prod(loop.input_size) * loop.channels)
    return min(SAMPLE_IMAGES, max(FEWEST_IMAGES, fitting))


def _fit_statistics(
    loop: LoopConfig,
    network: FCDDNetwork,
    scaling: Normalization,
    reader: data_set.StoredImages | data_set.LoadedImages,
    workers: Workers,
    remembering: Remembering | None,
) -> None:
    """Statistics of whitened features, each worker those of its share of the images, on its device."""
    training.fit_statistics(
        network,
        scaling,
        reader.sample(_sample_images(loop)),
        seed=loop.options.seed,
        watch=progress.watch("statistics of nominal images", log),
        rank=workers.rank,
        world_size=workers.size,
        add=dist.all_reduce if workers.size > 1 else lambda _: None,
        remember=_rememberer(remembering, reader) if remembering else None,
    )


def _rememberer(
    remembering: Remembering, reader: data_set.StoredImages | data_set.LoadedImages
) -> Callable[[int, Tensor], None]:
    """What remembers the image at a position of `reader.sample`."""
    assert isinstance(reader, data_set.LoadedImages), "a streamed training remembers nothing"
    usable = reader.usable
    return lambda position, components: remembering.remember(usable[position], components)
