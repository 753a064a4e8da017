"""`fcdd calibrate`: the same weights with another calibration, from fresh nominal images or from a reviewed run.

images -> scored here -> calibration -> a new bundle (another digest)
a run + labels of its alarms -> its rows without the anomalies -> calibration -> a new bundle
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from fcdd import bundle, grouping, heatmap, splits
from fcdd.bundle import BundleSpec
from fcdd.calibration import STATISTICS, Calibration, Floats, Nominal, conformal_threshold
from fcdd.errors import BundleError, ConfigError
from fcdd.io import storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import commit_records, label_files, views
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings, Night
from jobs.sources import listing
from schemas import RunRecord

log = logging.getLogger(__name__)

# A threshold of more than so many times the old one is said, with the images that set it: are they nominal?
SUSPICIOUS_RATIO = 2.0
# So many of them are named.
_NAMED = 5


class CalibrateSettings(JobSettings):
    """Calibrate a bundle anew, without training: another camera, lamp or product batch, or a reviewed run.

    Writes a new bundle with the same weights and another digest. Give --images, or --reviewed with --results and
    --collection.
    """

    verb: ClassVar[str] = "calibrate"

    bundle: str = Field(description="location of the bundle whose weights are used")
    output: str = Field(description="location to write the new bundle to")
    images: str | None = Field(None, description="location of nominal images that were not trained on")
    reviewed: str | None = Field(
        None,
        description="labels (.csv or .parquet with image_uri and label) of all alarms of a run; its images without the "
        "anomalous ones are the calibration",
    )
    results: str | None = Field(None, description="location of the results of the reviewed run")
    collection: str | None = Field(None, description="collection of the reviewed run")
    date: Night | None = Field(None, description="night of the reviewed run, YYYY-MM-DD; default: all nights")
    alpha: float | None = Field(None, gt=0, lt=1, description="promised false-alarm rate; default: the bundle's")
    group_pattern: str | None = Field(None, description="as for `fcdd train`; default: the bundle's")
    decide_by_group: bool | None = Field(None, description="as for `fcdd train`; default: the bundle's")
    max_images: int = Field(20_000, ge=1, description="of more images so many are taken, by a hash of their names")
    overwrite: bool = Field(False, description="replace a bundle that is already there")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: calibrate(CalibrateSettings.parse(argv)))


def calibrate(settings: CalibrateSettings) -> None:
    """The whole job."""
    uri, output = storage.normalize(settings.bundle), storage.normalize(settings.output)
    spec, weights = bundle.load(uri)
    before = spec.calibration
    pattern = settings.group_pattern or before.group_pattern
    grouping.compile_pattern(pattern)
    if (settings.images is None) == (settings.reviewed is None):
        raise ConfigError("say what to calibrate on: either --images, or --reviewed with --results and --collection")
    if settings.images and storage.normalize(settings.images) == output:
        raise ConfigError(f"--output is the location of the images, {output}; give one of its own")
    if storage.exists(storage.join(output, bundle.SPEC_FILE)) and not settings.overwrite:
        raise ConfigError(f"there is a bundle at {output}, and runs may name it; choose another or add --overwrite")
    if settings.images and settings.date:
        log.warning("--date is not taken: it is the night of a run, and --images are calibrated on")
    storage.check_writable(output)
    source, nominal, uris = (
        _from_images(settings, spec, weights, pattern) if settings.images else _from_run(settings, spec, pattern)
    )
    by_group = before.decide_by_group if settings.decide_by_group is None else settings.decide_by_group
    fitted = Calibration.fit(
        nominal, alpha=settings.alpha or before.alpha, group_pattern=pattern, decide_by_group=by_group
    )
    _warn_of_higher(before.threshold, fitted.threshold, nominal.scores, uris, "threshold")
    _warn_of_higher(before.map_threshold, fitted.map_threshold, nominal.peaks, uris, "threshold of regions")
    new = spec.model_copy(update={"calibration": fitted, "calibrated_on": source, "parent": spec.parent or spec.digest})
    if new.digest == spec.digest:
        log.info("the calibration is the one that the bundle has")
    for name, content in bundle.to_files(new, weights).items():
        storage.write(storage.join(output, name), content)
    print(f"bundle      {output}\ndigest      {new.digest}\nweights of  {new.parent}")
    print(f"images      {fitted.pooled.num_images} nominal ones of {source} (before: {before.pooled.num_images})")
    print(
        f"threshold   {fitted.threshold:.6g} for a false-alarm rate of {fitted.alpha:g} (before: "
        f"{before.threshold:.6g} for {before.alpha:g})"
    )
    print(f"regions     above {fitted.map_threshold:.6g} (before: {before.map_threshold:.6g})")
    print(f"p-values    from {1 / (fitted.pooled.num_images + 1):.4g} on")
    own = fitted.deciding(fitted.alpha)
    for group, reference in fitted.groups.items():
        how = "decides by its own" if group in own else "told apart for drift"
        print(f"group       {formatting.printable(group)}: {reference.num_images} images, {how}")


def _warn_of_higher(before: float, after: float, values: Floats, uris: list[str], what: str) -> None:
    """Say that a threshold is several times what it was, and which images set it: defects among them raise it."""
    if after <= SUSPICIOUS_RATIO * before:
        return
    highest = [int(index) for index in np.argsort(-values, kind="stable") if values[index] >= after]
    log.warning(
        "the new %s, %.6g, is %s the old one, %.6g, and fewer defects will be found; are all images nominal? It is set "
        "by the %d with the largest values, among them %s",
        *(what, after, f"{after / before:.1f} times" if before > 0 else "far above", before, len(highest)),
        ", ".join(f"{formatting.printable(uris[index])} ({values[index]:.6g})" for index in highest[:_NAMED]),
    )


def _from_images(
    settings: CalibrateSettings, spec: BundleSpec, weights: bytes, pattern: str | None
) -> tuple[str, Nominal, list[str]]:
    """Images of a location, scored here, and their locations."""
    from fcdd.detector import Detector  # late: a reviewed run needs no torch
    from jobs.training import measurement

    location = storage.normalize(settings.images or "")
    infos = _sampled(_not_trained_on(listing.list_images(location), spec), settings.max_images)
    conformal_threshold(np.zeros(len(infos)), settings.alpha or spec.calibration.alpha)  # before all are scored
    measured, uris = measurement.measure(Detector(spec, weights), infos, [location], pattern)
    return location, measured, uris


def _not_trained_on(infos: list[ObjectInfo], spec: BundleSpec) -> list[ObjectInfo]:
    """Without those that the weights were trained on, as far as the location tells: their scores are too low."""
    root, share = spec.training.images, spec.training.options.get("calibration_share")
    if not isinstance(share, float):
        return infos
    kept = [
        info
        for info in infos
        if not info.uri.startswith(f"{root}/") or splits.is_held_out(info.uri.removeprefix(root), share)
    ]
    if len(kept) < len(infos):
        log.info("left out %d images below %s, where training took its images", len(infos) - len(kept), root)
    if not kept:
        raise ConfigError(f"all {len(infos)} images are those that the bundle was trained on; bring others")
    return kept


def _sampled(infos: list[ObjectInfo], limit: int) -> list[ObjectInfo]:
    if len(infos) <= limit:
        return infos
    log.info("%d of %d images are taken (--max-images)", limit, len(infos))
    chosen = sorted(infos, key=lambda info: hashlib.md5(info.uri.encode(), usedforsecurity=False).digest())[:limit]
    return sorted(chosen, key=lambda info: info.uri)


@views.readable()
def _from_run(settings: CalibrateSettings, spec: BundleSpec, pattern: str | None) -> tuple[str, Nominal, list[str]]:
    """The images of committed runs whose alarms were all looked at, without those that are anomalous; locations."""
    if not settings.results or not settings.collection:
        raise ConfigError("--reviewed needs --results and --collection: where the reviewed run is")
    records = commit_records.committed(settings.results, settings.collection, first=settings.date, last=settings.date)
    for record in records:
        if record.bundle_digest != spec.digest and not _has_weights(record, spec):
            raise ConfigError(
                f"run {record.run_id} was scored with another bundle ({record.bundle_digest[:12]}): its scores say "
                "nothing about this one; choose its --date, or its bundle"
            )
    connection = views.connect(settings.results)
    views.scores(connection, settings.results, records)
    connection.register("labels", label_files.read(settings.reviewed or ""))
    latest = "QUALIFY row_number() OVER (PARTITION BY image_uri ORDER BY date DESC) = 1"
    labelled = f"SELECT s.*, l.label FROM scores s LEFT JOIN labels l ON {label_files.IS_OF}"
    connection.sql(f"SELECT * FROM ({labelled}) {latest}").create_view("reviewed")
    [(unseen, known)] = connection.sql(
        "SELECT count(*) FILTER (is_anomalous AND label IS NULL), count(label) FROM reviewed"
    ).fetchall()
    if not known:
        raise ConfigError(f"none of the labels in {settings.reviewed} is of an image of these runs")
    if unseen:
        raise ConfigError(
            f"{unseen} alarms have no label in {settings.reviewed}: an alarm that nobody looked at is neither nominal "
            "nor anomalous; label all alarms of the night"
        )
    columns = ("image_uri", "anomaly_score", "score_max", "image_format", "image_group", "heatmap", *STATISTICS)
    table = connection.sql(
        f"SELECT {', '.join(columns)} FROM reviewed WHERE coalesce(label, 0) = 0 "
        f"ORDER BY md5(image_uri) LIMIT {settings.max_images}"
    ).to_arrow_table()
    if not table.num_rows:
        raise ConfigError("every image of the run is labelled anomalous; there is nothing to calibrate on")
    groups = table["image_group"].to_pylist()
    if pattern != spec.calibration.group_pattern:
        compiled = grouping.compile_pattern(pattern)
        groups = [grouping.group_of(uri, (), compiled) for uri in table["image_uri"].to_pylist()]
    nominal = Nominal(
        scores=table["anomaly_score"].to_numpy(),
        peaks=table["score_max"].to_numpy(),
        statistics=np.stack([table[name].to_numpy() for name in STATISTICS], 1),
        formats=table["image_format"].to_pylist(),
        groups=groups,
        maps=heatmap.decode_each(table["heatmap"].to_pylist()),
    )
    uris: list[str] = table["image_uri"].to_pylist()
    return f"reviewed run {', '.join(record.run_id for record in records)}", nominal, uris


def _has_weights(record: RunRecord, spec: BundleSpec) -> bool:
    """Whether a run was scored with the same weights under another calibration: its scores are the same."""
    if record.bundle_digest == spec.parent:
        return True
    try:
        other, _ = bundle.load(record.bundle)
    except (BundleError, ConfigError):
        return False
    own = {"calibration", "calibrated_on", "parent", "training"}
    same = other.model_dump(exclude=own) == spec.model_dump(exclude=own)
    return same and other.digest == record.bundle_digest


if __name__ == "__main__":
    process.leave(main())
