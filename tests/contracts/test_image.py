"""The container image: linted, whole, and its install steps run (slow) where nothing else is."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "cluster/image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(stage: str) -> list[tuple[str, str]]:
    """Instruction and arguments of a stage of the Dockerfile, and of what comes before the first."""
    text = re.sub(r"\\\n", " ", (IMAGE / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[tuple[str, str]] = []
    here = True
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            here = rest.endswith(f" AS {stage}") if stage else " AS " not in rest
        if here:
            found.append((word, rest.strip()))
    return found


def pins(name: str) -> dict[str, str]:
    text = (IMAGE / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+?)(?: |$)", text, re.MULTILINE))


def test_the_dockerfile_is_clean_to_a_linter() -> None:
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    command = [hadolint, "--failure-threshold", "style", IMAGE / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_nobody_special_and_lets_nobody_in_without_a_token() -> None:
    final = instructions("")
    assert [rest for word, rest in final if word == "USER"] == ["1000:1000"]
    assert "RAY_AUTH_MODE=token" in " ".join(rest for word, rest in final if word == "ENV")
    for word, rest in (*final, *instructions("build")):
        assert word != "ADD"
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = shlex.split(rest)
            allowed = (ROOT / ".dockerignore").read_text().splitlines()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source.split('/')[0]}" in allowed, source


def test_what_it_installs_is_pinned_and_what_we_need() -> None:
    gpu, cpu, torch = pins("requirements-gpu.txt"), pins("requirements-cpu.txt"), pins("torch-cpu.txt")
    assert {name: gpu[name] for name in torch} == torch == {name: gpu[name] for name in ("torch", "torchvision")}
    of_cuda = {name for name in gpu if re.match("nvidia|cuda|triton", name)}
    fast = {name for name in cpu if re.match("openvino|efficientnet", name)}  # the extra `cpu`
    assert "openvino" in fast
    both = {name: version for name, version in cpu.items() if name not in fast}
    assert {**both, **torch} == {name: version for name, version in gpu.items() if name not in of_cuda}
    for name in ("requirements-gpu.txt", "requirements-cpu.txt"):
        text = (IMAGE / name).read_text()
        assert text.count("==") == len(re.findall(r"==\S+ \\\n    --hash=sha256:", text))
    extras = PROJECT["optional-dependencies"]
    needed = [Requirement(line) for line in (*PROJECT["dependencies"], *extras["cluster"])]
    for need in needed:
        assert need.specifier.contains(gpu[need.name.lower()]), need
    for need in map(Requirement, extras["cpu"]):
        assert need.specifier.contains(cpu[need.name.lower()]), need


@pytest.mark.images  # two minutes, most of it CUDA's libraries
@pytest.mark.timeout(900)
def test_its_install_steps_work_where_nothing_else_is(tmp_path: Path) -> None:
    """The build stage, run by a shell: COPY from the repository, RUN with nothing of this process's environment."""
    prefix, source = str(tmp_path / "fcdd"), tmp_path / "src"
    source.mkdir()
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "VARIANT": "gpu"}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for word, rest in instructions("build"):
        rest = rest.replace("/opt/fcdd", prefix)
        if word == "COPY":
            *files, to = shlex.split(rest)
            for file in files:
                target = source / (file if to == "./" else f"{to}{Path(file).name}" if to.endswith("/") else to)
                target.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / file).is_dir():
                    shutil.copytree(ROOT / file, target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / file, target)
        elif word == "ENV":
            for pair in shlex.split(rest):
                name, _, value = pair.partition("=")
                environment[name] = value.replace("$PATH", environment["PATH"])
        elif word == "RUN":
            shell = ["bash", "-euo", "pipefail", "-c", rest]
            done = subprocess.run(shell, cwd=source, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    clean = {"HOME": str(tmp_path), "PATH": f"{prefix}/bin:/usr/bin:/bin"}
    for command in (["fcdd", "--version"], ["ray", "--version"], ["python", "-m", "jobs.nightly", "--help"]):
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    examined = subprocess.run(["fcdd", "doctor"], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert examined.returncode == 0, examined.stdout
