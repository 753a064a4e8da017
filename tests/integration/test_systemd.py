"""The service of cluster/systemd, run as systemd would run it: its own command, in its own sandbox, on this machine."""

import json
import os
import shlex
import sys
import sysconfig
from pathlib import Path

import pytest

from cluster.local_s3 import LocalS3
from fcdd.io import storage
from jobs.catalog import commit_records
from tests import sandbox
from tests.detectors import make
from tests.places import picture

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.skipif(bool(sandbox.forbidden()), reason=f"no sandbox can be made here: {sandbox.forbidden()}"),
]
UNIT = Path(__file__).parents[2] / "cluster/systemd/fcdd-nightly.service"
FCDD = str(Path(sysconfig.get_path("scripts"), "fcdd"))


@pytest.fixture
def configuration(s3: LocalS3, prefix: str, tmp_path: Path) -> Path:
    """Of one line whose images of the night are there."""
    make().save(f"{prefix}/bundle")
    for index in range(12):
        storage.write(f"{prefix}/line-4/2026-11-01/{index:02d}.png", picture(index))
    path = tmp_path / "factory.toml"
    table = f'bundle = "{prefix}/bundle"\nimages = ["{prefix}/line-4/{{date}}"]\nresults = "{prefix}/results"\n'
    night = 'collection = "line-4"\ndate = "2026-11-01"\nmax_alarms = 100\n'
    path.write_text(f"[nightly]\n{table}{night}\n[doctor]\n{table.replace('/{date}', '')}")
    tmp_path.chmod(0o755)  # for the service's user
    return path


def served(s3: LocalS3) -> dict[str, str]:
    """What its EnvironmentFile would say; and where the code is that is tested."""
    return {**s3.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_service_runs_in_the_sandbox_that_it_asks_for(s3: LocalS3, prefix: str, configuration: Path) -> None:
    service = sandbox.service(UNIT)
    assert sandbox.ENFORCED.items() <= dict(service).items()
    command = service["ExecStart"].replace("/opt/fcdd/bin/fcdd", FCDD)
    words = shlex.split(command.replace("/etc/fcdd/factory.toml", str(configuration)))
    own = dict(each.split("=", 1) for each in shlex.split(service.get("Environment", "")))
    done = sandbox.run(words, served(s3) | own, keep=[configuration.parent], timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [record] = commit_records.committed(f"{prefix}/results", "line-4")
    assert (record.num_scored, record.num_quarantined) == (12, 0)
    assert f"reports/collection=line-4/date=2026-11-01/run={record.run_id}" in done.stdout


@pytest.mark.parametrize(
    ("environment", "code", "state"),
    [({}, 0, "ok"), ({"RAY_TMPDIR": "/srv"}, 2, "problem"), ({"RAY_TMPDIR": "/tmp/" + "deep/" * 20}, 2, "problem")],
    ids=["as it is", "a folder that can only be read", "a folder whose name is too long for a socket"],
)
def test_the_doctor_says_whether_a_local_ray_could_start_in_the_sandbox(
    s3: LocalS3, configuration: Path, environment: dict[str, str], code: int, state: str
) -> None:
    words = [FCDD, "doctor", "--config", str(configuration), "--format", "json"]
    done = sandbox.run(words, served(s3) | environment, keep=[configuration.parent], timeout_s=120)
    assert done.returncode == code, done.stdout + done.stderr
    [found] = [each for each in json.loads(done.stdout) if each["subject"] == "local Ray"]
    assert found["state"] == state
    assert (found["do"] != "") == (state == "problem")
