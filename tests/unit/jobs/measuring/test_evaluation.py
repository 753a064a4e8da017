"""Which score would be better."""

import numpy as np

from fcdd import metrics
from fcdd.metrics import Separation
from jobs.measuring import evaluation

LABELS = np.repeat([0, 1], [300, 100])


def separations(own: str, **shifts: float) -> dict[str, Separation]:
    """Three scores of the same images, anomalous ones higher by these shifts; `own` is the bundle's."""
    noise = np.random.default_rng(0).normal(size=400)
    found = {
        f"score_{name}": metrics.separation(LABELS, noise + shift * LABELS, rate=0.05) for name, shift in shifts.items()
    }
    return {"anomaly_score": found[f"score_{own}"], **found}


def test_the_score_that_finds_more_is_named_with_what_it_gains() -> None:
    better = evaluation.better(separations("mean", mean=1, max=3, top1pct=2))
    assert better is not None
    assert better.score == "maximum"
    assert better.detection.low > 0.3
    assert better.auroc.low > 0


def test_no_score_is_better_by_chance_or_when_it_is_the_bundles() -> None:
    assert evaluation.better(separations("max", mean=1, max=3, top1pct=2)) is None
    assert evaluation.better(separations("mean", mean=2, max=2.0001, top1pct=1.9)) is None
