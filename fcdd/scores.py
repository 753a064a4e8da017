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


def summarise(maps: Maps, ignored: npt.NDArray[np.bool_] | None = None) -> Scored:
    """Scores of maps (N,U,V): mean, maximum, mean of the top 1 % of cells (at least one cell).

    Cells that are `ignored` (U,V), if there are any, are 0 in the maps and do not count in the scores.
    """
    if ignored is None:
        counting = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    else:
        maps = np.where(ignored, np.float32(0), maps)
        counting = maps[:, ~ignored]
    top = max(1, round(counting.shape[1] * 0.01))
    ordered = np.sort(counting, axis=1)
    return Scored(maps, counting.mean(1), ordered[:, -1], ordered[:, -top:].mean(1))
