"""Batch-norm over the batches of all workers, on any device.

Torch's SyncBatchNorm needs GPUs; ours reduces sums with `torch.distributed`, so a training gives the same result on one
worker and on several, also on CPUs (METHOD section 2: the official batch statistics are of the whole batch).
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the global batch; (B,C,H,W) to the same shape.

    Batches of different sizes count by their size. Same parameters and buffers as the original.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise with the statistics of all workers while training, else like the original."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            plain: Tensor = super().forward(input)
            return plain
        output, mean, variance, count = _Normalize.apply(input.float(), self.weight, self.bias, self.eps)
        self._update(mean, variance * count / (count - 1))
        normalized: Tensor = output.to(input.dtype)
        return normalized

    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with the mean and variance of all workers.

    Written with few passes over the activations, which cost the most on a CPU: everything per channel is one of torch's
    fused operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        # Not torch.var_mean, which takes five times as long in channels-last memory.
        own_mean = x.mean((0, 2, 3))
        own_variance = (x - own_mean[:, None, None]).square().mean((0, 2, 3))
        number = own_mean.new_full((1,), x.numel() / x.shape[1])
        sums = torch.cat((own_mean * number, number))
        dist.all_reduce(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1]
        variance = (own_variance + (own_mean - mean).square()) * number
        dist.all_reduce(variance)
        variance /= count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        unit = torch.ones_like(mean)
        # As if the statistics were constants: scale * gradient, and the sums of gradient and of gradient * xhat.
        constant, sum_scaled, sum_plain = torch.ops.aten.native_batch_norm_backward(
            gradient, x, unit if weight is None else weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = torch.cat((sum_plain, sum_scaled))
        dist.all_reduce(sums)
        mean_plain, mean_scaled = (sums / count).chunk(2)
        # scale * (gradient - mean(gradient) - xhat * mean(gradient * xhat)): the rest is a line per channel in x.
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * mean_scaled
        offset = -scale * mean_plain - slope * mean
        correction = F.batch_norm(x, torch.zeros_like(mean), unit - ctx.eps, slope, offset, eps=ctx.eps)
        if weight is None:
            return constant + correction, None, None, None
        # Data parallel averages these over the workers, as it does those of every parameter.
        return constant + correction, sum_scaled, sum_plain, None


def synchronize(network: nn.Module) -> None:
    """Make every batch-norm of the network a synchronised one, in place; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
