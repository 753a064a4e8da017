"""A GPU for several threads at once: while it works for one, others send pixels, take maps away, or do what follows.

pixels -> pinned memory -> the card, on a stream that no other thread has -> maps -> pinned memory
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcdd.spares import Spares


class Card:
    """Carries arrays to `device` and back. On a CPU, for tests, everything is where it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams = Spares(lambda: torch.cuda.Stream(device))

    @contextmanager
    def lane(self) -> Iterator[None]:
        """What this thread asks of the card within runs in its own order, beside what others ask for."""
        if self.device.type != "cuda":
            yield
            return
        with self._streams.one() as stream, torch.cuda.stream(stream):
            yield

    def send(self, array: npt.NDArray[np.uint8]) -> Tensor:
        """On its way to the card; returns at once."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # torch takes writable arrays only
        here = torch.empty(array.shape, dtype=torch.uint8, pin_memory=True)
        np.copyto(here.numpy(), array)
        return here.to(self.device, non_blocking=True)

    def drain(self) -> None:
        """Wait until the card has done everything that anybody asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def fetch(self, tensors: Sequence[Tensor]) -> npt.NDArray[Any]:
        """All of them, one after the other, as one array; waits until they are computed, without keeping a CPU busy."""
        result = torch.cat(list(tensors))
        if self.device.type == "cuda":
            here = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            here.copy_(result, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()
            done.synchronize()
            result = here
        array: npt.NDArray[Any] = result.numpy()
        return array
