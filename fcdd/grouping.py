"""Which camera or folder an image belongs to, by its name alone: the groups that calibration and drift distinguish."""

from collections.abc import Sequence
from typing import Protocol

import re2

from fcdd.errors import ConfigError


class Match(Protocol):
    """What a pattern found: its groups by number, 0 the whole."""

    def __getitem__(self, group: int, /) -> str | None: ...


class Pattern(Protocol):
    """A regular expression of RE2, whose time is linear in the length of the name: no name can stop a run."""

    groups: int

    def search(self, text: str, /) -> Match | None:
        """Where it is found first."""


def compile_pattern(pattern: str | None) -> Pattern | None:
    """A pattern whose first group (or whole match) names the group. Raises ConfigError for one that is none."""
    if pattern is None:
        return None
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ConfigError(
            f"the group pattern {pattern!r} is not a regular expression of RE2, which has no look-around and no "
            f"back-references: {why}"
        ) from error
    if compiled.match(""):
        raise ConfigError(f"the group pattern {pattern!r} matches the empty name, and would put all images together")
    found: Pattern = compiled
    return found


def group_of(uri: str, roots: Sequence[str], pattern: Pattern | None) -> str:
    """What `pattern` finds first in the name; without a pattern the first folder below the listed location.

    Empty for an image that lies directly there, or in which the pattern is not found.
    """
    if pattern:
        found = pattern.search(uri)
        return ((pattern.groups and found[1]) or found[0] or "") if found else ""
    root = max((root for root in roots if uri.startswith(f"{root}/")), key=len, default=None)
    folder, slash, _ = uri.removeprefix(f"{root}/").partition("/") if root else ("", "", "")
    return folder if slash else ""
