"""An FCDD head on whitened features: the network knows what is nominal at each position before it is trained.

The features of every cell are whitened with the mean and covariance that nominal images have there (the statistics
of PaDiM, Defard et al. 2021), fixed; the head then learns by the FCDD objective which directions matter:

    z = W (f - mu)          e = mean_d softplus(w_d) (V z)_d^2          phi = a sqrt(e + 1e-6) + b

V starts as the identity, so that phi starts as the scaled Mahalanobis distance. With several modes (product variants
seen by one camera) each has statistics of its own and the nearest one counts: e = min over modes.

Shapes: B batch, K modes, D features, U x V cells.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd.errors import ConfigError

# Share of the features' mean variance added to every covariance: few images do not determine all directions.
REGULARIZATION = 0.01
_SMALLEST_ENERGY, _SMALLEST_RIDGE = 1e-6, 1e-12
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
        energies = [
            self.energy(torch.bmm(cells_nbd - self.mean[mode][:, None], self.whitening[mode]))
            for mode in range(self.modes)
        ]
        return self.output(torch.stack(energies).amin(0))

    def output(self, energy_b1uv: Tensor) -> Tensor:
        """The output (B,1,U,V) for the energies e of the nearest mode."""
        output: Tensor = self.scale * torch.sqrt(energy_b1uv + _SMALLEST_ENERGY) + self.offset
        return output

    def energy(self, whitened_nbd: Tensor) -> Tensor:
        """Energies e (B,1,U,V) of features that were whitened, (cells,B,D)."""
        mixed = self.mixing(whitened_nbd.permute(1, 2, 0).unflatten(2, self.cells))
        energy: Tensor = (F.softplus(self.weights)[:, None, None] * mixed.square()).mean(1, keepdim=True)
        return energy

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Tensor]], *, seed: int = 0) -> None:
        """Estimate the statistics from nominal features; `batches()` yields them (B,D,U,V), the same at each call.

        Modes are k-means clusters of the images' mean features, for which several of them read the features once more.
        Raises ConfigError for fewer than two images in a mode.
        """
        modes = self.assign(batches, seed)
        total, square = torch.zeros_like(self.mean), torch.zeros_like(self.whitening)
        counts, centre = torch.zeros(self.modes, dtype=torch.int64), None
        for batch in batches():
            if centre is None:  # taken off first: large means would drown the second moments in float32
                centre = batch.mean(0).flatten(1).T
            cells_nbd = batch.flatten(2).permute(2, 0, 1) - centre[:, None]
            start = int(counts.sum())
            labels = torch.zeros(len(batch), dtype=torch.int64) if modes is None else modes[start : start + len(batch)]
            for mode in range(self.modes):
                members = cells_nbd[:, labels == mode]
                total[mode] += members.sum(1)
                square[mode] += members.transpose(1, 2) @ members
            counts += torch.bincount(labels, minlength=self.modes)
        if centre is None or counts.min() < 2:
            raise ConfigError(
                f"{int(counts.sum())} nominal images do not make {self.modes} modes of two images or more; use fewer "
                "modes, or more images"
            )
        for mode, count in enumerate(counts.tolist()):
            mean = total[mode] / count
            self.mean[mode] = mean + centre
            variances = (square[mode].diagonal(dim1=1, dim2=2) - count * mean.square()) / (count - 1)
            ridge = ridge_of(variances)
            _fill_inverse_roots(self.whitening[mode], square[mode], mean, count, ridge)

    def assign(self, batches: Callable[[], Iterable[Tensor]], seed: int) -> Tensor | None:
        """The mode of every image, (N,); None if there is one only. `batches()` yields features (B,D,U,V)."""
        if self.modes == 1:
            return None
        from sklearn.cluster import KMeans  # half a second to import, and most networks do without

        images_nd = torch.cat([batch.mean((2, 3)) for batch in batches()])
        if len(images_nd) < self.modes:
            return torch.zeros(len(images_nd), dtype=torch.int64)
        scaled = (images_nd - images_nd.mean(0)) / images_nd.std(0).clamp_min(1e-6)
        labels = KMeans(self.modes, n_init=5, random_state=seed).fit(scaled.cpu().numpy()).labels_
        return torch.from_numpy(labels.astype(np.int64))


def ridge_of(variances: Tensor) -> Tensor:
    """What is added to every variance of a covariance, from the variances (cells,D) of a mode."""
    return (REGULARIZATION * variances.mean()).clamp_min(_SMALLEST_RIDGE)


@contextmanager
def threads_of_one() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use, each of which computes alone.

    The threads of one decomposition wait for each other, on a busy machine a hundred times as long as they compute.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _fill_inverse_roots(roots: Tensor, square: Tensor, mean: Tensor, count: int, ridge: Tensor) -> None:
    """Fill `roots` (cells,D,D) from sums of squares (cells,D,D), means (cells,D) and the number of images.

    Cell by cell: all at once would take several times the memory of the result.
    """

    def fill(cell: int) -> None:
        gap = mean[cell]
        roots[cell] = _inverse_root((square[cell] - count * torch.outer(gap, gap)) / (count - 1), ridge)

    with threads_of_one() as pool:
        list(pool.map(fill, range(len(mean))))


def _inverse_root(covariance: Tensor, ridge: Tensor) -> Tensor:
    """(C + ridge I)^(-1/2), (D,D)."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.T
    return root
