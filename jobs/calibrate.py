"""`fcdd calibrate`: the same weights with another calibration, from fresh nominal images or from a reviewed run.

images -> scored here -> calibration -> a new bundle (another digest)
a run + labels of its alarms -> its rows without the anomalies -> calibration -> a new bundle
another score, another rate -> the images that the bundle knows -> calibration -> a new bundle
"""

import logging
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from pydantic import Field

from fcdd import added_calibration, bundle, grouping
from fcdd.bundle import BundleSpec
from fcdd.calibration import Calibration, Decider, Nominal, Score
from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.calibration import recalibration, threshold
from jobs.catalog import commit_records
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings, Night

log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What a calibration is of: for people, and as locations and nights ("collection date") to compare with."""

    text: str
    names: tuple[str, ...]


class CalibrateSettings(JobSettings):
    """Calibrate a bundle anew, without training: another camera, lamp or product batch, or a reviewed run.

    Writes a new bundle with the same weights and another digest. Give --images, or --reviewed with --results and
    --collection, which take the place of the images before, or with --add come to them; or only another --score or
    --alpha, for the images that the bundle knows.
    """

    verb: ClassVar[str] = "calibrate"

    bundle: str = Field(description="location of the bundle whose weights are used")
    output: str = Field(description="location to write the new bundle to")
    add: bool = Field(
        False, description="keep the images that the bundle was calibrated on, and add these, instead of these alone"
    )
    images: str | None = Field(None, description="location of nominal images that were not trained on")
    reviewed: str | None = Field(
        None,
        description="labels (.csv or .parquet with image_uri and label) of all alarms of a run; its images without the "
        "anomalous ones are the calibration",
    )
    results: str | None = Field(None, description="location of the results of the reviewed run")
    collection: str | None = Field(None, description="collection of the reviewed run")
    date: Night | None = Field(None, description="night of the reviewed run, YYYY-MM-DD; default: all nights")
    score: Score | None = Field(
        None, description="of an image by its map: mean, maximum or top1pct; default: the bundle's"
    )
    alpha: float | None = Field(None, gt=0, lt=1, description="promised false-alarm rate; default: the bundle's")
    group_pattern: str | None = Field(None, description="as for `fcdd train`; default: the bundle's")
    decide_by_group: bool | None = Field(None, description="as for `fcdd train`; default: the bundle's")
    max_images: int = Field(20_000, ge=1, description="of more images so many are taken, by a hash of their names")
    overwrite: bool = Field(False, description="replace a bundle that is already there")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: calibrate(CalibrateSettings.parse(argv)))


def calibrate(settings: CalibrateSettings) -> None:
    """Calibrate, write the new bundle, and print what is different."""
    uri, output = storage.normalize(settings.bundle), storage.normalize(settings.output)
    spec, weights = bundle.load(uri)
    _check(settings, output)
    score, sample = settings.score or spec.score, bundle.load_sample(uri, spec)
    if settings.images or settings.reviewed:
        fitted, source = _fitted(settings, spec, weights, score)
    else:
        fitted, source = _switched(settings, spec, score), Source(spec.calibrated_on, spec.calibration_sources)
    new = spec.model_copy(
        update={
            "score": score,
            "calibration": fitted,
            "calibrated_on": source.text,
            "calibration_sources": source.names,
            "sample_sha256": None if sample is None else spec.sample_sha256,
            "parent": spec.parent or spec.digest,
        }
    )
    if new.digest == spec.digest:
        log.info("the calibration is the one that the bundle has")
    bundle.save(output, new, weights, sample)
    print(f"bundle      {output}\ndigest      {new.digest}\nweights of  {new.parent}")
    _print_difference(spec, new)


def _check(settings: CalibrateSettings, output: str) -> None:
    """Raises ConfigError for options that contradict each other, and for a place that must stay as it is."""
    grouping.compile_pattern(settings.group_pattern)
    if settings.images and settings.reviewed:
        raise ConfigError("say what to calibrate on: either --images, or --reviewed with --results and --collection")
    if not (settings.images or settings.reviewed or settings.score or settings.alpha):
        raise ConfigError(
            "say what to calibrate on: --images, or --reviewed with --results and --collection; or give another "
            "--score or --alpha for the images that the bundle knows"
        )
    if settings.add and not (settings.images or settings.reviewed):
        raise ConfigError("--add needs images to add: --images, or --reviewed with --results and --collection")
    if settings.add and settings.group_pattern:
        raise ConfigError("--group-pattern does not go with --add: the images that are kept have their groups")
    if settings.images and storage.normalize(settings.images) == output:
        raise ConfigError(f"--output is the location of the images, {output}; give one of its own")
    if storage.exists(storage.join(output, bundle.SPEC_FILE)) and not settings.overwrite:
        raise ConfigError(f"there is a bundle at {output}, and runs may name it; choose another or add --overwrite")
    if not settings.reviewed and settings.date:
        log.warning("--date is not taken: it is the night of a reviewed run")
    if not (settings.images or settings.reviewed) and settings.group_pattern:
        log.warning("--group-pattern is not taken: the groups of the images that the bundle knows stay as they are")
    storage.check_writable(output)


def _switched(settings: CalibrateSettings, spec: BundleSpec, score: Score) -> Calibration:
    """Another score or rate for the images that the bundle was calibrated on."""
    before = spec.calibration
    by_group = before.decide_by_group if settings.decide_by_group is None else settings.decide_by_group
    return before.switched(spec.score, score, alpha=settings.alpha or before.alpha, decide_by_group=by_group)


def _fitted(settings: CalibrateSettings, spec: BundleSpec, weights: bytes, score: Score) -> tuple[Calibration, Source]:
    """A calibration on other images, and what they are."""
    before = spec.calibration
    pattern = settings.group_pattern or before.group_pattern
    source, nominal, uris = _nominal(settings, spec, weights, score, pattern)
    by_group = before.decide_by_group if settings.decide_by_group is None else settings.decide_by_group
    alpha = settings.alpha or before.alpha
    if settings.add:
        kept = before.switched(spec.score, score, alpha=before.alpha, decide_by_group=by_group)
        fitted = added_calibration.add(kept, nominal, score, alpha=alpha, decide_by_group=by_group)
        source = Source(f"{spec.calibrated_on} and {source.text}", (*_sources(spec), *source.names))
    else:
        fitted = Calibration.fit(nominal, alpha=alpha, group_pattern=pattern, decide_by_group=by_group)
        threshold.explain(nominal.scores, nominal.peaks, uris, fitted.threshold)
    if not settings.add and len(uris) < before.pooled.num_images:
        log.warning(
            "%d images are fewer than the %d that the bundle was calibrated on: the threshold is less firm; --add "
            "keeps those, too",
            *(len(uris), before.pooled.num_images),
        )
    warn, whole = recalibration.warn_of_higher, not settings.add
    if score == spec.score:
        warn(before.threshold, fitted.threshold, nominal.scores, uris, "threshold", are_all=whole)
    warn(before.map_threshold, fitted.map_threshold, nominal.peaks, uris, "threshold of regions", are_all=whole)
    return fitted, source


def _print_difference(old: BundleSpec, new: BundleSpec) -> None:
    before, fitted = old.calibration, new.calibration
    print(
        f"images      {fitted.pooled.num_images} nominal ones of {new.calibrated_on} (before: "
        f"{before.pooled.num_images})"
    )
    print(f"score       {new.score} of the map (before: {old.score})")
    print(
        f"threshold   {fitted.threshold:.6g} for a false-alarm rate of {fitted.alpha:g} (before: "
        f"{before.threshold:.6g} for {before.alpha:g})"
    )
    print(f"regions     above {fitted.map_threshold:.6g} (before: {before.map_threshold:.6g})")
    print(f"p-values    from {Decider(fitted, fitted.alpha).smallest_p_value:.4g} on")
    own = fitted.deciding(fitted.alpha)
    for group, reference in fitted.groups.items():
        how = "decides by its own" if group in own else "told apart for drift"
        print(f"group       {formatting.printable(group)}: {reference.num_images} images, {how}")


def _nominal(
    settings: CalibrateSettings, spec: BundleSpec, weights: bytes, score: Score, pattern: str | None
) -> tuple[Source, Nominal, list[str]]:
    """What is calibrated on, the nominal images, and their locations."""
    count = settings.max_images
    if settings.images:
        location = storage.normalize(settings.images)
        _check_new(settings, spec, [location])
        alpha = None if settings.add else settings.alpha or spec.calibration.alpha
        found = recalibration.from_images(
            spec, weights, location, score=score, alpha=alpha, pattern=pattern, max_images=count
        )
        return Source(location, (location,)), *found
    if not settings.results or not settings.collection:
        raise ConfigError("--reviewed needs --results and --collection: where the reviewed run is")
    records = commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    nights = tuple(f"{record.collection} {record.day}" for record in records)
    _check_new(settings, spec, nights)
    labels = settings.reviewed or ""
    found = recalibration.from_runs(
        spec, settings.results, records, labels, score=score, pattern=pattern, max_images=count
    )
    return Source(f"reviewed run {', '.join(record.run_id for record in records)}", nights), *found


def _check_new(settings: CalibrateSettings, spec: BundleSpec, names: Sequence[str]) -> None:
    """Raises ConfigError for locations, or nights, that the calibration has in part: images would count twice."""
    for name in names if settings.add else ():
        for known in _sources(spec):
            if known == name or known.startswith(f"{name}/") or name.startswith(f"{known}/"):
                raise ConfigError(
                    f"the images of {known} are among those that the bundle was calibrated on, and would count twice "
                    f"with {name}; add others, or --add to the bundle of before"
                )


def _sources(spec: BundleSpec) -> tuple[str, ...]:
    """Locations, and nights as "collection date", that the calibration is of; older bundles name their location."""
    return spec.calibration_sources or (spec.calibrated_on,)


if __name__ == "__main__":
    process.exit_with(main())
