"""The scripts, read by the shells that they are for."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.shell import completion

# What is typed, with the word to complete last, and what must be offered.
TYPED = [
    (["tra"], ["train"]),
    (["help", "que"], ["query"]),
    (["train", "--sco"], ["--score"]),
    (["train", "--score", ""], ["maximum", "mean", "top1pct"]),
    (["score", "--backend", "op"], ["openvino"]),
    (["train", "--alpha", ""], []),
    (["submit", "--no-wait", "retry"], ["retry-quarantine"]),
    (["export", ""], ["coco", "fiftyone", "onnx"]),
    (["predict", "pho"], ["photo of a board.png"]),
    (["query", "--results", "pho"], ["photo of a board.png"]),
    (["nightly", "--webh"], []),
]
IN_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_fcdd
printf '%s\\n' "${COMPREPLY[@]}"
"""


def lines(*command: str, folder: Path) -> list[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr
    return sorted(line for line in done.stdout.splitlines() if line)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo of a board.png").touch()
    return tmp_path


@pytest.mark.parametrize(("words", "offered"), TYPED)
def test_bash_completes_verbs_options_choices_and_files(words: list[str], offered: list[str], folder: Path) -> None:
    (folder / "fcdd").write_text(completion.script("bash"))
    found = lines("bash", "-c", IN_BASH, "bash", "fcdd", "fcdd", *words, folder=folder)
    assert found == offered


@pytest.mark.skipif(not shutil.which("fish"), reason="there is no fish")
@pytest.mark.parametrize(("words", "offered"), [each for each in TYPED if each[0] != ["train", "--alpha", ""]])
def test_fish_does_too(words: list[str], offered: list[str], folder: Path) -> None:
    (folder / "script").write_text(completion.script("fish"))
    typed = " ".join(["fcdd", *words])
    found = lines("fish", "-c", f"source script; complete -C {shlex.quote(typed)}", folder=folder)
    assert [line.partition("\t")[0].replace("\\", "") for line in found] == offered


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
def test_zsh_reads_its_script(folder: Path) -> None:
    (folder / "_fcdd").write_text(completion.script("zsh"))
    setting = "autoload -U compinit && compinit -u -D && source _fcdd"
    assert lines("zsh", "-f", "-c", f"{setting}; print $_comps[fcdd]", folder=folder) == ["_fcdd"]


def test_printing_a_script_loads_neither_torch_nor_pyarrow_nor_duckdb() -> None:
    code = "import sys; from jobs.completion import main; main(['bash']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "complete -F _fcdd fcdd" in done.stdout
    assert not [name for name in ("torch", "ray", "pyarrow", "duckdb", "numpy", "scipy") if f"'{name}'" in done.stderr]
