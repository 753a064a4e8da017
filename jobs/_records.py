"""Commit records: a run exists for readers if and only if its record does. Loads neither torch nor Ray."""

from pydantic import ValidationError

from fcdd import storage
from fcdd.errors import ConfigError
from schemas import Layout, RunRecord


class NotARecord(ConfigError):
    """An object among the commit records is damaged, foreign, or of another version."""


def read(layout: Layout, run_id: str) -> RunRecord | None:
    """The commit record, None while the run is not committed."""
    try:
        return parse(layout.record(run_id))
    except FileNotFoundError:
        return None


def parse(uri: str) -> RunRecord:
    """The commit record at `uri`. Raises FileNotFoundError, or NotARecord when it is not a record."""
    try:
        record = RunRecord.model_validate_json(storage.read(uri))
    except ValidationError as error:
        raise NotARecord(f"{uri} is not a run record of this version; move it out of the runs folder") from error
    if uri.rsplit("/", 1)[-1] != f"{record.run_id}.json":
        raise NotARecord(f"{uri} is a copy of the record of run {record.run_id}; move it out of the runs folder")
    return record


def check_free(layout: Layout, run_id: str) -> None:
    """Raises ConfigError when there is an object of that name already: a run would be scored for nothing."""
    if storage.exists(uri := layout.record(run_id)):
        raise ConfigError(
            f"the next run of this command is {run_id}, and there is something at {uri} that is not its record; move "
            "it out of the runs folder"
        )


def write(layout: Layout, record: RunRecord) -> None:
    """Create the record, which makes the run exist for readers.

    Raises FileExistsError when another record of that name is there, and ValueError, before anything is written, when
    what would be written could not be read back.
    """
    # One line: the JSON tables of Athena, Trino and Spark have a record on each.
    data = f"{record.model_dump_json()}\n".encode()
    if RunRecord.model_validate_json(data) != record:
        raise ValueError(f"the record of run {record.run_id} would be read back as another one")
    storage.create(layout.record(record.run_id), data)
