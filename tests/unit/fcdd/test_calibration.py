import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdd import calibration
from fcdd.calibration import Calibration
from fcdd.errors import ConfigError
from tests.nominal import nominal

FLOATS = st.floats(0, 1e3, width=32)


def test_p_values_of_hand_computed_scores() -> None:
    nominal = np.array([1.0, 2.0, 2.0, 3.0])
    assert calibration.p_values(np.array([0.5, 2.0, 2.5, 9.0]), nominal).tolist() == [1.0, 0.8, 0.4, 0.2]


@given(st.lists(FLOATS, min_size=4, max_size=60), FLOATS, st.floats(0.25, 0.9))
def test_above_the_threshold_means_a_p_value_of_at_most_alpha(nominal: list[float], score: float, alpha: float) -> None:
    threshold = calibration.conformal_threshold(np.array(nominal), alpha)
    p = calibration.p_values(np.array([score]), np.sort(nominal))[0]
    assert (score > threshold) == (p <= alpha + 1e-9)


def test_false_alarm_rate_of_fresh_nominal_scores_keeps_the_promise() -> None:
    generator = np.random.default_rng(0)
    alarms = [
        (generator.gamma(2, size=200) > calibration.conformal_threshold(generator.gamma(2, size=199), 0.05)).mean()
        for _ in range(300)
    ]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.005)


def test_too_few_images_for_alpha_says_how_many_it_needs() -> None:
    with pytest.raises(ConfigError, match="needs at least 99 calibration images, got 98"):
        calibration.conformal_threshold(np.zeros(98), 0.01)
    calibration.conformal_threshold(np.zeros(99), 0.01)


def test_a_rate_of_nearly_one_puts_the_threshold_at_the_smallest_score() -> None:
    assert calibration.conformal_threshold(np.arange(4.0), 1 - 1e-12) == 0.0


def test_the_map_threshold_comes_from_the_peaks_of_the_maps() -> None:
    fitted = Calibration.fit(nominal(np.arange(99.0), np.arange(99.0) * 7), alpha=0.01)
    assert (fitted.threshold, fitted.map_threshold) == (98.0, 98.0 * 7)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        Calibration.fit(nominal([*range(9), np.nan]), alpha=0.5)
