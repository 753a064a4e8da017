"""The labels of a run's images as its user has them: a file, or folders that are named by what is in them."""

import duckdb
import pyarrow as pa

from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs.labels import label_files, label_names, label_words
from jobs.labels.label_words import ANOMALOUS, NEITHER, NOMINAL
from jobs.sources import listing


def read(connection: duckdb.DuckDBPyConnection, location: str) -> pa.Table:
    """Labels 0 and 1 (columns as of `label_files.read`) with the locations of the images in the view `scores`.

    Raises ConfigError naming what is wrong with the labels.
    """
    labels = label_files.read_decided(location) if label_files.is_file(location) else _of_folders(location)
    return label_names.matched(connection, labels)


def _of_folders(location: str) -> pa.Table:
    """Images below folders: good/ (or ok/, nominal/, ...) has nominal ones, any other anomalous ones of that kind.

    The images may be those that were scored, or others of the same names.
    """
    root = storage.normalize(location)
    uris = [info.uri for info in listing.list_images(root)]
    paths = [uri.removeprefix(f"{root}/") for uri in uris]
    if outside := [path for path in paths if "/" not in path]:
        raise ConfigError(
            f"expected labelled images in folders such as good/ and defect/ below {root}, got {outside[0]!r} beside "
            "them; labels may also be a file that ends in .csv or .parquet"
        )
    folders = [path.partition("/")[0] for path in paths]
    meant = {folder: label_words.label_of(folder) for folder in set(folders)}
    if NOMINAL not in meant.values():
        words = ", ".join(label_words.WORDS[NOMINAL][:4])
        raise ConfigError(
            f"no folder right below {root} says that its images are nominal: expected one named {words}; there are: "
            f"{', '.join(sorted(meant))}"
        )
    # A folder with any other name is named by the kind of its defects.
    labels = [ANOMALOUS if (label := meant[each]) is None else label for each in folders]
    nothing = [""] * len(uris)
    table = pa.table(
        {
            "image_uri": uris,
            "label": labels,
            "image_etag": nothing,
            "defect_class": [each if meant[each] is None else "" for each in folders],
            "mask_uri": nothing,
            "name": [path.partition("/")[2] for path in paths],
        }
    )
    return table.filter([label != NEITHER for label in labels])
