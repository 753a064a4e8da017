"""One training of an FCDD network: samples, order, one step; no Ray, no files, no clock.

Every random choice of a sample (augmentation, whether it becomes anomalous, the anomaly) comes from a
generator keyed by (seed, epoch, sample), and the order of an epoch from (seed, epoch): the same batches
are drawn whatever the number of workers that share them.

Recipe: AdamW with a one-cycle learning rate, half of the samples turned into synthetic anomalies
(METHOD section 4: online supervision with probability 0.5). It is ours, not one of METHOD section 5.

Shapes: N images, B batch, H x W pixels, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fcdd import noise, objective, outliers, upsampling
from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.receptive_field import ReceptiveField

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What a training does; `batch_size` is global, over all workers."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss: Literal["image", "pixel"]
    anomalies: Literal["defects", "confetti"]
    gaussian_std: float
    flips: bool
    seed: int


# Domains of the keyed generators: without them the order of an epoch would share its stream with sample 0.
_ORDER, _SAMPLE = 0, 1
_ANOMALIES = {"defects": outliers.add_anomaly, "confetti": noise.add_confetti}


class Sample(NamedTuple):
    """Pixels (H,W,C) uint8, label 0 nominal / 1 anomalous, mask (H,W) bool of the anomaly."""

    pixels: Pixels
    label: int
    mask: npt.NDArray[np.bool_]


class Batch(NamedTuple):
    """Samples stacked: pixels (B,H,W,C) uint8, labels (B,) int64, masks (B,1,H,W) bool."""

    pixels: Tensor
    labels: Tensor
    masks: Tensor


class Losses(NamedTuple):
    """Mean loss of a step, and its mean over the nominal and over the anomalous samples (NaN if none)."""

    total: float
    nominal: float
    anomalous: float


def epoch_order(num_images: int, batch_size: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """(steps, batch_size) image indices of one epoch, shuffled; the incomplete last batch is left out.

    Raises ConfigError when there are fewer images than one batch.
    """
    steps = num_images // batch_size
    if not steps:
        raise ConfigError(f"a batch of {batch_size} needs as many training images, got {num_images}")
    order = np.random.default_rng((_ORDER, seed, epoch)).permutation(num_images)
    return order[: steps * batch_size].reshape(steps, batch_size)


def draw_sample(image_hwc: Pixels, index: int, *, epoch: int, options: TrainOptions) -> Sample:
    """The training sample that image `index` becomes in `epoch`: augmented, anomalous with probability 0.5."""
    generator = np.random.default_rng((_SAMPLE, options.seed, epoch, index))
    pixels = image_hwc
    if options.flips:
        pixels = pixels[:, :: generator.choice((-1, 1))][:: generator.choice((-1, 1))]
    gain, shift = generator.uniform(0.8, 1.2), generator.uniform(-15, 15)
    pixels = (pixels * gain + shift).clip(0, 255).astype(np.uint8)
    if generator.random() < 0.5:
        pixels, mask = _ANOMALIES[options.anomalies](pixels, generator)
        return Sample(pixels, 1, mask)
    return Sample(pixels, 0, np.zeros(pixels.shape[:2], np.bool_))


def batches(
    images_nhwc: Pixels, options: TrainOptions, *, epoch: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """The share of worker `rank` in every global batch of an epoch."""
    for indices in epoch_order(len(images_nhwc), options.batch_size, seed=options.seed, epoch=epoch):
        samples = [draw_sample(images_nhwc[i], int(i), epoch=epoch, options=options) for i in indices[rank::world_size]]
        yield Batch(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            torch.tensor([sample.label for sample in samples]),
            torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None],
        )


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
        self.field = field
        self.input_size = input_size
        steps = options.epochs * (num_images // options.batch_size)
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, options.learning_rate, weight_decay=options.weight_decay)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, options.learning_rate, total_steps=max(steps, 2), pct_start=0.15
        )

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
