"""What happens in which tenth of a second, from the command to the first scored image?

    python -m benchmarks.startup [--images 300] [--rounds 3] [--smoke]

Runs `fcdd score` with the default network on JPEGs of a local folder, in processes of their own: once as on the first
night of a machine (the network is converted), then as on any other. In each, the steps of the product are wrapped by a
clock that started with the command. Prints when each step began and ended for the first time, the median of the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = "FCDD_BENCH_BEGAN"


def watched(argv: list[str]) -> None:
    """The command in this process, with a clock around its steps; what it saw is the last line that it prints."""
    began, seen = float(os.environ[BEGAN]), dict[str, tuple[float, float]]()

    def now() -> float:
        return time.time() - began

    def wrap(owner: Any, name: str, label: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            start = now()
            try:
                return original(*arguments, **named)
            finally:
                seen.setdefault(label, (start, now()))

        setattr(owner, name, timed)

    start = now()
    from jobs import score

    seen["importing the verb, without torch and Ray"] = (start, now())
    from fcdd import scorer
    from fcdd.io.isolation import IsolatedDecoder
    from jobs.engines import choice, stages
    from jobs.scoring import waves
    from jobs.scoring.manifests import Listing

    wrap(waves, "prepare", "reading the bundle, checking the options")
    wrap(Listing, "wait", "listing, until the first part is sealed")
    wrap(choice, "choose", "choosing an engine")
    wrap(IsolatedDecoder, "_started", "starting a decoder process")
    wrap(stages.FetchDecode, "load", "fetching and decoding the first shard")
    wrap(scorer, "load", "loading the network")
    wrap(stages.Score, "__call__", "scoring the first shard")
    wrap(stages.StageParts, "__call__", "staging the first shard")
    code = score.main(argv)
    seen["the whole command"] = (0.0, now())
    print(json.dumps({"code": code, "torch": "torch" in sys.modules, "seen": seen}))


def run(bundle: str, images: str, results: str) -> dict[str, Any]:
    """One start."""
    where = ["--bundle", bundle, "--images", images, "--results", results]
    code = f"from benchmarks.startup import watched; watched({[*where, '--collection', 'c', '--date', '2026-11-01']!r})"
    environment = os.environ | {BEGAN: str(time.time()), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the rounds."""
    # Not above: what is timed imports this module, too, and is not to find torch there.
    from benchmarks import peers
    from fcdd.io import storage

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="few images, one round")
    given = parser.parse_args()
    count, rounds = (40, 1) if given.smoke else (given.images, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        peers.make_bundle("default", "jpeg", f"{folder}/bundle")
        source = peers.pictures("jpeg")
        for name, data in (next(source) for _ in range(count)):
            storage.write(f"{folder}/images/{name}", data)
        found = [run(f"{folder}/bundle", f"{folder}/images", f"{folder}/results-{n}") for n in range(rounds + 1)]
    for name, chosen in (("the first night of a machine", found[:1]), ("any other night", found[1:])):
        print(f"{name} (torch was {'' if chosen[0]['torch'] else 'not '}loaded)")
        for label in chosen[0]["seen"]:
            start, end = (statistics.median(each["seen"][label][edge] for each in chosen) for edge in (0, 1))
            print(f"  {start:5.2f} to {end:5.2f} s  {label}")


if __name__ == "__main__":
    main()
