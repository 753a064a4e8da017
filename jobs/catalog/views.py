"""Published parts as DuckDB views; what is not named by a commit record is never read."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from fcdd.errors import ConfigError
from fcdd.io import storage
from fcdd.io.storage import AbstractFileSystem
from jobs.catalog import part_files, read_only
from jobs.catalog.read_only import ReadOnly
from schemas import SCORES, Part, RunRecord

# Of a question: it must not take the machine that others work on.
MEMORY_GB, _SPILL = 2.0, "20GB"
# Of the folders of a part, read from its path: filters on them leave out files without opening them.
_FOLDERS = "hive_partitioning = true, hive_types = {'collection': VARCHAR, 'date': DATE, 'run': VARCHAR}"


def connect(results: str, filesystem: AbstractFileSystem | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection that reads the results location with the environment's credentials, or by `filesystem`.

    DuckDB's own httpfs is an extension it downloads; obstore needs no network but the store's.
    """
    connection = duckdb.connect()
    connection.register_filesystem(ReadOnly(results, filesystem))
    return connection


def part_paths(results: str, parts: Iterable[Part]) -> list[str]:
    """Published parts as DuckDB reads them, each once. Raises FCDDError for one that is not what was published."""
    once = list({part.path: part for part in parts}.values())
    part_files.check(results, once)
    return [read_only.path(storage.join(storage.normalize(results), part.path)) for part in once]


def scores(
    connection: duckdb.DuckDBPyConnection, results: str, records: Iterable[RunRecord], name: str = "scores"
) -> None:
    """The published scores of runs as a view, which may be empty."""
    parts = [part for record in records for part in record.scores]
    with readable(f"a file of {name} is missing or damaged"):
        view(connection, name, part_paths(results, parts), SCORES)


def view(connection: duckdb.DuckDBPyConnection, name: str, paths: Sequence[str], schema: pa.Schema) -> None:
    """Files of one table as a view `name`; with none an empty table. Raises ConfigError when one cannot be read."""
    if not paths:
        table(connection, name, schema.empty_table())
        return
    columns = ", ".join(f'"{column}"' for column in schema.names)
    files = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    read = f"[{files}], {_folders(paths[0])}"
    # Files from before there were these columns, which are texts, have nulls in them.
    optional = ", ".join(f'NULL::VARCHAR AS "{field.name}"' for field in schema if field.nullable)
    rows = f"(SELECT {optional} WHERE false UNION ALL BY NAME FROM read_parquet({read}, union_by_name = true))"
    rows = rows if optional else f"read_parquet({read})"
    with readable(f"a file of {name} is missing or damaged"):
        connection.execute(f"CREATE VIEW {name} AS SELECT {columns} FROM {rows}")


def _folders(path: str) -> str:
    """Whether values are read from the folders of a part: not of drift or label files that lie elsewhere, nor where the
    location itself has folders that look like values.
    """
    named = [folder.partition("=")[0] for folder in path.split("/")[:-1] if "=" in folder]
    return _FOLDERS if named == ["collection", "date", "run"] else "hive_partitioning = false"


def table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Rows of ours as a table that all cursors see."""
    connection.register(f"{name}_rows", rows)
    connection.execute(f"CREATE TABLE {name} AS FROM {name}_rows")
    connection.unregister(f"{name}_rows")


def lock(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], spill: str, memory_gb: float) -> None:
    """From now on only these files can be read, no variable of the process, and no setting can be changed.

    What does not fit into memory is sorted in the folder `spill`. All of it holds for every cursor of the connection.
    DuckDB counts some of its memory only, so its own limit is three quarters.
    """
    connection.execute("SET allowed_paths = $paths", {"paths": list(paths)})
    connection.execute("SET temp_directory = $spill", {"spill": spill})
    connection.execute(f"SET max_temp_directory_size = '{_SPILL}'")
    connection.execute(f"SET memory_limit = '{round(750 * memory_gb)}MB'")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("SET GLOBAL python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def latest_night(image: str) -> str:
    """The end of a SELECT over scores that keeps the latest night of each image; `image` is its column of names."""
    return f"QUALIFY row_number() OVER (PARTITION BY {image} ORDER BY date DESC) = 1"


@contextmanager
def readable(otherwise: str = "a published part is missing or damaged") -> Iterator[None]:
    """DuckDB's errors as one sentence; an interruption stays one."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # what DuckDB makes of Ctrl-C
            raise
        raise KeyboardInterrupt from error
    except (duckdb.OutOfMemoryException, MemoryError) as error:
        raise ConfigError(
            "the question needs more memory than it may have; ask for less at once, or give it more (--memory-gb)"
        ) from error
    except duckdb.Error as error:
        raise ConfigError(f"{otherwise}: {sentence(error)}") from error


def sentence(error: duckdb.Error) -> str:
    """What went wrong, on one line, without the drawing of where."""
    return " ".join(str(error).split("\nLINE ")[0].split())[:500]
