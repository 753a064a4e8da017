"""A bundle as it scores: OpenVINO without torch, from a network that was converted once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fcdd import openvino_network, scorer, strips
from fcdd.bundle import BundleSpec
from fcdd.detector import Detector
from fcdd.errors import BundleError
from fcdd.inference import Runner
from fcdd.io import network_cache
from fcdd.openvino_network import OpenvinoNetwork
from fcdd.runtime import Runtime
from fcdd.scorer import Scorer
from tests.detectors import make

OPENVINO = Runtime(backend="openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fcdd" / "networks"


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make()


def pictures(spec: BundleSpec, count: int = 20) -> np.ndarray:
    shape = (count, *spec.input_size, spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def load(detector: Detector, runtime: Runtime = OPENVINO, threads: int = 1) -> Scorer:
    return scorer.load(detector.spec, detector.weights, runtime, threads=threads)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_scores_are_those_of_the_detector(detector: Detector, backend: str) -> None:
    found, pixels = load(detector, Runtime.model_validate({"backend": backend})), pictures(detector.spec)
    expected = detector.score(pixels)
    assert found.receptive_field == detector.receptive_field
    for name in ("maps", "mean", "maximum", "top1pct"):
        np.testing.assert_allclose(
            getattr(found(pixels), name), getattr(expected, name), atol=scorer.TOLERANCE * expected.maps.max()
        )
    assert found(pixels[:0]).maps.shape == (0, *expected.maps.shape[1:])


def test_a_converted_network_is_kept_and_read_without_torch(
    detector: Detector, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(detector)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(openvino_network, "convert", lambda *_: pytest.fail("converted again"))
    again, pixels = load(detector, threads=2), pictures(detector.spec)
    np.testing.assert_allclose(again(pixels).maps, first(pixels).maps, atol=1e-6)
    detector.save(str(tmp_path / "bundle"))
    script = (
        "import sys; from fcdd import bundle, scorer; from fcdd.runtime import Runtime; import numpy as np; "
        f"spec, weights = bundle.load({str(tmp_path / 'bundle')!r}); "
        "run = scorer.load(spec, weights, Runtime(backend='openvino')); "
        "run(np.zeros((1, *spec.input_size, spec.channels), np.uint8)); "
        "print([name for name in ('torch', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_network_has_computed_before_threads_use_it(detector: Detector) -> None:
    """Else two of them could meet in the first call of OpenVINO's bindings, and wait for each other for ever."""
    run = load(detector, threads=2).run
    assert isinstance(run, OpenvinoNetwork)
    assert len(run._requests._spare) == 1
    script = (
        "import sys, threading, numpy as np; from pathlib import Path; from fcdd import openvino_network as o; "
        "network = o.OpenvinoNetwork(o.read(Path(sys.argv[1])), threads=2); start = threading.Barrier(8); "
        "work = lambda: (start.wait(), network(np.zeros((1, 32, 48, 3), np.uint8))); "
        "threads = [threading.Thread(target=work) for _ in range(8)]; "
        "[each.start() for each in threads]; [each.join() for each in threads]"
    )
    (kept,) = network_cache.folder().iterdir()
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script, str(kept / "network.xml")], check=True, timeout=60)


@pytest.mark.parametrize("damage", ["empty", "cut", "half of the weights", "no geometry", "other geometry"])
def test_a_damaged_file_is_made_again(detector: Detector, cache: Path, damage: str) -> None:
    expected = load(detector)(pictures(detector.spec)).maps
    (kept,) = cache.iterdir()
    if damage == "empty":
        (kept / "network.xml").write_bytes(b"")
    elif damage == "cut":
        (kept / "network.xml").write_bytes((kept / "network.xml").read_bytes()[:500])
    elif damage == "half of the weights":
        (kept / "network.bin").write_bytes((kept / "network.bin").read_bytes()[:100])
    elif damage == "no geometry":
        (kept / "receptive_field.json").unlink()
    else:
        (kept / "receptive_field.json").write_text('{"rows": 3}')
    np.testing.assert_allclose(load(detector)(pictures(detector.spec)).maps, expected, atol=1e-6)
    assert (kept / "receptive_field.json").stat().st_size > 50


def test_what_others_may_write_is_not_believed(
    detector: Detector, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(detector)
    (kept,) = cache.iterdir()
    kept.chmod(0o777)
    assert network_cache.find(kept.name) is None
    kept.chmod(0o700)
    assert network_cache.find(kept.name) == kept
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert network_cache.find(kept.name) is None


def test_without_a_folder_that_can_be_written_the_network_is_converted_each_time(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(detector)(pictures(detector.spec)).maps.shape[0] == 20


def test_a_user_without_a_home_has_no_cache(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert network_cache.find("x") is None
    network_cache.drop("x")
    assert load(detector)(pictures(detector.spec)).maps.shape[0] == 20


def test_the_cache_keeps_what_was_used_last(cache: Path) -> None:
    for index in range(network_cache.KEPT + 2):
        network_cache.put(f"key{index}", lambda folder: (folder / "x").write_text("y") and None)
        if index < 2:
            os.utime(cache / f"key{index}", (index, index))
    assert {path.name for path in cache.iterdir()} == {f"key{index}" for index in range(2, network_cache.KEPT + 2)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda maps: maps * 1.001, "OpenVINO's maps of this network differ"),
        (lambda maps: maps + 0.02, "OpenVINO's maps of this network differ"),
        (lambda _: 1 / 0, "OpenVINO cannot convert cnn32_s: division by zero"),
    ],
)
def test_where_openvino_does_not_compute_the_network_torch_does(
    detector: Detector,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[np.ndarray], np.ndarray],
    said: str,
) -> None:
    exact = scorer.OpenvinoNetwork.__call__
    monkeypatch.setattr(scorer.OpenvinoNetwork, "__call__", lambda self, pixels: change(exact(self, pixels)))
    found = load(detector)
    assert said in caplog.text
    assert not cache.exists()
    np.testing.assert_allclose(found(pictures(detector.spec)).maps, detector.score(pictures(detector.spec)).maps)


def test_a_full_disk_costs_the_next_process_the_conversion_and_nothing_else(
    detector: Detector, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("Can't save: no space left on device")

    monkeypatch.setattr(openvino_network, "save", full)
    assert load(detector)(pictures(detector.spec)).maps.shape[0] == 20
    assert list(cache.iterdir()) == []


def test_what_a_dead_process_left_is_removed(cache: Path) -> None:
    cache.mkdir(parents=True, mode=0o700)
    for name, age in ((".dead", 200_000), (".at-work", 10)):
        (cache / name).mkdir()
        os.utime(cache / name, (time.time() - age, time.time() - age))
    network_cache.put("key", lambda folder: (folder / "x").write_text("y") and None)
    assert sorted(path.name for path in cache.iterdir()) == [".at-work", "key"]


def test_weights_that_do_not_fit_are_refused_whatever_the_library(detector: Detector) -> None:
    for backend in ("torch", "openvino"):
        with pytest.raises(BundleError, match="the weights do not fit"):
            scorer.load(detector.spec, b"none", Runtime.model_validate({"backend": backend}))


def test_large_inputs_are_computed_by_torch_one_after_the_other(
    detector: Detector, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "LARGEST", 1)
    at_once, most, threads = [0], [0], list[int]()
    original = Runner.__call__

    def counted(self: Runner, pixels: np.ndarray) -> np.ndarray:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1
        return original(self, pixels)

    monkeypatch.setattr(Runner, "__call__", counted)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    found, pixels = load(detector, threads=6), pictures(detector.spec, 8)
    assert not cache.exists()  # nothing was converted
    assert threads == [6]
    with ThreadPoolExecutor(6) as pool:
        scored = list(pool.map(lambda index: found(pixels[index : index + 1]), range(8)))
    assert most == [1]
    expected = detector.score(pixels)
    np.testing.assert_allclose(np.concatenate([each.maps for each in scored]), expected.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_ignored_cells_are_zero_and_do_not_count(detector: Detector, backend: str) -> None:
    rows, columns = np.shape(detector.spec.calibration.pooled.map_mean)
    half = tuple("1" * (columns // 2) + "0" * (columns - columns // 2) for _ in range(rows))
    spec, pixels = detector.spec.model_copy(update={"ignored": half}), pictures(detector.spec, 4)
    found = scorer.load(spec, detector.weights, Runtime.model_validate({"backend": backend}))(pixels)
    maps = detector.score(pixels).maps
    kept = maps[:, :, columns // 2 :].reshape(4, -1)
    assert not found.maps[:, :, : columns // 2].any()
    np.testing.assert_allclose(found.maximum, kept.max(1), rtol=1e-3)
    np.testing.assert_allclose(found.mean, kept.mean(1), rtol=1e-3)
    top = np.sort(kept, 1)[:, -max(1, round(kept.shape[1] * 0.01)) :].mean(1)
    np.testing.assert_allclose(found.top1pct, top, rtol=1e-3)
