"""Which SQL a user may run: an allow-list over DuckDB's own syntax tree.

DuckDB calls a statement a SELECT although its CTEs write (COPY, INSERT, UPDATE, DELETE), and its functions read files,
settings and other SQL. So what is not known to only read the views is refused, whatever a later version adds.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

from fcdd.errors import ConfigError
from jobs.catalog import views

# Kinds of nodes by their "type"; those of expressions, which have a "class", by that.
_NODES = {
    *("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"),
    *("BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF"),
    *("LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER", "DISTINCT_MODIFIER"),
    *("ORDER_DEFAULT", "ASCENDING", "DESCENDING"),
}
_EXPRESSIONS = {
    *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "DEFAULT"),
    *("FUNCTION", "LAMBDA", "LAMBDA_REF", "OPERATOR", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY"),
    *("TYPE", "WINDOW"),
}
# Functions that make rows and read nothing but their arguments and the catalogue of the views.
_TABLE_FUNCTIONS = {
    *("range", "generate_series", "unnest", "json_each", "json_tree", "pg_timezone_names"),
    *("duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views"),
}
_CATALOGUES = {"information_schema"}
# What SHOW takes beside a table: nothing, for a SELECT of its own.
_SHOWN = {"tables", "__show_tables_expanded"}
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]*")
# Settings name files and folders of this machine; the others change something, or wait.
_NO_FUNCTIONS = {
    *("current_setting", "getvariable", "write_log", "sleep_ms", "pg_sleep", "setval", "nextval", "currval"),
}


def select_only(query: str, tables: Sequence[str]) -> str:
    """The query, if it is one SELECT that only reads `tables`. Raises ConfigError for anything else."""
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise ConfigError(f"this is not SQL: {views.sentence(error)}") from error
    kinds = [statement.type.name for statement in statements]
    if kinds != ["SELECT"]:
        raise ConfigError(f"expected one SELECT, got {' and '.join(kinds) or 'nothing'}: results are only read")
    text = str(statements[0].query).rstrip().rstrip(";")
    nodes = list(_walk(_tree(text)))
    ctes = {str(node["key"]).lower() for node in nodes if isinstance(node.get("value"), dict) and "key" in node}
    # A name that means something outside of its CTE, too, would lead there: DuckDB's scopes are not repeated here.
    if taken := sorted(name for name in ctes if not _IDENTIFIER.fullmatch(name) or name in _internal()):
        raise ConfigError(f"a part of the question cannot be called {taken[0]!r}; choose another name after WITH")
    for node in nodes:
        if refused := _refused(node, {*tables, *ctes}):
            raise ConfigError(f"{refused}: a question reads the tables {', '.join(tables)}, and nothing else")
    return text


def _tree(query: str) -> Any:
    """The syntax tree as JSON. Raises ConfigError for what has none: it could not be checked."""
    row = _parser().cursor().execute("SELECT json_serialize_sql($query)", {"query": query}).fetchone()
    assert row is not None
    try:
        tree = json.loads(row[0])
    except RecursionError as error:
        raise ConfigError("this SELECT is nested too deeply to be checked") from error
    if tree["error"]:
        raise ConfigError(f"this kind of SELECT cannot be checked: {tree['error_message']}")
    return tree


@functools.cache
def _internal() -> frozenset[str]:
    """Names of DuckDB's own views."""
    return frozenset(name for (name,) in _parser().cursor().execute("SELECT view_name FROM duckdb_views()").fetchall())


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A database without anything in it."""
    return duckdb.connect()


def _walk(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _refused(node: dict[str, Any], tables: set[str]) -> str | None:
    """Why a node is not allowed, None if it is."""
    kind = node.get("type")
    if "class" in node:
        if node["class"] not in _EXPRESSIONS:
            return f"expressions of the kind {node['class']} are not allowed"
        function = str(node.get("function_name", "")).lower()
        return f"the function {function} is not allowed" if function in _NO_FUNCTIONS else None
    if not isinstance(kind, str):
        return None
    if kind not in _NODES and not kind.endswith("_TYPE_INFO"):
        return f"{kind.removesuffix('_NODE').removesuffix('_QUERY')} is not allowed within a SELECT"
    if kind == "TABLE_FUNCTION":
        function = str(node["function"].get("function_name", "")).lower()
        return None if function in _TABLE_FUNCTIONS else f"the table function {function} is not allowed"
    if kind == "SHOW_REF":
        name = str(node["table_name"]).strip('"').lower()
        return None if name in {"", *_SHOWN, *tables} else f"there is no table {name!r}"
    if kind == "BASE_TABLE":
        name, schema = str(node["table_name"]).lower(), str(node["schema_name"]).lower()
        allowed = schema in _CATALOGUES or (schema in ("", "main") and name in tables)
        return None if allowed else f"there is no table {'.'.join(node['qualified_name']['path'])!r}"
    return None
