"""What of an image a network sees, and how: crop, ignored parts and depth belong to the bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcdd.calibration import STATISTICS
from fcdd.detector import Detector
from jobs import results
from jobs.sources.fetching import ImageSet
from jobs.training import ignoring
from jobs.training.settings import TrainSettings
from tests.line import run_verb

WIDTH, HEIGHT = 200, 160
CROP, LEFT, TOP, RIGHT, BOTTOM = "40,16,144,128", 40, 16, 184, 144
# Something that changes from image to image and is no defect: around the part, and on it.
LAMP = np.s_[100:132, 48:80]


def product(seed: int, *, defect: tuple[int, int] | None = None) -> np.ndarray:
    """A part on a conveyor by a camera of 12 bits; with a defect at (row, column), if one is given."""
    random, still = np.random.default_rng(seed), np.random.default_rng(0)
    coarse = still.integers(1200, 2600, (HEIGHT // 8, WIDTH // 8)).repeat(8, 0).repeat(8, 1)
    picture = coarse + random.normal(0, 30, (HEIGHT, WIDTH))
    belt = np.ones((HEIGHT, WIDTH), np.bool_)
    belt[TOP:BOTTOM, LEFT:RIGHT] = False
    picture[belt] = random.integers(0, 4096, (HEIGHT // 4, WIDTH // 4)).repeat(4, 0).repeat(4, 1)[belt]
    picture[LAMP] = random.integers(0, 4096, (8, 8)).repeat(4, 0).repeat(4, 1)
    if defect:
        picture[defect[0] : defect[0] + 14, defect[1] : defect[1] + 14] = 4000
    return picture.clip(0, 4095).astype(np.uint16)


def save(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("geometry")
    save(root / "nominal", {f"{seed:03d}": product(seed) for seed in range(1, 49)})
    night = {f"good-{seed}": product(seed) for seed in range(100, 110)}
    night |= {f"bad-{seed}": product(seed, defect=(40, 120)) for seed in range(200, 204)}
    save(root / "night", night | {"small": product(300)[:100, :100]})
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[LAMP] = 255
    Image.fromarray(mask).save(root / "lamp.png")
    Image.fromarray(mask[:-8]).save(root / "other.png")
    Image.fromarray(np.full_like(mask, 255)).save(root / "everything.png")
    rows, columns = LAMP
    left, top, right, bottom = columns.start, rows.start, columns.stop - 1, rows.stop - 1
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    for name, shape in {
        "polygon": {"points": corners, "shape_type": "polygon", "label": "lamp"},
        "rectangle": {"points": [corners[2], corners[0]], "shape_type": "rectangle"},
        "rectangle-of-four": {"points": corners, "shape_type": "rectangle"},
        "line": {"points": corners[:2], "shape_type": "polygon"},
        "nowhere": {"points": [[float("nan"), 1], *corners], "shape_type": "polygon"},
        "circle": {"points": [[0, 0], [5, 5]], "shape_type": "circle"},
    }.items():
        file = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / f"{name}.json").write_text(json.dumps(file))
    huge = json.loads((root / "polygon.json").read_text()) | {"imageHeight": 100_000, "imageWidth": 100_000}
    (root / "huge.json").write_text(json.dumps(huge))
    return root


def train(place: Path, bundle: str, *options: str, check: bool = True) -> str:
    given = ("--images", str(place / "nominal"), "--bundle", str(place / bundle), "--alpha", "0.05")
    done = run_verb("train", *given, "--batch-size", "16", "--epochs", "1", *options, check=check)
    return done.stdout + done.stderr


def test_what_is_cut_off_or_ignored_takes_no_part_and_the_rest_lies_where_it_is(place: Path) -> None:
    said = train(place, "bundle", "--crop", CROP, "--ignore", str(place / "lamp.png"))
    assert "--full-scale 4095 is white" in said
    assert "nearly black" not in said
    assert "of the map do not count" in said
    detector = Detector.load(str(place / "bundle"))
    spec = detector.spec
    assert (spec.crop, spec.full_scale) == (CROP, 4095.0)
    ignored = spec.ignored_cells
    assert ignored is not None
    assert 0 < ignored.mean() < 0.2
    assert not np.array(spec.calibration.pooled.map_mean)[ignored].any()

    places = ("--images", str(place / "night"), "--results", str(place / "results"), "--collection", "parts")
    run_verb("score", *places, "--bundle", str(place / "bundle"), "--date", "2026-11-02")
    found = results.open(str(place / "results"), date="2026-11-02")
    rows = {row["image_uri"].rpartition("/")[2]: row for row in found.rows("FROM scores")}
    assert len(rows) == 14
    [small] = found.rows("FROM quarantine")
    assert "the crop 40,16,144,128 does not lie in an image of 100x100 pixels" in small["detail"]
    assert sum(row["is_anomalous"] for name, row in rows.items() if name.startswith("good")) <= 3
    for name, row in rows.items():
        if name.startswith("bad"):
            assert row["is_anomalous"]
            box = row["regions"][0]
            assert box["x0"] < 127 < box["x1"]
            assert box["y0"] < 47 < box["y1"]
            assert LEFT <= box["x0"] < box["x1"] <= RIGHT
            assert (row["width"], row["height"]) == (WIDTH, HEIGHT)
    [record] = found.records
    assert record.full_scale == 4095.0

    one = detector.predict(str(place / "night" / "bad-200.png"))
    assert one.anomaly_score == pytest.approx(rows["bad-200.png"]["anomaly_score"], rel=1e-3)
    assert not one.map[ignored].any()
    heatmap = detector.heatmap(one.map, (HEIGHT, WIDTH))
    rows_hot, columns_hot = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    assert rows_hot * HEIGHT / heatmap.shape[0] == pytest.approx(47, abs=16)
    assert columns_hot * WIDTH / heatmap.shape[1] == pytest.approx(127, abs=16)
    assert not heatmap[:, : int(LEFT * heatmap.shape[1] / WIDTH)].any()

    pictures = place / "pictures"
    named = ("--results", str(place / "results"), "--collection", "parts")
    run_verb("heatmap", *named, "--top", "1", "--output", str(pictures), "--no-caption")
    [drawn] = pictures.glob("*.png")
    with Image.open(drawn) as shown:
        original = np.asarray(shown.convert("L"))[:, :WIDTH]
    assert original[TOP:BOTTOM, LEFT:RIGHT].mean() > 80  # a picture that can be looked at, and not a black one
    run_verb("report", *named, "--output", str(place / "report.html"))


@pytest.mark.parametrize("drawn", ["polygon.json", "rectangle.json", "rectangle-of-four.json"])
def test_shapes_drawn_with_labelme_ignore_the_cells_that_a_mask_ignores(place: Path, drawn: str) -> None:
    known = np.array([[{"width": WIDTH, "height": HEIGHT}.get(name, 0) for name in STATISTICS]], np.float32)
    images = ImageSet(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8), np.zeros(1, np.int64), known, ["PNG"])
    settings = TrainSettings(images="unused", bundle="unused", image_size=f"{HEIGHT}x{WIDTH}", network="cnn224")
    found = [
        ignoring.ignored_cells(settings.model_copy(update={"ignore": str(place / name)}), ignoring.sizes_of(images))
        for name in ("lamp.png", drawn)
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--crop", "100,100,200,200"), "the crop 100,100,200,200 does not lie in an image of 200x160 pixels"),
        (("--crop", "1,2,3"), "expected X,Y,WIDTH,HEIGHT"),
        (("--ignore", "nothing.png"), "does not exist"),
        (("--ignore", "other.png"), "has 200x152 pixels, and images have 200x160"),
        (("--ignore", "everything.png"), "leaves nothing to look at"),
        (("--ignore", "line.json"), "a polygon has at least three points"),
        (("--ignore", "nowhere.json"), "shapes.0.points.0.0: Input should be a finite number"),
        (("--ignore", "huge.json"), "has 100000x100000 pixels, and images have 200x160"),
        (("--ignore", "circle.json"), "no JSON of labelme with polygons or rectangles: shapes.0.shape_type"),
        (("--full-scale", "0"), "greater than 0"),
    ],
)
def test_a_geometry_that_fits_no_image_is_refused_before_the_training(
    place: Path, options: tuple[str, str], why: str
) -> None:
    value = str(place / options[1]) if options[0] == "--ignore" else options[1]
    said = train(place, "refused", options[0], value, check=False)
    assert why in said
    assert "epoch 1" not in said
    assert not (place / "refused" / "bundle.json").exists()
