import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps

from fcdd import images
from fcdd.datasets import LabelledImage
from fcdd.errors import REASONS, ImageError

GRADIENT = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decode(data: bytes, *, channels: int = 3, size: tuple[int, int] = (48, 64), **limits: int) -> images.DecodedImage:
    return images.decode(data, size=size, channels=channels, **limits)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_every_allowed_format_decodes_to_the_same_picture(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    decoded = decode(encoded(Image.fromarray(GRADIENT).convert("RGB"), kind, **options))
    assert decoded.pixels.shape == (48, 64, 3)
    assert np.abs(decoded.pixels.astype(int) - GRADIENT[:, :, None]).max() <= 2
    assert (decoded.width, decoded.height) == (64, 48)
    assert decoded.brightness == pytest.approx(GRADIENT.mean(), abs=1)
    assert decoded.contrast == pytest.approx(GRADIENT.std(), abs=1)
    # Along a row each pixel is 255 / 63 brighter than the one before, along a column none.
    assert decoded.sharpness == pytest.approx(255 / 63 / 2, abs=0.2)
    assert decoded.format == kind
    assert decoded.hash == b"\xff" * 32


def test_sixteen_bit_grey_is_scaled_not_saturated() -> None:
    decoded = decode(encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257)), channels=1)
    np.testing.assert_array_equal(decoded.pixels[:, :, 0], GRADIENT)


def test_transparency_shows_black_behind() -> None:
    rgba = np.dstack([np.full((48, 64, 3), 200, np.uint8), np.full((48, 64), 128, np.uint8)])
    assert decode(encoded(Image.fromarray(rgba))).pixels.mean() == pytest.approx(100, abs=1)


def test_palette_and_cmyk_images_decode_to_their_colours() -> None:
    red = Image.new("RGB", (64, 48), (250, 10, 10))
    for data in (encoded(red.convert("P")), encoded(red.convert("CMYK"), "TIFF")):
        assert np.abs(decode(data).pixels.mean((0, 1)) - (250, 10, 10)).max() < 25


def test_exif_orientation_is_applied_and_swaps_the_sides() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated: to be turned clockwise
    data = encoded(Image.fromarray(GRADIENT).convert("RGB"), "JPEG", exif=exif, quality=100)
    decoded = decode(data, size=(64, 48))
    assert (decoded.width, decoded.height) == (48, 64)
    assert decoded.pixels[-1].mean() > 200 > 60 > decoded.pixels[0].mean()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_exif_orientation_is_turned_upright_like_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    data = encoded(stored, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    shown = images.decode_full(data)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(upright))
    decoded = decode(data, size=(upright.height, upright.width))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(upright))
    assert (decoded.width, decoded.height) == upright.size


def test_metadata_that_cannot_be_read_costs_the_orientation_and_not_the_image() -> None:
    damaged = encoded(Image.fromarray(GRADIENT), exif=b"Exif\0\0" + b"garbage of no known byte order")
    np.testing.assert_array_equal(decode(damaged, channels=1).pixels[:, :, 0], GRADIENT)


def test_the_whole_picture_follows_the_same_rules() -> None:
    deep = images.decode_full(encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(np.asarray(deep)[:, :, 0], GRADIENT)
    with pytest.raises(ImageError):
        images.decode_full(b"<html>")


def test_large_jpegs_are_decoded_close_to_a_full_decode(nominal_cells: list[LabelledImage]) -> None:
    large = Image.open(nominal_cells[0].path).convert("RGB").resize((1600, 1600), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    full = np.asarray(Image.open(io.BytesIO(data)).resize((128, 128), Image.Resampling.BILINEAR), int)
    difference = np.abs(decode(data, size=(128, 128)).pixels - full)
    assert difference.max() <= 12
    assert difference.mean() < 1


def _huge_png(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


PNG = encoded(Image.fromarray(GRADIENT))
JPEG = encoded(Image.fromarray(GRADIENT), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0", "not_an_image"),
        (b"<html>503 Slow Down</html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (encoded(Image.fromarray(GRADIENT), "GIF"), "not_an_image"),
        (PNG[: len(PNG) // 2], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[:60] + bytes(reversed(PNG[60:])), "corrupt"),
        (_huge_png(50_000, 50_000), "too_large"),
        (_huge_png(9_500, 9_500), "too_large"),
        (encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), "unsupported"),
        (encoded(Image.fromarray(GRADIENT.astype(np.int32)), "TIFF"), "unsupported"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own, below our error
def test_bad_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PNG, JPEG]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1))
def test_damaged_bytes_give_pixels_or_a_reason_and_nothing_else(data: bytes, edits: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for position, value in edits:
        damaged[position % len(damaged)] = value
    try:
        outcome: object = decode(bytes(damaged)).pixels.shape
    except ImageError as error:
        outcome = error.reason
    assert outcome in ((48, 64, 3), *REASONS)


def test_a_blurred_image_is_less_sharp_and_nearly_as_bright() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8))
    sharp, blurred = (decode(encoded(each)) for each in (noise, noise.filter(ImageFilter.GaussianBlur(1.5))))
    assert blurred.sharpness < sharp.sharpness / 3
    assert blurred.brightness == pytest.approx(sharp.brightness, abs=2)


def test_an_image_of_one_pixel_has_no_sharpness() -> None:
    assert decode(encoded(Image.new("RGB", (5, 5))), size=(1, 1)).sharpness == 0


def test_a_jpeg_of_several_pictures_is_a_jpeg() -> None:
    pictures = [Image.fromarray(GRADIENT).convert("RGB"), Image.new("RGB", (64, 48))]
    sink = io.BytesIO()
    pictures[0].save(sink, "MPO", save_all=True, append_images=pictures[1:])
    decoded = decode(sink.getvalue())
    assert (decoded.format, decoded.frames) == ("JPEG", 2)
