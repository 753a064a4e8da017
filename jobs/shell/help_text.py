"""What `fcdd VERB --help` prints, made of the settings class: options in groups, examples, and the usage line last."""

import datetime as dt
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

NEEDED, OTHER = "needed", "options"

# What a value is called, by the name of its option, else by its type.
_VALUES_BY_NAME = {
    **dict.fromkeys(("images", "bundle", "results", "outliers", "anomalous", "masks", "checkpoints"), "LOCATION"),
    "moved": "OLD=NEW",
    **dict.fromkeys(("locations", "data", "output", "ignore", "relative_to"), "LOCATION"),
    **dict.fromkeys(("labels", "image_list", "uris", "reviewed", "object_mask"), "FILE"),
    **dict.fromkeys(("pictures",), "FOLDER"),
    **dict.fromkeys(("collection", "group", "reviewer", "network"), "NAME"),
    **dict.fromkeys(("include", "exclude"), "GLOB"),
    "uri": "IMAGE",
    "image_size": "SIZE",
    "crop": "X,Y,W,H",
}
_VALUES_BY_TYPE = {int: "N", float: "X", Path: "FILE", dt.date: "DATE", dt.datetime: "TIME", SecretStr: "TEXT"}
_LEFT = 30


def help_text(
    verb: str,
    about: str,
    fields: Mapping[str, FieldInfo],
    groups: Mapping[str, tuple[str, ...]],
    examples: tuple[str, ...],
) -> str:
    """The whole text. `groups` are titles and the options below them; what is in none follows at the end."""
    paragraphs = inspect.cleandoc(about).split("\n\n")
    lines = [f"fcdd {verb}: {paragraphs[0]}", *(f"\n{paragraph}" for paragraph in paragraphs[1:])]
    grouped = {name for names in groups.values() for name in names}
    needed = tuple(name for name, field in fields.items() if field.is_required() or is_positional(field))
    sections = {NEEDED: needed, **groups}
    sections[OTHER] = tuple(name for name in fields if name not in grouped and name not in needed)
    for title, names in sections.items():
        shown = [name for name in names if name in fields and (title == NEEDED or name not in needed)]
        if shown:
            lines += ["", f"{title}:", *(line for name in shown for line in _option(name, fields[name]))]
    if examples:
        lines += ["", "examples:", *(f"  {example}" for example in examples)]
    must = " ".join(flag(name, fields[name]) for name in needed if fields[name].is_required())
    lines += ["", " ".join(f"usage: fcdd {verb} {must} [options]".split())]
    return "\n".join(lines)


def is_positional(field: FieldInfo) -> bool:
    """Whether the value stands by itself, without a name before it."""
    return any("Positional" in str(mark) for mark in field.metadata)


def flag(name: str, field: FieldInfo) -> str:
    """The option as it is written: --images LOCATION, --resume, FORMAT."""
    if is_positional(field):
        return name.upper().replace("_", "-")
    value = value_name(name, field)
    return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")


def value_name(name: str, field: FieldInfo) -> str:
    """What the value of an option is called, its choices where there are few; "" for a switch."""
    kind = plain_type(field.annotation)
    if kind is bool:
        return ""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if name in _VALUES_BY_NAME and kind not in (int, float):
        return _VALUES_BY_NAME[name]
    return _VALUES_BY_TYPE.get(kind, "TEXT") if isinstance(kind, type) else "TEXT"


def takes_several(field: FieldInfo) -> bool:
    """Whether the option may be given again and again."""
    kind = field.annotation
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(get_origin(each) is list for each in options)


def default_text(field: FieldInfo) -> str:
    """The default in words, "" where there is none or it says nothing."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if value in (None, [], "", False):
        return ""
    if value is True:
        return "on"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def plain_type(kind: Any) -> Any:
    """The type of one value: without None, without marks, of a list its items'."""
    if get_origin(kind) is Annotated:
        return plain_type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return plain_type(next(each for each in get_args(kind) if each is not NoneType))
    return plain_type(get_args(kind)[0]) if get_origin(kind) is list else kind


def _option(name: str, field: FieldInfo) -> Iterator[str]:
    left = f"  {flag(name, field)}"
    text, default = field.description or "", default_text(field)
    if takes_several(field) and "again" not in text:
        text += "; may be given again"
    if default == "on":
        text += f" (on; --no-{name.replace('_', '-')} turns it off)"
    elif default and "default" not in text:
        text += f" (default: {default})"
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    right = textwrap.wrap(text, width - _LEFT) or [""]
    if len(left) > _LEFT - 2:
        yield left
        left = ""
    yield f"{left:{_LEFT}}{right[0]}"
    yield from (f"{'':{_LEFT}}{line}" for line in right[1:])
