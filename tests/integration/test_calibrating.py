"""What the threshold of a bundle comes from, through the commands: left out, held out, another score, another rate."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdd.bundle import sample_of
from fcdd.detector import Detector
from fcdd.paper.datasets import LabelledImage
from fcdd.sample import MOST
from jobs import calibrate, score, train

SMALL = ("--network", "whitened:efficientnet_lite0:stage3", "--image-size", "64", "--epochs", "1", "--workers", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, nominal_cells: list[LabelledImage]) -> Path:
    folder = tmp_path_factory.mktemp("nominal")
    for index, cell in enumerate(nominal_cells[:110]):
        (folder / f"{index:03d}.png").write_bytes(cell.path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle, and what was printed."""
    location = tmp_path_factory.mktemp("bundles") / "left-out"
    said = io.StringIO()
    with redirect_stdout(said):
        assert train.main(["--images", str(images), "--bundle", str(location), *SMALL]) == 0
    return location, said.getvalue()


@pytest.fixture(scope="module")
def bundle(trained: tuple[Path, str]) -> Path:
    return trained[0]


def test_a_hundred_images_support_a_rate_of_one_percent_and_all_are_trained_on(bundle: Path) -> None:
    spec = Detector.load(str(bundle)).spec
    assert spec.calibration.is_leave_one_out
    assert (spec.training.num_training, spec.training.num_calibration) == (110, 110)
    assert spec.calibration.threshold == spec.calibration.pooled.scores[-1]
    assert set(spec.calibration.pooled.other_scores) == {"mean", "top1pct"}
    assert {"found", "found_missing", "found_specks"} <= set(spec.training.metrics)
    assert "of them, each scored by the statistics of all others" in (bundle / "README.md").read_text()
    page = (bundle / "training.html").read_text()
    assert "each scored by statistics that did not see it" in page
    assert page.count("made from file://") == 2 * 6 * 6 + 36  # alt texts and captions


def test_a_bundle_has_a_sample_with_the_scores_of_its_network(bundle: Path, capsys: Any) -> None:
    detector = Detector.load(str(bundle))
    kept = sample_of(detector.sample)
    assert kept is not None
    assert len(kept) == MOST
    scored = detector.score(kept.pixels)
    for name in ("mean", "maximum", "top1pct"):
        np.testing.assert_allclose(kept.scores[name], getattr(scored, name), rtol=1e-4)
    nominal = kept.scores["maximum"][: round(MOST * 2 / 3)]
    assert nominal[0] > nominal[-1]
    other = ["--bundle", str(bundle), "--output", str(bundle.parent / "mean"), "--score", "mean", "--overwrite"]
    assert calibrate.main(other) == 0
    assert Detector.load(str(bundle.parent / "mean")).sample == detector.sample


def test_a_precision_is_refused_or_taken_by_the_sample_before_a_run_begins(
    bundle: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["--bundle", str(bundle), "--images", str(images), "--results", str(tmp_path / "r")]
    arguments += ["--collection", "c", "--date", "2026-11-01", "--workers", "0"]
    assert score.main([*arguments, "--precision", "bfloat16"]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"in bfloat16 scores of the bundle's own sample of 24 images are off by up to [\d.e+]+ times", said
    )
    assert not (tmp_path / "r/_staging").exists()
    assert score.main(arguments) == 0


def test_a_training_says_what_it_learned_and_where_to_look(trained: tuple[Path, str]) -> None:
    location, said = trained
    lines = said.splitlines()
    assert "from 110 images, each scored by the statistics of all others" in said
    assert any(
        re.match(r"finds      \d+% of synthetic anomalies of kinds not trained on \(\d+% of blurred, ", line)
        for line in lines
    )
    assert lines[-1].startswith(f"look at    file://{location}/training.html: ")


def test_images_that_statistics_have_seen_do_not_calibrate_the_bundle_again(
    bundle: Path, images: Path, capsys: Any
) -> None:
    arguments = ["--bundle", str(bundle), "--images", str(images), "--output", str(bundle.parent / "again")]
    assert calibrate.main(arguments) == 2
    assert "are those that the bundle was trained on" in capsys.readouterr().err


def test_a_share_of_so_few_is_refused_with_what_would_do(images: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--images", str(images), "--bundle", str(tmp_path / "b"), *SMALL, "--calibration", "held-out"]
    assert train.main(arguments) == 2
    assert "110 nominal images are too few" in capsys.readouterr().err


def test_what_cannot_be_left_out_one_by_one_is_refused(images: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--images", str(images), "--bundle", str(tmp_path / "b"), "--calibration", "leave-one-out"]
    assert train.main([*arguments, *SMALL, "--memory-gb", "0.001"]) == 2
    assert "--memory-gb is 0.001; hold a share out" in capsys.readouterr().err
    assert train.main([*arguments, "--network", "cnn32_s", "--workers", "0"]) == 2
    assert "cnn32_s has none: hold a share out" in capsys.readouterr().err


def test_another_score_and_rate_decide_without_a_training_or_an_image(
    bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["--bundle", str(bundle), "--output", str(tmp_path / "b"), "--score", "mean", "--alpha", "0.05"]
    assert calibrate.main(arguments) == 0
    before, after = Detector.load(str(bundle)).spec, Detector.load(str(tmp_path / "b")).spec
    assert (after.score, after.calibration.alpha, after.parent) == ("mean", 0.05, before.digest)
    assert after.weights_sha256 == before.weights_sha256
    assert sorted(before.calibration.pooled.other_scores["mean"]) == list(after.calibration.pooled.scores)
    assert "score       mean of the map (before: maximum)" in capsys.readouterr().out
    assert calibrate.main(["--bundle", str(bundle), "--output", str(tmp_path / "c")]) == 2
    assert "give another --score or --alpha" in capsys.readouterr().err


def test_a_detector_that_learned_nothing_is_called_so(images: Path, tmp_path: Path, caplog: Any) -> None:
    arguments = ["--images", str(images), "--bundle", str(tmp_path / "b"), "--network", "cnn32_s", "--image-size", "32"]
    arguments += ["--epochs", "1", "--workers", "0", "--alpha", "0.1", "--learning-rate", "1e-9"]
    assert train.main(arguments) == 0
    assert "this detector finds next to nothing" in caplog.text
    assert "has learned nothing of use" in (tmp_path / "b/training.html").read_text()


def test_images_are_added_to_those_that_the_bundle_knows(
    bundle: Path, nominal_cells: list[LabelledImage], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "more").mkdir()
    for index, cell in enumerate(nominal_cells[110:130]):
        (tmp_path / f"more/{index:03d}.png").write_bytes(cell.path.read_bytes())
    arguments = ["--images", str(tmp_path / "more"), "--add"]
    assert calibrate.main(["--bundle", str(bundle), "--output", str(tmp_path / "b"), *arguments]) == 0
    before, after = Detector.load(str(bundle)).spec, Detector.load(str(tmp_path / "b")).spec
    assert after.calibration.pooled.num_images == 130
    assert after.calibration.is_leave_one_out
    assert set(before.calibration.pooled.scores) < set(after.calibration.pooled.scores)
    assert f"130 nominal ones of {before.calibrated_on} and file://{tmp_path}/more (before: 110)" in (
        capsys.readouterr().out
    )
    again = ["--bundle", str(tmp_path / "b"), "--output", str(tmp_path / "c"), *arguments]
    assert calibrate.main(again) == 2
    assert "would count twice" in capsys.readouterr().err
    assert calibrate.main(["--bundle", str(bundle), "--output", str(tmp_path / "c"), "--add", "--alpha", "0.05"]) == 2
    assert "--add needs images to add" in capsys.readouterr().err
    assert calibrate.main([*arguments, "--bundle", str(bundle), "--output", "c", "--group-pattern", "x"]) == 2
    assert "does not go with --add" in capsys.readouterr().err
