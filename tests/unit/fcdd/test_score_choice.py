import numpy as np
import pytest

from fcdd import score_choice
from fcdd.calibration import Score
from fcdd.errors import ConfigError

KINDS = ["missing"] * 100 + ["blurred"] * 100
NOMINAL: dict[Score, np.ndarray] = dict.fromkeys(("mean", "maximum", "top1pct"), np.arange(199.0))


def probes(**found: int) -> dict[Score, np.ndarray]:
    """Scores of which so many of 200 are above every nominal one."""
    return {name: np.where(np.arange(200) < found[name], 1e3, 0.0) for name in NOMINAL}


def test_the_score_that_finds_the_most_at_the_promised_rate_decides() -> None:
    choice = score_choice.choose(NOMINAL, probes(mean=150, maximum=90, top1pct=120), KINDS, 0.01)
    assert choice.score == "mean"
    assert choice.found["mean"].share == 0.75
    assert choice.found["mean"].by_kind == {"missing": 1.0, "blurred": 0.5}


def test_the_maximum_stays_where_another_is_ahead_by_chance_only() -> None:
    assert score_choice.choose(NOMINAL, probes(mean=10, maximum=100, top1pct=103), KINDS, 0.01).score == "maximum"
    assert score_choice.choose(NOMINAL, probes(mean=10, maximum=100, top1pct=105), KINDS, 0.01).score == "top1pct"


def test_what_is_found_is_counted_at_each_scores_own_threshold() -> None:
    nominal = {**NOMINAL, "mean": np.arange(199.0) * 10}  # its threshold is ten times as high
    values = dict.fromkeys(NOMINAL, np.full(200, 500.0))
    found = score_choice.choose(nominal, values, KINDS, 0.01).found
    assert (found["mean"].share, found["maximum"].share) == (0.0, 1.0)


def test_a_rate_that_the_images_do_not_support_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs at least 999"):
        score_choice.choose(NOMINAL, probes(mean=1, maximum=1, top1pct=1), KINDS, 0.001)
