"""One small training and one scored night, made by the real commands, shared by the tests that read them."""

import hashlib
import io
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage.data
from PIL import Image

from benchmarks import result_tables
from cluster import demo
from cluster.local_s3 import LocalS3
from fcdd import bundle
from fcdd.io import storage
from fcdd.paper.datasets import LabelledImage
from jobs.catalog import commit_records
from schemas import RunRecord
from tests.detectors import make
from tests.hostile import HOSTILE
from tests.line import NUM_CALIBRATION, Line, picture, run_verb

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
        return ["score", *places, "--collection", COLLECTION, "--date", NIGHT, "--workers", "2"]


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
        *("--outliers", f"{root}/outliers", "--outlier-share", "0.2", "--workers", "2"),
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
    run_verb(
        "calibrate", "--bundle", f"{line.root}/raw", "--images", f"{line.root}/good", "--output", f"{line.root}/bundle"
    )
    return f"{line.root}/bundle"


@pytest.fixture
def line(tmp_path: Path, calibrated: str) -> Line:
    line = Line(str(tmp_path))
    for name in bundle.FILES:
        storage.write(f"{line.root}/bundle/{name}", storage.read(f"{calibrated}/{name}"))
    return line


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, calibrated: str) -> Line:
    """Two nights: the second has defects, the first night's images again, near-duplicates and broken files."""
    line = Line(str(tmp_path_factory.mktemp("nights")))
    for page in storage.pages(calibrated):
        for info in page:
            storage.write(f"{line.root}/bundle/{info.uri.rsplit('/', 1)[1]}", storage.read(info.uri))
    line.upload("images", seed=1)
    common = ("--bundle", f"{line.root}/bundle", "--images", f"{line.root}/images", "--workers", "0")
    line.around("score", *common, "--date", "2026-11-01")
    for index in range(6):
        storage.write(f"{line.root}/images/cam-0/{index:03d}.png", picture(1000 + index, defect=True))
    for copy in range(4):
        storage.write(f"{line.root}/images/cam-1/copy-{copy}.png", picture(1000, defect=True))
    storage.write(f"{line.root}/images/cam-1/broken.png", b"not an image")
    storage.write(f"{line.root}/images/cam-1/001.png", b"")
    line.around("score", *common, "--date", "2026-11-02")
    return line


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A night whose most anomalous images, and whose quarantine, have names that are meant to do harm."""
    root = str(tmp_path_factory.mktemp("hostile"))
    [record] = result_tables.generate(root, nights=1, images=100, cells=6)
    changed = {}
    for name, parts in (("scores", record.scores), ("quarantine", record.quarantine)):
        path = f"{root}/{parts[0].path}"
        rows = pq.read_table(path, partitioning=None)
        uris = HOSTILE + rows["image_uri"].to_pylist()[len(HOSTILE) :]
        rows = rows.set_column(rows.column_names.index("image_uri"), rows.schema.field("image_uri"), pa.array(uris))
        groups = pa.array(["=HYPERLINK(1)"] * len(HOSTILE) + ["camera"] * (rows.num_rows - len(HOSTILE)))
        rows = rows.set_column(rows.column_names.index("image_group"), rows.schema.field("image_group"), groups)
        if name == "scores":
            scores = np.concatenate([np.linspace(90, 80, len(HOSTILE)), np.linspace(0.4, 0.1, 95)]).astype(np.float32)
            index = rows.column_names.index("anomaly_score")
            rows = rows.set_column(index, rows.schema.field("anomaly_score"), pa.array(scores))
        pq.write_table(rows, path)
        content = Path(path).read_bytes()
        promised = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        changed[name] = (parts[0].model_copy(update=promised),)
    Path(f"{root}/runs/{record.run_id}.json").write_text(record.model_copy(update=changed).model_dump_json())
    return root
