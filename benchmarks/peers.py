"""How long does a night take, from the command to the Parquet file, beside what one would write with other tools?

    python -m benchmarks.peers [--network default] [--images 1200,3600] [--from folder,s3] [--rounds 3] [--smoke]

The same images, the same weights, the same cores, one after the other in every round:

    fcdd        `fcdd score` as it comes: isolated decoders, heatmaps, regions, p-values, quarantine, proof, commit
    fcdd-ray    the same with `--workers N` on a local Ray
    daft        benchmarks/peer_daft.py: Daft's documented pattern, scores only
    loader      benchmarks/peer_loader.py: a torch DataLoader, scores only

Daft gets an environment that is made beside the images, with the torch of this one. `fcdd` is run once before it is
measured, as on any night but the first: its network is converted then (`first` shows that run). Images are JPEGs of
500x375 pixels (or with `--kind elpv` PNGs of solar cells). A line of JSON per run, and the table of medians:

    first    seconds from the command to the first scored image
    steady   images/s after that
    whole    seconds of the whole command
    cpu      CPU seconds of all its processes
    memory   most memory of all its processes at one time, GB, shared pages counted once (PSS)
    bytes    what is written per image
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks import untrained
from cluster import local_s3
from fcdd import images as decoding
from fcdd import networks
from fcdd.io import storage
from fcdd.paper import datasets
from jobs.catalog import commit_records

HERE = Path(__file__).parent
NETWORKS = {"default": "whitened:efficientnet_lite0:stage3+stage4+stage5:1:32+32+32"}
WORKERS = os.cpu_count() or 2
# Pixels along each side of the network's input.
SIDES = {"cnn28": 28, "cnn32": 32}
SAMPLE_SECONDS = 0.25
COLUMNS = ("first", "steady", "whole", "cpu", "memory", "bytes")


def pictures(kind: str) -> Iterator[tuple[str, bytes]]:
    """Names and encoded images, without end; each is another picture."""
    random = np.random.default_rng(0)
    if kind == "elpv":
        cells = [cell.path for cell in datasets.elpv()]
        for number in range(sys.maxsize):
            yield f"{number // 1000:03d}/{number:07d}.png", cells[number % len(cells)].read_bytes()
    from skimage import data

    textures = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("brick", "grass", "gravel")]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(sys.maxsize):
            left, top = (int(each) for each in random.integers(0, (12, 137)))
            cut = textures[number % 3].crop((left, top, left + 500, top + 375))
            noise = random.normal(0, 4, (375, 500, 3))
            path = Path(folder, "picture.jpg")
            Image.fromarray((np.asarray(cut) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=88)
            yield f"{number // 1000:03d}/{number:07d}.jpg", path.read_bytes()


def make_bundle(network: str, kind: str, uri: str) -> None:
    """Random weights, or a trunk's own; fitted to and calibrated on a few pictures of the same kind."""
    source = pictures(kind)
    encoded = [next(source)[1] for _ in range(240)]
    side = SIDES.get(network, 224)
    view = decoding.View((side, side), networks.in_channels(network))
    pixels = np.stack([decoding.decode(each, view).pixels for each in encoded])
    untrained.save(NETWORKS.get(network, network), pixels, uri)


def daft_environment(folder: Path) -> Path:
    """An interpreter with Daft, which also finds what this one has."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "daft"], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib"))
    return python


def measured(command: list[str | Path], first: Callable[[], float | None]) -> dict[str, float]:
    """Run a command and watch its processes. `first` says when its first image was scored, once it was."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent), "PEER_WORKERS": str(WORKERS)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": str(WORKERS)}
    began, cpu, most = time.time(), dict[int, float](), 0.0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        me = psutil.Process(process.pid)
        while process.poll() is None:
            memory = 0.0
            for each in _family(me):
                with suppress(psutil.Error, OSError):
                    times = each.cpu_times()
                    cpu[each.pid] = times.user + times.system
                    memory += _pss(each.pid)
            most = max(most, memory)
            time.sleep(SAMPLE_SECONDS)
        whole = time.time() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read().decode()[-3000:])
    seen = first()
    return {"first": (seen or began) - began, "whole": whole, "cpu": sum(cpu.values()), "memory": most / 1e9}


def _family(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def _pss(pid: int) -> float:
    """Bytes, those of shared pages divided among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def score(bundle_uri: str, images: str, place: str, count: int, *options: str) -> dict[str, float]:
    """`fcdd score`; the first image is scored when its first part is staged."""
    results = f"{place}/results"
    where = ["--bundle", bundle_uri, "--images", images, "--results", results]
    command = [sys.executable, "-m", "jobs.score", *where, "--collection", "c", "--date", "2026-11-01", *options]
    began = time.time()
    found = measured(list(command), lambda: None)
    [record] = commit_records.committed(results, "c")
    if record.num_scored != count:
        raise RuntimeError(f"{record.num_scored} of {count} images were scored")
    # The record counts from where staging began; what came before it is the rest of the whole.
    staging = record.started_at.timestamp() - began
    found["first"] = staging + record.stage_seconds["to_first_image"]
    written = sum(part.bytes for part in (*record.scores, *record.quarantine))
    return found | {"steady": record.images_per_second, "bytes": written / count}


def peer(python: Path, script: str, bundle_uri: str, images: str, place: str, count: int) -> dict[str, float]:
    """A script of another tool."""
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "first")
        command: list[str | Path] = [python, HERE / script, bundle_uri, images, f"{place}/output", first]
        found = measured(command, lambda: float(first.read_text()) if first.exists() else None)
    written = sum(info.size for page in storage.pages(place) for info in page if info.uri.endswith(".parquet"))
    return found | {"steady": count / (found["whole"] - found["first"]), "bytes": written / count}


def table(runs: list[dict[str, Any]]) -> str:
    """Medians of the rounds, as Markdown."""
    lines = ["| network | images | peer | " + " | ".join(COLUMNS) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    rows = dict.fromkeys((run["network"], f"{run['images']}, {run['from']}", run["peer"]) for run in runs)
    for row in rows:
        chosen = [r for r in runs if (r["network"], f"{r['images']}, {r['from']}", r["peer"]) == row]
        cells = [statistics.median(run[column] for run in chosen) for column in COLUMNS]
        lines.append(f"| {' | '.join(row)} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="default", help="default, or any of `fcdd train --network`; several by ,")
    parser.add_argument("--images", default="1200,3600")
    parser.add_argument("--from", dest="places", default="folder,s3")
    parser.add_argument("--kind", choices=("jpeg", "elpv"), default="jpeg")
    parser.add_argument("--peers", default="fcdd,fcdd-ray,daft,loader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environment", type=Path, help="where Daft's environment is kept; default: made for this run")
    parser.add_argument("--smoke", action="store_true", help="few images, one round")
    given = parser.parse_args()
    counts = [120] if given.smoke else [int(each) for each in given.images.split(",")]
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
        python = daft_environment(given.environment or scratch / "daft") if "daft" in given.peers else Path()
        for place in given.places.split(","):
            with ExitStack() as server:
                root = str(scratch / "data")
                if place == "s3":
                    os.environ.update(server.enter_context(local_s3.serve("bench")).environment())
                    root = "s3://bench"
                for network in given.network.split(","):
                    networks.check_name(NETWORKS.get(network, network))
                    make_bundle(network, given.kind, f"{root}/bundles/{network}")
                    for count in counts:
                        images = f"{root}/images-{count}"
                        source = pictures(given.kind)
                        for name, data in (next(source) for _ in range(count)):
                            storage.write(f"{images}/{name}", data)
                        what = {"network": network, "images": count, "from": place}
                        for run in _rounds(given, python, f"{root}/bundles/{network}", images, root, count):
                            runs.append(what | run)
                            print(json.dumps(runs[-1]), flush=True)
                        storage.delete_prefix(images)
                shutil.rmtree(scratch / "data", ignore_errors=True)
    print(table(runs))


def _rounds(
    given: argparse.Namespace, python: Path, bundle_uri: str, images: str, root: str, count: int
) -> Iterator[dict[str, Any]]:
    ours, interpreter = (bundle_uri, images), Path(sys.executable)
    ways: dict[str, Callable[[str], dict[str, float]]] = {
        "fcdd": lambda place: score(*ours, place, count),
        "fcdd-ray": lambda place: score(*ours, place, count, "--workers", str(WORKERS)),
        "daft": lambda place: peer(python, "peer_daft.py", *ours, place, count),
        "loader": lambda place: peer(interpreter, "peer_loader.py", *ours, place, count),
    }
    chosen = given.peers.split(",")
    for number in range(-1 if "fcdd" in chosen else 0, 1 if given.smoke else given.rounds):
        for name in chosen if number >= 0 else ["fcdd"]:
            place = f"{root}/written"
            yield {"peer": name if number >= 0 else "first", "round": number, **ways[name](place)}
            storage.delete_prefix(place)


if __name__ == "__main__":
    main()
