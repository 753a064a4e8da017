"""Which engine scores a run, and by which library."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from jobs.engines import choice
from jobs.engines.choice import MOST_THREADS, SMALL_NIGHT, Wishes
from jobs.engines.in_process import InProcess


@pytest.fixture(autouse=True)
def cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    monkeypatch.setattr(choice, "usable_cpus", lambda: 4)
    return 4


def is_in_process(wishes: Wishes, images: int | None) -> bool:
    """Asked without starting Ray."""
    cpus = choice.usable_cpus()
    return wishes.workers == 0 or (wishes.workers is None and choice._is_for_this_process(wishes, images, cpus))


def test_one_machine_without_a_gpu_scores_by_threads_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), ExitStack() as stack:
        engine = choice.choose(Wishes(None, None, 0), None, stack)
    assert isinstance(engine, InProcess)
    assert (engine.workers, engine.decoders) == (4, 4)
    assert "scoring in this process with 4 threads" in caplog.text


@pytest.mark.parametrize(("images", "expected"), [(SMALL_NIGHT, True), (SMALL_NIGHT + 1, False), (None, False)])
def test_many_cpus_are_used_by_ray_unless_the_night_is_small(
    monkeypatch: pytest.MonkeyPatch, images: int | None, expected: bool
) -> None:
    monkeypatch.setattr(choice, "usable_cpus", lambda: MOST_THREADS + 1)
    assert is_in_process(Wishes(None, None, 0), images) == expected
    assert is_in_process(Wishes(0, None, 0), images)


@pytest.mark.parametrize("wishes", [Wishes(2, None, 0), Wishes(None, True, 0), Wishes(None, None, 60)])
def test_workers_a_gpu_and_a_cluster_that_grows_mean_ray(wishes: Wishes) -> None:
    assert not is_in_process(wishes, 10)


def test_a_cluster_and_a_gpu_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Wishes(None, None, 0)
    monkeypatch.setattr(choice, "has_gpu", lambda: True)
    assert not is_in_process(asked, 10)
    assert choice.backend(None, compiles=False) == "torch"
    assert is_in_process(Wishes(None, False, 0), 10)
    assert choice.backend(False, compiles=False) == "openvino"
    monkeypatch.setattr(choice, "has_gpu", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not is_in_process(asked, 10)
    assert choice.backend(None, compiles=False) == "torch"


def test_openvino_computes_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert choice.backend(None, compiles=False) == "openvino"
    assert choice.backend(None, compiles=True) == "torch"
    assert not caplog.records
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert choice.backend(None, compiles=False) == "torch"
    assert "pip install 'fcdd-at-scale[cpu]' has it" in caplog.text


def test_a_hidden_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(choice.Path, "glob", lambda *_: iter(["/dev/nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert choice.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not choice.has_gpu()
    assert 1 <= choice.usable_cpus() <= (os.cpu_count() or 1)
