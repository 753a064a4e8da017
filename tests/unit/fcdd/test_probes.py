import numpy as np
import pytest

from fcdd import probes, supervision
from fcdd.paper import toys


def boards(count: int) -> np.ndarray:
    return toys.load("boards", 0, num_training=count, num_calibration=0, num_nominal=0, num_anomalous=1).training


@pytest.fixture(scope="module")
def board() -> np.ndarray:
    return boards(1)[0]


@pytest.mark.parametrize("kind", probes.PROBES)
@pytest.mark.parametrize("grey", [False, True])
def test_a_probe_is_a_small_visible_change_that_its_mask_marks(kind: str, grey: bool, board: np.ndarray) -> None:
    image = board[:, :, :1] if grey else board
    for seed in range(5):
        shown, mask = probes.PROBES[kind](image, np.random.default_rng(seed))
        again, _ = probes.PROBES[kind](image, np.random.default_rng(seed))
        assert shown.shape == image.shape
        assert shown.dtype == np.uint8
        assert (shown == again).all()
        assert 0 < mask.sum() < 0.05 * mask.size
        changed = np.abs(shown.astype(int) - image).max(2)
        assert changed[mask].min() > changed[~mask].max() - 1


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("kind", probes.PROBES)
def test_a_picture_of_one_colour_gets_a_visible_probe_too(kind: str, value: int) -> None:
    image = np.full((64, 96, 3), value, np.uint8)
    shown, mask = probes.PROBES[kind](image, np.random.default_rng(0))
    assert mask.any()
    assert (shown != image).any()


def test_probes_are_of_kinds_that_no_training_learns_from() -> None:
    assert not set(probes.PROBES) & set(supervision.SYNTHETIC)


def test_every_kind_is_drawn_as_often_and_names_the_image_it_came_from() -> None:
    images = boards(3)
    drawn = probes.draw(images, np.random.default_rng(0), kinds=probes.PROBES, per_kind=2)
    assert drawn.kinds == [kind for kind in probes.PROBES for _ in range(2)]
    assert drawn.pictures.shape == (len(drawn.kinds), *images.shape[1:])
    for picture, source, (x0, y0, x1, y1) in zip(drawn.pictures, drawn.sources, drawn.boxes, strict=True):
        changed = np.abs(picture.astype(int) - images[source]).max(2) > 8
        assert changed[y0:y1, x0:x1].sum() == changed.sum() > 0
        unlike = [(picture != image).mean() for image in images]
        assert int(np.argmin(unlike)) == source


def test_probes_are_drawn_where_it_counts() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3)).astype(np.uint8)
    drawn = probes.draw(
        images, np.random.default_rng(0), kinds=probes.PROBES, per_kind=8, counts=lambda box: box[1] >= 48
    )
    assert (drawn.boxes[:, 1] >= 48).mean() > 0.95


def test_probes_of_large_images_change_a_part_of_the_size_that_is_trained_on() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 640, 800, 3)).astype(np.uint8)
    drawn = probes.draw(images, np.random.default_rng(0), kinds=probes.PROBES, per_kind=4)
    assert len({tuple(box) for box in drawn.boxes.tolist()}) > 10
    for number, (x0, y0, x1, y1) in enumerate(drawn.boxes.tolist()):
        assert x1 - x0 < 224
        assert y1 - y0 < 224
        changed = (drawn.pictures[number] != images[drawn.sources[number]]).any(2)
        assert changed[y0:y1, x0:x1].any()
        assert not changed[: max(0, y0 - 224)].any()
    np.testing.assert_array_equal(drawn.pictures[2:4][1], drawn.pictures[3])
