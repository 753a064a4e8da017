"""The pictures that a bundle keeps, and what is done where they do not score as they did."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcdd import bundle, detector, sample, scorer
from fcdd.calibration import Calibration
from fcdd.detector import Detector
from fcdd.errors import BundleError
from fcdd.runtime import Runtime
from fcdd.sample import Disagrees, Sample
from fcdd.scores import Scored
from tests.detectors import make
from tests.nominal import nominal

BFLOAT16 = Runtime(precision="bfloat16")


def noise(count: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def sampled() -> Detector:
    """A detector whose bundle has a sample."""
    made = make(calibration=Calibration.fit(nominal(make().score(noise(200)).maximum), alpha=0.01))
    taken = sample.take(noise(50), np.arange(50.0), noise(20), made.score)
    assert taken is not None
    data = taken.to_bytes()
    return Detector(made.spec.model_copy(update={"sample_sha256": detector.sha256(data)}), made.weights, sample=data)


def changed(sampled: Detector, factor: float) -> bytes:
    """The sample of another network, whose scores are so many times as large."""
    kept = bundle.sample_of(sampled.sample)
    assert kept is not None
    return replace(kept, scores={name: values * factor for name, values in kept.scores.items()}).to_bytes()


def maps_of(pixels: np.ndarray) -> Scored:
    means = pixels.reshape(len(pixels), -1).mean(1).astype(np.float32)
    return Scored(means[:, None, None], means, means, means)


def test_a_sample_has_the_most_anomalous_image_first_and_the_least_and_some_anomalies() -> None:
    nominal, anomalies = noise(50), noise(20)
    taken = sample.take(nominal, np.arange(50.0), anomalies, maps_of)
    assert taken is not None
    assert len(taken) == sample.MOST
    np.testing.assert_array_equal(taken.pixels[0], nominal[49])
    np.testing.assert_array_equal(taken.pixels[15], nominal[0])
    np.testing.assert_array_equal(taken.pixels[16], anomalies[0])
    np.testing.assert_array_equal(taken.pixels[23], anomalies[19])
    np.testing.assert_allclose(taken.scores["mean"], taken.pixels.reshape(24, -1).mean(1), rtol=1e-5)


@pytest.mark.parametrize(("side", "expected"), [(224, 24), (600, 4), (1_024, 1), (1_400, None)])
def test_a_sample_takes_no_more_than_its_bytes(side: int, expected: int | None) -> None:
    images = np.zeros((30, side, side, 3), np.uint8)
    taken = sample.take(images, np.arange(30.0), images[:10], maps_of)
    assert (None if taken is None else len(taken)) == expected
    assert taken is None or len(taken.to_bytes()) < sample.LARGEST_BYTES + 10_000


def test_few_images_are_all_taken() -> None:
    taken = sample.take(noise(3), np.arange(3.0), noise(2), maps_of)
    assert taken is not None
    assert len(taken) == 5


def test_a_bundle_keeps_its_sample_and_does_without_it(sampled: Detector, tmp_path: Path) -> None:
    sampled.save(str(tmp_path / "b"))
    again = Detector.load(str(tmp_path / "b"))
    assert again.sample == sampled.sample
    again.save(str(tmp_path / "c"))
    assert (tmp_path / "c" / bundle.SAMPLE_FILE).read_bytes() == sampled.sample
    (tmp_path / "c" / bundle.SAMPLE_FILE).write_bytes(b"another one")
    with pytest.raises(BundleError, match="is not the one that the bundle names; copy the bundle again"):
        Detector.load(str(tmp_path / "c"))
    (tmp_path / "c" / bundle.SAMPLE_FILE).unlink()
    assert Detector.load(str(tmp_path / "c")).sample is None


def test_a_sample_is_stored_as_it_is() -> None:
    columns = np.arange(12, dtype=np.float32).reshape(3, 4)
    kept = Sample(noise(6)[::2], {"mean": columns[:, 0], "maximum": columns[:, 3], "top1pct": columns[:, 1]})
    again = Sample.from_bytes(kept.to_bytes())
    np.testing.assert_array_equal(again.pixels, kept.pixels)
    for name, values in kept.scores.items():
        np.testing.assert_array_equal(again.scores[name], values)


def test_what_is_no_sample_is_said() -> None:
    scores = {name: np.zeros(1) for name in ("mean", "maximum", "top1pct")}
    flat, none = (
        Sample(noise(1)[0], scores),
        Sample(noise(1)[:0], {name: values[:0] for name, values in scores.items()}),
    )
    more, fewer = Sample(noise(2), scores), Sample(noise(1), {"mean": np.zeros(1)})
    for data in (b"", b"nothing", *(each.to_bytes() for each in (flat, none, more, fewer))):
        with pytest.raises(BundleError, match="the sample of the bundle cannot be read"):
            Sample.from_bytes(data)


def test_a_precision_that_scores_alike_is_taken(sampled: Detector) -> None:
    for backend in ("torch", "openvino"):
        runtime = Runtime.model_validate({"precision": "bfloat16", "backend": backend})
        scorer.check(sampled.spec, sampled.weights, runtime, sampled.sample)
    Detector(sampled.spec, sampled.weights, BFLOAT16, sampled.sample)


def test_a_precision_that_does_not_is_refused_with_how_far_it_is_off(sampled: Detector) -> None:
    other = changed(sampled, 1.1)
    said = r"in bfloat16 scores of the bundle's own sample of 24 images are off by up to .* \(0.01 is allowed\)"
    with pytest.raises(Disagrees, match=said):
        scorer.check(sampled.spec, sampled.weights, BFLOAT16, other)
    with pytest.raises(Disagrees, match=said):
        Detector(sampled.spec, sampled.weights, BFLOAT16, other)


def test_whitened_networks_need_a_sample_for_another_precision() -> None:
    whitened, thresholds = "whitened:efficientnet_lite0:stage3", {"mean": 1.0}
    with pytest.raises(Disagrees, match="this bundle has no sample of images to show"):
        sample.check(None, "bfloat16", maps_of, thresholds, whitened)
    assert sample.check(None, "float32", maps_of, thresholds, whitened) is None
    assert sample.check(None, "bfloat16", maps_of, thresholds, "cnn224") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda values: values, 0.0),
        (lambda values: values + 0.5, 0.25),  # of a threshold of 2, above the scores
        (lambda values: values * 3, 2.0),  # and of a score above the threshold: 3 becomes 9
        (lambda values: values * np.float32(np.nan), np.inf),
    ],
)
def test_differences_are_shares_of_the_threshold_or_of_a_larger_score(
    change: Callable[[np.ndarray], np.ndarray], expected: float
) -> None:
    scores = np.array([0.0, 1.0, 3.0], np.float32)
    kept = Sample(noise(3), {"mean": scores, "maximum": scores})

    def score(_: np.ndarray) -> Scored:
        return Scored(np.zeros((3, 1, 1), np.float32), change(scores), 9 * scores, scores)

    assert sample.compare(kept, score, {"mean": 2.0}) == pytest.approx(expected)


def test_workers_on_which_a_precision_scores_otherwise_compute_in_float32(
    sampled: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sample, "ALLOWED", {**sample.ALLOWED, "bfloat16": 0.0})
    runtime = Runtime(precision="bfloat16", backend="openvino")
    found = scorer.load(sampled.spec, sampled.weights, runtime, sample=sampled.sample)
    assert "openvino computes it in float32" in caplog.text
    pixels = noise(4)
    np.testing.assert_allclose(found(pixels).maximum, sampled.score(pixels).maximum, rtol=scorer.TOLERANCE)


def test_where_openvino_scores_otherwise_torch_computes(sampled: Detector, caplog: pytest.LogCaptureFixture) -> None:
    """Also a network that was converted before: by another version, or on another machine."""
    runtime = Runtime(backend="openvino")
    assert (
        type(scorer.load(sampled.spec, sampled.weights, runtime, sample=sampled.sample).run) is scorer.OpenvinoNetwork
    )
    assert not caplog.text
    found = scorer.load(sampled.spec, sampled.weights, runtime, sample=changed(sampled, 1.01))
    assert "sample of 4 images are off by up to" in caplog.text
    assert "torch computes it in float32" in caplog.text
    assert type(found.run) is not scorer.OpenvinoNetwork
