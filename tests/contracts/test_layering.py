"""Who may import whom, and what, read from the syntax trees (docs/architecture.md)."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

import fcdd
from jobs.shell.verbs import VERBS

ROOT = Path(__file__).parents[2]

# Packages, and folders of jobs/: what each may import of ours beside itself. `verbs` are the modules right in jobs/
# but for `jobs.results`.
LIBRARY = {"fcdd", "fcdd.io", "schemas"}
SHELL = {*LIBRARY, "jobs.shell", "jobs.timing"}
GROUND = {*SHELL, "jobs.catalog", "jobs.labels", "jobs.sources", "jobs.on_ray"}
MAY_IMPORT = {
    "fcdd": {"fcdd.io"},
    "fcdd.io": {"fcdd"},
    "fcdd.paper": {"fcdd", "fcdd.io"},
    "schemas": set[str](),
    "jobs.shell": LIBRARY,
    "jobs.timing": LIBRARY,
    "jobs.catalog": SHELL,
    "jobs.labels": {*SHELL, "jobs.catalog"},
    "jobs.sources": SHELL,
    "jobs.upkeep": GROUND - {"jobs.on_ray"},
    "jobs.on_ray": SHELL,
    "jobs.results": {*SHELL, "jobs.catalog"},
    "jobs.engines": {*SHELL, "jobs.catalog", "jobs.sources", "jobs.on_ray"},
    "jobs.scoring": {*GROUND, "jobs.engines"},
    "jobs.calibration": GROUND - {"jobs.on_ray"},
    "jobs.training": {*GROUND, "fcdd.paper", "jobs.calibration", "jobs.viewing"},
    "jobs.viewing": {*GROUND - {"jobs.on_ray"}, "jobs.results"},
    "jobs.measuring": {*GROUND - {"jobs.on_ray"}, "jobs.results", "jobs.viewing"},
    "verbs": {
        *GROUND,
        *(
            "jobs.results",
            "jobs.upkeep",
            "jobs.calibration",
            "jobs.scoring",
            "jobs.training",
            "jobs.viewing",
            "jobs.measuring",
        ),
    },
    "cluster": {"fcdd", "fcdd.io", "fcdd.paper"},
}
# Packages of others: who alone may import them.
ONLY_IN = {
    "ray": {"jobs.on_ray", "jobs.engines", "jobs.training"},
    "torch": {"fcdd", "fcdd.paper", "jobs.calibration", "jobs.engines", "jobs.training", "jobs.shell.machine"},
    "duckdb": {"jobs.catalog", "jobs.labels", "jobs.results", "jobs.scoring", "jobs.viewing", "jobs.measuring"},
    "pydantic_settings": {
        "verbs",
        "jobs.shell.settings",
        "jobs.scoring.settings",
        "jobs.training.settings",
    },
    "obstore": {"fcdd.io", "cluster.local_s3"},
    "fsspec": {"fcdd.io"},
    "s3fs": {"fcdd.io"},
    "boto3": set[str](),
    "botocore": {"fcdd.io"},
    "pyarrow": {"schemas", "jobs", "verbs"},
    "cloudpickle": set[str](),
    "joblib": set[str](),
    "tifffile": {"fcdd.tiff"},
    "imagecodecs": {"fcdd.tiff"},
    "cv2": set[str](),
    "imageio": set[str](),
}
# Of the library, only these touch a store: they load and save.
DOORS = {"fcdd.bundle", "fcdd.detector", "fcdd.scorer"}
# What reaches the outside, and the clock: in `fcdd/` only in its io.
OUTSIDE = {"os", "time", "socket", "subprocess", "tempfile", "shutil", "threading", "urllib", "requests", "datetime"}


class Module(NamedTuple):
    """A module of ours, and its syntax tree."""

    name: str
    room: str
    tree: ast.Module


def room_of(name: str) -> str:
    """The row of MAY_IMPORT that a module belongs to."""
    parts = name.split(".")
    if parts[0] == "jobs":
        if parts[1:2] == ["results"]:
            return "jobs.results"
        return ".".join(parts[:2]) if len(parts) > 1 and (ROOT / "jobs" / parts[1]).is_dir() else "verbs"
    return ".".join(parts[:2]) if parts[:2] in (["fcdd", "io"], ["fcdd", "paper"]) else parts[0]


def module(name: str, source: str) -> Module:
    return Module(name, room_of(name), ast.parse(source))


def modules() -> list[Module]:
    found = []
    for package in ("fcdd", "schemas", "jobs", "cluster"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(module(".".join(part for part in parts if part != "__init__"), path.read_text()))
    return found


MODULES = modules()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, also inside functions; `from a import b` counts as a.b, and as a for foreign packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" if node.level == 0 else "." for alias in node.names)


def in_any(name: str, places: set[str]) -> bool:
    """Whether a module lies in one of these packages, rooms or modules."""
    return room_of(name) in places or any(name == place or name.startswith(f"{place}.") for place in places)


def wrong_arrows(each: Module) -> list[str]:
    """Imports of ours that the table does not allow, entry modules among them."""
    found = []
    for name in imports(each.tree):
        if name == "." or name.split(".")[0] in ("tests", "benchmarks"):
            found.append(name)
        elif name.split(".")[0] in ("fcdd", "schemas", "jobs", "cluster"):
            room = room_of(name)
            if room == "verbs" or room not in {each.room, *MAY_IMPORT[each.room]}:
                found.append(name)
    return found


def wrong_packages(each: Module) -> list[str]:
    return [
        n for n in imports(each.tree) if (top := n.split(".")[0]) in ONLY_IN and not in_any(each.name, ONLY_IN[top])
    ]


def wrong_outside(each: Module) -> list[str]:
    """What a module of the pure library does with stores, files, processes, the environment or the clock."""
    if each.room not in ("fcdd", "schemas"):
        return []
    found = [n for n in imports(each.tree) if n.split(".")[0] in OUTSIDE and each.room == "fcdd"]
    if each.name not in DOORS:
        found += [name for name in imports(each.tree) if name.startswith("fcdd.io")]
    # Types of time are values; to look at the clock is not.
    clocks = ("now", "utcnow", "today", "time", "perf_counter", "monotonic", "environ", "getenv")
    return found + [n.attr for n in ast.walk(each.tree) if isinstance(n, ast.Attribute) and n.attr in clocks]


def unpickled(each: Module) -> list[str]:
    """Ways to run code that a file holds."""
    found = [name for name in imports(each.tree) if name.split(".")[0] in ("pickle", "dill", "marshal", "shelve")]
    if each.name == "fcdd.paper.datasets":  # CIFAR-10 is published so; its own Unpickler admits arrays and no code
        found.remove("pickle")
    for node in ast.walk(each.tree):
        if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
            harmless = node.arg == "weights_only"
            if not (isinstance(node.value, ast.Constant) and node.value.value is harmless):
                found.append(node.arg)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            found += [] if any(word.arg == "weights_only" for word in node.keywords) else ["torch.load"]
    return found


def opened_pictures(each: Module) -> list[str]:
    """Pictures are decoded apart from whoever holds credentials: only the decoder's own modules open one."""
    # The last one is asked for by name (`--decode gpu`), and given whole files only.
    if each.name in ("fcdd.images", "fcdd.tiff", "fcdd.io.decoder_process", "fcdd.batch_decoding"):
        return []
    calls = [ast.unparse(node.func) for node in ast.walk(each.tree) if isinstance(node, ast.Call)]
    calls += [name for name in imports(each.tree) if name.startswith("torchvision.io.")]
    opening = ("images.decode", "images.decode_full", "Image.open", "imread", "PngImageFile", "decode_jpeg")
    return [call for call in calls if call in opening or call.rsplit(".", 1)[-1] in opening[3:]]


def names_with_underscores(each: Module) -> list[str]:
    return [part for part in each.name.split(".") if part.startswith("_")] if each.name.startswith("jobs") else []


RULES = (wrong_arrows, wrong_packages, wrong_outside, unpickled, opened_pictures, names_with_underscores)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds_everywhere(rule: object) -> None:
    assert callable(rule)
    assert {each.name: found for each in MODULES if (found := rule(each))} == {}


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (wrong_arrows, "fcdd.planted", "from jobs.shell import process"),
        (wrong_arrows, "fcdd.planted", "from fcdd.paper import datasets"),
        (wrong_arrows, "schemas.planted", "import fcdd.errors"),
        (wrong_arrows, "jobs.shell.planted", "from jobs.catalog import leases"),
        (wrong_arrows, "jobs.catalog.planted", "from jobs.sources import fetching"),
        (wrong_arrows, "jobs.scoring.planted", "def f():\n    from jobs.training import run"),
        (wrong_arrows, "jobs.training.planted", "from jobs.scoring import waves"),
        (wrong_arrows, "jobs.viewing.planted", "from jobs.scoring import waves"),
        (wrong_arrows, "jobs.results", "from jobs.viewing import queries"),
        (wrong_arrows, "jobs.planted", "from jobs.nightly import nightly"),
        (wrong_arrows, "jobs.planted", "from jobs import score"),
        (wrong_arrows, "jobs.planted", "from . import score"),
        (wrong_arrows, "jobs.planted", "from tests import line"),
        (wrong_packages, "jobs.catalog.planted", "import ray"),
        (wrong_packages, "jobs.query", "import torch.nn"),
        (wrong_packages, "jobs.catalog.planted", "from pydantic_settings import BaseSettings"),
        (wrong_packages, "fcdd.planted", "import pyarrow as pa"),
        (wrong_packages, "jobs.sources.planted", "import s3fs"),
        (wrong_packages, "cluster.planted", "import torch"),
        (wrong_outside, "fcdd.planted", "import os"),
        (wrong_outside, "fcdd.planted", "from fcdd.io import storage"),
        (wrong_outside, "schemas.planted", "from datetime import datetime\nmoment = datetime.now()"),
        (unpickled, "jobs.shell.planted", "import pickle\npickle.Unpickler(file).load()"),
        (unpickled, "jobs.shell.planted", "torch.load(file, weights_only=False)"),
        (unpickled, "jobs.shell.planted", "torch.load(file)"),
        (unpickled, "fcdd.planted", "np.load(file, allow_pickle=True)"),
        (opened_pictures, "jobs.viewing.planted", "Image.open(file)"),
        (opened_pictures, "jobs.viewing.planted", "images.decode(data)"),
        (opened_pictures, "jobs.viewing.planted", "from torchvision.io import decode_jpeg"),
        (names_with_underscores, "jobs.scoring._planted", ""),
    ],
)
def test_each_rule_finds_what_breaks_it(rule: object, name: str, source: str) -> None:
    assert callable(rule)
    assert rule(module(name, source))


def test_no_test_module_imports_another_one() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names = [part for name in imports(ast.parse(path.read_text())) for part in name.split(".")]
        assert not [name for name in names if name.startswith("test_")], path


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {each.name for each in MODULES}
    # `from a import b` names a module a.b, or something in a.
    arrows = {
        each.name: {name if name in names else name.rpartition(".")[0] for name in imports(each.tree)} & names
        for each in MODULES
    }
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, with the circle


def test_every_verb_is_a_module_right_in_jobs_and_nothing_else_is() -> None:
    found = {each.name.removeprefix("jobs.") for each in MODULES if each.room == "verbs" and "." in each.name}
    assert found == {*(verb.replace("-", "_") for verb in VERBS), "cli"}


def test_folders_of_jobs_stay_small_enough_to_read() -> None:
    for folder in (path for path in (ROOT / "jobs").iterdir() if (path / "__init__.py").exists()):
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 16, folder


@pytest.mark.parametrize(
    "name",
    [
        "fcdd.io.storage",
        "fcdd.heatmap",
        "schemas",
        "jobs.query",
        "jobs.results",
        "jobs.report",
        "jobs.review",
        "jobs.evaluate",
        "jobs.score",
        "jobs.nightly",
        "jobs.retry_quarantine",
        "jobs.shell.settings",
        "jobs.upkeep.garbage",
    ],
)
def test_light_modules_load_neither_torch_nor_ray(name: str) -> None:
    code = f"import {name}, sys; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_packages_of_the_library_import_nothing_by_themselves() -> None:
    # Memory is kept before anything else is imported: numpy starts threads.
    for name, expected in (("fcdd.io", []), ("fcdd.paper", []), ("jobs", ["fcdd.io.memory"])):
        [found] = [each for each in MODULES if each.name == name]
        assert list(imports(found.tree)) == expected


def test_importing_the_library_loads_nothing_until_a_name_is_asked_for() -> None:
    code = "import sys, fcdd; print(fcdd.__version__, [n for n in sys.modules if n.startswith('fcdd.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{metadata.version('fcdd-at-scale')} []\n"
    code = "import sys; from fcdd import ConfigError, Runtime, BundleSpec, ImageError; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_name_that_the_library_offers_is_there_under_the_name_that_types_have_it() -> None:
    [package] = [each for each in MODULES if each.name == "fcdd"]
    typed = {name for name in imports(package.tree) if name.startswith("fcdd.")}
    for name in {*fcdd.__all__} - {"__version__"}:
        value = getattr(fcdd, name)
        assert f"{value.__module__}.{name}" in typed
    assert "Detector" in dir(fcdd)
    with pytest.raises(AttributeError, match="module 'fcdd' has no attribute 'nonsense'"):
        getattr(fcdd, "nonsense")  # noqa: B009 (a type checker knows that it is not there)
    assert len(typed) == len(fcdd.__all__) - 1


@pytest.mark.parametrize("name", ["fcdd", "fcdd.detector", "fcdd.training", "fcdd.backbones", "fcdd.io.storage"])
def test_the_library_loads_neither_ray_nor_pyarrow(name: str) -> None:
    """`fcdd.metrics` is not among them: scikit-learn loads pandas, and pandas pyarrow, where they are installed."""
    code = f"import sys, {name}; print(sorted({{'ray', 'pyarrow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
