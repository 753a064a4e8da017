"""Which files a GPU's decoder is given: it would return damaged ones as pictures."""

import io
import math
import random
import struct

import numpy as np
import pytest
from PIL import Image

from fcdd import images, jpeg_files
from fcdd.errors import ImageError
from fcdd.images import Limits, View
from tests.jpegs import jpeg, picture

LIMITS = Limits()
NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8))
ORDINARY = {
    "4:2:0": jpeg(NOISY),
    "4:4:4": jpeg(NOISY, subsampling=0),
    "grey": jpeg(NOISY.convert("L")),
    "its own tables": jpeg(NOISY, optimize=True, quality=60),
    "restarts": jpeg(NOISY, restart_marker_blocks=1),
    "a comment": jpeg(NOISY, comment="about \xff\xd9 this"),
    "bytes after its end": jpeg(NOISY) + b"\xff\xd8\xff more",
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_ordinary_files_are_taken_with_their_size(kind: str) -> None:
    file = jpeg_files.examine(ORDINARY[kind], LIMITS)
    assert file == (ORDINARY[kind], 120, 90, 1)


# Type of the value in TIFF's numbers, and its bytes.
ODD = {
    "infinite": (11, struct.pack("<f", math.inf)),
    "not a number": (11, struct.pack("<f", math.nan)),
    "too large": (4, struct.pack("<I", 2**32 - 1)),
    "zero": (3, struct.pack("<I", 0)),
    "nine": (3, struct.pack("<I", 9)),
    "a text": (2, b"x\0\0\0"),
    "of no type": (99, b"\6\0\0\0"),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_orientation_that_is_none_is_upright_for_both(kind: str) -> None:
    number, value = ODD[kind]
    metadata = b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, number, 1, value, 0)
    data = jpeg(NOISY, exif=metadata)
    file, trusted = jpeg_files.examine(data, LIMITS), images.decode(data, View((8, 8), 3))
    assert file
    assert 1 <= file.orientation <= 8
    assert file.upright_size == (trusted.width, trusted.height) == (120, 90)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_trusted_decoder(orientation: int) -> None:
    data = jpeg(NOISY, orientation)
    file, trusted = jpeg_files.examine(data, LIMITS), images.decode(data, View((8, 8), 3))
    assert file
    assert (file.orientation, file.upright_size) == (orientation, (trusted.width, trusted.height))


def several() -> bytes:
    sink = io.BytesIO()
    picture(1).save(sink, "MPO", save_all=True, append_images=[picture(2)])
    return sink.getvalue()


def png() -> bytes:
    sink = io.BytesIO()
    NOISY.save(sink, "PNG")
    return sink.getvalue()


UNUSUAL = {
    "progressive": jpeg(NOISY, progressive=True),
    "CMYK": jpeg(NOISY.convert("CMYK")),
    "RGB": jpeg(NOISY, keep_rgb=True),
    "several pictures": several(),
    "PNG": png(),
    "nothing": b"",
    "12 bits": jpeg(NOISY).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "arithmetic coding": jpeg(NOISY).replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc9\x00\x11\x08"),
    "EXIF in two segments": jpeg(NOISY, 6).replace(b"\xff\xdb", b"\xff\xe1\x00\x0aExif\0\0ab\xff\xdb", 1),
    "thousands of comments": jpeg(NOISY).replace(b"\xff\xdb", b"\xff\xfe\x00\x02" * 5000 + b"\xff\xdb", 1),
    "no height": jpeg(NOISY).replace(b"\x08\x00\x5a\x00\x78", b"\x08\x00\x00\x00\x78"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_is_unusual_is_left_to_the_trusted_decoder(kind: str) -> None:
    assert jpeg_files.examine(UNUSUAL[kind], LIMITS) is None


def test_what_is_beyond_the_limits_is_not_taken() -> None:
    data = jpeg(NOISY)
    assert jpeg_files.examine(data, Limits(pixels=120 * 90))
    assert jpeg_files.examine(data, Limits(pixels=120 * 90 - 1)) is None
    assert jpeg_files.examine(data, Limits(encoded_bytes=len(data) - 1)) is None


def damaged(data: bytes, source: random.Random) -> bytes:
    """Cut off, overwritten with noise or zeros, or with one bit turned; anywhere but in the first bytes."""
    at, length = source.randrange(20, len(data) - 2), source.choice([8, 64, 512])
    length = min(length, len(data) - at)
    how = source.choice(["cut", "noise", "zeros", "bit"])
    if how == "cut":
        return data[:at]
    if how == "bit":
        return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :]
    filling = source.randbytes(length) if how == "noise" else bytes(length)
    return data[:at] + filling + data[at + length :]


@pytest.mark.parametrize("kind", ["4:2:0", "grey", "its own tables", "restarts"])
def test_nothing_is_taken_that_the_trusted_decoder_refuses(kind: str) -> None:
    source, refused = random.Random(kind), 0
    for _ in range(400):
        data = damaged(ORDINARY[kind], source)
        try:
            images.decode(data, View((8, 8), 3))
        except ImageError:
            refused += 1
            assert jpeg_files.examine(data, LIMITS) is None
    assert refused > 50


def test_no_header_of_a_frame_or_of_tables_is_taken_that_the_trusted_decoder_refuses() -> None:
    """Every value of every byte."""
    data, refused = jpeg(Image.new("RGB", (16, 16), "teal"), optimize=True), 0
    start, end = data.index(b"\xff\xc0"), data.index(b"\xff\xda") + 14
    for at in range(start + 2, end):
        for value in range(0, 256, 1 if at < start + 19 else 5):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                images.decode(changed, View((8, 8), 3), limits=Limits(pixels=2**20))
            except ImageError:
                refused += 1
                assert jpeg_files.examine(changed, Limits(pixels=2**20)) is None, (at - start, value)
    assert refused > 500


def test_what_is_cut_off_is_never_taken() -> None:
    data = ORDINARY["4:2:0"]
    assert not any(jpeg_files.examine(data[:length], LIMITS) for length in range(0, len(data) - 1, 3))
