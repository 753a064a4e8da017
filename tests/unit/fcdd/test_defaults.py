"""What the data decide where nobody says: the size of the input, the number of variants."""

import numpy as np
import pytest

from fcdd import sizing, variants


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(256, 320)] * 3, (256, 320)),  # small: as they are
        ([(300, 300)], (224, 224)),  # larger: the published area
        ([(480, 640)], (192, 256)),
        ([(3000, 4000), (3000, 4000), (10, 10)], (192, 256)),  # one thumbnail among them does not decide
        ([(28, 28)], (224, 224)),  # smaller: scaled up to it
        ([(250, 310)], (256, 304)),  # whole cells
        ([(100, 20_000)], (16, 3168)),
    ],
)
def test_the_input_has_the_shape_of_the_images(sizes: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert sizing.input_size(sizes) == expected


@pytest.mark.parametrize(
    ("size", "defect", "expected"),
    [
        ((3000, 4000), 20, (1200, 1600)),  # 8 pixels for each defect
        ((3000, 4000), 500, (192, 256)),  # large ones are seen at the published area
        ((3000, 4000), 2, (3008, 4000)),  # what is not in the image is not to be had by enlarging it
        ((256, 320), 4, (256, 320)),
        ((9000, 12_000), 8, (3072, 4096)),  # as much as there may be, in the image's shape
    ],
)
def test_the_input_is_as_large_as_the_smallest_defect_needs(
    size: tuple[int, int], defect: float, expected: tuple[int, int]
) -> None:
    assert sizing.input_size([size], defect) == expected


def test_a_size_that_is_asked_for_becomes_whole_cells() -> None:
    assert sizing.whole_cells((360, 480)) == (368, 480)
    assert sizing.whole_cells((5, 17)) == (16, 16)


def clusters(*counts: int, gap: float = 8.0) -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = generator.normal(0, gap, (len(counts), 20))
    parts = [centre + generator.normal(0, 1, (count, 20)) for centre, count in zip(centres, counts, strict=True)]
    return np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize("counts", [(300,), (150, 150), (100, 100, 100)])
def test_product_variants_are_counted(counts: tuple[int, ...]) -> None:
    assert variants.count(clusters(*counts), seed=0) == len(counts)


def test_a_few_odd_images_are_no_variant_of_their_own() -> None:
    assert variants.count(clusters(300, 12), seed=0) == 1


def test_too_few_images_are_one_variant() -> None:
    assert variants.count(clusters(30, 30), seed=0) == 1


def test_features_that_do_not_vary_are_one_variant() -> None:
    assert variants.count(np.ones((200, 5), np.float32), seed=0) == 1
