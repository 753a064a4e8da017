"""What a trained network makes of the images that calibrate it and of synthetic anomalies made from them.

trained network + calibration images -> probes (drawn) -> maps of both -> the score to decide by, what it finds
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from fcdd import leave_one_out, probes, score_choice, sizing
from fcdd.calibration import SCORES, Score
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.probes import Pictures
from fcdd.score_choice import Choice
from fcdd.scores import Scored, summarise
from fcdd.supervision import AnomalySource
from jobs.shell import formatting
from jobs.timing import progress

log = logging.getLogger(__name__)

# Probes of every kind: with 40 each a share of all is known to about 3 %. Of large images fewer, with 12 to about 6 %:
# those of 1,024 pixels took longer than everything else that a training does.
PER_KIND, _FEWEST, _PIXELS = 40, 12, 40 * 512 * 512
TRAINED_ON = "trained on"
# A detector that finds less of all kinds, those that it was trained on included, has learned nothing of use.
_USELESS_SHARE, _USELESS_RATIO = 0.1, 3
# Images whose maps are computed between two lines of progress.
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Evidence:
    """Maps and scores of N calibration images and of M probes: pictures (M,H,W,C), kinds, and what they came from.

    Probe m was made from calibration image `sources[m]`, within `boxes[m]` (x0, y0, x1, y1 in pixels). The kind
    "trained on" is the one that the training used.
    """

    nominal: Scored
    probes: Scored
    pictures: Pictures
    kinds: list[str]
    sources: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]

    def choose(self, alpha: float) -> Choice:
        """The score by what is found of kinds not trained on. Raises ConfigError as `score_choice.choose`."""
        chosen = np.array([kind != TRAINED_ON for kind in self.kinds])
        values = {score: getattr(self.probes, score) for score in SCORES}
        nominal = {score: getattr(self.nominal, score) for score in SCORES}
        unseen = {score: each[chosen] for score, each in values.items()}
        return score_choice.choose(nominal, unseen, [kind for kind in self.kinds if kind != TRAINED_ON], alpha)

    def found(self, score: Score, threshold: float) -> dict[str, float]:
        """The share of every kind of probes that scores above a threshold."""
        alarms, kinds = getattr(self.probes, score) > threshold, np.array(self.kinds, dtype=object)
        return {kind: float(alarms[kinds == kind].mean()) for kind in dict.fromkeys(self.kinds)}


def measure(
    network: FCDDNetwork,
    scaling: Normalization,
    images_nhwc: npt.NDArray[np.uint8],
    trained_on: AnomalySource,
    *,
    is_leave_one_out: bool,
    seed: int,
    ignored: npt.NDArray[np.bool_] | None = None,
    known: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> Evidence:
    """Score images and probes made from them, by the network or by statistics that did not see them.

    `ignored` (U,V) are cells that do not count; `known` as in `leave_one_out.maps`.
    """
    kinds = {**probes.PROBES, TRAINED_ON: trained_on}
    random, size = np.random.default_rng(seed), images_nhwc.shape[1:3]

    def counts(box: Sequence[int]) -> bool:
        """Whether a cell of it does."""
        if ignored is None:
            return True
        height, width = size
        rows, columns = ignored.shape
        y0, y1 = box[1] * rows // height, box[3] * rows // height
        x0, x1 = box[0] * columns // width, box[2] * columns // width
        return not bool(ignored[y0 : y1 + 1, x0 : x1 + 1].all())

    drawn = probes.draw(images_nhwc, random, kinds=kinds, per_kind=per_kind(size), counts=counts)
    log.info("scoring %d calibration images and %d synthetic anomalies", len(images_nhwc), len(drawn.kinds))
    if is_leave_one_out:
        on = network.to("cuda" if torch.cuda.is_available() else "cpu")
        on.fold_features()
        maps = leave_one_out.maps(
            *(on, scaling, images_nhwc, drawn.pictures, drawn.sources),
            seed=seed,
            watch=progress.watch("calibration", log),
            known=known,
        )
    else:
        runner = Runner(network, scaling, images_nhwc.shape[1:3])
        maps = (_maps(runner, images_nhwc), _maps(runner, drawn.pictures))
    nominal, scored = (summarise(each, ignored) for each in maps)
    return Evidence(nominal, scored, drawn.pictures, drawn.kinds, drawn.sources, drawn.boxes)


def _maps(runner: Runner, images_nhwc: npt.NDArray[np.uint8] | Pictures) -> npt.NDArray[np.float32]:
    chunk = sizing.images_at_once((images_nhwc.shape[1], images_nhwc.shape[2]), _CHUNK)
    starts = range(0, len(images_nhwc), chunk)
    parts: Iterable[int] = progress.told(starts, len(starts), "calibration", log, each=chunk)
    return np.concatenate([runner(images_nhwc[start : start + chunk]) for start in parts])


def per_kind(size: tuple[int, int]) -> int:
    """How many probes of a kind are made of images of (height, width) pixels."""
    return min(PER_KIND, max(_FEWEST, _PIXELS // (size[0] * size[1])))


def tell(choice: Choice, given: Score | None, found: dict[str, float], alpha: float) -> None:
    """Log which score decides and why, and warn of a detector that finds next to nothing."""
    score = given or choice.score
    shares = ", ".join(f"{name} {formatting.share(choice.found[name].share)}" for name in SCORES)
    log.info(
        "the score is the %s of the map (%s); of %d synthetic anomalies of kinds not trained on, at %g %% false alarms "
        "each score finds: %s",
        *(score, "as asked" if given else "chosen by the data", choice.num_probes, 100 * alpha, shares),
    )
    if given and given != choice.score:
        log.warning("--score %s finds less than the %s would; leave it out to take that", given, choice.score)
    if is_useless(found, alpha):
        log.warning(
            "this detector finds next to nothing: %s of synthetic anomalies at %g %% false alarms; more --epochs, more "
            "images, or the default --network help",
            ", ".join(f"{formatting.share(share)} of those {kind}" for kind, share in found.items()),
            100 * alpha,
        )


def is_useless(found: dict[str, float], alpha: float) -> bool:
    """Whether no kind of probes is found much more often than nominal images are."""
    return max(found.values(), default=0.0) < max(_USELESS_SHARE, _USELESS_RATIO * alpha)


def figures(choice: Choice, score: Score) -> dict[str, float]:
    """What the score finds, of all synthetic anomalies and of every kind: metrics of the bundle's record."""
    found = choice.found[score]
    return {"found": found.share, **{f"found_{kind}": share for kind, share in found.by_kind.items()}}
