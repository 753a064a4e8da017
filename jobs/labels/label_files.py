"""Labels of images, as people keep them and as `fcdd review` writes them: CSV or Parquet with image_uri and label.

Labels are numbers or words (`label_words`); a column defect_class says what kind of defect it is. A label is of the
image as it was looked at: where the file has an image_etag, one that was replaced since has none.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.labels.label_words import ANOMALOUS as ANOMALOUS
from jobs.labels.label_words import NEITHER as NEITHER
from jobs.labels.label_words import NOMINAL as NOMINAL
from jobs.labels.label_words import labels_of

_TEXTS = ("image_uri", "image_etag", "mask_uri", "defect_class")
# Where `fcdd review` keeps its labels (`schemas.Layout.labels`).
_OF_A_REVIEW = re.compile(r"/labels/collection=[^/]+/labels\.parquet$")
# How the masks are named that are drawn there: by their content (`label_drawings`).
_DRAWN = re.compile(r"/masks/([0-9a-f]{32}\.png)$")
# Joins labels (as `l`) with scores (as `s`).
IS_OF = "l.image_uri = s.image_uri AND (l.image_etag = '' OR l.image_etag = s.image_etag)"


class Anomaly(NamedTuple):
    """A labelled anomaly: its location, its mask's or None, and the ETag of what was looked at, "" if nobody knows."""

    image: str
    mask: str | None
    etag: str


def read(location: str, *, opened: bool = False) -> pa.Table:
    """Table of labels, one row per image: 1 anomalous, 0 nominal, -1 neither (a bad image).

    Columns: image_uri, label int64, image_etag, defect_class (of anomalous images), mask_uri, and name, how the file
    names the image; all but the label are strings, "" where nothing is known. Raises ConfigError naming what is wrong
    with the file; also, if the images will be `opened`, for local images in a file that is not local.
    """
    uri, table = _read(location, "the labels")
    if "label" not in table.column_names:
        commas = (
            "; columns are separated by commas" if any(set(name) & set(";\t") for name in table.column_names) else ""
        )
        raise ConfigError(f"expected columns image_uri and label (0 or 1) in {uri}, got {table.column_names}{commas}")
    if not table.num_rows:
        raise ConfigError(f"there is not one label in {uri}")
    texts = dict.fromkeys(("image_uri", "image_etag", "defect_class", "mask_uri"), "")
    labels = _select(uri, table, {"label": ANOMALOUS, **texts}).append_column(
        "name", table["image_uri"].cast(pa.string())
    )
    if opened:
        _check_opened(uri, labels["image_uri"].to_pylist())
    return labels


def read_decided(location: str, *, opened: bool = False) -> pa.Table:
    """`read`, without the images that are neither. Raises ConfigError, too, when none is left."""
    table = read(location, opened=opened)
    decided = table.filter(pc.not_equal(table["label"], NEITHER))
    if not decided.num_rows:
        raise ConfigError(
            f"all {table.num_rows} labels in {location} are -1 (a bad image): none says nominal (0) or anomalous (1)"
        )
    return decided


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
    _check_opened(uri, found["image_uri"].to_pylist())
    check_masks(uri, found["mask_uri"].to_pylist())
    return [Anomaly(row["image_uri"], row["mask_uri"] or None, row["image_etag"]) for row in found.to_pylist()]


def below(mask_uri: str, folder: str) -> str:
    """Where a mask lies that was drawn in a review: results may have been moved or copied since, with their masks."""
    drawn = _DRAWN.search(mask_uri)
    if not drawn or mask_uri.startswith(f"{folder}/"):
        return mask_uri
    here = f"{folder}/{drawn[1]}"
    return here if storage.exists(here) else mask_uri


def is_file(location: str) -> bool:
    """Whether a location names a file of labels and not a folder of images, by its ending."""
    return location.lower().endswith((".csv", ".parquet"))


def read_uris(location: str) -> list[str]:
    """The column image_uri of a file. Raises ConfigError when there is none."""
    uri, table = _read(location, "the list of images")
    return list(_select(uri, table, {"image_uri": ""})["image_uri"].to_pylist())


def _read(location: str, what: str) -> tuple[str, pa.Table]:
    uri = storage.normalize(location)
    try:
        data = io.BytesIO(storage.read(uri))
        table = pq.read_table(data) if uri.lower().endswith(".parquet") else _read_csv(data)
        names = [name.strip().lower() for name in table.column_names]
        if len(set(names)) != len(names):
            raise ConfigError(f"{what} {uri} has columns of the same name: {', '.join(table.column_names)}")
        return uri, table.rename_columns(names)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {uri} cannot be found") from error
    except pa.ArrowException as error:
        raise ConfigError(f"{what} {uri} cannot be read as CSV or Parquet: {error}") from error


def _read_csv(data: io.BytesIO) -> pa.Table:
    """A table whose names, ETags and locations are texts, also where they look like numbers (0x8DB9F1A2B3C4D5E)."""
    text = io.TextIOWrapper(io.BytesIO(data.getvalue()), "utf-8-sig", errors="replace", newline="")
    header = next(csv.reader(text), [])
    kinds = {name: pa.string() for name in header if name.strip().lower() in _TEXTS}
    options = pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=True)
    return pyarrow.csv.read_csv(io.BytesIO(data.getvalue()), convert_options=options)


def _select(uri: str, table: pa.Table, wanted: Mapping[str, str | int]) -> pa.Table:
    """Exactly the wanted columns; locations normalised, each image once.

    A column that is missing, and a text that is null (as in a CSV whose column is empty), has its default.
    """
    columns = {}
    try:
        for name, default in wanted.items():
            if name not in table.column_names and name != "image_uri":
                columns[name] = pa.repeat(pa.scalar(default), table.num_rows)
            elif name == "label":
                columns[name] = _numbers(table[name], uri)
            else:
                column = table[name].cast(pa.string())
                columns[name] = column if name == "image_uri" else pc.fill_null(column, default)
    except (pa.ArrowException, KeyError) as error:
        what = "expected a column image_uri, and labels 0 or 1 where there are any"
        raise ConfigError(f"{what}, in {uri}: {error}") from error
    if "image_etag" in columns:  # clients and inventories disagree about the quotes
        columns["image_etag"] = pa.array(
            [storage.plain_etag(each.strip()) for each in columns["image_etag"].to_pylist()], pa.string()
        )
    if "mask_uri" in columns:
        masks = columns["mask_uri"].to_pylist()
        folder = f"{uri.rpartition('/')[0]}/masks" if _OF_A_REVIEW.search(uri) else ""
        placed = (storage.normalize(each) if each else "" for each in masks)
        columns["mask_uri"] = pa.array([below(each, folder) if folder else each for each in placed], pa.string())
    named = columns["image_uri"].to_pylist()
    if empty := [number for number, name in enumerate(named, start=1) if not name]:
        raise ConfigError(f"expected an image_uri in every row of {uri}, got none in row {empty[0]}")
    uris = [each if "://" in each else storage.normalize(each) for each in named]
    if len(set(uris)) != len(uris):
        twice = named[uris.index(next(each for each, count in Counter(uris).items() if count > 1))]
        raise ConfigError(
            f"expected each image once in {uri}, got {twice} more than once; of images with one name "
            "give the folder, too"
        )
    return pa.table(columns | {"image_uri": pa.array(uris, pa.string())})


def _numbers(column: pa.ChunkedArray, uri: str) -> pa.Array:
    """The labels of a column, whether they are numbers, whole or not, truth values or words."""
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        column = column.cast(pa.int64()).cast(pa.string())
    return pa.array(labels_of(column.to_pylist(), uri), pa.int64())


def _check_opened(list_uri: str, places: Iterable[str]) -> None:
    """Raises ConfigError for a local file named by a file that is not local: whoever wrote it chose what is read."""
    local = next((each for each in places if each.startswith("file:")), None)
    if local and not list_uri.startswith("file:"):
        raise ConfigError(f"{list_uri} names the local file {local}; only a local file may name local ones")


def check_masks(list_uri: str, masks: Iterable[str]) -> None:
    """Raises ConfigError for a mask that this file may not name.

    That is a local one if the file is not local, and in a file of `fcdd review` one that was not drawn there.
    """
    named = [mask for mask in masks if mask]
    _check_opened(list_uri, named)
    if not _OF_A_REVIEW.search(list_uri):
        return
    drawn = f"{list_uri.rpartition('/')[0]}/masks/"
    elsewhere = next((mask for mask in named if not mask.startswith(drawn)), None)
    if elsewhere:
        raise ConfigError(f"{list_uri} names the mask {elsewhere}, which is not below {drawn}; clear that drawing")
