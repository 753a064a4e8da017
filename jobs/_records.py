"""Commit records: a run exists for readers if and only if its record does. Loads neither torch nor Ray."""

from pydantic import ValidationError

from fcdd import storage
from fcdd.errors import ConfigError
from schemas import Layout, RunRecord


def read(layout: Layout, run_id: str) -> RunRecord | None:
    """The commit record, None while the run is not committed."""
    try:
        return parse(layout.record(run_id))
    except FileNotFoundError:
        return None


def parse(uri: str) -> RunRecord:
    """The commit record at `uri`. Raises FileNotFoundError, or ConfigError when it is not a record."""
    try:
        return RunRecord.model_validate_json(storage.read(uri))
    except ValidationError as error:
        raise ConfigError(f"{uri} is not a run record of this version; move it out of the runs folder") from error
