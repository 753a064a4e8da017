"""Which of the locations that rows name may be opened."""

from typing import Any

import pytest

from fcdd.errors import ImageError
from jobs.sources.locations import Locations
from schemas import RunRecord


def record(*images: str, **settings: Any) -> RunRecord:
    return RunRecord.model_construct(images=images, settings={"images": list(images), **settings})


LISTED = record("s3://b/lists/night.csv", images=[], image_list="s3://b/lists/night.csv")
CASES = {
    "below the run's location": ("s3://r", record("s3://b/images"), (), "s3://b/images/a/x.png", True),
    "whatever its name is": ("s3://r", record("s3://b/images"), (), "s3://b/images/../x.png", True),
    "beside it": ("s3://r", record("s3://b/images"), (), "s3://b/images-2/x.png", False),
    "in another bucket": ("s3://r", record("s3://b/images"), (), "s3://private/x.png", False),
    "a local file of results in a bucket": ("s3://r", record("s3://b/images"), (), "file:///etc/x.png", False),
    "even if the record says so": ("s3://r", record("file:///etc"), (), "file:///etc/x.png", False),
    "unless the user does": ("s3://r", record("file:///data"), ("/data",), "file:///data/x.png", True),
    "local images of local results": ("/results", record("file:///data"), (), "file:///data/x.png", True),
    "dots lead elsewhere on a disk": ("/results", record("file:///data"), (), "file:///data/../etc/x.png", False),
    "beside the list that named it": ("s3://r", LISTED, (), "s3://b/lists/x.png", True),
    "elsewhere than the list": ("s3://r", LISTED, (), "s3://private/x.png", False),
    "what a list's names are below": (
        "s3://r",
        record("s3://b/night.csv", images=["s3://c/images"], image_list="s3://b/night.csv"),
        (),
        "s3://c/images/x.png",
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_images_are_opened_below_the_locations_of_their_run_and_of_the_user(case: str) -> None:
    results, run, given, uri, allowed = CASES[case]
    locations = Locations.of_records(results, [run], given)
    assert locations.contains(uri) == allowed
    if not allowed:
        with pytest.raises(ImageError, match="forbidden: it lies outside the locations of its run"):
            locations.check(uri)
