import pytest

from fcdd import grouping
from fcdd.errors import ConfigError

ROOTS = ("s3://b/line", "s3://b/line/2")


@pytest.mark.parametrize(
    ("uri", "group"),
    [
        ("s3://b/line/cam-1/x.png", "cam-1"),
        ("s3://b/line/cam-1/deep/x.png", "cam-1"),
        ("s3://b/line/x.png", ""),
        ("s3://b/line/2/cam-7/x.png", "cam-7"),
        ("s3://b/lines/cam-1/x.png", ""),
        ("s3://elsewhere/cam-1/x.png", ""),
    ],
)
def test_the_first_folder_below_the_nearest_location_is_the_group(uri: str, group: str) -> None:
    assert grouping.group_of(uri, ROOTS, None) == group


def test_a_pattern_names_the_group_by_its_first_group_or_the_whole_match() -> None:
    uri = "s3://b/2026-11-24/x_cam07_3.png"
    assert grouping.group_of(uri, (), grouping.compile_pattern(r"_(cam\d+)_")) == "cam07"
    assert grouping.group_of(uri, (), grouping.compile_pattern(r"cam\d")) == "cam0"
    assert grouping.group_of(uri, (), grouping.compile_pattern(r"line-\d")) == ""


def test_patterns_that_cannot_name_anything_are_refused() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        grouping.compile_pattern("(")
    with pytest.raises(
        ConfigError, match="RE2, which has no look-around and no back-references: invalid perl operator"
    ):
        grouping.compile_pattern("cam(?=-1)")
    with pytest.raises(ConfigError, match="matches the empty name"):
        grouping.compile_pattern("x*")


def test_no_name_makes_a_pattern_take_for_ever() -> None:
    """It would take a backtracking engine until the end of the world."""
    pattern = grouping.compile_pattern(r"(a+)+b$")
    assert grouping.group_of("s3://b/" + "a" * 900 + ".png", (), pattern) == ""
