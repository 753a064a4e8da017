"""From scores to decisions with nominal images alone: conformal p-values and a threshold.

With n held-out nominal scores c, a new nominal image exchangeable with them has
p = (1 + #{c >= s}) / (n + 1) <= alpha with probability at most alpha.
"""

import math
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from fcdd.errors import ConfigError

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Calibration(BaseModel):
    """What the bundle knows of nominal images it was not trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scores: tuple[float, ...] = Field(min_length=1, description="nominal anomaly scores, ascending")
    alpha: float = Field(gt=0, lt=1, description="promised false-alarm rate of `threshold`")
    threshold: float = Field(description="an image is anomalous when its score is above this")
    map_threshold: float = Field(description="map values above this make a region; display scale 0.5")
    brightness: tuple[float, float] = Field(description="mean and deviation over images, 0..255")
    contrast: tuple[float, float] = Field(description="mean and deviation over images, 0..255")

    @classmethod
    def fit(cls, scores: Floats, map_peaks: Floats, brightness: Floats, contrast: Floats, *, alpha: float) -> Self:
        """From per-image scores, largest map values and image statistics of nominal images, each (n,).

        `map_threshold` is exceeded anywhere by a share of about `alpha` of nominal images. Raises
        ConfigError for too few images for `alpha`, or for scores that are not finite.
        """
        if not (np.isfinite(scores).all() and np.isfinite(map_peaks).all()):
            raise ConfigError("the calibration scores are not finite: training diverged; lower the learning rate")
        return cls(
            scores=tuple(np.sort(scores).tolist()),
            alpha=alpha,
            threshold=conformal_threshold(scores, alpha),
            map_threshold=conformal_threshold(map_peaks, alpha),
            brightness=(float(np.mean(brightness)), float(np.std(brightness))),
            contrast=(float(np.mean(contrast)), float(np.std(contrast))),
        )


def conformal_threshold(nominal: Floats, alpha: float) -> float:
    """The value above which p_values(...) <= alpha; ConfigError if n cannot support alpha."""
    rank = math.floor(alpha * (len(nominal) + 1) + 1e-9)
    if rank < 1:
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        raise ConfigError(
            f"a false-alarm rate of {alpha:g} needs at least {needed} calibration images, got {len(nominal)}; "
            "add nominal images, hold out a larger share or raise alpha"
        )
    return float(np.sort(nominal)[len(nominal) - min(rank, len(nominal))])


def p_values(scores: Floats, nominal_ascending: Floats) -> npt.NDArray[np.float64]:
    """(1 + #{c >= s}) / (n + 1) for every score, in (0, 1]; `nominal_ascending` is sorted."""
    n = len(nominal_ascending)
    at_least = n - np.searchsorted(nominal_ascending, scores, side="left")
    return (1 + at_least) / (n + 1)
