"""What else lies under cluster/: virtual machines, schedules, monitoring, the example configuration."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import demo
from jobs.engines import live_metrics
from jobs.shell.settings import JobSettings
from jobs.shell.verbs import VERBS
from jobs.viewing import gauges
from tests.option_tables import settings_of

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
EXAMPLE = tomllib.loads((CLUSTER / "factory.toml").read_text())
SETTINGS: dict[str, type[JobSettings]] = {verb: settings_of(verb) for verb in VERBS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def runs(command: str) -> tuple[str, list[str]]:
    """The verb and the options of an fcdd command, which must be ones that it has."""
    words = shlex.split(command)
    start = next(index for index, word in enumerate(words) if word.endswith("/fcdd")) + 1
    verb, options = words[start], words[start + 1 :]
    assert verb in VERBS
    assert verb in EXAMPLE, f"{command}: the example has no table for it"
    here = [str(CLUSTER / "factory.toml") if word == "/etc/fcdd/factory.toml" else word for word in options]
    SETTINGS[verb].parse(here)
    return verb, options


def test_every_file_is_looked_at_by_some_test() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for path in sorted(CLUSTER.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".py", ".md"):
            # By name; or by its folder, which a test goes through: the overlays of Kubernetes, the policies.
            by_folder = "kubernetes" in path.parts or path.parent.name == "iam"
            assert by_folder or path.name in tests or path == demo.CONFIG, path


def test_the_example_configuration_has_what_its_commands_have() -> None:
    for verb in EXAMPLE:
        given = SETTINGS[verb].parse(["--config", str(CLUSTER / "factory.toml")])
        assert given.verb == verb


# --- virtual machines


def test_the_cluster_of_virtual_machines_is_what_ray_up_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws/ray-up.yaml").read_text())
    filled = prepare_config(config)  # with Ray's defaults, as `ray up` does
    validate_config(filled)
    assert filled["available_node_types"]["gpu"]["max_workers"] == 4
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**filled, "idle_timeout": 5})


def test_its_machines_are_spot_closed_and_have_roles_of_their_own() -> None:
    config = yaml.safe_load((CLUSTER / "aws/ray-up.yaml").read_text())
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"}
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu"]["resources"]["GPU"] == 1
    for name, kind in types.items():
        node = kind["node_config"]
        assert ("InstanceMarketOptions" in node) == (name != "head")
        assert kind.get("min_workers", 0) == 0
        assert node["IamInstanceProfile"]["Arn"].endswith("/fcdd-head" if name == "head" else "/fcdd-worker")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["SecurityGroupIds"]
        assert node["ImageId"]
        assert all(each["Ebs"]["Encrypted"] for each in node["BlockDeviceMappings"])
    # A group that Ray makes takes ssh from anywhere, whatever else it is told.
    assert "security_group" not in config["provider"]
    assert re.search(r"@sha256:[0-9a-f]{64}$", config["docker"]["image"])  # a tag can be moved
    assert f"({PROJECT['version']}-gpu)" in (CLUSTER / "aws/ray-up.yaml").read_text()
    commands = "\n".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == 2
    assert "--dashboard-host=127.0.0.1" in commands
    token = "~/.ray/auth_token"
    assert config["file_mounts"]["/home/fcdd/.ray/auth_token"] == token
    for source in config["file_mounts"].values():
        assert source == token or (ROOT / source).exists()


def test_the_head_may_start_only_the_workers_that_are_configured_and_end_only_its_own() -> None:
    statements = json.loads((CLUSTER / "aws/ec2-head.json").read_text())["Statement"]
    config = yaml.safe_load((CLUSTER / "aws/ray-up.yaml").read_text())
    workers = [kind["node_config"] for name, kind in config["available_node_types"].items() if name != "head"]
    own = {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": config["cluster_name"]}}
    starts = {}
    for each in statements:
        for action in each["Action"]:
            assert "*" not in action
            if action == "ec2:RunInstances":
                starts |= {_kind(resource): (resource, each.get("Condition")) for resource in each["Resource"]}
            elif action == "ec2:CreateTags":  # a tag is what makes a machine its own
                assert each["Condition"] in (own, {"StringEquals": {"ec2:CreateAction": "RunInstances"}})
            elif action == "ec2:TerminateInstances":
                assert each["Condition"] == own
            elif action == "iam:PassRole":
                assert each["Resource"] == ["arn:aws:iam::123456789012:role/fcdd-worker"]
            else:
                assert action.startswith("ec2:Describe")
    assert set(starts) == {"instance", "volume", "image", "security-group", "subnet", "network-interface", "key-pair"}
    assert starts["instance"][1] == {
        "StringEquals": {
            "aws:RequestTag/ray-cluster-name": config["cluster_name"],
            "ec2:InstanceType": sorted(each["InstanceType"] for each in workers),
            "ec2:InstanceMarketType": "spot",
            "ec2:MetadataHttpTokens": "required",
        },
        "ArnEquals": {"ec2:InstanceProfile": workers[0]["IamInstanceProfile"]["Arn"]},
    }
    assert starts["volume"][1] == {"Bool": {"ec2:Encrypted": "true"}}
    for worker in workers:
        assert starts["image"][0].endswith(f"::image/{worker['ImageId']}")
        assert [starts["security-group"][0].rpartition("/")[2]] == worker["SecurityGroupIds"]
    for kind, (resource, _) in starts.items():
        assert resource.startswith(f"arn:aws:ec2:{config['provider']['region']}:"), kind


def _kind(resource: str) -> str:
    return resource.rpartition(":")[2].partition("/")[0]


# --- schedules


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((CLUSTER / "systemd" / name).read_text())
    return parser


def test_the_timer_runs_the_nightly_that_exists() -> None:
    service, timer = unit("fcdd-nightly.service"), unit("fcdd-nightly.timer")
    assert runs(service["Service"]["ExecStart"])[0] == "nightly"
    assert service["Service"]["SuccessExitStatus"] == "4 5"
    assert service["Service"]["RestartPreventExitStatus"] == "2 3 6"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["OnCalendar"].endswith("UTC")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
@pytest.mark.parametrize("name", ["fcdd-nightly.service", "fcdd-nightly.timer"])
def test_systemd_finds_nothing_to_say_of_the_units(name: str, tmp_path: Path) -> None:
    for path in (CLUSTER / "systemd").glob("fcdd-*"):
        # The program is where this environment has one: that it exists is checked, too.
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/fcdd/bin/fcdd", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "fcdd-nightly" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_crontab_runs_commands_that_exist_with_the_variables_of_the_file(tmp_path: Path) -> None:
    lines = [line for line in (CLUSTER / "systemd/crontab").read_text().splitlines() if re.match(r"[\d*]", line)]
    commands = [line.split(None, 5)[5] for line in lines]
    assert [runs(command.rsplit(";", 1)[1])[0] for command in commands] == ["nightly", "gc"]
    (tmp_path / "environment").write_text("FCDD_WEBHOOK=https://example.com/a\n")
    for command in commands:
        shown = command.replace("/etc/fcdd/environment", str(tmp_path / "environment"))
        shown = re.sub(r"/opt/fcdd/bin/fcdd.*", "env", shown)
        done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        assert "FCDD_WEBHOOK=https://example.com/a" in done.stdout.splitlines()


# --- monitoring

SOURCE = re.sub(r"\s*\n\s*", " ", Path(live_metrics.__file__).read_text())
LIVE = {f"ray_{name}" for name in re.findall(r'"(fcdd_\w+)", description', SOURCE)}
RECORDED = {"fcdd_results_readable", "fcdd_records_left_out", *(name for name, *_ in gauges._GAUGES)}


def known_metrics() -> set[str]:
    """As Prometheus sees them: counters end in _total."""
    gauges = {"ray_fcdd_queue_images"}
    assert gauges < LIVE
    return {*RECORDED, *gauges, *(f"{name}_total" for name in LIVE - gauges)}


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL expression in a document."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("expr", "query") and isinstance(value, str):
                yield value
            yield from expressions(value)
    elif isinstance(node, list):
        for each in node:
            yield from expressions(each)


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_every_metric_that_is_asked_for_exists(name: str) -> None:
    found = list(expressions(yaml.safe_load((CLUSTER / "monitoring" / name).read_text())))
    asked = {metric for each in found for metric in re.findall(r"\b(?:ray_)?fcdd_\w+", each)}
    assert len(found) >= 7
    assert asked <= known_metrics()
    if name == "dashboard.json":  # what we count is shown
        assert known_metrics() - asked == {
            "fcdd_results_readable",
            "fcdd_records_left_out",
            "fcdd_last_commit_timestamp_seconds",
        }


def test_the_alerts_that_operators_ask_for_are_there_and_say_what_to_do() -> None:
    [group] = yaml.safe_load((CLUSTER / "monitoring/alerts.yaml").read_text())["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert {"FcddNightlyMissing", "FcddDrift", "FcddQuarantineSpike", "FcddSlow"} <= set(rules)
    operations = (ROOT / "docs/operations.md").read_text()
    for name, rule in rules.items():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert name in operations
    tested = (CLUSTER / "monitoring/alerts.test.yaml").read_text()
    assert all(f"alertname: {name}" in tested for name in rules)


@pytest.mark.skipif(not shutil.which("promtool"), reason="there is no promtool here; Debian's package is prometheus")
def test_prometheus_takes_its_configuration_and_the_alerts_fire_when_they_should() -> None:
    for command in ("check rules alerts.yaml", "test rules alerts.test.yaml", "check config prometheus.yaml"):
        done = subprocess.run(
            ["promtool", *command.split()], cwd=CLUSTER / "monitoring", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


PANEL = {
    "type": "object",
    "required": ["id", "title", "type", "gridPos"],
    "properties": {
        "id": {"type": "integer"},
        "title": {"type": "string", "minLength": 1},
        "type": {"enum": ["row", "stat", "timeseries"]},
        "gridPos": {
            "type": "object",
            "required": ["x", "y", "w", "h"],
            "properties": {"x": {"minimum": 0, "maximum": 23}, "w": {"minimum": 1, "maximum": 24}},
        },
        "targets": {"type": "array", "minItems": 1, "items": {"required": ["refId", "expr", "datasource"]}},
    },
    "if": {"properties": {"type": {"const": "row"}}},
    "else": {"required": ["targets", "fieldConfig", "options", "datasource"]},
}
DASHBOARD = {
    "type": "object",
    "required": ["title", "uid", "schemaVersion", "panels", "templating", "time"],
    "properties": {"schemaVersion": {"type": "integer"}, "panels": {"type": "array", "minItems": 8, "items": PANEL}},
}


def test_the_dashboard_is_one_that_grafana_can_show() -> None:
    dashboard = json.loads((CLUSTER / "monitoring/dashboard.json").read_text())
    jsonschema.validate(dashboard, DASHBOARD)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]  # none hides another
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {f"${{{each['name']}}}" for each in dashboard["templating"]["list"]}
    assert {panel["datasource"]["uid"] for panel in panels if "datasource" in panel} <= variables
