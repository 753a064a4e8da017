"""Deterministic weights of the goldens: element i of stream k is a hash of both, see the formula."""

import json

import numpy as np
import torch
from torch import nn

from fcdd.networks import FCDDNetwork


def uniform(stream: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of stream `stream`, float64."""
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64(stream + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2**24


def fill(network: FCDDNetwork, keys_json: np.ndarray) -> dict[str, str]:
    """Fill the network in the official entries' order; returns official name -> our name."""
    official = json.loads(str(keys_json))
    ours = network.state_dict()
    names = iter(ours)
    mapping: dict[str, str] = {}
    for stream, (name, shape) in enumerate(official):
        if name.startswith("bn2d3.") and not any(tuple(shape) == tuple(ours[n].shape) for n in _next(ours, mapping)):
            continue  # CNN32 and CNN32_LW3K list a batch-norm that they never use
        ours_name = next(names)
        mapping[name] = ours_name
        values = _values(name, shape, uniform(stream, int(np.prod(shape))))
        ours[ours_name].copy_(torch.from_numpy(values.reshape(shape)))
    assert next(names, None) is None
    network.load_state_dict(ours)
    return mapping


def _next(state: dict[str, torch.Tensor], mapping: dict[str, str]) -> list[str]:
    return list(state)[len(mapping) : len(mapping) + 1]


def _values(name: str, shape: list[int], u: np.ndarray) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("weight") and len(shape) >= 2:
        return ((2 * u - 1) * np.sqrt(6 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith(("weight", "running_var")):
        return (0.5 + u).astype(np.float32)
    return (0.2 * (2 * u - 1)).astype(np.float32)


def inputs(goldens: np.lib.npyio.NpzFile, size: int, count: int) -> torch.Tensor:
    """The first `count` golden input images, normalised."""
    return torch.from_numpy(((goldens[f"u8_{size}"][:count] / 255 - 0.5) / 0.25).astype(np.float32))


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
