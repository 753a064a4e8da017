"""How DuckDB answered a question, for a person: files, row groups and bytes read."""

from collections.abc import Iterator
from typing import Any

from jobs.shell import formatting


def explained(profile: dict[str, Any]) -> Iterator[str]:
    """The plan that DuckDB went through, each read with its files, row groups and bytes, and what it read in all."""
    yield from (line for root in profile["operator"] for line in _operator(root, 0))
    total, query = profile["io"], profile["query"]
    yield (
        f"read {total['total_bytes_read'] / 1e6:.2f} MB in {total['total_read_operations']} requests, "
        f"{query['total_row_groups_scanned']} of {query['total_row_groups_to_scan']} row groups; "
        f"{query['total_time']:.3f} s"
    )


def _operator(node: dict[str, Any], depth: int) -> Iterator[str]:
    info = node["extra_info"]
    if node["name"] not in ("RESULT_COLLECTOR", "EXPLAIN_ANALYZE"):
        read = ""
        if "Total Files Read" in info:
            files = info.get("Scanning Files", f"{info['Total Files Read']}/{info['Total Files Read']}").split("/")
            read = f"files {info['Total Files Read']} of {files[1]}, row groups {node['row_groups_scanned']} of "
            read += f"{node['total_row_groups_to_scan']}, "
        yield f"{'  ' * depth}{node['name']}  {read}{node['intermediate_rows']} rows, {1e3 * node['timing']:.1f} ms"
        for name in ("Projections", "File Filters", "Filters", "Order By", "Groups", "Conditions"):
            if name in info:
                value = info[name] if isinstance(info[name], str) else ", ".join(info[name])
                yield f"{'  ' * depth}    {name.lower()}: {formatting.printable(value)}"
        depth += 1
    for child in node.get("children", ()):
        yield from _operator(child, depth)
