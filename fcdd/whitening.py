"""An FCDD head on whitened features: the network knows what is nominal at each position before it is trained.

The features of every cell are whitened with the mean and covariance that nominal images have there (the statistics
of PaDiM, Defard et al. 2021), fixed; the head then learns by the FCDD objective which directions matter:

    z = W (f - mu)          e = mean_d softplus(w_d) (V z)_d^2          phi = a sqrt(e + 1e-6) + b

V starts as the identity, so that phi starts as the scaled Mahalanobis distance. With several modes (product variants
seen by one camera) each has statistics of its own and the nearest one counts: e = min over modes.

Shapes: B batch, K modes, D features, U x V cells.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

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
    def fit(self, batches: Callable[[], Iterable[Tensor]], *, seed: int = 0, share: "Share | None" = None) -> None:
        """Estimate the statistics from nominal features; `batches()` yields them (B,D,U,V), the same at each call.

        Modes are k-means clusters of the images' mean features, for which several of them read the features once more.
        With a `share` these are one process's features of many. Raises ConfigError for fewer than two images in a mode.
        """
        share = share or Share()
        modes = self.assign(batches, seed, share)
        total, square = torch.zeros_like(self.mean), torch.zeros_like(self.whitening)
        counts = torch.zeros(self.modes, dtype=torch.int64, device=self.mean.device)
        # Taken off first, and of all processes the same: large means would drown the second moments in float32.
        centre, start = torch.zeros_like(self.mean[0]), 0
        mine = iter(batches())
        if (first := next(mine, None)) is not None and share.rank == 0:
            centre += first.mean(0).flatten(1).T
        share.add(centre)
        for batch in itertools.chain([] if first is None else [first], mine):
            cells_nbd = batch.flatten(2).permute(2, 0, 1) - centre[:, None]
            labels = torch.zeros(len(batch), dtype=torch.int64) if modes is None else modes[start : start + len(batch)]
            for mode in range(self.modes):
                members = cells_nbd[:, labels == mode]
                total[mode] += members.sum(1)
                square[mode] += members.transpose(1, 2) @ members
            counts += torch.bincount(labels, minlength=self.modes).to(counts.device)
            start += len(batch)
        for sums in (total, square, counts):
            share.add(sums)
        if counts.min() < 2:
            raise ConfigError(
                f"{int(counts.sum())} nominal images do not make {self.modes} modes of two images or more; use fewer "
                "modes, or more images"
            )
        self.whitening.zero_()
        for mode, count in enumerate(counts.tolist()):
            mean = total[mode] / count
            self.mean[mode] = mean + centre
            variances = (square[mode].diagonal(dim1=1, dim2=2) - count * mean.square()) / (count - 1)
            cells = range(share.rank, len(mean), share.size)
            _fill_inverse_roots(self.whitening[mode], cells, square[mode], mean, count, ridge_of(variances))
        share.add(self.whitening)

    def assign(self, batches: Callable[[], Iterable[Tensor]], seed: int, share: "Share | None" = None) -> Tensor | None:
        """The mode of every image, (N,); None if there is one only. `batches()` yields features (B,D,U,V)."""
        if self.modes == 1:
            return None
        from sklearn.cluster import KMeans  # half a second to import, and most networks do without

        own = [batch.mean((2, 3)) for batch in batches()]
        images_nd = torch.cat(own) if own else self.mean.new_empty(0, self.mean.shape[2])
        if share is not None and share.positions is not None:
            together = self.mean.new_zeros(share.num_images, self.mean.shape[2])
            together[share.positions.to(together.device)] = images_nd
            share.add(together)
            images_nd = together
        if len(images_nd) < self.modes:
            labels = torch.zeros(len(images_nd), dtype=torch.int64)
        else:
            scaled = (images_nd - images_nd.mean(0)) / images_nd.std(0).clamp_min(1e-6)
            found = KMeans(self.modes, n_init=5, random_state=seed).fit(scaled.cpu().numpy()).labels_
            labels = torch.from_numpy(found.astype(np.int64))
        return labels if share is None or share.positions is None else labels[share.positions]


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of statistics that several fit together: by default all of them, alone.

    `positions` (n,) of its images among all `num_images`; `add` makes a tensor the sum of that of all processes, in
    place.
    """

    rank: int = 0
    size: int = 1
    positions: Tensor | None = None
    num_images: int = 0
    add: Callable[[Tensor], object] = lambda _: None


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


def _fill_inverse_roots(
    roots: Tensor, cells: Iterable[int], square: Tensor, mean: Tensor, count: int, ridge: Tensor
) -> None:
    """Fill some of `roots` (cells,D,D) from sums of squares (cells,D,D), means (cells,D) and the number of images.

    Cell by cell: all at once would take several times the memory of the result. On CPUs: a GPU decomposes one small
    matrix after the other.
    """

    def fill(cell: int) -> None:
        gap = mean[cell]
        covariance = (square[cell] - count * torch.outer(gap, gap)) / (count - 1)
        roots[cell] = _inverse_root(covariance.cpu(), ridge.cpu())

    with threads_of_one() as pool:
        list(pool.map(fill, cells))


def _inverse_root(covariance: Tensor, ridge: Tensor) -> Tensor:
    """(C + ridge I)^(-1/2), (D,D)."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.T
    return root
