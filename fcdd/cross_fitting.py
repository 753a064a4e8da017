"""Scores of training images by statistics that did not see them, for sets too small to hold images out.

A network on whitened features knows nominal images by the mean and covariance of each cell (`fcdd.whitening`). The
images are divided into folds; those of a fold are scored with the statistics of the others, by the head that was
trained on all (cross-conformal prediction, Vovk 2015; jackknife+ and CV+, Barber et al. 2021). So every image
calibrates *and* trains.

What is promised: with scores of held-out images the false-alarm rate is at most alpha whatever the data are. Here it
rests on two things that are nearly so: statistics of all images judge a new image as those of most images do (they
know a little more, so that its score is rather lower, and the rate with it), and a head of few epochs does not know
single images. benchmarks/cross_fitting.py measures the rate over many splits (docs/alarms.md has the figures).

Shapes: N images of H x W pixels and C channels, D features of U x V cells.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fcdd import objective
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.whitening import WhitenedHead

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]
Watch = Callable[[Iterable[int], int], Iterable[int]]
# More folds are closer to the statistics of all images, and each costs the whitening of every cell once.
FOLDS = 5
_BATCH = 16


def folds(images_nhwc: Pixels, number: int = FOLDS) -> npt.NDArray[np.int64]:
    """The fold of every image, (N,), by its pixels: the same picture under two names is in one fold."""
    digests = [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in images_nhwc]
    # By rank, and not by remainder: folds of small sets would differ in size.
    rank = {digest: index for index, digest in enumerate(sorted(set(digests)))}
    return np.array([rank[digest] % number for digest in digests], np.int64)


def feature_bytes(network: FCDDNetwork, num_images: int) -> int:
    """Memory that `cross_fit` takes for the features of so many images. `network` has a whitened head."""
    head = network.head
    assert isinstance(head, WhitenedHead), "a whitened network"
    return num_images * head.mean[0].numel() * head.mean.element_size()


def cross_fit(
    network: FCDDNetwork,
    scaling: Normalization,
    nominal_nhwc: Pixels,
    probes_nhwc: Pixels,
    sources: npt.NDArray[np.int64],
    *,
    seed: int,
    watch: Watch = lambda steps, _: steps,
) -> tuple[Maps, Maps]:
    """Maps of nominal images (N,U,V) and of probes (M,U,V), each by statistics that did not see its image.

    `network` is trained and has a whitened head; probe m was made from nominal image `sources[m]`, (M,). `watch` is
    given what is worked through step by step, and how many steps it has. Raises ConfigError for too few images, as
    `WhitenedHead.fit`.
    """
    head = network.eval().head
    assert isinstance(head, WhitenedHead), "a whitened network"
    belongs = folds(nominal_nhwc)
    features, probed = (_features(network, scaling, each, watch) for each in (nominal_nhwc, probes_nhwc))
    maps, probe_maps = (np.empty((len(each), *head.cells), np.float32) for each in (nominal_nhwc, probes_nhwc))
    for fold in watch(range(FOLDS), FOLDS):
        inside = belongs == fold
        of_fold = inside[sources]
        fitted = copy.deepcopy(head)
        others = np.flatnonzero(~inside)
        parts = np.split(others, range(_BATCH, len(others), _BATCH))
        fitted.fit(lambda parts=parts: (features[part] for part in parts), seed=seed)  # type: ignore[misc]
        maps[inside], probe_maps[of_fold] = _maps(fitted, features[inside]), _maps(fitted, probed[of_fold])
    return maps, probe_maps


@torch.inference_mode()
def _features(network: FCDDNetwork, scaling: Normalization, images_nhwc: Pixels, watch: Watch) -> Tensor:
    """(N,D,U,V), in memory, on the network's device."""
    device = next(network.parameters()).device
    starts = range(0, len(images_nhwc), _BATCH)
    if not starts:
        assert isinstance(network.head, WhitenedHead), "a whitened network"
        return torch.empty(0, network.head.mean.shape[2], *network.head.cells)
    return torch.cat(
        [
            network.features(scaling(torch.from_numpy(images_nhwc[start : start + _BATCH]).to(device)))
            for start in watch(starts, len(starts))
        ]
    )


@torch.inference_mode()
def _maps(head: WhitenedHead, features_nduv: Tensor) -> Maps:
    parts = [objective.anomaly_map(head(part))[:, 0].cpu().numpy() for part in features_nduv.split(_BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, *head.cells), np.float32)
