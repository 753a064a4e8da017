"""An environment with exactly what one of our extras installs, made of links into the one that runs the tests."""

import os
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distributions(extra: str) -> dict[str, metadata.Distribution]:
    """What `pip install '.[extra]'` would install, by name, as far as it is installed here."""
    own = canonicalize_name(PROJECT["name"])
    todo = [Requirement(f"{own}[{extra}]")]
    found, seen = dict[str, metadata.Distribution](), set[tuple[str, str]]()
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        for each in sorted({"", *need.extras}):
            if (name, each) in seen:
                continue
            seen.add((name, each))
            if name == own:
                todo += map(Requirement, PROJECT["optional-dependencies"][each] if each else PROJECT["dependencies"])
                continue
            found[name] = metadata.distribution(name)
            wanted = map(Requirement, found[name].requires or ())
            todo += [one for one in wanted if not one.marker or one.marker.evaluate({"extra": each})]
    return found


def make(extra: str, folder: Path, *, wheel: Path | None = None) -> Path:
    """The environment, in `folder`; its Python. Our own code is taken from the wheel, or from where this file is."""
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    [packages] = folder.glob("lib/python*/site-packages")
    for name, distribution in distributions(extra).items():
        files = distribution.files or []
        assert files, f"{name} does not say what it consists of"
        scripts = {each.name: each.value for each in distribution.entry_points if each.group == "console_scripts"}
        for file in files:
            target = packages / file if ".." not in file.parts else folder / Path(*file.parts[file.parts.count("..") :])
            if file.name not in scripts or target.parent != folder / "bin":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.symlink(Path(str(distribution.locate_file(file))).resolve(), target)
        for script, value in scripts.items():
            _write_script(folder / "bin" / script, python, value)
    if wheel:
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
        return python
    # In the folder of the sources there may be another description of the same package, which installs nothing.
    own = next(each for each in metadata.distributions(name=PROJECT["name"]) if each.read_text("METADATA"))
    (packages / "fcdd.pth").write_text(f"{ROOT}\n")
    info = next(file for file in own.files or () if file.name == "METADATA")
    (packages / info.parent).mkdir()
    (packages / info).write_text(str(own.locate_file(info).read_text()))  # type: ignore[attr-defined]
    _write_script(folder / "bin/fcdd", python, PROJECT["scripts"]["fcdd"])
    return python


def _write_script(path: Path, python: Path, value: str) -> None:
    module, _, function = value.partition(":")
    path.write_text(f"#!{python}\nimport sys\nfrom {module} import {function.split('.')[0]}\nsys.exit({function}())\n")
    path.chmod(0o755)


if __name__ == "__main__":
    print(make(sys.argv[1], Path(sys.argv[2])))
