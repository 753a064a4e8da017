"""What do decoder, card and `fcdd score` do on this machine, and how near does the job come to the smallest limit?

    python -m benchmarks.gpu [--network cnn224] [--images 20000] [--folder DIR] [--output FILE.md] [--smoke]

JPEGs of 500x375 pixels on the local disk (1,000 distinct ones under many names), a network with random weights (the
arithmetic is the same). Measured one after the other, in images/s:

    decode     Pillow, resized to the network's size: one process, and as many as there are CPUs
    card       the same by the card's decoder, from files in memory to pixels in ordinary memory: one thread, and three
    copy       pixels from ordinary memory by way of pinned memory to the card
    forward    the network alone on pixels that are on the card: float32 (IEEE's), bfloat16, and each compiled
    runner     pixels in ordinary memory to maps in ordinary memory, as scoring does it: one thread, and three
    job        `fcdd score`, where there is a card also with `--decode gpu`: images/s from when the small first shards
               are staged to the last one, seconds to the first image, the share of the time that the card waited; with
               `nvidia-smi`, how busy the card was
    parity     the card's scores against the CPU's, relative to the largest

Without a GPU the CPU takes its place, with fewer images. Prints a table, and writes it with --output.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import images
from fcdd.images import View

WIDTH, HEIGHT, DISTINCT = 500, 375, 1000
SIDE = 224
THREADS = 3
VERSIONS = ("torch", "ray", "pillow", "pyarrow", "numpy")


JOB, JOB_BY_CARD = "job", "job, JPEGs decoded by the card"


class Figure(NamedTuple):
    """A line of the table; `limits`: jobs that cannot be faster than this."""

    name: str
    images_per_second: float
    note: str = ""
    limits: tuple[str, ...] = ()


class Plan(NamedTuple):
    """How much is measured."""

    network: str
    images: int
    distinct: int
    seconds: float
    device: str
    batches: tuple[int, ...]
    compiled: bool


def picture(index: int) -> bytes:
    """Coloured clouds with a little noise, as large as a photograph's JPEG."""
    random = np.random.default_rng(index)
    pixels = random.normal(128, 6, (HEIGHT, WIDTH, 3))
    for cells in (6, 24, 96):
        for channel in range(3):
            coarse = Image.fromarray(random.normal(0, 1, (cells, cells)).astype(np.float32))
            pixels[..., channel] += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * (
                60 / cells**0.25
            )
    file = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
    return file.getvalue()


def make_images(folder: Path, plan: Plan) -> None:
    """Distinct pictures, and links to them."""
    folder.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool() as pool:
        for index, data in enumerate(pool.imap(picture, range(plan.distinct), chunksize=8)):
            first = folder / f"{index:06d}-0.jpg"
            first.write_bytes(data)
            for copy in range(1, -(-(plan.images - index) // plan.distinct)):
                os.link(first, folder / f"{index:06d}-{copy}.jpg")


def decode(files: list[Path]) -> float:
    """Seconds for these files, in this process."""
    data = [file.read_bytes() for file in files]
    started = time.perf_counter()
    for each in data:
        images.decode(each, View((SIDE, SIDE), 3))
    return time.perf_counter() - started


def decode_limits(files: list[Path], plan: Plan) -> Iterator[Figure]:
    """One process, and one per CPU, each with the same number of pictures, all at once."""
    cpus = os.cpu_count() or 1
    each = max(8, int(plan.seconds * 100))
    for processes in sorted({1, cpus}):
        chosen = [[files[(n * each + i) % len(files)] for i in range(each)] for n in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            pool.map(decode, [files[:2]] * processes, chunksize=1)  # started
            began = time.perf_counter()
            pool.map(decode, chosen, chunksize=1)
            seconds = time.perf_counter() - began
        name = f"decode, {processes} process{'es' * (processes > 1)}"
        yield Figure(name, processes * each / seconds, limits=(JOB,) if processes == cpus else ())


def card_decode_limits(files: list[Path], plan: Plan) -> Iterator[Figure]:
    """The card's decoder with all that scoring wants of a picture, and whole shards of them; on a CPU libjpeg's."""
    import torch

    from fcdd import jpeg_files
    from fcdd.batch_decoding import BatchDecoder

    limits, data = images.Limits(), [file.read_bytes() for file in files]
    chosen = [file for each in data if (file := jpeg_files.examine(each, limits))]
    shard = [chosen[index % len(chosen)] for index in range(plan.batches[-1])]
    decoder = BatchDecoder(View((SIDE, SIDE), 3), torch.device(plan.device))
    for threads in (1, THREADS):
        with ThreadPoolExecutor(threads) as pool:

            def together(pool: ThreadPoolExecutor = pool, n: int = threads) -> int:
                return sum(len([image for image in found if image]) for found in pool.map(decoder, [shard] * n))

            name = f"card decodes, {threads} thread{'s' * (threads > 1)}"
            yield Figure(name, rate(together, plan.seconds), limits=(JOB_BY_CARD,) if threads > 1 else ())

    def walked() -> int:
        return sum(jpeg_files.examine(each, limits) is not None for each in data)

    yield Figure("files examined, one process", rate(walked, plan.seconds))


def forward_limits(pixels: npt.NDArray[np.uint8], plan: Plan) -> Iterator[Figure]:
    """The network alone, and what it takes to get pixels there and maps back."""
    import torch

    from benchmarks import untrained
    from fcdd import networks
    from fcdd.card import Card
    from fcdd.inference import Runner
    from fcdd.runtime import Runtime

    card = Card(torch.device(plan.device))

    def copy() -> int:
        card.send(pixels)
        if plan.device == "cuda":
            torch.cuda.synchronize()
        return len(pixels)

    yield Figure("copy", rate(copy, plan.seconds), limits=(JOB, JOB_BY_CARD) if plan.device == "cuda" else ())
    here = torch.from_numpy(pixels).to(plan.device)
    for compiled in (False, True) if plan.compiled else (False,):
        for precision in ("float32", "bfloat16"):
            network = networks.build(plan.network, in_channels=3, image_size=(SIDE, SIDE))
            runtime = Runtime.model_validate({"precision": precision, "compile": compiled})
            runner = Runner(network, untrained.scaling(3), (SIDE, SIDE), runtime)
            for batch in plan.batches[-1:] if compiled else plan.batches:

                def forward(runner: Runner = runner, batch: int = batch) -> int:
                    whole = range(0, len(here) - batch + 1, batch)
                    maps = [runner._run(here[start : start + batch]) for start in whole]
                    maps[-1].cpu()
                    return batch * len(maps)

                name = f"forward, {precision}{', compiled' if compiled else ''}, batches of {batch}"
                is_limit = precision == "float32" and not compiled and batch == plan.batches[-1]
                began = time.perf_counter()
                forward()
                first = f"the first took {time.perf_counter() - began:.1f} s"
                yield Figure(name, rate(forward, plan.seconds), first, limits=(JOB, JOB_BY_CARD) if is_limit else ())
            if compiled or precision != "float32":
                continue
            for threads in (1, THREADS):
                with ThreadPoolExecutor(threads) as pool:

                    def together(pool: ThreadPoolExecutor = pool, runner: Runner = runner, n: int = threads) -> int:
                        return sum(map(len, pool.map(runner, [pixels] * n)))

                    together()
                    yield Figure(f"runner, {threads} thread{'s' * (threads > 1)}", rate(together, plan.seconds))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Images per second of `work`, which returns how many it did; after one round to warm up."""
    work()
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not done:
        done += work()
    return done / spent


def parity(pixels: npt.NDArray[np.uint8], plan: Plan) -> str:
    """The largest difference of a map's mean between card and CPU, relative to the largest mean."""
    import torch

    from benchmarks import untrained
    from fcdd import networks
    from fcdd.inference import Runner

    torch.manual_seed(0)
    network = networks.build(plan.network, in_channels=3, image_size=(SIDE, SIDE)).eval()
    with torch.inference_mode():
        starts = range(0, len(pixels), 16)
        parts = [untrained.scaling(3)(torch.from_numpy(pixels[start : start + 16])) for start in starts]
        expected = torch.cat([network(part) for part in parts])
    means = ((expected[:, 0].square() + 1).sqrt() - 1).mean((1, 2)).numpy()
    found = Runner(network, untrained.scaling(3), (SIDE, SIDE))(pixels).mean((1, 2))
    return f"{np.abs(found - means).max() / means.max():.1e}"


@contextmanager
def watched_card() -> Iterator[list[float]]:
    """Per cent of the time that the card was busy, as nvidia-smi says it four times a second."""
    busy: list[float] = []
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:  # there is no card
        yield busy
        return
    output = process.stdout
    assert output is not None
    reader = threading.Thread(target=lambda: busy.extend(float(line) for line in output if line.strip().isdigit()))
    reader.start()
    try:
        yield busy
    finally:
        process.terminate()
        reader.join()


def job(bundle: str, folder: Path, results: Path, *options: str) -> tuple[dict[str, Any], list[float]]:
    """The record of `fcdd score`, and how busy the card was."""
    places = ["--bundle", bundle, "--images", str(folder), "--results", str(results)]
    command = [sys.executable, "-m", "jobs.score", *places, "--collection", "c", "--date", "2026-11-01", *options]
    with watched_card() as busy:
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"fcdd score failed:\n{done.stderr}")
    print(done.stderr, file=sys.stderr, end="")
    [record] = (results / "runs").glob("*.json")
    return json.loads(record.read_text()) | {"seconds": seconds}, busy


def job_figure(name: str, record: dict[str, Any], busy: list[float]) -> Figure:
    """A line of the table of a run."""
    stages = record["stage_seconds"]
    notes = [f"{record['seconds']:.0f} s in all", f"first image after {stages['to_first_image']:.1f} s"]
    if gpu := stages.get("workers_gpu"):
        notes.append(f"the card waited {stages['workers_gpu_wait'] / gpu:.0%}")
    if busy:
        notes.append(f"nvidia-smi: busy {statistics.mean(busy):.0f} %, at most {max(busy):.0f} %")
    workers = [f"{stage} {stages[f'workers_{stage}']:.0f}" for stage in ("fetch", "decode", "score", "write")]
    notes.append(f"seconds of workers: {', '.join(workers)}")
    if by_card := record.get("gpu_decoding"):
        notes.append(f"{by_card['images']} decoded by the card, {by_card['checked']} of them checked")
        notes.append(f"scores at most {by_card['largest_difference']:.1e} of the threshold apart")
        notes += [f"then by CPUs: {by_card['refused']}"] if by_card["refused"] else []
    return Figure(name, record["images_per_second"], "; ".join(notes))


def machine(plan: Plan) -> str:
    """What it was measured on."""
    import torch

    card = torch.cuda.get_device_name() if plan.device == "cuda" else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    return f"{card}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}"


def table(figures: list[Figure], plan: Plan, difference: str) -> str:
    """The result as Markdown."""

    def limit(of: Figure) -> Figure:
        limits = [figure for figure in figures if of.name in figure.limits]
        return min(limits, key=lambda each: each.images_per_second)

    jobs = [(figure, limit(figure)) for figure in figures if figure.name in (JOB, JOB_BY_CARD)]
    lines = [
        f"`{plan.network}` at {SIDE} pixels, {plan.images} JPEGs of {WIDTH}x{HEIGHT}. {machine(plan)}.",
        "",
        "| | images/s | |",
        "|---|---|---|",
        *(f"| {each.name} | {each.images_per_second:,.0f} | {each.note} |" for each in figures),
        "",
        *(f"{each.name}: {each.images_per_second / of.images_per_second:.2f} of {of.name}." for each, of in jobs),
        f"Scores differ from the CPU's by at most {difference} of the largest.",
    ]
    return "\n".join(lines) + "\n"


def measure(plan: Plan, folder: Path, options: list[str]) -> str:
    """Everything, one after the other; figures are printed as they come."""
    figures: list[Figure] = []

    def tell(figure: Figure) -> None:
        figures.append(figure)
        print(f"{figure.name:40} {figure.images_per_second:10,.0f}  {figure.note}", flush=True)

    make_images(folder / "images", plan)
    files = sorted((folder / "images").glob("*-0.jpg"))
    for figure in decode_limits(files, plan):
        tell(figure)
    for figure in card_decode_limits(files, plan):
        tell(figure)
    few = [images.decode(file.read_bytes(), View((SIDE, SIDE), 3)).pixels for file in files[:128]]
    pixels = np.concatenate([np.roll(few, shift, axis=2) for shift in range(0, 8 * len(few), 8)])[: plan.batches[-1]]
    from benchmarks import untrained  # torch: not in the processes that decode

    bundle = str(folder / "bundle")
    untrained.save(plan.network, np.resize(pixels, (max(len(pixels), 128), *pixels.shape[1:])), bundle)
    for figure in forward_limits(pixels, plan):
        tell(figure)
    difference = parity(pixels[:64], plan)
    tell(job_figure(JOB, *job(bundle, folder / "images", folder / "results", *options)))
    if plan.device == "cuda":
        tell(job_figure(JOB_BY_CARD, *job(bundle, folder / "images", folder / "by-card", *options, "--decode", "gpu")))
    return table(figures, plan, difference)


def main() -> None:
    """Measure."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn224")
    parser.add_argument("--images", type=int, help="default: 20,000 with a GPU, 400 without")
    parser.add_argument("--folder", type=Path, help="for pictures and results; default: a temporary one")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    parser.add_argument("--compile", action="store_true", help="measure compiled networks, too")
    parser.add_argument("--job", default="", help="more options for `fcdd score`, in one word: --job='--workers 2'")
    parser.add_argument("--smoke", action="store_true", help="few images, short rounds")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    count = arguments.images or (20_000 if on_gpu else 400)
    plan = Plan(arguments.network, count, min(DISTINCT, count), 2.0, "cuda", (64, 256), arguments.compile)
    if not on_gpu:
        plan = plan._replace(device="cpu", batches=(4, 16), distinct=min(100, count))
    if arguments.smoke:
        plan = plan._replace(images=40, distinct=8, seconds=0.05, batches=(4, 8))
    with tempfile.TemporaryDirectory() as temporary:
        text = measure(plan, arguments.folder or Path(temporary), arguments.job.split())
    print(f"\n{text}")
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
