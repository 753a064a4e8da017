"""The console script: `fcdd <verb> ...` is `python -m jobs.<verb> ...`."""

import importlib
import sys
from typing import NoReturn

from jobs.shell import process
from jobs.shell.verbs import VERBS
from jobs.shell.versions import versions


def main() -> int:
    """Dispatch to a job; only that job's imports are paid for."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: fcdd <verb> [options]      fcdd <verb> --help explains each      fcdd --version\n")
        print("\n".join(f"  {verb:18}{meaning}" for verb, meaning in VERBS.items()))
        return 0
    if sys.argv[1] == "--version":
        print(" ".join(next(iter(versions().items()))))
        return 0
    verb = sys.argv[1]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}; choose one of: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"jobs.{verb.replace('-', '_')}").main(sys.argv[2:])
    return code


def run() -> NoReturn:
    """The console script."""
    process.exit_with(main())


if __name__ == "__main__":
    run()
