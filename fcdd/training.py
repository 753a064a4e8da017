"""One training of an FCDD network: samples, order, one step; no Ray, no files, no clock.

Every random choice of a sample (whether it becomes anomalous, the anomaly, the augmentation) comes from a generator
keyed by (seed, epoch, sample), and the order of an epoch from (seed, epoch): the same batches are drawn whatever the
number of workers that share them.

Optimisers and schedules: the published ones (METHOD section 5; `fcdd.protocols` has the values) and our own recipe,
AdamW with a one-cycle learning rate. Half of the samples are anomalous (METHOD section 4: online, probability 0.5).

Shapes: N images, B batch, H x W pixels, C channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fcdd import objective, upsampling
from fcdd.errors import ConfigError
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.receptive_field import ReceptiveField
from fcdd.supervision import AnomalySource, Mask, TrainingSet, Unit
from fcdd.whitening import WhitenedHead

Pixels = npt.NDArray[np.uint8]
Augment = Callable[[Pixels, Mask, np.random.Generator], tuple[Unit, Mask]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What a training does; `batch_size` is global, over all workers.

    `optimizer`: "adamw" (decoupled weight decay), or the published "sgd" (momentum 0.9, Nesterov) and "adam", whose
    weight decay is added to the gradient of every parameter. `schedule`: "one_cycle", or per epoch "exponential"
    (factor `decay`) or "milestones" (factor `decay` after each of `milestones` epochs). `repeats`: passes over the
    images in one epoch. `drop_incomplete`: leave out an epoch's last batch if it is short, as data-parallel workers
    need; the official code keeps it.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss: Literal["image", "pixel"]
    gaussian_std: float
    seed: int
    gaussian_extent: int | None = None
    optimizer: Literal["adamw", "sgd", "adam"] = "adamw"
    schedule: Literal["one_cycle", "exponential", "milestones"] = "one_cycle"
    decay: float = 1.0
    milestones: tuple[int, ...] = ()
    repeats: int = 1
    drop_incomplete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How images become samples: each is replaced by an anomaly with `probability`; `augment` takes it to size.

    In a training set with labels, what replaces an image gets the other label.
    """

    anomalies: AnomalySource
    augment: Augment
    seed: int
    probability: float = 0.5


# Domains of the keyed generators: without them the order of an epoch would share its stream with sample 0.
_ORDER, _SAMPLE = 0, 1


class Sample(NamedTuple):
    """Pixels (H,W,C) float32 in about [0,1], label 0 nominal / 1 anomalous, mask (H,W) bool of the anomaly."""

    pixels: Unit
    label: int
    mask: Mask


class Batch(NamedTuple):
    """Samples stacked: pixels (B,H,W,C) float32 in [0,1], labels (B,) int64, masks (B,1,H,W) bool."""

    pixels: Tensor
    labels: Tensor
    masks: Tensor


class Losses(NamedTuple):
    """Mean loss of a step, and its mean over the nominal and over the anomalous samples (NaN if none)."""

    total: float
    nominal: float
    anomalous: float


def num_steps(num_images: int, options: TrainOptions) -> int:
    """Batches of one epoch. Raises ConfigError when there are fewer samples than one batch that has to be whole."""
    samples = num_images * options.repeats
    if not options.drop_incomplete and samples:
        return math.ceil(samples / options.batch_size)
    if samples < options.batch_size:
        raise ConfigError(f"a batch of {options.batch_size} needs as many training images, got {num_images}")
    return samples // options.batch_size


def epoch_order(num_images: int, options: TrainOptions, *, epoch: int) -> list[npt.NDArray[np.int64]]:
    """The sample numbers of every batch of one epoch, shuffled; sample i is image i modulo `num_images`."""
    steps = num_steps(num_images, options)
    order = np.random.default_rng((_ORDER, options.seed, epoch)).permutation(num_images * options.repeats)
    return [order[step * options.batch_size : (step + 1) * options.batch_size] for step in range(steps)]


def draw_sample(data: TrainingSet, number: int, *, epoch: int, sampling: Sampling) -> Sample:
    """Sample `number` of `epoch`: image `number` modulo N, or what replaces it, augmented."""
    generator = np.random.default_rng((_SAMPLE, sampling.seed, epoch, number))
    index = number % len(data.images)
    image = data.images[index]
    label = 0 if data.labels is None else int(data.labels[index])
    mask = np.full(image.shape[:2], bool(label)) if data.masks is None else data.masks[index]
    if generator.random() < sampling.probability:
        image, mask = sampling.anomalies(image, generator)
        label = 1 - label
        mask = mask & bool(label)
    pixels, mask = sampling.augment(image, mask, generator)
    return Sample(pixels, label, mask)


def batches(
    data: TrainingSet, sampling: Sampling, options: TrainOptions, *, epoch: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """The share of worker `rank` in every global batch of an epoch."""
    for numbers in epoch_order(len(data.images), options, epoch=epoch):
        samples = [draw_sample(data, int(n), epoch=epoch, sampling=sampling) for n in numbers[rank::world_size]]
        yield Batch(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            torch.tensor([sample.label for sample in samples]),
            torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None],
        )


def fit_statistics(
    network: FCDDNetwork, normalization: Normalization, images_nhwc: npt.NDArray[np.uint8], *, seed: int
) -> None:
    """Whiten a network's features by nominal images (N,H,W,C) of its input size; nothing for other networks.

    Of more than 4,096 images, as many spread evenly are read: covariances do not change with more.
    """
    if not isinstance(network.head, WhitenedHead):
        return
    network.eval()
    device = next(network.parameters()).device
    chosen = np.linspace(0, len(images_nhwc) - 1, min(len(images_nhwc), _STATISTICS_IMAGES)).astype(np.int64)
    parts = np.split(chosen, range(_STATISTICS_BATCH, len(chosen), _STATISTICS_BATCH))

    def features() -> Iterator[Tensor]:
        for part in parts:
            with torch.inference_mode():
                batch = network.features(normalization(torch.from_numpy(images_nhwc[part]).to(device)))
            yield batch

    network.head.fit(features, seed=seed)


_STATISTICS_IMAGES, _STATISTICS_BATCH = 4096, 16


class Trainer:
    """Optimiser and schedule around a network (or its data-parallel wrapper) with one public verb."""

    def __init__(
        self,
        network: nn.Module,
        field: ReceptiveField,
        normalization: Normalization,
        options: TrainOptions,
        *,
        num_images: int,
        input_size: tuple[int, int],
    ) -> None:
        self.network = network.train()
        self.normalization = normalization
        self.options = options
        self.field = upsampling.with_extent(field, options.gaussian_extent)
        self.input_size = input_size
        self.optimizer = _optimizer([p for p in network.parameters() if p.requires_grad], options)
        self.schedule = _schedule(self.optimizer, options, num_steps(num_images, options))

    def step(self, batch: Batch) -> Losses:
        """One update. Raises FloatingPointError when the loss is not finite; the weights are then untouched."""
        device = next(self.network.parameters()).device
        map_b1uv = objective.anomaly_map(self.network(self.normalization(batch.pixels.to(device))))
        labels = batch.labels.to(device)
        if self.options.loss == "image":
            losses = objective.image_loss(map_b1uv, labels)
        else:
            losses = objective.pixel_loss(map_b1uv, batch.masks.to(device), self._upsample)
        total = losses.mean()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss became {total.item()}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        detached = losses.detach()
        return Losses(total.item(), detached[labels == 0].mean().item(), detached[labels == 1].mean().item())

    def _upsample(self, map_b1uv: Tensor) -> Tensor:
        return upsampling.upsample(map_b1uv, self.field, self.input_size, self.options.gaussian_std)


def _optimizer(parameters: list[nn.Parameter], options: TrainOptions) -> torch.optim.Optimizer:
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, weight_decay=decay)


def _schedule(
    optimizer: torch.optim.Optimizer, options: TrainOptions, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if options.schedule == "one_cycle":
        steps = max(options.epochs * steps_per_epoch, 2)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, total_steps=steps, pct_start=0.15)

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        if options.schedule == "exponential":
            return float(options.decay**epoch)
        return float(options.decay ** sum(epoch >= milestone for milestone in options.milestones))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
