"""What files are called that other tools are to recognise."""

import pytest

from jobs import export


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("alarms", "alarms.json"),
        ("alarms.json", "alarms.json"),
        ("alarms.coco", "alarms.coco"),
        ("s3://bucket/run.2026", "s3://bucket/run.2026.json"),
        ("alarms/", "alarms.json"),
        ("/dev/null", "/dev/null"),
    ],
)
def test_a_name_without_an_ending_gets_one(given: str, named: str) -> None:
    assert export._with_ending(given, ".json") == named
