"""What a training leaves beside its bundle: metrics as lines and TensorBoard events, and a contact sheet."""

import io
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tensorboardX import SummaryWriter

from fcdd import heatmap
from fcdd.detector import Detector, Scored
from fcdd.errors import ConfigError
from fcdd.io import storage

log = logging.getLogger(__name__)

METRICS_FILE, SHEET_FILE, EVENTS_FOLDER = "metrics.jsonl", "calibration.png", "events"
_SHEET_IMAGES, _SHEET_COLUMNS, _CAPTION = 16, 4, 14


def write(
    bundle_uri: str,
    history: list[dict[str, float]],
    detector: Detector,
    pixels_nhwc: npt.NDArray[np.uint8],
    scored: Scored,
) -> None:
    """All three, below the bundle; `pixels_nhwc` and `scored` are those of the calibration images."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    storage.write(storage.join(bundle_uri, METRICS_FILE), lines.encode())
    storage.write(storage.join(bundle_uri, SHEET_FILE), contact_sheet(detector, pixels_nhwc, scored))
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in history:
                for name, value in epoch.items():
                    if name != "epoch":
                        writer.add_scalar(f"train/{name}", value, int(epoch["epoch"]))
        for path in Path(folder).iterdir():
            storage.write(storage.join(bundle_uri, EVENTS_FOLDER, path.name), path.read_bytes())


def contact_sheet(detector: Detector, pixels_nhwc: npt.NDArray[np.uint8], scored: Scored) -> bytes:
    """A PNG of calibration images beside their heatmaps, spread evenly over the scores, the highest first."""
    scores = getattr(scored, detector.spec.score)
    ranked = np.argsort(-scores, kind="stable")
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), _SHEET_IMAGES)).astype(int))]
    height, width = detector.spec.input_size
    rows = -(-len(chosen) // _SHEET_COLUMNS)
    sheet = Image.new("RGB", (2 * width * _SHEET_COLUMNS, (height + _CAPTION) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for position, index in enumerate(chosen):
        row, column = divmod(position, _SHEET_COLUMNS)
        left, top = 2 * width * column, (height + _CAPTION) * row
        grey_or_rgb = pixels_nhwc[index]
        original = Image.fromarray(grey_or_rgb.squeeze(2) if grey_or_rgb.shape[2] == 1 else grey_or_rgb).convert("RGB")
        shown = heatmap.overlay(original, detector.heatmap(scored.maps[index]), detector.spec.calibration.map_threshold)
        sheet.paste(original, (left, top + _CAPTION))
        sheet.paste(shown, (left + width, top + _CAPTION))
        draw.text((left + 2, top + 1), f"score {scores[index]:.4g}", fill="black")
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    return sink.getvalue()


def to_mlflow(tracking_uri: str, bundle_uri: str, detector: Detector, history: list[dict[str, float]]) -> None:
    """Options, metrics and the bundle's digest as an MLflow run; what fails now is a warning, the bundle is there."""
    mlflow = connect_mlflow(tracking_uri)
    try:
        with mlflow.start_run(run_name=detector.spec.digest[:12]):
            mlflow.set_tags({"bundle": bundle_uri, "digest": detector.spec.digest})
            mlflow.log_params(detector.spec.training.options)
            for epoch in history:
                mlflow.log_metrics({k: v for k, v in epoch.items() if k != "epoch"}, step=int(epoch["epoch"]))
            mlflow.log_metrics(detector.spec.training.metrics)
    except mlflow.MlflowException as error:
        log.warning("the training is not logged to MLflow: %s", str(error).splitlines()[0])


def connect_mlflow(tracking_uri: str) -> Any:
    """The module mlflow with the experiment "fcdd" chosen. Raises ConfigError when that cannot be."""
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError("MLflow is not installed; run `pip install mlflow-skinny`, or leave --mlflow out") from error
    try:
        mlflow.set_tracking_uri(tracking_uri)
        mlflow.set_experiment("fcdd")
    except mlflow.MlflowException as error:
        raise ConfigError(f"cannot log to MLflow at {tracking_uri}: {str(error).splitlines()[0]}") from error
    return mlflow
