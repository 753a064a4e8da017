"""One training of an FCDD network: samples, order, one step; no Ray, no files, no clock.

Every random choice of a sample (whether it becomes anomalous, the anomaly, the augmentation) comes from a generator
keyed by (seed, epoch, sample), and the order of an epoch from (seed, epoch): the same batches are drawn whatever the
number of workers that share them.

Optimisers and schedules: the published ones (METHOD section 5; `fcdd.paper.protocols` has the values) and our own
recipe, AdamW with a one-cycle learning rate. Half of the samples are anomalous (METHOD section 4: online, probability
0.5).

Shapes: N images, B batch, H x W pixels, C channels.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fcdd import objective, upsampling
from fcdd.errors import ConfigError, ImageError
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.receptive_field import ReceptiveField
from fcdd.sizing import images_at_once
from fcdd.supervision import AnomalySource, HeldOut, Mask, TrainingSet, Unit
from fcdd.whitening import Share, WhitenedHead
from fcdd.windows import Part, Window, Windows

Pixels = npt.NDArray[np.uint8]
Augment = Callable[[Pixels, Mask, np.random.Generator], tuple[Unit, Mask]]
# Is given what is worked through step by step, and how many steps it has: to tell how far it is.
Watch = Callable[[Iterable[int], int], Iterable[int]]


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

    In a training set with labels, what replaces an image gets the other label. With `windows` samples are parts of
    images. `leaves_as_they_are`: `augment` does so with images that have the network's size, see `fcdd.remembering`.
    """

    anomalies: AnomalySource
    augment: Augment
    seed: int
    probability: float = 0.5
    windows: Windows | None = None
    leaves_as_they_are: bool = False


# Of more images so many are whitened by, and so many tell which components their features have.
STATISTICS_IMAGES, COMPONENTS_IMAGES = 4096, 64
# Domains of the keyed generators: without them the order of an epoch would share its stream with sample 0.
_ORDER, _SAMPLE = 0, 1


class Sample(NamedTuple):
    """Pixels (H,W,C) float32 in about [0,1], label 0 nominal / 1 anomalous, mask (H,W) bool of the anomaly.

    `source` is the index of the image it was drawn for. `left_out` says which images before it could not be read and
    why, `copies` which ones must not be trained on. The mask of a part of an image is that of the cells of `window`.
    `unchanged` is `source` if the pixels are those of the image.
    """

    pixels: Unit
    label: int
    mask: Mask
    source: int
    left_out: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    window: Window | None = None
    unchanged: int | None = None


class Batch(NamedTuple):
    """A worker's samples of a global batch: pixels (B,H,W,C) float32 in [0,1], labels (B,), masks (B,1,H,W) bool.

    `weight` times the mean over the worker's samples, averaged over the workers, is the mean over the global batch.
    With `windows` (B) these are parts of images. `unchanged` (B): see `fcdd.remembering`; None where nothing is left
    as it is.
    """

    pixels: Tensor
    labels: Tensor
    masks: Tensor
    sources: list[int]
    left_out: list[str]
    copies: list[str]
    weight: float = 1.0
    windows: list[Window] | None = None
    unchanged: list[int | None] | None = None


class Losses(NamedTuple):
    """Sums and numbers of the losses of a step's nominal and anomalous samples."""

    nominal: float
    num_nominal: int
    anomalous: float
    num_anomalous: int

    @property
    def mean(self) -> float:
        """Mean over all samples."""
        return (self.nominal + self.anomalous) / (self.num_nominal + self.num_anomalous)


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
    """Sample `number` of `epoch`: image `number` modulo N, or what replaces it, augmented.

    For an image that cannot be read or is held out the next one is taken. Raises ConfigError when ten in a row cannot
    be read, or there is none to take.
    """
    generator = np.random.default_rng((_SAMPLE, sampling.seed, epoch, number))
    read = _read(data, number % len(data.images))
    image, index = read.image, read.source
    label = 0 if data.labels is None else int(data.labels[index])
    mask = np.full(image.shape[:2], bool(label)) if data.masks is None else data.masks[index]
    part = sampling.windows.draw(generator) if sampling.windows else None
    unchanged = index if sampling.leaves_as_they_are else None
    if generator.random() < sampling.probability:
        unchanged = None
        image, mask, part = _anomalous(image, part, sampling, generator)
        label = 1 - label
        mask = mask & bool(label)
    elif part is not None:
        image, mask = image[part.pixels], mask[part.pixels]
    pixels, mask = sampling.augment(image, mask, generator)
    if part is not None:
        mask = mask[part.inner]
    return Sample(pixels, label, mask, index, read.left_out, read.copies, part and part.window, unchanged)


def _anomalous(
    image: Pixels, part: Part | None, sampling: Sampling, generator: np.random.Generator
) -> tuple[Pixels, Mask, Part | None]:
    """An anomalous image, its mask and the part of an image that it is: that one, if there is one, or another.

    Sources that draw do so where it counts. Those that bring images of their own bring whole ones: of these the part
    is taken that holds one of their anomalous pixels.
    """
    if part is None or sampling.windows is None:
        return *sampling.anomalies(image, generator), None
    shown = image[part.pixels]
    drawn, mask = sampling.anomalies(np.ascontiguousarray(shown[part.inner]), generator)
    if drawn.shape == image.shape:
        part = sampling.windows.draw(generator, _one_of(mask, generator))
        return drawn[part.pixels], mask[part.pixels], part
    changed, where = shown.copy(), np.zeros(shown.shape[:2], np.bool_)
    changed[part.inner], where[part.inner] = drawn, mask
    return changed, where, part


def _one_of(mask: Mask, generator: np.random.Generator) -> tuple[int, int] | None:
    """Row and column of one of the pixels of a mask; None where it is all of them."""
    if mask.all():
        return None
    pixels = np.flatnonzero(mask)
    row, column = divmod(int(pixels[generator.integers(len(pixels))]), mask.shape[1])
    return row, column


class _Read(NamedTuple):
    """The next image that can be trained on, and those before it that cannot."""

    image: Pixels
    source: int
    left_out: tuple[str, ...]
    copies: tuple[str, ...]


def _read(data: TrainingSet, first: int) -> _Read:
    left_out, copies = list[str](), list[str]()
    for offset in range(len(data.images)):
        index = (first + offset) % len(data.images)
        try:
            return _Read(data.images[index], index, tuple(left_out), tuple(copies))
        except HeldOut as error:
            copies.append(str(error))
        except ImageError as error:
            left_out.append(str(error))
            if len(left_out) == _READ_ATTEMPTS:
                raise ConfigError(
                    f"{_READ_ATTEMPTS} training images in a row cannot be read, the last: {error}"
                ) from error
    raise ConfigError(
        f"there is no image to train on: of {len(data.images)}, {len(copies)} are held out under another name and "
        f"{len(left_out)} cannot be read"
    )


_READ_ATTEMPTS = 10


def collate(samples: Sequence[Sample], weight: float = 1.0, *, leaves_as_they_are: bool = False) -> Batch:
    """Samples stacked."""
    return Batch(
        torch.from_numpy(np.stack([sample.pixels for sample in samples])),
        torch.tensor([sample.label for sample in samples]),
        torch.from_numpy(np.stack([sample.mask for sample in samples]))[:, None],
        [sample.source for sample in samples],
        [text for sample in samples for text in sample.left_out],
        [text for sample in samples for text in sample.copies],
        weight,
        [sample.window for sample in samples if sample.window] or None,
        [sample.unchanged for sample in samples] if leaves_as_they_are else None,
    )


@dataclass(frozen=True, slots=True)
class _Shares(Dataset[Batch]):
    """A worker's share of every batch from (epoch, step) on to the end of the training, numbered from 0."""

    data: TrainingSet
    sampling: Sampling
    options: TrainOptions
    start: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        return self.options.epochs * num_steps(len(self.data.images), self.options) - self.start

    def __getitem__(self, position: int) -> Batch:
        epoch, step = divmod(self.start + position, num_steps(len(self.data.images), self.options))
        whole = _order(len(self.data.images), self.options, epoch)[step]
        numbers = whole[self.rank :: self.world_size]
        samples = [draw_sample(self.data, int(n), epoch=epoch, sampling=self.sampling) for n in numbers]
        weight = len(numbers) * self.world_size / len(whole)
        return collate(samples, weight, leaves_as_they_are=self.sampling.leaves_as_they_are)


@functools.lru_cache(maxsize=2)
def _order(num_images: int, options: TrainOptions, epoch: int) -> list[npt.NDArray[np.int64]]:
    return epoch_order(num_images, options, epoch=epoch)


def batches(
    data: TrainingSet,
    sampling: Sampling,
    options: TrainOptions,
    *,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 0,
) -> Iterator[Batch]:
    """The share of worker `rank` in every global batch of a training from step `start` on, epoch after epoch.

    `processes` draw samples ahead in the background, 0: drawn when asked for; the samples are the same.
    """
    context = {"multiprocessing_context": "spawn", "prefetch_factor": 4} if processes else {}
    shares = _Shares(data, sampling, options, start, rank, world_size)
    return iter(DataLoader(shares, batch_size=None, num_workers=processes, **context))  # type: ignore[arg-type]


def fit_statistics(
    network: FCDDNetwork,
    normalization: Normalization,
    images_nhwc: npt.NDArray[np.uint8],
    *,
    seed: int,
    watch: Watch = lambda steps, _: steps,
    rank: int = 0,
    world_size: int = 1,
    add: Callable[[Tensor], object] = lambda _: None,
    remember: Callable[[int, Tensor], object] | None = None,
) -> None:
    """Whiten a network's features by nominal images (N,H,W,C) of its input size; nothing for other networks.

    Of more than 4,096 images, as many spread evenly are read: covariances do not change with more. `watch` is given
    the batches as they are worked through, and their number. Of several processes each computes the features of its
    share of the images, which all of them have; `add` makes a tensor the sum over the processes, in place. `remember`
    is given the position of every image that is read and its components (D,U,V), once or more.
    """
    if not isinstance(network.head, WhitenedHead):
        return
    network.eval()
    chosen, parts = _shared_out(images_nhwc, rank, world_size)
    positions = np.concatenate(parts) if parts else np.empty(0, np.int64)
    share = Share(rank, world_size, torch.from_numpy(positions) if world_size > 1 else None, len(chosen), add)

    def features(part: npt.NDArray[np.int64]) -> Tensor:
        return _features(network, normalization, images_nhwc[chosen[part]])

    head = network.head
    if head.projection is not None:
        few = _spread(len(chosen), COMPONENTS_IMAGES)
        batches = _parts(len(few), images_at_once(images_nhwc.shape[1:3], _BATCH))[rank::world_size]
        head.fit_projection((features(few[part]) for part in batches), share=share)

    def watched() -> Iterator[Tensor]:
        for step in watch(range(len(parts)), len(parts)):
            found = features(parts[step])
            if remember:
                _pass_on(head.project(found), chosen[parts[step]], remember)
            yield found

    if head.modes > 1 and len(chosen) * math.prod(head.cells) * head.features * 4 <= _KEPT_BYTES:
        # Variants are told apart in a first pass: what fits in memory is not computed for each of the two.
        kept = list(watched())
        head.fit(lambda: kept, seed=seed, share=share)
    else:
        head.fit(watched, seed=seed, share=share)


def remember_components(
    network: FCDDNetwork,
    normalization: Normalization,
    images_nhwc: npt.NDArray[np.uint8],
    remember: Callable[[int, Tensor], object],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Give `remember` what `fit_statistics` gave it, bit for bit, without fitting: of a training that goes on."""
    head = network.head
    assert isinstance(head, WhitenedHead), "the features of other networks are trained"
    chosen, parts = _shared_out(images_nhwc, rank, world_size)
    for part in parts:
        found = _features(network, normalization, images_nhwc[chosen[part]])
        _pass_on(head.project(found), chosen[part], remember)


def _pass_on(
    components_bduv: Tensor, positions: npt.NDArray[np.int64], remember: Callable[[int, Tensor], object]
) -> None:
    for position, components in zip(positions.tolist(), components_bduv, strict=True):
        remember(position, components)


@torch.inference_mode()
def _features(network: FCDDNetwork, normalization: Normalization, images_nhwc: npt.NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(images_nhwc).to(next(network.parameters()).device)
    found: Tensor = network.compute_features(normalization(pixels))
    return found


def _shared_out(
    images_nhwc: npt.NDArray[np.uint8], rank: int, world_size: int
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The images that count, and one process's batches of them."""
    chosen, size = _spread(len(images_nhwc), STATISTICS_IMAGES), images_at_once(images_nhwc.shape[1:3], _BATCH)
    return chosen, _parts(len(chosen), size)[rank::world_size]


_BATCH, _KEPT_BYTES = 32, 10**9


def _spread(number: int, most: int) -> npt.NDArray[np.int64]:
    """Up to `most` of the indices below `number`, evenly."""
    return np.linspace(0, number - 1, min(number, most)).astype(np.int64)


def _parts(number: int, size: int) -> list[npt.NDArray[np.int64]]:
    """The indices below `number` in batches."""
    return np.split(np.arange(number), range(size, number, size))


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
        """`input_size` is that of the masks; of parts of images `network` is `networks.OfWindows`.

        Of samples that say which are `unchanged` it is `remembering.Remembering`.
        """
        self.network = network.train()
        self.normalization = normalization
        self.options = options
        self.field = upsampling.with_extent(field, options.gaussian_extent)
        self.input_size = input_size
        # Too coarse for whitened features: see `fcdd.runtime`.
        self._half = not any(isinstance(module, WhitenedHead) for module in network.modules())
        self.optimizer = _optimizer([p for p in network.parameters() if p.requires_grad], options)
        self.schedule = _schedule(self.optimizer, options, num_steps(num_images, options))

    def step(self, batch: Batch) -> Losses:
        """One update. Raises FloatingPointError when the loss is not finite; the weights are then untouched.

        On a GPU the network computes in bfloat16, or, if its features are whitened, in float32 with torch's default
        for convolutions, TF32; map and loss are float32 always.
        """
        device = next(self.network.parameters()).device
        images = self.normalization(batch.pixels.to(device, non_blocking=True))
        with torch.autocast(device.type, torch.bfloat16, enabled=self._half and device.type == "cuda"):
            given = (each for each in (batch.windows, batch.unchanged) if each is not None)
            output = self.network(images, *given)
        map_b1uv = objective.anomaly_map(output)
        labels = batch.labels.to(device)
        if self.options.loss == "image":
            losses = objective.image_loss(map_b1uv, labels)
        else:
            losses = objective.pixel_loss(map_b1uv, batch.masks.to(device), self._upsample)
        total = losses.mean()
        if not torch.isfinite(total):
            raise FloatingPointError(f"the loss became {total.item()}; lower the learning rate")
        self.optimizer.zero_grad(set_to_none=True)
        (total * batch.weight).backward()
        self.optimizer.step()
        self.schedule.step()
        anomalous, detached = labels == 1, losses.detach()
        count, both = int(anomalous.sum()), detached[anomalous].sum().item()
        return Losses(detached.sum().item() - both, len(detached) - count, both, count)

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
