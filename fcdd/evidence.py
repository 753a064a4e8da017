"""Where on the image plane a model's evidence lies: the look for spurious features, such as a watermark.

A detector that marks the same corner of every anomalous image has learned the corner (Liznerski et al., 2021, on the
watermarks of Pascal VOC). Evidence of an image is its anomaly map above the nominal mean map, scaled to sum 1, so that
each image counts the same. Shapes: maps (N,U,V), everything else (U,V).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from sklearn.cluster import KMeans

# The border is the outer tenth of the picture on each side, at least one cell.
BORDER = 0.1
# Flagged: a share of the evidence that is so many times the share of the area, and at least so large.
FACTOR, MIN_SHARE = 2.0, 0.25
# Flagged: the hottest cells of so many images within one spot of 3x3 cells, and so many times its share of the area.
SPOT_SHARE, SPOT_FACTOR = 0.3, 5.0
ONE_SPOT = "at one spot"
# Fewer images have their evidence somewhere by chance.
MIN_IMAGES = 20
# An object differs from its background by so many grey levels, where the background holds this share of the border.
_MIN_LEVELS, _BORDER_IS_BACKGROUND = 20.0, 0.8

Map = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Concentration(NamedTuple):
    """How much of the evidence lies in some part of the picture, and how large that part is; shares 0..1."""

    where: str
    share: float
    area: float
    flagged: bool


class Evidence:
    """Evidence of images of one kind, added up."""

    def __init__(self, nominal_map: Map) -> None:
        self._nominal = nominal_map
        self._sum = np.zeros_like(nominal_map)
        self._peaks = np.zeros_like(nominal_map)
        self.num_images = 0

    def add(self, maps: npt.NDArray[np.float32]) -> None:
        """Count images. Those without any evidence have no place for it, and count for nothing."""
        excess = np.maximum(maps.astype(np.float64) - self._nominal, 0)
        totals = excess.sum((1, 2))
        excess, totals = excess[totals > 0], totals[totals > 0]
        self._sum += (excess / totals[:, None, None]).sum(0)
        hottest = excess.reshape(len(excess), -1).argmax(1) if len(excess) else np.empty(0, np.int64)
        self._peaks += np.bincount(hottest, minlength=self._peaks.size).reshape(self._peaks.shape)
        self.num_images += len(excess)

    def share(self) -> Map:
        """Share of the evidence of each cell; sums to 1, all zero without images."""
        return self._sum / max(1, self.num_images)

    def concentrations(self, object_mask: Mask | None) -> list[Concentration]:
        """At the border, outside the object (if one is known), and at the spot where most images are hottest."""
        if not self.num_images:
            return []
        border = border_mask(self._sum.shape)
        found = [self._inside("at the border", border)]
        if object_mask is not None and not object_mask.all():
            found.append(self._inside("outside the object", ~object_mask))
        window = np.ones((3, 3))
        counts = ndimage.convolve(self._peaks, window, mode="constant")
        cells = ndimage.convolve(np.ones_like(self._peaks), window, mode="constant")
        row, column = np.unravel_index(int(counts.argmax()), counts.shape)
        share, area = float(counts[row, column]) / self.num_images, float(cells[row, column]) / counts.size
        across, down = (column + 0.5) / counts.shape[1], (row + 0.5) / counts.shape[0]
        place = f"{ONE_SPOT}, {across:.0%} from the left, {down:.0%} from above"
        return [*found, Concentration(place, share, area, self._is_much(share, area, SPOT_SHARE, SPOT_FACTOR))]

    def _inside(self, where: str, mask: Mask) -> Concentration:
        share, area = float(self.share()[mask].sum()), float(mask.mean())
        return Concentration(where, share, area, self._is_much(share, area, MIN_SHARE, FACTOR))

    def _is_much(self, share: float, area: float, least: float, factor: float) -> bool:
        return self.num_images >= MIN_IMAGES and share >= least and share >= factor * area


def border_mask(shape: tuple[int, ...]) -> Mask:
    """Cells of the outer tenth of each side."""
    mask = np.ones(shape, np.bool_)
    height, width = (max(1, round(BORDER * size)) for size in shape)
    mask[height : shape[0] - height, width : shape[1] - width] = False
    return mask


def find_object(mean_image: Map) -> Mask | None:
    """The object in the mean picture (H,W) of nominal images, grey levels: what differs from the picture's border.

    None where the border looks like the rest, as where the object fills the picture.
    """
    model = KMeans(2, n_init=3, random_state=0).fit(mean_image.reshape(-1, 1))
    labels = model.labels_.reshape(mean_image.shape)
    border = border_mask(mean_image.shape)
    background = int(labels[border].mean() > 0.5)
    holds = float((labels[border] == background).mean())
    if np.ptp(model.cluster_centers_) < _MIN_LEVELS or holds < _BORDER_IS_BACKGROUND:
        return None
    mask: Mask = ndimage.binary_fill_holes(labels != background)
    return mask if mask.any() else None


def to_cells(mask: Mask, shape: tuple[int, int]) -> Mask:
    """A mask (H,W) at the resolution of a map (U,V): cells that are at least half inside."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1], Image.Resampling.BOX)
    return np.asarray(grey) >= 128
