"""The tables as Arrow schemas. Every field carries its meaning, and its unit where it has one.

Fields are never reordered or retyped within a version; a contract test pins each version's fingerprint.
"""

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA_VERSION = 4


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "", *, nullable: bool = False) -> pa.Field:
    metadata = {"meaning": meaning, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, nullable=nullable, metadata=metadata)


def _schema(table: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"table": table, "schema_version": str(SCHEMA_VERSION)})


_TIME = pa.timestamp("us", tz="UTC")
_SOURCE = [
    _field("row_id", pa.int64(), "position of the image in the run's manifest, dense from 0"),
    _field("image_uri", pa.string(), "object the image was read from"),
    _field("image_etag", pa.string(), "entity tag the object had when it was listed; empty if there is none"),
    _field("image_bytes", pa.int64(), "size of the encoded image", "byte"),
    _field("image_last_modified", _TIME, "when the object was last written"),
]
_GROUP = _field(
    "image_group", pa.string(), "camera or folder: by the bundle's pattern, else the first folder; or empty"
)
_RUN = [
    _field("collection", pa.string(), "image collection the run belongs to"),
    _field("date", pa.date32(), "night the run stands for, as the command said; not a clock's"),
    _field("run_id", pa.string(), "run that wrote this row"),
    _field("model_digest", pa.string(), "digest of the bundle that scored the image"),
    _field("scored_at", _TIME, "when the run started"),
]
REGION = pa.struct(
    [
        _field("x0", pa.int32(), "left edge, inclusive", "pixel of the original image"),
        _field("y0", pa.int32(), "upper edge, inclusive", "pixel of the original image"),
        _field("x1", pa.int32(), "right edge, exclusive", "pixel of the original image"),
        _field("y1", pa.int32(), "lower edge, exclusive", "pixel of the original image"),
        _field("area_fraction", pa.float32(), "share of the map's cells in the region"),
        _field("peak", pa.float32(), "largest map value in the region"),
    ]
)

MANIFEST = _schema("manifest", _SOURCE)

# Which object an image is: the fields of a listed object, in order.
IDENTITY = tuple(MANIFEST.names[1:])

SCORES = _schema(
    "scores",
    [
        *_SOURCE,
        _GROUP,
        _field("width", pa.int32(), "width after EXIF orientation", "pixel"),
        _field("height", pa.int32(), "height after EXIF orientation", "pixel"),
        _field("num_frames", pa.int32(), "pictures in the file, of which the first is scored"),
        _field("image_format", pa.string(), "JPEG, PNG, TIFF, WEBP or BMP"),
        _field("image_hash", pa.binary(32), "difference hash of 256 bits: near that of pictures that look alike"),
        _field("anomaly_score", pa.float32(), "one of the next three, as the bundle chose; raw, >= 0"),
        _field("score_mean", pa.float32(), "mean of the anomaly map: the paper's score"),
        _field("score_max", pa.float32(), "largest value of the anomaly map"),
        _field("score_top1pct", pa.float32(), "mean of the top 1 % of the anomaly map's cells"),
        _field("p_value", pa.float64(), "share of nominal images at least as anomalous: (1 + #{c >= s}) / (n + 1)"),
        _field("is_anomalous", pa.bool_(), "whether p_value is at most the run's alpha"),
        _field("heatmap", pa.binary(), "the low-resolution anomaly map; decode with fcdd.heatmap.decode"),
        _field("heatmap_height", pa.int32(), "rows of the anomaly map", "cell"),
        _field("heatmap_width", pa.int32(), "columns of the anomaly map", "cell"),
        _field(
            "regions",
            pa.list_(pa.field("element", REGION, nullable=False)),
            "connected areas above the bundle's map threshold, each as far as half of its peak, hottest first",
        ),
        _field("brightness", pa.float32(), "mean of the resized pixels", "grey level 0..255"),
        _field("contrast", pa.float32(), "standard deviation of the resized pixels", "grey level 0..255"),
        _field("sharpness", pa.float32(), "mean absolute difference of neighbouring pixels", "grey level 0..255"),
        *_RUN,
    ],
)

QUARANTINE = _schema(
    "quarantine",
    [
        *_SOURCE,
        _GROUP,
        _field("stage", pa.string(), "where it failed: list, fetch, decode or score"),
        _field("reason", pa.string(), "one of fcdd.errors.REASONS"),
        _field("detail", pa.string(), "what was found, for a person"),
        _field("attempts", pa.int32(), "how many passes of the run tried the image"),
        *_RUN,
    ],
)

DELETED = _schema(
    "deleted",
    [
        _field("image_uri", pa.string(), "object that had been scored, and was gone when this run listed its place"),
        _field("image_etag", pa.string(), "entity tag it had when it was scored last"),
        _field("last_run_id", pa.string(), "latest run that has a row of it"),
        *_RUN,
    ],
)

FINDING = pa.struct(
    [
        _field("what", pa.string(), "what was compared with the calibration: anomaly_score, brightness, alarms, ..."),
        _field("test", pa.string(), "ks, psi, chi2, alarms, tail, map or known"),
        _field("effect", pa.float64(), "size of the difference, in the test's own measure"),
        _field("p_value", pa.float64(), "probability of such an effect by chance"),
        _field("verdict", pa.string(), "ok, watch or drifted"),
        _field("sentence", pa.string(), "the finding, for a person"),
    ]
)

DRIFT = _schema(
    "drift",
    [
        _field("scope", pa.string(), "collection: all images of the run; or group"),
        _field("image_group", pa.string(), "the group; empty for the collection"),
        _field("num_images", pa.int64(), "scored images of the scope"),
        _field("num_calibration", pa.int64(), "calibration images it is compared with; 0: there are none of the group"),
        _field("num_alarms", pa.int64(), "images that are anomalous"),
        _field("alarms_low", pa.int64(), "so many alarms nominal images would raise, lower end of 95 %"),
        _field("alarms_high", pa.int64(), "so many alarms nominal images would raise, upper end of 95 %"),
        _field("verdict", pa.string(), "the gravest of the findings"),
        _field("findings", pa.list_(pa.field("element", FINDING, nullable=False)), "every comparison, also those ok"),
        _field("average_map", pa.binary(), "mean of the anomaly maps; decode with fcdd.heatmap.decode"),
        _field("nominal_map", pa.binary(), "the same of the calibration images; empty bytes if there are none"),
        *_RUN,
    ],
)


BOX = pa.struct(
    [
        _field("x0", pa.int32(), "left edge, inclusive", "pixel of the original image"),
        _field("y0", pa.int32(), "upper edge, inclusive", "pixel of the original image"),
        _field("x1", pa.int32(), "right edge, exclusive", "pixel of the original image"),
        _field("y1", pa.int32(), "lower edge, exclusive", "pixel of the original image"),
    ]
)

# What people say of images: one row per image, the latest word. `label` and `mask_uri` are what training, calibration
# and evaluation read.
LABELS = _schema(
    "labels",
    [
        _field("image_uri", pa.string(), "image that was looked at"),
        _field("image_etag", pa.string(), "entity tag of what was looked at; empty if there is none"),
        _field("label", pa.int8(), "1: a defect, anomalous; 0: no defect, nominal; -1: a bad image, neither"),
        _field(
            "boxes",
            pa.list_(pa.field("element", BOX, nullable=False)),
            "boxes that were drawn around defects; they count where label is 1",
        ),
        _field(
            "mask_uri",
            pa.string(),
            "PNG of the image's size, 255 where it was marked; empty if nothing was drawn; counts where label is 1",
        ),
        _field("collection", pa.string(), "image collection of the run"),
        _field("date", pa.date32(), "night of the run in which it was looked at"),
        _field("run_id", pa.string(), "that run"),
        _field("anomaly_score", pa.float32(), "its score in that run"),
        _field("p_value", pa.float64(), "its p-value in that run"),
        _field("reviewer", pa.string(), "who looked; empty if nobody said"),
        _field("reviewed_at", _TIME, "when the label was given"),
        _field(
            "defect_class",
            pa.string(),
            "which kind of defect, in the reviewers' own words; null if nobody said, and where label is not 1",
            nullable=True,
        ),
        _field("note", pa.string(), "what a reviewer wrote about the image; null if nothing", nullable=True),
    ],
)

# The commit records as a table, for questions in SQL.
RUNS = _schema(
    "runs",
    [
        _field("run_id", pa.string(), "id of the run"),
        _field("collection", pa.string(), "image collection"),
        _field("date", pa.date32(), "night the run stands for"),
        _field("bundle", pa.string(), "location of the bundle"),
        _field("model_digest", pa.string(), "digest of the bundle"),
        _field("started_at", _TIME, "when the run started"),
        _field("committed_at", _TIME, "when it became visible"),
        _field("num_listed", pa.int64(), "images it accounts for"),
        _field("num_scored", pa.int64(), "images with a score"),
        _field("num_quarantined", pa.int64(), "images that could not be scored"),
        _field("num_anomalous", pa.int64(), "alarms"),
        _field("num_discoveries", pa.int64(), "images on its list at the false-discovery rate"),
        _field("num_deleted", pa.int64(), "images scored before that are gone"),
        _field("num_bytes", pa.int64(), "encoded size of the images", "byte"),
        _field("alpha", pa.float64(), "promised false-alarm rate of the alarms"),
        _field("threshold", pa.float64(), "scores above it are anomalous, except in groups of their own"),
        _field("map_threshold", pa.float64(), "map values above it make a region"),
        _field("fdr", pa.float64(), "promised false-discovery rate of the list"),
        _field("fdr_p_value", pa.float64(), "the list's largest p-value; 0 for an empty list"),
        _field("drift_verdict", pa.string(), "ok, watch or drifted"),
        _field("drift_reasons", pa.list_(pa.field("element", pa.string(), nullable=False)), "why"),
        _field("images_per_second", pa.float64(), "rate of the run"),
        _field("quarantine_reasons", pa.map_(pa.string(), pa.int64()), "quarantined images by reason"),
        _field("stage_seconds", pa.map_(pa.string(), pa.float64()), "time by stage", "second"),
    ],
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly this schema, columns in its order; what the readers rely on is checked here.

    A column that may be null and is missing is null throughout. Raises ValueError for any other missing column, a
    surplus one, a null elsewhere, or a score that is not finite: pyarrow lets the last two pass.
    """
    for field in schema:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    if set(table.column_names) != set(schema.names):
        raise ValueError(f"expected columns {schema.names}, got {table.column_names}")
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"expected no null in {field.name}, got {table[field.name].null_count}")
    table = table.select(schema.names).cast(schema)
    for field in schema:
        column = table[field.name]
        if pa.types.is_floating(field.type) and not pc.all(pc.is_finite(column)).as_py() and len(column):
            raise ValueError(f"expected finite values in {field.name}")
    return table
