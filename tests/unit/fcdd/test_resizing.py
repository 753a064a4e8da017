"""Both resizers are the same filter, and a bundle says which one it was seen by."""

import io
import sys
from pathlib import Path

import cykooz_resizer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcdd import images, resizing
from fcdd.bundle import BundleSpec
from fcdd.cropping import Crop
from fcdd.errors import ConfigError, FCDDError
from fcdd.images import DecodedImage, View
from fcdd.io.isolation import IsolatedDecoder
from tests import detectors

WRONG = """
from cykooz_resizer_itself import *
import cykooz_resizer_itself as itself
class Resizer(itself.Resizer):
    def resize_pil(self, source, target, options):
        pass
"""


def noise(width: int, height: int, mode: str, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind)
    return sink.getvalue()


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


SIDE = st.integers(1, 300)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["L", "RGB"]))
def test_no_value_differs_by_more_than_a_grey_level(width: int, height: int, to: int, down: int, mode: str) -> None:
    picture = noise(width, height, mode)
    fast, exact = (resizing.resized(picture, (to, down), by) for by in ("cykooz", "pillow"))
    assert (fast.size, fast.mode) == (exact.size, exact.mode) == ((to, down), mode)
    assert np.abs(values(fast) - values(exact)).max() <= 1


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from(["L", "RGB"]))
def test_nor_of_a_part_that_begins_within_a_pixel(shares: list[float], mode: str) -> None:
    picture = noise(97, 61, mode)
    left, top = shares[0] * 90, shares[1] * 55
    part = (left, top, left + 0.1 + shares[2] * (96.9 - left), top + 0.1 + shares[3] * (60.9 - top))
    fast, exact = (resizing.resized(picture, (32, 48), by, part) for by in ("cykooz", "pillow"))
    assert np.abs(values(fast) - values(exact)).max() <= 1


@pytest.mark.parametrize("size", [(60_000, 10), (3, 50_000), (9000, 7000)])
def test_nor_where_very_many_pixels_become_few(size: tuple[int, int]) -> None:
    picture = noise(*size, "RGB")
    fast, exact = (resizing.resized(picture, (16, 16), by) for by in ("cykooz", "pillow"))
    assert np.abs(values(fast) - values(exact)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_do_not_depend_on_the_instructions_that_a_processor_has(mode: str) -> None:
    picture, library = noise(500, 375, mode), cykooz_resizer
    bilinear = library.ResizeAlg.convolution(library.FilterType.bilinear)
    found = {}
    usual = library.Resizer().cpu_extensions
    for extension in {library.CpuExtensions.none, usual}:
        resizer, small = library.Resizer(), Image.new(mode, (224, 224))
        resizer.cpu_extensions = extension
        resizer.resize_pil(picture, small, library.ResizeOptions(resize_alg=bilinear, use_alpha=False))
        found[extension] = small.tobytes()
    assert len(set(found.values())) == 1


@pytest.mark.parametrize("crop", [None, "10.5%,20%,60%,70%"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_isolated_decoder_resizes_by_the_same(kind: str, crop: str | None) -> None:
    seen = [View((40, 56), 3, None, crop and Crop.parse(crop), by) for by in ("pillow", "cykooz")]
    data, found = encoded(noise(640, 480, "RGB").resize((2000, 1500)), kind), []
    for view in seen:
        with IsolatedDecoder(view) as decoder:
            [image] = decoder.decode_each([data])
        assert isinstance(image, DecodedImage)
        here = images.decode(data, view)
        np.testing.assert_array_equal(image.pixels, here.pixels)
        assert image.hash == here.hash
        found.append(image.pixels.astype(np.int16))
    assert 0 < np.abs(found[0] - found[1]).max() <= 1


def test_bundles_of_before_keep_their_pixels_and_their_digest() -> None:
    older = detectors.make().spec
    assert older.view.resizer == "pillow"
    assert "resizer" not in older.model_dump(mode="json")
    newer = detectors.make(resizer="cykooz").spec
    assert newer.view.resizer == "cykooz"
    assert newer.digest != older.digest
    assert BundleSpec.model_validate_json(newer.model_dump_json()) == newer


def test_a_bundle_whose_resizer_is_not_installed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resizing.fastest() == "cykooz"
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    assert resizing.fastest() == "pillow"
    with pytest.raises(ConfigError, match=r"pip install cykooz-resizer, or, .*train the bundle with --resizer pillow"):
        detectors.make(resizer="cykooz").score([encoded(noise(50, 50, "RGB"))])
    detectors.make().score([encoded(noise(50, 50, "RGB"))])


def test_a_resizer_that_does_not_fit_pillow_scores_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cykooz_resizer_itself").symlink_to(Path(cykooz_resizer.__file__).parent)
    (tmp_path / "cykooz_resizer.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        IsolatedDecoder(View((8, 8), 3, resizer="cykooz")) as decoder,
        pytest.raises(FCDDError, match="the decoder process does not start"),
    ):
        list(decoder.decode_each([encoded(noise(50, 50, "RGB"))]))
