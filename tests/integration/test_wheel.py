"""The wheel that `make wheel` builds is all that a user needs, beside what its extras name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from fcdd.io import storage
from jobs.shell.verbs import VERBS
from tests import environments
from tests.line import picture

ROOT = Path(__file__).parents[2]
SOURCES = ("fcdd", "schemas", "jobs", "cluster", "pyproject.toml", "README.md", "LICENSE", "Makefile")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what an earlier build left among the sources must not be in it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    subprocess.run(["make", "wheel", f"BIN={Path(sys.executable).parent}"], cwd=copy, check=True, capture_output=True)
    [found] = (copy / "dist").glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_has_every_module_and_every_file_that_they_read(wheel: Path) -> None:
    packed = set(ZipFile(wheel).namelist())
    for package in ("fcdd", "schemas", "jobs", "cluster"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert modules <= packed
    read = {"jobs/shell/options.json", "schemas/heatmap.sql", "fcdd/paper/published.json", "fcdd/py.typed"}
    read |= {str(path.relative_to(ROOT)) for path in (ROOT / "jobs/viewing/templates").iterdir()}
    read |= {str(path.relative_to(ROOT)) for path in (ROOT / "schemas/ddl").iterdir()}
    assert read <= packed
    assert not [name for name in packed if name.startswith(("tests", "benchmarks"))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_evening_with_the_wheel_and_nothing_but_what_its_extras_name(wheel: Path, tmp_path: Path) -> None:
    """The packages are those of this environment, linked: what is missing among the extras is missing here."""
    spend_an_evening(environments.make("cluster,cpu,onnx", tmp_path / "env", wheel=wheel).parent, tmp_path)


@pytest.mark.images  # gigabytes, most of them CUDA's libraries
@pytest.mark.timeout(3000)
def test_one_line_of_pip_installs_all_of_it_where_nothing_is(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run([tmp_path / "env/bin/pip", "install", "--quiet", f"{wheel}[all]"], check=True)
    spend_an_evening(tmp_path / "env/bin", tmp_path)


def spend_an_evening(programs: Path, folder: Path) -> None:
    """From pictures in a folder to a report, by the commands alone."""
    for index in range(60):
        storage.write(f"{folder}/good/{index:03d}.png", picture(index))
    for index in range(8):
        storage.write(f"{folder}/new/{index:03d}.png", picture(500 + index, defect=index < 4))
    environment = {"HOME": str(folder), "PATH": f"{programs}:/usr/bin:/bin"}

    def fcdd(*words: str) -> str:
        done = subprocess.run(
            [programs / "fcdd", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    assert all(verb in fcdd("--help") for verb in VERBS)
    assert "fcdd-at-scale" in fcdd("version")
    assert "complete -F _fcdd fcdd" in fcdd("completion", "bash")
    every = "; ".join(f"import jobs.{verb.replace('-', '_')}" for verb in VERBS)
    subprocess.run([programs / "python", "-c", every], cwd=folder, env=environment, check=True)
    train = (
        "train",
        "--images",
        "good",
        "--bundle",
        "bundle",
        "--workers",
        "0",
        "--alpha",
        "0.1",
        "--batch-size",
        "16",
    )
    small = ("--image-size", "64", "--epochs", "1")
    assert "nothing is missing" in fcdd(*train, *small, "--dry-run")
    fcdd(*train, *small)
    where = ("--results", "results", "--collection", "boards", "--date", "2026-11-24")
    fcdd("score", "--bundle", "bundle", "--images", "new", *where, "--workers", "0", "--backend", "openvino")
    assert "8" in fcdd("query", *where)
    fcdd("heatmap", *where, "--top", "2")
    fcdd("report", *where)
    assert "<style>" in (folder / "report.html").read_text()
    assert "score" in fcdd("predict", "new/000.png", "--bundle", "bundle", "--pictures", "looked-at")
    fcdd("export", "onnx", "--bundle", "bundle", "--output", "detector.onnx")
    assert os.path.getsize(folder / "detector.onnx") > 1e6
    fcdd("doctor", "--images", "new", "--results", "results", "--bundle", "bundle")
