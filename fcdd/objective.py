"""The FCDD objective as pure functions of tensors: anomaly map, image score, two losses.

Source: METHOD section 1 (official `training/fcdd.py`). Everything is computed in float32 whatever the
autocast state. The label is always respected: the official code ignores it in batches of one label,
which would happen by chance under data-parallel training.

Shapes: B batch, U x V cells of the map, H x W pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# -log(1 - exp(-a)) and its gradient explode at a = 0. Below this value the term is constant; above 1e-5
# it differs from the official float32 value by at most 0.0014 (METHOD section 1).
SMALLEST_EVIDENCE = 1e-6


def anomaly_map(output: Tensor) -> Tensor:
    """Pseudo-Huber map A = sqrt(phi^2 + 1) - 1 >= 0, float32, of a network output of any shape."""
    with torch.autocast(output.device.type, enabled=False):
        return torch.sqrt(output.float().square() + 1) - 1


def image_score(map_b1uv: Tensor) -> Tensor:
    """Mean of the map over its cells, (B,): the paper's anomaly score (the code's mean, not the sum)."""
    return map_b1uv.flatten(1).mean(1)


def anomalous_term(evidence: Tensor) -> Tensor:
    """-log(1 - exp(-a)) for evidence a >= 0, float32, finite with finite gradient everywhere; same shape."""
    return -torch.log(-torch.expm1(-evidence.float().clamp_min(SMALLEST_EVIDENCE)))


def image_loss(map_b1uv: Tensor, labels_b: Tensor) -> Tensor:
    """Per-image loss (B,), to be averaged: the score of nominal (0), `anomalous_term` of anomalous (1).

    Reduces each map to its mean first, then transforms. Raises ValueError for other labels.
    """
    _check_binary("labels", labels_b)
    score = image_score(map_b1uv.float())
    return torch.where(labels_b.bool(), anomalous_term(score), score)


def pixel_loss(map_b1uv: Tensor, masks_b1hw: Tensor, upsample: Callable[[Tensor], Tensor]) -> Tensor:
    """Per-image pixel-wise loss (B,), to be averaged, from ground-truth masks with values 0 and 1.

    `upsample` maps (B,1,U,V) to (B,1,H,W), differentiably. Both parts are divided by all H*W pixels, as
    the official code does; the anomalous part counts only for images with at least one masked pixel. Raises ValueError
    for masks of another size than the heatmap, or with other values.
    """
    _check_binary("masks", masks_b1hw)
    with torch.autocast(map_b1uv.device.type, enabled=False):
        heatmap = upsample(map_b1uv.float())
        if heatmap.shape != masks_b1hw.shape:
            raise ValueError(f"expected masks of shape {tuple(heatmap.shape)}, got {tuple(masks_b1hw.shape)}")
        heatmap, masks = heatmap.flatten(1), masks_b1hw.float().flatten(1)
        nominal = ((1 - masks) * heatmap).mean(1)
        anomalous = anomalous_term((masks * heatmap).mean(1))
        return nominal + torch.where((masks == 1).any(1), anomalous, torch.zeros_like(anomalous))


def _check_binary(what: str, values: Tensor) -> None:
    """-1 (unknown) or 255 would silently count as anomalous."""
    if values.dtype != torch.bool and not ((values == 0) | (values == 1)).all():
        raise ValueError(f"expected {what} of 0 (nominal) and 1 (anomalous), got {values.unique().tolist()[:5]}")
