"""Another calibration of the same weights: from fresh nominal images, or from reviewed runs.

images -> scored here -> calibration
runs + labels of their alarms -> their rows without the anomalies -> calibration
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np

from fcdd import bundle, grouping, heatmap, splits
from fcdd.bundle import BundleSpec
from fcdd.calibration import STATISTICS, Floats, Nominal, Score, conformal_threshold
from fcdd.errors import BundleError, ConfigError
from fcdd.io.storage import ObjectInfo
from jobs.catalog import views
from jobs.labels import label_files, label_names
from jobs.shell import formatting
from jobs.sources import listing
from schemas import RunRecord

log = logging.getLogger(__name__)

# A threshold of more than so many times the old one is said, with the images that set it: are they nominal?
SUSPICIOUS_RATIO = 2.0


# So many of them are named.
_NAMED = 5
# The columns of the scores table that hold the statistics of a map.
_COLUMNS: dict[Score, str] = {"mean": "score_mean", "maximum": "score_max", "top1pct": "score_top1pct"}


def warn_of_higher(
    before: float, after: float, values: Floats, uris: list[str], what: str, *, are_all: bool = True
) -> None:
    """Warn when a threshold is several times what it was, and name the images that set it: defects raise it.

    `are_all`: the images are all of the calibration; else they were added to others.
    """
    if after <= SUSPICIOUS_RATIO * before:
        return
    highest = [int(index) for index in np.argsort(-values, kind="stable") if values[index] >= after]
    names = ", ".join(f"{formatting.printable(uris[index])} ({values[index]:.6g})" for index in highest[:_NAMED])
    how = f"It is set by the {len(highest)} with the largest values" if are_all else f"{len(highest)} new ones reach it"
    log.warning(
        "the new %s, %.6g, is %s the old one, %.6g, and fewer defects will be found; are all images nominal? %s%s",
        *(what, after, f"{after / before:.1f} times" if before > 0 else "far above", before),
        *(how, f", among them {names}" if names else ""),
    )


def from_images(
    spec: BundleSpec,
    weights: bytes,
    location: str,
    *,
    score: Score,
    alpha: float | None,
    pattern: str | None,
    max_images: int,
) -> tuple[Nominal, list[str]]:
    """Images below a location, scored here, and their locations. Raises ConfigError for too few for an `alpha`."""
    from fcdd.detector import Detector  # late: a reviewed run needs no torch
    from jobs.calibration import measurement

    infos = _sampled(_not_trained_on(listing.list_images(location), spec), max_images)
    if alpha is not None:
        conformal_threshold(np.zeros(len(infos)), alpha)  # before all are scored
    return measurement.measure(Detector(spec, weights), score, infos, [location], pattern)


def _not_trained_on(infos: list[ObjectInfo], spec: BundleSpec) -> list[ObjectInfo]:
    """Without those that the weights were trained on, as far as their location shows: their scores are too low."""
    root, share = spec.training.images, spec.training.options.get("calibration_share")
    if not isinstance(share, float):
        return infos
    none_held_out = spec.calibration.is_leave_one_out
    kept = [
        info
        for info in infos
        if not info.uri.startswith(f"{root}/")
        or (splits.is_held_out(info.uri.removeprefix(root), share) and not none_held_out)
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
def from_runs(
    spec: BundleSpec,
    results: str,
    records: Sequence[RunRecord],
    labels: str,
    *,
    score: Score,
    pattern: str | None,
    max_images: int,
) -> tuple[Nominal, list[str]]:
    """The images of committed runs whose alarms were all looked at, without those that are anomalous; locations."""
    for record in records:
        if record.bundle_digest != spec.digest and not _has_weights(record, spec):
            raise ConfigError(
                f"run {record.run_id} was scored with another bundle ({record.bundle_digest[:12]}): its scores say "
                "nothing about this one; choose its --date, or its bundle"
            )
    connection = views.connect(results)
    views.scores(connection, results, records)
    connection.register("labels", label_names.matched(connection, label_files.read(labels)))
    labelled = f"SELECT s.*, l.label FROM scores s LEFT JOIN labels l ON {label_files.IS_OF}"
    connection.sql(f"SELECT * FROM ({labelled}) {views.latest_night('image_uri')}").create_view("reviewed")
    [(unseen, known)] = connection.sql(
        "SELECT count(*) FILTER (is_anomalous AND label IS NULL), count(label) FROM reviewed"
    ).fetchall()
    if not known:
        raise ConfigError(f"none of the labels in {labels} is of an image of these runs")
    if unseen:
        raise ConfigError(
            f"{unseen} alarms have no label in {labels}: an alarm that nobody looked at is neither nominal "
            "nor anomalous; label them all, or give --date for the night that was reviewed"
        )
    columns = ("image_uri", *_COLUMNS.values(), "image_format", "image_group", "heatmap", *STATISTICS)
    table = connection.sql(
        f"SELECT {', '.join(columns)} FROM reviewed WHERE coalesce(label, 0) = 0 "
        f"ORDER BY md5(image_uri) LIMIT {max_images}"
    ).to_arrow_table()
    if not table.num_rows:
        raise ConfigError("every image of the run is labelled anomalous; there is nothing to calibrate on")
    groups = table["image_group"].to_pylist()
    if pattern != spec.calibration.group_pattern:
        compiled = grouping.compile_pattern(pattern)
        groups = [grouping.group_of(uri, (), compiled) for uri in table["image_uri"].to_pylist()]
    by_score = {name: table[column].to_numpy() for name, column in _COLUMNS.items()}
    nominal = Nominal(
        scores=by_score[score],
        peaks=by_score["maximum"],
        statistics=np.stack([table[name].to_numpy() for name in STATISTICS], 1),
        formats=table["image_format"].to_pylist(),
        groups=groups,
        maps=heatmap.decode_each(table["heatmap"].to_pylist()),
        others={name: values for name, values in by_score.items() if name != score},
    )
    uris: list[str] = table["image_uri"].to_pylist()
    return nominal, uris


def _has_weights(record: RunRecord, spec: BundleSpec) -> bool:
    """Whether a run was scored with the same weights under another calibration: its scores are the same."""
    if record.bundle_digest == spec.parent:
        return True
    try:
        other, _ = bundle.load(record.bundle)
    except (BundleError, ConfigError):
        return False
    own = {"calibration", "calibrated_on", "calibration_sources", "parent", "training", "score", "sample_sha256"}
    same = other.model_dump(exclude=own) == spec.model_dump(exclude=own)
    return same and other.digest == record.bundle_digest
