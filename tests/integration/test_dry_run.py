"""`fcdd train --dry-run`: what a training would do, and what would stop it, without a file written."""

import re
from pathlib import Path

import pytest
from PIL import Image

from fcdd.io import storage
from tests.line import picture, run_verb

SMALL = ("--network", "cnn32_s", "--image-size", "32", "--workers", "0", "--alpha", "0.1", "--dry-run")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dry") / "good"
    for index in range(80):
        storage.write(f"{folder}/{index:03d}.png", picture(index))
    return folder


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(good: Path) -> None:
    (good / "notes.png").write_text("no image")
    before = sorted(good.parent.rglob("*"))
    said = run_verb("train", "--images", str(good), "--bundle", str(good.parent / "bundle"), *SMALL).stdout
    (good / "notes.png").unlink()
    assert "notes.png" not in [path.name for path in good.parent.rglob("*")]
    found = {line[:12].strip(): line[13:] for line in said.splitlines()}
    assert found["images"].startswith(f"81 under file://{good}")
    trained, held_out = (int(re.search(r"\d+", found[name])[0]) for name in ("training on", "calibrated"))  # type: ignore[index]
    assert trained + held_out == 81
    assert "56x40 pixels" in found["looked at"]
    assert "needs 9" in found["calibrated"]
    assert "from random weights" in found["network"]
    assert re.match(r"about 1\.5 GB", found["memory"])
    assert said.endswith("nothing is missing, and nothing was written\n")
    assert sorted([*good.parent.rglob("*"), good / "notes.png"]) == before


@pytest.mark.parametrize(("network", "is_open"), [("", True), (":1", False)])
def test_a_dry_run_says_that_variants_are_counted_later(network: str, is_open: bool, good: Path) -> None:
    options = ("--network", f"whitened:efficientnet_lite0{network}", "--image-size", "64", "--alpha", "0.1")
    said = run_verb(
        "train", "--images", str(good), "--bundle", f"{good}-b", *options, "--batch-size", "16", "--dry-run"
    ).stdout
    assert ("the training counts them" in said) == is_open
    assert "whitened:efficientnet_lite0:stage3+stage4+stage5:1:32+32+32, input of 64x64" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--alpha", "0.001"], "nominal images are too few"),
        (["--labels", "/no/labels.csv"], "labels.csv"),
        (["--bundle", "{good}"], "--bundle is the location of the images"),
        (["--bundle", "{good}/000.png/bundle"], "is no folder that this user can write to; give another --bundle"),
        (["--outliers", "/no/outliers"], "no images under"),
        (["--ignore", "/no/mask.png"], "of --ignore does not exist"),
        (["--ignore", "{good}/../small.png"], "has 20x20 pixels, and images have 56x40"),
    ],
)
def test_what_would_stop_a_training_stops_its_dry_run(good: Path, options: list[str], said: str) -> None:
    given = [option.format(good=good) for option in options]
    Image.new("L", (20, 20), 255).save(good.parent / "small.png")
    where = () if "--bundle" in options else ("--bundle", str(good.parent / "bundle"))
    done = run_verb("train", "--images", str(good), *where, *SMALL, *given, check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_dry_run_says_how_much_of_the_map_is_ignored(good: Path) -> None:
    mask = Image.new("L", (56, 40))
    mask.paste(255, (0, 0, 28, 40))
    mask.save(good.parent / "half.png")
    where = ("--images", str(good), "--bundle", str(good.parent / "bundle"), "--ignore", str(good.parent / "half.png"))
    assert re.search(r"^ignored      5\d% of the map", run_verb("train", *where, *SMALL).stdout, re.MULTILINE)


def test_files_that_are_no_images_are_found_by_a_few(tmp_path: Path) -> None:
    for index in range(60):
        storage.write(f"{tmp_path}/wrong/{index:03d}.png", b"no image")
    done = run_verb("train", "--images", f"{tmp_path}/wrong", "--bundle", f"{tmp_path}/b", *SMALL, check=False)
    assert done.returncode == 2
    assert re.search(r"none of 16 images can be read, \S+\.png among them \(not_an_image", done.stderr)
