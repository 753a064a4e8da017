import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdd import calibration
from fcdd.calibration import Calibration, Decider, Nominal, conformal_threshold
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


@pytest.mark.parametrize("count", [19, 20, 99, 100, 123, 1000])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_smallest_rate_is_the_smallest_of_two_digits_that_works(count: int, rank: int) -> None:
    scores = np.arange(count, dtype=np.float64)
    alpha = calibration.smallest_alpha(count, rank)
    assert conformal_threshold(scores, alpha) == count - rank
    step = 10.0 ** (np.floor(np.log10(alpha)) - 1)
    assert alpha - step < rank / (count + 1)


def test_too_few_images_name_a_rate_that_works() -> None:
    with pytest.raises(ConfigError, match=r"or raise alpha: 0\.048 works"):
        conformal_threshold(np.zeros(20), 0.01)


def test_the_image_that_sets_the_threshold_is_found_and_one_that_stands_apart_is_named() -> None:
    scores = np.array([0.1, 0.377, 0.124, 0.188] + [0.05] * 119)
    found = calibration.threshold_image(scores, conformal_threshold(scores, 0.01))
    assert (found.index, found.rank, found.score, found.below) == (1, 1, 0.377, [0.188, 0.124])
    assert found.stands_apart
    at = conformal_threshold(scores, calibration.smallest_alpha(123, 2))
    second = calibration.threshold_image(scores, at)
    assert (second.index, second.rank, second.below, second.stands_apart) == (3, 2, [0.124, 0.1], False)
    assert not calibration.threshold_image(np.linspace(0, 1, 123), 1.0).stands_apart


def test_nominal_scores_above_a_gap_stand_apart() -> None:
    usual = np.linspace(0.1, 0.9, 296)
    scores = np.concatenate([[8.2, 1.7], usual, [6.9, 6.7]])
    assert calibration.standing_apart(scores).tolist() == [0, 298, 299, 1]
    assert calibration.standing_apart(usual).tolist() == []
    half = np.concatenate([usual, usual + 10])  # half of all are a second kind of images, not strange ones
    assert calibration.standing_apart(half).tolist() == []
    assert calibration.standing_apart(np.array([0.3])).tolist() == []
    assert calibration.standing_apart(np.zeros(40)).tolist() == []


def three_scores() -> Calibration:
    others = {"mean": np.arange(199.0) / 10, "top1pct": np.arange(199.0) * 2}
    return Calibration.fit(dataclasses.replace(nominal(np.arange(199.0)), others=others), alpha=0.01)


def test_all_scores_are_calibrated_so_that_another_one_can_decide_without_a_training() -> None:
    fitted = three_scores()
    switched = fitted.switched("maximum", "top1pct", alpha=0.05, decide_by_group=False)
    assert switched.pooled.scores == tuple(np.arange(199.0) * 2)
    # Score and peak rank the images alike here, so that both thresholds lie at one image.
    assert switched.threshold == 2 * switched.map_threshold
    assert switched.switched("top1pct", "maximum", alpha=0.01, decide_by_group=False) == fitted


def drawn(count: int, seed: int) -> Nominal:
    """Images whose mean says little of their maximum."""
    generator = np.random.default_rng(seed)
    common = generator.gamma(2, size=count)
    means, peaks = common + generator.gamma(2, size=count), common + 3 * generator.gamma(2, size=count)
    return dataclasses.replace(nominal(means, peaks), others={"maximum": peaks})


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_score_and_region_together_keep_the_promised_rate(alpha: float) -> None:
    rates, by_region = [], []
    for seed in range(150):
        fitted, new = Calibration.fit(drawn(399, seed), alpha=alpha), drawn(400, 1000 + seed)
        p, alarms = Decider(fitted, alpha)(new.scores, new.peaks, [""] * 400)
        assert ((p <= alpha + 1e-9) == alarms).all()
        assert (alarms == ((new.scores > fitted.threshold) | (new.peaks > fitted.map_threshold))).all()
        rates.append(alarms.mean())
        by_region.append((alarms & (new.scores <= fitted.threshold)).mean())
    assert 0.8 * alpha - 0.003 < np.mean(rates) < alpha + 3 * np.std(rates) / np.sqrt(len(rates))
    assert np.mean(by_region) > 0.2 * alpha  # alarms of their own kind


def test_an_image_with_a_hot_region_and_a_usual_mean_is_an_alarm() -> None:
    fitted = Calibration.fit(drawn(399, 0), alpha=0.01)
    decide = Decider(fitted, 0.01)
    p, alarms = decide(np.array([1.0, 1.0]), np.array([1e3, 1.0]), ["", ""])
    assert alarms.tolist() == [True, False]
    assert p[0] == decide.smallest_p_value == 2 / 400


def test_few_images_decide_by_the_score_alone() -> None:
    fitted = Calibration.fit(drawn(150, 0), alpha=0.01)
    assert Decider(fitted, 0.01).smallest_p_value == 1 / 151
    assert fitted.threshold == fitted.pooled.scores[-1]


def test_a_score_that_was_never_calibrated_needs_images() -> None:
    with pytest.raises(ConfigError, match="give --images to calibrate the mean on"):
        Calibration.fit(nominal(np.arange(99.0)), alpha=0.01).switched(
            "maximum", "mean", alpha=0.01, decide_by_group=False
        )


def test_what_later_versions_added_is_not_in_calibrations_without_it_so_that_digests_of_older_bundles_hold() -> None:
    old, new = Calibration.fit(nominal(np.arange(99.0)), alpha=0.01).model_dump(), three_scores().model_dump()
    assert "is_leave_one_out" not in old
    assert "other_scores" not in old["pooled"]
    assert set(new["pooled"]["other_scores"]) == {"mean", "top1pct"}
    assert Calibration.model_validate(new) == three_scores()
