"""How every job is configured: flags over environment over a TOML file over defaults, one validated model.

A TOML file holds one table per verb, so one file describes a whole deployment:

    [train]
    images = "s3://factory/nominal"
    bundle = "s3://factory/bundles/line-4"
"""

import argparse
import datetime as dt
import difflib
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from fcdd.errors import ConfigError
from jobs.shell.help_text import help_text, takes_several
from jobs.shell.verbs import EXAMPLES, VERBS


def strict_date(value: object) -> object:
    """Pydantic would also take numbers and times, and a night must not be guessed."""
    if isinstance(value, str) and not re.fullmatch(r"(19[7-9]|[2-9]\d\d)\d-\d{2}-\d{2}", value, re.ASCII):
        raise ValueError("expected a date like 2026-11-24, from 1970 on")
    return value


def night(value: object) -> object:
    """Today and yesterday are those of UTC."""
    today = dt.datetime.now(dt.UTC).date()
    words = {"today": today, "yesterday": today - dt.timedelta(days=1)}
    return words[value] if isinstance(value, str) and value in words else strict_date(value)


Night = Annotated[dt.date, BeforeValidator(night)]
# Of a run: the same command must mean the same run tomorrow.
FixedNight = Annotated[dt.date, BeforeValidator(strict_date)]


def height_and_width(text: str) -> tuple[int, int]:
    """Pixels of "224" (a square) or "224x320" (height x width). Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError("expected a side like 224, or a height and a width like 224x320")
    size = (int(match[1]), int(match[2] or match[1]))
    if min(size) < 16 or max(size) > 4096:
        raise ValueError("expected sides of 16 to 4096 pixels")
    return size


def _checked_size(text: str) -> str:
    height_and_width(text)
    return text


ImageSize = Annotated[str, BeforeValidator(str), AfterValidator(_checked_size)]


# What tokens stand for while a command line is parsed (`JobSettings._masked`).
_MASKED: ContextVar[Mapping[str, str]] = ContextVar("_MASKED", default=MappingProxyType({}))

# Options that may hold a secret: every user of a machine sees its command lines, and Ray keeps those of its jobs.
SECRET_OPTIONS = ("webhook", "command")


def refuse_secrets(argv: Sequence[str], elsewhere: str = "") -> None:
    """Raises ConfigError for a secret on a command line; `elsewhere` says where the variable has to be instead."""
    for option in (word.partition("=")[0] for word in argv):
        # Options are taken in any case of their letters.
        if option.startswith("--") and (name := option[2:].lower()) in SECRET_OPTIONS:
            raise ConfigError(
                f"{option} may hold a secret, and others see a command line: give it as the variable "
                f"FCDD_{name.upper()}{elsewhere}, or as {name} in a --config file that others cannot read"
            )


class JobSettings(BaseSettings):
    """Base of every job's options; `verb` names the command, and its table in the TOML file."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="FCDD_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        allow_inf_nan=False,
    )
    verb: ClassVar[str]
    # Titles in the help, and the options below them; the others follow at the end.
    groups: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    # Options of several values that are given at once, with commas between them.
    separated: ClassVar[tuple[str, ...]] = ("extensions", "classes")
    # Options that the verb has from another one and always refuses.
    refused: ClassVar[tuple[str, ...]] = ()

    config: Path | None = Field(None, description="TOML file with a table named like this command")

    @classmethod
    def parse(cls, argv: Sequence[str] | None) -> Self:
        """Options from the command line (sys.argv if None). Raises ConfigError in one sentence."""
        argv = sys.argv[1:] if argv is None else list(argv)
        refuse_secrets(argv)
        if {"-h", "--help"} & set(argv):
            shown = {name: field for name, field in cls.model_fields.items() if name not in cls.refused}
            print(help_text(cls.verb, cls.__doc__ or "", shown, cls.groups, EXAMPLES.get(cls.verb, ())))
            raise SystemExit(0)
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config", type=Path)
        known, _ = finder.parse_known_args(argv)
        path = known.config or os.environ.get("FCDD_CONFIG")
        given = _table(Path(path), cls.verb) if path else {}
        table = {name: cls._of_toml(name, value) for name, value in given.items()}
        words, values = cls._masked(argv)
        masked = _MASKED.set(values)
        try:
            return cls(_cli_parse_args=words, _cli_prog_name=f"fcdd {cls.verb}", **table)
        except (ValidationError, SettingsError) as error:
            raise ConfigError(cls._sentence(error)) from error
        finally:
            _MASKED.reset(masked)

    @classmethod
    def _masked(cls, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The words, with tokens for the values of options that may be given again, and what each token stands for.

        Pydantic would take braces, brackets and quotes in them for JSON, and a comma for the end of a value: names of
        files have them all. Options that are `separated` by commas are lists.
        """
        several = {name for name, field in cls.model_fields.items() if takes_several(field)}.difference(cls.separated)
        has_positional = any("Positional" in str(cls.model_fields[name].metadata) for name in several)
        words, values, option = list[str](), dict[str, str](), ""

        def masked(value: str) -> str:
            values[token := f"value-{len(values)}-of-the-command-line"] = value
            return token

        for word in argv:
            flag, sign, value = word.partition("=")
            if option:
                words.append(masked(word) if option in several and not word.startswith("--") else word)
                option = ""
            elif word.startswith("--"):
                name = flag[2:].lower().replace("-", "_")
                words.append(f"{flag}={masked(value)}" if sign and name in several else word)
                takes_value = name in cls.model_fields and bool not in _kinds(cls.model_fields[name])
                option = name if takes_value and not sign else ""
            else:
                words.append(masked(word) if has_positional and not word.startswith("-") else word)
        return words, values

    @model_validator(mode="before")
    @classmethod
    def _unmasked(cls, fields: Any) -> Any:
        values = _MASKED.get()
        if not values or not isinstance(fields, dict):
            return fields
        return {
            name: [values.get(each, each) if isinstance(each, str) else each for each in value]
            if isinstance(value, list)
            else value
            for name, value in fields.items()
        }

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Options from these values alone: environment and command line are not read."""
        return cls(_env_prefix="nothing of the environment: ", **values)

    @classmethod
    def _sentence(cls, error: ValidationError | SettingsError) -> str:
        if isinstance(error, SettingsError):
            return cls._misspelt(str(error).removeprefix("error parsing CLI: "))
        problems = []
        for problem in error.errors(include_url=False):
            names = [str(part) for part in problem["loc"]]
            field = cls.model_fields.get(names[0]) if names else None
            positional = field is not None and any("Positional" in str(mark) for mark in field.metadata)
            flag = names[0].upper() if positional else "--" + ".".join(names).replace("_", "-")
            if problem["type"] == "missing":
                about = f": {field.description}" if field else ""
                problems.append(f"{flag} is missing{about}")
            elif problem["type"] == "extra_forbidden":  # of a TOML file; its value may be that of a secret, misspelt
                problems.append(f"[{cls.verb}] has {names[0]!r}, which is no option; {cls._meant(flag)}")
            elif not names:  # of options that do not go together
                problems.append(_plain(problem["msg"]))
            else:
                got = "" if names and names[0] in SECRET_OPTIONS else f" (got {problem['input']!r})"
                problems.append(f"{flag}: {_plain(problem['msg'])}{got}")
        return "; ".join(problems)

    @classmethod
    def _of_toml(cls, name: str, value: Any) -> Any:
        """In a TOML file one text is enough where several may be given, and true is not 1. Raises ConfigError."""
        field = cls.model_fields.get(name)
        flags = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, bool)]
        if flags and field is not None and bool not in _kinds(field):
            raise ConfigError(f"--{name.replace('_', '-')}: expected a value, got {str(flags[0]).lower()}")
        return [value] if isinstance(value, str) and field is not None and takes_several(field) else value

    @classmethod
    def _misspelt(cls, text: str) -> str:
        """The sentence for options that are none, with the one that was probably meant."""
        _, unknown, words = text.partition("unrecognized arguments: ")
        if not unknown:
            return text
        # Only the name: the value may be a secret.
        word = words.split()[0].partition("=")[0]
        if word.startswith("-"):
            return f"unknown option {word!r}; {cls._meant(word)}"
        return f"unexpected argument; {cls._meant('')}"

    @classmethod
    def _meant(cls, flag: str) -> str:
        known = [f"--{name.replace('_', '-')}" for name in cls.model_fields]
        close = difflib.get_close_matches(flag, known, 1)
        return f"did you mean {close[0]}?" if close else f"`fcdd {cls.verb} --help` lists the options"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the TOML table, which arrives as init arguments; flags come before both."""
        return env_settings, init_settings


class LookingSettings(JobSettings):
    """Base of what opens images of committed runs: they may have been moved since."""

    moved: list[str] = Field(
        default_factory=list,
        description="images, or the bundle, that lay below location OLD lie below location NEW by now; again for more",
    )


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    return (field.annotation, *get_args(field.annotation))


def _plain(message: str) -> str:
    """A message of pydantic, without its words for programs."""
    text = message.removeprefix("Value error, ").replace("Input should be", "expected")
    return text.replace("a valid integer", "an integer").replace("a valid ", "a ").partition(", unable to parse")[0]


def _table(path: Path, verb: str) -> dict[str, Any]:
    """The table of `verb`; values are validated later, so any TOML type may occur.

    Raises ConfigError also for what would be read by no command.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML: {error}") from error
    for name, value in document.items():
        if name not in VERBS or not (isinstance(value, dict) or name == verb):
            what = f"a table [{name}]" if isinstance(value, dict) else f"{name!r} outside of a table"
            close = difflib.get_close_matches(name, VERBS, 1)
            meant = f"did you mean [{close[0]}]?" if close else f"options of this command belong into [{verb}]"
            raise ConfigError(f"{path} has {what}, which no command reads; {meant}")
    table = document.get(verb, {})
    if not isinstance(table, dict):
        raise ConfigError(f"expected a table [{verb}] in {path}, got {table!r}")
    values: dict[str, Any] = {}
    for name, value in table.items():
        key = name.replace("-", "_")
        if key in values or key == "config":
            twice = "is there twice" if key in values else "belongs on the command line"
            raise ConfigError(f"[{verb}] in {path}: {name!r} {twice}")
        values[key] = value
    return values
