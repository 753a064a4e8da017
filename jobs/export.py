"""`fcdd export`: a run for the tools that people look at images with, a bundle for the runtimes of other programs."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from fcdd.errors import ConfigError
from fcdd.io import local_store, storage
from jobs import results
from jobs.catalog import views
from jobs.shell import process
from jobs.shell.settings import LookingSettings, Night
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves
from jobs.viewing import exports, rendering


class ExportSettings(LookingSettings):
    """Write a run, or a bundle, in the format of another tool.

    coco      regions as annotations of a COCO file, with peaks as scores; images by their locations, or with
              --relative-to by their names below one
    fiftyone  a folder for fiftyone.Dataset.from_dir(DIR, fiftyone.types.FiftyOneDataset): images, scores, regions, maps
    onnx      a bundle as one ONNX model, pixels to anomaly map and scores, compared with the original first

    The ONNX model takes uint8 RGB (N, height, width, 3) of the network's size, resized bilinear WITH antialiasing: with
    another resizer nominal scores can be 3 to 10 times as high. With --with-resize it takes images of any size.
    """

    verb: ClassVar[str] = "export"

    format: CliPositionalArg[Literal["coco", "fiftyone", "onnx"]] = Field(description="format to write")
    results: str | None = Field(None, description="coco, fiftyone: location of the results")
    collection: str | None = Field(None, description="coco, fiftyone: only this image collection")
    date: Night | None = Field(None, description="coco, fiftyone: night, YYYY-MM-DD; default: all nights")
    all: bool = Field(False, description="coco, fiftyone: all scored images, not only alarms")
    bundle: str | None = Field(None, description="onnx: location of the bundle")
    with_resize: bool = Field(
        False, description="onnx: images of any size are taken, and resized inside the model as our decoder does it"
    )
    relative_to: str | None = Field(
        None, description="coco: location that names of images are relative to, as annotation tools want them"
    )
    images: list[str] = Field(
        default_factory=list,
        description="fiftyone: further location whose images may be opened; the run's own always may",
    )
    output: str = Field(
        description="file to write (coco, onnx: a name without an ending gets .json, .onnx), or folder (fiftyone)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: export(ExportSettings.parse(argv)))


def export(settings: ExportSettings) -> None:
    """Write the file or folder, and print what it is."""
    if settings.relative_to and settings.format != "coco":
        raise ConfigError(f"--relative-to is of coco; {settings.format} has no names of files")
    if settings.format == "onnx":
        _onnx(settings)
        return
    if settings.with_resize:
        raise ConfigError(f"--with-resize is of an ONNX model; {settings.format} has none")
    if settings.results is None:
        raise ConfigError("--results is missing: the location of the results")
    found = results.open(settings.results, collection=settings.collection, since=settings.date, until=settings.date)
    only_alarms = not settings.all
    if settings.format == "coco":
        with views.readable():
            root = storage.normalize(settings.relative_to) if settings.relative_to else None
            exports.coco(found, _with_ending(settings.output, ".json"), only_alarms=only_alarms, root=root)
        return
    moves = Moves.parse(settings.moved)
    found = replace(found, records=tuple(map(moves.record, found.records)))
    locations = Locations.of_records(found.location, found.records, settings.images, moves)
    rendering.check_apart(settings.output, locations)
    with views.readable():
        exports.fiftyone(found, settings.output, only_alarms=only_alarms, locations=locations)


def _with_ending(output: str, ending: str) -> str:
    """The name of a file that other tools recognise."""
    named = output.rstrip("/") or output
    return output if PurePosixPath(named).suffix[1:].isalpha() or local_store.is_stream(output) else named + ending


def _onnx(settings: ExportSettings) -> None:
    if settings.bundle is None:
        raise ConfigError("--bundle is missing: the location of the bundle")
    from fcdd import onnx_export
    from fcdd.detector import Detector

    for name in ("onnxscript", "onnx_ir"):  # they log every initializer
        logging.getLogger(name).setLevel(logging.WARNING)
    found = onnx_export.export(Detector.load(settings.bundle), with_resize=settings.with_resize)
    output = _with_ending(settings.output, ".onnx")
    storage.write(storage.normalize(output), found.model)
    print(f"onnx        {output}  ({len(found.model) / 1e6:.1f} MB)")
    print(f"input       {found.input}")
    print(f"checked     outputs differ by at most {found.largest_difference:.1e} of the largest map value")


if __name__ == "__main__":
    process.exit_with(main())
