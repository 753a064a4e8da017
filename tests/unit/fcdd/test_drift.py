import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fcdd import calibration, drift
from fcdd.calibration import STATISTICS, Calibration, Nominal, Reference
from fcdd.drift import AlarmLaw, Finding, Levels, Tally

SHAPE = (6, 7)


def images(seed: int, count: int, *, score: float = 1.0, spot: float = 0.0, **shifts: float) -> Nominal:
    """Gamma scores and normal statistics; `spot` heats one cell, `shifts` add to a statistic."""
    generator = np.random.default_rng(seed)
    maps = generator.gamma(2, size=(count, *SHAPE)).astype(np.float32)
    maps[:, 1, 5] += spot
    statistics = generator.normal(100, 10, (count, len(STATISTICS)))
    statistics[:, 3:] = 300
    for name, value in shifts.items():
        statistics[:, STATISTICS.index(name)] += value
    scores = generator.gamma(2, size=count) * score
    return Nominal(scores, maps.max((1, 2)), statistics, ["PNG"] * count, [""] * count, maps)


def tally(reference: Reference, run: Nominal, threshold: float) -> Tally:
    columns = dict(zip(STATISTICS, run.statistics.T, strict=True))
    return Tally.count(reference, run.scores, columns, run.formats, run.scores > threshold, run.maps)


def findings(run: Nominal, calibrated: Calibration | None = None) -> list[Finding]:
    fitted = calibrated or Calibration.fit(images(0, 600), alpha=0.01)
    counted = tally(fitted.pooled, run, fitted.threshold)
    return judge(counted, fitted)


def judge(counted: Tally, fitted: Calibration) -> list[Finding]:
    law = AlarmLaw.at(counted.num_images, fitted.pooled.num_images, 0.01)
    return drift.judge(counted, fitted.pooled, levels=Levels.of(1), whole_run=True, laws=[law])


def drifted(run: Nominal) -> set[str]:
    return {finding.what for finding in findings(run) if finding.verdict == "drifted"}


def test_distances_and_probabilities_are_those_of_scipy() -> None:
    fitted, run = Calibration.fit(images(0, 600), alpha=0.01), images(1, 400, brightness=3)
    found = {(f.what, f.test): f for f in findings(run, fitted)}
    for name, values, before in (
        ("anomaly_score", run.scores, images(0, 600).scores),
        ("brightness", run.statistics[:, 0], images(0, 600).statistics[:, 0]),
        ("width", run.statistics[:, 3], images(0, 600).statistics[:, 3]),
    ):
        expected = stats.ks_2samp(
            values, before.astype(np.float32 if name != "anomaly_score" else float), method="asymp"
        )
        assert found[name, "ks"].effect == pytest.approx(expected.statistic, abs=1e-9)
        assert found[name, "ks"].p_value == pytest.approx(expected.pvalue, rel=1e-6)


def test_parts_of_a_run_add_up_to_the_run() -> None:
    fitted, run = Calibration.fit(images(0, 600), alpha=0.01), images(1, 400)
    whole = tally(fitted.pooled, run, fitted.threshold)
    added = Tally()
    for start in range(0, 400, 130):
        part = np.zeros(400, np.bool_)
        part[start : start + 130] = True
        added.add(tally(fitted.pooled, run.where(part), fitted.threshold))
    one, other = judge(whole, fitted), judge(added, fitted)
    assert [finding.effect for finding in one] == pytest.approx([finding.effect for finding in other])
    assert [finding.p_value for finding in one] == pytest.approx([finding.p_value for finding in other])
    assert [finding.sentence for finding in one] == [finding.sentence for finding in other]
    np.testing.assert_allclose(whole.average_map(), added.average_map(), rtol=1e-6)


def test_undrifted_runs_are_called_drifted_at_most_as_often_as_promised() -> None:
    verdicts = [drift.worst([f.verdict for f in findings(images(seed, 500))]) for seed in range(1, 101)]
    assert verdicts.count("drifted") <= 1
    assert verdicts.count("watch") <= 10


@pytest.mark.parametrize("name", STATISTICS)
def test_a_shift_of_one_deviation_is_drift_of_that_statistic(name: str) -> None:
    assert drifted(images(1, 300, **{name: 10.0})) == {name}


def test_higher_scores_are_drift_and_raise_alarms() -> None:
    found = drifted(images(1, 300, score=2.0))
    assert {"anomaly_score", "alarms"} <= found


def test_a_few_gross_anomalies_show_though_the_distribution_does_not() -> None:
    run = images(1, 500)
    run.scores[:10] = 40.0
    assert drifted(run) == {"most_anomalous"}


def test_one_monster_is_no_drift() -> None:
    run = images(1, 500)
    run.scores[0] = 1e6
    assert drifted(run) == set()


def test_a_fixed_hot_spot_is_found_at_its_place() -> None:
    [found] = [finding for finding in findings(images(1, 200, spot=3.0)) if finding.test == "map"]
    assert found.verdict == "drifted"
    assert f"{5.5 / 7:.0%} of the width, {1.5 / 6:.0%} of the height" in found.sentence


def test_gross_defects_of_a_few_images_at_one_place_are_no_dirt_on_the_lens() -> None:
    run = images(1, 100)
    run.maps[:2, 1, 5] += 500
    assert "average_map" not in drifted(run)


def test_another_file_format_is_drift() -> None:
    run = images(1, 300)
    formats = ["JPEG"] * 60 + ["PNG"] * 240
    found = findings(Nominal(run.scores, run.peaks, run.statistics, formats, run.groups, run.maps))
    assert [(f.verdict, f.sentence) for f in found if f.what == "format"] == [
        ("drifted", "format: JPEG 20%, PNG 80% instead of PNG 100%")
    ]


def test_what_is_significant_but_does_not_matter_is_no_drift() -> None:
    assert drifted(images(1, 200_000, brightness=0.3)) == set()


def test_few_images_are_not_judged() -> None:
    assert findings(images(1, 49, brightness=100)) == []
    few = Calibration.fit(images(0, 49), alpha=0.05)
    assert findings(images(1, 500, brightness=100), few) == []


def test_the_interval_of_alarms_is_that_of_calibrations_and_runs_drawn() -> None:
    generator = np.random.default_rng(0)
    counts = []
    for _ in range(4000):
        threshold = calibration.conformal_threshold(generator.random(300), 0.02)
        counts.append((generator.random(400) > threshold).sum())
    low, high = drift.alarm_interval([AlarmLaw.at(400, 300, 0.02)])
    assert np.mean((low <= np.array(counts)) & (np.array(counts) <= high)) == pytest.approx(
        0.965, abs=0.02
    )  # at least 0.95
    assert low == pytest.approx(np.quantile(counts, 0.025), abs=1)
    assert high == pytest.approx(np.quantile(counts, 0.975), abs=1)


def test_a_calibration_that_never_varies_is_compared_too() -> None:
    flat = images(0, 100)
    maps: npt.NDArray[np.float32] = np.zeros((100, *SHAPE), np.float32)
    scores = np.concatenate([np.zeros(99), [1.0]])
    fitted = Calibration.fit(Nominal(scores, scores, flat.statistics, flat.formats, flat.groups, maps), alpha=0.01)
    run = images(1, 100)
    counted = tally(fitted.pooled, Nominal(scores, scores, run.statistics, run.formats, run.groups, maps), 0.5)
    found = judge(counted, fitted)
    assert all(np.isfinite((finding.effect, finding.p_value)).all() for finding in found)
    assert drift.worst([finding.verdict for finding in found]) == "ok"


def test_the_law_of_many_images_is_the_continuation_of_that_of_few() -> None:
    for calibrated in (200, 20_000):
        few, many = AlarmLaw.at(20_000, calibrated, 0.01), AlarmLaw.at(20_001, calibrated, 0.01)
        for end in (0.001, 0.025, 0.5, 0.975, 0.999):
            assert many.frozen().ppf(end) == pytest.approx(few.frozen().ppf(end), rel=0.02, abs=2)


def test_alarms_of_several_thresholds_add_up() -> None:
    one = drift.alarm_interval([AlarmLaw.at(1000, 10_000, 0.05)])
    parts = drift.alarm_interval([AlarmLaw.at(500, 10_000, 0.05)] * 2)
    assert parts == pytest.approx(one, abs=3)


def test_the_tail_of_a_large_run_is_judged_as_that_of_a_small_one_and_takes_little_memory() -> None:
    few, many = (tally_of_tail(count) for count in (4_000, 4_000_000))
    assert few.verdict == many.verdict == "ok"


def tally_of_tail(count: int) -> Finding:
    """A run whose tail is as the calibration's, by its counts alone."""
    nominal = images(0, 600)
    fitted = Calibration.fit(nominal, alpha=0.01)
    counted = tally(fitted.pooled, nominal, fitted.threshold)
    counted.num_images, counted.in_tail = count, counted.in_tail * count // 600
    counted.tail_excess *= count / 600
    [found] = drift._tail(counted, fitted.pooled, 0.007)
    return found
