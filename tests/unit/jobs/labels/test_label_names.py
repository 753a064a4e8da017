"""Which scored image a label means."""

import duckdb
import pyarrow as pa
import pytest

from fcdd.errors import ConfigError
from jobs.labels import label_names

SCORED = [
    "s3://b/2026-11-24/cam-1/a.png",
    "s3://b/2026-11-24/cam-2/a.png",
    "s3://b/2026-11-24/cam-2/b%.png",
    "file:///data/c.png",
    "file:///data/c.png",  # of another night
]


def matched(*names: str) -> list[str]:
    connection = duckdb.connect()
    connection.register("scores", pa.table({"image_uri": SCORED}))
    uris = [name if "://" in name else f"file:///here/{name}" for name in names]
    labels = pa.table({"label": [1] * len(names), "image_uri": uris, "name": list(names)})
    found: list[str] = label_names.matched(connection, labels)["image_uri"].to_pylist()
    return found


def test_the_unique_end_of_a_location_names_an_image() -> None:
    found = matched("b%.png", "./cam-1/a.png", "s3://b/2026-11-24/cam-2/a.png", "c.png")
    assert found == [SCORED[2], SCORED[0], SCORED[1], SCORED[3]]


def test_what_is_the_end_of_no_location_stays_as_it_is() -> None:
    """A part of a file name, another scheme and a whole path are no ends."""
    names = ("%.png", "s3://other/a.png", "/data/c.png", "1/a.png", "none.png")
    assert matched(*names) == [name if "://" in name else f"file:///here/{name}" for name in names]


def test_the_end_of_several_locations_is_refused_with_two_of_them() -> None:
    with pytest.raises(
        ConfigError, match=r"2 scored images end in 'a\.png', among them .*cam-1/a.png and .*cam-2/a.png"
    ):
        matched("a.png")


def test_two_names_of_one_image_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two labels are of one image, s3://b/2026-11-24/cam-1/a\.png"):
        matched("cam-1/a.png", SCORED[0])
