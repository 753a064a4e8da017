"""Images and bundles that were moved since they were scored."""

from pathlib import Path

import pytest

from fcdd.errors import ConfigError, ImageError
from fcdd.io import storage
from jobs.sources.locations import Locations
from jobs.sources.moves import Moves


def test_the_most_precise_old_location_counts() -> None:
    moves = Moves.parse(["/pictures=s3://b/all", "/pictures/night/=/disk/date=1", "s3://old=s3://new/x"])
    assert moves("file:///pictures/a/1.png") == "s3://b/all/a/1.png"
    assert moves("file:///pictures/night/1.png") == "file:///disk/date=1/1.png"
    assert moves("s3://old/bundle") == "s3://new/x/bundle"
    assert moves("file:///pictures-2/1.png") == "file:///pictures-2/1.png"


def test_folders_may_look_like_partitions() -> None:
    moves = Moves.parse(["s3://b/date=2026-01-01=s3://c/date=1", "/a=b/c=/d", "e=f"])
    assert moves("s3://b/date=2026-01-01/x.png") == "s3://c/date=1/x.png"
    assert moves("file:///a=b/c/x.png") == "file:///d/x.png"


@pytest.mark.parametrize("key", ["../private/p.png", "a/../../p.png", "./p.png", "a//p.png"])
def test_a_key_of_a_store_does_not_lead_out_of_a_folder(key: str, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private/p.png").write_bytes(b"secret")
    info = storage.ObjectInfo(
        f"s3://b/images/{key}", "", 6, storage.stat(f"file://{tmp_path}/private/p.png").last_modified
    )
    locations = Locations(("s3://b/images",), Moves.parse([f"s3://b/images={tmp_path}/archive"]))
    with pytest.raises(ImageError, match=r"forbidden: .* is no name of a file below"):
        locations.find(info)
    with pytest.raises(ImageError, match="forbidden: it lies outside"):
        locations.find(info._replace(uri="s3://b/others/p.png"))


@pytest.mark.parametrize("text", ["/pictures", "=/pictures", "/pictures=", "/a=/b=/c"])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected OLD=NEW, two locations, got"):
        Moves.parse([text])


def test_an_old_location_is_given_once() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        Moves.parse(["/a=/b", "/a/=/c"])


def test_another_file_of_that_name_is_not_the_image_that_was_scored(tmp_path: Path) -> None:
    for place, data in (("old", b"12345"), ("new", b"12345"), ("other", b"123456")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.png").write_bytes(data)
    scored = storage.stat_checked(f"file://{tmp_path}/old/a.png")
    found = Moves.parse([f"{tmp_path}/old={tmp_path}/new"]).image(scored)
    assert storage.read_checked(found) == b"12345"
    assert found.uri == f"file://{tmp_path}/new/a.png"
    with pytest.raises(ImageError, match=r"changed: .*other/a.png \(6 bytes\) is not what was scored \(5 bytes\)"):
        Moves.parse([f"{tmp_path}/old={tmp_path}/other"]).image(scored)
    with pytest.raises(ImageError, match="vanished"):
        Moves.parse([f"{tmp_path}/old={tmp_path}/nowhere"]).image(scored)
