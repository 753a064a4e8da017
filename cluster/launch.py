"""Makes a job of Kubernetes: a RayJob like the suspended one of the name given, to run now.

python -m cluster.launch NAME      in a pod whose account may get, list and create RayJobs (kubernetes/nightly-cronjob)

For KubeRay operators that have no RayCronJob: a CronJob of Kubernetes runs this every night. While a RayJob that it
made is still at work nothing is made, since the second would only wait for the first's lease.
"""

import argparse
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where Kubernetes tells every pod who it is.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "fcdd.dev/launched-from"
OVER = ("SUCCEEDED", "FAILED", "STOPPED")
_TIMEOUT_S = 30.0

Call = Callable[[str, dict[str, Any] | None], dict[str, Any]]


def launch(name: str, call: Call) -> str:
    """Create the job; what was done, in a sentence. `call` asks for a path, or posts to it, relative to the RayJobs."""
    template = call(f"/{name}", None)
    running = [
        job["metadata"]["name"]
        for job in call(f"?labelSelector={LABEL}%3D{name}", None)["items"]
        if job.get("status", {}).get("jobStatus", "") not in OVER
        and job.get("status", {}).get("jobDeploymentStatus", "") not in ("Complete", "Failed")
    ]
    if running:
        return f"{running[0]} is still at work; nothing was made"
    job = {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "generateName": f"{name}-",
            "labels": {**template["metadata"].get("labels", {}), LABEL: name},
        },
        "spec": {**template["spec"], "suspend": False},
    }
    return f"made {call('', job)['metadata']['name']}"


def kubernetes(server: str, account: Path = ACCOUNT) -> Call:
    """The RayJobs of this pod's namespace, by this pod's account."""
    namespace, token = (account / "namespace").read_text(), (account / "token").read_text()
    root = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    trust = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None

    def call(path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(root + path, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=trust) as answer:
            answered: dict[str, Any] = json.load(answer)
        return answered

    return call


def main() -> int:
    """Make the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the suspended RayJob")
    name = parser.parse_args().name
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        print("error: this is no pod of Kubernetes: KUBERNETES_SERVICE_HOST is not set", file=sys.stderr)
        return 2
    try:
        print(launch(name, kubernetes(f"https://{host}:{port}")))
    except urllib.error.HTTPError as error:
        print(f"error: Kubernetes answered {error.code} {error.reason}: {error.read(500)!r}", file=sys.stderr)
        return 1
    except (urllib.error.URLError, OSError) as error:
        print(f"error: Kubernetes cannot be asked: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
