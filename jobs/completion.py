"""`fcdd completion`: verbs, options and their choices, completed by your shell."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from pydantic_settings import CliPositionalArg

from jobs.shell import completion, process
from jobs.shell.completion import Shell
from jobs.shell.settings import JobSettings


class CompletionSettings(JobSettings):
    """Print what makes your shell complete verbs, options and their choices; where to put it is its first line.

    To try it in bash: source <(fcdd completion bash)
    """

    verb: ClassVar[str] = "completion"

    shell: CliPositionalArg[Shell] = Field(description="bash, zsh or fish")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return process.run(lambda: print(completion.script(CompletionSettings.parse(argv).shell), end=""))


if __name__ == "__main__":
    process.exit_with(main())
