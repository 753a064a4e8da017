"""Makes a job of Kubernetes: a RayJob like the suspended one of the name given, to run now.

python -m cluster.launch NAME      in a pod that may get, list, create and delete RayJobs (kubernetes/nightly-cronjob)

Where KubeRay's RayCronJob is not enabled, a CronJob of Kubernetes runs this every night. While a RayJob that it made is
still at work nothing is made, since the second would only wait for the first's lease. Of those that are over the last
ones are kept, to be looked at.
"""

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where Kubernetes mounts every pod's identity.
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "fcdd.dev/launched-from"
# What KubeRay calls a RayJob that it has nothing more to do for.
OVER = ("Complete", "Failed", "ValidationFailed")
KEPT = 3
_TIMEOUT_S = 30.0

Call = Callable[[str, str, dict[str, Any] | None], dict[str, Any]]


def launch(name: str, call: Call) -> str:
    """Create the job; what was done, in a sentence. `call` sends a method to a path relative to the RayJobs."""
    template = call("GET", f"/{name}", None)
    made = call("GET", f"?labelSelector={LABEL}%3D{name}", None)["items"]
    over = [job for job in made if job.get("status", {}).get("jobDeploymentStatus") in OVER]
    if running := [job["metadata"]["name"] for job in made if job not in over]:
        return f"{running[0]} is still at work; nothing was made"
    for old in sorted(over, key=lambda job: str(job["metadata"]["creationTimestamp"]))[:-KEPT]:
        call("DELETE", f"/{old['metadata']['name']}", None)
    job = {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "generateName": f"{name}-",
            "labels": {**template["metadata"].get("labels", {}), LABEL: name},
        },
        "spec": {**template["spec"], "suspend": False},
    }
    return f"made {call('POST', '', job)['metadata']['name']}"


def kubernetes(server: str, account: Path = ACCOUNT) -> Call:
    """The RayJobs of this pod's namespace, by this pod's account."""
    namespace, token = (account / "namespace").read_text(), (account / "token").read_text()
    root = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    trust = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None

    def call(method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(root + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=trust) as answer:
            answered: dict[str, Any] = json.load(answer)
        return answered

    return call


def main() -> int:
    """Make the job; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the suspended RayJob")
    name = parser.parse_args().name
    if not ACCOUNT.exists():
        print(f"error: this is no pod of Kubernetes: there is no {ACCOUNT}", file=sys.stderr)
        return 2
    try:
        print(launch(name, kubernetes("https://kubernetes.default.svc")))
    except urllib.error.HTTPError as error:
        print(f"error: Kubernetes answered {error.code} {error.reason}: {error.read(500)!r}", file=sys.stderr)
        return 1
    except (urllib.error.URLError, OSError) as error:
        print(f"error: Kubernetes cannot be asked: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
