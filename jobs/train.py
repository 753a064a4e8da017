"""`fcdd train`: nominal images -> a bundle, alone or data-parallel with Ray Train."""

from collections.abc import Iterator, Sequence

from fcdd.bundle import PAGE_FILE, BundleSpec
from fcdd.io import storage
from jobs.shell import formatting, process
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
    bundle = storage.normalize(settings.bundle)
    print("\n".join(_lines(run.train(settings).spec, bundle)))


def _lines(spec: BundleSpec, bundle: str) -> Iterator[str]:
    """What came of a training, for a person."""
    fitted, metrics = spec.calibration, dict(spec.training.metrics)
    images = "each scored by the statistics of all others" if fitted.is_leave_one_out else "held out"
    yield f"bundle     {bundle}\ndigest     {spec.digest}"
    yield f"score      {spec.score} of the map"
    yield f"threshold  {fitted.threshold:.6g} for a false-alarm rate of {fitted.alpha:g}"
    yield f"           from {fitted.pooled.num_images} images, {images}"
    kinds = {name: metrics.pop(name) for name in sorted(metrics) if name.startswith("found_")}
    found = ", ".join(f"{formatting.share(each)} of {name.removeprefix('found_')}" for name, each in kinds.items())
    share = formatting.share(metrics.pop("found"))
    yield f"finds      {share} of synthetic anomalies of kinds not trained on ({found})"
    for name, value in sorted(metrics.items()):
        yield f"{name:10} {value:.4f}"
    yield f"look at    {storage.join(bundle, PAGE_FILE)}: are its most anomalous nominal images really good?"


if __name__ == "__main__":
    process.exit_with(main())
