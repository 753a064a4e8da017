"""What cluster/kubernetes renders to is valid, contained, and runs commands that exist, with options that exist."""

import ipaddress
import itertools
import json
import re
import subprocess
import sysconfig
import threading
import tomllib
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import launch
from jobs.doctor import DoctorSettings
from jobs.metrics import MetricsSettings
from jobs.nightly import NightlySettings
from jobs.score import ScoreSettings
from jobs.shell.settings import JobSettings
from jobs.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/kubernetes"
OVERLAYS = ("raycluster", "train", "score", "nightly", "nightly-cronjob")
VALUES = yaml.safe_load((FOLDER / "base/values.yaml").read_text())["spec"]
TABLES: dict[str, type[JobSettings]] = {
    "train": TrainSettings,
    "score": ScoreSettings,
    "nightly": NightlySettings,
    "metrics": MetricsSettings,
    "doctor": DoctorSettings,
}
KUBERNETES = "v1.33.0-local-strict"


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    kubectl = Path(sysconfig.get_path("scripts"), "kubectl")
    done = subprocess.run([kubectl, "kustomize", FOLDER / overlay], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # deprecations
    return list(yaml.safe_load_all(done.stdout))


@cache
def schemas() -> dict[str, Any]:
    """Kubernetes' own definitions and ours of ray.io, in one document."""
    own = (FOLDER / "ray.io-v1.schema.json").read_text().replace('"kubernetes:', '"#/definitions/')
    theirs = files("kubernetes_validate") / "kubernetes-json-schema" / KUBERNETES / "_definitions.json"
    text = re.sub(r'"(?:_definitions\.json)?#/\$defs/', '"#/definitions/', theirs.read_text())
    return {**json.loads(text)["$defs"], **json.loads(own)["definitions"]}


def definition_of(resource: dict[str, Any]) -> str:
    group, _, version = resource["apiVersion"].rpartition("/")
    if group == "ray.io":
        return str(resource["kind"])
    asked = {"group": group, "version": version, "kind": resource["kind"]}
    [name] = [name for name, each in schemas().items() if asked in each.get("x-kubernetes-group-version-kind", [])]
    return name


def problems(resource: dict[str, Any]) -> list[str]:
    schema = {"$ref": f"#/definitions/{definition_of(resource)}", "definitions": schemas()}
    found = jsonschema.Draft7Validator(schema).iter_errors(resource)
    return [f"{resource['kind']} {'/'.join(map(str, each.absolute_path))}: {each.message[:200]}" for each in found]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod's metadata and spec, at any depth."""
    if isinstance(node, dict):
        if "containers" in node.get("spec", {}):
            yield node
        for each in node.values():
            yield from pods(each)
    elif isinstance(node, list):
        for each in node:
            yield from pods(each)


def job_of(overlay: str) -> dict[str, Any]:
    """The RayJob (or what a RayCronJob makes) of an overlay."""
    [job] = [each for each in rendered(overlay) if each["kind"] in ("RayJob", "RayCronJob")]
    spec: dict[str, Any] = job["spec"].get("jobTemplate", job["spec"])
    return spec


def test_the_schemas_know_what_is_wrong() -> None:
    good = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "x"}, "spec": {"entrypoint": "true"}}
    assert problems(good) == []
    for spec in ({"entryPoint": "true"}, {"backoffLimit": "2"}, {"rayClusterSpec": {}}, {"submissionMode": "Job"}):
        assert problems({**good, "spec": spec}), spec
    pod = {"containers": [{"name": "x", "securityContex": {}}]}
    assert problems({**good, "spec": {"submitterPodTemplate": {"spec": pod}}})


def namespace_of(overlay: str) -> str:
    [namespace] = [each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "Namespace"]
    return str(namespace)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_valid_and_in_one_namespace(overlay: str) -> None:
    assert [problem for each in rendered(overlay) for problem in problems(each)] == []
    for each in rendered(overlay):
        assert each["kind"] != "Values"
        named = each["metadata"]["name"] if each["kind"] == "Namespace" else each["metadata"]["namespace"]
        assert named == namespace_of(overlay)
        assert all(subject["namespace"] == namespace_of(overlay) for subject in each.get("subjects", []))
    assert '""' not in re.sub(r'apiGroups: \[""\]', "", json.dumps(rendered(overlay)).replace('[""]', ""))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_values_reach_every_place_that_they_are_for(overlay: str) -> None:
    text = yaml.safe_dump_all(rendered(overlay))
    for pod in pods(rendered(overlay)):
        assert {each["image"] for each in pod["spec"]["containers"]} == {VALUES["image"]}
    roles = ("trainRole",) if overlay == "train" else ("scoreRole",)
    for name in (*roles, *(("queryRole",) if "nightly" in overlay else ()), "region", "rayVersion"):
        assert VALUES[name] in text, name
    if "nightly" in overlay:
        [schedule] = [each["spec"] for each in rendered(overlay) if "CronJob" in each["kind"]]
        assert (schedule["schedule"], schedule["timeZone"]) == (VALUES["schedule"], VALUES["timeZone"])
    groups = {group["groupName"]: group for cluster in ray_clusters(overlay) for group in cluster["workerGroupSpecs"]}
    for name, group in groups.items():
        [container] = group["template"]["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert (requests["cpu"], requests["memory"]) == (VALUES[name]["cpus"], VALUES[name]["memory"])
        assert group["maxReplicas"] == VALUES[name]["max"]
        assert group["template"]["spec"]["nodeSelector"] == VALUES[f"{name}NodeSelector"]


def ray_clusters(overlay: str) -> list[dict[str, Any]]:
    standing = [each["spec"] for each in rendered(overlay) if each["kind"] == "RayCluster"]
    return standing or [job_of(overlay)["rayClusterSpec"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_contained(overlay: str) -> None:
    found = list(pods(rendered(overlay)))
    assert len(found) >= 3
    for pod in found:
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])
            assert "memory" in container["resources"]["limits"]
            for variable in container.get("env", []):  # a secret is named, never written
                secret = re.search("TOKEN|SECRET|PASSWORD|KEY|WEBHOOK", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"]
        assert not any("hostPath" in volume for volume in spec.get("volumes", []))
        assert not spec.get("hostNetwork")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_scale_from_nothing_on_spot_machines_with_a_token(overlay: str) -> None:
    for spec in ray_clusters(overlay):
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"]
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not spec["headGroupSpec"].get("enableIngress")
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert {group["groupName"] for group in spec["workerGroupSpecs"]} == {"cpu", "gpu"}
        for group in spec["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            assert group["minReplicas"] == 0
            assert {"spot", "cloud.google.com/gke-spot"} <= {each["key"] for each in pod["tolerations"]}
            assert pod["terminationGracePeriodSeconds"] >= 30
            assert pod["automountServiceAccountToken"] is False
            asks = pod["containers"][0]["resources"]["limits"]
            assert ("nvidia.com/gpu" in asks) == (group["groupName"] == "gpu")


def policies_of(overlay: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each["spec"] for each in rendered(overlay) if each["kind"] == "NetworkPolicy"}


def labels_of(overlay: str) -> dict[str, list[dict[str, str]]]:
    """Of Ray's nodes, as the operator completes them, and of all other pods."""
    nodes = []
    for cluster in ray_clusters(overlay):
        for pod in pods(cluster):
            kind = "head" if pod in list(pods(cluster["headGroupSpec"])) else "worker"
            nodes.append({**pod["metadata"]["labels"], "ray.io/is-ray-node": "yes", "ray.io/node-type": kind})
    own = [pod["metadata"]["labels"] for cluster in ray_clusters(overlay) for pod in pods(cluster)]
    others = [pod["metadata"]["labels"] for pod in pods(rendered(overlay)) if pod["metadata"]["labels"] not in own]
    return {"nodes": nodes, "others": others}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_lets_in_only_who_is_named(overlay: str) -> None:
    policies = policies_of(overlay)
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for rule in policies["ray"]["ingress"]:
        assert rule["from"]
        assert all("ipBlock" not in peer and peer != {"namespaceSelector": {}} for peer in rule["from"])
    ports = {
        name: sorted({each["port"] for rule in spec.get("ingress", ()) for each in rule.get("ports", ())})
        for name, spec in policies.items()
    }
    more = {"metrics": [9464]} if "nightly" in overlay else {}
    more |= {"launcher": []} if overlay == "nightly-cronjob" else {}
    assert ports == {"nobody": [], "ray": [8080, 8265], "head": [], "submitter": [], **more}
    namespaces = [VALUES["operatorNamespace"], VALUES["monitoringNamespace"]]
    for peer, name in zip(outsiders(policies["ray"]), namespaces, strict=True):
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": name}
    selectors = [spec["podSelector"].get("matchLabels", {}) for name, spec in policies.items() if name != "nobody"]
    for labels in itertools.chain(*labels_of(overlay).values()):
        assert any(selector.items() <= labels.items() for selector in selectors), labels


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_lets_out_to_those_only_who_are_named(overlay: str) -> None:
    """HTTPS goes to addresses of the values, by those who need them: the API server is no business of workers."""
    reached: dict[str, set[str]] = {"nodes": set(), "heads": set(), "others": set()}
    for spec in policies_of(overlay).values():
        selector = spec["podSelector"].get("matchLabels", {})
        who = "heads" if "ray.io/node-type" in selector else "nodes" if "ray.io/is-ray-node" in selector else "others"
        for rule in spec.get("egress", ()):
            assert rule["to"]  # nothing here means everybody
            assert all(not peer.get("namespaceSelector") or peer.get("podSelector") for peer in rule["to"])
            if {each["port"] for each in rule.get("ports", ())} & {80, 443, 6443}:
                reached[who] |= {peer["ipBlock"]["cidr"] for peer in rule["to"]}
    [store], [kubernetes], [webhook] = ([each["ipBlock"]["cidr"]] for each in _named("store", "kubernetes", "webhook"))
    assert reached["nodes"] == {store}
    assert reached["heads"] == {kubernetes, webhook}
    assert reached["others"] <= {store, kubernetes}
    for cidr in (store, kubernetes, webhook):
        assert ipaddress.ip_network(cidr).prefixlen >= 16


def _named(*names: str) -> list[dict[str, Any]]:
    return [peer for name in names for peer in VALUES[name]]


def test_jobs_of_different_kinds_neither_reach_nor_manage_each_other() -> None:
    """Policies name peers by labels, and roles give rights, within a namespace only: each kind of job has its own."""
    kinds = [overlay for overlay in OVERLAYS if overlay != "nightly-cronjob"]  # instead of nightly
    assert len({namespace_of(overlay) for overlay in kinds}) == len(kinds)
    assert namespace_of("nightly") == namespace_of("nightly-cronjob")
    for overlay in OVERLAYS:
        assert not [each for each in rendered(overlay) if each["kind"].startswith("ClusterRole")]
        bound = {subject["name"] for each in rendered(overlay) for subject in each.get("subjects", ())}
        account = "train" if overlay == "train" else "score"
        assert bound == {account, *(("launcher",) if overlay == "nightly-cronjob" else ())}
        accounts = {each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "ServiceAccount"}
        assert bound <= accounts
        assert accounts - bound <= {"query"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_named_by_digest(overlay: str) -> None:
    """A tag can be moved to another image; so could what a night runs."""
    for image in re.findall(r'"image": "([^"]*)"', json.dumps(rendered(overlay))):
        assert re.fullmatch(r"[\w.-]+(:\d+)?/[\w./-]+@sha256:[0-9a-f]{64}", image), image


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_job_may_take_what_its_machines_are_and_not_much_more(overlay: str) -> None:
    [quota] = [each["spec"]["hard"] for each in rendered(overlay) if each["kind"] == "ResourceQuota"]
    [limits] = [each["spec"]["limits"] for each in rendered(overlay) if each["kind"] == "LimitRange"]
    assert {"memory", "ephemeral-storage"} <= set(limits[0]["default"])
    [cluster] = ray_clusters(overlay)
    asked = {"cpu": 0.0, "memory": 0.0, "nvidia.com/gpu": 0.0}
    for count, group in ((1, cluster["headGroupSpec"]), *((g["maxReplicas"], g) for g in cluster["workerGroupSpecs"])):
        for container in group["template"]["spec"]["containers"]:
            for name in asked:
                asked[name] += count * amount(container["resources"]["requests"].get(name, "0"))
    for name, sum_of in asked.items():
        assert sum_of <= amount(quota[f"requests.{name}"]) <= 1.5 * sum_of, name
    assert quota["limits.memory"] == quota["requests.memory"]
    pods_at_most = 1 + sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    assert pods_at_most + 2 <= int(quota["pods"]) <= 2 * pods_at_most  # the submitter, the metrics


def amount(text: str) -> float:
    """Of Kubernetes' quantities those that occur here; memory in GiB."""
    for suffix, factor in (("Gi", 1.0), ("Mi", 1 / 1024), ("m", 1 / 1000)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_do_not_have_the_secrets_of_the_driver(overlay: str) -> None:
    for cluster in ray_clusters(overlay):
        assert "secretKeyRef" in json.dumps(cluster["headGroupSpec"])
        assert "secretKeyRef" not in json.dumps(cluster["workerGroupSpecs"])


def outsiders(policy: dict[str, Any]) -> list[dict[str, Any]]:
    return [peer for rule in policy["ingress"] for peer in rule["from"] if "namespaceSelector" in peer]


def test_every_manifest_is_part_of_an_overlay() -> None:
    for path in FOLDER.rglob("*.yaml"):
        if path.name != "kustomization.yaml":
            assert path.name in yaml.safe_load((path.parent / "kustomization.yaml").read_text())["resources"], path
    assert {path.parent.name for path in FOLDER.rglob("kustomization.yaml")} == {*OVERLAYS, "base", "job", "metrics"}


def test_jobs_run_commands_that_exist_as_accounts_of_their_own(tmp_path: Path) -> None:
    for overlay in ("train", "score", "nightly", "nightly-cronjob"):
        verb = overlay.removesuffix("-cronjob")
        job = job_of(overlay)
        assert job["entrypoint"] == f"python -m jobs.{verb} --config /etc/fcdd/factory.toml"
        assert job["shutdownAfterJobFinishes"] is True
        account = "train" if verb == "train" else "score"
        cluster = job["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["spec"]["serviceAccountName"] == account
    [settings] = [each for each in rendered("nightly") if each["kind"] == "ConfigMap"]
    config = tmp_path / "factory.toml"
    config.write_text(settings["data"]["factory"])
    assert set(tomllib.loads(config.read_text())) == set(TABLES)
    for verb, options in TABLES.items():
        assert options.parse(["--config", str(config)]).verb == verb
    assert TrainSettings.parse(["--config", str(config)]).num_workers <= VALUES["gpu"]["max"]
    [template] = [each for each in rendered("nightly-cronjob") if each["kind"] == "RayJob"]
    assert template["spec"]["suspend"] is True
    [cron] = [each for each in rendered("nightly-cronjob") if each["kind"] == "CronJob"]
    [launcher] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert launcher["command"] == ["python", "-m", "cluster.launch", template["metadata"]["name"]]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"({project}-gpu)" in (FOLDER / "base/values.yaml").read_text()
    lock = (ROOT / "cluster/image/requirements-gpu.txt").read_text()
    locked = re.search(r"^ray(?:\[[a-z,]+\])?==(\S+)", lock, re.MULTILINE)
    assert locked
    assert VALUES["rayVersion"] == locked[1]


class _Kubernetes(BaseHTTPRequestHandler):
    """As much of an API server as the launcher asks."""

    jobs: list[dict[str, Any]]
    numbers = itertools.count(1)

    def do_GET(self) -> None:
        assert self.headers["Authorization"] == "Bearer t0ken"
        path = self.path.partition("?")[0]
        if path.endswith("/rayjobs"):
            return self._say({"items": [job for job in self.jobs if "labels" in job["metadata"]]})
        [job] = [job for job in self.jobs if job["metadata"]["name"] == path.rpartition("/")[2]]
        return self._say(job)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = next(self.numbers)
        job["metadata"]["name"] = f"{job['metadata'].pop('generateName')}{number}"
        job["metadata"]["creationTimestamp"] = f"2026-11-{number:02d}T04:00:00Z"
        self.jobs.append(job)
        self._say(job)

    def do_DELETE(self) -> None:
        self.jobs[:] = [job for job in self.jobs if job["metadata"]["name"] != self.path.rpartition("/")[2]]
        self._say({})

    def _say(self, answer: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def test_the_launcher_copies_the_suspended_job_unless_one_is_at_work(tmp_path: Path) -> None:
    for name, content in (("namespace", "fcdd"), ("token", "t0ken")):
        (tmp_path / name).write_text(content)
    [template] = [each for each in rendered("nightly-cronjob") if each["kind"] == "RayJob"]
    _Kubernetes.jobs = [json.loads(json.dumps(template))]
    server = HTTPServer(("127.0.0.1", 0), _Kubernetes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        call = launch.kubernetes(f"http://127.0.0.1:{server.server_port}", tmp_path)
        assert launch.launch("nightly", call) == "made nightly-1"
        made = _Kubernetes.jobs[-1]
        assert problems(made) == []
        assert made["spec"] == {**template["spec"], "suspend": False}
        for state in ({}, {"jobStatus": "RUNNING"}, {"jobStatus": "FAILED", "jobDeploymentStatus": "Retrying"}):
            made["status"] = state
            assert launch.launch("nightly", call) == "nightly-1 is still at work; nothing was made"
        for number, ended in enumerate(("Complete", "Failed", "ValidationFailed", "Complete"), 2):
            _Kubernetes.jobs[-1]["status"] = {"jobDeploymentStatus": ended}
            assert launch.launch("nightly", call) == f"made nightly-{number}"
        names = [job["metadata"]["name"] for job in _Kubernetes.jobs]
        assert names == ["nightly", "nightly-2", "nightly-3", "nightly-4", "nightly-5"]
    finally:
        server.shutdown()
        server.server_close()
