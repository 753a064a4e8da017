"""Features of the strips of large images by OpenVINO, where a whole network would take too much memory.

It takes three quarters of torch's time on CPUs (benchmarks/results/2026-11-27-training.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcdd import openvino_network

# What features may differ from torch's, relative to the largest; 1.4e-7 was measured.
TOLERANCE = 1e-5
_TRIED = 256


class OpenvinoFeatures(nn.Module):
    """Images (B,C,H,W) float32 to what a module makes of them, without gradients; for one caller at a time.

    Images of one size are compiled for once, in a quarter of a second.
    """

    def __init__(self, module: nn.Module, channels: int, *, threads: int) -> None:
        """`module` is in evaluation mode, on the CPU; `threads` compute together.

        Raises whatever tracing, conversion and compilation raise for a module that they cannot take, ConfigError when
        OpenVINO is not installed, and ValueError when features of a small image differ from the module's.
        """
        super().__init__()
        random = torch.Generator().manual_seed(0)
        example = torch.randn(1, channels, _TRIED, _TRIED, generator=random)
        self._threads, self._requests = threads, dict[Sequence[int], Any]()
        self._model = openvino_network.convert_module(module, example, [-1, channels, -1, -1])
        with torch.inference_mode():
            expected = module(example)
        off = float((self(example) - expected).abs().max() / expected.abs().max())
        if not off < TOLERANCE:
            raise ValueError(f"its features differ by {off:.1g} of the largest")
        self._requests.clear()  # and the memory of the one that tried

    @torch.no_grad()
    def forward(self, images_bchw: Tensor) -> Tensor:
        """The features (B,D,U,V)."""
        shape = tuple(images_bchw.shape)
        if shape not in self._requests:
            self._requests[shape] = openvino_network.request(self._model, shape, threads=self._threads)
        given = images_bchw.contiguous().numpy()
        return torch.from_numpy(self._requests[shape].infer(given, share_inputs=True)[0].copy())
