"""How many product variants nominal images show: as many modes as the whitening of their features needs.

Cells of a solar panel are mono- or polycrystalline: one Gaussian over both finds nothing strange in a mixture of them.
The number is that of the k-means clusters of the images' mean features with the largest silhouette (Rousseeuw, 1987),
if it is one that counts as structure (0.25, Kaufman and Rousseeuw, 1990); else there is one variant.
"""

import numpy as np
import numpy.typing as npt

MOST = 3
# Silhouettes below it are no substantial structure.
STRUCTURE = 0.25
# A variant of fewer images would have too few for statistics of its own.
SMALLEST_SHARE, SMALLEST = 0.1, 50


def count(features_nd: npt.NDArray[np.float32], *, seed: int) -> int:
    """1 to `MOST`, for the mean features (N,D) of N nominal images."""
    from sklearn.cluster import KMeans  # half a second to import
    from sklearn.metrics import silhouette_score

    spread = features_nd.std(0)
    scaled = (features_nd - features_nd.mean(0)) / np.maximum(spread, 1e-6)
    best, found = STRUCTURE, 1
    for number in range(2, MOST + 1):
        if len(scaled) < number * SMALLEST:
            break
        labels = KMeans(number, n_init=5, random_state=seed).fit(scaled).labels_
        sizes = np.bincount(labels, minlength=number)  # of features that do not vary there is one cluster, not two
        if sizes.min() < max(SMALLEST, SMALLEST_SHARE * len(scaled)):
            continue
        silhouette = float(silhouette_score(scaled, labels))
        if silhouette > best:
            best, found = silhouette, number
    return found
