"""The network as it runs at scoring time: folded, in the memory layout, precision and library that are fastest.

Pixels in, anomaly maps out. The reference is the network in evaluation mode on a CPU in float32; against it, relative
to the largest value of a map: float32 5e-4 (2e-4 was the most that was measured), tf32 1e-2, bfloat16 5e-2. On a GPU
float32 is IEEE's: torch's default would compute convolutions in TF32, which was measured 3.5e-3 off.
"""

import copy
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdd import folding, objective, openvino_network
from fcdd.card import Card
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.openvino_network import OpenvinoNetwork
from fcdd.runtime import Runtime
from fcdd.sizing import images_at_once

# On a CPU the memory of a batch is given back to the system and asked for again, the more often the larger it is: 4 is
# faster than 16 (benchmarks/results/2026-11-26-cpu-values.md). A GPU waits for Python at every layer of every batch.
CPU_BATCH, GPU_BATCH = 4, 256
# Images that are on the card at once, so that its memory does not depend on how many are asked for.
_SENT = 512


class Runner:
    """Pixels (N,H,W,C) uint8 of the network's size -> anomaly maps (N,U,V) float32, for several threads at once.

    Torch runs on a GPU if there is one, OpenVINO on the CPU. When a GPU has too little memory, the batches are halved
    for good. A runner makes IEEE's float32, one of tf32 TF32, the process's precision on GPUs, for whatever runs after
    it too.
    Raises ConfigError when OpenVINO is asked for and not installed.
    """

    def __init__(
        self,
        network: FCDDNetwork,
        scaling: Normalization,
        input_size: tuple[int, int],
        runtime: Runtime = Runtime(),  # noqa: B008
        *,
        gpu: bool = True,
        openvino_threads: int = 0,
    ) -> None:
        """`input_size` is (height, width); `network` is put into evaluation mode. `gpu`: take one, if there is one.

        With torch on CPUs, features may be computed by so many threads of OpenVINO: `FCDDNetwork.for_inference`.
        """
        self._cells = (network.receptive_field.height, network.receptive_field.width)
        self.is_on_gpu = gpu and torch.cuda.is_available() and runtime.backend == "torch"
        self.batch_size = images_at_once(input_size, GPU_BATCH if self.is_on_gpu else CPU_BATCH)
        self._sent = images_at_once(input_size, _SENT)
        self._card = Card(torch.device("cuda" if self.is_on_gpu else "cpu"))
        _compute_as("tf32" if runtime.precision == "tf32" else "ieee")  # of bfloat16 it is the head's
        if runtime.backend == "openvino":
            self._run = _openvino(folding.folded(network), scaling, runtime, input_size)
        else:
            self._run = _torch(network, scaling, runtime, self._card.device, openvino_threads)
        # A compiled network is compiled again for every size of a batch.
        self._fills_up = self.is_on_gpu and runtime.compile

    def __call__(self, pixels_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The maps, computed in batches; a GPU is waited for once per `_SENT` images of the published size."""
        pieces = [
            self._maps_of(pixels_nhwc[start : start + self._sent]) for start in range(0, len(pixels_nhwc), self._sent)
        ]
        return np.concatenate(pieces) if pieces else np.empty((0, *self._cells), np.float32)

    def _maps_of(self, pixels_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with self._card.lane():
            pixels, maps, start = self._card.send(pixels_nhwc), list[Tensor](), 0
            while start < len(pixels):
                size = self.batch_size
                try:
                    maps.append(self._run_some(pixels[start : start + size], size))
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise
                    self.batch_size = min(self.batch_size, size // 2)  # another thread may have halved it, too
                    torch.cuda.empty_cache()
                    continue
                start += size
            return self._card.fetch(maps)

    def _run_some(self, pixels: Tensor, size: int) -> Tensor:
        missing = size - len(pixels) if self._fills_up else 0
        return self._run(F.pad(pixels, (0, 0) * 3 + (0, missing)))[: len(pixels)] if missing else self._run(pixels)


def _compute_as(precision: Literal["ieee", "tf32"]) -> None:
    """Of float32 on GPUs. The older flags are set first: torch raises when they contradict the newer ones."""
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = precision


def _torch(
    network: FCDDNetwork, scaling: Normalization, runtime: Runtime, device: torch.device, openvino_threads: int
) -> Callable[[Tensor], Tensor]:
    """Of a copy. Channels-last memory is 1.8 times as fast on a CPU (docs/facts.md).

    In bfloat16 the features are computed, and the head in float32: that of whitened networks divides by deviations.
    """
    network = copy.deepcopy(network).to(device).for_inference(openvino_threads=openvino_threads)
    parts: tuple[Callable[[Tensor], Tensor], ...] = (network.compute_features, network.head)
    features, head = (torch.compile(part) for part in parts) if runtime.compile else parts
    scaled = scaling.on(device)

    def run(pixels: Tensor) -> Tensor:
        images = scaled(pixels)
        with torch.inference_mode():
            with torch.autocast(device.type, torch.bfloat16, runtime.precision == "bfloat16"):
                found = features(images)
            return _maps(head(found.float()))

    return run


def _openvino(
    network: torch.nn.Module, scaling: Normalization, runtime: Runtime, input_size: tuple[int, int]
) -> Callable[[Tensor], Tensor]:
    model = OpenvinoNetwork(openvino_network.convert(network, scaling, input_size), runtime.precision)
    return lambda pixels: torch.from_numpy(model(pixels.numpy()))


def _maps(output: Tensor) -> Tensor:
    return objective.anomaly_map(output)[:, 0].float()
