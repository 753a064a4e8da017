"""Labels that are folders, named by what is in them."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from fcdd.errors import ConfigError
from jobs.measuring import labelled


def read(root: Path, *paths: str, scored: tuple[str, ...] = ()) -> list[tuple[str, int, str]]:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    connection = duckdb.connect()
    connection.register("scores", pa.table({"image_uri": pa.array(scored, pa.string())}))
    rows = labelled.read(connection, str(root)).to_pylist()
    return [(row["image_uri"].removeprefix(f"file://{root}/"), row["label"], row["defect_class"]) for row in rows]


def test_a_folder_says_whether_its_images_are_nominal_and_else_the_kind_of_their_defects(tmp_path: Path) -> None:
    found = read(tmp_path, "OK/a.png", "scratched/b.png", "scratched/deep/c.png", "defect/d.png", "bad image/e.png")
    assert found == [
        ("OK/a.png", 0, ""),
        ("defect/d.png", 1, ""),
        ("scratched/b.png", 1, "scratched"),
        ("scratched/deep/c.png", 1, "scratched"),
    ]


def test_the_images_may_be_copies_of_those_that_were_scored(tmp_path: Path) -> None:
    scored = ("s3://b/cam-1/a.png", "s3://b/cam-2/b.png")
    found = read(tmp_path, "good/a.png", "dents/cam-2/b.png", scored=scored)
    assert found == [("s3://b/cam-2/b.png", 1, "dents"), ("s3://b/cam-1/a.png", 0, "")]


WRONG = {
    "no nominal folder": (("train/good/a.png", "test/b.png"), "there are: test, train"),
    "images outside": (("good/a.png", "b.png"), "got 'b.png' beside"),
    "no images": ((), "no images under"),
}


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_say_nothing_are_one_sentence(tmp_path: Path, case: str) -> None:
    paths, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, *paths)
