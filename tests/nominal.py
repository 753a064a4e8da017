"""Nominal images of tests: what a calibration is fitted to."""

import numpy as np
import numpy.typing as npt

from fcdd.calibration import STATISTICS, Nominal


def nominal(
    scores: npt.ArrayLike, peaks: npt.ArrayLike | None = None, *, shape: tuple[int, int] = (8, 12), group: str = ""
) -> Nominal:
    """Images of these scores; statistics are drawn, maps are the peaks everywhere."""
    scores = np.asarray(scores, np.float64)
    peaks = scores if peaks is None else np.asarray(peaks, np.float64)
    statistics = np.random.default_rng(0).normal(100, 10, (len(scores), len(STATISTICS)))
    maps = np.ones((len(scores), *shape), np.float32) * peaks[:, None, None].astype(np.float32)
    return Nominal(scores, peaks, statistics, ["PNG"] * len(scores), [group] * len(scores), maps)
