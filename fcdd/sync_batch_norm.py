"""Batch-norm over the batches of all workers, on any device.

Torch's SyncBatchNorm needs GPUs; ours reduces sums with `torch.distributed`, so a training gives the same result on one
worker and on several, also on CPUs (METHOD section 2: the official batch statistics are of the whole batch).
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the global batch; (B,C,H,W) to the same shape.

    Batches of different sizes count by their size. Same parameters and buffers as the original.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of all workers while training, else like the original."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            plain: Tensor = super().forward(input)
            return plain
        values = input.float()
        # Two passes instead of a sum of squares: no cancellation where the mean is large.
        number = values.new_full((1,), values.numel() / values.shape[1])
        sums = all_reduce(torch.cat((values.sum((0, 2, 3)), number)))
        mean, count = sums[:-1] / sums[-1], float(sums[-1])
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        normalized = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            normalized = normalized * self.weight[:, None, None] + self.bias[:, None, None]
        output: Tensor = normalized.to(input.dtype)
        return output

    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


def synchronize(network: nn.Module) -> None:
    """Make every batch-norm of the network a synchronised one, in place; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
