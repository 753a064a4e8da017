"""`fcdd predict`: single images get what a run of them would get."""

import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fcdd.detector import Detector
from fcdd.errors import ConfigError
from fcdd.io import storage
from jobs import predict, results
from tests.line import Line, run_verb


def test_a_prediction_is_what_the_run_has_of_the_image(nights: Line, tmp_path: Path) -> None:
    rows = list(results.open(nights.results, date="2026-11-02").rows("FROM scores ORDER BY anomaly_score DESC LIMIT 8"))
    places = ("--bundle", f"{nights.root}/bundle", "--pictures", str(tmp_path / "p"), "--format", "json")
    found = json.loads(run_verb("predict", *(row["image_uri"] for row in rows), *places).stdout)
    assert any(row["is_anomalous"] for row in rows)
    for row, one in zip(rows, found, strict=True):
        assert one["image"] == row["image_uri"]
        for name in ("anomaly_score", "p_value", "is_anomalous", "height", "width"):
            assert one[name] == pytest.approx(row[name], rel=1e-5)
        assert [(r["x0"], r["y1"]) for r in one["regions"]] == [(r["x0"], r["y1"]) for r in row["regions"]]
        assert Path(one["picture"]).name.startswith(Path(row["image_uri"]).stem)
        with Image.open(one["picture"]) as picture:
            assert picture.width >= 2 * row["width"]
    outlined = run_verb("predict", rows[0]["image_uri"], *places, "--style", "outline").stdout
    with Image.open(json.loads(outlined)[0]["picture"]) as picture:
        original = Image.open(rows[0]["image_uri"].removeprefix("file://"))
        unchanged = np.asarray(picture)[: original.height, : original.width] == np.asarray(original)
        assert 0.5 < unchanged.all(2).mean() < 1  # beside the lines it is the image itself
    detector = Detector.load(f"{nights.root}/bundle")
    direct = detector.predict(Path(rows[0]["image_uri"].removeprefix("file://")).read_bytes(), alpha=0.5)
    assert direct.anomaly_score == pytest.approx(rows[0]["anomaly_score"], rel=1e-5)
    np.testing.assert_allclose(detector.predict(rows[0]["image_uri"]).map, direct.map)


def test_an_image_is_read_once_also_where_a_picture_of_it_is_drawn(nights: Line, tmp_path: Path) -> None:
    [first, *_] = [str(path) for path in sorted(Path(f"{nights.root}/images/cam-0").iterdir())]
    with mock.patch.object(storage, "read", wraps=storage.read) as read:
        run_verb("predict", first, "--bundle", f"{nights.root}/bundle", "--pictures", str(tmp_path / "p"))
    assert [call.args[0] for call in read.call_args_list if call.args[0].endswith(".png")] == [storage.normalize(first)]


def test_the_images_of_a_folder_are_predicted_one_by_one(
    nights: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = sorted(Path(f"{nights.root}/images/cam-0").iterdir())
    (tmp_path / "inner").mkdir()
    shutil.copy(first, tmp_path / "a.png")
    shutil.copy(second, tmp_path / "inner" / "b.PNG")
    (tmp_path / "broken.png").write_text("no image")
    for name in ("notes.txt", "._a.png", "_thumbs/a.png"):  # what no run takes for an image
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(first, tmp_path / name)
    asked = ("predict", str(tmp_path), str(first), "--bundle", f"{nights.root}/bundle", "--format", "json")
    found = json.loads(run_verb(*asked).stdout)
    assert [Path(row["image"]).name for row in found] == ["a.png", "broken.png", "b.PNG", first.name]
    assert found[0]["anomaly_score"] == found[3]["anomaly_score"] != found[2]["anomaly_score"]
    assert "not_an_image" in found[1]["reason"]
    among = run_verb(*asked, "--pictures", str(tmp_path / "pictures"), check=False)
    assert "lies below the images" in among.stderr
    monkeypatch.setattr(predict, "MAX_IN_FOLDER", 1)
    with pytest.raises(ConfigError, match=r"there are 3 images in .*, more than 1"):
        predict.predict(predict.PredictSettings.parse(list(asked[1:])))


def test_images_that_cannot_be_scored_are_named_and_do_not_stop_the_others(nights: Line, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    [first, *_] = [str(path) for path in sorted(Path(f"{nights.root}/images/cam-0").iterdir())]
    places = ("--bundle", f"{nights.root}/bundle")
    mixed = run_verb("predict", str(tmp_path / "nothing.png"), first, str(tmp_path / "notes.txt"), *places, check=False)
    assert mixed.returncode == 2
    assert "2 of the images that you named could not be scored" in mixed.stderr
    said = [line.split("  ")[0] for line in mixed.stdout.splitlines()]
    assert said[0] == said[2] == "not scored"
    assert said[1] in ("alarm", "no alarm")
    only_notes = run_verb("predict", str(tmp_path), first, *places, check=False)
    assert "no images under" in only_notes.stderr
    none = run_verb("predict", str(tmp_path / "notes.txt"), *places, check=False)
    assert none.returncode == 2
    assert "not one of these images could be scored" in none.stderr
