import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo

from fcdd import images
from fcdd.errors import REASONS, ImageError
from fcdd.images import View
from fcdd.paper.datasets import LabelledImage
from tests import tiffs

GRADIENT = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def decode(data: bytes, *, channels: int = 3, size: tuple[int, int] = (48, 64), **limits: int) -> images.DecodedImage:
    return images.decode(data, View(size, channels), **limits)


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


@pytest.mark.parametrize("level", [None, 7])
def test_a_grey_picture_is_the_one_of_equal_colours(level: int | None) -> None:
    """It is resized and measured in one channel, to the same; also what is of 16 bits, turned or transparent."""
    grey = np.random.default_rng(0).integers(0, 256, (90, 130), np.uint8)
    options = {"exif": upside_down()} | ({} if level is None else {"transparency": level})
    found = [decode(encoded(Image.fromarray(values), **options)) for values in (grey, grey.astype(np.uint16) * 257)]
    coloured = grey if level is None else np.where(grey == level, 0, grey)
    wanted = decode(encoded(Image.fromarray(coloured).convert("RGB"), exif=upside_down()))
    for each in found[:1] if level is not None else found:
        np.testing.assert_array_equal(each.pixels, wanted.pixels)
        assert (each.brightness, each.sharpness, each.hash) == (wanted.brightness, wanted.sharpness, wanted.hash)
        assert each.contrast == pytest.approx(wanted.contrast, rel=1e-12)


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif


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
TIFF = encoded(Image.fromarray(GRADIENT), "TIFF", compression="tiff_lzw")


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
def test_bad_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data)
    assert caught.value.reason == reason


def png(bits: int, colour_type: int, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of samples (H,W) or (H,W,S), made by hand; `chunks` lie before the pixels."""
    height, width = rows.shape[:2]
    flat = rows.reshape(height, -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8)
    else:
        planes = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(planes.reshape(height, -1).astype(np.uint8), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in every)
    return b"\x89PNG\r\n\x1a\n" + body


def levels(bits: int) -> np.ndarray:
    return (np.arange(48 * 64).reshape(48, 64) * 21) % 2**bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_a_grey_png_is_black_at_every_depth(bits: int) -> None:
    rows, most = levels(bits), 2**bits - 1
    transparent = int(rows[5, 5])
    data = png(bits, 0, rows, (b"tRNS", struct.pack(">H", transparent)))
    expected = np.where(rows == transparent, 0, np.rint(rows * 255 / most))
    for channels in (1, 3):
        found = decode(data, channels=channels).pixels
        np.testing.assert_array_equal(found, np.repeat(expected[:, :, None], channels, 2))


def test_a_transparent_colour_of_sixteen_bits_is_refused_since_only_its_high_byte_is_known() -> None:
    rows = np.stack([levels(16)] * 3, 2)
    data = png(16, 2, rows, (b"tRNS", struct.pack(">HHH", *rows[3, 3])))
    with pytest.raises(ImageError, match="unsupported: PNG: 16-bit colours with one that is transparent"):
        decode(data)
    assert decode(png(16, 2, rows)).pixels[3, 3, 0] == int(rows[3, 3, 0]) >> 8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_turns_nothing(kind: str) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture = Image.fromarray(GRADIENT).convert("RGB")
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        data = encoded(picture, kind, pnginfo=info)
    else:
        data = encoded(picture, kind, **({"tiffinfo": {700: xmp}} if kind == "TIFF" else {"xmp": xmp}))
    assert xmp[:20] in data
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (64, 48)


def _deep_jpeg() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(levels(12).astype(np.uint16), level=95, bitspersample=12))


def _bmp(width: int, *masks: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 32, 3, 0, 0, 0, 0, 0) + struct.pack("<III", *masks)
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(header) + 4 * width, 0, 0, 14 + len(header)) + header + bytes(4 * width)
    )


BROKEN_TEXT = png(8, 0, levels(8), (b"tEXt", b"Comment\0fine")).replace(b"fine", b"fime")


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (_deep_jpeg(), "unsupported", "JPEG: .*12-bit"),
        (_bmp(4, 0x3FF00000, 0xFFC00, 0x3FF), "unsupported", "BMP: .*bitfields"),
        (BROKEN_TEXT, "corrupt", "PNG: .*tEXt"),
        (encoded(Image.fromarray(GRADIENT.astype(np.float32)), "TIFF"), "unsupported", "TIFF of 1 x 32 bits floating"),
        *((start + bytes(60), "corrupt", kind) for start, kind in ((JPEG[:3], "JPEG"), (PNG[:8], "PNG"))),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(60), "corrupt", "WEBP"),
        (b"II*\0\x08\0\0\0" + bytes(60), "corrupt", "TIFF"),
        (b"MM\0*", "truncated", "TIFF"),
    ],
)
def test_a_file_whose_signature_is_right_is_never_no_image(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_sixteen_bits_with_the_values_of_twelve_are_marked() -> None:
    for rows, expected in ((levels(12), True), (levels(16), False)):
        assert decode(png(16, 0, rows)).is_faint is expected
        assert decode(tiffs.write(rows[:, :, None], tiffs.Form(bits=16))).is_faint is expected
    assert decode(encoded(Image.new("L", (5, 5)))).is_faint is False


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "I;16", "LA"])
def test_a_large_picture_is_converted_in_bands_to_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 4)).astype(np.uint8)
    of_mode = {
        "I;16": Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257),
        "P": Image.fromarray(noise).convert("RGB").quantize(64),
    }
    data = encoded(of_mode.get(mode) or Image.fromarray(noise).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    whole = [np.asarray(images.decode_full(data, mode=each)) for each in ("RGB", "L", "A")]
    monkeypatch.setattr(images, "_BAND_PIXELS", 64 * 5)
    for each, expected in zip(("RGB", "L", "A"), whole, strict=True):
        np.testing.assert_array_equal(np.asarray(images.decode_full(data, mode=each)), expected)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PNG, JPEG, TIFF]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1))
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
