"""Completion of commands in bash, zsh and fish: scripts made of a table of all options.

The table, `options.json` beside this module, is made of the settings classes by `make docs`, and a test compares it:
to load every one of them would take seconds each time that a shell starts.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from jobs.shell.help_text import default_text, is_positional, plain_type, takes_several, value_name
from jobs.shell.verbs import VERBS

Shell = Literal["bash", "zsh", "fish"]
TABLE = Path(__file__).with_name("options.json")
# What one value of an option is: a switch has none, "files" are completed, "text" is not.
_FILES = ("LOCATION", "FILE", "FOLDER", "IMAGE")
_WORDS = {"help": "explain a verb", "version": "what is installed"}
_LONGEST = 72


class Option(NamedTuple):
    """One option, or a value without a name: what may follow it, and what it is for.

    `kind` is "switch", "files", "text" or "choice" of `choices`; `several`: it may be given again and again.
    """

    name: str
    kind: str
    choices: tuple[str, ...]
    several: bool
    about: str


def options_of(fields: Mapping[str, FieldInfo], refused: tuple[str, ...] = ()) -> list[Option]:
    """The options of a settings class, those that are on by default under the name that turns them off as well."""
    found = [option for name, field in fields.items() if name not in refused for option in _named(name, field)]
    return [*found, Option("--help", "switch", (), False, "explain this verb")]


def table(every: Mapping[str, list[Option]]) -> str:
    """The content of `options.json`."""
    lines = (
        f"{json.dumps(verb)}: [\n" + ",\n".join(json.dumps(option) for option in options) + "\n]"
        for verb, options in every.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def script(shell: Shell) -> str:
    """What the shell is to read."""
    stored = json.loads(TABLE.read_text(encoding="utf-8"))
    every = {verb: [_read(option) for option in options] for verb, options in stored.items()}
    makers: dict[Shell, Callable[[dict[str, list[Option]]], Iterator[str]]] = {
        "bash": _bash,
        "zsh": _zsh,
        "fish": _fish,
    }
    return "\n".join(makers[shell](every)) + "\n"


def _named(name: str, field: FieldInfo) -> Iterator[Option]:
    kind, value = plain_type(field.annotation), value_name(name, field)
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    is_path = value in _FILES or (is_positional(field) and takes_several(field))
    what = "choice" if choices else "switch" if not value else "files" if is_path else "text"
    about = (field.description or "").partition(";")[0].partition(". ")[0]
    about = about if len(about) <= _LONGEST else about[:_LONGEST].rpartition(" ")[0] + " ..."
    flag = name.upper() if is_positional(field) else f"--{name.replace('_', '-')}"
    yield Option(flag, what, choices, takes_several(field), about)
    if what == "switch" and (default_text(field) == "on" or field.default is None):
        yield Option(f"--no-{flag.removeprefix('--')}", what, (), False, f"not: {about}")


def _read(stored: list[Any]) -> Option:
    name, kind, choices, several, about = stored
    return Option(name, kind, tuple(choices), several, about)


def _bash(every: dict[str, list[Option]]) -> Iterator[str]:
    verbs = " ".join(every)
    yield from (
        "# fcdd completion bash > ~/.local/share/bash-completion/completions/fcdd",
        "_fcdd() {",
        "    local IFS=$' \\t\\n' cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        f'    local verb=${{COMP_WORDS[1]}} verbs="{verbs}" words="" word',
        "    COMPREPLY=()",
        "    if ((COMP_CWORD == 1)); then",
        f'        COMPREPLY=($(compgen -W "$verbs {" ".join(_WORDS)}" -- "$cur")); return',
        "    fi",
        "    if [[ $verb == submit ]]; then",
        '        for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do',
        '            [[ " $verbs " == *" $word "* ]] && { verb=$word; break; }',
        "        done",
        "    fi",
        '    case "$verb $before" in',
    )
    for verb, options in every.items():
        named = [option for option in options if option.name.startswith("--")]
        for option in named:
            if option.kind == "choice":
                answer = f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur"))'
                yield f'        "{verb} {option.name}") {answer}; return ;;'
        for kind, then in (("files", "_fcdd_files; return"), ("text", "return")):
            if names := [f'"{verb} {option.name}"' for option in named if option.kind == kind]:
                yield f"        {'|'.join(names)}) {then} ;;"
    yield from ("    esac", "    case $verb in", '        help) words="$verbs" ;;')
    for verb, options in every.items():
        words = " ".join(option.name for option in options if option.name.startswith("--"))
        values = [choice for option in options if option.name.isupper() for choice in option.choices]
        values += every if verb == "submit" else ()
        also = f'[[ $cur == -* ]] || words="{" ".join(values)}"' if values else ""
        yield f'        {verb}) words="{words}"{f"; {also}" if also else ""} ;;'
    with_files = [
        verb for verb, options in every.items() if any(o.name.isupper() and o.kind == "files" for o in options)
    ]
    yield from (
        "    esac",
        f"    case $verb in {'|'.join(with_files)}) [[ $cur == -* ]] || {{ _fcdd_files; return; }} ;; esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "}",
        "_fcdd_files() {",
        "    local IFS=$'\\n'",
        "    compopt -o filenames 2>/dev/null",
        '    COMPREPLY=($(compgen -f -- "$cur"))',
        "}",
        "complete -F _fcdd fcdd",
    )


def _zsh(every: dict[str, list[Option]]) -> Iterator[str]:
    meanings = VERBS | _WORDS
    yield from (
        "#compdef fcdd",
        "# fcdd completion zsh > a folder of $fpath, as _fcdd",
        "_fcdd_verb() {",
        "    local -a verbs=(",
    )
    yield from (f"        {shlex.quote(f'{verb}:{meanings[verb]}')}" for verb in (*every, *_WORDS))
    yield from ("    )", "    if ((CURRENT == 1)); then _describe verb verbs; return; fi", "    case $words[1] in")
    yield "        help) _describe verb verbs ;;"
    for verb, options in every.items():
        specs = [_zsh_option(option) for option in options]
        specs += ["*:: :_fcdd_verb"] if verb == "submit" else []
        yield f"        {verb}) _arguments {' '.join(map(shlex.quote, specs))} ;;"
    yield from ("    esac", "}", "_fcdd() { _arguments '*:: :_fcdd_verb' }", "compdef _fcdd fcdd")


def _zsh_option(option: Option) -> str:
    values = {"files": ":value:_files", "text": ":value: ", "switch": ""}
    value = values.get(option.kind) or (f":value:({' '.join(option.choices)})" if option.choices else "")
    if option.name.isupper():
        return f"{'*' if option.several else ''}{value or ':value: '}"
    about = option.about.replace("[", "(").replace("]", ")").replace(":", "\\:")
    return f"{'*' if option.several else ''}{option.name}[{about}]{value}"


def _fish(every: dict[str, list[Option]]) -> Iterator[str]:
    meanings = VERBS | _WORDS
    yield "# fcdd completion fish > ~/.config/fish/completions/fcdd.fish"
    yield "complete -c fcdd -f"
    for verb in (*every, *_WORDS):
        yield f"complete -c fcdd -n __fish_use_subcommand -a {verb} -d {_fish_quoted(meanings[verb])}"
    yield f"complete -c fcdd -n '__fish_seen_subcommand_from help submit' -a '{' '.join(every)}'"
    for verb, options in every.items():
        for option in options:
            start = f"complete -c fcdd -n '__fish_seen_subcommand_from {verb}'"
            choices = f" -a '{' '.join(option.choices)}'" if option.choices else ""
            how = {"files": " -r -F", "text": " -x", "choice": f" -x{choices}", "switch": ""}[option.kind]
            if option.name.startswith("--"):
                yield f"{start} -l {option.name[2:]}{how} -d {_fish_quoted(option.about)}"
            elif option.kind in ("files", "choice"):
                yield start + (" -F" if option.kind == "files" else choices)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
