"""The benchmark of GPUs runs where there is none, too."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_limits_and_job_are_measured_on_any_machine(tmp_path: Path) -> None:
    file = tmp_path / "table.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--network", "cnn224", "--smoke", "--job=--workers 0"]
    done = subprocess.run([*command, "--output", str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = file.read_text()
    decoders = ("decode, 1 process", "card decodes, 3 threads", "files examined, one process")
    for name in (*decoders, "copy", "forward, float32, batches of 8", "runner, 3 threads", "job"):
        assert re.search(rf"^\| {name} \| [\d,]+ \|", table, re.MULTILINE), table
    assert re.search(r"^job: \d+\.\d\d of (decode|forward)", table, re.MULTILINE), table
    assert table in done.stdout
