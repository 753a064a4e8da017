"""The state of a training as one byte string: weights, optimiser, schedule, and how far it is.

A safetensors file whose metadata holds the rest as JSON: no pickle. Samples and their order come from generators keyed
by (seed, epoch, sample), so no generator's state has to be kept.
"""

import json
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from fcdd.errors import FCDDError
from fcdd.normalization import Normalization

_RECORD = "training"


class CheckpointError(FCDDError):
    """A checkpoint that is damaged, or not one."""


class Progress(BaseModel):
    """Where a training stands, and what it must agree with to be continued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int  # whole epochs done
    step: int  # steps done of the next one
    conditions: dict[str, Any]  # options and data; another training has others
    normalization: Normalization
    num_images: int
    history: list[dict[str, float]]  # metrics of the epochs done


def pack(
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    progress: Progress,
) -> bytes:
    """Everything that a training needs to go on."""
    state = optimizer.state_dict()
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                numbers.setdefault(str(index), {})[name] = value
    record = {
        "progress": progress.model_dump(mode="json"),
        "groups": state["param_groups"],
        "numbers": numbers,
        "schedule": schedule.state_dict(),
    }
    return safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {_RECORD: json.dumps(record)}
    )


def read_progress(data: bytes) -> Progress:
    """The progress of a checkpoint. Raises CheckpointError for other bytes."""
    return _parse(data)[1]


def restore(
    data: bytes,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> Progress:
    """Bring a training to the state of the checkpoint. Raises CheckpointError when it does not fit."""
    record, progress = _parse(data)
    try:
        tensors = safetensors.torch.load(data)
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        )
        slots: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["numbers"].items()}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".", 2)
                slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": slots, "param_groups": record["groups"]})
        schedule.load_state_dict(record["schedule"])
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not fit this training: {error}") from error
    return progress


def network_weights(data: bytes) -> bytes:
    """The network's weights and buffers alone, as safetensors bytes. Raises CheckpointError for other bytes."""
    _parse(data)
    tensors = safetensors.torch.load(data)
    return safetensors.torch.save(
        {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    )


def _parse(data: bytes) -> tuple[dict[str, Any], Progress]:
    """The JSON record in the file's header, which safetensors' bytes interface does not give."""
    try:
        size = int.from_bytes(data[:8], "little")
        record = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_RECORD])
        return record, Progress.model_validate(record["progress"])
    except (ValueError, KeyError, TypeError, RecursionError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(f"not a checkpoint of a training: {type(error).__name__}") from error
