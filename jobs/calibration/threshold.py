"""Which image sets the threshold of a bundle, in words: a threshold that is one strange image is no tail."""

import logging
from collections.abc import Sequence

from fcdd import calibration
from fcdd.calibration import Floats
from jobs.shell import formatting

log = logging.getLogger(__name__)


# So many of them are named in the log.
_NAMED = 5


def explain(scores: Floats, maxima: Floats, uris: Sequence[str], threshold: float) -> None:
    """Log which of the nominal images sets the threshold, and warn when it stands apart, or others do.

    Scores, and the maxima of the maps, are (N,): by the maximum a small defect shows whatever the score is.
    """
    found = calibration.threshold_image(scores, threshold)
    place = "the largest" if found.rank == 1 else f"number {found.rank} from the top"
    log.info(
        "the threshold %.4g is the score of %s, %s of %d nominal images; the next lower ones are %s",
        *(found.score, formatting.printable(uris[found.index]), place, len(scores)),
        ", ".join(f"{value:.4g}" for value in found.below) or "none",
    )
    if found.stands_apart:
        log.warning(
            "one image sets the threshold and stands apart from all others: is %s nominal? If it is, more nominal "
            "images make the threshold firmer; --alpha %g takes the next one, %.4g",
            *(formatting.printable(uris[found.index]), calibration.smallest_alpha(len(scores), 2), found.below[0]),
        )
        return
    apart = calibration.standing_apart(maxima)
    if len(apart) and len(apart) >= found.rank:
        log.warning(
            "%s from all others, enough to set the threshold: are these really good? %s. "
            "Defects among them raise the threshold, and others like them are not found: take them out and do it again",
            *(standing(len(apart)), ", ".join(formatting.printable(uris[index]) for index in apart[:_NAMED])),
        )


def standing(count: int) -> str:
    """So many images stand apart, in words."""
    return f"{formatting.plural(count, 'nominal image')} {'stands' if count == 1 else 'stand'} apart"
