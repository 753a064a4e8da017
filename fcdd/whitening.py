"""An FCDD head on whitened features: the network knows what is nominal at each position before it is trained.

The features of every cell are whitened with the mean and covariance that nominal images have there (the statistics
of PaDiM, Defard et al. 2021), fixed; the head then learns by the FCDD objective which directions matter:

    z = W (f - mu)          e = mean_d softplus(w_d) (V z)_d^2          phi = a sqrt(e + 1e-6) + b

V starts as the identity, so that phi starts as the scaled Mahalanobis distance. With several modes (product variants
seen by one camera) each has statistics of its own and the nearest one counts: e = min over modes.

Shapes: B batch, K modes, D features, U x V cells.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd.errors import ConfigError

# Share of the features' mean variance added to every covariance: few images do not determine all directions.
REGULARIZATION = 0.01
_SMALLEST_ENERGY = 1e-6
_UNIT_WEIGHT = 0.5413  # softplus of it is 1
_START_OFFSET = -1.0  # nominal cells have e of about 1


class WhitenedHead(nn.Module):
    """Features (B,D,U,V) to the network's output (B,1,U,V); call `fit` with nominal features before training."""

    mean: Tensor
    whitening: Tensor

    def __init__(self, features: int, cells: tuple[int, int], modes: int = 1) -> None:
        super().__init__()
        count = cells[0] * cells[1]
        self.register_buffer("mean", torch.zeros(modes, count, features))
        # One matrix per mode and cell: 42 MB for 232 features and 14 x 14 cells.
        self.register_buffer("whitening", torch.eye(features).repeat(modes, count, 1, 1))
        self.mixing = nn.Conv2d(features, features, 1, bias=False)
        nn.init.eye_(self.mixing.weight[:, :, 0, 0])
        self.weights = nn.Parameter(torch.full((features,), _UNIT_WEIGHT))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(_START_OFFSET))
        self.cells = cells
        self.modes = modes

    def forward(self, features_bduv: Tensor) -> Tensor:
        """The output before the anomaly map."""
        cells_nbd = features_bduv.flatten(2).permute(2, 0, 1)
        energies = [self._energy(cells_nbd, mode) for mode in range(self.modes)]
        energy = torch.stack(energies).amin(0)
        output: Tensor = self.scale * torch.sqrt(energy + _SMALLEST_ENERGY) + self.offset
        return output

    def _energy(self, cells_nbd: Tensor, mode: int) -> Tensor:
        whitened = torch.bmm(cells_nbd - self.mean[mode][:, None], self.whitening[mode])
        mixed = self.mixing(whitened.permute(1, 2, 0).unflatten(2, self.cells))
        energy: Tensor = (F.softplus(self.weights)[:, None, None] * mixed.square()).mean(1, keepdim=True)
        return energy

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Tensor]], *, seed: int = 0) -> None:
        """Estimate the statistics from nominal features; `batches()` yields them (B,D,U,V), the same at each call.

        Reads them twice: modes are k-means clusters of the images' mean features, then every mode's moments are
        accumulated. Raises ConfigError for fewer than two images in a mode.
        """
        image_means, cell_sums = [], torch.zeros_like(self.mean[0])
        for batch in batches():
            image_means.append(batch.mean((2, 3)))
            cell_sums += batch.sum(0).flatten(1).T
        images_nd = torch.cat(image_means)
        modes = torch.from_numpy(_modes(images_nd, self.modes, seed)).to(images_nd.device)
        counts = torch.bincount(modes, minlength=self.modes)
        if counts.min() < 2:
            raise ConfigError(
                f"{len(images_nd)} nominal images do not make {self.modes} modes of two images or more; use fewer modes"
            )
        centre = cell_sums / len(images_nd)  # taken off first: large means drown the second moments in float32
        total, square = torch.zeros_like(self.mean), torch.zeros_like(self.whitening)
        start = 0
        for batch in batches():
            cells_nbd = batch.flatten(2).permute(2, 0, 1) - centre[:, None]
            for mode in range(self.modes):
                members = cells_nbd[:, modes[start : start + len(batch)] == mode]
                total[mode] += members.sum(1)
                square[mode] += members.transpose(1, 2) @ members
            start += len(batch)
        for mode, count in enumerate(counts.tolist()):
            mean = total[mode] / count
            covariance = (square[mode] - count * mean[:, :, None] * mean[:, None, :]) / (count - 1)
            self.mean[mode] = mean + centre
            self.whitening[mode] = _inverse_root(covariance)


def _modes(images_nd: Tensor, count: int, seed: int) -> npt.NDArray[np.int64]:
    if count == 1 or len(images_nd) < count:
        return np.zeros(len(images_nd), np.int64)
    from sklearn.cluster import KMeans  # half a second to import, and most networks do without

    scaled = (images_nd - images_nd.mean(0)) / images_nd.std(0).clamp_min(1e-6)
    labels = KMeans(count, n_init=5, random_state=seed).fit(scaled.cpu().numpy()).labels_
    return np.asarray(labels, np.int64)


def _inverse_root(covariances: Tensor) -> Tensor:
    """C^(-1/2) of regularised covariances (N,D,D)."""
    diagonal = covariances.diagonal(dim1=1, dim2=2)
    ridge = REGULARIZATION * diagonal.mean().clamp_min(1e-12)
    values, vectors = torch.linalg.eigh(covariances + ridge * torch.eye(covariances.shape[-1]).to(covariances))
    root: Tensor = (vectors * values.clamp_min(ridge).rsqrt()[:, None]) @ vectors.transpose(1, 2)
    return root
