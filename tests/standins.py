"""Tiny data sets in the published layouts, drawn by a generator: what the readers must find, and no more."""

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from fcdd.paper import datasets

GENERATOR = np.random.default_rng(0)


def noisy(height: int, width: int, channels: int, level: int) -> np.ndarray:
    """An image around a grey level, so that classes differ."""
    return (level + GENERATOR.integers(-20, 21, (height, width, channels))).clip(0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(path)


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def fashion_mnist(root: Path, per_class: int = 12) -> None:
    for split, count in (("train", per_class), ("t10k", 3)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), count)
        images = np.concatenate([noisy(28, 28, 1, 20 + 20 * label) for label in labels]).reshape(-1, 28, 28)
        write_idx(root / f"FashionMNIST/raw/{split}-images-idx3-ubyte.gz", images)
        write_idx(root / f"FashionMNIST/raw/{split}-labels-idx1-ubyte.gz", labels)


def emnist(root: Path) -> None:
    images = np.stack([noisy(28, 28, 1, 100)[:, :, 0] for _ in range(20)])
    write_idx(root / "EMNIST/raw/emnist-letters-train-images-idx3-ubyte.gz", images)


def _cifar(path: Path, labels: list[int], key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.stack([noisy(32, 32, 3, 20 + 20 * (label % 10)) for label in labels])
    rows = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    path.write_bytes(pickle.dumps({"data": rows, key: labels, "filenames": ["x"] * len(labels)}, protocol=2))


def cifar10(root: Path) -> None:
    for batch in range(1, 6):
        _cifar(root / f"cifar-10-batches-py/data_batch_{batch}", 2 * list(range(10)), "labels")
    _cifar(root / "cifar-10-batches-py/test_batch", 2 * list(range(10)), "labels")


def cifar100(root: Path) -> None:
    _cifar(root / "cifar-100-python/train", list(range(30)), "fine_labels")


def imagenet30(root: Path) -> None:
    for name, wnid in datasets.IMAGENET30.items():
        level = 60 if name == "acorn" else 160
        for index in range(6 if name in ("acorn", "banjo") else 0):
            save(root / f"train/{wnid}/{wnid}_{index}.JPEG", noisy(60, 80, 3, level))
        for index in range(3 if name in ("acorn", "banjo") else 1):
            save(root / f"val/{wnid}/ILSVRC2012_val_{index}.JPEG", noisy(60, 80, 3, level))
    for name in ("acorn", "banjo"):
        save(root / f"imagenet22k/{datasets.IMAGENET30[name]}/excluded.JPEG", noisy(60, 80, 3, 60))
    for index in range(5):
        save(root / f"imagenet22k/n99999999/n99999999_{index}.JPEG", noisy(80, 60, 3, 220))
    (root / "imagenet22k/n99999999/broken.JPEG").write_bytes(b"not an image")


def mvtec(root: Path, name: str = "bottle") -> None:
    folder = root / name
    for index in range(4):
        save(folder / f"train/good/{index:03}.png", noisy(100, 120, 3, 100))
    for kind in ("good", "broken_large", "contamination"):
        for index in range(3):
            image = noisy(100, 120, 3, 100)
            if kind != "good":
                mask = np.zeros((100, 120), np.uint8)
                mask[20 : 60 + 5 * index, 30:80] = 255
                image[mask > 0] //= 4
                save(folder / f"ground_truth/{kind}/{index:03}_mask.png", mask)
            save(folder / f"test/{kind}/{index:03}.png", image)


def voc(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2007"
    for split, count in (("train", 8), ("val", 8)):
        names = [f"{split}{index:03}" for index in range(count)]
        (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
        for index, name in enumerate(names):
            kind = "horse" if index % 2 else "cat"
            (folder / "Annotations").mkdir(exist_ok=True)
            text = f"<annotation><object><name>person</name></object><object><name>{kind}</name></object></annotation>"
            (folder / f"Annotations/{name}.xml").write_text(text)
            save(folder / f"JPEGImages/{name}.jpg", noisy(50, 70, 3, 80 if index % 2 else 150))
    for index in range(4):
        save(root / f"imagenet/goldfish/{index}.JPEG", noisy(70, 50, 3, 150))
    save(root / "imagenet/horse/left_out.JPEG", noisy(70, 50, 3, 80))


def custom(root: Path, *, maps: bool, name: str = "screw") -> None:
    for split, folder, count, level in (
        ("train", "normal", 6, 100),
        ("test", "normal", 3, 100),
        ("test", "anomalous", 3, 40),
    ):
        for index in range(count):
            save(root / f"{split}/{name}/{folder}/{index}.png", noisy(90, 70, 3, level))
    if maps:
        for index in range(3):
            mask = np.zeros((90, 70), np.uint8)
            mask[10:50, 10:40] = 255
            save(root / f"test_maps/{name}/anomalous/{index}.png", mask)
