"""Scores of training images by statistics that did not see them, for sets too small to hold images out.

A network on whitened features knows nominal images by the mean and covariance of each cell (`fcdd.whitening`). Here
every image is scored by the statistics of all others, and by the head that was trained on all: the jackknife of
conformal prediction (Barber et al., 2021). So every image calibrates *and* trains.

What is promised: with held-out images the false-alarm rate is at most alpha whatever the data are. Here nothing is
certain, but two things are nearly so: statistics of N images judge a new image as those of N - 1 do, and a head of few
epochs does not know single images. benchmarks/leave_one_out.py measures the rate over many splits.

No statistics are fitted anew where every cell has its own. Without m equal pictures, whose gap to the mean is
g = f - mu, the scatter S of n images is S - c g g' with c = m n / (n - m), and the mean is mu - g m / (n - m).
Whitening by what is left needs the inverse root of a matrix changed by rank one, an integral of resolvents (Higham,
Functions of Matrices, 2008, section 6.2) that Sherman and Morrison's formula reduces to the eigenvectors of S:

    (S + r - c g g')^(-1/2) h = (S + r)^(-1/2) h + 1/pi int_0^inf t^(-1/2) A g c (g' A h) / (1 - c g' A g) dt
    A = (S + r + t)^(-1)

The trapezoidal rule in log t converges geometrically. A test compares with statistics that are fitted anew.

Shapes: N images of H x W pixels and C channels, M probes (of a group: members), B images of one cell, D components of
U x V cells, G groups of them, T nodes.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcdd import objective
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.probes import Pictures
from fcdd.sizing import images_at_once
from fcdd.training import Watch
from fcdd.whitening import Block, WhitenedHead, blended, inverse_root, ridge_of, threads_of_one

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
_BATCH = 32
# Nodes of the integral in log t: their distance, and how far they reach beyond the eigenvalues.
_STEP, _BELOW, _ABOVE = 1.25, 9.0, 8.0


def multiplicities(images_nhwc: Pixels) -> npt.NDArray[np.int64]:
    """How many images, itself included, show the same picture, (N,): they are left out together."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images_nhwc]
    counts = Counter(digests)
    return np.array([counts[digest] for digest in digests], np.int64)


def feature_bytes(network: FCDDNetwork, num_images: int) -> int:
    """Memory that `maps` takes for the features of so many images. `network` has a whitened head."""
    mean = _head(network).mean
    return num_images * math.prod(_head(network).cells) * mean.shape[2] * mean.element_size()


def maps(
    network: FCDDNetwork,
    scaling: Normalization,
    nominal_nhwc: Pixels,
    probes_nhwc: Pixels | Pictures,
    sources: npt.NDArray[np.int64],
    *,
    seed: int,
    watch: Watch = lambda steps, _: steps,
    known: Mapping[int, Tensor] = MappingProxyType({}),
) -> tuple[Maps, Maps]:
    """Maps of nominal images (N,U,V) and of probes (M,U,V), each by statistics that did not see its image.

    `network` was fitted to these nominal images with this `seed`, trained, and has a whitened head; probe m was made
    from nominal image `sources[m]`, (M,). `watch` is given what is worked through step by step, and the number of
    steps. `known` are components (D,U,V) of nominal images that need not be computed, by their positions.
    """
    head = _head(network.eval())
    if head.modes == 1 and len(known) == len(nominal_nhwc):  # several are told apart by all features
        features, means = torch.stack([known[at].cpu() for at in range(len(known))]), torch.empty(0)
    else:
        features, means = _components(network, scaling, nominal_nhwc, watch)
    assigned = head.assign(lambda: [means], seed)
    labels = np.zeros(len(features), np.int64) if assigned is None else assigned.numpy()
    many = multiplicities(nominal_nhwc)
    if head.anywhere:
        return _maps_anywhere(network, scaling, features, probes_nhwc, sources, labels, many, watch)
    probed, _ = _components(network, scaling, probes_nhwc, watch)
    left = torch.from_numpy(np.concatenate([np.arange(len(features)), sources]))
    shown = torch.cat([features, probed])
    energies = [
        head.energy(_whitened(head, mode, features, np.flatnonzero(labels == mode), shown, left, many, watch))
        for mode in range(head.modes)
    ]
    with torch.inference_mode():
        both = objective.anomaly_map(head.output(torch.stack(energies).amin(0)))[:, 0].cpu().numpy()
    return both[: len(features)], both[len(features) :]


def _head(network: FCDDNetwork) -> WhitenedHead:
    assert isinstance(network.head, WhitenedHead), "a whitened network"
    return network.head


@torch.inference_mode()
def _components(
    network: FCDDNetwork, scaling: Normalization, images_nhwc: Pixels | Pictures, watch: Watch
) -> tuple[Tensor, Tensor]:
    """Components (N,D,U,V) of images, in memory, and their mean features (N,F,1,1)."""
    device, head = next(network.parameters()).device, _head(network)
    batch = images_at_once((images_nhwc.shape[1], images_nhwc.shape[2]), _BATCH)
    starts = range(0, len(images_nhwc), batch)
    components, means = [torch.empty(0, head.mean.shape[2], *head.cells)], [torch.empty(0, head.features, 1, 1)]
    for at in watch(starts, len(starts)):
        features = network.compute_features(scaling(torch.from_numpy(images_nhwc[at : at + batch]).to(device)))
        components.append(head.project(features).cpu())
        means.append(features.mean((2, 3), keepdim=True).cpu())
    return torch.cat(components), torch.cat(means)


@torch.no_grad()
def _whitened(
    head: WhitenedHead,
    mode: int,
    features_nduv: Tensor,
    members: npt.NDArray[np.int64],
    shown_bduv: Tensor,
    left: Tensor,
    many: npt.NDArray[np.int64],
    watch: Watch,
) -> Tensor:
    """Whitened features (B,D,U,V) of what is shown, by one mode without the image `left` (B,) names of each.

    Images of other modes are not in these statistics: nothing is left out for them.
    """
    is_member = torch.from_numpy(np.isin(left.numpy(), members))
    multiplicity = torch.from_numpy(many)[left].double() * is_member
    fill = _by_groups if head.side > 1 else _by_cells
    result, steps = fill(head, _Left(features_nduv, members, shown_bduv, left, multiplicity))
    with threads_of_one() as pool:
        done = pool.map(lambda step: step(), steps)
        for _ in watch(range(len(steps)), len(steps)):
            next(done)
    whitened = head.spread(result, *head.cells) if head.side > 1 else result.permute(1, 2, 0).unflatten(2, head.cells)
    return whitened.to(head.mean.device)


class _Left(NamedTuple):
    """Features (N,D,U,V) of all images, those `members` that statistics are of, what is shown (B,D,U,V), and which
    image (B,) is left out for it, how many times (B,).
    """

    features: Tensor
    members: npt.NDArray[np.int64]
    shown: Tensor
    left: Tensor
    multiplicity: Tensor


Steps = Sequence[Callable[[], None]]


def _by_cells(_: WhitenedHead, given: _Left) -> tuple[Tensor, Steps]:
    """(cells,B,D), and what fills it: for statistics of every cell, in closed form."""
    features_nduv, members, shown_bduv, left, multiplicity = given
    rows, columns = features_nduv.shape[2:]
    ridge = ridge_of(features_nduv[members].var(0).flatten(1).T.double())
    result = torch.empty(rows * columns, len(shown_bduv), shown_bduv.shape[1])

    def fill(row: int) -> None:
        # A row of cells is brought together at once: each value of one cell alone lies far from the next.
        cells, shown = (each[:, :, row].permute(2, 0, 1).contiguous() for each in (features_nduv, shown_bduv))
        for column in range(columns):
            own = cells[column, members].double()
            mean = own.mean(0)
            result[row * columns + column] = _without(
                own - mean, cells[column, left] - mean, shown[column] - mean, multiplicity, ridge
            )

    return result, [functools.partial(fill, row) for row in range(rows)]


def _by_groups(head: WhitenedHead, given: _Left) -> tuple[Tensor, Steps]:
    """(G,B*M,D), and what fills it: for covariances of many cells, of which an image takes more than one rank.

    Without m equal pictures, whose gaps to the means are the rows of G, the scatter is S - m G'G - v D'D, where D are
    the moves of the means and v is of how many values each still is; one root is taken for each picture.
    """
    features_nduv, members, shown_bduv, left, multiplicity = given
    n = len(members)
    means = features_nduv[members].mean(0, keepdim=True)
    gaps_gnmd = head.grouped(features_nduv - means).unflatten(1, (len(features_nduv), -1))
    shown_gbmd = head.grouped(shown_bduv - means).unflatten(1, (len(shown_bduv), -1))
    sizes = head.grouped(torch.ones(1, 1, *head.cells))[:, :, 0].sum(1)
    squares = gaps_gnmd[:, members].flatten(1, 2)
    freedom = sizes * (n - 1)
    ridge = ridge_of(squares.double().square().sum(1) / freedom.clamp_min(1)[:, None])
    result = torch.empty(shown_gbmd.shape)
    keys = torch.stack([left, multiplicity.long()], 1)
    keys[multiplicity == 0, 0] = -1
    distinct, which = torch.unique(keys, dim=0, return_inverse=True)

    def fill(group: int) -> None:
        own, size = squares[group].double(), float(sizes[group])
        whole = own.T @ own
        for number, (image, many) in enumerate(distinct.tolist()):
            at, scatter, moved = which == number, whole, whole.new_zeros(1, len(whole))
            values = n - many
            if many and values > 0:
                gaps = gaps_gnmd[group, image].double()
                moved = -many / values * gaps
                scatter = whole - many * gaps.T @ gaps - values * moved.T @ moved
            # Nothing is known of how one image alone varies: the ridge remains.
            freedom_left = (values - 1) * size
            covariance = scatter / freedom_left if freedom_left > 0 else torch.zeros_like(scatter)
            root = inverse_root(covariance, ridge)
            result[group, at] = ((shown_gbmd[group, at].double() - moved) @ root).float()

    return result.flatten(1, 2), [functools.partial(fill, group) for group in range(len(squares))]


class _Anywhere(NamedTuple):
    """Sums of the members of a mode whose statistics are for anywhere: whose they are (n,); means (G,D), scatters
    (G,D,D) about them, and numbers of cells (G,) of each group.
    """

    members: npt.NDArray[np.int64]
    blocks: Sequence[Block]
    means: Tensor
    scatters: Tensor
    cells: Tensor
    ridge: Tensor

    @classmethod
    def of(cls, head: WhitenedHead, features_nduv: Tensor, members: npt.NDArray[np.int64], watch: Watch) -> Self:
        blocks, size = head.blocks(), features_nduv.shape[1]
        cells = torch.tensor([len(_cells(features_nduv[0], block)) for block in blocks])
        # About the means of one image: large means would drown the second moments.
        centres = torch.stack([_cells(features_nduv[members[0]], block).double().mean(0) for block in blocks])
        totals, squares = torch.zeros(len(blocks), size).double(), torch.zeros(len(blocks), size, size).double()
        for number in watch(range(len(members)), len(members)):
            sums = _sums(features_nduv[members[number]], blocks, centres)
            totals, squares = totals + sums[0], squares + sums[1]
        gaps = totals / (len(members) * cells)[:, None]
        scatters = squares - (len(members) * cells)[:, None, None] * gaps[:, :, None] * gaps[:, None, :]
        means = centres + gaps
        ridge = ridge_of(blended(scatters, cells * len(members) - 1)[len(blocks) // 2].diagonal())
        return cls(members, blocks, means, scatters, cells, ridge)

    def whiten(self, shown_bduv: Tensor, without_duv: Tensor | None, many: int) -> Tensor:
        """What is shown, by the statistics without `many` times one image, if that is a member."""
        means, scatters, number = self.means, self.scatters, len(self.members)
        if without_duv is not None and number > many:
            sums, squares = _sums(without_duv, self.blocks, means)
            values = self.cells * (number - many)
            moved = -many / values[:, None] * sums
            scatters = scatters - many * squares - values[:, None, None] * moved[:, :, None] * moved[:, None, :]
            means = means + moved
        number -= many if without_duv is not None else 0
        # Nothing is known of how one image alone varies: the ridge remains.
        covariances = blended(scatters, self.cells * number - 1) if number > 0 else torch.zeros_like(scatters)
        with threads_of_one() as pool:
            roots = list(pool.map(lambda covariance: inverse_root(covariance, self.ridge).float(), covariances))
        result = torch.empty_like(shown_bduv)
        for block, root, mean in zip(self.blocks, roots, means.float(), strict=True):
            gaps = shown_bduv[:, :, block.rows, block.columns] - mean[:, None, None]
            result[:, :, block.rows, block.columns] = torch.einsum("bduv,de->beuv", gaps, root)
        return result


def _cells(features_duv: Tensor, block: Block) -> Tensor:
    """Features of the cells of a block, (M,D)."""
    return features_duv[:, block.rows, block.columns].flatten(1).T


def _sums(features_duv: Tensor, blocks: Sequence[Block], means_gd: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (G,D) and sums of squares (G,D,D) of an image's cells of each group, less the groups' means."""
    gaps = [_cells(features_duv, block).double() - mean for block, mean in zip(blocks, means_gd, strict=True)]
    return torch.stack([each.sum(0) for each in gaps]), torch.stack([each.T @ each for each in gaps])


@torch.no_grad()
def _maps_anywhere(
    network: FCDDNetwork,
    scaling: Normalization,
    features_nduv: Tensor,
    probes_nhwc: Pixels | Pictures,
    sources: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    many: npt.NDArray[np.int64],
    watch: Watch,
) -> tuple[Maps, Maps]:
    """As `maps`, picture by picture: maps for anywhere may have very many cells, and features of probes take memory."""
    head = _head(network)
    modes = [_Anywhere.of(head, features_nduv, np.flatnonzero(labels == mode), watch) for mode in range(head.modes)]
    nominal, probed = (np.empty((len(each), *head.cells), np.float32) for each in (features_nduv, sources))
    for image in watch(range(len(features_nduv)), len(features_nduv)):
        own, made = features_nduv[image], np.flatnonzero(sources == image)
        probed_here = (_components(network, scaling, probes_nhwc[at : at + 1], _quietly)[0] for at in made.tolist())
        shown = torch.cat([own[None], *probed_here])
        whitened = [
            mode.whiten(shown, own if number == labels[image] else None, int(many[image]))
            for number, mode in enumerate(modes)
        ]
        energy = torch.stack([head.energy(each.to(head.mean.device)) for each in whitened]).amin(0)
        found = objective.anomaly_map(head.output(energy))[:, 0].cpu().numpy()
        nominal[image], probed[made] = found[0], found[1:]
    return nominal, probed


def _quietly(steps: Iterable[int], _: int) -> Iterable[int]:
    return steps


def _without(own_nd: Tensor, gaps_bd: Tensor, shown_bd: Tensor, many_b: Tensor, ridge: Tensor) -> Tensor:
    """(B,D): `shown` whitened by the images `own` without those `many` at `gaps`; all three are less the mean of `own`.

    Where `many` is 0, by all of them. Scatter and eigenvectors are float64's; the rest is as exact in float32.
    """
    n = len(own_nd)
    values, vectors = torch.linalg.eigh(own_nd.T @ own_nd)
    exact = vectors.float()
    gap_bd, shown_bd = gaps_bd.float() @ exact, shown_bd.float() @ exact
    left = n - many_b
    result = torch.empty_like(shown_bd)
    for count in torch.unique(left).tolist():
        at = left == count
        gap, share = gap_bd[at], (n - count) / count
        moved = shown_bd[at] + share * gap
        root = _changed_root(values.clamp_min(0) + ridge * (count - 1), gap, moved, (n - count) * n / count)
        result[at] = math.sqrt(count - 1) * root
    whitened: Tensor = result @ exact.T
    return whitened


def _changed_root(values_d: Tensor, gap_bd: Tensor, moved_bd: Tensor, weight: float) -> Tensor:
    """(diag(values) - weight gap gap')^(-1/2) moved, (B,D) float32; `values` are float64."""
    result = moved_bd * values_d.rsqrt().float()
    if weight == 0:
        return result
    low, high = math.log(float(values_d[0])) - _BELOW, math.log(float(values_d[-1])) + _ABOVE
    nodes_t = torch.exp(torch.arange(low, high, _STEP, dtype=values_d.dtype))
    weights_t = nodes_t.sqrt() * (_STEP / math.pi)
    # Below the first node the rest of the integrand is constant: a geometric series.
    weights_t[0] += weights_t[0] / math.expm1(_STEP / 2)
    resolvents_dt, weights_t = (1 / (values_d[:, None] + nodes_t)).float(), weights_t.float()
    inner_bt = (gap_bd * moved_bd) @ resolvents_dt
    leverage_bt = gap_bd.square() @ resolvents_dt
    factor_bt = weights_t * weight * inner_bt / (1 - weight * leverage_bt)
    return result + gap_bd * (factor_bt @ resolvents_dt.T)
