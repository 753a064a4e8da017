"""The published experiments: data, anomalies, chains and training defaults of each, and the figures they gave.

Source: METHOD sections 4 to 7 (official `runners/argparse_configs.py`); literal constants and published figures are in
`published.json`. Where the official code is known to be wrong we differ, and `NOTES` says so in the report.

Shapes: H x W pixels, C channels.
"""

import dataclasses
import functools
import importlib.resources
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fcdd import augmentation, metrics, networks, normalization, objective, supervision, training, upsampling
from fcdd.augmentation import Augmentation, Jitter
from fcdd.errors import ConfigError
from fcdd.metrics import ImageMetrics, PixelMetrics, PixelMetricsResult
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.paper import datasets
from fcdd.paper.datasets import OneClass, Pixels, Test
from fcdd.supervision import AnomalySource, ImageReader, OutlierExposure, TrainingSet
from fcdd.training import Sampling, TrainOptions

Size = tuple[int, int]
NOTES = (
    "The label is always respected (official: ignored in batches of one label).",
    "The loss of anomalous samples is clamped at 1e-6 (official: + 1e-31), so its gradient stays finite.",
    "Runs are seeded (official: never).",
)
_SLIGHT: Jitter = (0.01, 0.01, 0.01, 0.01)
# ImageNet classes with one of these words in their names are left out of the outlier exposure of Pascal VOC.
_VOC_WORDS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse"),
    *("motorbike", "person", "plant", "sheep", "sofa", "train", "tv", "monitor"),
)
_BATCH = 32


class Experiment(NamedTuple):
    """One class of one protocol: what to train on, what replaces half of it, and the test set."""

    training: TrainingSet
    replacements: AnomalySource
    test: Test
    probability: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A published experiment. `load` takes the data folder, the class and a seed; no `classes`: those of the folder."""

    name: str
    classes: tuple[str, ...] | None
    load: Callable[[Path, str, int], Experiment]
    network: str
    size: Size
    options: TrainOptions
    augment: Augmentation
    prepare_test: Literal["keep", "nearest", "centre_crop"]
    notes: tuple[str, ...] = ()

    def classes_in(self, root: Path) -> list[str]:
        """The classes of the experiment with the data in `root`."""
        return datasets.custom_classes(root) if self.classes is None else list(self.classes)

    def normalization(self, name: str, images: ImageReader) -> Normalization:
        """The published constants of class `name`; those of its training images for a folder of your own."""
        if self.classes is None:
            squeezed = [augmentation.bilinear(images[index], self.size) for index in range(len(images))]
            return normalization.estimate("mean_std", torch.from_numpy(np.stack(squeezed)))
        return _normalization(self.name, name, networks.in_channels(self.network))


class Outcome(NamedTuple):
    """What one class gave; pixel metrics where the test set has masks."""

    image: ImageMetrics
    pixel: PixelMetricsResult | None
    losses: list[float]


def run(
    protocol: Protocol,
    experiment: Experiment,
    name: str,
    *,
    seed: int,
    report: Callable[[int, float], None],
    pretrained: bool = True,
    weights: Path | None = None,
) -> Outcome:
    """Train on one class and test; on a GPU if there is one. `report(epoch, mean loss)` after each epoch.

    "vgg_f" starts from the ImageNet weights of `weights`, or downloads them, unless not `pretrained`.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    channels = networks.in_channels(protocol.network)
    network = networks.build(protocol.network, in_channels=channels, image_size=protocol.size, moving_statistics=True)
    if pretrained and networks.is_pretrained(protocol.network):
        networks.load_pretrained(network, protocol.network, weights)
    network.to(device)
    scaling = protocol.normalization(name, experiment.training.images)
    options = dataclasses.replace(protocol.options, seed=seed)
    trainer = training.Trainer(
        network,
        network.receptive_field,
        scaling,
        options,
        num_images=len(experiment.training.images),
        input_size=protocol.size,
    )
    sampling = Sampling(
        anomalies=experiment.replacements, augment=protocol.augment, seed=seed, probability=experiment.probability
    )
    losses, batches = [], training.batches(experiment.training, sampling, options)
    steps = training.num_steps(len(experiment.training.images), options)
    for epoch in range(options.epochs):
        losses.append(float(np.mean([trainer.step(next(batches)).mean for _ in range(steps)])))
        report(epoch, losses[-1])
    return evaluate(protocol, network, scaling, experiment.test, losses)


def offline(protocol: Protocol, experiment: Experiment, seed: int) -> Experiment:
    """The experiment with its anomalies made once and appended (official `--offline-supervision`).

    Raises ConfigError for the data sets it is not meant for.
    """
    if protocol.name in ("imagenet30", "voc", "custom", "custom-maps"):
        raise ConfigError(f"offline supervision is not meant for {protocol.name}")
    source = experiment.replacements
    if protocol.name == "mvtec":
        source = supervision.WholeMask(functools.partial(supervision.malformed_offline, mode="confetti"))
    data = supervision.offline(experiment.training.images, source, seed=seed)
    return Experiment(data, source, experiment.test, probability=0.0)


def limited(experiment: Experiment, limit: int, seed: int) -> Experiment:
    """The experiment with `limit` images of outlier exposure, drawn once. Raises ConfigError if it has none."""
    source = experiment.replacements
    if not isinstance(source, OutlierExposure):
        raise ConfigError("this experiment has no outlier exposure to limit")
    return experiment._replace(replacements=OutlierExposure(source.images, limit=limit, seed=seed))


def evaluate(
    protocol: Protocol, network: FCDDNetwork, scaling: Normalization, test: Test, losses: list[float]
) -> Outcome:
    """Image metrics by the mean of the map; pixel metrics of its Gaussian upsampling, nearest to the mask's size."""
    scores, pixels = [], PixelMetrics() if test.masks is not None else None
    for index, map_uv in enumerate(_maps(protocol, network, scaling, test.images)):
        scores.append(float(map_uv.mean()))
        if pixels is not None and test.masks is not None:
            heatmap = upsampling.upsample(
                torch.from_numpy(map_uv)[None, None],
                network.receptive_field,
                protocol.size,
                protocol.options.gaussian_std,
            )
            mask = test.masks[index]
            pixels.add(datasets.nearest_corner(heatmap[0, 0].numpy(), (mask.shape[0], mask.shape[1])), mask)
    image = metrics.image_metrics(test.labels, np.array(scores))
    return Outcome(image, pixels.result() if pixels else None, losses)


def _maps(
    protocol: Protocol, network: FCDDNetwork, scaling: Normalization, images: ImageReader
) -> Iterator[npt.NDArray[np.float32]]:
    network.eval()
    device = next(network.parameters()).device
    for start in range(0, len(images), _BATCH):
        numbers = range(start, min(start + _BATCH, len(images)))
        batch = np.stack([_prepared(images[number], protocol) for number in numbers])
        with torch.inference_mode():
            maps = objective.anomaly_map(network(scaling(torch.from_numpy(batch).to(device))))
        yield from maps[:, 0].cpu().numpy()


def _prepared(image: Pixels, protocol: Protocol) -> Pixels:
    if protocol.prepare_test == "nearest":
        return augmentation.nearest(image, protocol.size)
    if protocol.prepare_test == "centre_crop":
        if protocol.augment.shorter_side:
            image = augmentation.shorter_side(image, protocol.augment.shorter_side)
        return augmentation.centre_crop(image, protocol.size)
    return image


def published(protocol: str) -> dict[str, Any]:
    """The figures of METHOD section 7: "metric" ("image" or "pixel"), and by source their "values" and "mean"."""
    figures: dict[str, Any] = _published()["figures"].get(protocol, {"metric": "image"})
    return figures


@functools.cache
def _published() -> Any:
    return json.loads((importlib.resources.files("fcdd.paper") / "published.json").read_text(encoding="utf-8"))


def _normalization(protocol: str, name: str, channels: int) -> Normalization:
    constants = _published()["constants"]
    if protocol in ("fmnist", "fmnist-emnist"):
        low, high = constants["fmnist"]["min_max_l1"][datasets.FASHION_MNIST.index(name)]
        return Normalization(kind="lcn_min_max", shift=(low,) * channels, scale=(high - low,) * channels)
    if protocol in ("mvtec", "mvtec-semi"):
        lows, highs = constants["mvtec"]["min_max_l1"][constants["mvtec"]["class_order"].index(name)]
        scale = tuple(high - low for low, high in zip(lows, highs, strict=True))
        return Normalization(kind="lcn_min_max", shift=tuple(lows), scale=scale)
    table = constants[protocol]
    mean, std = table["mean"], table["std"]
    if protocol == "cifar10":
        number = datasets.CIFAR10.index(name)
        mean, std = mean[number], std[number]
    return Normalization(kind="mean_std", shift=tuple(mean), scale=tuple(std))


# How each data set becomes an experiment


def _fashion(root: Path, name: str, seed: int, *, outliers: str) -> Experiment:
    nominal = datasets.FASHION_MNIST.index(name)
    parts = (datasets.fashion_mnist(root, "train"), datasets.fashion_mnist(root, "t10k"))
    if outliers == "emnist":
        images = datasets.emnist_letters(root)
    else:
        images = [_grey28(image) for image in datasets.cifar100(root)]
    return _experiment(datasets.one_vs_rest(*parts, nominal), OutlierExposure(images))


def _grey28(image: Pixels) -> Pixels:
    return augmentation.bilinear(augmentation.grey(image), (28, 28))


def _cifar10(root: Path, name: str, seed: int) -> Experiment:
    parts = (datasets.cifar10(root, "train"), datasets.cifar10(root, "test"))
    return _experiment(
        datasets.one_vs_rest(*parts, datasets.CIFAR10.index(name)), OutlierExposure(datasets.cifar100(root))
    )


_shorter_256 = functools.partial(augmentation.shorter_side, side=256)


def _imagenet30(root: Path, name: str, seed: int) -> Experiment:
    number = list(datasets.IMAGENET30).index(name)
    training_set = datasets.imagenet30(root, "train", _shorter_256, only=name)
    test = datasets.imagenet30(root, "val", _shorter_256)
    # The 30 classes themselves are no outliers.
    outliers = datasets.image_folder(
        _existing(root / "imagenet22k", "ImageNet-22k (fall 2011), one folder per class"),
        without=tuple(spelling for each in datasets.IMAGENET30 for spelling in datasets.spellings(each)),
        prepare=_shorter_256,
    )
    return _experiment(datasets.one_vs_rest(training_set, test, number), OutlierExposure(outliers))


def _mvtec(root: Path, name: str, seed: int) -> Experiment:
    confetti = supervision.SYNTHETIC["confetti"]
    return _experiment(datasets.mvtec(root, name), supervision.WholeMask(confetti))


def _mvtec_semi(root: Path, name: str, seed: int) -> Experiment:
    """One test image of each defect type, with its mask, is trained on and leaves the test set."""
    data = datasets.mvtec(root, name)
    kinds = np.array([key.partition("/")[0] for key in data.test.names])
    generator = np.random.default_rng(seed)
    drawn = [int(generator.choice(np.flatnonzero(kinds == kind))) for kind in sorted(set(kinds)) if kind != "good"]
    assert data.test.masks is not None
    side = data.training[0].shape[0]
    masks = [datasets.nearest_corner(data.test.masks[i], (side, side)) for i in drawn]
    for index, mask in zip(drawn, masks, strict=True):
        if not mask.any():
            raise ConfigError(
                f"nothing is left of the mask of {root / name}/test/{data.test.names[index]} at {side} pixels"
            )
    anomalies = supervision.RealAnomalies([data.test.images[i] for i in drawn], masks)
    rest = np.setdiff1d(np.arange(len(kinds)), drawn)
    if not (data.test.labels[rest] == 1).any():
        raise ConfigError(f"{root / name}: every anomalous test image would be trained on; none is left to test")
    return _experiment(OneClass(data.training, _subset(data.test, rest)), anomalies)


def _subset(test: Test, indices: npt.NDArray[np.int64]) -> Test:
    return Test(
        [test.images[i] for i in indices],
        test.labels[indices],
        None if test.masks is None else [test.masks[i] for i in indices],
        [test.names[i] for i in indices],
    )


def _voc(root: Path, name: str, seed: int) -> Experiment:
    """Horses are label 1, ImageNet is pulled to the centre: a high score means "horse" (the watermark experiment)."""
    squeeze = functools.partial(augmentation.bilinear, size=(224, 224))
    horses, test = (datasets.voc_horse(root, split, squeeze) for split in ("train", "val"))
    chosen = [image for image, label in zip(horses.images, horses.classes, strict=True) if label]
    if not chosen:
        raise ConfigError(f"there is no horse in the training split of {root}")
    folder = _existing(root / "imagenet", "ImageNet 1k's validation images, one folder per class")
    outliers = datasets.image_folder(folder, without=_voc_like(folder), prepare=squeeze)
    data = TrainingSet(chosen, np.ones(len(chosen), np.int64))
    names = [str(index) for index in range(len(test.classes))]
    return Experiment(data, OutlierExposure(outliers), Test(test.images, test.classes, None, names))


def _voc_like(folder: Path) -> tuple[str, ...]:
    """The class folders whose name has one of VOC's words; numbered folders are named as torchvision orders them."""
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
    numbered = [name for name in folders if re.fullmatch(r"n\d{8}", name)]
    names = dict(zip(folders, folders, strict=True))
    if numbered:
        from torchvision.models import ResNet18_Weights

        categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
        if len(numbered) != len(categories):
            raise ConfigError(
                f"expected the {len(categories)} class folders of ImageNet 1k in {folder}, got {len(numbered)}: their "
                "order tells which classes are Pascal VOC's and have to be left out"
            )
        names |= dict(zip(numbered, categories, strict=True))
    return tuple(key for key, name in names.items() if set(re.split(r"[ _-]", name.lower())) & set(_VOC_WORDS))


def _custom(root: Path, name: str, seed: int, *, maps: bool) -> Experiment:
    """Known anomalies of the training split if there are some, else the images below `outliers`, else confetti."""
    data = datasets.custom(root, name, maps=maps)
    replacements: AnomalySource = supervision.WholeMask(supervision.SYNTHETIC["confetti"])
    if len(data.anomalies):
        known = [data.anomalies[index] for index in range(len(data.anomalies))]
        replacements = supervision.RealAnomalies(known, data.anomaly_masks)
    elif (root / "outliers").is_dir():
        replacements = OutlierExposure(datasets.image_folder(root / "outliers"))
    return Experiment(TrainingSet(data.training), replacements, data.test)


def _existing(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"expected {what} for outlier exposure in {folder}; get it from https://image-net.org")
    return folder


def _experiment(data: OneClass, replacements: AnomalySource) -> Experiment:
    return Experiment(TrainingSet(data.training), replacements, data.test)


# The published defaults: METHOD section 5

_ADAM = TrainOptions(
    epochs=600,
    batch_size=200,
    learning_rate=1e-3,
    weight_decay=1e-6,
    loss="image",
    gaussian_std=8.0,
    seed=0,
    optimizer="adam",
    schedule="milestones",
    decay=0.1,
    milestones=(400, 500),
    drop_incomplete=False,
)
_SGD = dataclasses.replace(_ADAM, optimizer="sgd", schedule="exponential", milestones=(), batch_size=128)
_FMNIST = Protocol(
    name="fmnist",
    classes=datasets.FASHION_MNIST,
    load=functools.partial(_fashion, outliers="cifar100"),
    network="cnn28_w",
    size=(28, 28),
    options=dataclasses.replace(_SGD, epochs=400, learning_rate=1e-2, decay=0.98, gaussian_std=1.2),
    augment=Augmentation(size=(28, 28), fit="crop", padding=2, flips=("horizontal",)),
    prepare_test="keep",
)
_MVTEC = Protocol(
    name="mvtec",
    classes=datasets.MVTEC,
    load=_mvtec,
    network="vgg_f",
    size=(224, 224),
    options=dataclasses.replace(
        _SGD, epochs=200, weight_decay=1e-4, decay=0.985, loss="pixel", gaussian_std=12.0, repeats=10
    ),
    augment=Augmentation(
        size=(224, 224),
        fit="crop_or_resize",
        jitters=((0.04, 0.04, 0.04, 0.04), (0.005, 0.0005, 0.0005, 0.0005)),
        relative_noise=0.1,
    ),
    prepare_test="nearest",
)
_CUSTOM = Protocol(
    name="custom",
    classes=None,
    load=functools.partial(_custom, maps=False),
    network="vgg_f",
    size=(224, 224),
    options=dataclasses.replace(_SGD, epochs=200, decay=0.985, gaussian_std=10.0),
    augment=Augmentation(
        size=(224, 224),
        shorter_side=248,
        fit="crop",
        flips=("horizontal",),
        jitters=(_SLIGHT,),
        jitter_first=True,
        noise=0.001,
    ),
    prepare_test="centre_crop",
    notes=(
        "Without known anomalies and without a folder `outliers`, confetti is the anomaly (official: ImageNet-22k).",
        "Masks keep their own sizes in pixel metrics (official: all are brought to the smallest side).",
    ),
)
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _FMNIST,
        dataclasses.replace(_FMNIST, name="fmnist-emnist", load=functools.partial(_fashion, outliers="emnist")),
        Protocol(
            name="cifar10",
            classes=datasets.CIFAR10,
            load=_cifar10,
            network="cnn32_lw3k",
            size=(32, 32),
            options=dataclasses.replace(_ADAM, gaussian_std=1.2),
            augment=Augmentation(
                size=(32, 32),
                fit="crop",
                padding=4,
                flips=("horizontal",),
                jitters=(_SLIGHT,),
                jitter_first=True,
                noise=0.001,
            ),
            prepare_test="keep",
        ),
        Protocol(
            name="imagenet30",
            classes=tuple(datasets.IMAGENET30),
            load=_imagenet30,
            network="vgg_nopt",
            size=(224, 224),
            options=_ADAM,
            augment=Augmentation(
                size=(224, 224), fit="crop", flips=("horizontal",), jitters=(_SLIGHT,), jitter_first=True, noise=0.001
            ),
            prepare_test="centre_crop",
        ),
        _CUSTOM,
        dataclasses.replace(
            _CUSTOM,
            name="custom-maps",
            load=functools.partial(_custom, maps=True),
            options=dataclasses.replace(_CUSTOM.options, loss="pixel"),
            augment=Augmentation(
                size=(224, 224),
                fit="crop_or_resize",
                resize_before_crop=(248, 248),
                flips=("horizontal",),
                jitters=(_SLIGHT,),
                noise=0.001,
            ),
            prepare_test="nearest",
        ),
        _MVTEC,
        dataclasses.replace(
            _MVTEC,
            name="mvtec-semi",
            load=_mvtec_semi,
            notes=("The anomalies trained on are taken out of the test set (official and published: left in).",),
        ),
        Protocol(
            name="voc",
            classes=("horse",),
            load=_voc,
            network="vgg_nopt",
            size=(224, 224),
            options=_ADAM,
            augment=Augmentation(size=(224, 224), jitters=(_SLIGHT,), noise=0.001),
            prepare_test="keep",
            notes=(
                "Training images are not contrast-stretched (official: those that are not replaced are).",
                "Tested on VOC's val split. No figure was published for this experiment, which shows a watermark.",
            ),
        ),
    )
}
