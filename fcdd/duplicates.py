"""Near-duplicate alarms: the same part photographed thirty times is one finding, not thirty.

Products under one camera all look alike, so pixels alone would join different parts, and maps alone would join the same
kind of defect. Two images are near-duplicates when their difference hashes are close *and* their anomaly maps agree.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Of 256 bits, and of the maps' correlation. On ELPV one in 13,000 pairs of different defective cells passes both, and
# 93 % of pictures shifted by 3 pixels (benchmarks/results/2026-11-25-decisions.md).
MAX_DISTANCE, MIN_CORRELATION = 40, 0.7


def group(hashes: Sequence[bytes], maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.int64]:
    """For each of N images the index of the first one it is a near-duplicate of, its own index if of none.

    Images are compared with firsts only, so that a chain of small differences does not join what is different; give
    the most anomalous one first. `hashes` are those of `images.DecodedImage`; maps (U,V) of another shape than the
    first's are near-duplicates of none.
    """
    bits = np.array([np.frombuffer(each, np.uint8) for each in hashes])
    same_shape = [each.shape == maps[0].shape for each in maps]
    unit = {i: _unit(map_uv) for i, map_uv in enumerate(maps) if same_shape[i]}
    first = np.arange(len(hashes))
    leaders: list[int] = []
    for index in unit:
        near = np.bitwise_count(bits[leaders] ^ bits[index]).sum(1) <= MAX_DISTANCE if leaders else np.empty(0, bool)
        alike = [leaders[k] for k in np.flatnonzero(near) if float(unit[leaders[k]] @ unit[index]) >= MIN_CORRELATION]
        if alike:
            first[index] = alike[0]
        else:
            leaders.append(index)
    return first


def _unit(map_uv: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The map as a vector whose product with another one is their correlation; a constant map correlates with none."""
    centred = map_uv.ravel() - map_uv.mean()
    length = float(np.linalg.norm(centred))
    unit: npt.NDArray[np.float32] = centred / length if length > 0 else centred
    return unit
