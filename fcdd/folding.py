"""Networks rewritten for speed where nothing of them is trained: the same values up to float32's rounding.

What is saved is memory traffic, which is most of the time of a depthwise network on a CPU: batch norms are folded
into the convolutions before them, ReLUs work in place, and a convolution that pads on one side only does so by itself,
its kernel enlarged by zeros, instead of a copy of its input.
"""

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

_FUNCTIONS = (F.relu, F.relu6, F.leaky_relu)
_MODULES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
# Whose output is new memory, so that it can be written over when nothing else reads it.
_FRESH = (nn.Conv2d, nn.BatchNorm2d, operator.add, torch.add)


def folded(module: nn.Module, *, for_cpu: bool = True) -> nn.Module:
    """A copy of `module` that computes faster in channels-last memory; for inference only.

    Puts `module` into evaluation mode. Kernels are enlarged `for_cpu` only: on GPUs that was not measured. Raises what
    `torch.fx` raises for a module that it cannot trace.
    """
    graph: fx.GraphModule = fuse(module.eval())  # type: ignore[assignment]
    for node in list(graph.graph.nodes):
        if for_cpu and node.op == "call_function" and node.target is F.pad:
            _pad_by_kernel(graph, node)
    _activate_in_place(graph)
    graph.recompile()
    return graph.requires_grad_(False).to(memory_format=torch.channels_last)


def _activate_in_place(graph: fx.GraphModule) -> None:
    fits = defaultdict[nn.Module, bool](lambda: True)  # a module may be called at several places
    for node in graph.graph.nodes:
        alone = len(node.args) == 1  # further arguments may say already where it works
        if node.op == "call_function" and node.target in _FUNCTIONS and alone and _is_read_once(graph, node.args[0]):
            node.kwargs = {**node.kwargs, "inplace": True}
        if node.op == "call_module":
            fits[graph.get_submodule(node.target)] &= _is_read_once(graph, node.args[0])
    for module, fit in fits.items():
        if fit and isinstance(module, _MODULES):
            module.inplace = True


def _is_read_once(graph: fx.GraphModule, value: Any) -> bool:
    if not isinstance(value, fx.Node) or len(value.users) > 1:
        return False
    if value.op == "call_module":
        return isinstance(graph.get_submodule(str(value.target)), _FRESH[:2])
    return value.target in _FRESH


def _is_by_zeros(pad: fx.Node) -> bool:
    return bool(pad.kwargs.get("mode", "constant") == "constant" and pad.kwargs.get("value") in (None, 0))


def _pad_by_kernel(graph: fx.GraphModule, pad: fx.Node) -> None:
    """Take zeros that one convolution alone reads, `amount` of them right and below, into its kernel."""
    amounts: Any = pad.args[1] if len(pad.args) == 2 and _is_by_zeros(pad) else ()
    reader, amount = next(iter(pad.users)), amounts[1] if len(amounts) == 4 else 0
    conv = graph.get_submodule(str(reader.target)) if reader.op == "call_module" and len(pad.users) == 1 else None
    if not isinstance(conv, nn.Conv2d) or amounts != (0, amount, 0, amount) or conv.dilation != (1, 1):
        return
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return
    height, width = conv.kernel_size
    larger = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (height + amount, width + amount),
        conv.stride,  # type: ignore[arg-type]
        (conv.padding[0] + amount, conv.padding[1] + amount),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    with torch.no_grad():
        # Padded by as much before the image as after it, the kernel does not look at what is before.
        larger.weight.copy_(F.pad(conv.weight, (amount, 0, amount, 0)))
        if conv.bias is not None and larger.bias is not None:
            larger.bias.copy_(conv.bias)
    parent, _, name = str(reader.target).rpartition(".")
    setattr(graph.get_submodule(parent), name, larger.to(conv.weight.device))
    pad.replace_all_uses_with(pad.args[0])  # type: ignore[arg-type]
    graph.graph.erase_node(pad)
