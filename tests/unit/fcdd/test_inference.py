"""Every way to run the forward pass gives the maps of the plain network, within the stated tolerance."""

import contextlib
import copy
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fcdd import inference, networks, objective
from fcdd.errors import ConfigError
from fcdd.inference import Runner
from fcdd.networks import FCDDNetwork
from fcdd.normalization import Normalization
from fcdd.runtime import Runtime

SCALING = Normalization(kind="mean_std", shift=(0.5, 0.5, 0.5), scale=(0.25, 0.25, 0.25))
PIXELS = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3)).astype(np.uint8)
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}


@pytest.fixture(scope="module")
def network() -> FCDDNetwork:
    torch.manual_seed(0)
    return networks.build("cnn32", in_channels=3, image_size=(32, 32)).eval()


def plain(network: FCDDNetwork) -> np.ndarray:
    with torch.inference_mode():
        maps = [objective.anomaly_map(network(SCALING(torch.from_numpy(each[None])))) for each in PIXELS]
    return torch.cat(maps)[:, 0].numpy()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_maps_are_those_of_the_plain_network(network: FCDDNetwork, backend: str, precision: str) -> None:
    expected = plain(network)
    runtime = Runtime.model_validate({"backend": backend, "precision": precision})
    maps = Runner(copy.deepcopy(network), SCALING, (32, 32), runtime)(PIXELS)
    assert maps.dtype == np.float32
    largest = expected.max((1, 2), keepdims=True)
    assert (np.abs(maps - expected) / largest).max() < TOLERANCES[precision]


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_features_of_several_stages_are_computed_in_bfloat16_and_their_head_is_not(backend: str) -> None:
    torch.manual_seed(0)
    whole = networks.build("whitened:efficientnet_lite0:stage4+stage3:1:16", in_channels=3, image_size=(64, 64)).eval()
    pixels, runtime = PIXELS.repeat(2, 1).repeat(2, 2)[:3], Runtime.model_validate({"backend": backend})
    exact = Runner(copy.deepcopy(whole), SCALING, (64, 64), runtime)(pixels)
    coarse = Runner(whole, SCALING, (64, 64), runtime.model_copy(update={"precision": "bfloat16"}))(pixels)
    assert 0 < np.abs(coarse - exact).max() < 0.1 * exact.max()


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_no_image_is_lost_whatever_the_batch(network: FCDDNetwork, backend: str) -> None:
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32), Runtime.model_validate({"backend": backend}))
    together = runner(PIXELS)
    for size in (1, 5, 64):
        runner.batch_size = size
        np.testing.assert_allclose(runner(PIXELS), together, rtol=1e-4, atol=1e-6)
    assert runner(PIXELS[:0]).shape == (0, *together.shape[1:])


def test_a_gpu_without_memory_gets_smaller_batches(network: FCDDNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32))
    expected, run, sizes = runner(PIXELS), runner._run, []

    def small_memory(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return run(pixels)

    monkeypatch.setattr(runner, "_run", small_memory)
    np.testing.assert_allclose(runner(PIXELS), expected, rtol=1e-4, atol=1e-6)
    assert sizes[:3] == [inference.CPU_BATCH, 2, 1]
    assert runner.batch_size == 1
    monkeypatch.setattr(runner, "_run", lambda pixels: (_ for _ in ()).throw(torch.OutOfMemoryError("none at all")))
    with pytest.raises(torch.OutOfMemoryError):
        runner(PIXELS)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_threads_that_share_a_runner_get_the_maps_of_their_own_pixels(network: FCDDNetwork, backend: str) -> None:
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32), Runtime.model_validate({"backend": backend}))
    parts = [np.roll(PIXELS, shift, axis=0)[: 37 - shift] for shift in range(12)]
    expected = [runner(part) for part in parts]
    with ThreadPoolExecutor(3) as pool:
        for maps, alone in zip(pool.map(runner, parts), expected, strict=True):
            np.testing.assert_array_equal(maps, alone)


def test_more_images_than_fit_on_a_card_are_sent_one_part_after_the_other(
    network: FCDDNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32))
    together = runner(PIXELS)
    monkeypatch.setattr(inference, "_SENT", 8)  # a multiple of the batch, so that the same images are computed together
    np.testing.assert_array_equal(runner(PIXELS), together)


def test_a_batch_that_is_filled_up_has_the_maps_of_its_images_only(network: FCDDNetwork) -> None:
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32))
    expected, run, sizes = runner(PIXELS), runner._run, set[int]()

    def watched(pixels: torch.Tensor) -> torch.Tensor:
        sizes.add(len(pixels))
        return run(pixels)

    runner._run, runner._fills_up, runner.batch_size = watched, True, 16
    np.testing.assert_allclose(runner(PIXELS), expected, rtol=1e-4, atol=1e-6)
    assert sizes == {16}


@pytest.mark.parametrize("before", ["tf32", "older flags", "nothing"])
@pytest.mark.usefixtures("_flags_of_torch")
def test_float32_is_ieee_and_no_flag_of_torch_contradicts(network: FCDDNetwork, before: str) -> None:
    """Without a GPU the values are all that can be looked at."""
    if before == "tf32":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if before == "older flags":
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
    Runner(copy.deepcopy(network), SCALING, (32, 32), Runtime(precision="float32"))
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert not torch.backends.cudnn.allow_tf32  # reading a flag that contradicts raises
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    with torch.backends.cudnn.flags(enabled=True):
        pass


@pytest.fixture
def _flags_of_torch() -> Iterator[None]:
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")


def test_openvino_leaves_its_threads_on_every_core(network: FCDDNetwork) -> None:
    """Pinned threads are only seen while they compute; each process would pin its own to the same core."""
    runner = Runner(copy.deepcopy(network), SCALING, (32, 32), Runtime(backend="openvino"))
    allowed, seen, done = os.sched_getaffinity(0), set[frozenset[int]](), threading.Event()

    def watch() -> None:
        while not done.is_set():
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(OSError):  # it ended
                    seen.add(frozenset(os.sched_getaffinity(int(thread))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(10):
        runner(PIXELS)
    done.set()
    watcher.join()
    assert seen == {frozenset(allowed)}


def test_choices_that_contradict_each_other_are_refused_before_anything_starts() -> None:
    Runtime(precision="bfloat16", backend="openvino").check()
    with pytest.raises(ConfigError, match="compile belongs to the backend torch"):
        Runtime(compile=True, backend="openvino").check()
    with pytest.raises(ConfigError, match="tf32 is a precision of NVIDIA's GPUs"):
        Runtime(precision="tf32", backend="openvino").check()


def test_the_precision_of_gpus_is_the_one_that_was_asked_for(network: FCDDNetwork) -> None:
    for precision, expected in (("tf32", "tf32"), ("float32", "ieee")):
        Runner(network, SCALING, PIXELS.shape[1:3], Runtime.model_validate({"precision": precision}))
        assert torch.backends.cudnn.conv.fp32_precision == expected  # type: ignore[attr-defined]
        assert torch.backends.cuda.matmul.fp32_precision == expected


def test_without_openvino_the_remedy_is_named(network: FCDDNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'fcdd-at-scale\[cpu\]'"):
        Runner(copy.deepcopy(network), SCALING, (32, 32), Runtime(backend="openvino"))
