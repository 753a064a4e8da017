"""What a training learned, as one HTML file beside the bundle that needs nothing else.

the finished detector, scored calibration images and synthetic anomalies -> a context -> templates/training.html.j2
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fcdd import contours, heatmap
from fcdd.calibration import Floats, Score, ThresholdImage
from fcdd.detector import Detector
from jobs.viewing import charts, pages, rendering

_BINS, _WIDTH, _HEIGHT = 60, 640, 160
# Pictures of a page of a few hundred kilobytes.
_QUALITY, _SIDE = 70, 224
# Pixels between a change and the box around it.
_AROUND = 4


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture (H,W,C) of the network's input with its map (U,V) and score; `name` says which one it is.

    `box` (x0, y0, x1, y1) is where something was changed, if that is known.
    """

    name: str
    picture: npt.NDArray[np.uint8]
    map_uv: npt.NDArray[np.float32]
    score: float
    box: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """What the page is made of; scores are those that decide, (N,) of calibration and by kind of synthetic anomalies.

    `shares`: kind -> score -> share that is found at the promised rate. `seconds`: what took how long.
    """

    detector: Detector
    history: Sequence[Mapping[str, float]]
    nominal: Floats
    sets_threshold: ThresholdImage
    sets_threshold_name: str
    most_anomalous: Sequence[Shown]
    kinds: Mapping[str, Sequence[Shown]]
    shares: Mapping[str, Mapping[Score, float]]
    trained_on: str
    seconds: Mapping[str, float]
    warnings: Sequence[str] = field(default_factory=tuple)


def build(training: Training) -> bytes:
    """The page."""
    spec = training.detector.spec
    context = {
        "spec": spec,
        "calibration": spec.calibration,
        "history": training.history,
        "histogram": _histogram(training.nominal, spec.calibration.threshold),
        "sets_threshold": training.sets_threshold,
        "sets_threshold_name": training.sets_threshold_name,
        "most_anomalous": [_drawn(training.detector, each) for each in training.most_anomalous],
        "kinds": {kind: [_drawn(training.detector, each) for each in shown] for kind, shown in training.kinds.items()},
        "shares": training.shares,
        "trained_on": training.trained_on,
        "mean_map": _mean_map(training.detector),
        "mean_map_top": max(map(max, spec.calibration.pooled.map_mean)),
        "seconds": training.seconds,
        "total": sum(training.seconds.values()),
        "warnings": training.warnings,
    }
    return pages.training(context).encode()


def _drawn(detector: Detector, shown: Shown) -> dict[str, Any]:
    """The picture, and with its heatmap over it, as data URIs."""
    pixels = shown.picture.squeeze(2) if shown.picture.shape[2] == 1 else shown.picture
    original = Image.fromarray(pixels).convert("RGB")
    threshold = detector.spec.calibration.map_threshold
    over = heatmap.overlay(original, detector.heatmap(shown.map_uv), threshold)
    if shown.box:
        x0, y0, x1, y1 = shown.box
        for picture in (original, over):
            draw = ImageDraw.Draw(picture)
            for grown, colour in ((_AROUND + 1, contours.CASING), (_AROUND, contours.LINE)):
                draw.rectangle((x0 - grown, y0 - grown, x1 + grown - 1, y1 + grown - 1), outline=colour)
    for each in (original, over):
        each.thumbnail((_SIDE, _SIDE))
    return {
        "name": shown.name,
        "score": shown.score,
        "is_found": shown.score > detector.spec.calibration.threshold,
        "original": rendering.data_uri(original, "WEBP", quality=_QUALITY),
        "over": rendering.data_uri(over, "WEBP", quality=_QUALITY),
    }


def _mean_map(detector: Detector) -> str:
    """The average map of nominal images on a scale of its own, from 0: on that of the threshold all of it is dark."""
    values = np.array(detector.spec.calibration.pooled.map_mean, np.float32)
    colours = np.asarray(heatmap.colours(256))[0]
    shares = values.clip(0) / (float(values.max()) or 1.0)
    shown = Image.fromarray(colours[(shares * 255).round().astype(np.uint8)])
    scale = max(1, _SIDE // max(shown.size))
    return rendering.data_uri(
        shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST), "PNG"
    )


def _histogram(scores: Floats, threshold: float) -> dict[str, Any]:
    """Numbers of calibration images by score as bars of a drawing, with ticks below."""
    low, high = min(0.0, float(scores.min())), max(float(scores.max()), threshold)
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(scores, _BINS, (low, high))
    step, tallest = _WIDTH / _BINS, max(int(counts.max()), 1)
    bars = [
        {
            "x": index * step + 0.5,
            "y": _HEIGHT * (1 - count / tallest),
            "width": step - 1,
            "height": _HEIGHT * count / tallest,
            "title": f"{edges[index]:.3g} to {edges[index + 1]:.3g}: {count} images",
            "kind": "above" if edges[index] >= threshold else "",
        }
        for index, count in enumerate(counts.tolist())
        if count
    ]
    return {
        "bars": bars,
        "tallest": tallest,
        "threshold": _WIDTH * (threshold - low) / (high - low),
        "ticks": charts.ticks_and_ends(low, high, _WIDTH, count=6),
    }
