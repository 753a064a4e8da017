import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdd import metrics, splits
from fcdd.errors import ConfigError


def test_the_held_out_share_is_close_to_what_was_asked_for() -> None:
    assert np.mean([splits.is_held_out(f"camera/{i}.png", 0.2) for i in range(5000)]) == pytest.approx(0.2, abs=0.02)


@given(st.text(), st.floats(0.01, 0.98))
def test_a_larger_share_keeps_everything_that_was_held_out(key: str, share: float) -> None:
    assert not splits.is_held_out(key, share) or splits.is_held_out(key, share + 0.01)
    assert splits.is_held_out(f"/{key}", share) == splits.is_held_out(key, share)


def test_auroc_of_hand_computed_scores() -> None:
    result = metrics.image_metrics(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    assert result.auroc.value == pytest.approx(0.75)
    assert result.average_precision.value == pytest.approx(0.8333, abs=1e-4)
    assert (result.num_nominal, result.num_anomalous) == (2, 2)


def test_the_interval_holds_the_value_and_narrows_with_more_images() -> None:
    generator = np.random.default_rng(0)
    widths = []
    for count in (50, 1000):
        labels = np.repeat([0, 1], count)
        result = metrics.image_metrics(labels, generator.normal(size=2 * count) + labels)
        assert result.auroc.low < result.auroc.value < result.auroc.high
        widths.append(result.auroc.high - result.auroc.low)
    assert widths[1] < widths[0] / 2


def test_labels_of_one_class_are_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="both classes, got 3 nominal and 0 anomalous"):
        metrics.image_metrics(np.zeros(3, np.int64), np.zeros(3))
