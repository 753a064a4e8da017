"""Data sets in their published layouts. So far: ELPV, which an installed package carries.

ELPV (Deitsch et al., Solar Energy 2019): 2,624 electroluminescence images of solar cells with a defect
probability of 0, 1/3, 2/3 or 1. Licence CC BY-NC-SA 4.0: for tests and demonstrations only.
"""

import csv
import importlib.resources
import importlib.util
from pathlib import Path
from typing import NamedTuple

from fcdd.errors import ConfigError


class LabelledImage(NamedTuple):
    """An image file and what is known of it: defect probability and cell type ("mono" or "poly")."""

    path: Path
    probability: float
    cell_type: str


def elpv() -> list[LabelledImage]:
    """All ELPV images in the package's order. Raises ConfigError when the package is not installed."""
    if importlib.util.find_spec("elpv_dataset") is None:
        raise ConfigError("the ELPV images are not installed; run `pip install elpv-dataset`")
    root = Path(str(importlib.resources.files("elpv_dataset"))) / "data"
    with (root / "labels.csv").open(newline="") as file:
        rows = csv.reader(file, delimiter=" ", skipinitialspace=True)
        return [LabelledImage(root / row[0], float(row[1]), row[2]) for row in rows]
