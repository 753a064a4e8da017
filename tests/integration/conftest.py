"""One small training and one scored night, made by the real commands, shared by the tests that read them."""

import io
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from cluster import demo
from cluster.local_s3 import LocalS3
from fcdd import bundle
from fcdd.io import storage
from fcdd.paper.datasets import LabelledImage
from jobs.catalog import commit_records
from schemas import RunRecord
from tests.line import NUM_CALIBRATION, Line, here
from tests.unit.test_detector import make

Fcdd = Callable[..., subprocess.CompletedProcess[str]]
COLLECTION, NIGHT = "cells", "2026-11-01"


@dataclass(frozen=True)
class Trained:
    """What `fcdd train` left behind."""

    bundle: str
    images: str
    output: str
    log: str


@dataclass(frozen=True)
class Night:
    """A committed run and what was uploaded for it."""

    bundle: str
    images: str
    results: str
    labels: str
    uploaded: dict[str, bytes]
    broken: dict[str, bytes]
    output: str
    record: RunRecord

    def arguments(self) -> list[str]:
        """The command line that made the run."""
        places = ["--bundle", self.bundle, "--images", self.images, "--results", self.results]
        return ["score", *places, "--collection", COLLECTION, "--date", NIGHT]


@pytest.fixture(scope="session")
def trained(s3: LocalS3, fcdd: Fcdd, nominal_cells: list[LabelledImage]) -> Trained:
    root = f"s3://{s3.bucket}/chain"
    for cell in nominal_cells[:80]:
        storage.write(f"{root}/nominal/{cell.path.name}", cell.path.read_bytes())
    storage.write(f"{root}/nominal/broken.png", b"not an image")
    for name in ("brick", "grass"):
        sink = io.BytesIO()
        Image.fromarray(getattr(skimage.data, name)()).save(sink, "PNG")
        storage.write(f"{root}/outliers/{name}.png", sink.getvalue())
    storage.write(f"{root}/outliers/broken.png", b"not an image")
    done = fcdd(
        *("train", "--images", f"{root}/nominal", "--bundle", f"{root}/bundle", "--score", "maximum"),
        *("--outliers", f"{root}/outliers", "--outlier-share", "0.2"),
        *(
            "--network",
            "whitened:efficientnet_lite0:stage3+stage2:2",
            "--image-size",
            "64",
            "--epochs",
            "2",
            "--batch-size",
            "16",
            "--alpha",
            "0.1",
            "--calibration-share",
            "0.3",
        ),
    )
    return Trained(f"{root}/bundle", f"{root}/nominal", done.stdout, done.stderr)


@pytest.fixture(scope="session")
def night(
    s3: LocalS3,
    fcdd: Fcdd,
    trained: Trained,
    nominal_cells: list[LabelledImage],
    anomalous_cells: list[LabelledImage],
) -> Night:
    root = f"s3://{s3.bucket}/chain"
    images, results = f"{root}/{NIGHT}", f"{root}/results"
    uploaded, labels = {}, ["image_uri,label"]
    for label, cells in ((0, nominal_cells[100:200]), (1, anomalous_cells[:50])):
        for cell in cells:
            uri = f"{images}/{cell.cell_type}/{cell.path.name}"
            uploaded[uri] = cell.path.read_bytes()
            labels.append(f"{uri},{label}")
    awkward = f"{images}/awkward 'key' = 1; DROP TABLE scores--/Ü%20.png"
    uploaded[awkward] = nominal_cells[0].path.read_bytes()
    broken = {f"{images}/broken/{name}": content for name, content in demo.broken_files().items()}
    labels.append(f"{images}/broken/empty.png,1")
    for uri, content in (uploaded | broken).items():
        storage.write(uri, content)
    for ignored in ("readme.txt", "_SUCCESS", ".hidden/x.png", "_tmp/y.png"):
        storage.write(f"{images}/{ignored}", b"x")
    storage.write(f"{root}/labels.csv", "\n".join(labels).encode())
    night = Night(trained.bundle, images, results, f"{root}/labels.csv", uploaded, broken, "", None)  # type: ignore[arg-type]
    done = fcdd(*night.arguments())
    [record] = commit_records.committed(results, COLLECTION)
    return Night(trained.bundle, images, results, f"{root}/labels.csv", uploaded, broken, done.stdout, record)


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The bundle of all lines, made by `fcdd calibrate`."""
    line = Line(str(tmp_path_factory.mktemp("line")))
    make(score="maximum").save(f"{line.root}/raw")
    line.upload("good", NUM_CALIBRATION, seed=9)
    here(
        "calibrate", "--bundle", f"{line.root}/raw", "--images", f"{line.root}/good", "--output", f"{line.root}/bundle"
    )
    return f"{line.root}/bundle"


@pytest.fixture
def line(tmp_path: Path, calibrated: str) -> Line:
    line = Line(str(tmp_path))
    for name in bundle.FILES:
        storage.write(f"{line.root}/bundle/{name}", storage.read(f"{calibrated}/{name}"))
    return line
