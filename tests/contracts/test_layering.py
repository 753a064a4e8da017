"""Who may import whom, read from the syntax trees (DESIGN section 2)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"fcdd", "schemas", "jobs", "cluster", "benchmarks", "tests"}
MAY_IMPORT = {
    "fcdd": {"fcdd"},
    "schemas": {"schemas"},
    "jobs": {"jobs", "fcdd", "schemas"},
    "cluster": {"cluster", "fcdd"},
}
VERBS = (
    "train",
    "score",
    "nightly",
    "calibrate",
    "query",
    "heatmap",
    "report",
    "review",
    "export",
    "compare",
    "audit",
    "evaluate",
    "runs",
    "verify",
    "gc",
    "submit",
    "doctor",
    "metrics",
)
ENTRIES = {*(f"jobs.{verb}" for verb in (*VERBS, "retry_quarantine", "cli")), "cluster.demo"}
STORES = ("storage.py", "object_store.py", "foreign_store.py", "storage_errors.py")
FORBIDDEN = {
    "fcdd": {"ray", "pyarrow", "duckdb", "boto3"},
    "schemas": {"ray", "torch", "duckdb", "obstore", "fsspec"},
    "cluster": {"ray", "torch"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every imported module, also inside functions; `from a import b` counts as a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_flow_one_way(package: str) -> None:
    assert modules(package)
    for path in modules(package):
        roots = {name.split(".")[0] for name in imports(path)}
        assert roots & OURS <= MAY_IMPORT[package], path
        assert not roots & FORBIDDEN.get(package, set()), path


def test_nothing_imports_an_entry_module() -> None:
    for package in MAY_IMPORT:
        for path in modules(package):
            assert not ENTRIES & set(imports(path)), path


def test_only_storage_opens_locations() -> None:
    for package in ("fcdd", "jobs", "schemas"):
        for path in modules(package):
            if path.name not in STORES:
                roots = {name.split(".")[0] for name in imports(path)}
                assert not roots & {"obstore", "fsspec", "s3fs", "boto3", "botocore"}, path


def test_the_library_reads_neither_clock_nor_environment() -> None:
    for path in modules("fcdd") + modules("schemas"):
        names = set(imports(path))
        # The storage client is found through AWS_ENDPOINT_URL, as every S3 client is; the decoder's process gets a
        # time limit, and of the environment almost nothing.
        if path.name not in (*STORES, "isolation.py"):
            assert not names & {"time", "datetime.datetime.now"}, path
            assert "environ" not in path.read_text(), path


def test_only_the_decoder_process_opens_pictures() -> None:
    """Whoever looks at an image has credentials: it asks `fcdd.io.isolation`."""
    for package in ("fcdd", "jobs"):
        for path in modules(package):
            if path.name not in ("images.py", "tiff.py", "decoder_process.py"):
                text = path.read_text()
                assert not [
                    each
                    for each in ("images.decode(", "images.decode_full(", "Image.open", "imread", "PngImageFile")
                    if each in text
                ], path
                assert not {"tifffile", "imagecodecs", "cv2", "imageio", "torchvision.io"} & set(imports(path)), path


def test_no_pickle_is_ever_read_from_storage() -> None:
    for package in MAY_IMPORT:
        for path in modules(package):
            text = path.read_text()
            assert "weights_only=False" not in text, path
            assert "pickle.load" not in text, path
            assert not {"cloudpickle", "joblib"} & set(imports(path)), path


@pytest.mark.parametrize(
    "module",
    [
        "fcdd.io.storage",
        "fcdd.heatmap",
        "schemas",
        "jobs.query",
        "jobs.results",
        "jobs.report",
        "jobs.review",
        "jobs.evaluate",
    ],
)
def test_light_modules_load_neither_torch_nor_ray(module: str) -> None:
    code = f"import {module}, sys; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_package_init_of_the_library_imports_nothing() -> None:
    assert list(imports(ROOT / "fcdd" / "__init__.py")) == []


@pytest.mark.parametrize("module", ["fcdd", "fcdd.detector", "fcdd.training", "fcdd.backbones", "fcdd.io.storage"])
def test_the_library_loads_neither_ray_nor_pyarrow(module: str) -> None:
    """`fcdd.metrics` is not among them: scikit-learn loads pandas, and pandas pyarrow, where they are installed."""
    code = f"import sys, {module}; print(sorted({{'ray', 'pyarrow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
