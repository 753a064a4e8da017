import numpy as np
import pytest

from fcdd import networks, supervision
from fcdd.normalization import Normalization
from fcdd.probes import PROBES
from jobs.calibration import evidence


@pytest.mark.parametrize(
    ("size", "number"), [((224, 224), 40), ((512, 512), 40), ((704, 704), 21), ((896, 896), 13), ((2048, 4096), 12)]
)
def test_of_large_images_fewer_probes_are_made(size: tuple[int, int], number: int) -> None:
    assert evidence.per_kind(size) == number


def test_as_many_probes_are_scored_as_the_size_allows() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 704, 704, 1), np.uint8)
    network = networks.build("cnn28", in_channels=1, image_size=(704, 704)).eval()
    scaling = Normalization(kind="mean_std", shift=(0.5,), scale=(0.25,))
    trained_on = supervision.SYNTHETIC["defects"]
    found = evidence.measure(network, scaling, images, trained_on, is_leave_one_out=False, seed=0)
    assert len(found.kinds) == len(found.pictures) == 21 * (len(PROBES) + 1)
    assert found.nominal.maximum.shape == (3,)
