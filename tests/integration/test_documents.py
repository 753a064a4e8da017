"""The commands of the documents, run in the environment that they name."""

import os
import re
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from cluster import demo, local_s3
from fcdd import bundle
from fcdd.io import storage
from fcdd.paper.datasets import LabelledImage
from tests import environments
from tests.integration.conftest import Trained
from tests.line import run_verb

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def block(page: str, first: str) -> list[str]:
    """The lines of the shell block that begins with a command."""
    found = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    [text] = [each for each in found if each.startswith(first)]
    return str(text).splitlines()


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with what `make demo` installs, and nothing else."""
    assert "--editable '.[$*]'" in (ROOT / "Makefile").read_text()
    assert "$(VENV)/demo.installed" in (ROOT / "Makefile").read_text()
    return environments.make("demo", tmp_path_factory.mktemp("demo") / "env")


@pytest.fixture
def after_the_demo(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trained: Trained,
    nominal_cells: list[LabelledImage],
    anomalous_cells: list[LabelledImage],
) -> Path:
    """What `make demo` leaves, smaller: a bundle, two nights of images, both scored, the second of them drifted."""
    files = {name: storage.read(f"{trained.bundle}/{name}") for name in bundle.FILES}
    monkeypatch.chdir(tmp_path)
    with local_s3.serve("demo", demo.DATA) as server, mock.patch.dict(os.environ, server.environment()):
        for name, data in files.items():
            storage.write(f"s3://demo/uncalibrated/{name}", data)
        parts = {"nominal": nominal_cells[100:250], demo.NIGHTS[0]: nominal_cells[300:360]}
        parts[demo.NIGHTS[1]] = anomalous_cells[:60]
        for folder, cells in parts.items():
            for cell in cells:
                storage.write(f"s3://demo/images/{folder}/{cell.cell_type}/{cell.path.name}", cell.path.read_bytes())
        places = ("--images", "s3://demo/images/nominal", "--output", "s3://demo/bundle")
        run_verb("calibrate", "--bundle", "s3://demo/uncalibrated", *places)
        for night in demo.NIGHTS:
            run_verb(
                "nightly", "--config", str(demo.CONFIG), "--date", night, "--workers", "0", "--no-report", check=False
            )
    return tmp_path


@pytest.mark.timeout(900)
def test_the_rehearsal_of_the_runbook_shows_what_it_says(python: Path, after_the_demo: Path) -> None:
    enter, *lines = block("docs/operations.md", "make demo-shell")
    assert enter == "make demo-shell"
    assert "$(BIN)/python -m cluster.demo --shell" in (ROOT / "Makefile").read_text()
    environment = {"HOME": str(after_the_demo), "PATH": os.environ["PATH"], "SHELL": "/bin/bash"}
    done = subprocess.run(
        [python, "-m", "cluster.demo", "--shell"],
        cwd=after_the_demo,
        input="\n".join([*lines, ""]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    said = done.stdout
    assert "nobody is let in without it" in said, said + done.stderr
    assert re.search(r"^ *run 20261102-", said, re.MULTILINE), said + done.stderr
    assert "exit code 4" in said, said + done.stderr
    assert all(f'collection="{name}"' in said for name in ("rehearsal", "solar-cells")), said + done.stderr
    assert not re.search("command not found|No module named|Traceback", said + done.stderr), said + done.stderr
