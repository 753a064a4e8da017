"""Data sets in their published folder layouts, as training images and a labelled test set of one class.

METHOD section 4 has the protocols. Nothing is downloaded here; an error says where to get the files. Pickles of
CIFAR are read with an unpickler that builds arrays only.

Shapes: H x W pixels, C channels; images are uint8, masks bool.
"""

import csv
import functools
import gzip
import importlib.resources
import importlib.util
import io
import pickle
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fcdd.errors import ConfigError, ImageError
from fcdd.images import EXTENSIONS
from fcdd.io.isolation import DecoderPool
from fcdd.supervision import ImageReader

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]
Prepare = Callable[[Pixels], Pixels]

FASHION_MNIST = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
CIFAR10 = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MVTEC = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile"),
    *("toothbrush", "transistor", "wood", "zipper"),
)
# Class -> folder of the ILSVRC 2012 distribution; the ImageNet-30 classes of Hendrycks et al. (2019).
IMAGENET30 = {
    "acorn": "n12267677",
    "airliner": "n02690373",
    "ambulance": "n02701002",
    "American alligator": "n01698640",
    "banjo": "n02787622",
    "barn": "n02793495",
    "bikini": "n02837789",
    "digital clock": "n03196217",
    "dragonfly": "n02268443",
    "dumbbell": "n03255030",
    "forklift": "n03384352",
    "goblet": "n03443371",
    "grand piano": "n03452741",
    "hotdog": "n07697537",
    "hourglass": "n03544143",
    "manhole cover": "n03717622",
    "mosque": "n03788195",
    "nail": "n03804744",
    "parking meter": "n03891332",
    "pillow": "n03938244",
    "revolver": "n04086273",
    "dial telephone": "n03187595",
    "schooner": "n04147183",
    "snowmobile": "n04252077",
    "soccer ball": "n04254680",
    "stingray": "n01498041",
    "strawberry": "n07745940",
    "tank": "n04389033",
    "toaster": "n04442312",
    "volcano": "n09472597",
}


class LabelledImage(NamedTuple):
    """An image file and what is known of it: defect probability and cell type ("mono" or "poly")."""

    path: Path
    probability: float
    cell_type: str


class Test(NamedTuple):
    """Images with labels (N,) 0 nominal / 1 anomalous; masks (original size) where the data set has them; names."""

    images: ImageReader
    labels: Labels
    masks: Sequence[Mask] | None
    names: Sequence[str]


class Labelled(NamedTuple):
    """Images (H,W,C) with their class numbers (N,)."""

    images: Sequence[Pixels]
    classes: Labels


class OneClass(NamedTuple):
    """One experiment: nominal training images and a test set."""

    training: Sequence[Pixels]
    test: Test


def one_vs_rest(training: Labelled, test: Labelled, nominal: int) -> OneClass:
    """Class `nominal` against all others. Raises ConfigError when the class is missing in one of both."""
    for name, part in (("training", training), ("test", test)):
        if not (part.classes == nominal).any():
            raise ConfigError(f"class {nominal} has no {name} images")
    chosen = [image for image, number in zip(training.images, training.classes, strict=True) if number == nominal]
    labels = (test.classes != nominal).astype(np.int64)
    return OneClass(chosen, Test(test.images, labels, None, [str(i) for i in range(len(labels))]))


# Fashion-MNIST and EMNIST: files of the MNIST family


def fashion_mnist(root: Path, split: str) -> Labelled:
    """Fashion-MNIST (N,28,28,1); `split` is "train" or "t10k". Files as in torchvision's FashionMNIST/raw."""
    folder = _folder(root, ("FashionMNIST/raw", "raw", "."), f"{split}-images-idx3-ubyte", "Fashion-MNIST", _FMNIST)
    pixels, labels = (read_idx(folder / f"{split}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if len(pixels) != len(labels):
        raise ConfigError(f"{folder} has {len(pixels)} {split} images but {len(labels)} labels; get the files again")
    return Labelled(list(pixels[..., None]), labels.astype(np.int64))


def emnist_letters(root: Path) -> Sequence[Pixels]:
    """Training images of EMNIST's letters, turned upright, (N,28,28,1)."""
    name = "emnist-letters-train-images-idx3-ubyte"
    folder = _folder(
        root,
        ("EMNIST/raw", "raw", "."),
        name,
        "EMNIST",
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    )
    return list(read_idx(folder / name).transpose(0, 2, 1)[..., None])


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array of an IDX file of bytes, plain or with ".gz". Raises ConfigError for another format."""
    packed = path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path} (or .gz): {error}") from error
    dimensions = data[3] if len(data) > 4 else 0
    shape = np.frombuffer(data, ">u4", dimensions, 4) if len(data) >= 4 + 4 * dimensions else np.zeros(1, np.uint32)
    start = 4 + 4 * dimensions
    if data[:3] != b"\0\0\x08" or len(data) - start != int(np.prod(shape.astype(np.int64))):
        raise ConfigError(f"{path} is not an IDX file of bytes, or is cut off; get it again")
    return np.frombuffer(data, np.uint8, offset=start).reshape([int(n) for n in shape])


# CIFAR


class _ArraysOnly(pickle.Unpickler):
    """CIFAR's files are pickles of dictionaries with arrays; nothing else is looked up, so none names code to run."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("encode", "_codecs")}
        if (name, module.rpartition(".")[2]) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into a CIFAR file")
        return super().find_class(module, name)


def cifar10(root: Path, split: str) -> Labelled:
    """CIFAR-10 (N,32,32,3); `split` is "train" or "test". Files of the Python version, cifar-10-batches-py."""
    folder = _folder(root, ("cifar-10-batches-py", "."), "test_batch", "CIFAR-10", _CIFAR)
    files = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    batches = [_cifar(folder / name, "labels") for name in files]
    return Labelled([i for b in batches for i in b.images], np.concatenate([b.classes for b in batches]))


def cifar100(root: Path) -> Sequence[Pixels]:
    """Training images of CIFAR-100 (N,32,32,3), from cifar-100-python/train."""
    folder = _folder(root, ("cifar-100-python", "."), "train", "CIFAR-100", _CIFAR)
    return _cifar(folder / "train", "fine_labels").images


def _cifar(path: Path, labels: str) -> Labelled:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels = np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        classes = np.asarray(content[labels], np.int64)
        if len(classes) != len(pixels):
            raise ValueError(f"{len(pixels)} images but {len(classes)} labels")
        return Labelled(list(pixels), classes)
    except (OSError, EOFError, pickle.UnpicklingError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a file of CIFAR's Python version: {error}") from error


# Folders of images


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Image files read one by one, `prepare`d and not kept: for outlier exposure and large sets."""

    paths: Sequence[Path]
    channels: int = 3
    prepare: Prepare | None = None

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def __getitem__(self, index: int) -> Pixels:
        """Image (H,W,C). Raises ImageError when it cannot be read."""
        pixels = read_image(self.paths[index], self.channels)
        return self.prepare(pixels) if self.prepare else pixels


@functools.cache
def image_folder(
    root: Path, *, without: tuple[str, ...] = (), channels: int = 3, prepare: Prepare | None = None
) -> ImageFolder:
    """All images below `root`, but those in folders named in `without` (any letter case).

    Raises ConfigError when there is none.
    """
    left_out = {name.lower() for name in without}
    found = [p for p in _images_in(root, "**/*") if not left_out & {q.lower() for q in p.relative_to(root).parts}]
    if not found:
        raise ConfigError(f"there are no images below {root}")
    return ImageFolder(found, channels, prepare)


def mvtec(root: Path, name: str, side: int | None = 240) -> OneClass:
    """Class `name` of MVTec-AD: train/good, test/<type>, ground_truth/<type>/<stem>_mask.png.

    Images are stored at `side` x `side` by torch's nearest neighbour, as the official code does (METHOD section 4);
    None keeps their size. Masks keep theirs. Raises ConfigError for missing folders, no nominal images, a mask of
    another size than its image or with other values than 0 and 255.
    """
    folder = root / name
    if not (folder / "train" / "good").is_dir():
        raise ConfigError(f"expected {folder}/train/good; get MVTec-AD from {_MVTEC} and unpack it there")
    training = [_mvtec_image(path, side) for path in _some(folder / "train" / "good")]
    types = sorted(path.name for path in folder.glob("test/*") if path.is_dir())
    if "good" not in types or len(types) < 2:
        raise ConfigError(
            f"expected nominal test images in {folder}/test/good and anomalous ones beside it, got {types}"
        )
    paths = [path for kind in types for path in _some(folder / "test" / kind)]
    pixels, masks = [], []
    for path in paths:
        image = _read(path, 3)
        file = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        masks.append(np.zeros(image.shape[:2], np.bool_) if path.parent.name == "good" else read_mask(file, image))
        pixels.append(image if side is None else nearest_corner(image, (side, side)))
    labels = np.array([path.parent.name != "good" for path in paths], np.int64)
    return OneClass(training, Test(pixels, labels, masks, [f"{path.parent.name}/{path.name}" for path in paths]))


def _mvtec_image(path: Path, side: int | None) -> Pixels:
    image = _read(path, 3)
    return image if side is None else nearest_corner(image, (side, side))


def spellings(name: str) -> list[str]:
    """How the folder of an ImageNet-30 class may be called: by its ILSVRC number or its name."""
    names = [name, "rotary dial telephone"] if name == "dial telephone" else [name]
    return [IMAGENET30[name], *(each for n in names for each in (n, n.replace(" ", "_"), n.lower().replace(" ", "_")))]


def imagenet30(root: Path, split: str, prepare: Prepare, *, only: str | None = None) -> Labelled:
    """ImageNet-30, images read and `prepare`d: folders <split>/<class or its ILSVRC number>; "train" or "val".

    `only` reads one class. Raises ConfigError when a class has no folder.
    """
    pixels, classes = [], []
    for number, (name, wnid) in enumerate(IMAGENET30.items()):
        if only not in (None, name):
            continue
        folders = [folder for spelling in spellings(name) if (folder := root / split / spelling).is_dir()]
        if not folders:
            raise ConfigError(
                f"expected a folder of the class {name!r} like {root}/{split}/{wnid}; get ILSVRC 2012 from "
                "https://image-net.org"
            )
        files = _some(folders[0])
        pixels += [prepare(_read(path, 3)) for path in files]
        classes += [number] * len(files)
    return Labelled(pixels, np.array(classes, np.int64))


def voc_horse(root: Path, split: str, prepare: Prepare) -> Labelled:
    """Pascal VOC 2007 of ImageSets/Main/<split>.txt: class 1 where the annotation has a horse, else 0."""
    folder = _folder(root, ("VOCdevkit/VOC2007", "VOC2007", "."), "JPEGImages", "Pascal VOC 2007", _VOC)
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        raise ConfigError(f"expected {listed}; get Pascal VOC 2007 from {_VOC}")
    pixels, classes = [], []
    for name in listed.read_text().split():
        try:
            objects = ET.parse(folder / "Annotations" / f"{name}.xml").findall("object/name")
        except (OSError, ET.ParseError) as error:
            raise ConfigError(f"cannot read the annotation of {name} in {folder}: {error}") from error
        classes.append(int(any(found.text == "horse" for found in objects)))
        pixels.append(prepare(_read(folder / "JPEGImages" / f"{name}.jpg", 3)))
    if len(set(classes)) < 2:
        raise ConfigError(f"expected images with and without a horse in {listed}")
    return Labelled(pixels, np.array(classes, np.int64))


NOMINAL_FOLDERS, ANOMALOUS_FOLDERS = ("normal", "nominal", "good"), ("anomalous", "abnormal", "bad")
MASK_FOLDERS = ("ground_truth", "train_maps", "test_maps")


class Custom(NamedTuple):
    """A class of a folder of your own, images read one by one; `anomalies` with masks for training, if there are."""

    training: ImageFolder
    anomalies: ImageFolder
    anomaly_masks: Sequence[Mask] | None
    test: Test


def custom(root: Path, name: str, *, maps: bool) -> Custom:
    """Class `name` of a folder of your own: {train,test}/<class>/{normal,anomalous}/*.

    With `maps`: masks in {train,test}_maps/<class>/anomalous/<stem>.* of the images' sizes, 0 nominal, 255 anomalous.
    Without {normal,anomalous} folders, the other classes are the anomalies (one-vs-rest). Raises ConfigError for a
    class missing in one split, no nominal images, anomalous ones inside a nominal folder, or missing masks.
    """
    for split in ("train", "test"):
        if not (root / split / name).is_dir():
            raise ConfigError(f"class {name!r} is missing in {root / split}; every class needs both splits")
    nominal = _subfolder(root / "train" / name, NOMINAL_FOLDERS)
    if nominal is None:
        return _custom_one_vs_rest(root, name, maps)
    if any((nominal / anomalous).exists() for anomalous in ANOMALOUS_FOLDERS):
        raise ConfigError(f"there is a folder of anomalous images inside of the nominal one, {nominal}; move it beside")
    good, bad = (_subfolder(root / "test" / name, names) for names in (NOMINAL_FOLDERS, ANOMALOUS_FOLDERS))
    if good is None or bad is None:
        raise ConfigError(f"expected the folders normal and anomalous in {root / 'test' / name}")
    known = _subfolder(root / "train" / name, ANOMALOUS_FOLDERS)
    known_paths = _some(known) if known else []
    paths, bad_paths = _some(good), _some(bad)
    masks = None
    if maps:
        nominal_masks = [np.zeros(_read(path, 3).shape[:2], np.bool_) for path in paths]
        masks = [*nominal_masks, *_custom_masks(root / "test_maps" / name, bad_paths)]
    known_masks = _custom_masks(root / "train_maps" / name, known_paths) if maps and known else None
    labels = np.repeat([0, 1], [len(paths), len(bad_paths)])
    names = [str(path.relative_to(root)) for path in (*paths, *bad_paths)]
    test = Test(ImageFolder([*paths, *bad_paths]), labels, masks, names)
    return Custom(ImageFolder(_some(nominal)), ImageFolder(known_paths), known_masks, test)


def _custom_masks(folder: Path, images_of: Sequence[Path]) -> list[Mask]:
    return [read_mask(_map_of(path, folder / path.parent.name), _read(path, 3)) for path in images_of]


def custom_classes(root: Path) -> list[str]:
    """The classes of a folder of your own, sorted. Raises ConfigError when train and test differ."""
    train, test = (
        sorted(path.name for path in (root / split).iterdir() if path.is_dir()) if (root / split).is_dir() else []
        for split in ("train", "test")
    )
    if not train or train != test:
        raise ConfigError(f"expected the same classes in {root}/train and {root}/test, got {train} and {test}")
    return train


def _custom_one_vs_rest(root: Path, name: str, maps: bool) -> Custom:
    classes = custom_classes(root)
    if maps or len(classes) < 2:
        raise ConfigError(f"expected the folders normal and anomalous in {root / 'train' / name}")
    paths = [path for other in classes for path in _some(root / "test" / other)]
    labels = np.array([path.relative_to(root / "test").parts[0] != name for path in paths], np.int64)
    test = Test(ImageFolder(paths), labels, None, [str(path.relative_to(root)) for path in paths])
    return Custom(ImageFolder(_some(root / "train" / name)), ImageFolder([]), None, test)


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _map_of(image: Path, folder: Path) -> Path:
    found = sorted(folder.glob(f"{image.stem}.*")) + sorted(folder.glob(f"{image.stem}_mask.*"))
    if not found:
        raise ConfigError(f"the anomalous image {image} has no mask in {folder}; give all of them masks, or none")
    return found[0]


def read_image(path: Path, channels: int) -> Pixels:
    """The whole image (H,W,C) by the rules of `fcdd.images`. Raises ImageError naming a file it cannot read."""
    try:
        image = _decoders().picture(path.read_bytes(), mode="L" if channels == 1 else "RGB")
    except OSError as error:
        raise ImageError("vanished", f"{path}: {error.strerror}") from error
    except ImageError as error:
        raise ImageError(error.reason, f"{path}: {error.detail}") from error
    return np.asarray(image)[..., None] if channels == 1 else np.asarray(image)


@functools.cache
def _decoders() -> DecoderPool:
    """Isolated decoders: data sets are downloads, and may hold anything."""
    return DecoderPool()


def _read(path: Path, channels: int) -> Pixels:
    """`read_image` where every image counts: a test set without one would give another figure."""
    try:
        return read_image(path, channels)
    except ImageError as error:
        raise ConfigError(f"cannot read an image of the data set: {error}; get it again") from error


def read_mask(path: Path, image_hwc: Pixels) -> Mask:
    """A ground-truth mask (H,W) of an anomalous image: 255 anomalous, 0 nominal.

    Raises ConfigError when it is missing, or as `check_mask`.
    """
    try:
        mask = read_image(path, 1)[..., 0]
    except ImageError as error:
        raise ConfigError(f"cannot read the mask {path}: {error.reason}") from error
    return check_mask(mask, image_hwc.shape[:2], str(path))


def check_mask(grey_hw: npt.NDArray[np.uint8], image_size: tuple[int, ...], name: str) -> Mask:
    """Grey levels of an anomalous image's mask (H,W) as booleans.

    Raises ConfigError for another size than the image's, other values than 0 and 255, or 0 everywhere.
    """
    if grey_hw.shape != image_size:
        raise ConfigError(
            f"the mask {name} has {grey_hw.shape[1]}x{grey_hw.shape[0]} pixels, its image "
            f"{image_size[1]}x{image_size[0]}; a mask must have its image's size"
        )
    values = set(np.unique(grey_hw).tolist())
    if not values <= {0, 255}:
        raise ConfigError(f"the mask {name} has values {sorted(values - {0, 255})[:5]}; expected 0 and 255 only")
    anomalous: Mask = grey_hw == 255
    if not anomalous.any():
        raise ConfigError(
            f"the mask {name} is 0 everywhere, and its image is anomalous: mark its defect with 255, or leave it out"
        )
    return anomalous


def nearest_corner(array: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """An array (H,W,...) at `size` by nearest neighbour as torch does it: index floor(i H / H') in float32."""
    rows, columns = (
        np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64)
        for old, new in zip(array.shape[:2], size, strict=True)
    )
    resized: npt.NDArray[Any] = array[rows[:, None], columns[None, :]]
    return resized


def _images_in(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in EXTENSIONS)


def _some(folder: Path) -> list[Path]:
    found = _images_in(folder)
    if not found:
        raise ConfigError(f"there are no images in {folder}")
    return found


def _folder(root: Path, places: Sequence[str], holds: str, name: str, source: str) -> Path:
    for place in places:
        if any((root / place / (holds + ending)).exists() for ending in ("", ".gz")):
            return root / place
    raise ConfigError(f"{name} is not in {root} (expected {Path(places[0]) / holds} there); get it from {source}")


_FMNIST = "https://github.com/zalandoresearch/fashion-mnist"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html (Python version)"
_MVTEC = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2007"


def elpv() -> list[LabelledImage]:
    """All ELPV images in the package's order. Raises ConfigError when the package is not installed.

    ELPV (Deitsch et al., Solar Energy 2019): 2,624 electroluminescence images of solar cells with a defect
    probability of 0, 1/3, 2/3 or 1. Licence CC BY-NC-SA 4.0: for tests and demonstrations only.
    """
    if importlib.util.find_spec("elpv_dataset") is None:
        raise ConfigError("the ELPV images are not installed; run `pip install elpv-dataset`")
    root = Path(str(importlib.resources.files("elpv_dataset"))) / "data"
    with (root / "labels.csv").open(newline="") as file:
        rows = csv.reader(file, delimiter=" ", skipinitialspace=True)
        return [LabelledImage(root / row[0], float(row[1]), row[2]) for row in rows]
