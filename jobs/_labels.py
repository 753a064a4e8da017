"""Labels of images, as people keep them and as `fcdd review` writes them: CSV or Parquet with image_uri and label."""

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from fcdd import storage
from fcdd.errors import ConfigError

NOMINAL, ANOMALOUS, NEITHER = 0, 1, -1


def read_anomalies(location: str) -> list[tuple[str, str | None]]:
    """Locations of labelled anomalies and of their masks: image_uri, and where there are such columns mask_uri, label.

    Only images with label 1 count, if there are labels. Raises ConfigError naming what is wrong with the file.
    """
    uri, table = _read(location, "the list of labelled anomalies")
    images = _column(uri, table, "image_uri")
    if "label" in table.column_names:
        table = table.filter(pc.equal(table["label"], ANOMALOUS))
        images = _column(uri, table, "image_uri")
        if not images:
            raise ConfigError(f"no image in {uri} has label 1: there are no labelled anomalies")
    if not images:
        raise ConfigError(f"the list of labelled anomalies {uri} is empty")
    masks = _column(uri, table, "mask_uri") if "mask_uri" in table.column_names else [None] * len(images)
    return [
        (storage.normalize(image), storage.normalize(mask) if mask else None)
        for image, mask in zip(images, masks, strict=True)
    ]


def read_uris(location: str) -> list[str]:
    """The column image_uri of a file. Raises ConfigError when there is none."""
    return _column(*_read(location, "the list of images"), "image_uri")


def read(location: str) -> pa.Table:
    """Table (image_uri string, label int64): 1 anomalous, 0 nominal, -1 neither (a bad image).

    Raises ConfigError naming what is wrong with the file.
    """
    uri, table = _read(location, "the labels")
    try:
        table = table.select(["image_uri", "label"]).cast(
            pa.schema([("image_uri", pa.string()), ("label", pa.int64())])
        )
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(f"expected columns image_uri and label (0 or 1) in {uri}: {error}") from error
    wrong = set(table["label"].to_pylist()) - {NOMINAL, ANOMALOUS, NEITHER}
    if wrong:
        raise ConfigError(
            f"expected labels 0 (nominal), 1 (anomalous) and -1 (a bad image) in {uri}, got {sorted(wrong, key=str)}"
        )
    if len(set(table["image_uri"].to_pylist())) != table.num_rows:
        raise ConfigError(f"expected each image once in {uri}, got some twice")
    uris = [uri if "://" in uri else storage.normalize(uri) for uri in table["image_uri"].to_pylist()]
    return table.set_column(0, "image_uri", pa.array(uris, pa.string()))


def read_decided(location: str) -> pa.Table:
    """`read`, without the images that are neither."""
    table = read(location)
    return table.filter(pc.not_equal(table["label"], NEITHER))


def _read(location: str, what: str) -> tuple[str, pa.Table]:
    uri = storage.normalize(location)
    try:
        data = io.BytesIO(storage.read(uri))
        return uri, pq.read_table(data) if uri.endswith(".parquet") else pyarrow.csv.read_csv(data)
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {uri} cannot be found") from error
    except pa.ArrowException as error:
        raise ConfigError(f"{what} {uri} cannot be read as CSV or Parquet: {error}") from error


def _column(uri: str, table: pa.Table, name: str) -> list[str]:
    try:
        return list(table[name].cast(pa.string()).to_pylist())
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(f"expected a column {name} in {uri}: {error}") from error
