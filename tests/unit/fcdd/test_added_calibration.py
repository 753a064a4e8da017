"""Images that are added to a calibration: as if all had been there from the beginning."""

from dataclasses import replace

import numpy as np
import pytest

from fcdd import added_calibration
from fcdd.calibration import SKETCH_VALUES, STATISTICS, Calibration, Floats, Nominal, Score
from fcdd.errors import ConfigError


def drawn(
    count: int, seed: int, groups: list[str] | None = None, *, shift: float = 0.0, score: Score = "maximum"
) -> Nominal:
    random = np.random.default_rng(seed)
    maps = random.gamma(2, 1, (count, 3, 4)).astype(np.float32) + np.float32(shift)
    known: dict[Score, Floats] = {"maximum": maps.max((1, 2)), "mean": maps.mean((1, 2))}
    return Nominal(
        scores=known.pop(score),
        peaks=maps.max((1, 2)),
        statistics=random.normal(100, 20, (count, len(STATISTICS))).astype(np.float32),
        formats=["PNG" if index % 3 else "JPEG" for index in range(count)],
        groups=groups or ["a"] * count,
        maps=maps,
        others=known,
    )


def both(a: Nominal, b: Nominal) -> Nominal:
    return Nominal(
        scores=np.concatenate([a.scores, b.scores]),
        peaks=np.concatenate([a.peaks, b.peaks]),
        statistics=np.concatenate([a.statistics, b.statistics]),
        formats=[*a.formats, *b.formats],
        groups=[*a.groups, *b.groups],
        maps=np.concatenate([a.maps, b.maps]),
        others={name: np.concatenate([values, b.others[name]]) for name, values in a.others.items()},
    )


@pytest.mark.parametrize("score", ["maximum", "mean"])
def test_images_added_later_calibrate_as_if_they_had_been_there(score: Score) -> None:
    first, second = drawn(300, 1, score=score), drawn(120, 2, shift=0.3, score=score)
    together = Calibration.fit(both(first, second), alpha=0.02)
    added = added_calibration.add(Calibration.fit(first, alpha=0.01), second, score, alpha=0.02, decide_by_group=False)
    assert added.model_dump(exclude={"pooled", "groups"}) == together.model_dump(exclude={"pooled", "groups"})
    for mine, whole in ((added.pooled, together.pooled), (added.groups["a"], together.groups["a"])):
        assert mine.model_dump(exclude={"map_mean", "map_std"}) == whole.model_dump(exclude={"map_mean", "map_std"})
        np.testing.assert_allclose(mine.map_mean, whole.map_mean, rtol=1e-5)
        np.testing.assert_allclose(mine.map_std, whole.map_std, rtol=1e-4)


def test_what_is_kept_as_quantiles_is_joined_by_the_number_of_its_images() -> None:
    first, second = drawn(3 * SKETCH_VALUES, 1), drawn(SKETCH_VALUES, 2)
    whole = Calibration.fit(both(first, second), alpha=0.01).pooled
    added = added_calibration.add(
        Calibration.fit(first, alpha=0.01), second, "maximum", alpha=0.01, decide_by_group=False
    ).pooled
    assert added.scores == whole.scores
    for name in STATISTICS:
        assert len(added.statistics[name]) == SKETCH_VALUES
        below = np.searchsorted(added.statistics[name], whole.statistics[name]) / SKETCH_VALUES
        assert np.abs(below - np.linspace(0, 1, SKETCH_VALUES)).max() < 0.005


def test_a_group_that_was_known_grows_and_one_that_was_not_begins_when_it_is_large() -> None:
    first = drawn(100, 1, ["a"] * 60 + ["small"] * 40)
    second = drawn(75, 2, ["a"] * 10 + ["small"] * 15 + ["new"] * 50)
    added = added_calibration.add(
        Calibration.fit(first, alpha=0.05), second, "maximum", alpha=0.05, decide_by_group=True
    )
    assert {group: each.num_images for group, each in added.groups.items()} == {"a": 70, "new": 50}
    assert added.decide_by_group


def test_few_images_can_be_added_and_support_a_rate_together() -> None:
    first, second = drawn(60, 1), drawn(45, 2)
    before = Calibration.fit(first, alpha=0.02)
    added = added_calibration.add(before, second, "maximum", alpha=0.01, decide_by_group=False)
    assert added.threshold == max(first.scores.max(), second.scores.max())
    with pytest.raises(ConfigError, match="needs at least 199 calibration images, got 105"):
        added_calibration.add(before, second, "maximum", alpha=0.005, decide_by_group=False)


def test_a_calibration_that_knows_no_maxima_takes_none() -> None:
    first = drawn(60, 1)
    bare = replace(first, scores=first.others["mean"], others={})
    old = Calibration.fit(bare, alpha=0.05)
    with pytest.raises(ConfigError, match="calibrate with the new ones alone"):
        added_calibration.add(old, drawn(20, 2), "mean", alpha=0.05, decide_by_group=False)
