"""`fcdd doctor`: is this place fit for a job, and if not, what to do.

It looks from where it runs: on your machine at the cluster and the stores as you reach them; as
`fcdd submit doctor ...` from the cluster's head, with the cluster's own credentials.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar, Literal

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.shell import checks, errors, formatting, machine, process
from jobs.shell.checks import Finding
from jobs.shell.settings import JobSettings

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


class DoctorSettings(JobSettings):
    """Look for what would go wrong, and say what to do: packages, stores, GPU, memory, disk, and a cluster if named.

    Exit codes: 0 nothing, or warnings; 2 something must be changed. Probes that it writes are removed again.
    """

    verb: ClassVar[str] = "doctor"

    address: str | None = Field(None, description="the cluster's dashboard; default: RAY_API_SERVER_ADDRESS")
    images: list[str] = Field(default_factory=list, description="location of images to list and read; again and again")
    results: str | None = Field(None, description="location of the results, to write, create once and delete a probe")
    bundle: str | None = Field(None, description="location of a bundle to load")
    workers: int | None = Field(
        None,
        ge=0,
        description="of `fcdd score` on this machine: do they fit its memory; default: what it starts by itself",
    )
    format: Literal["table", "json"] = Field("table", description="table for people, json for programs")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: examine(DoctorSettings.parse(argv)))


def examine(settings: DoctorSettings) -> int:
    """Ask everything, show the answers."""
    address = settings.address or os.environ.get("RAY_API_SERVER_ADDRESS")
    found = checks.run_check("packages", checks.packages)
    if address:
        found += checks.run_check("cluster", partial(checks.cluster, address), remote=True)
        found += checks.run_check("token file", checks.token_is_private)
    for subject, check, place in _places(settings):
        found += checks.run_check(subject, partial(check, place), remote=_is_remote(place))
    # Jobs of a cluster take the memory of its machines.
    alone = not (address or os.environ.get("RAY_ADDRESS"))
    questions: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("weights", machine.weights),
        ("GPU", machine.gpu),
        *((("memory", partial(machine.memory, settings.workers)),) if alone else ()),
        ("local Ray", machine.local_ray),
        ("disk", machine.disk),
    ]
    if settings.results and not _is_remote(settings.results):
        questions.append(("disk", partial(machine.disk_of_results, settings.results)))
    found += [finding for subject, check in questions for finding in checks.run_check(subject, check)]
    if settings.format == "json":
        print(json.dumps([finding._asdict() for finding in found]))
    else:
        _show(found)
    return errors.USER_MUST_ACT if any(finding.state == "problem" for finding in found) else errors.DONE


def _places(settings: DoctorSettings) -> Iterator[tuple[str, Callable[[str], Iterator[Finding]], str]]:
    """Locations to ask about, and what is asked."""
    yield from (("images", checks.images, place) for place in settings.images)
    if settings.results:
        yield "results", checks.results, settings.results
    if settings.bundle:
        yield "bundle", checks.model, settings.bundle


def _is_remote(place: str) -> bool:
    return "://" in place and not place.startswith("file://")


def _show(found: list[Finding]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in found:
        state = Text(finding.state, _COLOURS[finding.state])
        table.add_row(finding.subject, state, formatting.printable(finding.found), finding.do)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


if __name__ == "__main__":
    process.exit_with(main())
