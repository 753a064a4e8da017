import numpy as np
import onnxruntime
import pytest

from fcdd import onnx_export
from fcdd.detector import Detector
from tests.detectors import make


def test_cells_that_do_not_count_do_not_in_the_exported_model_either() -> None:
    plain = make()
    rows, columns = np.shape(plain.spec.calibration.pooled.map_mean)
    left = columns // 2
    ignored = tuple("1" * left + "0" * (columns - left) for _ in range(rows))
    changes = {"ignored": ignored, "crop": "10%,0%,50%,50%", "full_scale": 4095.0}
    detector = Detector(plain.spec.model_copy(update=changes), plain.weights)
    exported = onnx_export.export(detector)
    assert "cut to the part 10%,0%,50%,50%" in exported.input
    assert "values of 16 bits times 255 / 4095" in exported.input
    session = onnxruntime.InferenceSession(exported.model, providers=["CPUExecutionProvider"])
    shape = (3, *plain.spec.input_size, plain.spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    maps, mean, most, top = session.run(None, {"images": pixels})
    expected = detector.score(pixels)
    assert not maps[:, :, :left].any()
    for found, wanted in ((mean, expected.mean), (most, expected.maximum), (top, expected.top1pct)):
        np.testing.assert_allclose(found, wanted, rtol=1e-3)


@pytest.mark.parametrize(("resizer", "named"), [("pillow", "(Pillow's Image.resize"), ("cykooz", "(cykooz-resizer's")])
def test_the_contract_names_the_resizer_of_the_bundle_and_the_one_inside_is_compared_with_it(
    resizer: str, named: str
) -> None:
    detector = make(resizer=resizer)
    assert named in onnx_export.export(detector).input
    inside = onnx_export.export(detector, with_resize=True)
    assert "not resized before" in inside.input
    assert 0 < inside.largest_difference <= onnx_export.RESIZE_TOLERANCE
