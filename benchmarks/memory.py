"""Does the memory of a scoring run grow with the number of images?

    python -m benchmarks.memory [--images 2000,20000] [--smoke]

Runs `fcdd score` (cnn32, two workers) on so many ELPV cells in the embedded S3 server, and prints the largest resident
memory of the driver, of a scoring actor and of a decoder, sampled ten times a second: all of it, and what is their own
(anonymous: without pages of libraries, which processes share, and of which an actor touches 100 MB more as it ends).
Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.scoring import BUCKET, make_bundle, upload
from cluster import local_s3
from fcdd.io import storage
from jobs.catalog import commit_records

KINDS = {"actor": "ray::MapWorker", "decoder": "fcdd.io.decoder_process"}


def resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes of resident memory: all, and anonymous."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return int(values["VmRSS"].split()[0]) * 1024, int(values["RssAnon"].split()[0]) * 1024


def run(count: int) -> dict[str, object]:
    """One run of the job."""
    results = f"{BUCKET}/results-{count}"
    where = ["--bundle", f"{BUCKET}/cnn32", "--images", f"{BUCKET}/images", "--results", results]
    command = [
        sys.executable,
        "-m",
        "jobs.score",
        *where,
        "--collection",
        "c",
        "--date",
        "2026-11-01",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    driver, peaks = psutil.Process(process.pid), dict.fromkeys(("driver", *KINDS), (0, 0))

    def look(kind: str, each: psutil.Process) -> None:
        whole, own = resident(each)
        peaks[kind] = max(peaks[kind][0], whole), max(peaks[kind][1], own)

    while process.poll() is None:
        try:
            look("driver", driver)
            for child in driver.children(recursive=True):
                words = " ".join(child.cmdline())
                for kind, word in KINDS.items():
                    if word in words:
                        look(kind, child)
        except (psutil.Error, OSError, KeyError):  # it has just ended
            pass
        time.sleep(0.1)
    assert process.returncode == 0
    [record] = commit_records.committed(results, "c")
    assert record.num_scored == count
    return {"images": count, **{kind: [f"{part / 1e6:.0f} MB" for part in peak] for kind, peak in peaks.items()}}


def main() -> None:
    """Run with each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="2000,20000")
    parser.add_argument("--smoke", action="store_true", help="a few images")
    arguments = parser.parse_args()
    counts = [100, 200] if arguments.smoke else sorted(map(int, arguments.images.split(",")))
    with local_s3.serve("bench") as server:
        os.environ.update(server.environment())
        make_bundle("cnn32", f"{BUCKET}/cnn32")
        for count in counts:
            upload(count)
            print(json.dumps(run(count)), flush=True)
            storage.delete_prefix(f"{BUCKET}/images")


if __name__ == "__main__":
    main()
