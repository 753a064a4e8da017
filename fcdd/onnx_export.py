"""A detector as one ONNX model: uint8 pixels in, anomaly map and scores out, checked against the detector itself.

The model takes pixels of the network's size, made as `fcdd.images` makes them, or images of any size, which it then
resizes in the same way: bilinear with antialiasing, across and then down, rounded to 8 bits after both.
"""

import importlib.util
import json
import logging
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from fcdd import detector, objective, resizing
from fcdd.bundle import BundleSpec
from fcdd.detector import Detector
from fcdd.errors import ConfigError, FCDDError
from fcdd.images import View

TOLERANCE = 1e-4
# With the resizing inside, some pixels differ by one grey level from Pillow's, which goes down before across where that
# is less work: of ELPV's cells scores differed by at most 0.7 % (upright 5:6), 0.3 % (wide and square).
RESIZE_TOLERANCE = 2e-2
OUTPUTS = ("anomaly_map", "score_mean", "score_max", "score_top1pct")
_OPSET, _CHECKED = 18, 8
_RESIZERS: dict[resizing.Resizer, str] = {
    "pillow": "Pillow's Image.resize with BILINEAR",
    "cykooz": "cykooz-resizer's convolution; Pillow's Image.resize with BILINEAR differs by one grey level",
}


class Exported(NamedTuple):
    """The model, what it takes, and the largest difference of its outputs from the detector's.

    The difference is a share of the largest map value.
    """

    model: bytes
    input: str
    largest_difference: float


class _Whole(nn.Module):
    """Normalisation, network, anomaly map and the three statistics of `scores.summarise`."""

    kept: Tensor | None
    counting: Tensor | None

    def __init__(self, loaded: Detector) -> None:
        super().__init__()
        spec = loaded.spec
        self.scaling = spec.normalization
        self.network = detector.deserialize(loaded.weights, spec.network, spec.channels, spec.input_size).eval()
        ignored = spec.ignored_cells
        # Found here: the exporter cannot follow how many cells there are.
        self.register_buffer("kept", None if ignored is None else torch.from_numpy(~ignored).float())
        self.register_buffer("counting", None if ignored is None else torch.from_numpy(np.flatnonzero(~ignored)))

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps = objective.anomaly_map(self.network(self.scaling(images_nhwc)))[:, 0]
        cells = maps.flatten(1)
        if self.kept is not None and self.counting is not None:
            maps, cells = maps * self.kept, cells[:, self.counting]
        top = torch.topk(cells, max(1, round(cells.shape[1] * 0.01)), dim=1).values
        return maps, cells.mean(1), cells.amax(1), top.mean(1)


def export(loaded: Detector, *, with_resize: bool = False) -> Exported:
    """The ONNX model of a detector; its metadata hold the bundle's digest, score, thresholds, and the input contract.

    Input `images`: uint8 (N, H, W, C), RGB or grey, N free, of the bundle's input size, or `with_resize` of any size.
    Outputs: `anomaly_map` (N, U, V) and three scores (N,), float32. Raises ConfigError without the packages, FCDDError
    when the outputs do not agree to TOLERANCE, or RESIZE_TOLERANCE.
    """
    if with_resize:
        resizing.check(loaded.spec.resizer)
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
        "input": _contract(spec, with_resize),
    }
    if with_resize:
        _resize_first(model, spec.input_size, spec.channels)
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    return Exported(data, about["input"], _check(data, loaded, with_resize))


def _contract(spec: BundleSpec, with_resize: bool) -> str:
    """What the model must be given, for whoever has only the model."""
    height, width = spec.input_size
    colours = "RGB, in this order" if spec.channels == 3 else "grey"
    images = f"uint8 (N, H, W, {spec.channels}), 0 to 255, {colours}, upright by EXIF"
    if spec.crop:
        images += f", cut to the part {spec.crop} (left, top, width, height)"
    if spec.full_scale:
        images += f"; values of 16 bits times 255 / {spec.full_scale:g}, rounded, at most 255"
    if with_resize:
        return f"{images}, of any H and W, the same within a batch; not resized before: that happens inside"
    return (
        f"{images}, H {height}, W {width}; resized to it without keeping proportions, bilinear WITH antialiasing "
        f"({_RESIZERS[spec.resizer]}): with another filter nominal scores can be 3 to 10 times as high"
    )


def _resize_first(model: Any, size: tuple[int, int], channels: int) -> None:
    """Let the model begin by resizing its images to (height, width), in place; `model` is an onnx.ModelProto."""
    from onnx import TensorProto, helper

    graph, [images] = model.graph, model.graph.input
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == images.name:
                node.input[place] = "resized"
    # Outside of the image there is nothing that could be averaged.
    how: dict[str, Any] = {
        "mode": "linear",
        "antialias": 1,
        "coordinate_transformation_mode": "half_pixel",
        "exclude_outside": 1,
    }
    make = helper.make_node
    nodes = [
        make("Transpose", [images.name], ["resize_planes"], perm=[0, 3, 1, 2]),
        make("Cast", ["resize_planes"], ["resize_from"], to=TensorProto.FLOAT),
        make("Shape", ["resize_from"], ["resize_nch"], start=0, end=3),
        make("Concat", ["resize_nch", "resize_width"], ["resize_across"], axis=0),
        make("Resize", ["resize_from", "", "", "resize_across"], ["resize_a"], **how),
        make("Add", ["resize_a", "resize_half"], ["resize_b"]),
        make("Floor", ["resize_b"], ["resize_c"]),
        make("Shape", ["resize_c"], ["resize_nc"], start=0, end=2),
        make("Concat", ["resize_nc", "resize_size"], ["resize_down"], axis=0),
        make("Resize", ["resize_c", "", "", "resize_down"], ["resize_d"], **how),
        make("Add", ["resize_d", "resize_half"], ["resize_e"]),
        make("Floor", ["resize_e"], ["resize_f"]),
        make("Cast", ["resize_f"], ["resize_g"], to=TensorProto.UINT8),
        make("Transpose", ["resize_g"], ["resized"], perm=[0, 2, 3, 1]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.initializer.extend(
        [
            helper.make_tensor("resize_width", TensorProto.INT64, [1], size[1:]),
            helper.make_tensor("resize_size", TensorProto.INT64, [2], size),
            helper.make_tensor("resize_half", TensorProto.FLOAT, [], [0.5]),
        ]
    )
    batch = images.type.tensor_type.shape.dim[0].dim_param
    shape = [batch, "height", "width", channels]
    images.CopyFrom(helper.make_tensor_value_info(images.name, TensorProto.UINT8, shape))


def _check(model: bytes, loaded: Detector, with_resize: bool) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    height, width = loaded.spec.input_size
    sizes = (
        ((3 * height + 1, 2 * width + 5), (height // 2, width), (height, width)) if with_resize else ((height, width),)
    )
    worst = 0.0
    for batch in (each[:count] for each in (_pictures(loaded, size) for size in sizes) for count in (_CHECKED, 1)):
        expected = loaded.score(_resized(batch, loaded.spec.view))
        found = session.run(None, {"images": batch})
        wanted = (expected.maps, expected.mean, expected.maximum, expected.top1pct)
        largest = max(float(expected.maps.max()), 1e-6)
        worst = max(worst, *(float(np.abs(a - b).max()) / largest for a, b in zip(found, wanted, strict=True)))
    if worst > (RESIZE_TOLERANCE if with_resize else TOLERANCE):
        raise FCDDError(f"the ONNX model differs from the detector by {worst:.2g} of the largest value: not written")
    return worst


def _resized(batch_nhwc: npt.NDArray[np.uint8], view: View) -> npt.NDArray[np.uint8]:
    """As `fcdd.images` does it."""
    size = view.size
    if batch_nhwc.shape[1:3] == size:
        return batch_nhwc
    channels = batch_nhwc.shape[3]
    pictures = (Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]) for pixels in batch_nhwc)
    small = [np.asarray(resizing.resized(each, size[::-1], view.resizer)) for each in pictures]
    return np.stack(small).reshape(len(small), *size, channels)


def _pictures(loaded: Detector, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Noise of several grains, from flat to rough: (N,H,W,C)."""
    random = np.random.default_rng(0)
    height, width = size
    pictures = []
    for index in range(_CHECKED):
        coarse = random.integers(0, 256, (2**index % 61 + 1, 2**index % 59 + 1, loaded.spec.channels))
        rows, columns = (
            np.linspace(0, n - 1e-9, m).astype(int) for n, m in zip(coarse.shape[:2], (height, width), strict=True)
        )
        pictures.append(coarse[rows][:, columns])
    return np.stack(pictures).astype(np.uint8)
