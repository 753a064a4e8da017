"""What a run's rows are counted to, and what is said of the counts, without a store."""

import numpy as np
import pyarrow as pa
import pytest

from fcdd import calibration, heatmap
from fcdd.calibration import STATISTICS, Calibration, Decider, Nominal
from jobs.scoring import decisions
from jobs.scoring.decisions import Counts

SHAPE = (4, 5)


def images(seed: int, groups: list[str], score: float = 1.0) -> Nominal:
    generator, count = np.random.default_rng(seed), len(groups)
    maps = generator.gamma(2, size=(count, *SHAPE)).astype(np.float32)
    scores = (generator.gamma(2, size=count) * score).astype(np.float32)
    statistics = generator.normal(100, 10, (count, len(STATISTICS))).astype(np.float32)
    return Nominal(scores, scores, statistics, ["PNG"] * count, groups, maps)


def rows(run: Nominal, fitted: Calibration) -> pa.Table:
    p, alarms = Decider(fitted, fitted.alpha)(run.scores, run.peaks, run.groups)
    columns = {
        "anomaly_score": run.scores,
        "p_value": p,
        "is_anomalous": alarms,
        "image_group": list(run.groups),
        "image_format": list(run.formats),
        "heatmap": heatmap.encode_each(run.maps),
        **dict(zip(STATISTICS, np.asarray(run.statistics).T, strict=True)),
    }
    return pa.table(columns)


@pytest.fixture
def fitted() -> Calibration:
    return Calibration.fit(images(0, ["a", "b"] * 200 + ["few"] * 20), alpha=0.01)


def verdicts(counts: Counts, fitted: Calibration) -> dict[str | None, set[str]]:
    found = decisions.judge(counts, fitted, fitted.alpha)
    return {scope.group: {each.what for each in scope.findings if each.verdict != "ok"} for scope in found}


def test_slices_of_a_part_count_as_the_whole(fitted: Calibration) -> None:
    table = rows(images(1, ["a", "b", "few"] * 100), fitted)
    whole, pieces = decisions.count_rows(table, fitted), Counts()
    for start in range(0, 300, 70):
        pieces.add(decisions.count_rows(table.slice(start, 70), fitted))
    assert pieces.p_values == whole.p_values
    for one, other in zip(*(decisions.judge(each, fitted, 0.01) for each in (whole, pieces)), strict=True):
        assert one.group == other.group
        assert [each.sentence for each in one.findings] == [each.sentence for each in other.findings]


def test_a_group_is_compared_with_its_own_images_and_one_without_any_is_to_be_watched(fitted: Calibration) -> None:
    run = images(1, ["a"] * 100 + ["b"] * 100 + ["few"] * 60)
    assert verdicts(decisions.count_rows(rows(run, fitted), fitted), fitted) == {
        None: set(),
        "a": set(),
        "b": set(),
        "few": {"image_group"},
    }
    run.statistics[100:200, 0] += 15
    found = verdicts(decisions.count_rows(rows(run, fitted), fitted), fitted)
    assert (found["a"], found["b"]) == (set(), {"brightness"})


def test_alarms_of_a_group_are_expected_as_often_as_its_own_nominal_images_raise_them() -> None:
    """One camera is noisier: under one threshold all false alarms are its own, on every good night."""
    both = ["noisy"] * 1000 + ["calm"] * 1000
    scores = np.repeat([2.0, 1.0], 1000)
    nominal, run = images(0, both), images(1, both)
    for each in (nominal, run):
        each.scores[:] *= scores
    fitted = Calibration.fit(nominal, alpha=0.01)
    found = verdicts(decisions.count_rows(rows(run, fitted), fitted), fitted)
    assert found == {None: set(), "noisy": set(), "calm": set()}
    by_group = Calibration.fit(nominal, alpha=0.01, decide_by_group=True)
    table = rows(run, by_group)
    alarms = table["is_anomalous"].to_numpy()
    assert alarms[:1000].mean() == pytest.approx(0.01, abs=0.01)
    assert alarms[1000:].mean() == pytest.approx(0.01, abs=0.01)
    assert verdicts(decisions.count_rows(table, by_group), by_group) == {None: set(), "noisy": set(), "calm": set()}


def test_folders_that_name_no_cameras_are_not_told_apart(fitted: Calibration) -> None:
    lots = images(1, [f"lot-{index % 400}" for index in range(1200)])
    counts = Counts()
    for start in range(0, 1200, 100):
        counts.add(decisions.count_rows(rows(lots, fitted).slice(start, 100), fitted))
    assert counts.has_too_many_groups
    assert set(counts.scopes) == {None}
    whole = counts.scopes[None]
    assert whole.num_images == sum(counts.p_values.values()) == 1200


def test_a_run_of_one_image_is_not_judged_but_has_an_average_map(fitted: Calibration) -> None:
    one = images(1, ["a"])
    [whole, group] = decisions.judge(decisions.count_rows(rows(one, fitted), fitted), fitted, 0.01)
    assert (whole.findings, group.findings) == ([], [])
    np.testing.assert_allclose(whole.tally.average_map(), one.maps[0], atol=0.02)


def _linear(scores: np.ndarray) -> tuple[float, int]:
    values, copies = np.unique(scores, return_counts=True)
    return calibration.benjamini_hochberg(dict(zip(values.tolist(), copies.tolist(), strict=True)), 0.1)


def test_the_list_is_that_of_scipy() -> None:
    from scipy import stats

    for seed in range(20):
        generator = np.random.default_rng(seed)
        p = np.ceil(np.concatenate([generator.random(300), generator.random(30) / 50]) * 500) / 500
        adjusted = stats.false_discovery_control(p)
        cut, length = _linear(p)
        assert length == (adjusted <= 0.1 + 1e-12).sum()
        assert length == (p <= cut).sum()
    assert _linear(np.ones(5)) == (0.0, 0)
    assert calibration.benjamini_hochberg({}, 0.1) == (0.0, 0)
