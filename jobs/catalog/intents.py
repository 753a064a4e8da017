"""The records of a run that is not committed: what it is to do, and, when it is all listed, its plan."""

import logging

from pydantic import ValidationError

from fcdd.errors import ConfigError, FCDDError
from fcdd.io import storage
from fcdd.runtime import Runtime
from schemas import Layout
from schemas.runs import Intent, Plan

log = logging.getLogger(__name__)


def read_plan(layout: Layout, run_id: str) -> Plan | None:
    """The complete manifest's record, None while there is none."""
    try:
        return Plan.model_validate_json(storage.read(layout.plan(run_id)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _of_another_version(layout, run_id) from error


def create_plan(layout: Layout, plan: Plan) -> None:
    """Complete the manifest. Raises FCDDError when another process did."""
    try:
        storage.create(layout.plan(plan.intent.run_id), plan.model_dump_json(indent=1).encode())
    except FileExistsError as error:
        raise FCDDError(f"another process planned run {plan.intent.run_id}; run the same command again") from error


def read_intent(layout: Layout, run_id: str) -> Intent | None:
    """What a run is to do; None when there is no intent. Raises ConfigError for one of another version."""
    try:
        intent = Intent.model_validate_json(storage.read(layout.intent(run_id)))
        Runtime.model_validate(intent.runtime)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise _of_another_version(layout, run_id) from error
    return intent


def create_or_resume(layout: Layout, intent: Intent) -> Intent:
    """The intent of an interrupted attempt at the run, else `intent`, stored. Call it under the night's lease.

    An attempt that began when another run counted for the night (or none) is removed, and the run begins again: it
    would take the place of a run that it does not know.
    """
    begun = read_intent(layout, intent.run_id)
    if begun and (begun.supersedes, begun.kept_images) != (intent.supersedes, intent.kept_images):
        log.warning(
            "run %s was begun when %s counted for the night; now %s does, so it begins again",
            *(intent.run_id, begun.supersedes or "no run", intent.supersedes or "no run"),
        )
        remove_staging(layout, intent.run_id)
        begun = None
    if begun is None:
        storage.create(layout.intent(intent.run_id), intent.model_dump_json(indent=1).encode())
        return intent
    log.info("going on with run %s, which was started at %s", begun.run_id, begun.started_at)
    _warn_of_other_options(begun, intent)
    return begun


def _warn_of_other_options(begun: Intent, asked: Intent) -> None:
    """Part of the run is decided and computed by the options that it was begun with, so the rest must be, too."""
    before = {"alpha": begun.alpha, "fdr": begun.fdr, **begun.runtime}
    now = {"alpha": asked.alpha, "fdr": asked.fdr, **asked.runtime}
    if other := [name for name in before if before[name] != now.get(name)]:
        log.warning(
            "run %s goes on with the options it was begun with: %s; for the others let it finish, then add --rescore",
            begun.run_id,
            ", ".join(f"--{name} {before[name]} (not {now.get(name)})" for name in other),
        )


def remove_staging(layout: Layout, run_id: str) -> None:
    """Remove everything that is staged of a run, in an order in which what is left never looks like work done."""
    staged = [info.uri for page in storage.pages(layout.staging(run_id)) for info in page]
    for uris in in_order_of_removal(staged):
        storage.delete_all(uris)


def in_order_of_removal(uris: list[str]) -> list[list[str]]:
    """Staged objects in groups to delete one after the other: rows first, then the manifest, the intent last."""
    last = ("deleted.parquet", "intent.json")
    name = {uri: uri.rsplit("/", 1)[1] for uri in uris}
    groups = [[uri for uri in uris if name[uri] not in (*last, "plan.json") and "/manifest/" not in uri]]
    groups.append([uri for uri in uris if name[uri] == "plan.json"])
    groups.append(sorted((uri for uri in uris if "/manifest/" in uri), reverse=True))
    groups.append([uri for uri in uris if name[uri] in last])
    return [group for group in groups if group]


def _of_another_version(layout: Layout, run_id: str) -> ConfigError:
    return ConfigError(
        f"run {run_id} was begun by another version of this program, and cannot be finished by this one; finish it "
        f"with that one, or delete {layout.staging(run_id)} to begin again"
    )


def staged(layout: Layout) -> list[str]:
    """Ids of all runs that have staging."""
    prefix = f"{layout.all_staging()}/"
    names = (info.uri.removeprefix(prefix).split("/", 1)[0] for p in storage.pages(layout.all_staging()) for info in p)
    return sorted(set(names))
