"""`fcdd evaluate`: labels and masks as people have them, the figures, and the page."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from sklearn.metrics import average_precision_score, roc_auc_score

from jobs import results
from jobs.measuring import evaluation, evaluation_page
from jobs.sources.locations import Locations
from tests.line import Line, picture, run_verb

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NIGHT = ("--date", "2026-11-02")
DEFECTS = [f"cam-0/{index:03d}" for index in range(0, 6, 2)]


def truth(nights: Line) -> dict[str, int]:
    """Labels of the second night, by the ends of locations; copies of defects are left out."""
    uris = [image.image_uri for image in results.open(nights.results, date="2026-11-02").images()]
    names = sorted(uri.split("/images/")[1] for uri in uris if "copy" not in uri)
    return {name: int(name[6:9] < "006" and name.startswith("cam-0")) for name in names}


def mask(seed: int) -> Image.Image:
    """Where the defect of a picture is."""
    clean, defect = (
        np.asarray(Image.open(io.BytesIO(picture(seed, defect=defect)))).astype(int) for defect in (False, True)
    )
    return Image.fromarray(((np.abs(clean - defect).max(2) > 30) * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def labels(nights: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with words, ends of locations and kinds of defects, and a folder of masks beside it."""
    folder = tmp_path_factory.mktemp("labels")
    rows = [f"{name},{'bad' if label else 'good'},{'block' if label else ''}" for name, label in truth(nights).items()]
    (folder / "labels.csv").write_text("\n".join(["image_uri,label,defect_class", *rows]))
    for name, label in truth(nights).items():
        if label:
            (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
            mask(1000 + int(name[6:9])).save(folder / "masks" / f"{name[:-4]}_mask.png")
    return folder


@pytest.fixture(scope="module")
def mistaken(nights: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that call one defect good, and one nominal image bad."""
    path, wrong = tmp_path_factory.mktemp("mistaken") / "labels.csv", {DEFECTS[0] + ".png": 0, "cam-1/059.png": 1}
    rows = [f"{name},{wrong.get(name, label)}" for name, label in truth(nights).items()]
    assert wrong.keys() <= truth(nights).keys()
    path.write_text("\n".join(["image_uri,label", *rows]))
    return path


def evaluated(nights: Line, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nights.around("evaluate", *NIGHT, "--format", "json", *options).stdout)
    return found


def test_labels_of_a_few_images_are_said_to_be_chosen(nights: Line, labels: Path, tmp_path: Path) -> None:
    header, *rows = (labels / "labels.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join([header, *rows[:20]]))
    common = ("evaluate", "--results", nights.results, *NIGHT, "--labels")
    scored = nights.records()[1].num_scored
    few = run_verb(*common, str(tmp_path / "few.csv")).stdout
    assert f"20 of the {scored} scored images are labelled, and all rates are of those" in few
    assert "scored images are labelled" not in run_verb(*common, str(labels / "labels.csv")).stdout
    every_night = ("evaluate", "--results", nights.results, "--labels", str(labels / "labels.csv"))
    assert "scored images are labelled" not in run_verb(*every_night).stdout  # an image of two nights is one


def test_figures_are_those_of_scikit_learn_and_counted_by_group_and_kind(nights: Line, labels: Path) -> None:
    found = evaluated(nights, "--labels", str(labels / "labels.csv"), "--masks", str(labels / "masks"))
    known = truth(nights)
    images = {
        image.image_uri.split("/images/")[1]: image
        for image in results.open(nights.results, date="2026-11-02").images()
    }
    scores = {column: [getattr(images[name], column) for name in known] for column in ("anomaly_score", "score_mean")}
    for column, values in scores.items():
        measured = found["metrics"][column]
        assert measured["auroc"]["value"] == pytest.approx(roc_auc_score(list(known.values()), values))
        precision = average_precision_score(list(known.values()), values)
        assert measured["average_precision"]["value"] == pytest.approx(precision)
    assert found["score"] == "maximum"
    alarms = {name for name in known if images[name].is_anomalous}
    defects = {name for name, label in known.items() if label}
    [kind] = found["kinds"]
    assert (kind["name"], kind["num_images"], kind["num_detected"]) == ("block", len(defects), len(defects & alarms))
    for group in found["groups"]:
        here = {name for name in known if name.startswith(group["name"])}
        assert group["num_nominal"] + group["num_anomalous"] == len(here)
        assert group["num_false_alarms"] == len(alarms & here - defects)
    assert [group["auroc"] is None for group in found["groups"]] == [False, True]  # cam-1 has no defects
    assert (found["pixels"]["num_images"], found["pixels"]["num_regions"]) == (len(known), len(defects))
    assert found["pixels"]["auroc"]["value"] > 0.5


def test_labels_may_be_folders_of_copies(nights: Line, labels: Path, tmp_path: Path) -> None:
    for name, label in truth(nights).items():
        copy = tmp_path / ("red block" if label else "good") / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{nights.root}/images/{name}", copy)
    by_folder = evaluated(nights, "--labels", str(tmp_path))
    by_file = evaluated(nights, "--labels", str(labels / "labels.csv"))
    assert by_folder["kinds"].pop()["name"] == "red block"
    assert by_file["kinds"].pop()["name"] == "block"
    assert by_folder == by_file


def test_what_is_printed_says_what_was_found_and_names_the_page(nights: Line, labels: Path, tmp_path: Path) -> None:
    options = ("--labels", str(labels / "labels.csv"), "--masks", str(labels / "masks"))
    said = nights.around("evaluate", *NIGHT, *options, "--output", str(tmp_path / "page.html")).stdout
    for part in ("* the score of the bundle", "better  ", "groups  ", "defects  ", "  block ", "AUPRO", "page.html"):
        assert part in said
    assert (tmp_path / "page.html").exists()


def test_masks_count_for_anomalous_images_only_and_those_without_are_left_out(
    nights: Line, labels: Path, tmp_path: Path
) -> None:
    shutil.copytree(labels / "masks", tmp_path / "masks")
    (tmp_path / "masks" / f"{DEFECTS[0]}_mask.png").unlink()
    found = evaluated(nights, "--labels", str(labels / "labels.csv"), "--masks", str(tmp_path / "masks"))
    assert found["num_without_mask"] == 1
    assert found["pixels"]["num_images"] == len(truth(nights)) - 1


WRONG_MASKS = {
    "another size": (Image.new("L", (5, 4), 255), "is 5 x 4 pixels, its image 56 x 40"),
    "marks nothing": (Image.new("L", (56, 40), 1), "marks nothing: 255 is anomalous, 0 nominal, and the largest is 1"),
}


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_a_mask_that_cannot_be_one_is_a_sentence(nights: Line, labels: Path, tmp_path: Path, case: str) -> None:
    wrong, message = WRONG_MASKS[case]
    (tmp_path / "cam-0").mkdir()
    wrong.save(tmp_path / f"{DEFECTS[0]}.png")
    options = ("--labels", str(labels / "labels.csv"), "--masks", str(tmp_path))
    done = nights.around("evaluate", *NIGHT, *options, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_page_that_is_none_is_refused_before_anything_is_read(nights: Line) -> None:
    done = nights.around("evaluate", "--labels", "none.csv", "--output", "json", check=False)
    assert done.returncode == 2
    assert "--output: expected a file or object that ends in .html" in done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium")
def test_the_page_shows_curves_with_axes_and_needs_no_script_and_no_network(
    browser: Browser, nights: Line, labels: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    nights.around("evaluate", *NIGHT, "--labels", str(labels / "labels.csv"), "--output", str(path))
    page = browser.new_context(java_script_enabled=False).new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    for which in ("ROC", "precision and recall"):
        curves = page.locator(f"svg[aria-label^='{which}']")
        assert curves.locator("polyline").count() == 3
        assert curves.locator(".axis text").all_text_contents() == ["0", "0.2", "0.4", "0.6", "0.8", "1"] * 2
    page.locator(".card summary").first.click()
    assert page.get_by_text("0.5 is guessing, 1 is perfect").is_visible()
    assert page.locator("#kinds ~ table td").first.inner_text() == "block"
    assert complaints == []
    assert set(asked) == {path.as_uri()}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium")
def test_what_was_missed_and_what_was_a_false_alarm_is_shown_with_its_heatmap(
    browser: Browser, nights: Line, mistaken: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    nights.around("evaluate", *NIGHT, "--labels", str(mistaken), "--output", str(path))
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    shown = page.locator("#wrong ~ .grid figure")
    assert [text.rpartition("/")[2].strip() for text in shown.all_inner_texts()] == ["059.png", "000.png"]
    assert shown.locator("image:not(.over)").count() == 2
    heat = shown.last.locator("image.over")
    expect(heat).to_have_css("opacity", "1")
    page.get_by_label("heatmaps", exact=True).uncheck()
    expect(heat).to_have_css("opacity", "0")


def test_images_that_may_not_be_opened_leave_their_place_empty(
    nights: Line, mistaken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of both nights, whose runs are different ones."""
    run = results.open(nights.results)
    assert len(run.records) > 1
    found, joined = evaluation.evaluate(run.location, run.records, labels=str(mistaken), masks=None)
    page = evaluation_page.build(found, joined, run, Locations(())).decode()
    wrong = ((joined.labels == 1) != joined.alarms).sum()
    assert page.count("no picture:") == wrong > 0
    assert "lies outside the locations of its run" in caplog.text
    assert "--locations of report, review and evaluate" in caplog.text
