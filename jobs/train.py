"""`fcdd train`: nominal images -> a bundle, alone or data-parallel with Ray Train."""

from collections.abc import Sequence

from fcdd.io import storage
from jobs.shell import process
from jobs.training import dry_run, run
from jobs.training.settings import TrainSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: train(TrainSettings.parse(argv)))


def train(settings: TrainSettings) -> None:
    """Train, and print what came of it."""
    if settings.dry_run:
        dry_run.dry_run(settings)
        return
    spec = run.train(settings).spec
    print(f"bundle     {storage.normalize(settings.bundle)}\ndigest     {spec.digest}")
    print(f"threshold  {spec.calibration.threshold:.6g} for a false-alarm rate of {settings.alpha:g}")
    for name, value in sorted(spec.training.metrics.items()):
        print(f"{name:10} {value:.4f}")


if __name__ == "__main__":
    process.exit_with(main())
