"""What can be wrong with a place before a job runs there: one function per question, each with what to do about it.

What is asked here is software, the cluster and stores; `machine` asks about memory, GPUs and disks.
"""

import ipaddress
import json
import os
import re
import socket
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import psutil
import requests
from packaging.requirements import Requirement

from fcdd import bundle, resizing
from fcdd.errors import FCDDError
from fcdd.io import storage
from schemas import Layout

State = Literal["ok", "warning", "problem", "skipped"]
# Beyond the first, the store and this machine may name different nights; S3 refuses requests at 15 minutes.
SKEW_S, REFUSED_SKEW_S = 30.0, 300.0
_SHOWN = ("ray", "torch", "pyarrow", "pillow")
_TIMEOUT_S, _CONNECT_S = 10.0, 1.0
_ANSWER_BYTES = 64 * 1024
_REFUSED = (401, 403)


class Finding(NamedTuple):
    """The answer to one question; `do` is empty where there is nothing to do."""

    subject: str
    state: State
    found: str
    do: str = ""


def packages() -> Iterator[Finding]:
    """Whether what is installed is what we need: the floors keep known holes out, too."""
    wrong = []
    try:
        requirements = metadata.requires("fcdd-at-scale") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "problem", "fcdd-at-scale is not installed", "pip install it, or use its image")
        return
    for line in requirements:
        need = Requirement(line)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} (needs {need.specifier})")
    if wrong:
        yield Finding("packages", "problem", ", ".join(wrong), "pip install --upgrade fcdd-at-scale")
        return
    python = ".".join(map(str, sys.version_info[:3]))
    shown = ", ".join(f"{name} {metadata.version(name)}" for name in _SHOWN)
    yield Finding("packages", "ok", f"Python {python}, {shown}")


def cluster(address: str) -> Iterator[Finding]:
    """Whether the cluster answers, lets only those in who have the token, and is the version that is here."""
    if not re.match(r"https?://[^/]", address):
        yield Finding("cluster", "problem", f"{address!r} is no address", "expected one like http://127.0.0.1:8265")
        return
    url = f"{address.rstrip('/')}/api/version"
    try:
        anyone, _ = _ask(url)
    except requests.RequestException as error:
        why = type(error).__name__
        yield Finding("cluster", "problem", f"{address} does not answer ({why})", "start it, or forward its port")
        return
    yield from _exposure(address)
    if anyone not in (200, *_REFUSED):
        yield Finding(
            "cluster", "problem", f"{address} answers {anyone}: that is no Ray dashboard", "look at what is in between"
        )
        return
    if anyone == 200:
        yield Finding(
            "token",
            "problem",
            f"{address} answers anyone: whoever reaches it runs code with its rights",
            "start every node with RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate`)",
        )
        return
    token = own_token()
    if token is None:
        yield Finding(
            "token", "problem", "the cluster wants one, there is none here", "set RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
        return
    status, answer = _ask(url, {"Authorization": f"Bearer {token}"})
    if status != 200:
        yield Finding("token", "problem", f"the cluster refuses ours ({status})", "get the cluster's own")
        return
    yield Finding("token", "ok", "nobody is let in without it")
    there, here = answer.get("ray_version"), metadata.version("ray")
    if there == here:
        yield Finding("cluster", "ok", f"{address}, Ray {there}")
    else:
        yield Finding("cluster", "problem", f"it runs Ray {there}, here is {here}", f"pip install 'ray=={there}'")


def _ask(url: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """The status of an answer, and its JSON; of whatever may be there no more is read than Ray would say."""
    with requests.get(url, headers=headers, timeout=_TIMEOUT_S, allow_redirects=False, stream=True) as answer:
        try:
            said = json.loads(next(answer.iter_content(_ANSWER_BYTES), b"")) if answer.status_code == 200 else {}
        except ValueError:
            said = {}
        return answer.status_code, said if isinstance(said, dict) else {}


def _exposure(address: str) -> Iterator[Finding]:
    """Who can reach the dashboard, which runs the code of whoever is let in."""
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        addresses = {ipaddress.ip_address(str(found[4][0])) for found in socket.getaddrinfo(host, port)}
    except (OSError, ValueError):
        return  # it did not answer either, which is said
    if public := sorted(str(each) for each in addresses if each.is_global):
        yield Finding(
            "dashboard",
            "problem",
            f"{host} is a public address ({public[0]})",
            "take it off the internet",
        )
    elif not all(each.is_loopback for each in addresses):
        if parts.scheme == "https":
            yield Finding("dashboard", "ok", "in a private network, encrypted")
        else:
            yield Finding(
                "dashboard",
                "warning",
                "the token crosses the network in plain http",
                "forward the port instead: ssh -L, kubectl port-forward",
            )
    elif elsewhere := [each for each in _own_addresses() if _connects(each, port)]:
        yield Finding(
            "dashboard",
            "warning",
            f"it listens on {', '.join(elsewhere)}, too",
            "--dashboard-host 127.0.0.1; in Kubernetes the network policy keeps others out",
        )
    else:
        yield Finding("dashboard", "ok", "reached from this machine only")


def _own_addresses() -> list[str]:
    every = (each for interface in psutil.net_if_addrs().values() for each in interface)
    found = (each.address for each in every if each.family == socket.AF_INET)
    return sorted(each for each in found if not ipaddress.ip_address(each).is_loopback)


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _CONNECT_S):
            return True
    except OSError:
        return False


def own_token() -> str | None:
    """The token that Ray would send from here, in the order in which Ray looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_file().read_text().strip() or None
    except (OSError, ValueError):
        return None


def token_file() -> Path:
    """Where Ray reads a token from a file."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token_is_private() -> Iterator[Finding]:
    """Whether others on this machine can read the token's file."""
    path = token_file()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & 0o077:
        yield Finding("token file", "warning", f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
    else:
        yield Finding("token file", "ok", "readable by its owner only")


def images(location: str) -> Iterator[Finding]:
    """Whether images can be listed and read."""
    location = storage.normalize(location.partition("{")[0].rstrip("/") or location)
    for page in storage.pages(location):
        if page:
            smallest = min(page, key=lambda info: info.size)
            storage.read(smallest.uri)
            yield Finding("images", "ok", f"{location} can be listed and read")
            return
    yield Finding("images", "warning", f"{location} is empty", "nothing, if it is to be filled; else correct it")


def results(location: str) -> Iterator[Finding]:
    """Whether results can be written, once and only once, and removed; and whether our clock is that of the store."""
    probe = storage.join(Layout(storage.check_results(location)).all_staging(), f"_doctor-{uuid.uuid4().hex}")
    before = datetime.now(UTC)
    storage.create(probe, b"first")
    stored = storage.stat(probe).last_modified
    after = datetime.now(UTC)
    try:
        storage.create(probe, b"second")
    except FileExistsError:
        yield Finding("results", "ok", f"{location} can be written, and what is there is not overwritten")
    else:
        yield Finding(
            "results",
            "problem",
            "the store overwrites what should be created once: two runs could both commit",
            "use a store with conditional writes (If-None-Match), as S3 has them",
        )
    try:
        storage.delete(probe)
    except FCDDError:
        yield Finding(
            "results",
            "warning",
            "nothing can be deleted: staged parts of committed runs stay",
            "allow it below _staging/, or run `fcdd gc` with a role that may",
        )
    skew = max((before - stored).total_seconds() - 1, (stored - after).total_seconds() - 1, 0)
    if skew < SKEW_S:
        yield Finding("clock", "ok", "agrees with the store's")
    else:
        state: State = "problem" if skew > REFUSED_SKEW_S else "warning"
        yield Finding("clock", state, f"{skew:.0f} s from the store's", "synchronise it (chrony, systemd-timesyncd)")


def model(location: str) -> Iterator[Finding]:
    """Whether the bundle is whole and of this version."""
    spec, _ = bundle.load(storage.normalize(location))
    resizing.check(spec.resizer)
    yield Finding("bundle", "ok", f"{spec.network}, digest {spec.digest[:12]}")


def run_check(subject: str, check: Callable[[], Iterator[Finding]], *, remote: bool = False) -> list[Finding]:
    """The findings of a check; what stops it is one, too, and so is a `remote` place that is slow to answer."""
    started, found = time.perf_counter(), list[Finding]()
    try:
        found.extend(check())
    except FCDDError as error:
        found.append(Finding(subject, "problem", str(error), "correct the location, or what its credentials may do"))
    except requests.RequestException as error:
        found.append(Finding(subject, "problem", f"no answer ({type(error).__name__})", "look at the network"))
    except OSError as error:
        found.append(Finding(subject, "problem", str(error), "correct it"))
    if (seconds := time.perf_counter() - started) > _TIMEOUT_S and remote:
        found.append(Finding(subject, "warning", f"it took {seconds:.0f} s", "look at the network in between"))
    return found
