"""A place in a store with a bundle, a few images, and the command that scores them."""

import io
import re
import subprocess

import numpy as np
from PIL import Image

from fcdd.io import storage
from jobs.catalog import commit_records, part_files
from schemas import Layout, RunRecord
from tests.conftest import Fcdd
from tests.detectors import make
from tests.line import run_verb

NUM_IMAGES = 12


def encoded(image: Image.Image) -> bytes:
    """As PNG."""
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def picture(seed: int) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3)).astype(np.uint8)))


class Place:
    """A bundle, a few images, and the command that scores them."""

    def __init__(self, root: str, fcdd: Fcdd) -> None:
        self.root, self._fcdd = root, fcdd
        self.images, self.results = f"{root}/images", f"{root}/results"
        make().save(f"{root}/bundle")
        for index in range(NUM_IMAGES):
            storage.write(f"{self.images}/{index % 3}/{index:02d}.png", picture(index))

    def score(self, *options: str, day: int = 1, check: bool = True) -> "subprocess.CompletedProcess[str]":
        where = ["--bundle", f"{self.root}/bundle", "--results", self.results, "--collection", "c"]
        images = [] if "--images" in options or "--image-list" in options else ["--images", self.images]
        night = ("--date", f"2026-11-{day:02d}")
        if "--workers" in options:
            return self._fcdd("score", *where, *night, *images, *options, check=check)
        return run_verb("score", *where, *night, *images, "--workers", "0", *options, check=check)

    def around(self, verb: str, *options: str, day: int = 1, check: bool = True) -> "subprocess.CompletedProcess[str]":
        where = ["--results", self.results, "--collection", "c", "--date", f"2026-11-{day:02d}"]
        return run_verb(verb, *where, *options, check=check)

    def record(self, day: int = 1) -> RunRecord:
        [record] = [record for record in commit_records.committed(self.results, "c") if record.day.day == day]
        return record

    def rows(self, table: str, day: int = 1) -> dict[str, dict[str, object]]:
        parts = getattr(self.record(day), table)
        rows = [row for part in parts for row in part_files.read_published(Layout(self.results), part).to_pylist()]
        assert len({row["image_uri"] for row in rows}) == len(rows)
        return {row["image_uri"]: row for row in rows}


def number(text: str, name: str) -> int:
    found = re.search(rf"^\s*{name} +(\d+)", text, re.MULTILINE)
    assert found, text
    return int(found[1])
