"""What a training leaves beside its bundle: metrics as lines and TensorBoard events, and a page of what it learned."""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from fcdd.bundle import PAGE_FILE
from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.io import storage

log = logging.getLogger(__name__)

METRICS_FILE, EVENTS_FOLDER = "metrics.jsonl", "events"


def write(bundle_uri: str, history: Sequence[Mapping[str, float]], page: bytes) -> None:
    """All three, below the bundle."""
    lines = "".join(json.dumps(epoch) + "\n" for epoch in history)
    storage.write(storage.join(bundle_uri, METRICS_FILE), lines.encode())
    storage.write(storage.join(bundle_uri, PAGE_FILE), page)
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in history:
                for name, value in epoch.items():
                    if name != "epoch":
                        writer.add_scalar(f"train/{name}", value, int(epoch["epoch"]))
        for path in Path(folder).iterdir():
            storage.write(storage.join(bundle_uri, EVENTS_FOLDER, path.name), path.read_bytes())


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
