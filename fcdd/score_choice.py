"""Which statistic of the anomaly map is the score: the one that finds the most at the promised false-alarm rate.

Measured on nominal images that were not trained on, and on probes (`fcdd.probes`): synthetic anomalies of kinds that
were not trained on. The maximum of the map is kept unless another statistic finds significantly more, so that chance
does not decide: of the probes that only one of the two finds, the other one must find more by two standard deviations
of a fair coin (the sign test; McNemar, 1947).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fcdd.calibration import DEFAULT_SCORE, SCORES, Floats, Score, conformal_threshold

# Standard deviations by which another score than the default must be ahead.
_SIGNIFICANT = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """What one score finds at the promised rate: the share of all probes, and of every kind."""

    share: float
    by_kind: dict[str, float]


@dataclass(frozen=True, slots=True)
class Choice:
    """The score to decide by, and what each would find of so many probes."""

    score: Score
    found: dict[Score, Found]
    num_probes: int


def choose(
    nominal: Mapping[Score, Floats], probes: Mapping[Score, Floats], kinds: Sequence[str], alpha: float
) -> Choice:
    """From scores of N nominal images and of M probes, whose kinds are given.

    Raises ConfigError when there are too few nominal images for `alpha`.
    """
    alarms = {score: probes[score] > conformal_threshold(nominal[score], alpha) for score in SCORES}
    chosen = DEFAULT_SCORE
    for score in SCORES:
        if (
            _is_significantly_better(alarms[score], alarms[DEFAULT_SCORE])
            and alarms[score].sum() > alarms[chosen].sum()
        ):
            chosen = score
    return Choice(chosen, {score: _found(each, kinds) for score, each in alarms.items()}, len(kinds))


def _is_significantly_better(alarms: npt.NDArray[np.bool_], than: npt.NDArray[np.bool_]) -> bool:
    only, only_other = int((alarms & ~than).sum()), int((than & ~alarms).sum())
    return only - only_other > _SIGNIFICANT * math.sqrt(only + only_other)


def _found(alarms: npt.NDArray[np.bool_], kinds: Sequence[str]) -> Found:
    names = np.array(kinds, dtype=object)
    return Found(
        share=float(alarms.mean()),
        by_kind={kind: float(alarms[names == kind].mean()) for kind in dict.fromkeys(kinds)},
    )
