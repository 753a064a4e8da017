"""A Ray for this machine alone: who may reach it, and how much of the machine's memory it takes."""

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray._common.utils import get_system_memory
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

# Below three logical CPUs the stages of a pipeline can starve each other for ever (docs/facts.md).
MIN_CPUS = 3
# Ray Data gives half of the object store to the three stages of scoring, and a quarter of that half to the one that
# decodes: an eighth holds the blocks that are being made. A decoder without room for its block waits (docs/facts.md).
_STORE_PER_BLOCK = 8
_SHARED_MEMORY = Path("/dev/shm")
_OF_MEMORY, _OF_SHARED_MEMORY = 0.3, 0.8
# For weights and results, where no blocks are stored. Ray refuses less than 75 MB; where shared memory is that small it
# uses the disk, and `fcdd doctor` says so.
_USUAL_STORE_BYTES, _LEAST_STORE_BYTES = 512 * 1024**2, 128 * 1024**2


def arguments(cpus: int, block_bytes: int) -> dict[str, Any]:
    """Of `ray.init`: a logical CPU more than `cpus`, never fewer than three, and room for a block on each of them."""
    logical = max(cpus + 1, MIN_CPUS, os.cpu_count() or 1)
    shared = shutil.disk_usage(_SHARED_MEMORY).free if sys.platform == "linux" else sys.maxsize
    return {
        "address": "local",  # not some other cluster that runs on this machine
        "num_cpus": logical,
        "object_store_memory": object_store_bytes(logical, block_bytes, get_system_memory(), shared),
        "include_dashboard": False,
    }


def object_store_bytes(cpus: int, block_bytes: int, memory_bytes: int, shared_bytes: int) -> int:
    """Bytes of the object store with which every CPU can be at work on a block; a share of what there is at most."""
    wanted = max(cpus * block_bytes * _STORE_PER_BLOCK, _USUAL_STORE_BYTES)
    return max(_LEAST_STORE_BYTES, min(wanted, int(memory_bytes * _OF_MEMORY), int(shared_bytes * _OF_SHARED_MEMORY)))


@contextmanager
def closed_to_others() -> Iterator[None]:
    """For a Ray that is started meanwhile: a random token of its own, and loopback only.

    The token is in the environment, where Ray's processes find it, and in no file: a service may have no home that it
    can write to. Older versions of Ray require no token unless this is set.
    """
    own = {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # one machine: Ray then listens on loopback, as on macOS
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    before, clusters = {name: os.environ.get(name) for name in own}, ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(own)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_the_environment()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        _read_the_environment()


def _read_the_environment() -> None:
    """Ray reads it once, when it is imported, and keeps the token that it found."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
