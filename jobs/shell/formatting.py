"""Text for people and programs: printable names, plural forms, values for JSON."""

import dataclasses
import math
from typing import Any


def printable(text: str) -> str:
    """Keys are data: their control characters must not reach a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def plural(count: int, what: str) -> str:
    """1 region, 2 regions."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def share(value: float) -> str:
    """A share in whole per cent, of which 100 % is all and 0 % is none."""
    return f"{100 * value:.0f}%" if value in (0, 1) or math.isnan(value) else f"{min(99, max(1, round(100 * value)))}%"


def json_values(value: Any) -> Any:
    """NamedTuples and dataclasses as dictionaries, at any depth, and NaN as None: for JSON."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: json_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
