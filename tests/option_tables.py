"""docs/options.md, made of the settings classes: `make docs` writes it, and a test compares it."""

import importlib
import inspect
import re
from types import NoneType
from typing import Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from jobs.shell.settings import JobSettings
from jobs.shell.verbs import VERBS

_HEAD = """# All options

Made by `make docs` from the classes that parse them. Options come from flags, over `FCDD_<OPTION>` in the environment,
over a table named like the verb in the TOML file of `--config`. What is on by default is turned off by `--no-<option>`.
"""


def settings_of(verb: str) -> type[JobSettings]:
    """The options of a verb."""
    module = importlib.import_module(f"jobs.{verb.replace('-', '_')}")
    [found] = [
        each
        for _, each in inspect.getmembers(module, inspect.isclass)
        if issubclass(each, JobSettings) and getattr(each, "verb", None) == verb
    ]
    return found


def document() -> str:
    """The whole page."""
    sections = []
    for verb, meaning in VERBS.items():
        job = settings_of(verb)
        rows = [
            f"| {_flag(name, field)} | {_default(field)} | {_escaped(field.description or '')} |"
            for name, field in job.model_fields.items()
            if name != "config"
        ]
        about = inspect.cleandoc(job.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        sections.append(
            f"## fcdd {verb}\n\n{_escaped(meaning)}. {about}\n\n| option | default | meaning |\n|---|---|---|\n"
        )
        sections[-1] += "\n".join(rows) + "\n"
    return "\n".join([_HEAD, *sections])


def _flag(name: str, field: FieldInfo) -> str:
    option = name.replace("_", "-")
    if any("Positional" in str(mark) for mark in field.metadata):
        return f"`{option.upper()}`"
    kind = field.annotation
    if get_origin(kind) in (Union, type(int | None)):
        [kind, *_] = [each for each in get_args(kind) if each is not NoneType]
    values = get_args(kind) if get_origin(kind) is Literal else ()
    return f"`--{option}`" + (f" {', '.join(map(str, values))}" if values else "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value in (None, [], ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return _escaped(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(document(), end="")
