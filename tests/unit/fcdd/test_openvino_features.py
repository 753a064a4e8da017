"""Features by OpenVINO are torch's; where it cannot, torch computes."""

import logging

import numpy as np
import pytest
import torch

from fcdd import networks, openvino_features, scorer, strips
from fcdd.detector import Detector
from fcdd.openvino_features import OpenvinoFeatures
from fcdd.runtime import Runtime
from tests.detectors import make

WHITENED = "whitened:efficientnet_lite0:stage4+stage3+stage5:1:16"


@pytest.mark.parametrize(("name", "coarsest"), [(WHITENED, 32), ("backbone:resnet18:layer3", 16), ("cnn224", 8)])
def test_features_of_any_size_are_those_of_torch(name: str, coarsest: int) -> None:
    torch.manual_seed(0)
    network = networks.build(name, in_channels=3, image_size=(224, 224)).eval()
    computed = OpenvinoFeatures(network.features, 3, threads=2)
    for height, width in ((8 * coarsest, 10 * coarsest), (9 * coarsest, 8 * coarsest)):
        images = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            expected = network.features(images)
        torch.testing.assert_close(computed(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def large(monkeypatch: pytest.MonkeyPatch) -> tuple[Detector, np.ndarray, np.ndarray]:
    """A detector of images that count as large, some of them, and their maps by torch alone."""
    detector = make()
    pixels = np.random.default_rng(0).integers(0, 256, (3, *detector.spec.input_size, 3)).astype(np.uint8)
    expected = detector.score(pixels).maps
    monkeypatch.setattr(strips, "LARGEST", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return detector, pixels, expected


def test_strips_of_large_images_are_computed_by_openvino(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector, pixels, expected = large(monkeypatch)
    calls, original = list[int](), OpenvinoFeatures.forward

    def counted(self: OpenvinoFeatures, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(OpenvinoFeatures, "forward", counted)
    found = scorer.load(detector.spec, detector.weights, Runtime(backend="openvino"), threads=2)
    np.testing.assert_allclose(found(pixels).maps, expected, rtol=1e-4, atol=1e-5)
    assert len(calls) > 1  # the first one is the trial
    assert "torch computes the network" not in caplog.text


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_torch_computes_what_openvino_does_otherwise(
    tolerance: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    detector, pixels, expected = large(monkeypatch)
    monkeypatch.setattr(openvino_features, "TOLERANCE", tolerance)
    with caplog.at_level(logging.WARNING):
        found = scorer.load(detector.spec, detector.weights, Runtime(backend="openvino"))
    assert "its features differ by" in caplog.text
    np.testing.assert_allclose(found(pixels).maps, expected, rtol=1e-4, atol=1e-5)


def test_strips_in_bfloat16_are_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, pixels, expected = large(monkeypatch)
    monkeypatch.setattr(OpenvinoFeatures, "__init__", lambda *_, **__: pytest.fail("its features are float32"))
    found = scorer.load(detector.spec, detector.weights, Runtime(backend="openvino", precision="bfloat16"))
    maps = found(pixels).maps
    assert 0 < np.abs(maps - expected).max() < 0.05 * expected.max()
