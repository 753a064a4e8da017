"""Features that a training computes once: those of images that it sees as they are, in every epoch.

The trunk of a network with a whitened head is fixed, and half of the samples are nominal images that nothing was done
to. What the head is given of them is the same in every epoch, and the statistics have seen it already. Nothing is added
while training: an image would be computed in other company where a training is resumed, and its last bits be others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fcdd.networks import FCDDNetwork
from fcdd.whitening import WhitenedHead

# Of all images together: 1,000 at 224x224 pixels take 0.2 to 0.3 GB. Of more, the first ones are remembered.
CAPACITY_BYTES = 10**9


class Remembering(nn.Module):
    """A network with a whitened head, for as long as its trunk stays as it is."""

    def __init__(self, network: FCDDNetwork, *, capacity: int = CAPACITY_BYTES) -> None:
        super().__init__()
        self.network, self._left = network, capacity
        # (D,U,V) each, by the number of the image.
        self.components = dict[int, Tensor]()

    def forward(self, images_bchw: Tensor, unchanged: Sequence[int | None]) -> Tensor:
        """Output (B,1,U,V). `unchanged` (B) are the numbers of images that are as they are, None of other samples."""
        head = self.network.head
        assert isinstance(head, WhitenedHead), "the features of other networks are trained"
        new = [at for at, number in enumerate(unchanged) if number is None or number not in self.components]
        with torch.no_grad():
            computed = head.project(self.network.compute_features(images_bchw[new])) if new else ()
        found = dict[int, Tensor](zip(new, computed, strict=True))
        each = [
            found[at] if number is None or at in found else self.components[number]
            for at, number in enumerate(unchanged)
        ]
        return head.of_components(torch.stack(each))

    def remember(self, number: int, components: Tensor) -> None:
        """Keep the components (D,U,V) of an image, if there is room."""
        size = components.numel() * components.element_size()
        if size <= self._left and number not in self.components:
            self.components[number] = components.clone()  # not the whole batch
            self._left -= size
