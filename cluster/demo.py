"""`make demo`: the whole job on real images, with a real S3 server, on one machine.

    upload -> train -> two nights, the second of which drifts -> query, heatmaps -> evaluate -> a few large images

On the first night almost all cells are nominal, as in a factory; on the second most are defective. The first is scored
by the threads of one process, as a machine alone does it, the second on a local Ray, as a cluster does. Every step
after the upload is a command of its own, printed before it runs. Results and bundle are copied to `demo-output/` before
the server stops; what it held stays there too, and `make demo-shell` opens a shell in which it runs again.
"""

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from cluster import commands, large_demo, local_s3
from fcdd import splits
from fcdd.io import storage
from fcdd.paper import datasets
from fcdd.paper.datasets import LabelledImage

OUTPUT = Path("demo-output")
CONFIG = Path(__file__).with_name("demo.toml")
NIGHTS = ("2026-11-01", "2026-11-02")
# Nominal cells that are never trained on: the test set is these and all anomalous cells.
HELD_OUT_SHARE = 0.3
# Anomalous cells of the first night; the others come in the second.
FIRST_NIGHT_SHARE = 0.002
# Modules of so many cells a side, so many nominal ones to train on and of each kind to score: few, for want of time.
LARGE = {"side": 3, "nominal": 60, "test": 4, "smallest_defect": 11}
# `fcdd nightly`: fine, drifted.
FINE, DRIFTED = 0, 4
SAMPLE_SECONDS = 1.0
# What the server holds.
DATA = OUTPUT / "s3"
HINTS = """the demo's S3 server runs until you leave this shell; some things to do:
  fcdd query                                          the most anomalous images of both nights
  fcdd heatmap --date 2026-11-02                      pictures of them, in heatmaps/
  fcdd query --sql "FROM scores LIMIT 3"              SQL of your own
  fcdd report --date 2026-11-02                       report.html, for a browser
  fcdd review --date 2026-11-01                       label its most anomalous images, in a browser
  fcdd calibrate --reviewed FILE --date 2026-11-01 --output s3://demo/bundle-2    FILE: as `fcdd review` says at its end
  exit"""
# Linux: processes whose parent died become our children instead of init's, so that none is lost sight of.
PR_SET_CHILD_SUBREAPER = 36


class Stopwatch:
    """Where the time went."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Add the time of a block under the name of a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0) + time.monotonic() - start


class Processes(threading.Thread):
    """Watches this process and all it starts: their memory, shared pages counted once, and that they end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._stopped = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        me = psutil.Process()
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss, [me, *me.children(recursive=True)])))

    def stop(self) -> None:
        """End the sampling, and whatever is left: Ray's agents outlive a driver that was interrupted by minutes."""
        self._stopped.set()
        self.join()
        _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=2)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(alive, timeout=5)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0


def main() -> int:
    """Run the demonstration, or a shell beside what it left; the exit code of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shell", action="store_true", help="a shell in which the server of the last demo runs")
    return shell() if parser.parse_args().shell else demonstrate()


def shell() -> int:
    """The user's shell with the server, its credentials and the configuration; 2 if there was no demo."""
    if not DATA.exists():
        print("error: there is nothing of a demo here; run `make demo` first", file=sys.stderr)
        return 2
    try:
        return _shell()
    except local_s3.NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _shell() -> int:
    with local_s3.serve("demo", DATA) as server:
        found = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        found |= {"FCDD_CONFIG": str(CONFIG.absolute()), **server.environment()}
        print(HINTS, flush=True)
        return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=os.environ | found).returncode


def demonstrate() -> int:
    """The demonstration."""
    # SIGINT too: a shell starts background jobs with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    watch, processes = Stopwatch(), Processes()
    if started := os.environ.get("DEMO_STARTED"):
        watch.seconds["set-up (environment, installation)"] = time.time() - float(started)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    processes.start()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    try:
        with local_s3.serve("demo", DATA) as server:
            os.environ.update(server.environment())
            print(f"S3 server at {server.endpoint}, bucket s3://{server.bucket}")
            _run_steps(watch)
            with watch.measure("copy results"):
                for folder in ("results", "bundle"):
                    _download(f"s3://demo/{folder}", OUTPUT / folder)
                [page] = (OUTPUT / "results" / "reports").glob(f"*/date={NIGHTS[1]}/*/report.html")
                shutil.copy(page, OUTPUT)
    except subprocess.CalledProcessError as error:
        print(f"\nthe step ended with exit code {error.returncode}, which it should not", file=sys.stderr)
        if reason := local_s3.why_too_full(DATA):
            print(f"error: {reason}", file=sys.stderr)
        return error.returncode or 1
    except local_s3.NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; stopping everything the demo started", file=sys.stderr)
        return 130
    finally:
        processes.stop()
    _summary(watch, processes.peak_bytes)
    return 0


def _run_steps(watch: Stopwatch) -> None:
    with watch.measure("upload images"):
        upload("s3://demo")
    with watch.measure("train"):
        _fcdd("train", "--images", "s3://demo/images/nominal", "--bundle", "s3://demo/bundle")
    with watch.measure("a night by threads"):
        _fcdd("nightly", "--date", NIGHTS[0])
    with watch.measure("a night on Ray"):
        _fcdd("nightly", "--date", NIGHTS[1], "--workers", "2", expected=DRIFTED)
    with watch.measure("runs, query and pictures"):
        _fcdd("runs")
        _fcdd("query", "--date", NIGHTS[1])
        _fcdd("heatmap", "--date", NIGHTS[1], "--output", str(OUTPUT / "pictures"))
    with watch.measure("evaluate"):
        _fcdd("evaluate", "--labels", "s3://demo/labels.csv", "--output", str(OUTPUT / "evaluation.html"))
    with watch.measure("large images: training, a night, report"):
        large_demo.demonstrate(**LARGE, evaluated=False)


def _fcdd(verb: str, *arguments: str, expected: int = FINE) -> None:
    """Run a command. Raises CalledProcessError for another exit code than the expected one."""
    commands.run("fcdd", verb, "--config", os.path.relpath(CONFIG), *arguments, expected=(expected,))


def upload(root: str) -> None:
    """Nominal training images, two mixed nights with a few broken files, and the labels, below `root`."""
    labels = ["image_uri,label"]
    counts = {"nominal": 0, NIGHTS[0]: 0, NIGHTS[1]: 0}
    for image in datasets.elpv():
        if image.probability not in (0.0, 1.0):
            continue
        folder = _folder(image)
        uri = f"{root}/images/{folder}/{image.cell_type}/{image.path.name}"
        storage.write(uri, image.path.read_bytes())
        counts[folder] += 1
        if folder != "nominal":
            labels.append(f"{uri},{int(image.probability)}")
    for night in NIGHTS:
        for name, content in broken_files().items():
            storage.write(f"{root}/images/{night}/broken/{name}", content)
    storage.write(f"{root}/labels.csv", "\n".join(labels).encode())
    print(f"uploaded {counts}, and {len(broken_files())} broken files to each night")


def _folder(image: LabelledImage) -> str:
    """Training folder or night; decided by a hash of the name, so it is the same on every machine."""
    if image.probability == 0 and not splits.is_held_out(image.path.name, HELD_OUT_SHARE):
        return "nominal"
    second = 0.5 if image.probability == 0 else 1 - FIRST_NIGHT_SHARE
    return NIGHTS[splits.is_held_out(f"night of {image.path.name}", second)]


def broken_files() -> dict[str, bytes]:
    """What cameras and uploads leave behind: file name -> content that cannot be scored."""
    whole = datasets.elpv()[0].path.read_bytes()
    return {
        "empty.png": b"",
        "half-uploaded.png": whole[: len(whole) // 2],
        "error-page.jpg": b"<html><body>503 Service Unavailable</body></html>",
        "scrambled.png": whole[:100] + bytes(reversed(whole[100:])),
    }


def _download(prefix: str, folder: Path) -> None:
    for page in storage.pages(prefix):
        for info in page:
            target = folder / info.uri.removeprefix(prefix).lstrip("/")
            storage.write(str(target), storage.read(info.uri))


def _summary(watch: Stopwatch, peak_bytes: int) -> None:
    print("\nwhere the time went")
    for step, seconds in watch.seconds.items():
        print(f"  {seconds:7.1f} s  {step}")
    print(f"  {sum(watch.seconds.values()):7.1f} s  in all")
    print(f"peak memory  {peak_bytes / 1e9:.2f} GB")
    print(f"pictures     {OUTPUT / 'pictures'}")
    print(f"report       {OUTPUT / 'report.html'}")
    print(f"evaluation   {OUTPUT / 'evaluation.html'}")
    print(f"large images {large_demo.OUTPUT / 'report.html'}")
    print(f"results      {OUTPUT / 'results'}")
    print("go on        make demo-shell   (the server with images, results and bundle; ask, look, review)")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
