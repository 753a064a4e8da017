"""Which camera or folder an image belongs to, by its name alone: the groups that calibration and drift tell apart."""

import re
from collections.abc import Sequence

from fcdd.errors import ConfigError


def compile_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """A pattern whose first group (or whole match) names the group. Raises ConfigError for one that is none."""
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the group pattern {pattern!r} is not a regular expression: {error}") from error
    if compiled.match(""):
        raise ConfigError(f"the group pattern {pattern!r} matches the empty name, and would put all images together")
    return compiled


def group_of(uri: str, roots: Sequence[str], pattern: re.Pattern[str] | None) -> str:
    """What `pattern` finds first in the name; without a pattern the first folder below the listed location.

    Empty for an image that lies directly there, or in which the pattern is not found.
    """
    if pattern:
        found = pattern.search(uri)
        return (found[1] if pattern.groups and found[1] else found[0]) if found else ""
    root = max((root for root in roots if uri.startswith(f"{root}/")), key=len, default=None)
    folder, slash, _ = uri.removeprefix(f"{root}/").partition("/") if root else ("", "", "")
    return folder if slash else ""
