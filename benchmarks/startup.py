"""How long does it take from the command to the first scored image?

    python -m benchmarks.startup [--rounds 5] [--smoke]

Runs `fcdd score` (cnn32, two workers) on 2,000 ELPV cells in the embedded S3 server and looks for the first staged part
twenty times a second.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from benchmarks.scoring import BUCKET, make_bundle, upload
from cluster import local_s3
from fcdd.io import storage


def run(round_: int) -> float:
    """Seconds from the start of the process to the first staged part."""
    results = f"{BUCKET}/results-{round_}"
    where = ["--bundle", f"{BUCKET}/cnn32", "--images", f"{BUCKET}/images", "--results", results]
    night = ["--collection", "c", "--date", "2026-11-01", "--workers", "2"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.score", *where, *night], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not any("/rows/" in info.uri for page in storage.pages(f"{results}/_staging") for info in page):
        assert process.poll() is None, "the run ended before a staged part was seen"
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    assert process.wait() == 0
    return seconds


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one round")
    arguments = parser.parse_args()
    with local_s3.serve("bench") as server:
        os.environ.update(server.environment())
        make_bundle("cnn32", f"{BUCKET}/cnn32")
        upload(2000)
        seconds = [run(round_) for round_ in range(1 if arguments.smoke else arguments.rounds)]
    print(
        f"seconds to the first staged part: median {statistics.median(seconds):.1f} of {[round(s, 1) for s in seconds]}"
    )


if __name__ == "__main__":
    main()
