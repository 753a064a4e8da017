"""What the page of a training shows of its evidence: which images and which synthetic anomalies."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fcdd import calibration
from fcdd.calibration import SCORES
from fcdd.detector import Detector
from jobs.calibration import evidence, threshold
from jobs.calibration.evidence import TRAINED_ON, Evidence
from jobs.shell import formatting
from jobs.viewing import training_page
from jobs.viewing.training_page import Shown, Training

_MOST_ANOMALOUS, _EACH_KIND = 9, 6


def build(
    trained: Detector,
    found: Evidence,
    images_nhwc: npt.NDArray[np.uint8],
    uris: Sequence[str],
    history: Sequence[Mapping[str, float]],
    seconds: Mapping[str, float],
) -> bytes:
    """The page; `images_nhwc` (N,H,W,C) and `uris` are those of the calibration images."""
    spec = trained.spec
    nominal, alpha = getattr(found.nominal, spec.score), spec.calibration.alpha
    names = [formatting.printable(uri) for uri in uris]
    sets = calibration.threshold_image(nominal, spec.calibration.threshold)
    thresholds = {score: calibration.conformal_threshold(getattr(found.nominal, score), alpha) for score in SCORES}
    by_score = {score: found.found(score, threshold) for score, threshold in thresholds.items()}
    kinds = list(dict.fromkeys(found.kinds))
    warnings = list[str]()
    if evidence.is_useless(by_score[spec.score], alpha):
        warnings.append("It finds next to nothing: this detector has learned nothing of use.")
    apart = calibration.standing_apart(found.nominal.maximum)
    if len(apart) < sets.rank:
        apart = apart[:0]
    else:
        warnings.append(
            f"{threshold.standing(len(apart))} from all others, first among those below: really good? "
            "Defects among them raise the threshold."
        )
    # Those that stand apart come first: by the mean of the map a small defect is not among the most anomalous.
    ordered = dict.fromkeys([*apart.tolist(), *np.argsort(-nominal, kind="stable").tolist()])
    return training_page.build(
        Training(
            detector=trained,
            history=history,
            nominal=nominal,
            sets_threshold=sets,
            sets_threshold_name=names[sets.index],
            most_anomalous=[
                Shown(names[index], images_nhwc[index], found.nominal.maps[index], float(nominal[index]))
                for index in list(ordered)[:_MOST_ANOMALOUS]
            ],
            kinds={kind: _examples(found, kind, names, getattr(found.probes, spec.score)) for kind in kinds},
            shares={kind: {score: by_score[score][kind] for score in SCORES} for kind in kinds},
            trained_on=TRAINED_ON,
            seconds=seconds,
            warnings=warnings,
        )
    )


def _examples(found: Evidence, kind: str, names: Sequence[str], scores: npt.NDArray[np.float32]) -> list[Shown]:
    """Some of one kind, spread evenly over their scores, the highest first."""
    own = np.flatnonzero(np.array(found.kinds, dtype=object) == kind)
    ranked = own[np.argsort(-scores[own], kind="stable")]
    chosen = ranked[np.linspace(0, len(ranked) - 1, min(len(ranked), _EACH_KIND)).astype(int)]
    return [
        Shown(
            f"made from {names[found.sources[i]]}",
            found.pictures[i],
            found.probes.maps[i],
            float(scores[i]),
            found.boxes[i].tolist(),
        )
        for i in chosen.tolist()
    ]
