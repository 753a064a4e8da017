"""What the edge of a process makes of errors."""

from types import SimpleNamespace

import pytest

from fcdd.errors import ConfigError, FCDDError
from jobs import cli
from jobs.shell import process
from jobs.shell.errors import LeaseHeld


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            FCDDError("cannot read s3://b/a\nb\x1b[31m.png: empty"),
            1,
            "cannot read s3://b/a\ufffdb\ufffd[31m.png: empty",
        ),
        (FCDDError("\nb.png: empty"), 1, "\ufffdb.png: empty"),
        (ConfigError("correct --images"), 2, "correct --images"),
        (LeaseHeld(), 6, "LeaseHeld"),
    ],
)
def test_an_error_is_one_whole_line_whatever_a_key_holds(
    error: FCDDError, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        raise error

    assert process.run(job) == code
    assert capsys.readouterr().err == f"error: {said}\n"


def test_too_little_memory_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise MemoryError("Unable to allocate 3.00 TiB for an array\nand more")

    assert process.run(job) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "error: there is too little memory (Unable to allocate 3.00 TiB for an array); free some, or"
    )


def test_ctrl_c_while_a_verb_is_loaded_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=interrupted))
    monkeypatch.setattr("sys.argv", ["fcdd", "train"])
    assert cli.main() == 130
    assert capsys.readouterr().err == "interrupted before anything began\n"
