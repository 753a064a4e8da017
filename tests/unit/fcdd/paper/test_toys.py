"""The toys that benchmarks and tests are run on: the same for everybody, and masked where the defect is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcdd.paper import toys

KINDS = [(name, kind) for name, product in toys.PRODUCTS.items() for kind in product.defects]


@pytest.mark.parametrize("name", toys.PRODUCTS)
def test_a_seed_is_a_design_and_its_pictures_are_always_the_same(name: str) -> None:
    defects = list(toys.PRODUCTS[name].defects)
    numbers = {"num_training": 2, "num_calibration": 1, "num_nominal": 2, "num_anomalous": len(defects)}
    one, again, other = (toys.load(name, seed, **numbers) for seed in (3, 3, 4))
    assert one.test.shape[0] == 2 + len(defects)
    assert (one.test == again.test).all()
    assert (one.training[0] != other.training[0]).mean() > 0.2
    assert (one.training[0] != one.training[1]).mean() > 0.2  # light, place and noise differ
    assert one.kinds == ["good", "good", *defects]
    assert [bool(mask.any()) for mask in one.masks] == [bool(label) for label in one.labels]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_mask_marks_what_a_defect_changed_and_nothing_else(name: str, kind: str) -> None:
    product = toys.PRODUCTS[name]
    design = product.design(0)
    for seed in range(2):
        scene = product.produced(design, np.random.default_rng(seed))
        clean, nothing = toys.photograph(product, scene, None, design, np.random.default_rng(seed))
        defect = product.defects[kind]
        shown, mask = toys.photograph(product, scene, defect, design, np.random.default_rng(seed))
        assert not nothing.any()
        assert 5 < mask.sum() < 0.06 * mask.size
        difference = np.abs(shown.astype(float) - clean).max(2)
        assert difference[mask].mean() > 2 * difference[~mask].mean()


def test_a_collection_is_written_as_folders_of_kinds_with_masks_beside_them(tmp_path: Path) -> None:
    numbers = ("--nominal", "2", "--good", "1", "--anomalous", "6")
    subprocess.run([sys.executable, "-m", "fcdd.paper.toys", "fabrics", str(tmp_path), *numbers], check=True)
    assert len(list((tmp_path / "nominal").iterdir())) == 2
    [picture] = (tmp_path / "test" / "holed").iterdir()
    mask = Image.open(tmp_path / "ground_truth" / "holed" / f"{picture.stem}_mask.png")
    assert mask.size == Image.open(picture).size
    assert set(np.unique(np.asarray(mask)).tolist()) == {0, 255}
