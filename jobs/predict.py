"""`fcdd predict`: a few images, now: score, p-value and regions of each, without a run, and pictures of them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings
from jobs.sources import listing
from jobs.sources.locations import Locations
from jobs.viewing import predictions, rendering
from jobs.viewing.rendering import Style

if TYPE_CHECKING:
    from fcdd.detector import Detector

MAX_IN_FOLDER = 200


class PredictSettings(JobSettings):
    """Score some images at once and print what the bundle says of each; nothing is stored but pictures.

    For collections use `fcdd score` and `fcdd nightly`, which commit what they find.
    """

    verb: ClassVar[str] = "predict"

    image: CliPositionalArg[list[str]] = Field(description="locations of images, or of folders with a few")
    bundle: str = Field(description="location of the bundle that `fcdd train` wrote")
    alpha: float | None = Field(
        None, gt=0, lt=1, description="false-alarm rate; default: the one the bundle was calibrated for"
    )
    pictures: str | None = Field(None, description="local folder for a picture of each with its heatmap")
    style: Style = Field(
        "side-by-side",
        description="of the pictures: side-by-side: original and overlay; overlay: alone; outline: of what is above "
        "the threshold; contours: at 0.5, 1, 2 and 4 thresholds",
    )
    format: Literal["text", "json"] = Field("text", description="text for people, json for programs")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: predict(PredictSettings.parse(argv)))


def predict(settings: PredictSettings) -> None:
    """Score, print, and draw where pictures are wanted.

    Raises ConfigError at the end when an image that was named, or not one of all, could not be scored.
    """
    from fcdd.detector import Detector  # late: a wrong option is answered before torch is loaded

    detector = Detector.load(settings.bundle)
    found: list[dict[str, Any]] = []
    num_failed = 0
    for given in settings.image:
        uri = storage.normalize(given)
        try:
            found.append(_predicted(given, partial(storage.read, uri), detector, settings))
            num_failed += "reason" in found[-1]
        except FileNotFoundError:
            below = _in_folder(given, uri, detector, settings)
            found += below
            num_failed += not below or below[0]["image"] == given  # it does not exist
    if settings.format == "json":
        print(json.dumps(found, indent=1, default=str))
    else:
        print("\n".join(predictions.line(row) for row in found))
    if all("reason" in row for row in found):
        raise ConfigError("not one of these images could be scored")
    if num_failed:
        raise ConfigError(f"{num_failed} of the images that you named could not be scored; the others were")


def _predicted(name: str, read: Callable[[], bytes], detector: "Detector", settings: PredictSettings) -> dict[str, Any]:
    """What the bundle says of one image, or why nothing. Raises what `read` raises, but for ImageError."""
    try:
        data = read()
        prediction = detector.predict(data, alpha=settings.alpha, location=name)
    except ImageError as error:
        return {"image": name, "reason": str(error)}
    row = {"image": name, **formatting.json_values(prediction), "map": prediction.map.shape}
    if settings.pictures:
        path = predictions.draw(settings.pictures, name, data, prediction, detector, settings.style)
        row["picture"] = str(path)
    return row


def _in_folder(place: str, root: str, detector: "Detector", settings: PredictSettings) -> list[dict[str, Any]]:
    """The images of a folder, as a run would find them. Raises ConfigError for many, and for pictures among them."""
    if not any(storage.pages(root)):
        return [{"image": place, "reason": "it does not exist"}]
    if settings.pictures:
        rendering.check_apart(settings.pictures, Locations((root,)))
    infos = listing.list_images(root)
    if len(infos) > MAX_IN_FOLDER:
        raise ConfigError(
            f"there are {len(infos)} images in {place}, more than {MAX_IN_FOLDER}: `fcdd score` scores them faster, "
            "and keeps what it finds"
        )
    found = list[dict[str, Any]]()
    for info in infos:
        try:
            found.append(_predicted(info.uri, partial(storage.read_checked, info), detector, settings))
        except ConfigError as error:  # one that this user may not read costs itself
            found.append({"image": info.uri, "reason": str(error)})
    return found


if __name__ == "__main__":
    process.exit_with(main())
