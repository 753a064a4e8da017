"""Where on the image plane the evidence of a model lies, to find features that it should not use.

maps of committed runs -> evidence of anomalous and of nominal images -> shares at the border, outside the object,
at one spot -> flags, and a picture
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
from PIL import Image

from fcdd import evidence, heatmap
from fcdd.bundle import BundleSpec
from fcdd.cropping import box_of
from fcdd.errors import ConfigError, ImageError
from fcdd.evidence import Evidence
from fcdd.images import DecodedImage
from fcdd.io import isolation, storage
from fcdd.io.storage import ObjectInfo
from jobs.catalog import bundles, views
from jobs.labels import label_files
from jobs.measuring import labelled
from jobs.sources import fetching
from jobs.sources.locations import Locations
from jobs.viewing import rendering
from schemas import IDENTITY, RunRecord

_ROWS_AT_ONCE = 5_000
# Per cent of per cent: an object with that much of the picture around it leaves nothing to cut off.
_NOTHING_TO_CROP = 95 * 95
# Pictures of a small network input are enlarged to this width.
_PICTURE_SIDE = 320


class Audit(NamedTuple):
    """The evidence of each kind of images ("anomalous" and "nominal", or "alarms" and "others")."""

    spec: BundleSpec
    kinds: dict[str, Evidence]
    concentrations: dict[str, list[evidence.Concentration]]
    # Where the object is, by cells of the map; None: unknown.
    mask: npt.NDArray[np.bool_] | None
    # Mean grey image of nominal images (H,W), None if none could be read.
    mean: npt.NDArray[np.float64] | None

    def as_dict(self) -> dict[str, Any]:
        """The audit as values for JSON."""
        kinds = {
            name: {
                "num_images": each.num_images,
                "evidence": each.share().round(5).tolist(),
                "concentrations": [found._asdict() for found in self.concentrations[name]],
            }
            for name, each in self.kinds.items()
        }
        return kinds | {"object_share": None if self.mask is None else float(self.mask.mean())}


@views.readable()
def audit(
    results: str,
    records: Sequence[RunRecord],
    locations: Locations,
    *,
    labels: str | None,
    object_mask: str | None,
    sample: int,
) -> Audit:
    """Measure the runs of one bundle; `sample` nominal images below `locations` are fetched for their mean.

    Raises ConfigError when there is no evidence at all, or for labels that cannot be read.
    """
    spec, _ = bundles.of_run(records[-1])
    connection = views.connect(results)
    views.scores(connection, results, records)
    kind, source, names = "is_anomalous", "scores", ("alarms", "others")
    if labels is not None:
        kind, source, names = "labelled", "q", ("anomalous", "nominal")
        connection.register("labels", labelled.read(connection, labels))
        joined = f"SELECT s.*, l.label = 1 AS labelled FROM scores s JOIN labels l ON {label_files.IS_OF}"
        connection.sql(joined).create_view("q")
    kinds = {name: Evidence(np.array(spec.calibration.pooled.map_mean)) for name in names}
    for chosen, maps in _batches(connection.execute(f"SELECT {kind}, heatmap FROM {source}")):
        for name, rows in zip(names, (chosen, ~chosen), strict=True):
            if rows.any():
                kinds[name].add(maps[rows])
    if not any(each.num_images for each in kinds.values()):
        which = "" if labels is None else " that has a label"
        raise ConfigError(f"there is no evidence to look at: the runs have scored no image{which}")
    identities = connection.sql(
        f"SELECT {', '.join(IDENTITY)} FROM {source} WHERE NOT {kind} ORDER BY md5(image_uri) LIMIT {sample}"
    ).fetchall()
    mean = _mean_image(_found([ObjectInfo(*row) for row in identities], locations), spec)
    mask = _object_mask(object_mask, mean, spec)
    return Audit(spec, kinds, {name: each.concentrations(mask) for name, each in kinds.items()}, mask, mean)


def _batches(
    result: duckdb.DuckDBPyConnection,
) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]]:
    while rows := result.fetchmany(_ROWS_AT_ONCE):
        yield np.array([row[0] for row in rows], np.bool_), heatmap.decode_each([row[1] for row in rows])


def _found(infos: list[ObjectInfo], locations: Locations) -> list[ObjectInfo]:
    """Those that are still there and may be opened, where they lie by now."""
    found = []
    for info in infos:
        with suppress(ImageError):
            found.append(locations.find(info))
    return found


def _mean_image(infos: list[ObjectInfo], spec: BundleSpec) -> npt.NDArray[np.float64] | None:
    """Mean grey image (H,W) of what can still be read, None if nothing can."""
    loaded = fetching.fetch_each(infos, spec.view)
    pixels = [image.pixels.mean(2) for image in loaded if isinstance(image, DecodedImage)]
    return np.mean(pixels, axis=0) if pixels else None


def _object_mask(
    object_mask: str | None, mean: npt.NDArray[np.float64] | None, spec: BundleSpec
) -> npt.NDArray[np.bool_] | None:
    cells = np.shape(spec.calibration.pooled.map_mean)
    if object_mask:
        uri = storage.normalize(object_mask)
        try:
            whole = np.asarray(isolation.picture(storage.read(uri), mode="L")) > 127
            seen = box_of(spec.view.crop, whole.shape)
            found = whole[seen.top : seen.bottom, seen.left : seen.right]
        except FileNotFoundError as error:
            raise ConfigError(f"the object mask {uri} does not exist") from error
        except ImageError as error:
            raise ConfigError(f"the object mask {uri} cannot be read: {error}") from error
        if not found.any():
            raise ConfigError(f"the object mask {uri} is black everywhere: white is where the object is")
        return evidence.to_cells(found, (cells[0], cells[1]))
    found_object = evidence.find_object(mean) if mean is not None else None
    if found_object is None:
        return None
    inside = evidence.to_cells(found_object, (cells[0], cells[1]))
    return inside if inside.any() else None  # specks are no object


def print_audit(found: Audit) -> None:
    """Print the audit as text."""
    mask = found.mask
    print(f"model       {found.spec.digest[:12]}  ({found.spec.network})")
    whole = "none was told from the background: it fills the picture, or give --object-mask"
    print(f"object      {whole if mask is None else f'{mask.mean():.0%} of the picture'}")
    flags = 0
    few = [name for name, each in found.kinds.items() if each.num_images < evidence.MIN_IMAGES]
    for name, concentrations in found.concentrations.items():
        print(f"{name:11} {found.kinds[name].num_images} images with evidence")
        for each in concentrations:
            mark = "  <-- suspicious" if each.flagged else ""
            subject = "of the images are hottest" if each.where.startswith(evidence.ONE_SPOT) else "of the evidence"
            print(f"            {each.share:4.0%} {subject} {each.where}, {each.area:.0%} of the area{mark}")
            flags += each.flagged
    if few:
        print(f"            fewer than {evidence.MIN_IMAGES} images say nothing: {', '.join(few)}")
    if flags:
        print(
            f"verdict     {flags} suspicious: look at the pictures (`fcdd heatmap`); if the model looks at "
            f"what is not the product, train without it: {_remedy(found)}"
        )
    else:
        print("verdict     nothing suspicious was found")


def _remedy(found: Audit) -> str:
    """The options of a training that does not look beside the object."""
    mask = "--ignore MASK, white where nothing counts"
    if found.mask is None or found.spec.crop or found.mask.all():
        return mask
    sides = []
    for axis in (1, 0):  # columns, then rows
        hit = np.flatnonzero(found.mask.any(1 - axis))
        count = found.mask.shape[axis]
        first, last = max(0, int(hit[0]) - 1), min(count, int(hit[-1]) + 2)  # and a cell around it
        sides.append((100 * first // count, -(-100 * last // count)))
    (left, right), (top, bottom) = sides
    if (right - left) * (bottom - top) > _NOTHING_TO_CROP:
        return mask
    return f"fcdd train --crop {left}%,{top}%,{right - left}%,{bottom - top}% ..., or {mask}"


def picture(found: Audit) -> Image.Image:
    """The mean image, and over it the evidence of each kind of images, with titles and the colours' numbers."""
    (height, width), mean = found.spec.input_size, found.mean
    grey = Image.fromarray((np.zeros((height, width)) if mean is None else mean).round().astype(np.uint8)).convert(
        "RGB"
    )
    times = max(1, -(-_PICTURE_SIDE // width))
    grey = grey.resize((times * width, times * height))
    shown = [rendering.titled(grey, "mean of nominal images" if mean is not None else "no nominal image could be read")]
    cells = np.size(found.spec.calibration.pooled.map_mean)
    for name, each in found.kinds.items():
        # A cell of three times the even share is in the middle of the scale.
        over = heatmap.overlay(grey, each.share().astype(np.float32), 3 / cells)
        shown.append(rendering.titled(over, f"evidence of {name} ({each.num_images})"))
    text = f"share of the evidence in a cell\n{1 / cells:.2g} where it is even   bundle {found.spec.digest[:12]}"
    return rendering.captioned(rendering.side_by_side(shown), text, 3 / cells)
