"""`fcdd predict`: a few images, now: score, p-value and regions of each, without a run, and pictures of them."""

import json
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from fcdd import images
from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from jobs.shell import formatting, process
from jobs.shell.settings import JobSettings
from jobs.viewing import predictions
from jobs.viewing.rendering import Style

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
    """Score, print, and draw where pictures are wanted. Raises ConfigError when not one image could be scored."""
    from fcdd.detector import Detector  # late: a wrong option is answered before torch is loaded

    detector = Detector.load(settings.bundle)
    found: list[dict[str, Any]] = []
    waiting = deque(settings.image)
    while waiting:
        place = waiting.popleft()
        try:
            data = storage.read(storage.normalize(place))
            prediction = detector.predict(data, alpha=settings.alpha, location=place)
        except FileNotFoundError:
            inside = _in_folder(place)
            waiting.extendleft(reversed(inside or ()))
            if not inside:
                reason = "it does not exist" if inside is None else "there is no image in this folder"
                found.append({"image": place, "reason": reason})
        except ImageError as error:
            found.append({"image": place, "reason": str(error)})
        else:
            row = {"image": place, **formatting.json_values(prediction), "map": prediction.map.shape}
            if settings.pictures:
                path = predictions.draw(settings.pictures, place, data, prediction, detector, settings.style)
                row["picture"] = str(path)
            found.append(row)
    if settings.format == "json":
        print(json.dumps(found, indent=1, default=str))
    else:
        print("\n".join(predictions.line(row) for row in found))
    if all("reason" in row for row in found):
        raise ConfigError("not one of these images could be scored")


def _in_folder(place: str) -> list[str] | None:
    """The images of a folder and of those in it; None where there is no folder. Raises ConfigError for many."""
    found, is_folder = list[str](), False
    for page in storage.pages(storage.normalize(place)):
        is_folder = True
        found += [info.uri for info in page if info.uri.lower().endswith(images.EXTENSIONS)]
        if len(found) > MAX_IN_FOLDER:
            raise ConfigError(
                f"there are more than {MAX_IN_FOLDER} images in {place}: `fcdd score` scores them faster, and keeps "
                "what it finds"
            )
    return found if is_folder else None


if __name__ == "__main__":
    process.exit_with(main())
