"""Predictions of single images: as a line, and as a picture of the original beside its heatmap."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.shell import formatting
from jobs.viewing import rendering

if TYPE_CHECKING:
    from fcdd.detector import Detector, Prediction

# So many regions of an image are named in its line, the hottest first.
_BOXES = 3


def line(row: Mapping[str, Any]) -> str:
    """One image: whether it is anomalous, score, p-value, regions, name; or why it has none of these."""
    name = formatting.printable(row["image"])
    if "reason" in row:
        return f"{'not scored':10}  {name}  ({formatting.printable(row['reason'])})"
    verdict = "alarm" if row["is_anomalous"] else "no alarm"
    found = formatting.plural(len(row["regions"]), "region")
    where = "".join(f"  x {each['x0']}-{each['x1']} y {each['y0']}-{each['y1']}" for each in row["regions"][:_BOXES])
    where += "  ..." if len(row["regions"]) > _BOXES else ""
    picture = f"  -> {row['picture']}" if "picture" in row else ""
    score = f"score {row['anomaly_score']:<8.4g}  p {row['p_value']:<8.4g}"
    return f"{verdict:10}  {score}  {found:9}  {name}{where}{picture}"


def draw(
    folder: str, name: str, data: bytes, prediction: "Prediction", detector: "Detector", style: rendering.Style
) -> Path:
    """A PNG of the image with its heatmap and the outlines of its regions. Raises ConfigError, ImageError."""
    threshold = detector.spec.calibration.map_threshold
    original = rendering.to_draw_on(data, detector.spec.full_scale)  # the whole one, not what was scored
    size = (prediction.width, prediction.height)
    values, lines = detector.heatmap(prediction.map, size[::-1]), detector.contours(prediction.map, size[::-1])
    shown = rendering.evidence(original, values, lines, threshold, style, size=size)
    verdict = ("alarm" if prediction.is_anomalous else "no alarm") + rendering.reduced(original, size)
    shown_name = formatting.printable(name.rpartition("/")[2])
    text = f"{shown_name}\nscore {prediction.anomaly_score:.4g}   p {prediction.p_value:.4g}   {verdict}"
    stem = rendering.plain(rendering.own_name(name))
    path = rendering.folder(folder) / f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:6]}.png"
    rendering.captioned(shown, text, threshold).save(path)
    return path
