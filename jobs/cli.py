"""The console script: `fcdd <verb> ...` is `python -m jobs.<verb> ...`."""

import difflib
import importlib
import sys
from typing import NoReturn

from jobs.shell import errors, process
from jobs.shell.verbs import VERBS
from jobs.shell.versions import versions


def main() -> int:
    """Dispatch to a job; only that job's imports are paid for."""
    verb, *arguments = sys.argv[1:] or ["help"]
    if verb == "help" and arguments:
        verb, *arguments = arguments[0], "--help"
    if verb in ("help", "-h", "--help"):
        print("usage: fcdd <verb> [options]      fcdd help <verb> explains each      fcdd version\n")
        print("\n".join(f"  {name:18}{meaning}" for name, meaning in VERBS.items()))
        return 0
    if verb in ("version", "--version"):
        print(" ".join(next(iter(versions().items()))))
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, [*VERBS, "help", "version"], 1)
        meant = f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(VERBS)}"
        print(f"error: unknown verb {verb!r}; {meant}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"jobs.{verb.replace('-', '_')}")
    except KeyboardInterrupt:  # some verbs load for seconds
        print("interrupted before anything began", file=sys.stderr)
        return errors.INTERRUPTED
    code: int = module.main(arguments)
    return code


def run() -> NoReturn:
    """The console script."""
    process.exit_with(main())


if __name__ == "__main__":
    run()
