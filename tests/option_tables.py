"""docs/options.md and the table of shell completion, of the settings classes: `make docs` writes, a test compares."""

import importlib
import inspect
import re
import sys

from pydantic.fields import FieldInfo

from jobs.shell import completion
from jobs.shell.help_text import default_text, flag
from jobs.shell.settings import SECRET_OPTIONS, JobSettings
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
            f"| `{_escaped(flag(name, field))}` | {_default(field)} | {_escaped(field.description or '')} |"
            for name, field in job.model_fields.items()
            if name != "config" and name not in job.refused
        ]
        about = inspect.cleandoc(job.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        sections.append(
            f"## fcdd {verb}\n\n{_escaped(meaning)}. {about}\n\n| option | default | meaning |\n|---|---|---|\n"
        )
        sections[-1] += "\n".join(rows) + "\n"
    return "\n".join([_HEAD, *sections])


def completion_table() -> str:
    """jobs/shell/options.json."""
    options = {}
    for verb in VERBS:
        job = settings_of(verb)
        # Nobody may type a secret.
        options[verb] = completion.options_of(job.model_fields, (*job.refused, *SECRET_OPTIONS))
    return completion.table(options)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else _escaped(default_text(field))


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(completion_table() if sys.argv[1:] == ["--completion"] else document(), end="")
