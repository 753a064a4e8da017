"""The promises to readers: a change of a schema needs a new version here."""

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlglot
from sqlglot import expressions

import schemas
from fcdd.errors import REASONS
from schemas import DELETED, DRIFT, LABELS, MANIFEST, QUARANTINE, RUNS, SCHEMA_VERSION, SCORES
from schemas.layout import is_name
from schemas.runs import RunRecord

TABLES = {
    "manifest": MANIFEST,
    "scores": SCORES,
    "quarantine": QUARANTINE,
    "deleted": DELETED,
    "drift": DRIFT,
    "labels": LABELS,
    "runs": RUNS,
}
# version -> table -> sha256 of names, types and nullability. Add a version, never edit one that was released.
FINGERPRINTS = {
    1: {"manifest": "98a0a6aea4ad8181", "scores": "1bc8f4ba5406cec1", "quarantine": "947224b0b3b19505"},
    2: {"manifest": "98a0a6aea4ad8181", "scores": "72d2271ec623b88f", "quarantine": "947224b0b3b19505"},
    3: {
        "manifest": "98a0a6aea4ad8181",
        "scores": "45dc50a3132da19d",
        "quarantine": "947224b0b3b19505",
        "deleted": "61192730d5c14570",
    },
    4: {
        "manifest": "98a0a6aea4ad8181",
        "scores": "2e54ee8685a364b8",
        "quarantine": "cb670ac193611ef8",
        "deleted": "61192730d5c14570",
        "drift": "1b8c49a3fdbdde3d",
        "labels": "32d49259a2c1a923",
        "runs": "53d09e377ef056ff",
    },
}


# What other engines call the types of our fields.
HIVE = {"int64": "BIGINT", "int32": "INT", "string": "TEXT", "bool": "BOOLEAN", "float": "FLOAT", "double": "DOUBLE"}
TRINO = HIVE | {"string": "VARCHAR", "float": "REAL"}
DIALECTS = {"athena": HIVE, "trino": TRINO, "spark": HIVE}
DDL = Path(schemas.__file__).parent / "ddl"


def fingerprint(schema: pa.Schema) -> str:
    text = "\n".join(f"{field.name} {field.type} {field.nullable}" for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("table", TABLES)
def test_schema_is_the_one_of_its_version(table: str) -> None:
    assert fingerprint(TABLES[table]) == FINGERPRINTS[SCHEMA_VERSION][table]
    assert TABLES[table].metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()


@pytest.mark.parametrize("table", TABLES)
def test_every_field_says_what_it_means_also_in_the_file(table: str) -> None:
    sink = io.BytesIO()
    pq.write_table(TABLES[table].empty_table(), sink)
    stored = pq.read_schema(io.BytesIO(sink.getvalue()))
    assert stored.metadata[b"table"] == table.encode()
    for field in stored:
        assert field.metadata[b"meaning"], field.name


def test_conform_refuses_what_pyarrow_lets_pass() -> None:
    row = {field.name: [_example(field.type)] for field in QUARANTINE}
    assert schemas.conform(pa.table(row), QUARANTINE).schema.equals(QUARANTINE, check_metadata=True)
    with pytest.raises(ValueError, match="no null in reason"):
        schemas.conform(pa.table(row | {"reason": [None]}), QUARANTINE)
    with pytest.raises(ValueError, match="expected columns"):
        schemas.conform(pa.table(row).drop_columns(["reason"]), QUARANTINE)
    scores = {field.name: [_example(field.type)] for field in SCORES}
    with pytest.raises(ValueError, match="finite values in anomaly_score"):
        schemas.conform(pa.table(scores | {"anomaly_score": [float("nan")]}), SCORES)


def test_a_column_that_may_be_null_may_be_missing_as_in_older_files() -> None:
    row = {field.name: [_example(field.type)] for field in LABELS}
    assert schemas.conform(pa.table(row | {"note": [None]}), LABELS)["note"].to_pylist() == [None]
    older = schemas.conform(pa.table(row).drop_columns(["defect_class", "note"]), LABELS)
    assert older.schema.equals(LABELS, check_metadata=True)
    assert older["defect_class"].to_pylist() == [None]


def _example(kind: pa.DataType) -> object:
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return "x" if pa.types.is_string(kind) else b"x"
    if pa.types.is_fixed_size_binary(kind):
        return bytes(kind.byte_width)
    if pa.types.is_list(kind):
        return []
    return (
        pa.scalar(1).cast(kind).as_py() if not pa.types.is_date(kind) else pa.scalar(1, pa.int32()).cast(kind).as_py()
    )


def test_reasons_are_a_closed_list_of_plain_words() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert all(reason == reason.lower() and reason.replace("_", "").isalpha() for reason in REASONS)


@pytest.mark.parametrize("name", ["line-4", "solar_cells", "a", "9"])
def test_good_collection_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "Line", "a/b", "../x", "a=b", "_x", "-x", "a b", "x" * 64, "a\n"])
def test_names_that_could_be_paths_or_partitions_are_refused(name: str) -> None:
    assert not is_name(name)


def _type(kind: pa.DataType, dialect: str) -> str:
    """As the dialect's parser spells it."""
    if pa.types.is_list(kind):
        return f"ARRAY<{_type(kind.value_type, dialect)}>"
    if pa.types.is_struct(kind):
        return f"STRUCT<{', '.join(f'{field.name} {_type(field.type, dialect)}' for field in kind)}>"
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return "VARBINARY" if dialect == "trino" else "BINARY"
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP(6)" if dialect == "trino" else "TIMESTAMP"
    return "DATE" if pa.types.is_date(kind) else DIALECTS[dialect][str(kind)]


def _columns(table: expressions.Create, dialect: str) -> dict[str, str]:
    """Column -> type, one spelling for all dialects."""
    found = {}
    for column in table.find_all(expressions.ColumnDef):
        if column.find_ancestor(expressions.DataType) is None:  # not a field of a struct
            text = column.args["kind"].sql("duckdb")
            found[column.name] = text
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("table", ["scores", "quarantine", "deleted", "drift"])
def test_tables_of_other_engines_have_the_columns_and_types_of_the_schema(dialect: str, table: str) -> None:
    statements = [each for each in sqlglot.parse((DDL / f"{dialect}.sql").read_text(), dialect=dialect) if each]
    named = {each.find(expressions.Table).name: each for each in statements}  # type: ignore[union-attr]
    created = named[f"{table}_parts" if dialect == "trino" else f"fcdd_{table}_parts"]
    assert isinstance(created, expressions.Create)
    wanted = sqlglot.parse_one(
        f"CREATE TABLE x ({', '.join(f'{field.name} {_type(field.type, dialect)}' for field in TABLES[table])})",
        dialect="hive" if dialect == "athena" else dialect,
    )
    found = _columns(created, dialect)
    assert found.pop("run") == "TEXT"
    assert found == _columns(wanted, dialect)  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_engines_see_what_the_records_name(dialect: str) -> None:
    text = (DDL / f"{dialect}.sql").read_text()
    statements = [each for each in sqlglot.parse(text, dialect=dialect) if each]
    assert all(isinstance(each, expressions.Create) for each in statements)
    prefix = "" if dialect == "trino" else "fcdd_"
    names = [each.find(expressions.Table).name for each in statements]  # type: ignore[union-attr]
    views = ["current_runs", "scores", "quarantine", "deleted", "drift"]
    assert names == [f"{prefix}{name}" for name in ("runs", *(f"{t}_parts" for t in views[1:]), *views)]
    runs = {field for field in RunRecord.model_fields if f"\n    {field} " in text.split("_parts (")[0]}
    assert {"run_id", "collection", "day", "committed_at", "supersedes", "scores", "drift"} <= runs
