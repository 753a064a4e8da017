"""The boards that benchmarks are run on: the same for everybody, and masked where the defect is."""

import numpy as np
import pytest

from benchmarks import boards


def test_a_seed_is_a_design_and_its_pictures_are_always_the_same() -> None:
    numbers = {"num_training": 2, "num_calibration": 1, "num_nominal": 2, "num_anomalous": len(boards.DEFECTS)}
    one, again, other = boards.load(3, **numbers), boards.load(3, **numbers), boards.load(4, **numbers)
    assert one.test.shape == (2 + len(boards.DEFECTS), boards.HEIGHT, boards.WIDTH, 3)
    assert (one.test == again.test).all()
    assert (one.training[0] != other.training[0]).mean() > 0.2
    assert (one.training[0] != one.training[1]).mean() > 0.2  # light, place and noise differ
    assert one.kinds == ["good", "good", *boards.DEFECTS]
    assert [bool(mask.any()) for mask in one.masks] == [bool(label) for label in one.labels]


@pytest.mark.parametrize("kind", boards.DEFECTS)
def test_a_mask_marks_what_a_defect_changed_and_nothing_else(kind: str) -> None:
    design = boards.design(0)
    for seed in range(3):
        scene = boards.produced(design, np.random.default_rng(seed))
        clean, nothing = boards.photograph(scene, None, design, np.random.default_rng(seed))
        shown, mask = boards.photograph(scene, boards.DEFECTS[kind], design, np.random.default_rng(seed))
        assert not nothing.any()
        assert 5 < mask.sum() < 0.01 * mask.size
        difference = np.abs(shown.astype(float) - clean).max(2)
        assert difference[mask].mean() > 2 * difference[~mask].mean()
