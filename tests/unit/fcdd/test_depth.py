import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from fcdd import depth, images
from fcdd.errors import ImageError
from fcdd.images import View
from fcdd.io.isolation import DecoderPool

SIDE = 64
TWELVE = np.linspace(0, 4095, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
Array = npt.NDArray[np.uint16] | npt.NDArray[np.float32] | npt.NDArray[np.uint8]


def png(values: Array) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, "PNG")
    return sink.getvalue()


def tiff(values: Array, photometric: str = "minisblack") -> bytes:
    sink = io.BytesIO()
    tifffile.imwrite(sink, values, photometric=photometric)
    return sink.getvalue()


def seen(data: bytes, full_scale: float | None, channels: int = 1) -> images.DecodedImage:
    return DecoderPool(View((SIDE, SIDE), channels, full_scale)).decode(data)


@pytest.mark.parametrize("write", [png, tiff])
def test_twelve_bits_fill_the_range_when_the_full_scale_is_said(write: Callable[[Array], bytes]) -> None:
    dark, found = seen(write(TWELVE), None), seen(write(TWELVE), 4095.0)
    assert dark.pixels.max() == 16
    assert (dark.peak, dark.is_faint) == (4095, True)
    assert (found.peak, found.is_faint) == (4095, False)
    expected = np.rint(TWELVE * (255 / 4095))
    assert np.abs(found.pixels[:, :, 0] - expected).max() <= 1
    assert len(np.unique(found.pixels)) == 256


def test_colours_white_is_zero_and_floats_have_the_same_scale() -> None:
    expected = seen(tiff(TWELVE), 4095.0).pixels
    colours = seen(tiff(np.repeat(TWELVE[:, :, None], 3, 2), "rgb"), 4095.0, 3).pixels
    np.testing.assert_array_equal(colours, expected.repeat(3, 2))
    np.testing.assert_array_equal(seen(tiff(TWELVE, "miniswhite"), 4095.0).pixels, 255 - expected)
    np.testing.assert_array_equal(seen(tiff((TWELVE / 4095).astype(np.float32)), 1.0).pixels, expected)


def test_what_is_beyond_the_full_scale_is_white_and_eight_bits_are_as_they_are() -> None:
    found = seen(png(TWELVE), 1023.0)
    assert (found.pixels[SIDE // 2 :] == 255).all()
    assert found.peak == 4095
    shallow = (TWELVE // 16).astype(np.uint8)
    np.testing.assert_array_equal(seen(png(shallow), 4095.0).pixels[:, :, 0], shallow)
    assert seen(png(shallow), 4095.0).peak == 0


@pytest.mark.parametrize(
    ("data", "full_scale", "why"),
    [
        (tiff((TWELVE / 4095).astype(np.float32)), None, "train with --full-scale, such as 1.0"),
        (tiff(np.where(TWELVE > 4000, np.nan, TWELVE).astype(np.float32)), 4095.0, "NaN or infinity"),
        (tiff((TWELVE / 4095).astype(np.float16)), 1.0, "32 or 64 bits"),
        (tiff(np.full((SIDE, SIDE), np.inf, np.float64)), 1.0, "NaN or infinity"),
    ],
)
def test_floats_without_a_scale_or_a_value_are_refused(data: bytes, full_scale: float | None, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        seen(data, full_scale)
    assert caught.value.reason == "unsupported"


def test_floats_below_zero_are_black_and_very_large_ones_white() -> None:
    assert not seen(tiff(-(TWELVE + 1.0).astype(np.float32)), 1.0).pixels.any()
    assert (seen(tiff(np.full((SIDE, SIDE), 1e300)), 1.0).pixels == 255).all()


def test_files_that_state_their_depth_keep_it() -> None:
    sink = io.BytesIO()
    tifffile.imwrite(sink, TWELVE, photometric="minisblack", bitspersample=12, compression="none")
    found = seen(sink.getvalue(), 1023.0)
    np.testing.assert_array_equal(found.pixels, seen(sink.getvalue(), None).pixels)
    assert found.peak == 0


def test_the_levels_of_sixteen_bits_are_what_they_were() -> None:
    values = np.arange(2**16)
    np.testing.assert_array_equal(depth.levels(2**16, depth.DEEPEST), (values + 128) // 257)


@pytest.mark.parametrize(
    ("peaks", "found"),
    [([], None), ([0, 0], None), ([0, 900], 1023), ([4000, 3000], 4095), ([5000], 16383), ([60000, 100], None)],
)
def test_the_depth_of_a_camera_is_found_by_the_largest_values(peaks: list[float], found: float | None) -> None:
    assert depth.find(peaks) == found
