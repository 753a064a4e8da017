"""Pixel-level benchmark on real textures with defects unlike any used in training.

Nominal: crops of scikit-image's brick, grass and gravel photographs (training from the upper half, test from
the lower), and ELPV cells. Anomalous: one defect each of `DEFECTS`, pasted into test images; none of them is
made by `fcdd.outliers` or `fcdd.noise`.

    python -m benchmarks.textures [--textures NAME ...] [--seeds N] [--threads N]

Prints one JSON line per texture, seed and method: pixel AUROC, AUPRO, image AUROC by the maximum and mean of the map.
Methods, all at 128 pixels on the same nominal images: "gaussian" (distance to each position's mean in deviations,
root mean square over features of EfficientNet-Lite0), "mahalanobis" (the same with full covariances), "head" (the
published 1x1 head on the same frozen features, confetti), "scratch" (cnn224 from scratch, confetti), "whitened" (ours).
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fcdd import augmentation, images, metrics, networks, normalization, splits, supervision, training, upsampling
from fcdd.images import View
from fcdd.inference import Runner
from fcdd.paper import datasets
from fcdd.supervision import TrainingSet
from fcdd.training import Sampling, TrainOptions

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
SIDE = 128
TEXTURES = ("brick", "grass", "gravel", "cells")


class Benchmark(NamedTuple):
    """Nominal training images, and test images with labels (N,) and masks (N,H,W)."""

    training: Pixels
    test: Pixels
    labels: npt.NDArray[np.int64]
    masks: Mask


def load(texture: str, *, seed: int, num_training: int = 400, num_test: int = 200) -> Benchmark:
    """The benchmark of one texture: half of the test images carry one defect."""
    generator = np.random.default_rng((TEXTURES.index(texture), seed))
    if texture == "cells":
        cells = [cell for cell in datasets.elpv() if cell.probability == 0]
        held_out = [cell for cell in cells if splits.is_held_out(cell.path.name, 0.3)]
        fitted = [cell for cell in cells if cell not in held_out]
        training, test = (
            [_cell(c) for c in _some(cells, n, generator)]
            for cells, n in ((fitted, num_training), (held_out, num_test))
        )
    else:
        photograph = getattr(skimage.data, texture)()
        middle = photograph.shape[0] // 2
        training = _crops(photograph[:middle], num_training, generator)
        test = _crops(photograph[middle:], num_test, generator)
    labels = np.arange(len(test)) % 2
    masks = np.zeros((len(test), SIDE, SIDE), np.bool_)
    for index in np.flatnonzero(labels):
        defect = DEFECTS[index // 2 % len(DEFECTS)]
        test[index], masks[index] = defect(test[index], generator)
    return Benchmark(np.stack(training), np.stack(test), labels, masks)


def _some(
    items: list[datasets.LabelledImage], count: int, generator: np.random.Generator
) -> list[datasets.LabelledImage]:
    return [items[i] for i in generator.permutation(len(items))[:count]]


def _cell(cell: datasets.LabelledImage) -> Pixels:
    return images.decode(cell.path.read_bytes(), View((SIDE, SIDE), 3)).pixels


def _crops(grey: Pixels, count: int, generator: np.random.Generator) -> list[Pixels]:
    corners = generator.integers(0, np.array(grey.shape) - SIDE + 1, (count, 2))
    return [np.repeat(grey[r : r + SIDE, c : c + SIDE, None], 3, 2) for r, c in corners]


def _disc(generator: np.random.Generator) -> tuple[float, float, float, npt.NDArray[np.float64]]:
    """Centre, radius, and the distance of every pixel from the centre in radii."""
    row, column = generator.uniform(0.15 * SIDE, 0.85 * SIDE, 2)
    radius = generator.uniform(0.08, 0.18) * SIDE
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return row, column, radius, np.hypot(rows - row, columns - column) / radius


def swirl(image: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """The texture turned around a point, less with the distance."""
    row, column, _, distance = _disc(generator)
    angle = generator.choice((-1, 1)) * generator.uniform(2, 4) * np.clip(1 - distance, 0, 1)
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    y, x = rows - row, columns - column
    where = np.stack((row + np.cos(angle) * y - np.sin(angle) * x, column + np.sin(angle) * y + np.cos(angle) * x))
    turned = np.stack([ndimage.map_coordinates(image[:, :, c], where, order=1, mode="reflect") for c in range(3)], 2)
    return turned, distance < 0.9


def smear(image: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """The texture averaged along one direction inside a disc."""
    *_, distance = _disc(generator)
    size = [1, 1, 1]
    size[int(generator.integers(2))] = int(generator.integers(9, 17))
    inside = distance < 1
    return np.where(inside[:, :, None], ndimage.uniform_filter(image, size), image), inside


def ring(image: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """A raised rim, as a bottle's foot leaves it: bright outside, dark inside."""
    *_, distance = _disc(generator)
    height = generator.uniform(40, 90)
    profile = height * (np.exp(-(((distance - 1) / 0.15) ** 2)) - np.exp(-(((distance - 0.7) / 0.15) ** 2)))
    shaded = (image + profile[:, :, None]).clip(0, 255).astype(np.uint8)
    return shaded, np.abs(profile) > 0.25 * height


def print_(image: Pixels, generator: np.random.Generator) -> tuple[Pixels, Mask]:
    """Letters printed half transparently."""
    canvas = Image.new("L", (SIDE, SIDE))
    text = "".join(generator.choice(list("ABEHKMNRSWXZ"), int(generator.integers(1, 4))))
    corner = generator.uniform(0.1 * SIDE, 0.6 * SIDE, 2)
    font = ImageFont.load_default(float(generator.uniform(0.15, 0.3) * SIDE))
    ImageDraw.Draw(canvas).text((corner[0], corner[1]), text, fill=255, font=font)
    ink = np.asarray(canvas, np.float64)[:, :, None] / 255 * generator.uniform(0.3, 0.6)
    tone = generator.choice((20.0, 235.0))
    return ((1 - ink) * image + ink * tone).astype(np.uint8), ink[:, :, 0] > 0.1


DEFECTS: tuple[Callable[[Pixels, np.random.Generator], tuple[Pixels, Mask]], ...] = (swirl, smear, ring, print_)


WHITENED = "whitened:efficientnet_lite0:stage3+stage4+stage5"
METHODS = ("gaussian", "mahalanobis", "head", "scratch", "whitened")


def maps_of(method: str, benchmark: Benchmark, *, seed: int, epochs: int | None) -> tuple[np.ndarray, float]:
    """Heatmaps (N,H,W) of the test images, and the seconds of fitting."""
    name = {"head": "backbone:efficientnet_lite0:stage3+stage4+stage5", "scratch": "cnn224"}.get(method, WHITENED)
    torch.manual_seed(seed)
    start = time.perf_counter()
    network = networks.build(name, in_channels=3, image_size=(SIDE, SIDE), frozen=method == "head")
    scaling = networks.input_normalization(name)
    if scaling is None:
        scaling = normalization.estimate("mean_std", torch.from_numpy(benchmark.training))
    else:
        networks.load_pretrained(network, name)
    if method == "gaussian":
        maps = _gaussian(network.eval(), scaling, benchmark)
        return _heatmaps(network, maps), time.perf_counter() - start
    training.fit_statistics(network, scaling, benchmark.training, seed=seed)
    if method != "mahalanobis":
        confetti = method in ("head", "scratch")
        # A linear head on fixed features needs larger steps: 1e-3 gave less in trials.
        rate = 1e-2 if method == "head" else 1e-3
        _train(network, scaling, benchmark.training, seed, epochs or (12 if confetti else 3), rate, confetti)
    seconds = time.perf_counter() - start
    return _heatmaps(network, Runner(network, scaling, benchmark.test.shape[1:3])(benchmark.test)), seconds


def _train(
    network: networks.FCDDNetwork,
    scaling: normalization.Normalization,
    pixels: Pixels,
    seed: int,
    epochs: int,
    rate: float,
    confetti: bool,
) -> None:
    options = TrainOptions(
        epochs=epochs,
        batch_size=32,
        learning_rate=rate,
        weight_decay=1e-4 if confetti else 0.0,
        loss="pixel",
        gaussian_std=network.receptive_field.stride / 2,
        seed=seed,
    )
    sampling = Sampling(
        anomalies=supervision.SYNTHETIC["confetti" if confetti else "mixed"],
        augment=augmentation.light((SIDE, SIDE), "all" if confetti else "none"),
        seed=seed,
    )
    trainer = training.Trainer(
        network, network.receptive_field, scaling, options, num_images=len(pixels), input_size=(SIDE, SIDE)
    )
    for batch in training.batches(TrainingSet(list(pixels)), sampling, options):
        trainer.step(batch)


def _gaussian(
    network: networks.FCDDNetwork, scaling: normalization.Normalization, benchmark: Benchmark
) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        fitted, tested = (
            torch.cat([network.features(scaling(part)) for part in torch.split(torch.from_numpy(pixels), 32)])
            for pixels in (benchmark.training, benchmark.test)
        )
    return ((tested - fitted.mean(0)) / (fitted.std(0) + 1e-6)).square().mean(1).sqrt().numpy()


def _heatmaps(network: networks.FCDDNetwork, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    field = network.receptive_field
    heatmaps = upsampling.upsample(
        torch.from_numpy(maps)[:, None], field, (SIDE, SIDE), field.stride / 2, normalized=True
    )
    return heatmaps[:, 0].numpy()


def main() -> None:
    """Compare the methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", nargs="+", choices=TEXTURES, default=TEXTURES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="one epoch of few images")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for texture in arguments.textures:
        for seed in range(arguments.seeds):
            few = {"num_training": 40, "num_test": 24} if arguments.smoke else {}
            benchmark = load(texture, seed=seed, **few)
            for method in arguments.methods:
                heatmaps, seconds = maps_of(method, benchmark, seed=seed, epochs=1 if arguments.smoke else None)
                pixel = metrics.PixelMetrics()
                for heatmap, mask in zip(heatmaps, benchmark.masks, strict=True):
                    pixel.add(heatmap, mask)
                result = pixel.result()
                image = {
                    name: metrics.image_metrics(benchmark.labels, scores.astype(float), resamples=0).auroc.value
                    for name, scores in (("max", heatmaps.max((1, 2))), ("mean", heatmaps.mean((1, 2))))
                }
                figures = {
                    "pixel_auroc": result.auroc.value,
                    "aupro": result.aupro.value,
                    **{f"image_{k}": v for k, v in image.items()},
                }
                rounded = {name: round(value, 4) for name, value in figures.items()}
                print(
                    json.dumps(
                        {"texture": texture, "seed": seed, "method": method, **rounded, "seconds": round(seconds)}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
