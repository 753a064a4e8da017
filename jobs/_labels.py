"""Labels of images, as people keep them and as `fcdd review` writes them: CSV or Parquet with image_uri and label.

A label is of the image as it was looked at: where the file has an image_etag, one that was replaced since has none.
"""

import io
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fcdd import storage
from fcdd.errors import ConfigError

NOMINAL, ANOMALOUS, NEITHER = 0, 1, -1
# Joins labels (as `l`) with scores (as `s`).
IS_OF = "l.image_uri = s.image_uri AND (l.image_etag = '' OR l.image_etag = s.image_etag)"


class Anomaly(NamedTuple):
    """A labelled anomaly: its location, its mask's or None, and the ETag of what was looked at, "" if nobody knows."""

    image: str
    mask: str | None
    etag: str


def read(location: str) -> pa.Table:
    """Table (image_uri string, label int64, image_etag string): 1 anomalous, 0 nominal, -1 neither (a bad image).

    Raises ConfigError naming what is wrong with the file.
    """
    uri, table = _read(location, "the labels")
    if "label" not in table.column_names:
        raise ConfigError(f"expected columns image_uri and label (0 or 1) in {uri}, got {table.column_names}")
    return _select(uri, table, {"image_uri": "", "label": ANOMALOUS, "image_etag": ""})


def read_decided(location: str) -> pa.Table:
    """`read`, without the images that are neither."""
    table = read(location)
    return table.filter(pc.not_equal(table["label"], NEITHER))


def read_anomalies(location: str) -> list[Anomaly]:
    """Labelled anomalies of a file with image_uri, and where there are such columns label, mask_uri, image_etag.

    Only images with label 1 count, if there are labels. Raises ConfigError naming what is wrong with the file.
    """
    uri, table = _read(location, "the list of labelled anomalies")
    rows = _select(uri, table, {"image_uri": "", "label": ANOMALOUS, "mask_uri": "", "image_etag": ""})
    found = rows.filter(pc.equal(rows["label"], ANOMALOUS))
    if not rows.num_rows:
        raise ConfigError(f"the list of labelled anomalies {uri} is empty")
    if not found.num_rows:
        raise ConfigError(f"no image in {uri} has label 1: there are no labelled anomalies")
    return [
        Anomaly(row["image_uri"], storage.normalize(row["mask_uri"]) if row["mask_uri"] else None, row["image_etag"])
        for row in found.to_pylist()
    ]


def read_uris(location: str) -> list[str]:
    """The column image_uri of a file. Raises ConfigError when there is none."""
    uri, table = _read(location, "the list of images")
    return list(_select(uri, table, {"image_uri": ""})["image_uri"].to_pylist())


def _read(location: str, what: str) -> tuple[str, pa.Table]:
    uri = storage.normalize(location)
    try:
        data = io.BytesIO(storage.read(uri))
        return uri, pq.read_table(data) if uri.endswith(".parquet") else pyarrow.csv.read_csv(data)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {uri} cannot be found") from error
    except pa.ArrowException as error:
        raise ConfigError(f"{what} {uri} cannot be read as CSV or Parquet: {error}") from error


def _select(uri: str, table: pa.Table, wanted: dict[str, str | int]) -> pa.Table:
    """Exactly the wanted columns, those that are missing with their default; locations normalised, each once."""
    columns = {}
    try:
        for name, default in wanted.items():
            kind = pa.int64() if name == "label" else pa.string()
            if name in table.column_names or name == "image_uri":
                columns[name] = table[name].cast(kind)
            else:
                columns[name] = pa.repeat(pa.scalar(default, kind), table.num_rows)
    except (pa.ArrowException, KeyError) as error:
        what = "expected a column image_uri, and labels 0 or 1 where there are any"
        raise ConfigError(f"{what}, in {uri}: {error}") from error
    if "label" in wanted and (wrong := set(columns["label"].to_pylist()) - {NOMINAL, ANOMALOUS, NEITHER}):
        known = "0 (nominal), 1 (anomalous) and -1 (a bad image)"
        raise ConfigError(f"expected labels {known} in {uri}, got {sorted(wrong, key=str)}")
    named = columns["image_uri"].to_pylist()
    if None in named:
        raise ConfigError(f"expected an image_uri in every row of {uri}, got none in row {named.index(None) + 1}")
    uris = [each if "://" in each else storage.normalize(each) for each in named]
    if len(set(uris)) != len(uris):
        raise ConfigError(f"expected each image once in {uri}, got some twice")
    return pa.table(columns | {"image_uri": pa.array(uris, pa.string())})
