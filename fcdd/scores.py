"""Anomaly maps and the statistics of them that may be an image's anomaly score."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """Maps (N,U,V) float32 and three scores of each, (N,): mean (the paper's), maximum, top 1 % mean.

    `getattr(scored, spec.score)` is the one that a bundle decides by.
    """

    maps: Maps
    mean: npt.NDArray[np.float32]
    maximum: npt.NDArray[np.float32]
    top1pct: npt.NDArray[np.float32]


def summarise(maps: Maps) -> Scored:
    """Scores of maps (N,U,V): mean, maximum, mean of the top 1 % of cells (at least one cell)."""
    cells = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    top = max(1, round(cells.shape[1] * 0.01))
    ordered = np.sort(cells, axis=1)
    return Scored(maps, cells.mean(1), ordered[:, -1], ordered[:, -top:].mean(1))
