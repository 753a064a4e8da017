"""A detector as one ONNX model: uint8 pixels in, anomaly map and scores out, checked against the detector itself."""

import importlib.util
import json
import logging
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fcdd import detector, objective
from fcdd.detector import Detector
from fcdd.errors import ConfigError, FCDDError

TOLERANCE = 1e-4
OUTPUTS = ("anomaly_map", "score_mean", "score_max", "score_top1pct")
_OPSET, _CHECKED = 18, 8


class Exported(NamedTuple):
    """The model, and the largest difference of its outputs from the detector's, as a share of the largest map value."""

    model: bytes
    largest_difference: float


class _Whole(nn.Module):
    """Normalisation, network, anomaly map and the three statistics of `detector.summarise`."""

    def __init__(self, loaded: Detector) -> None:
        super().__init__()
        spec = loaded.spec
        self.scaling = spec.normalization
        self.network = detector.deserialize(loaded.weights, spec.network, spec.channels, spec.input_size).eval()

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = objective.anomaly_map(self.network(self.scaling(images_nhwc)))[:, 0]
        cells = maps.flatten(1)
        top = torch.topk(cells, max(1, round(cells.shape[1] * 0.01)), dim=1).values
        return maps, cells.mean(1), cells.amax(1), top.mean(1)


def export(loaded: Detector) -> Exported:
    """The ONNX model of a detector; its metadata hold the bundle's digest, score and thresholds.

    Input `images`: uint8 (N, H, W, C) of the bundle's input size, N free. Outputs: `anomaly_map` (N, U, V) and three
    scores (N,), float32. Raises ConfigError without the packages, FCDDError when the outputs do not agree to TOLERANCE.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]:
        raise ConfigError(f"{', '.join(missing)} not installed; run: pip install 'fcdd-at-scale[onnx]'")
    import onnx

    spec = loaded.spec
    example = torch.zeros((2, *spec.input_size, spec.channels), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Whole(loaded),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=_OPSET,
            verbose=False,
        )
    if program is None:
        raise FCDDError(f"torch could not export network {spec.network!r}")
    model = program.model_proto
    about = {
        "digest": spec.digest,
        "network": spec.network,
        "score": f"score_{ {'mean': 'mean', 'maximum': 'max', 'top1pct': 'top1pct'}[spec.score] }",
        "threshold": repr(spec.calibration.threshold),
        "map_threshold": repr(spec.calibration.map_threshold),
        "false_alarm_rate": repr(spec.calibration.alpha),
        "input_size": json.dumps(spec.input_size),
    }
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    return Exported(data, _check(data, loaded))


def _check(model: bytes, loaded: Detector) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (_pictures(loaded), _pictures(loaded)[:1]):
        expected = loaded.score(batch)
        found = session.run(None, {"images": batch})
        wanted = (expected.maps, expected.mean, expected.maximum, expected.top1pct)
        largest = max(float(expected.maps.max()), 1e-6)
        worst = max(worst, *(float(np.abs(a - b).max()) / largest for a, b in zip(found, wanted, strict=True)))
    if worst > TOLERANCE:
        raise FCDDError(f"the ONNX model differs from the detector by {worst:.2g} of the largest value: not written")
    return worst


def _pictures(loaded: Detector) -> npt.NDArray[np.uint8]:
    """Noise of several grains, from flat to rough: (N,H,W,C)."""
    random = np.random.default_rng(0)
    height, width = loaded.spec.input_size
    pictures = []
    for index in range(_CHECKED):
        coarse = random.integers(0, 256, (2**index % 61 + 1, 2**index % 59 + 1, loaded.spec.channels))
        rows, columns = (
            np.linspace(0, n - 1e-9, m).astype(int) for n, m in zip(coarse.shape[:2], (height, width), strict=True)
        )
        pictures.append(coarse[rows][:, columns])
    return np.stack(pictures).astype(np.uint8)
