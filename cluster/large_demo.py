"""`make demo-large`: small defects in large images, on one machine and in local folders.

    draw solar modules -> train at the size the defects need -> a night -> report, pictures, evaluation

Modules of 4 x 4 real solar cells have 1,200 x 1,200 pixels; of half of those that are scored exactly one cell is
defective. The report shows each module with its heatmap, and its hottest region at full resolution beside it.
Everything lies in `demo-output/large`, which is replaced.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from cluster import commands

OUTPUT = Path("demo-output", "large")
NIGHT = "2026-11-01"
# Of `fcdd nightly`: fine; drifted, or more alarms than by chance, since so many modules are defective.
_JUDGED = (0, 4, 5)
# So many images support one false alarm in a hundred.
_ENOUGH = 100


def demonstrate(*, side: int, nominal: int, test: int, smallest_defect: float, evaluated: bool = True) -> None:
    """Modules of `side` x `side` cells, `nominal` ones to train on. Raises CalledProcessError for a command that fails.

    Of few of them a single odd one would set the threshold for the usual rate of false alarms: then it is a higher one.
    """
    shutil.rmtree(OUTPUT, ignore_errors=True)
    drawn, night = OUTPUT / "drawn", OUTPUT / "modules" / NIGHT
    numbers = ("--side", str(side), "--nominal", str(nominal), "--test", str(test))
    commands.run("python", "-m", "fcdd.paper.mosaics", str(drawn), *numbers)
    night.parent.mkdir()
    (drawn / "test").rename(night)
    bundle, results = str(OUTPUT / "bundle"), str(OUTPUT / "results")
    size = ("--smallest-defect", f"{smallest_defect:g}")
    alpha = ("--alpha", "0.05") if nominal < _ENOUGH else ()
    commands.run("fcdd", "train", "--images", str(drawn / "nominal"), "--bundle", bundle, *size, *alpha)
    images = ("--images", f"{night.parent}/{{date}}", "--date", NIGHT, "--collection", "modules")
    commands.run("fcdd", "nightly", "--bundle", bundle, *images, "--results", results, expected=_JUDGED)
    commands.run("fcdd", "report", "--results", results, "--output", str(OUTPUT / "report.html"))
    if not evaluated:
        return
    commands.run("fcdd", "heatmap", "--results", results, "--top", "4", "--output", str(OUTPUT / "pictures"))
    labels = ("--labels", str(night), "--masks", str(drawn / "ground_truth"))
    commands.run("fcdd", "evaluate", "--results", results, *labels, "--output", str(OUTPUT / "evaluation.html"))


def main() -> int:
    """Run it; the exit code of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4, help="cells along each side of a module (4)")
    parser.add_argument("--nominal", type=int, default=120, help="nominal modules to train on (120)")
    parser.add_argument(
        "--test", type=int, default=12, help="nominal modules, and as many defective ones, to score (12)"
    )
    parser.add_argument("--smallest-defect", type=float, default=11, help="as of `fcdd train` (11 pixels)")
    options = parser.parse_args()
    try:
        demonstrate(
            side=options.side, nominal=options.nominal, test=options.test, smallest_defect=options.smallest_defect
        )
    except subprocess.CalledProcessError as error:
        print(f"\nthe step ended with exit code {error.returncode}, which it should not", file=sys.stderr)
        return error.returncode or 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"\nreport       {OUTPUT / 'report.html'}\nevaluation   {OUTPUT / 'evaluation.html'}")
    print(f"pictures     {OUTPUT / 'pictures'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
