"""What is said of the nominal images that set a threshold."""

import logging

import numpy as np
import pytest

from fcdd import calibration
from jobs.calibration import threshold

URIS = [f"file:///good/{index:03d}.png" for index in range(300)]


def test_defects_among_the_nominal_images_are_named_also_where_the_score_hides_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the mean of the map they are among the others; by its maximum four of 300 stand apart."""
    means, maxima = np.linspace(0.01, 0.08, 300), np.linspace(0.1, 0.9, 300)
    maxima[[7, 30, 101, 205]] = 8.2, 6.9, 6.7, 1.7
    at = calibration.conformal_threshold(means, 0.01)
    with caplog.at_level(logging.WARNING):
        threshold.explain(means, maxima, URIS, at)
    assert "4 nominal images stand apart from all others, enough to set the threshold" in caplog.text
    assert "good/007.png, file:///good/030.png, file:///good/101.png, file:///good/205.png" in caplog.text


def test_a_strange_image_that_sets_no_threshold_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    maxima = np.linspace(0.1, 0.9, 300)
    maxima[7] = 8.2
    with caplog.at_level(logging.WARNING):
        threshold.explain(maxima, maxima, URIS, calibration.conformal_threshold(maxima, 0.01))
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):  # of 150 images one is enough for 1 %
        few = maxima[:150]
        threshold.explain(few, few, URIS, calibration.conformal_threshold(few, 0.01))
    assert "one image sets the threshold and stands apart from all others" in caplog.text
