"""uint8 pixels -> the float input of the network; the constants are stored in the bundle.

Source: METHOD section 4 (official `datasets/preprocessing.py`).

Torch is imported where it is used: whoever only reads a bundle does not wait seconds for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

Kind = Literal["mean_std", "lcn_min_max"]


def lcn(images: Tensor, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    """Global contrast normalisation of each image, float, same shape: (C,H,W) or a batch (B,C,H,W) in [0,1].

    Subtracts the mean over all values of an image and divides by mean|x| (l1) or sqrt(sum x^2) / N (l2),
    or by 1 where that is 0.
    """
    import torch

    axes = (-3, -2, -1)
    centred = images - images.mean(axes, keepdim=True)
    if norm == "l1":
        scale = centred.abs().mean(axes, keepdim=True)
    else:
        count = centred.shape[-3] * centred.shape[-2] * centred.shape[-1]
        scale = centred.square().sum(axes, keepdim=True).sqrt() / count
    return centred / torch.where(scale == 0, torch.ones_like(scale), scale)


class Normalization(BaseModel):
    """x -> (x - shift) / scale per channel, of x in [0,1] ("mean_std") or of its LCN ("lcn_min_max")."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Kind
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __call__(self, pixels_bhwc: Tensor) -> Tensor:
        """uint8, or float32 in [0,1], (B,H,W,C) -> float32 (B,C,H,W) in channels-last memory, faster on a CPU."""
        return self.on(pixels_bhwc.device)(pixels_bhwc)

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The same for pixels on `device`: the constants are sent there once, since a card stops for every one."""
        import torch

        shift, scale = (torch.tensor(c, device=device).view(1, -1, 1, 1) for c in (self.shift, self.scale))

        def scaled(pixels_bhwc: Tensor) -> Tensor:
            images = pixels_bhwc.permute(0, 3, 1, 2).float()
            if pixels_bhwc.dtype == torch.uint8:
                images = images / 255
            if self.kind == "lcn_min_max":
                images = lcn(images)
            return ((images - shift) / scale).contiguous(memory_format=torch.channels_last)

        return scaled


def estimate(kind: Kind, pixels_nhwc: Tensor, *, chunk: int = 32) -> Normalization:
    """Constants of nominal training images, uint8 (N,H,W,C), N >= 1, read `chunk` images at a time.

    "mean_std": per-channel mean and unbiased deviation of x in [0,1]; "lcn_min_max": per-channel extremes
    of the LCN output. A channel without contrast is divided by 1.
    """
    import torch

    channels, count = pixels_nhwc.shape[3], 0
    low, high, total, square = (
        torch.full((channels,), value, dtype=torch.float64) for value in (torch.inf, -torch.inf, 0.0, 0.0)
    )
    for part in pixels_nhwc.split(chunk):
        images = part.permute(0, 3, 1, 2).float() / 255
        values = (lcn(images) if kind == "lcn_min_max" else images).double().transpose(0, 1).flatten(1)
        low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
        total, square, count = total + values.sum(1), square + values.square().sum(1), count + values.shape[1]
    if kind == "lcn_min_max":
        shift, scale = low, high - low
    else:
        shift = total / count
        scale = ((square - count * shift.square()) / max(count - 1, 1)).clamp_min(0).sqrt()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return Normalization(kind=kind, shift=tuple(shift.tolist()), scale=tuple(scale.tolist()))
