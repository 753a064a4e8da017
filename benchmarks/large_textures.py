"""Textures of 2,048 pixels with defects of 12, 24 and 48 pixels, and PaDiM on tiles to be compared with.

    python -m benchmarks.large_textures [--textures brick grass gravel] [--networks NAME ...] [--seeds 1] [--smoke]

Endless material is made by quilting (Efros and Freeman, SIGGRAPH 2001) from scikit-image's photographs: 40 nominal
pictures from the upper half to train; 12 nominal ones, 12 with one defect of each size, and 4 with 16 of each from the
lower half to test. Defects are stains, smears, and pieces of another texture; none is made by what a training learns
from. Prints one JSON line for each texture and seed, and below it one for each method, with pixel AUROC and AUPRO (of
the pictures with many defects: few are found or missed by their place) and image AUROC (maximum, one defect) by the
size of the defect:

    a network    by its name, trained as `fcdd train --image-size 2048` does
    padim        PaDiM (Defard et al., 2021) on tiles of 256 pixels as anomalib's Tiler cuts them: the same trunk and
                 stages, 100 features drawn at random, a Gaussian for each position in a tile, blurred by 4 pixels
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import skimage.data
import torch
from scipy import ndimage
from torch.nn import functional as F

from benchmarks import large
from fcdd import metrics, networks, upsampling
from fcdd.inference import Runner

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Maps = npt.NDArray[np.float32]
SIDE = 2048
DEFECTS = (12, 24, 48)
# Of a full picture.
MANY = 16
TEXTURES = ("brick", "grass", "gravel")
TRUNK = "whitened:efficientnet_lite0"
NETWORKS = (f"{TRUNK}:anywhere",)
PADIM = "padim"
_BLOCK, _OVERLAP, _CANDIDATES = 128, 32, 24
_LEFT, _ABOVE = np.s_[:, :, :_OVERLAP], np.s_[:, :_OVERLAP, :]
_TILE, _PADIM_FEATURES, _PADIM_RIDGE, _PADIM_BLUR = 256, 100, 0.01, 4.0


class Textures(NamedTuple):
    """Pictures (N,S,S) to train on and to test, masks (N,S,S); size and number of defects (N,), 0 of nominal ones."""

    training: Pixels
    test: Pixels
    masks: Mask
    sizes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def made(
    texture: str, *, seed: int, side: int = SIDE, num_training: int = 40, num_test: int = 12, num_full: int = 4
) -> Textures:
    """To test: `num_test` nominal pictures, as many with a defect of each size, and `num_full` with many of each."""
    generator = np.random.default_rng((TEXTURES.index(texture), seed, side))
    upper, lower = np.split(getattr(skimage.data, texture)(), 2)
    other = getattr(skimage.data, TEXTURES[(TEXTURES.index(texture) + 1) % len(TEXTURES)])()
    sizes = np.concatenate([np.repeat((0, *DEFECTS), num_test), np.repeat(DEFECTS, num_full)])
    counts = np.where(np.arange(len(sizes)) < num_test * (1 + len(DEFECTS)), 1, MANY) * (sizes > 0)
    photographs = [upper] * num_training + [lower] * len(sizes)
    with ProcessPoolExecutor() as pool:
        pictures = pool.map(quilted, photographs, itertools.repeat(side), generator.spawn(len(photographs)))
        training, test = np.split(np.stack(list(pictures)), [num_training])
    masks = np.zeros(test.shape, np.bool_)
    for index in np.flatnonzero(sizes):
        size = int(sizes[index])
        for number in range(counts[index]):
            defect = (_stain, _smear, _piece)[(index + number) % 3]
            row, column = generator.integers(size, side - size, 2)
            here = _disc(side, int(row), int(column), size)
            test[index] = np.where(here, defect(test[index], size, other, generator), test[index])
            masks[index] |= here
    return Textures(training, test, masks, sizes, counts)


def quilted(photograph: Pixels, side: int, generator: np.random.Generator) -> Pixels:
    """A picture (S,S) of blocks of a photograph, each like its neighbours where they overlap, cut where they differ
    least.
    """
    step = _BLOCK - _OVERLAP
    count = -(-(side - _OVERLAP) // step)
    canvas = np.zeros((count * step + _OVERLAP,) * 2, np.float32)
    for row, column in np.ndindex(count, count):
        top, left = row * step, column * step
        here = canvas[top : top + _BLOCK, left : left + _BLOCK]
        corners = generator.integers(0, np.array(photograph.shape) - _BLOCK + 1, (_CANDIDATES, 2))
        blocks = np.stack([photograph[r : r + _BLOCK, c : c + _BLOCK] for r, c in corners]).astype(np.float32)
        left_of, above = (np.square(blocks[at] - here[at[1:]]) for at in (_LEFT, _ABOVE))
        best = int((left_of.sum((1, 2)) * bool(column) + above.sum((1, 2)) * bool(row)).argmin())
        new = np.ones((_BLOCK, _BLOCK), np.bool_)
        if column:
            new[:, :_OVERLAP] &= _beyond_cut(left_of[best])
        if row:
            new[:_OVERLAP] &= _beyond_cut(above[best].T).T
        here[new] = blocks[best][new]
    return canvas[:side, :side].astype(np.uint8)


def _beyond_cut(errors: npt.NDArray[np.float32]) -> Mask:
    """(N,W): what lies right of the path from the first row to the last on which the sum of the errors is least."""
    costs = errors.copy()
    for row in range(1, len(costs)):
        above = np.pad(costs[row - 1], 1, constant_values=np.inf)
        costs[row] += np.minimum(np.minimum(above[:-2], above[1:-1]), above[2:])
    at = int(costs[-1].argmin())
    path = [at]
    for row in range(len(costs) - 2, -1, -1):
        first = max(0, at - 1)
        at = first + int(costs[row, first : at + 2].argmin())
        path.append(at)
    return np.arange(costs.shape[1])[None, :] >= np.array(path[::-1])[:, None]


def _disc(side: int, row: int, column: int, diameter: int) -> Mask:
    rows, columns = np.ogrid[:side, :side]
    inside: Mask = np.hypot(rows - row, columns - column) <= diameter / 2
    return inside


def _stain(picture: Pixels, size: int, other: Pixels, generator: np.random.Generator) -> Pixels:
    """Half transparent, dark or bright."""
    stained: Pixels = (0.5 * picture + 0.5 * generator.choice((30.0, 225.0))).astype(np.uint8)
    return stained


def _smear(picture: Pixels, size: int, other: Pixels, generator: np.random.Generator) -> Pixels:
    """The texture averaged along one direction."""
    lengths = [1, 1]
    lengths[int(generator.integers(2))] = max(9, size)
    smeared: Pixels = ndimage.uniform_filter(picture, lengths)
    return smeared


def _piece(picture: Pixels, size: int, other: Pixels, generator: np.random.Generator) -> Pixels:
    """Another texture."""
    row, column = (int(each) for each in generator.integers(0, other.shape[0], 2))
    rolled = np.roll(other, (row, column), (0, 1))
    repeats = -(-picture.shape[0] // other.shape[0])
    return np.tile(rolled, (repeats, repeats))[: picture.shape[0], : picture.shape[1]]


def coloured(pictures: Pixels) -> Pixels:
    """(N,H,W) -> (N,H,W,3)"""
    return np.repeat(pictures[..., None], 3, 3)


class TiledPadim:
    """Positions of a tile have a Gaussian each, of features drawn at random."""

    def __init__(self, *, seed: int) -> None:
        name = f"{TRUNK}:stage3+stage4+stage5"
        network = networks.build(name, in_channels=3, image_size=(_TILE, _TILE))
        networks.load_pretrained(network, name)
        scaling = networks.input_normalization(name)
        assert scaling is not None, "a pretrained network"
        self._network, self._scaling, self._seed = network.eval(), scaling, seed

    def _features(self, picture: Pixels) -> torch.Tensor:
        """Of the tiles of a picture (H,W), row by row: (tiles, positions, features)."""
        across = picture.shape[1] // _TILE
        tiles = picture.reshape(-1, _TILE, across, _TILE).swapaxes(1, 2).reshape(-1, _TILE, _TILE)
        with torch.inference_mode():
            batches = torch.split(torch.from_numpy(coloured(tiles)), 16)
            found = torch.cat([self._network.features(self._scaling(batch)) for batch in batches])
        generator = torch.Generator().manual_seed(self._seed)
        chosen = torch.randperm(found.shape[1], generator=generator)[:_PADIM_FEATURES].sort().values
        return found[:, chosen].flatten(2).transpose(1, 2)

    def fit(self, pictures: Pixels) -> None:
        """To nominal pictures (N,H,W)."""
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for picture in pictures:
            features = self._features(picture)
            count += len(features)
            total = total + features.sum(0)
            products = products + torch.einsum("tpf,tpg->pfg", features, features)
        self._mean = total / count
        covariance = products / count - self._mean[:, :, None] * self._mean[:, None, :]
        ridge = _PADIM_RIDGE * torch.eye(_PADIM_FEATURES)
        self._inverse = torch.linalg.inv(covariance + ridge)

    def heatmap(self, picture: Pixels) -> Maps:
        """(H,W)"""
        away = self._features(picture) - self._mean
        squares = torch.einsum("tpf,pfg,tpg->tp", away, self._inverse, away)
        side, across = int(squares.shape[1] ** 0.5), picture.shape[1] // _TILE
        grid = squares.clamp(min=0).sqrt().reshape(-1, across, side, side).transpose(1, 2)
        whole = grid.reshape(1, 1, -1, across * side)
        large_map = F.interpolate(whole, picture.shape, mode="bilinear")[0, 0].numpy()
        blurred: Maps = ndimage.gaussian_filter(large_map, _PADIM_BLUR)
        return blurred


def heatmaps_of(method: str, data: Textures, *, seed: int) -> Iterator[Maps]:
    """Of the test pictures, one by one; the first comes after the training."""
    if method == PADIM:
        padim = TiledPadim(seed=seed)
        padim.fit(data.training)
        yield from map(padim.heatmap, data.test)
        return
    size = data.test.shape[1:3]
    _, network, scaling = large.trained(networks.for_size(method, size), coloured(data.training))
    runner, field = Runner(network, scaling, size), network.receptive_field
    for picture in data.test:
        found = torch.from_numpy(runner(coloured(picture[None])))[:, None]
        yield upsampling.upsample(found, field, size, field.stride / 2, normalized=True)[0, 0].numpy()


def measured(data: Textures, method: str, *, seed: int) -> dict[str, Any]:
    """One line."""
    pixels = {size: metrics.PixelMetrics(resamples=1) for size in DEFECTS}
    maxima, seconds, began = list[float](), list[float](), time.perf_counter()
    shown = zip(heatmaps_of(method, data, seed=seed), data.masks, data.sizes, data.counts, strict=True)
    for heatmap, mask, size, count in shown:
        seconds.append(time.perf_counter() - began)
        maxima.append(float(heatmap.max()))
        if not size or count > 1:
            for each in [int(size)] if size else DEFECTS:
                pixels[each].add(heatmap, mask)
        began = time.perf_counter()
    line: dict[str, Any] = {"method": method}
    for size in DEFECTS:
        chosen, found = np.isin(data.sizes, (0, size)) & (data.counts <= 1), pixels[size].result()
        labels = (data.sizes[chosen] > 0).astype(np.int64)
        image = metrics.image_metrics(labels, np.array(maxima)[chosen], resamples=0)
        values = {"pixel_auroc": found.auroc, "aupro": found.aupro, "image_auroc": image.auroc}
        line[f"{size} pixels"] = {name: round(each.value, 4) for name, each in values.items()}
    per_image = float(np.median(seconds[1:]))
    return line | {"seconds_to_train": round(seconds[0] - per_image), "seconds_per_image": round(per_image, 2)}


def main() -> None:
    """Measure, each line in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", nargs="+", choices=TEXTURES, default=TEXTURES)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="small pictures, few of them")
    parser.add_argument("--one", nargs=3, metavar=("FILE", "SEED", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(arguments.threads)
        file, seed, method = arguments.one
        with np.load(file) as stored:
            data = Textures(**stored)
        print(json.dumps(measured(data, method, seed=int(seed))), flush=True)
        return
    few = {"side": 512, "num_training": 32, "num_test": 3, "num_full": 1} if arguments.smoke else {}
    for texture in arguments.textures:
        for seed in range(1 if arguments.smoke else arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                file, began = f"{folder}/textures.npz", time.perf_counter()
                np.savez(file, **made(texture, seed=seed, **few)._asdict())
                seconds = round(time.perf_counter() - began)
                print(json.dumps({"texture": texture, "seed": seed, "seconds_to_make": seconds}), flush=True)
                for method in (PADIM, *arguments.networks):
                    one = ["--one", file, str(seed), method, "--threads", str(arguments.threads)]
                    subprocess.run([sys.executable, "-m", "benchmarks.large_textures", *one], check=True)


if __name__ == "__main__":
    main()
