import datetime as dt
import re
import shlex
from datetime import date
from pathlib import Path

import pytest

from fcdd.errors import ConfigError
from jobs.nightly import NightlySettings
from jobs.predict import PredictSettings
from jobs.score import ScoreSettings
from jobs.scoring.settings import in_utc
from jobs.shell.help_text import is_positional, value_name
from jobs.shell.settings import height_and_width
from jobs.shell.verbs import EXAMPLES, VERBS
from jobs.training import checks
from jobs.training.settings import TrainSettings, with_preset
from tests.option_tables import settings_of

REQUIRED = ["--images", "in", "--bundle", "out"]
SCORED = ["--bundle", "b", "--images", "i", "--results", "r", "--collection", "c", "--date", "2026-11-25"]


def test_flags_win_over_the_environment_over_the_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[train]\nimages = "a"\nbundle = "b"\nepochs = 3\nbatch-size = 64\nlearning_rate = 0.5\n')
    monkeypatch.setenv("FCDD_BATCH_SIZE", "16")
    monkeypatch.setenv("FCDD_EPOCHS", "5")
    settings = TrainSettings.parse(["--config", str(path), "--epochs", "7"])
    assert (settings.images, settings.epochs, settings.batch_size) == ("a", 7, 16)
    assert (settings.learning_rate, settings.seed) == (0.5, 0)


def test_dates_and_numbers_are_checked_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--epochs: .*greater than or equal to 1 \(got '0'\)"):
        TrainSettings.parse([*REQUIRED, "--epochs", "0"])
    with pytest.raises(ConfigError, match="--bundle is missing: location"):
        TrainSettings.parse(["--images", "x"])
    arguments = ["--bundle", "b", "--images", "i", "--results", "r", "--collection", "c", "--date"]
    assert ScoreSettings.parse([*arguments, "2026-11-02"]).date == date(2026, 11, 2)
    for wrong in ("yesterday", "0", "20261124", "2026-1-2", "2026-11-24T00:00:00", ""):
        with pytest.raises(ConfigError, match="--date: expected a date like 2026-11-24"):
            ScoreSettings.parse([*arguments, wrong])
    with pytest.raises(ConfigError, match="--date"):
        ScoreSettings.parse([*arguments, "2026-13-01"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepoch = 3\n", r"\[train\] has 'epoch', which is no option; did you mean --epochs\?"),
        ("[train]\nzzz = 3\n", r"\[train\] has 'zzz', which is no option; `fcdd train --help` lists the options"),
        ("[train]\nepochs = 'x'\n", r"^--epochs: expected an integer \(got 'x'\)$"),
        ("[train]\nnetwork = 3\n", "--network: expected a string"),
        ("[trian]\nepochs = 3\n", r"has a table \[trian\], which no command reads; did you mean \[train\]\?"),
        ("report = 'x'\n", "has 'report' outside of a table"),
        ("epochs = 3\n", r"has 'epochs' outside of a table, .* options of this command belong into \[train\]"),
        ("[train\n", "is not TOML"),
        ("[train]\nbatch-size = 8\nbatch_size = 9\n", "'batch_size' is there twice"),
        ("[train]\nconfig = 'x'\n", "'config' belongs on the command line"),
        ("train = 3\n", r"expected a table \[train\]"),
        ("[train]\nworkers = true\n", "--workers: expected a value, got true"),
        ("[train]\nmilestones = [5, true]\n", "--milestones: expected a value, got true"),
        ("[train]\nalpha = false\n", "--alpha: expected a value, got false"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainSettings.parse([*REQUIRED, "--config", str(path)])


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "job.toml"
    path.write_text("[train]\nepochs = 3\n", encoding="utf-8-sig")
    assert TrainSettings.parse([*REQUIRED, "--config", str(path)]).epochs == 3


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration nowhere.toml"):
        TrainSettings.parse([*REQUIRED, "--config", "nowhere.toml"])


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("96x160", (96, 160))])
def test_an_image_size_is_a_side_or_height_by_width(text: str, size: tuple[int, int]) -> None:
    parsed = TrainSettings.parse(["--images", "x", "--bundle", "y", "--image-size", text])
    assert height_and_width(parsed.image_size) == size


@pytest.mark.parametrize("text", ["8", "224x", "big", "-224", "9000", "224x224x3"])
def test_another_image_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--image-size: expected"):
        TrainSettings.parse(["--images", "x", "--bundle", "y", f"--image-size={text}"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], []),
        (["--outlier-share", "0.3"], ["--outlier-share is not taken: there are no --outliers"]),
        (["--outlier-share", "0.3", "--outliers", "o"], []),
        (["--anomalous-share", "0.3"], ["--anomalous-share is not taken: there are no --anomalous"]),
        (["--masks", "m", "--anomalous", "a", "--loss", "image"], ["--masks is not taken: --loss image looks at"]),
        (["--decay", "0.9"], ["--decay is not taken: --schedule one_cycle has no decay"]),
        (["--milestones", "3", "--schedule", "exponential"], ["--milestones is not taken: they belong to"]),
        (["--decay", "0.9", "--milestones", "3", "--schedule", "milestones"], []),
        (["--weights", "w", "--no-pretrained"], ["--weights is not taken"]),
        (["--weights", "w", "--network", "cnn224"], ["--weights is not taken: this training of cnn224 starts from no"]),
        (
            ["--pretrained", "--network", "cnn224"],
            ["--pretrained is not taken: there are no ImageNet weights of cnn224"],
        ),
        (["--normalization", "lcn_min_max"], ["--normalization is not taken: whitened"]),
        (["--moving-statistics"], ["--moving-statistics is not taken"]),
        (["--freeze-backbone", "--network", "cnn224"], ["--freeze-backbone is not taken: cnn224 has no backbone"]),
        (["--workers", "0", "--gpu"], ["--gpu is not taken: one process trains without Ray"]),
        (["--workers", "0", "--max-failures", "1"], ["--max-failures is not taken"]),
        (["--preset", "fmnist", "--decay", "0.5"], []),
    ],
)
def test_an_option_without_an_effect_is_said(
    options: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainSettings.parse([*REQUIRED, *options])
    checks.warn_of_ignored_options(settings.model_fields_set, with_preset(settings))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == len(said)
    assert all(text.startswith(start) for text, start in zip(warned, said, strict=True))


@pytest.mark.parametrize("value", ["20261124", "2026-11-24", "2026-11-24T00:00", "2026-11-24T01:00+01:00"])
def test_a_time_may_be_written_in_any_way_of_iso_8601(value: str) -> None:
    settings = ScoreSettings.parse([*SCORED, "--modified-since", value])
    assert in_utc(settings.modified_since) == dt.datetime(2026, 11, 24, tzinfo=dt.UTC)


@pytest.mark.parametrize("value", ["2026", "1764000000", "yesterday", ""])
def test_a_number_is_no_time(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--modified-before: "):
        ScoreSettings.parse([*SCORED, "--modified-before", value])
    path = tmp_path / "f.toml"
    path.write_text("[score]\nmodified-before = 5\n")
    with pytest.raises(ConfigError, match="--modified-before: expected a time like 2026-11-24"):
        ScoreSettings.parse([*SCORED, "--config", str(path)])


def test_an_unknown_anomaly_is_refused_with_the_choice() -> None:
    with pytest.raises(ConfigError, match="--anomalies: choose one of: mixed, defects, cutpaste, perlin, confetti"):
        TrainSettings.parse(["--images", "x", "--bundle", "y", "--anomalies", "confeti"])


@pytest.mark.parametrize("option", ["--webhook", "--WEBHOOK", "--Webhook=x", "--COMMAND"])
def test_a_secret_is_refused_on_a_command_line_whatever_its_letters(option: str) -> None:
    with pytest.raises(ConfigError, match="may hold a secret") as refused:
        NightlySettings.parse(["--images", "x", option, "https://hooks/canary-secret"])
    assert "canary" not in str(refused.value)


def test_the_value_of_a_misspelt_option_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('[nightly]\nweb_hook = "https://hooks/canary-secret"\n')
    with pytest.raises(ConfigError, match="'web_hook', which is no option; did you mean --webhook") as refused:
        NightlySettings.parse(["--config", str(tmp_path / "f.toml")])
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--bundel", "x"], "unknown option '--bundel'; did you mean --bundle?"),
        (["--zzz=canary-secret"], "unknown option '--zzz'; `fcdd score --help` lists the options"),
        (["canary-secret"], "unexpected argument; `fcdd score --help` lists the options"),
    ],
)
def test_an_option_that_is_none_is_one_sentence_that_names_what_was_meant(argv: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ScoreSettings.parse(argv)
    assert str(caught.value) == said


def test_in_a_file_one_text_is_enough_where_several_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('[score]\nimages = "a"\nbundle = "b"\nresults = "r"\ncollection = "c"\n')
    settings = ScoreSettings.parse(["--config", str(tmp_path / "f.toml"), "--date", "2026-11-24"])
    assert (settings.images, settings.bundle) == (["a"], "b")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_has_every_option_once_in_words_of_users_and_ends_with_the_usage(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = settings_of(verb)
    with pytest.raises(SystemExit, match="0"):
        job.parse(["--help"])
    text = capsys.readouterr().out
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    named = (name for name, field in job.model_fields.items() if not is_positional(field) and name not in job.refused)
    assert sorted(options) == sorted(f"--{name.replace('_', '-')}" for name in named)
    assert not re.search(r"SecretStr|factory\)|list\[|\bstr\b|\bNone\b", text)
    assert text.rstrip().splitlines()[-1].startswith(f"usage: fcdd {verb} ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_of_its_own_options(verb: str) -> None:
    for example in EXAMPLES[verb]:
        words = shlex.split(example)
        assert words[:2] == ["fcdd", verb]
        known = {f"--{name.replace('_', '-')}" for name in settings_of(verb).model_fields}
        known |= {"--config", "--date"} if verb == "submit" else set()
        assert {word.replace("--no-", "--") for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("verb", VERBS)
def test_an_output_is_a_place_and_a_format_a_choice_whatever_the_verb(verb: str) -> None:
    fields = settings_of(verb).model_fields
    if "output" in fields:
        assert value_name("output", fields["output"]) == "LOCATION"
    if "format" in fields:
        assert "|" in value_name("format", fields["format"])
    assert not {"to", "into"} & set(fields)


NAMES = [
    "{date}",
    "[cam] 1",
    "a,b",
    'say "x"',
    "{a",
    "x]",
    " lead",
    "trail ",
    "back\\slash",
    "ends\\",
    "[1, 2]",
    "a'b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_location_is_taken_as_it_is_written(name: str) -> None:
    places = ["--bundle", "b", "--results", "r", "--collection", "c", "--date", "2026-11-01"]
    given = ScoreSettings.parse([*places, "--images", name, "--no-gpu", f"--images={name}", "--exclude", name])
    assert (given.images, given.exclude, given.gpu) == ([name, name], [name], False)
    assert PredictSettings.parse([name, "x.png", name, "--bundle", "b"]).image == [name, "x.png", name]


def test_endings_may_be_given_with_commas() -> None:
    places = ["--bundle", "b", "--results", "r", "--collection", "c", "--date", "2026-11-01", "--images", "i"]
    assert ScoreSettings.parse([*places, "--extensions", ".png,.jpg"]).extensions == [".png", ".jpg"]
