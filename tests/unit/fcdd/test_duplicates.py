import io

import numpy as np
from PIL import Image, ImageChops

from fcdd import duplicates, images
from fcdd.images import View
from fcdd.paper.datasets import LabelledImage

MAPS = [np.random.default_rng(seed).random((14, 14), np.float32) for seed in range(4)]


def test_images_that_look_the_same_and_are_anomalous_at_the_same_place_are_one_group() -> None:
    noise = np.random.default_rng(9).normal(0, 0.05, (14, 14)).astype(np.float32)
    hashes = [bytes(32), b"\xff" + bytes(31), bytes(32), b"\xff" * 32]
    maps = [MAPS[0], MAPS[0] + noise, MAPS[1], MAPS[0]]
    # The second is near the first in both; the third looks the same but has another defect; the fourth the reverse.
    assert duplicates.group(hashes, maps).tolist() == [0, 0, 2, 3]


def test_a_chain_of_small_differences_does_not_join_its_ends() -> None:
    chain = [(b"\xff" * step).ljust(32, b"\0") for step in range(0, 32, 4)]
    first = duplicates.group(chain, [MAPS[0]] * len(chain))
    assert first.tolist() == [0, 0, 2, 2, 4, 4, 6, 6]


def test_maps_of_another_shape_and_flat_maps_belong_to_nothing() -> None:
    flat = np.ones((14, 14), np.float32)
    maps = [MAPS[0], np.ones((7, 7), np.float32), flat, flat, MAPS[0]]
    assert duplicates.group([bytes(32)] * 5, maps).tolist() == [0, 1, 2, 3, 0]
    assert duplicates.group([], []).tolist() == []


def test_the_hash_is_near_for_the_same_cell_and_far_for_another(anomalous_cells: list[LabelledImage]) -> None:
    def hash_of(image: Image.Image) -> np.ndarray:
        sink = io.BytesIO()
        image.save(sink, "PNG")
        return np.frombuffer(images.decode(sink.getvalue(), View((224, 224), 3)).hash, np.uint8)

    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return int(np.bitwise_count(a ^ b).sum())

    originals = [Image.open(cell.path).convert("L") for cell in anomalous_cells[:30]]
    hashes = [hash_of(image) for image in originals]
    brighter = [distance(hash_of(im.point(lambda v: v * 1.05)), h) for im, h in zip(originals, hashes, strict=True)]
    shifted = [distance(hash_of(ImageChops.offset(im, 2, 2)), h) for im, h in zip(originals, hashes, strict=True)]
    others = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert max(brighter) <= duplicates.MAX_DISTANCE
    assert np.mean(np.array(shifted) <= duplicates.MAX_DISTANCE) > 0.9
    assert np.mean(np.array(others) <= duplicates.MAX_DISTANCE) < 0.01
