"""A network as OpenVINO's model: pixels in, anomaly maps out. Once it is converted, nothing of it needs torch.

Features alone, of the strips of large images, are in `fcdd.openvino_features`.
"""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fcdd.errors import ConfigError
from fcdd.normalization import Normalization
from fcdd.sample import Precision
from fcdd.sizing import images_at_once
from fcdd.spares import Spares

if TYPE_CHECKING:
    from torch import Tensor, nn

# Images of one call, large ones fewer: two threads computed 125 images/s in batches of 4 and 135 in batches of 16;
# memory grows with it.
BATCH = 16


class OpenvinoNetwork:
    """Pixels (N,H,W,C) uint8 -> maps (N,U,V) float32, for several threads at once, each on a CPU of its own."""

    def __init__(self, model: Any, precision: Precision = "float32", *, threads: int = 1) -> None:
        """`model` is what `convert` or `read` returns. Raises ConfigError when OpenVINO is not installed.

        There is a stream of one thread for each of so many `threads`. They are not pinned: each process would pin its
        own to the same first core.
        """
        compiled = _compile(model, precision, threads=threads, streams=threads)
        self._requests = Spares(compiled.create_infer_request)
        # Its bindings set themselves up in the first call; two threads in it may wait for each other for ever.
        _, height, width, channels = compiled.input(0).get_partial_shape()
        size = (height.get_length(), width.get_length())
        self._batch = images_at_once(size, BATCH)
        self(np.zeros((1, *size, channels.get_length()), np.uint8))

    def __call__(self, pixels_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The maps of at least one image; a caller's memory stays its own."""
        with self._requests.one() as request:
            parts = [
                request.infer(np.ascontiguousarray(pixels_nhwc[start : start + self._batch]), share_inputs=True)[
                    0
                ].copy()
                for start in range(0, len(pixels_nhwc), self._batch)
            ]
        return np.concatenate(parts)


def convert(network: "nn.Module", scaling: Normalization, input_size: tuple[int, int]) -> Any:
    """The model of a network for images (height, width), with normalisation and anomaly map.

    Raises ConfigError when OpenVINO is not installed.
    """
    import torch
    from torch import nn

    from fcdd import objective

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels_nhwc: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.network(scaling(pixels_nhwc))
            return objective.anomaly_map(output)[:, 0]

    shape = (*input_size, len(scaling.shift))
    return convert_module(Whole(), torch.zeros(2, *shape, dtype=torch.uint8), [-1, *shape])


def convert_module(module: "nn.Module", example: "Tensor", shape: Sequence[int]) -> Any:
    """The model of any module, put into evaluation mode, for inputs of a shape, of which -1 is any length.

    Raises ConfigError when OpenVINO is not installed, and whatever tracing and conversion raise.
    """
    import torch

    openvino = _openvino()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openvino traces with torch.jit, which torch wants to drop
        # Traced here without torch's own check of it, which takes longer than all the rest.
        traced = torch.jit.trace(module.eval(), example, check_trace=False)
        return openvino.convert_model(traced, example_input=example, input=list(shape))


def request(model: Any, shape: Sequence[int], *, threads: int) -> Any:
    """What computes a model in float32 for inputs of one shape, by so many threads together."""
    fitting = model.clone()
    fitting.reshape(list(shape))
    return _compile(fitting, "float32", threads=threads, streams=1).create_infer_request()


def _compile(model: Any, precision: Precision, *, threads: int, streams: int) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(model, "CPU", options)


def read(path: Path) -> Any:
    """A model that `save` wrote. Raises ConfigError when OpenVINO is not installed, RuntimeError for a damaged file."""
    return _core().read_model(path)


def save(model: Any, path: Path) -> None:
    """Write `path` (.xml) and the weights beside it (.bin)."""
    _openvino().save_model(model, path, compress_to_fp16=False)


def version() -> str:
    """OpenVINO's. Raises ConfigError when it is not installed."""
    return str(_openvino().__version__)


@functools.cache
def _core() -> Any:
    """One for as long as the process lives: without any, the libraries of its plugins are unloaded under threads."""
    return _openvino().Core()


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ConfigError("the backend openvino is not installed; run: pip install 'fcdd-at-scale[cpu]'") from error
    return openvino
