"""An FCDD head on whitened features: the network knows what is nominal at each position before it is trained.

The features of every cell are whitened with the mean and covariance that nominal images have there (the statistics
of PaDiM, Defard et al. 2021), fixed; the head then learns by the FCDD objective which directions matter:

    z = W (P f - mu)        e = mean_d softplus(w_d) (V z)_d^2          phi = a sqrt(e + 1e-6) + b

V starts as the identity, so that phi starts as the scaled Mahalanobis distance. With several modes (product variants
seen by one camera) each has statistics of its own and the nearest one counts: e = min over modes.

A matrix W for each of many cells takes much memory, and many images to estimate. Two things make it less: P keeps the
first principal components of all features or of those of each stage of the trunk (it is left out by default), and
neighbouring cells share one covariance, each about its own mean. For parts that lie anywhere, and for endless material,
all cells share the mean, too, but those at the borders: convolutions see zeros beyond the image, and cells there look
like no others.

Shapes: B batch, K modes, F features, D components of them (F without P), U x V cells, G groups of cells that share a
covariance, M their members.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdd.errors import ConfigError
from fcdd.windows import Window, cut, cut_out

# Share of the features' mean variance added to every covariance: few images do not determine all directions.
REGULARIZATION = 0.01
_SMALLEST_ENERGY, _SMALLEST_RIDGE = 1e-6, 1e-12
_UNIT_WEIGHT = 0.5413  # softplus of it is 1
_START_OFFSET = -1.0  # nominal cells have e of about 1
# Bytes of covariances from which on neighbouring cells share them: of all modes together, and where each stage has
# components of its own of each mode, since fine cells that share find much less.
LARGEST, LARGEST_OF_STAGES = 45_000_000, 48_000_000
# The covariance of the few cells at a border is blended with that of the others, which counts as so many values of each
# component.
_PRIOR_VALUES = 4


class Statistics(NamedTuple):
    """Which statistics a head has: of so many modes, of so many principal components.

    The components are those of all features together (one number), of the features of each stage (a number for each),
    or the features as they are (None). `anywhere`: one mean and covariance for all cells, else each position has its
    own. Then the `borders` rows and columns at each side of the map have their own, by how near to which side they are;
    None, of bundles of before, is as 0.
    """

    modes: int = 1
    components: tuple[int, ...] | None = None
    anywhere: bool = False
    borders: int | None = None

    @property
    def is_by_stage(self) -> bool:
        """Whether each stage has components of its own."""
        return self.components is not None and len(self.components) > 1


class _Part(NamedTuple):
    """Features that are taken together, and how many components of them are kept."""

    features: slice
    components: slice


def _parts(stages: Sequence[int], components: Sequence[int]) -> list[_Part]:
    """None without components. Raises ConfigError for more components than features, or of other stages."""
    together = list(stages) if len(components) > 1 else [sum(stages)]
    if len(components) > 1 and len(components) != len(stages):
        named = "+".join(map(str, components))
        raise ConfigError(f"{named} components are those of {len(components)} stages, and there are {len(stages)}")
    parts, feature, component = list[_Part](), 0, 0
    for available, kept in zip(together, components, strict=False):
        if kept > available:
            raise ConfigError(f"there are no {kept} principal components of {available} features")
        parts.append(_Part(slice(feature, feature + available), slice(component, component + kept)))
        feature, component = feature + available, component + kept
    return parts


class Block(NamedTuple):
    """Cells that have the same statistics anywhere: rows and columns of a map, and which group they are."""

    rows: slice
    columns: slice
    group: int


def _runs(first: int, count: int, total: int, borders: int) -> list[tuple[slice, int]]:
    """Of `count` cells from `first` on of a side of `total` cells: which are of one kind, and of which.

    Kinds count from 0 at the one end to twice `borders` at the other; all between are of one.
    """
    kinds = [min(at, borders) + max(0, at - (total - 1 - borders)) for at in range(first, first + count)]
    runs = [(kind, len(list(same))) for kind, same in itertools.groupby(kinds)]
    ends = list(itertools.accumulate(length for _, length in runs))
    return [(slice(end - length, end), kind) for (kind, length), end in zip(runs, ends, strict=True)]


def matrix_bytes(cells: tuple[int, int], size: int) -> int:
    """Memory of a matrix of `size` x `size` for every cell."""
    return math.prod(cells) * size**2 * torch.float32.itemsize


class WhitenedHead(nn.Module):
    """Features (B,F,U,V) to the network's output (B,1,U,V); call `fit` with nominal features before training."""

    mean: Tensor
    whitening: Tensor
    projection: Tensor | None

    def __init__(
        self,
        stages: Sequence[int],
        cells: tuple[int, int],
        statistics: Statistics = Statistics(),  # noqa: B008
    ) -> None:
        """For features of `stages`, so many each.

        Raises ConfigError for components that they do not have, or borders that leave nothing between them.
        """
        super().__init__()
        if statistics.borders and min(cells) <= 2 * statistics.borders:
            raise ConfigError(f"a map of {cells[0]}x{cells[1]} cells has no borders of {statistics.borders} cells")
        features = sum(stages)
        self._kept = _parts(stages, statistics.components or ())
        size = sum(statistics.components) if statistics.components else features
        self.features, self.cells = features, cells
        self.modes, self.anywhere, self.borders = statistics.modes, statistics.anywhere, statistics.borders or 0
        # Cells of a square of this side share a covariance.
        self.side = 1
        largest = LARGEST_OF_STAGES if statistics.is_by_stage else LARGEST // self.modes
        if self.anywhere:
            groups = means = (2 * self.borders + 1) ** 2
        else:
            while statistics.components and self.side < max(cells) and matrix_bytes(self._grid(), size) > largest:
                self.side += 1
            groups, means = math.prod(self._grid()), math.prod(cells)
        self.register_buffer("projection", torch.eye(features, size) if statistics.components else None)
        self.register_buffer("mean", torch.zeros(self.modes, means, size))
        # One matrix per mode and group: 42 MB for 232 features and 14 x 14 cells.
        self.register_buffer("whitening", torch.eye(size).repeat(self.modes, groups, 1, 1))
        self.mixing = nn.Conv2d(size, size, 1, bias=False)
        nn.init.eye_(self.mixing.weight[:, :, 0, 0])
        self.weights = nn.Parameter(torch.full((size,), _UNIT_WEIGHT))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(_START_OFFSET))

    def _grid(self) -> tuple[int, int]:
        """Rows and columns of groups."""
        return math.ceil(self.cells[0] / self.side), math.ceil(self.cells[1] / self.side)

    def forward(self, features_bfuv: Tensor) -> Tensor:
        """The output before the anomaly map."""
        return self.of_components(self.project(features_bfuv))

    def of_components(self, components_bduv: Tensor) -> Tensor:
        """The output (B,1,U,V) for the components of whole images."""
        return self._nearest([self.whiten(components_bduv, mode) for mode in range(self.modes)])

    def of_windows(self, features_bfuv: Tensor, windows: Sequence[Window]) -> Tensor:
        """The output (B,1,rows,columns) of windows (B) of one size, from features of their surroundings."""
        components = cut_out(self.project(features_bfuv), windows)
        return self._nearest([self._whiten_windows(components, mode, windows) for mode in range(self.modes)])

    def _nearest(self, whitened: Sequence[Tensor]) -> Tensor:
        return self.output(torch.stack([self.energy(each) for each in whitened]).amin(0))

    def project(self, features_bfuv: Tensor) -> Tensor:
        """The components (B,D,U,V) that the statistics are of."""
        return features_bfuv if self.projection is None else F.conv2d(features_bfuv, self.projection.T[..., None, None])

    def whiten(self, components_bduv: Tensor, mode: int) -> Tensor:
        """Components of whole images, (B,D,U,V), by the statistics of a mode."""
        if self.anywhere:
            return self._whiten_blocks(components_bduv, mode, self.blocks())
        if self.side > 1:
            gaps = components_bduv - self._mean_map(mode)
            whitened: Tensor = self.spread(
                torch.bmm(self.grouped(gaps), self.whitening[mode]), gaps.shape[2], gaps.shape[3]
            )
            return whitened
        # In one piece: else the product copies the matrix of each cell by itself, which takes longer than all of it.
        gaps = (components_bduv.flatten(2).permute(2, 0, 1) - self.mean[mode][:, None]).contiguous()
        each: Tensor = torch.bmm(gaps, self.whitening[mode]).permute(1, 2, 0).unflatten(2, self.cells)
        return each

    def _whiten_windows(self, components_bduv: Tensor, mode: int, windows: Sequence[Window]) -> Tensor:
        if self.anywhere:
            each = [
                self._whiten_blocks(part[None], mode, self.blocks(at.origin, at.cells))
                for part, at in zip(components_bduv, windows, strict=True)
            ]
            return torch.cat(each)
        means, columns = self._mean_map(mode)[0], self._grid()[1]
        rows, across = (torch.arange(cells) // self.side for cells in self.cells)
        groups = rows[:, None] * columns + across
        parts = []
        for part, at in zip(components_bduv, windows, strict=True):
            gaps = (part - cut(means, at.origin, at.cells)).flatten(1).T[:, None]
            matrices = self.whitening[mode][cut(groups[None], at.origin, at.cells).flatten()]
            parts.append(torch.bmm(gaps, matrices)[:, 0].T.unflatten(1, at.cells))
        return torch.stack(parts)

    def _whiten_blocks(self, components_bduv: Tensor, mode: int, blocks: Sequence[Block]) -> Tensor:
        """By the statistics of each block."""
        rows = []
        for _, row in itertools.groupby(blocks, lambda block: block.rows.start):
            parts = []
            for block in row:
                gaps = components_bduv[:, :, block.rows, block.columns] - self.mean[mode, block.group][:, None, None]
                parts.append(F.conv2d(gaps, self.whitening[mode, block.group].T[..., None, None]))
            rows.append(torch.cat(parts, 3))
        return torch.cat(rows, 2)

    def blocks(self, origin: tuple[int, int] = (0, 0), cells: tuple[int, int] | None = None) -> list[Block]:
        """Of statistics for anywhere: which apply to so many `cells` from `origin` on, row by row; default: to all.

        Of the whole map block g is of group g.
        """
        if not self.borders:
            return [Block(slice(None), slice(None), 0)]
        kinds = 2 * self.borders + 1
        rows, columns = (
            _runs(first, count, total, self.borders)
            for first, count, total in zip(origin, cells or self.cells, self.cells, strict=True)
        )
        return [Block(row, column, i * kinds + j) for row, i in rows for column, j in columns]

    def _mean_map(self, mode: int) -> Tensor:
        """(1,D,U,V)"""
        means: Tensor = self.mean[mode].T.unflatten(1, self.cells)
        return means[None]

    def grouped(self, values_bduv: Tensor) -> Tensor:
        """Values of the cells of squares that share a covariance, (G,B*M,D); zeros where these reach beyond the map."""
        size = values_bduv.shape[1]
        (rows, columns), side = self._grid(), self.side
        missing = (0, columns * side - self.cells[1], 0, rows * side - self.cells[0])
        squares = F.pad(values_bduv, missing).reshape(-1, size, rows, side, columns, side)
        return squares.permute(2, 4, 0, 3, 5, 1).reshape(rows * columns, -1, size)

    def spread(self, values_gmd: Tensor, height: int, width: int) -> Tensor:
        """What `grouped` put together, (B,D,U,V), of so many cells."""
        size = values_gmd.shape[2]
        (rows, columns), side = self._grid(), self.side
        squares = values_gmd.reshape(rows, columns, -1, side, side, size).permute(2, 5, 0, 3, 1, 4)
        whole: Tensor = squares.reshape(-1, size, rows * side, columns * side)
        return whole[:, :, :height, :width]

    def output(self, energy_b1uv: Tensor) -> Tensor:
        """The output (B,1,U,V) for the energies e of the nearest mode."""
        output: Tensor = self.scale * torch.sqrt(energy_b1uv + _SMALLEST_ENERGY) + self.offset
        return output

    def energy(self, whitened_bduv: Tensor) -> Tensor:
        """Energies e (B,1,U,V) of components that were whitened."""
        mixed = self.mixing(whitened_bduv)
        energy: Tensor = (F.softplus(self.weights)[:, None, None] * mixed.square()).mean(1, keepdim=True)
        return energy

    @torch.no_grad()
    def fit_projection(self, batches: Iterable[Tensor], *, share: "Share | None" = None) -> None:
        """Find the principal components of nominal features (B,F,U,V) over all cells; nothing where none are kept.

        With a `share` these are one process's features of many.
        """
        if self.projection is None:
            return
        share, features = share or Share(), len(self.projection)
        sums = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=self.projection.device)
        for batch in batches:
            cells_nf = batch.permute(0, 2, 3, 1).reshape(-1, features)
            sums[1:, 1:] += cells_nf.T @ cells_nf
            sums[0, 1:] += cells_nf.sum(0)
            sums[0, 0] += len(cells_nf)
        share.add(sums)
        mean = sums[0, 1:] / sums[0, 0]
        covariance = sums[1:, 1:] / sums[0, 0] - torch.outer(mean, mean)
        self.projection.zero_()
        if share.rank == 0:  # others may find the same directions with other signs
            for part in self._kept:
                _, vectors = torch.linalg.eigh(covariance[part.features, part.features].cpu())
                kept = part.components.stop - part.components.start
                self.projection[part.features, part.components] = vectors.flip(1)[:, :kept].float()
        share.add(self.projection)

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterable[Tensor]], *, seed: int = 0, share: "Share | None" = None) -> None:
        """Estimate the statistics from nominal features; `batches()` yields them (B,F,U,V), the same at each call.

        Modes are k-means clusters of the images' mean features, for which several of them read the features once
        more. With a `share` these are one process's features of many. Components must have been found before. Raises
        ConfigError for fewer than two images in a mode.
        """
        share = share or Share()

        def projected() -> Iterator[Tensor]:
            return (self.project(batch) for batch in batches())

        modes = self.assign(batches, seed, share)
        total, square = torch.zeros_like(self.mean), torch.zeros_like(self.whitening)
        counts = torch.zeros(self.modes, dtype=torch.int64, device=self.mean.device)
        # Taken off first, and of all processes the same: large means would drown the second moments in float32.
        centre, start = self.mean.new_zeros(1, self.mean.shape[2], *((1, 1) if self.anywhere else self.cells)), 0
        mine = projected()
        if (first := next(mine, None)) is not None and share.rank == 0:
            centre += first.mean((0, 2, 3) if self.anywhere else 0, keepdim=True)
        share.add(centre)
        for batch in itertools.chain([] if first is None else [first], mine):
            gaps = batch - centre
            labels = torch.zeros(len(batch), dtype=torch.int64) if modes is None else modes[start : start + len(batch)]
            for mode in range(self.modes):
                self._add(gaps[labels == mode], total[mode], square[mode])
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
            # Of how many values each mean is.
            values = self._cells_of_groups()[:, None] * count if self.anywhere else count
            mean = total[mode] / values
            self.mean[mode] = mean + centre[0].flatten(1).T
            groups = range(share.rank, len(square[mode]), share.size)
            if self.anywhere:
                scatter = square[mode] - values[:, :, None] * mean[:, :, None] * mean[:, None, :]
                covariances = blended(scatter, values[:, 0] - 1)
                ridge = ridge_of(covariances[len(covariances) // 2].diagonal())
                _fill_inverse_roots(self.whitening[mode], groups, covariances.__getitem__, ridge)
                continue
            means_gmd = self.grouped(mean.T.unflatten(1, self.cells)[None])
            freedom_g = (count - 1) * self.grouped(self.mean.new_ones(1, 1, *self.cells))[:, :, 0].sum(1)
            variances = square[mode].diagonal(dim1=1, dim2=2) - count * means_gmd.square().sum(1)
            ridge = ridge_of(variances / freedom_g[:, None])
            of_group = functools.partial(_covariance, square[mode], means_gmd, count, freedom_g)
            _fill_inverse_roots(self.whitening[mode], groups, of_group, ridge)
        share.add(self.whitening)

    def _add(self, values_nduv: Tensor, total: Tensor, square: Tensor) -> None:
        """Add values of a mode to the sums of its means and the sums of squares of its groups, in place."""
        if self.anywhere:
            for rows, columns, group in self.blocks():
                members = values_nduv[:, :, rows, columns].permute(0, 2, 3, 1).flatten(0, 2)
                total[group] += members.sum(0)
                square[group] += members.T @ members
            return
        grouped = self.grouped(values_nduv)
        total += values_nduv.sum(0).flatten(1).T
        square += grouped.transpose(1, 2) @ grouped

    def _cells_of_groups(self) -> Tensor:
        """How many cells are of each group (G,), of statistics for anywhere."""
        numbers = torch.ones(self.cells, dtype=torch.int64, device=self.mean.device)
        return torch.stack([numbers[rows, columns].sum() for rows, columns, _ in self.blocks()])

    def assign(self, batches: Callable[[], Iterable[Tensor]], seed: int, share: "Share | None" = None) -> Tensor | None:
        """The mode of every image, (N,); None if there is one only. `batches()` yields features (B,F,U,V)."""
        if self.modes == 1:
            return None
        from sklearn.cluster import KMeans  # half a second to import, and most networks do without

        own = [batch.mean((2, 3)) for batch in batches()]
        images_nf = torch.cat(own) if own else self.mean.new_empty(0, self.features)
        if share is not None and share.positions is not None:
            together = self.mean.new_zeros(share.num_images, self.features)
            together[share.positions.to(together.device)] = images_nf
            share.add(together)
            images_nf = together
        if len(images_nf) < self.modes:
            labels = torch.zeros(len(images_nf), dtype=torch.int64)
        else:
            scaled = (images_nf - images_nf.mean(0)) / images_nf.std(0).clamp_min(1e-6)
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


def blended(scatter_gdd: Tensor, freedom_g: Tensor) -> Tensor:
    """Covariances (G,D,D) for anywhere, by scatters about the groups' means and their degrees of freedom (G,).

    Few cells at a border do not determine one: it is blended with that of the cells between the borders, of its size.
    """
    own = scatter_gdd / freedom_g.clamp_min(1)[:, None, None]
    usual = own[len(own) // 2]
    if len(own) == 1:
        return own
    sizes = own.diagonal(dim1=1, dim2=2).mean(1) / usual.diagonal().mean().clamp_min(_SMALLEST_RIDGE)
    prior = _PRIOR_VALUES * len(usual)
    shares = (freedom_g / (freedom_g + prior))[:, None, None]
    mixed: Tensor = shares * own + (1 - shares) * sizes[:, None, None] * usual
    mixed[len(own) // 2] = usual
    return mixed


def ridge_of(variances: Tensor) -> Tensor:
    """What is added to every variance of a covariance, from the variances (G,D) of a mode."""
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
    roots: Tensor, groups: Iterable[int], covariance: Callable[[int], Tensor], ridge: Tensor
) -> None:
    """Fill some of `roots` (G,D,D) from the covariance (D,D) of each group.

    Group by group: all at once would take several times the memory of the result. On CPUs: a GPU decomposes one small
    matrix after the other.
    """

    def fill(group: int) -> None:
        roots[group] = inverse_root(covariance(group).cpu(), ridge.cpu())

    with threads_of_one() as pool:
        list(pool.map(fill, groups))


def _covariance(square: Tensor, means_gmd: Tensor, count: int, freedom_g: Tensor, group: int) -> Tensor:
    """Of a group (D,D), from its sum of squares about means of `count` values."""
    means = means_gmd[group]
    covariance: Tensor = (square[group] - count * means.T @ means) / freedom_g[group]
    return covariance


def inverse_root(covariance: Tensor, ridge: Tensor) -> Tensor:
    """(C + ridge I)^(-1/2), (D,D)."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.T
    return root
