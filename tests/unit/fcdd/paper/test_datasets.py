import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcdd.errors import ConfigError, ImageError
from fcdd.paper import datasets
from tests import standins


def _same(image: np.ndarray) -> np.ndarray:
    return image


def test_one_vs_rest_trains_on_one_class_and_tests_on_all(tmp_path: Path) -> None:
    standins.fashion_mnist(tmp_path)
    train, test = (datasets.fashion_mnist(tmp_path, split) for split in ("train", "t10k"))
    assert (len(train.images), len(test.images)) == (120, 30)
    data = datasets.one_vs_rest(train, test, 3)
    assert len(data.training) == 12
    assert data.training[0].shape == (28, 28, 1)
    assert np.mean([image.mean() for image in data.training]) == pytest.approx(80, abs=2)
    assert data.test.labels.tolist() == 9 * [1] + 3 * [0] + 18 * [1]


def test_a_class_missing_in_one_split_is_a_clear_error(tmp_path: Path) -> None:
    standins.fashion_mnist(tmp_path)
    train, test = (datasets.fashion_mnist(tmp_path, split) for split in ("train", "t10k"))
    with pytest.raises(ConfigError, match="class 11 has no training images"):
        datasets.one_vs_rest(train, test, 11)
    without = datasets.Labelled(test.images[3:], test.classes[3:])
    with pytest.raises(ConfigError, match="class 0 has no test images"):
        datasets.one_vs_rest(train, without, 0)


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    lying = np.zeros((2, 28, 28), np.uint8)
    lying[:, :, 3] = 255
    standins.write_idx(tmp_path / "EMNIST/raw/emnist-letters-train-images-idx3-ubyte.gz", lying)
    [first, _] = datasets.emnist_letters(tmp_path)
    assert first.shape == (28, 28, 1)
    assert (first[3] == 255).all()


@pytest.mark.parametrize("damage", [b"", b"\0\0\x08\x03\0\0", b"\0\0\x0d\x01\0\0\0\x01\0", b"\0\0\x08\x01\0\0\0\x05\0"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "x-idx1-ubyte").write_bytes(damage)
    with pytest.raises(ConfigError, match="x-idx1-ubyte is not an IDX file of bytes, or is cut off"):
        datasets.read_idx(tmp_path / "x-idx1-ubyte")


def test_cifar_images_are_read_in_the_order_of_the_batches(tmp_path: Path) -> None:
    standins.cifar10(tmp_path)
    standins.cifar100(tmp_path)
    train = datasets.cifar10(tmp_path, "train")
    assert len(train.images) == 100
    assert train.images[0].shape == (32, 32, 3)
    assert train.classes[:12].tolist() == [*range(10), 0, 1]
    assert [image.mean() for image in train.images[:10]] == pytest.approx([20 + 20 * n for n in range(10)], abs=2)
    assert len(datasets.cifar100(tmp_path)) == 30


def test_a_cifar_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    standins.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match=r"test_batch is not a file of CIFAR's Python version: .*does not belong"):
        datasets.cifar10(tmp_path, "test")
    assert not (tmp_path / "ran").exists()


def test_mvtec_images_are_stored_at_240_and_masks_keep_their_size(tmp_path: Path) -> None:
    standins.mvtec(tmp_path)
    data = datasets.mvtec(tmp_path, "bottle")
    assert [image.shape for image in data.training] == 4 * [(240, 240, 3)]
    assert data.test.labels.tolist() == 3 * [1] + 3 * [1] + 3 * [0]
    assert data.test.names[0] == "broken_large/000.png"
    assert data.test.masks is not None
    assert [mask.shape for mask in data.test.masks] == 9 * [(100, 120)]
    assert [int(mask.sum()) for mask in data.test.masks] == 2 * [2000, 2250, 2500] + 3 * [0]


def test_bad_masks_and_missing_folders_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected .*bottle/train/good; get MVTec-AD from https"):
        datasets.mvtec(tmp_path, "bottle")
    standins.mvtec(tmp_path)
    mask = tmp_path / "bottle/ground_truth/contamination/001_mask.png"
    standins.save(mask, np.zeros((10, 12), np.uint8))
    with pytest.raises(ConfigError, match=r"001_mask.png has 12x10 pixels, its image 120x100; a mask must have"):
        datasets.mvtec(tmp_path, "bottle")
    standins.save(mask, np.full((100, 120), 7, np.uint8))
    with pytest.raises(ConfigError, match=r"001_mask.png has values \[7\]; expected 0 and 255 only"):
        datasets.mvtec(tmp_path, "bottle")
    standins.save(mask, np.zeros((100, 120), np.uint8))
    with pytest.raises(ConfigError, match=r"001_mask.png is 0 everywhere, and its image is anomalous: mark its defect"):
        datasets.mvtec(tmp_path, "bottle")
    mask.unlink()
    with pytest.raises(ConfigError, match=r"cannot read the mask .*001_mask.png"):
        datasets.mvtec(tmp_path, "bottle")
    for path in (tmp_path / "bottle/train/good").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"there are no images in .*train/good"):
        datasets.mvtec(tmp_path, "bottle")


def test_imagenet_and_voc_are_found_in_their_layouts(tmp_path: Path) -> None:
    standins.imagenet30(tmp_path)
    data = datasets.imagenet30(tmp_path, "val", _same)
    assert np.unique(data.classes).tolist() == list(range(30))
    assert len(datasets.imagenet30(tmp_path, "train", _same, only="banjo").images) == 6
    standins.voc(tmp_path)
    assert datasets.voc_horse(tmp_path, "train", _same).classes.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("maps", [False, True])
def test_a_folder_of_your_own_with_and_without_maps(tmp_path: Path, maps: bool) -> None:
    standins.custom(tmp_path, maps=True)
    data = datasets.custom(tmp_path, "screw", maps=maps)
    assert len(data.training) == 6
    assert data.training[0].shape == (90, 70, 3)
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(data.anomalies) == 0
    if not maps:
        assert data.test.masks is None
        return
    assert data.test.masks is not None
    assert [int(mask.sum()) for mask in data.test.masks] == [0, 0, 0, 1200, 1200, 1200]
    (tmp_path / "test_maps/screw/anomalous/1.png").unlink()
    with pytest.raises(ConfigError, match=r"anomalous/1.png has no mask in .*; give all of them masks, or none"):
        datasets.custom(tmp_path, "screw", maps=True)


def test_known_anomalies_of_a_folder_of_your_own_come_with_their_maps(tmp_path: Path) -> None:
    standins.custom(tmp_path, maps=True)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10] = 255
    standins.save(tmp_path / "train/screw/anomalous/a.png", standins.noisy(20, 30, 3, 40))
    standins.save(tmp_path / "train_maps/screw/anomalous/a_mask.png", mask)
    data = datasets.custom(tmp_path, "screw", maps=True)
    assert len(data.anomalies) == 1
    assert data.anomaly_masks is not None
    assert int(data.anomaly_masks[0].sum()) == 150
    standins.save(tmp_path / "train_maps/screw/anomalous/a_mask.png", 0 * mask)
    with pytest.raises(ConfigError, match=r"a_mask.png is 0 everywhere"):
        datasets.custom(tmp_path, "screw", maps=True)


def test_classes_of_a_folder_of_your_own_must_be_the_same_in_both_splits(tmp_path: Path) -> None:
    standins.custom(tmp_path, maps=False)
    standins.save(tmp_path / "test/nut/normal/0.png", standins.noisy(8, 8, 3, 90))
    with pytest.raises(ConfigError, match=r"the same classes in .*\['screw'\] and \['nut', 'screw'\]"):
        datasets.custom_classes(tmp_path)
    with pytest.raises(ConfigError, match=r"class 'nut' is missing in .*train"):
        datasets.custom(tmp_path, "nut", maps=False)


def test_anomalous_images_in_the_nominal_folder_are_refused(tmp_path: Path) -> None:
    standins.custom(tmp_path, maps=False)
    standins.save(tmp_path / "train/screw/anomalous/0.png", standins.noisy(8, 8, 3, 90))
    assert len(datasets.custom(tmp_path, "screw", maps=False).training) == 6  # beside them: known anomalies
    standins.save(tmp_path / "train/screw/normal/anomalous/0.png", standins.noisy(8, 8, 3, 90))
    with pytest.raises(ConfigError, match="folder of anomalous images inside of the nominal one"):
        datasets.custom(tmp_path, "screw", maps=False)


def test_a_folder_without_normal_and_anomalous_is_one_vs_rest(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for index in range(3):
                standins.save(tmp_path / f"{split}/{name}/{index}.png", standins.noisy(8, 8, 3, 90))
    data = datasets.custom(tmp_path, "dog", maps=False)
    assert (len(data.training), data.test.labels.tolist()) == (3, [1, 1, 1, 0, 0, 0])


def test_a_class_missing_in_imagenet_is_named(tmp_path: Path) -> None:
    standins.imagenet30(tmp_path)
    shutil.move(tmp_path / "val/n03187595", tmp_path / "val/rotary_dial_telephone")  # the other name it is known by
    assert len(datasets.imagenet30(tmp_path, "val", _same).images) == 34
    shutil.rmtree(tmp_path / "val/n07697537")
    with pytest.raises(ConfigError, match=r"expected a folder of the class 'hotdog' like .*/val/n07697537"):
        datasets.imagenet30(tmp_path, "val", _same)


def test_an_image_folder_reads_when_asked_and_leaves_classes_out(tmp_path: Path) -> None:
    root = tmp_path / "n12267677"  # a parent's name does not count
    standins.imagenet30(root)
    folder = datasets.image_folder(root / "imagenet22k", without=("N12267677", "n02787622"))
    assert len(folder) == 6
    assert folder[1].shape == (80, 60, 3)
    with pytest.raises(ImageError, match=r"broken\.JPEG"):
        folder[0]
    with pytest.raises(ConfigError, match="there are no images below"):
        datasets.image_folder(root / "imagenet22k", without=("n12267677", "n02787622", "n99999999"))


def test_a_batch_of_cifar_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    standins.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    with pytest.raises(ConfigError, match="data_batch_3 is not a file of CIFAR's Python version"):
        datasets.cifar10(tmp_path, "train")
    short = {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 1]}
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(short, protocol=2))
    with pytest.raises(ConfigError, match="3 images but 2 labels"):
        datasets.cifar10(tmp_path, "test")


def test_a_broken_file_of_a_test_set_is_named(tmp_path: Path) -> None:
    standins.mvtec(tmp_path)
    (tmp_path / "bottle/test/good/000.png").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"cannot read an image .* not_an_image: .*test/good/000.png"):
        datasets.mvtec(tmp_path, "bottle")
    (tmp_path / "bottle/test/good/000.png").unlink()
    (tmp_path / "bottle/ground_truth/contamination/001_mask.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(ConfigError, match=r"cannot read the mask .*001_mask.png"):
        datasets.mvtec(tmp_path, "bottle")
    for kind in ("broken_large", "contamination"):
        shutil.rmtree(tmp_path / "bottle/test" / kind)
    with pytest.raises(ConfigError, match=r"test/good and anomalous ones beside it, got \['good'\]"):
        datasets.mvtec(tmp_path, "bottle")
