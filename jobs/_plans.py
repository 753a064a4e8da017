"""The records of a run that is not committed: what it is to do, and, when it is all listed, its plan."""

import logging

from pydantic import ValidationError

from fcdd import storage
from fcdd.errors import ConfigError, FCDDError
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
    """What a run is to do; None when its staging does not say."""
    try:
        return Intent.model_validate_json(storage.read(layout.intent(run_id)))
    except (FileNotFoundError, ValidationError):
        return None


def fix_intent(layout: Layout, intent: Intent) -> Intent:
    """What the run is to do: what an interrupted attempt at it said, else `intent`."""
    try:
        storage.create(layout.intent(intent.run_id), intent.model_dump_json(indent=1).encode())
    except FileExistsError:
        try:
            intent = Intent.model_validate_json(storage.read(layout.intent(intent.run_id)))
        except ValidationError as error:
            raise _of_another_version(layout, intent.run_id) from error
        log.info("going on with run %s, which was started at %s", intent.run_id, intent.started_at)
    return intent


def _of_another_version(layout: Layout, run_id: str) -> ConfigError:
    return ConfigError(
        f"run {run_id} was begun by another version of this program, and cannot be finished by this one; finish it "
        f"with that one, or delete {layout.staging(run_id)} to begin again"
    )
