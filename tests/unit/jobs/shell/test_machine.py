"""What `fcdd doctor` concludes of a machine, for machines that are not at hand."""

from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from jobs.shell import machine
from jobs.shell.machine import Gpus

GB = 10**9
NONE = Gpus(usable=(), torch="2.14.1", cuda="13.0", devices=(), cards=0, visible=None)


@pytest.mark.parametrize(
    ("gpus", "state", "found", "do"),
    [
        (NONE, "ok", "none on this machine", ""),
        (NONE._replace(usable=("H100", "L4", "H100")), "ok", "2 x H100, 1 x L4", ""),
        (
            NONE._replace(devices=("/dev/nvidia0",), cuda=None),
            "problem",
            "built without CUDA",
            "--force-reinstall torch",
        ),
        (
            NONE._replace(devices=("nvidia-smi",)),
            "problem",
            "torch 2.14.1 for CUDA 13.0 sees no GPU",
            "update the driver",
        ),
        (NONE._replace(devices=("/dev/nvidia0",), visible=""), "warning", "CUDA_VISIBLE_DEVICES='' hides it", "unset"),
        (NONE._replace(cards=1, cuda=None), "warning", "no driver: nothing uses it", "install NVIDIA's driver"),
    ],
)
def test_a_gpu_that_is_there_and_lies_idle_is_said_with_what_to_do(gpus: Gpus, state: str, found: str, do: str) -> None:
    finding = machine.gpu_finding(gpus)
    assert finding.state == state
    assert found in finding.found
    assert do in finding.do
    assert bool(finding.do) == (state != "ok")


@pytest.mark.parametrize(
    ("workers", "available", "total", "state", "do"),
    [
        (2, 8 * GB, 8 * GB, "ok", ""),
        (0, 1.3 * GB, 4 * GB, "ok", ""),
        (4, 4 * GB, 8 * GB, "warning", "end other programs, or give --workers 2"),
        (16, 4 * GB, 8 * GB, "problem", "give --workers 2"),
        (2, 1 * GB, 2 * GB, "problem", "give --workers 0, on a machine with more"),
    ],
)
def test_workers_that_do_not_fit_are_told_how_many_would(
    workers: int, available: int, total: int, state: str, do: str
) -> None:
    finding = machine.memory_finding(workers, available=int(available), total=int(total))
    assert (finding.state, finding.do) == (state, do)
    assert f"--workers {workers} take" in finding.found


def test_the_memory_of_a_container_is_what_it_was_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{3 * GB}\n")
    (tmp_path / "unlimited").write_text("max\n")
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "unlimited"), str(tmp_path / "memory.max"), "/no/such"))
    there = namedtuple("there", "total available")(64 * GB, 60 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: there)
    [finding] = machine.memory(8)
    assert finding.state == "problem"
    assert "3.0 of 3.0 GB are free, --workers 8 take 10.1 GB" in finding.found


def test_the_disk_of_results_is_the_one_that_they_will_lie_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = machine.disk_of_results(str(tmp_path / "not" / "there" / "yet"))
    assert f"free in {tmp_path}: results of" in finding.found
    usage = machine.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    [finding] = machine.disk_of_results(str(tmp_path))
    assert (finding.state, finding.do) == ("warning", "free some, or give another --results")
