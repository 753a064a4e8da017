"""From listed objects to pixels, as training and scoring share it."""

import base64
import functools
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcdd.errors import ConfigError, ImageError
from fcdd.images import DecodedImage, View
from fcdd.io import isolation, storage
from fcdd.io.isolation import DecoderPool, IsolatedDecoder
from fcdd.io.storage import ObjectInfo
from fcdd.paper.datasets import LabelledImage
from fcdd.supervision import HeldOut
from jobs.sources import fetching, listing
from jobs.sources.locations import Locations
from jobs.training import data_set
from jobs.viewing import rendering, shown_images
from schemas import IDENTITY
from tests.saboteur import SABOTEUR


@pytest.fixture
def listed(tmp_path: Path, nominal_cells: list[LabelledImage]) -> list[ObjectInfo]:
    for cell in nominal_cells[:12]:
        storage.write(f"{tmp_path}/{cell.path.name}", cell.path.read_bytes())
    return listing.list_images(f"file://{tmp_path}")


def test_an_image_that_changed_or_vanished_since_the_listing_has_no_pixels(listed: list[ObjectInfo]) -> None:
    """The bytes of another image must never be scored under the listed one's name."""
    storage.write(listed[1].uri, storage.read(listed[2].uri))
    Path(listed[3].uri.removeprefix("file://")).unlink()
    results = fetching.fetch_all(listed[:4], View((32, 32), 3))
    assert isinstance(results[0], DecodedImage)
    failures = [(r.stage, r.error.reason) for r in results if isinstance(r, fetching.Failure)]
    assert failures == [("fetch", "changed"), ("fetch", "vanished")]


def test_a_set_says_which_images_it_holds_and_refuses_a_wrong_prefix(listed: list[ObjectInfo]) -> None:
    storage.write(listed[4].uri, b"broken")
    again = listing.list_images(listed[0].uri.rsplit("/", 1)[0])
    loaded = fetching.load_set(again, View((32, 32), 3))
    assert loaded.positions.tolist() == [i for i in range(12) if i != 4]
    for info in listed[:3]:
        storage.write(info.uri, b"broken")
    with pytest.raises(ConfigError, match="4 of 12 images cannot be read"):
        fetching.load_set(listing.list_images(listed[0].uri.rsplit("/", 1)[0]), View((32, 32), 3))


def test_loaded_images_name_what_is_left_out_and_raise_only_when_asked_for_it(listed: list[ObjectInfo]) -> None:
    storage.write(listed[4].uri, b"broken")
    again = listing.list_images(listed[0].uri.rsplit("/", 1)[0])
    copy = fetching.fetch_and_decode(again[7], View((32, 32), 3))
    assert isinstance(copy, DecodedImage)
    held_out = frozenset([data_set.pixel_digest(copy.pixels)])
    loaded = data_set.LoadedImages(again, View((32, 32), 3), held_out)
    assert len(loaded) == 12
    assert [again[4].uri in text for text in loaded.failures] == [True]
    for index in range(12):
        if index in (4, 7):
            with pytest.raises(ImageError, match="not_an_image" if index == 4 else "the same picture is held out"):
                loaded[index]
        else:
            expected = fetching.fetch_and_decode(again[index], View((32, 32), 3))
            assert isinstance(expected, DecodedImage)
            assert (loaded[index] == expected.pixels).all()
    assert loaded.sample(100).shape == (10, 32, 32, 3)
    assert (loaded.sample(100)[4] == loaded[5]).all()
    assert np.shares_memory(loaded.sample(100), loaded[5])  # one unreadable image does not copy all others


def test_stored_images_are_read_when_asked_for(listed: list[ObjectInfo]) -> None:
    stored = data_set.StoredImages(listed, View((32, 48), 1))
    assert stored[3].shape == (32, 48, 1)
    assert stored.sample(5).shape == (5, 32, 48, 1)
    Path(listed[3].uri.removeprefix("file://")).unlink()
    with pytest.raises(ImageError, match=f"vanished: deleted since it was listed .{listed[3].uri}"):
        stored[3]


def test_stored_images_leave_out_what_is_held_out_as_loaded_ones_do(listed: list[ObjectInfo]) -> None:
    again = [*listed, listed[2]._replace(uri=f"{listed[2].uri.removesuffix('.png')}-copy.png")]
    storage.write(again[-1].uri, storage.read(listed[2].uri))
    again[-1] = storage.stat(again[-1].uri)
    picture = fetching.fetch_and_decode(listed[2], View((32, 32), 3))
    assert isinstance(picture, DecodedImage)
    held_out = frozenset([data_set.pixel_digest(picture.pixels)])
    stored = data_set.StoredImages(again, View((32, 32), 3), held_out)
    loaded = data_set.LoadedImages(again, View((32, 32), 3), held_out)
    for images in (stored, stored, loaded):  # a second time too: it is remembered
        for index in (2, 12):
            with pytest.raises(HeldOut, match=f"the same picture is held out .{again[index].uri}"):
                images[index]
        assert images.sample(100).shape == (11, 32, 32, 3)
    with pytest.raises(ConfigError, match="every training image is also held out under another name"):
        data_set.StoredImages(again[2:3], View((32, 32), 3), held_out).sample(5)


@pytest.mark.parametrize(("data", "reason"), [(b"CRASH", "decoder_crash"), (b"HANG", "timeout")])
def test_a_picture_that_the_decoder_does_not_survive_costs_its_place_and_not_the_job(
    data: bytes, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a report, a review, and whatever draws."""
    pool = DecoderPool()
    pool._new = functools.partial(IsolatedDecoder, View(), timeout_s=1.0, command=("-c", SABOTEUR))
    monkeypatch.setattr(isolation, "shared_pool", lambda *_: pool)
    storage.write(f"{tmp_path}/a.png", data)
    row = storage.stat_checked(f"file://{tmp_path}/a.png")
    named = dict(zip(IDENTITY, row, strict=True))
    locations = Locations((f"file://{tmp_path}",))
    thumbnail = shown_images._thumbnail(locations, None, named)
    assert isinstance(thumbnail, ImageError)
    assert thumbnail.reason == reason
    assert rendering.original_or_warn(named, locations, None) is None
    assert reason in caplog.text


def test_a_report_shows_the_hottest_region_of_a_large_image_as_it_is(tmp_path: Path) -> None:
    pixels = np.full((800, 1000, 3), 90, np.uint8)
    pixels[300:340, 600:660] = np.random.default_rng(0).integers(0, 256, (40, 60, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    region = {"x0": 600, "y0": 300, "x1": 660, "y1": 340}
    named = dict(zip(IDENTITY, storage.stat_checked(f"file://{tmp_path}/a.png"), strict=True))
    row = named | {"width": 1000, "height": 800, "regions": [region]}
    locations = Locations((f"file://{tmp_path}",))
    shown = shown_images._thumbnail(locations, None, row)
    assert not isinstance(shown, ImageError)
    overview, detail = (Image.open(io.BytesIO(base64.b64decode(each.partition(",")[2]))) for each in shown)
    assert overview.size == (320, 256)
    assert detail.size == (60 + 2 * 32, 40 + 2 * 32)
    off = np.abs(np.asarray(detail.convert("RGB"), np.int16) - pixels[268:372, 568:692])
    assert off.mean() < 15  # WebP
    small = row | {"width": 500, "height": 400}
    assert shown_images._thumbnail(locations, None, small)[1] == ""
    assert shown_images._thumbnail(locations, None, row | {"regions": []})[1] == ""


def test_images_of_twelve_bits_in_sixteen_are_said_in_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index, most in enumerate((4095, 4095, 65535)):
        levels = np.linspace(0, most, 40 * 40).reshape(40, 40).astype(np.uint16)
        Image.fromarray(levels).save(tmp_path / f"{index}.png")
    listed = listing.list_images(f"file://{tmp_path}")
    fetching.load_set(listed, View((32, 32), 1))
    assert "2 of 3 images use less than an eighth of the full scale of 65535 that white is" in caplog.text
    caplog.clear()
    data_set.LoadedImages(listed, View((32, 32), 1), frozenset())
    assert "2 of 3 images use less than an eighth" in caplog.text
    caplog.clear()
    data_set.LoadedImages(listed, View((32, 32), 1, 4095.0), frozenset())
    assert "1 of 3 images have values beyond the full scale of 4095" in caplog.text
    assert "an eighth" not in caplog.text
