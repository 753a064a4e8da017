"""Labels of images, as people keep them: a CSV or Parquet file with image_uri and label."""

import io

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from fcdd import storage
from fcdd.errors import ConfigError


def read_anomalies(location: str) -> list[tuple[str, str | None]]:
    """Locations of labelled anomalies and of their masks, from a CSV or Parquet file with image_uri and maybe mask_uri.

    Raises ConfigError naming what is wrong with the file.
    """
    uri = storage.normalize(location)
    try:
        data = io.BytesIO(storage.read(uri))
        table = pq.read_table(data) if uri.endswith(".parquet") else pyarrow.csv.read_csv(data)
        images = table["image_uri"].cast(pa.string()).to_pylist()
        masks = table["mask_uri"].cast(pa.string()).to_pylist() if "mask_uri" in table.column_names else []
    except FileNotFoundError as error:
        raise ConfigError(f"the list of labelled anomalies {uri} does not exist") from error
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"expected a column image_uri, and mask_uri where there are masks, in {uri}: {error}"
        ) from error
    if not images:
        raise ConfigError(f"the list of labelled anomalies {uri} is empty")
    return [
        (storage.normalize(image), storage.normalize(mask) if mask else None)
        for image, mask in zip(images, masks or [None] * len(images), strict=True)
    ]


def read(location: str) -> pa.Table:
    """Table (image_uri string, label int64). Raises ConfigError naming what is wrong with the file."""
    uri = storage.normalize(location)
    try:
        data = io.BytesIO(storage.read(uri))
        table = pq.read_table(data) if uri.endswith(".parquet") else pyarrow.csv.read_csv(data)
        table = table.select(["image_uri", "label"]).cast(
            pa.schema([("image_uri", pa.string()), ("label", pa.int64())])
        )
    except FileNotFoundError as error:
        raise ConfigError(f"the labels {uri} do not exist") from error
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(f"expected columns image_uri and label (0 or 1) in {uri}: {error}") from error
    wrong = set(table["label"].to_pylist()) - {0, 1}
    if wrong:
        raise ConfigError(f"expected labels 0 (nominal) and 1 (anomalous) in {uri}, got {sorted(wrong, key=str)}")
    if len(set(table["image_uri"].to_pylist())) != table.num_rows:
        raise ConfigError(f"expected each image once in {uri}, got some twice")
    uris = [uri if "://" in uri else storage.normalize(uri) for uri in table["image_uri"].to_pylist()]
    return table.set_column(0, "image_uri", pa.array(uris, pa.string()))
