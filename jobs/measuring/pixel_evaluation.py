"""How well heatmaps mark what people marked: pixel AUROC and AUPRO against masks of anomalous images.

Every pixel of a nominal image is nominal. A heatmap is compared at the size of its image.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from fcdd import heatmap
from fcdd.errors import ConfigError, FCDDError, ImageError
from fcdd.io import isolation, storage
from fcdd.metrics import PixelMetrics, PixelMetricsResult
from jobs.catalog import bundles, views
from jobs.labels import label_files
from jobs.sources import listing
from jobs.viewing import rendering
from schemas import RunRecord

_ROWS_AT_ONCE = 500

log = logging.getLogger(__name__)


def measure(
    connection: duckdb.DuckDBPyConnection, record: RunRecord, source: str, masks: str | None
) -> tuple[PixelMetricsResult | None, int]:
    """The metrics, and how many anomalous images have no mask and do not count; (None, 0) without any mask.

    The connection has the views `labels`, which were read from `source`, and `scores` of the record's bundle; `masks`
    is a location of masks that are named like their images. Raises ConfigError for a mask that cannot be taken.
    """
    uris = _mask_uris(connection, source, masks)
    if not uris:
        return None, 0
    try:
        heatmaps = rendering.Heatmaps([bundles.of_run(record)])
    except FCDDError as error:
        if masks:
            raise
        log.warning("heatmaps are not compared with the masks of the labels: %s", error)
        return None, 0
    pixels, without = PixelMetrics(), 0
    log.info("comparing heatmaps with %d masks", len(uris))
    for row in _rows(connection):
        shape = (row["height"], row["width"])
        if row["label"] == 0:
            mask = np.zeros(shape, np.bool_)
        elif row["image_uri"] in uris:
            mask = _mask(uris[row["image_uri"]], shape)
        else:
            without += 1
            continue
        values = heatmaps(row["heatmap"], record, (row["width"], row["height"]))
        pixels.add(heatmap.at_size(values, row["width"], row["height"]), mask)
    return pixels.result(), without


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
    columns = ("label", "image_uri", "width", "height", "heatmap")
    result = connection.execute(
        f"SELECT l.label, s.image_uri, s.width, s.height, s.heatmap FROM labels l JOIN scores s "
        f"ON {label_files.IS_OF} {views.latest_night('s.image_uri')}"
    )
    while rows := result.fetchmany(_ROWS_AT_ONCE):
        yield from (dict(zip(columns, row, strict=True)) for row in rows)


def _mask_uris(connection: duckdb.DuckDBPyConnection, source: str, masks: str | None) -> dict[str, str]:
    """The masks of anomalous images by the images' locations: those that labels name, and those that lie at `masks`."""
    scored = "SELECT DISTINCT image_uri FROM scores"
    listed = connection.sql(
        f"SELECT image_uri, mask_uri FROM labels SEMI JOIN ({scored}) USING (image_uri) WHERE label = 1"
    ).fetchall()
    named = {uri: mask for uri, mask in listed if mask}
    label_files.check_masks(storage.normalize(source), named.values())
    if masks is None:
        return named
    found = _named_alike([uri for uri, _ in listed], storage.normalize(masks))
    if not found and not named:
        raise ConfigError(f"no mask in {masks} is named like one of the {len(listed)} anomalous images, the mask of")
    return found | named


def _named_alike(images: list[str], root: str) -> dict[str, str]:
    """Masks below a location: named like the image, or that and "_mask"; folders count where names are not enough."""
    by_name: Mapping[str, list[tuple[str, str]]] = defaultdict(list)
    for info in listing.list_images(root):
        path = _stem(info.uri.removeprefix(f"{root}/")).removesuffix("_mask")
        by_name[path.rpartition("/")[2]].append((path, info.uri))
    times = Counter(_stem(uri).rpartition("/")[2] for uri in images)
    found = {}
    for uri in images:
        name = _stem(uri).rpartition("/")[2]
        there = by_name.get(name, [])
        chosen = [mask for path, mask in there if _stem(uri).endswith(f"/{path}")] if times[name] > 1 else []
        chosen = chosen or ([mask for _, mask in there] if times[name] == 1 else [])
        if len(chosen) > 1:
            raise ConfigError(f"{uri} has two masks, {chosen[0]} and {chosen[1]}; keep one of them in {root}")
        if chosen:
            found[uri] = chosen[0]
    return found


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _mask(uri: str, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """A mask of an image of this shape (H,W). Raises ConfigError for another size, or one that marks nothing."""
    try:
        grey = np.asarray(isolation.picture(storage.read(uri), mode="L"))
    except FileNotFoundError as error:
        raise ConfigError(f"the mask {uri} does not exist") from error
    except ImageError as error:
        raise ConfigError(f"the mask {uri} cannot be read: {error}") from error
    if grey.shape != shape:
        raise ConfigError(
            f"the mask {uri} is {grey.shape[1]} x {grey.shape[0]} pixels, its image {shape[1]} x {shape[0]}"
        )
    if not (grey > 127).any():
        raise ConfigError(f"the mask {uri} marks nothing: 255 is anomalous, 0 nominal, and the largest is {grey.max()}")
    return grey > 127
