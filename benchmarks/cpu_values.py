"""What do two values of the forward pass on CPUs cost: threads that OpenVINO pins to a core, and the size of a batch?

    python -m benchmarks.cpu_values [--pairs N] [--seconds S] [--only pinning|batch] [--smoke]

"pinning": two processes at once, as two workers of `fcdd score`, with OpenVINO's default ("before") and with
ENABLE_CPU_PINNING off ("after"); images/s of both together. "batch": one process of one thread with batches of 16
("before") and of 4 images ("after"); images/s, also per second of the processor, and pages that the kernel handed out
per image. Every figure is of fresh processes that begin together after a warm-up, and the two variants take turns:
trust the ratios, pair by pair. Random weights, random pixels. Prints one JSON line per comparison.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from fcdd import networks
from fcdd.inference import Runner
from fcdd.normalization import Normalization
from fcdd.runtime import Runtime

DEFAULT = "whitened:efficientnet_lite0:stage4+stage3+stage5"
SIDES = {DEFAULT: 224, "backbone:efficientnet_lite0:stage4": 160, "cnn224": 224}
SCALING = Normalization(kind="mean_std", shift=(0.5, 0.5, 0.5), scale=(0.25, 0.25, 0.25))


class Variant(NamedTuple):
    """How one process runs."""

    network: str
    backend: str
    batch: int
    pinning: bool


class Measured(NamedTuple):
    """What came of it; seconds of the processor do not count those in which another process had it."""

    images_per_second: float
    images_per_cpu_second: float
    pages_per_image: float


class Comparison(NamedTuple):
    """Two variants, each as so many processes at once."""

    question: str
    before: Variant
    after: Variant
    processes: int


COMPARISONS = [
    Comparison("pinning", Variant(DEFAULT, "openvino", 4, True), Variant(DEFAULT, "openvino", 4, False), 2),
    *(
        Comparison("batch", Variant(name, backend, 16, False), Variant(name, backend, 4, False), 1)
        for name, backend in (*((name, "torch") for name in SIDES), (DEFAULT, "openvino"))
    ),
]


def work(variant: Variant, seconds: float) -> None:
    """One process: says that it is ready, waits for a line, runs, prints images/s and pages per image."""
    torch.set_num_threads(1)
    if variant.backend == "openvino":
        import openvino

        compile_model = openvino.compile_model

        def with_pinning(model: object, device: str, options: dict[str, object]) -> object:
            return compile_model(model, device, {**options, "ENABLE_CPU_PINNING": variant.pinning})

        openvino.compile_model = with_pinning
    side = SIDES[variant.network]
    torch.manual_seed(0)
    network = networks.build(variant.network, in_channels=3, image_size=(side, side))
    runner = Runner(network, SCALING, (side, side), Runtime.model_validate({"backend": variant.backend}))
    runner.batch_size = variant.batch
    pixels = np.random.default_rng(0).integers(0, 256, (16, side, side, 3)).astype(np.uint8)
    runner(pixels)
    print("ready", flush=True)
    sys.stdin.readline()
    count, faults = 0, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    began, cpu = time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < seconds:
        runner(pixels)
        count += len(pixels)
    cpu, faults = time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    measured = Measured(count / spent, count / cpu, faults / count)
    print(json.dumps(measured._asdict()), flush=True)


def together(variant: Variant, processes: int, seconds: float) -> Measured:
    """Of all processes: images/s are added."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.cpu_values",
        "--worker",
        json.dumps(variant),
        "--seconds",
        str(seconds),
    ]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [Measured(**json.loads(process.communicate()[0])) for process in started]
    return Measured(
        sum(each.images_per_second for each in found),
        statistics.mean(each.images_per_cpu_second for each in found),
        statistics.mean(each.pages_per_image for each in found),
    )


def compare(comparison: Comparison, pairs: int, seconds: float) -> dict[str, Any]:
    """Both variants in turn, which of them first changing from pair to pair."""
    figures: dict[str, list[Measured]] = {"before": [], "after": []}
    for pair in range(pairs):
        for name in ("before", "after") if pair % 2 == 0 else ("after", "before"):
            variant: Variant = getattr(comparison, name)
            figures[name].append(together(variant, comparison.processes, seconds))
    result: dict[str, Any] = {
        "question": comparison.question,
        "network": comparison.before.network,
        "backend": comparison.before.backend,
        "processes": comparison.processes,
    }
    for kind in Measured._fields:
        before, after = ([float(getattr(each, kind)) for each in figures[name]] for name in ("before", "after"))
        ratios = [new / old for new, old in zip(after, before, strict=True) if old]
        result[kind] = {
            "before": [round(value, 1) for value in before],
            "after": [round(value, 1) for value in after],
            "ratios": [round(ratio, 2) for ratio in ratios],
            "median_ratio": round(statistics.median(ratios), 2) if ratios else None,
        }
    return result


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", choices=("pinning", "batch"))
    parser.add_argument("--smoke", action="store_true", help="one pair of one second each")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Variant(*json.loads(arguments.worker)), arguments.seconds)
        return
    pairs, seconds = (1, 1.0) if arguments.smoke else (arguments.pairs, arguments.seconds)
    for comparison in COMPARISONS:
        if arguments.only in (None, comparison.question):
            print(json.dumps(compare(comparison, pairs, seconds)), flush=True)


if __name__ == "__main__":
    main()
