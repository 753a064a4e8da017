"""Which engine scores a run, and by which library."""

import importlib.util
import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcdd import strips
from fcdd.detector import Detector
from fcdd.io import memory
from fcdd.runtime import Runtime
from jobs.engines import choice, over_ray
from jobs.engines.choice import SMALL_NIGHT, Wishes, is_for_this_process
from jobs.engines.in_process import InProcess
from jobs.engines.work import Engine, Work
from jobs.shell.machine import MOST_THREADS
from tests.detectors import make

NOTHING = Wishes(workers=None, gpu=None, cluster_wait_s=0)


@pytest.fixture(autouse=True)
def _a_machine_of_four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    monkeypatch.setattr(choice, "usable_cpus", lambda: 4)


def chosen(wishes: Wishes, images: int | None = None) -> Engine:
    with ExitStack() as stack:
        return choice.choose(wishes, images, stack)


def test_one_machine_without_a_gpu_scores_by_threads_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = chosen(NOTHING)
    assert isinstance(engine, InProcess)
    assert (engine.workers, engine.decoders) == (4, 4)
    assert "scoring in this process with 4 threads" in caplog.text


@pytest.mark.parametrize(("images", "expected"), [(SMALL_NIGHT, True), (SMALL_NIGHT + 1, False), (None, False)])
def test_many_cpus_are_used_by_ray_unless_the_night_is_small(images: int | None, expected: bool) -> None:
    assert is_for_this_process(NOTHING, images, MOST_THREADS + 1) == expected
    assert is_for_this_process(NOTHING, images, MOST_THREADS)
    assert is_for_this_process(NOTHING._replace(workers=0), images, MOST_THREADS + 1)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"gpu": True}, {"cluster_wait_s": 60}])
def test_workers_a_gpu_and_a_cluster_that_grows_mean_ray(changes: dict[str, float]) -> None:
    assert not is_for_this_process(NOTHING._replace(**changes), 10, 4)


def test_a_gpu_is_used_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    assert not is_for_this_process(NOTHING, 10, 4)
    assert choice.backend(None, compiles=False) == "torch"
    without = NOTHING._replace(gpu=False)
    assert is_for_this_process(without, 10, 4)
    assert choice.backend(False, compiles=False) == "openvino"
    assert [engine.workers for engine in (chosen(without), chosen(NOTHING._replace(workers=0)))] == [4, 3]


def test_a_cluster_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not is_for_this_process(NOTHING, 10, 4)
    assert choice.backend(None, compiles=False) == "torch"
    assert choice.backend(False, compiles=False) == "openvino"
    monkeypatch.setenv("RAY_ADDRESS", "")  # a line of an environment file without a value
    assert is_for_this_process(NOTHING, 10, 4)


def test_openvino_computes_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert choice.backend(None, compiles=False) == "openvino"
    assert choice.backend(None, compiles=True) == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert choice.backend(None, compiles=False) == "torch"
    with caplog.at_level(logging.INFO):
        InProcess(1, 1, gpu=False)._new_score(work_of(make(), Runtime()))
    assert "pip install 'fcdd-at-scale[cpu]'" in caplog.text


def work_of(detector: Detector, runtime: Runtime) -> Work:
    return Work(
        results="",
        run_id="",
        attempt="",
        collection="",
        spec=detector.spec,
        weights=detector.weights,
        sample=None,
        runtime=runtime,
        alpha=0.05,
        limits=None,
        timeout_s=1.0,
        roots=(),
        allowed=None,  # type: ignore[arg-type]
    )


def test_actors_in_which_torch_computes_keep_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small, kept = make(), {"runtime_env": {"env_vars": memory.ENVIRONMENT}}
    assert over_ray._memory(work_of(small, Runtime(backend="openvino"))) == {}
    assert over_ray._memory(work_of(small, Runtime(backend="torch"))) == kept
    monkeypatch.setattr(strips, "LARGEST", 10)  # more than that torch computes, whatever is asked for
    assert over_ray._memory(work_of(small, Runtime(backend="openvino"))) == kept


def test_gpus_and_cpus_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(choice.Path, "glob", lambda *_: iter(["/dev/nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.has_gpu()
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not choice.has_gpu()
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(choice, "_QUOTA", quota)
    every = len(os.sched_getaffinity(0))
    for text, expected in (("max 100000", every), ("50000 100000", 1), ("900000000 100000", every)):
        quota.write_text(text)
        assert choice.usable_cpus() == expected
    quota.unlink()
    assert choice.usable_cpus() == every
