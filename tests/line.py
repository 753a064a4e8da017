"""A production line without Ray: commands in this process, a bundle that `fcdd calibrate` made, folders of nights."""

import contextlib
import importlib
import io
import json
import logging
import signal
import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcdd.io import storage
from jobs.catalog import commit_records
from schemas import Layout, RunRecord

NUM_CALIBRATION, NUM_IMAGES = 200, 60
SIZE = (40, 56)


def picture(seed: int, *, brighter: float = 0.0, defect: bool = False) -> bytes:
    """A noisy gradient; a defect is a red block at a place of its own."""
    generator = np.random.default_rng(seed)
    pixels = 90 + 60 * np.linspace(0, 1, SIZE[1])[None, :, None] + generator.normal(0, 12, (*SIZE, 3)) + brighter
    pixels += generator.normal(0, 6)
    if defect:
        top, left = generator.integers(0, 25), generator.integers(0, 40)
        pixels[top : top + 14, left : left + 14] = [255, 0, 0]
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def run_verb(*arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """`fcdd <verb> ...` in this process, which has torch already: what needs no process of its own is tested so."""
    verb, *argv = arguments
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True), io.StringIO()
    handler, root, terminate = logging.StreamHandler(err), logging.getLogger(), signal.getsignal(signal.SIGTERM)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = importlib.import_module(f"jobs.{verb.replace('-', '_')}").main(argv)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        signal.signal(signal.SIGTERM, terminate)
    said = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert not check or code == 0, f"{arguments} exited {code}:\n{said}{err.getvalue()}"
    return subprocess.CompletedProcess(list(arguments), code, said, err.getvalue())


@dataclass
class Line:
    """A production line: a calibrated bundle, and folders of nights, on a disk."""

    root: str

    @property
    def results(self) -> str:
        return f"{self.root}/results"

    def upload(
        self, folder: str, count: int = NUM_IMAGES, *, seed: int, brighter: float = 0.0, defects: int = 0
    ) -> None:
        for index in range(count):
            data = picture(seed * 1000 + index, brighter=brighter, defect=index < defects)
            storage.write(f"{self.root}/{folder}/cam-{index % 2}/{index:03d}.png", data)

    def nightly(
        self, *options: str, day: int = 1, check: bool = False, webhook: str | None = None, command: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        where = ["--bundle", f"{self.root}/bundle", "--results", self.results, "--collection", "c"]
        images = [] if "--images" in options else ["--images", f"{self.root}/nights/{{date}}"]
        night = () if "--date" in options else ("--date", f"2026-11-{day:02d}")
        # The report costs seconds; those tests that are about it ask for it.
        report = () if "--report" in options else ("--no-report",)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (("FCDD_WEBHOOK", webhook), ("FCDD_COMMAND", command)):
                if value is not None:
                    patch.setenv(name, value)
            return run_verb("nightly", *where, *images, *night, "--workers", "0", *report, *options, check=check)

    def around(self, verb: str, *options: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return run_verb(verb, "--results", self.results, "--collection", "c", *options, check=check)

    def rows(self, *options: str) -> list[dict[str, Any]]:
        every = ("--top", "1000", "--duplicates", "--format", "json")
        found: list[dict[str, Any]] = json.loads(self.around("query", *every, *options).stdout)
        return found

    def records(self) -> list[RunRecord]:
        return commit_records.current(commit_records.history(Layout(f"file://{self.results}"), "c"))
